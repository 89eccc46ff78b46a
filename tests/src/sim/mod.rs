//! The simulator: the whole control plane and its agents on one thread, with one seed for time and chance.
//!
//! Everything is the product's own: planners, runner, queue, leadership, registry, cache, services, the agent's session
//! and engine. Only the ends are simulated: the store is the one in memory, calls are function calls ([`net`],
//! [`store`]), machines are maps of containers ([`machine`]). Faults come from the seed ([`faults`]); the [`judge`] sees
//! every revision; [`end`] says what has to be so once the faults are over. The same seed is the same history, byte
//! for byte.

mod balancer;
mod end;
pub mod exhaustive;
mod faults;
mod judge;
mod life;
mod machine;
pub mod matrix;
mod monitor;
mod net;
mod pool;
mod process;
mod rival;
mod settings;
mod store;
mod trace;
mod users;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use steady_agent::runtime::ContainerId;
use steady_apiserver::cache::decode;
use steady_apiserver::storage::{Change, Memory, Outcome, Storage, StorageError, Txn};
use steady_core::guard::{self, Guard};
use steady_core::v1::{Fence, Object};
use steady_core::{Revision, task};
use tempfile::TempDir;
use tokio::time::Instant;

use judge::Judge;
use life::{Life, lock};
use machine::Machine;
use net::Origin;
use process::{Api, Process};
use trace::Trace;
use users::{Users, Wishes};

pub use life::Moment;
pub use settings::Settings;
pub use trace::catch_panics;

/// How long the desired state may take once faults are over (L1).
const CONVERGENCE: Duration = Duration::from_secs(60);
/// More of it where changes were dropped on their way from the store: until the cache is compared with it.
const COMPARISON: Duration = Duration::from_secs(180);
/// How long somebody who is no process of Steady waits for an answer.
const PATIENCE: Duration = Duration::from_secs(6);
/// Nothing that was sent arrives later than this.
const LATEST: Duration = Duration::from_secs(10);
/// How long nothing may be written after it.
const SILENCE: Duration = Duration::from_secs(12);

/// A world.
pub(crate) struct World {
    pub(crate) settings: Settings,
    /// The true time.
    pub(crate) clock: Arc<Life>,
    start: Instant,
    chance: Mutex<Rng>,
    /// No more faults.
    calm: AtomicBool,
    /// The history is at its end.
    over: AtomicBool,
    pub(crate) memory: Memory,
    pub(crate) judge: Mutex<Judge>,
    pub(crate) wishes: Mutex<Wishes>,
    /// By their numbers; those of the pool come and go.
    machines: Mutex<Vec<Arc<Machine>>>,
    pub(crate) cloud: Mutex<pool::Cloud>,
    processes: Mutex<Vec<Process>>,
    apis: Mutex<Vec<Option<Arc<Api>>>>,
    trace: Mutex<Trace>,
    uids: AtomicU64,
    /// Whose transactions are, by their mark.
    marks: Mutex<HashMap<u64, Origin>>,
    /// What agents keep on disk.
    disk: TempDir,
    probe: Mutex<exhaustive::Probe>,
}

/// How a history ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Of everything that happened.
    pub hash: u64,
    /// The invariant that was broken, or what was not as it should be in the end.
    pub broken: Option<String>,
    /// Revisions of the store.
    pub revisions: i64,
    /// Simulated.
    pub time: Duration,
    /// Faults that were injected.
    pub faults: u64,
    /// The end state by what matters of it.
    pub digest: Vec<String>,
    /// Writes and events of each kind of process.
    pub counts: exhaustive::Counts,
}

/// Seeds that failed once.
pub fn regressions() -> Vec<u64> {
    let lines = include_str!("regressions.txt").lines().filter(|line| !line.starts_with('#'));
    lines.flat_map(str::split_whitespace).filter_map(|seed| seed.parse().ok()).collect()
}

/// Runs a history to its end, on this thread.
pub fn run(settings: Settings) -> Ended {
    run_with(settings, None, None)
}

/// Runs a history with one guard taken away, or with one crash or lost event.
pub fn run_with(settings: Settings, without: Option<Guard>, probe: Option<exhaustive::Perturbation>) -> Ended {
    let seed = tokio::runtime::RngSeed::from_bytes(&settings.seed.to_le_bytes());
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).rng_seed(seed).build();
    let Ok(runtime) = runtime else { unreachable!("a runtime without threads and sockets can be built") };
    fastrand::seed(settings.seed);
    guard::remove(without);
    let ended = runtime.block_on(async move {
        let world = Arc::new(World::new(settings, probe));
        let driver = Arc::clone(&world);
        // A panic anywhere else leaves its process without life; one here must not be lost.
        if let Err(panic) = tokio::spawn(async move { driver.history().await }).await {
            world.fail(format!("the simulator failed: {panic}"));
        }
        world.ended()
    });
    guard::remove(None);
    drop(runtime);
    ended
}

impl World {
    fn new(settings: Settings, probe: Option<exhaustive::Perturbation>) -> Self {
        let start = Instant::now();
        let clock = Arc::new(Life::new(usize::MAX, "time", start));
        let memory = Memory::new(Arc::clone(&clock) as _);
        let machine = |i: usize| Arc::new(Machine::new(&format!("node-{i}"), i, settings.size));
        let machines = Mutex::new((0..settings.instances).map(machine).collect());
        let disk = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let Ok(disk) = disk else { unreachable!("there is no place for temporary files") };
        World {
            chance: Mutex::new(Rng::with_seed(settings.seed)),
            clock,
            start,
            calm: AtomicBool::new(settings.is_calm),
            over: AtomicBool::new(false),
            memory,
            judge: Mutex::default(),
            wishes: Mutex::default(),
            machines,
            cloud: Mutex::default(),
            processes: Mutex::default(),
            apis: Mutex::new(vec![None; settings.apis]),
            trace: Mutex::new(Trace::new(settings.trace)),
            uids: AtomicU64::new(0),
            marks: Mutex::default(),
            disk,
            probe: Mutex::new(exhaustive::Probe::new(probe)),
            settings,
        }
    }

    async fn history(self: Arc<Self>) {
        self.start_all();
        let leases = Arc::clone(&self);
        let expiring = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(250)).await;
                leases.memory.expire();
                leases.observe(None, &Origin::default());
            }
        });
        let rival = self.settings.stale.then(|| {
            let life = Arc::new(Life::new(usize::MAX - 2, "rival", self.start));
            tokio::spawn(rival::run(Arc::clone(&self), life))
        });
        let life = Arc::new(Life::new(usize::MAX - 1, "user", self.start));
        let users = Users { world: Arc::clone(&self), client: net::client(&self, &life) };
        match self.settings.script {
            Some(script) => script.play(&users).await,
            None => self.turmoil(&users).await,
        }
        self.calm.store(true, Ordering::Relaxed);
        self.note("calm", "no more faults");
        self.heal();
        if let Some(rival) = rival {
            rival.abort();
        }
        if self.settings.script.is_none() {
            // What users gave up on may still arrive; then they say what they want once more.
            tokio::time::sleep(LATEST).await;
            let made = tokio::time::timeout(self.patience(), users.make_possible()).await;
            if made.is_err() {
                self.fail("the API did not take the last wishes".into());
            }
        }
        self.converge().await;
        self.over.store(true, Ordering::Relaxed);
        expiring.abort();
    }

    /// Waits for the desired state, and for silence.
    async fn converge(&self) {
        let patience = self.patience();
        let deadline = Instant::now() + patience;
        loop {
            if self.is_broken() {
                return;
            }
            let problems = end::problems(self);
            if problems.is_empty() {
                let before = lock(&self.judge).view.revision();
                tokio::time::sleep(SILENCE).await;
                let after = lock(&self.judge).view.revision();
                if before == after {
                    return;
                }
                // A service that moves a task at the last moment writes until the old one has stopped.
                if Instant::now() > deadline + 3 * SILENCE {
                    return self.fail(format!("L1: there is no silence: revision {before}, {after} later"));
                }
            } else if Instant::now() > deadline {
                return self.fail(format!("L1: after {} s: {}", patience.as_secs(), problems.join("; ")));
            } else {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    fn patience(&self) -> Duration {
        let comparison = if self.settings.drops { COMPARISON } else { Duration::ZERO };
        let pool = if self.settings.pool { pool::PATIENCE } else { Duration::ZERO };
        CONVERGENCE + comparison + pool
    }

    fn ended(&self) -> Ended {
        // API servers and processes hold the world that holds them.
        lock(&self.apis).clear();
        lock(&self.processes).clear();
        let digest = end::digest(self);
        let counts = lock(&self.probe).counts.clone();
        let (broken, revisions) = {
            let judge = lock(&self.judge);
            (trace::panicked().or_else(|| judge.broken.clone()), judge.view.revision().0)
        };
        let trace = lock(&self.trace);
        Ended {
            hash: trace.hash(),
            broken,
            revisions,
            time: self.start.elapsed(),
            faults: trace.faults,
            digest,
            counts,
        }
    }

    /// Writes, and has it judged.
    pub(crate) async fn commit(&self, txn: Txn, origin: &Origin) -> Result<Outcome, StorageError> {
        let outcome = self.memory.txn(txn).await;
        let revision = match &outcome {
            Ok(Outcome::Committed(revision)) => Some(*revision),
            _ => None,
        };
        self.observe(revision, origin);
        outcome
    }

    /// Several transactions at once, each with what wrote it.
    pub(crate) async fn commit_group(&self, txns: Vec<(Txn, Origin)>) -> Result<Vec<Outcome>, StorageError> {
        let keys = |txn: &Txn| txn.ops.iter().map(|op| op.key().to_owned()).collect::<BTreeSet<String>>();
        let parts: Vec<(BTreeSet<String>, Origin)> =
            txns.iter().map(|(txn, origin)| (keys(txn), origin.clone())).collect();
        let outcomes = self.memory.group(txns.into_iter().map(|(txn, _)| txn).collect()).await;
        let committed = outcomes.iter().flatten().find_map(|outcome| match outcome {
            Outcome::Committed(revision) => Some(*revision),
            Outcome::Conflict { .. } => None,
        });
        self.show(|at, changes| {
            if committed != Some(at) {
                return vec![(changes.to_vec(), None)];
            }
            let of = |keys: &BTreeSet<String>| -> Vec<Change> {
                changes.iter().filter(|change| keys.contains(path_of(change))).cloned().collect()
            };
            parts.iter().map(|(keys, origin)| (of(keys), Some(origin))).filter(|(part, _)| !part.is_empty()).collect()
        });
        outcomes
    }

    /// Shows the judge what is new in the store. What was written at `revision` was written by `origin`.
    pub(crate) fn observe(&self, revision: Option<Revision>, origin: &Origin) {
        self.show(|at, changes| vec![(changes.to_vec(), (revision == Some(at)).then_some(origin))]);
    }

    /// Shows the judge what is new in the store, each revision in the parts that were written by one.
    fn show<'a>(&self, parts: impl Fn(Revision, &[Change]) -> Vec<(Vec<Change>, Option<&'a Origin>)>) {
        let mut judge = lock(&self.judge);
        let batch = match self.memory.after("", judge.view.revision()) {
            Ok(batch) => batch,
            Err(error) => return judge.fail(format!("the simulator missed revisions: {error}")),
        };
        for these in batch.changes.chunk_by(|one, next| revision_of(one) == revision_of(next)) {
            let Some(at) = these.first().map(revision_of) else { continue };
            for (these, whose) in parts(at, these) {
                lock(&self.trace).revision(self.clock.as_ref(), at, &these, whose);
                judge.revision(at, &these, whose);
                for (instance, task) in judge.ended_of(&these) {
                    let runs = self.machines().iter().any(|m| m.name == instance && m.runs(&task));
                    if runs {
                        judge.fail(format!("task {task} was reported as ended, and its container runs on {instance}"));
                    }
                }
            }
        }
        judge.view.set_revision(batch.revision);
    }

    /// Where processes keep what they remember.
    pub(crate) fn directory(&self) -> &Path {
        self.disk.path()
    }

    /// Machines that are there.
    pub(crate) fn machines(&self) -> Vec<Arc<Machine>> {
        lock(&self.machines).iter().filter(|machine| !machine.is_gone()).cloned().collect()
    }

    /// The machine of a number, there or not.
    pub(crate) fn machine(&self, number: usize) -> Arc<Machine> {
        Arc::clone(&lock(&self.machines)[number])
    }

    /// Notes what happened.
    pub(crate) fn note(&self, what: &'static str, text: &str) {
        lock(&self.trace).note(self.clock.as_ref(), what, text);
    }

    /// Notes a fault.
    pub(crate) fn fault(&self, what: &'static str, text: &str) {
        let mut trace = lock(&self.trace);
        trace.faults += 1;
        trace.note(self.clock.as_ref(), what, text);
    }

    /// Notes that something is not as it must be.
    pub(crate) fn fail(&self, reason: String) {
        self.note("broken", &reason);
        lock(&self.judge).fail(reason);
    }

    pub(crate) fn is_broken(&self) -> bool {
        lock(&self.judge).broken.is_some()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    /// A container runs on a machine.
    pub(crate) fn started(&self, instance: &str, id: &ContainerId) {
        self.note("started", &format!("{id} on {instance}"));
        lock(&self.judge).started(instance, id);
    }

    /// An agent stops a container.
    pub(crate) fn stopping(&self, instance: &str, id: &ContainerId) {
        self.note("stopping", &format!("{id} on {instance}"));
        lock(&self.judge).stopping(instance, id);
    }

    /// A container ended by itself, or did not start.
    pub(crate) fn failed(&self, id: &ContainerId) {
        self.note("failed", &id.to_string());
        lock(&self.judge).failed(&id.task);
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&self, end: usize) -> usize {
        lock(&self.chance).usize(0..end.max(1))
    }

    pub(crate) fn chance(&self, of: f64) -> bool {
        lock(&self.chance).f64() < of
    }

    pub(crate) fn flip(&self) -> bool {
        self.chance(0.5)
    }

    pub(crate) fn pick<T: Clone>(&self, of: &[T]) -> Option<T> {
        if of.is_empty() { None } else { Some(of[self.below(of.len())].clone()) }
    }

    /// Between these many milliseconds.
    pub(crate) fn between(&self, from: usize, to: usize) -> Duration {
        Duration::from_millis((from + self.below(to - from)) as u64)
    }
}

/// Judges a history from the outside, revision by revision; what is broken, once something is. Who wrote what is not known
/// there: stops and starts of a service are those that its sequencer counts and no agent reports.
pub fn judge_revision() -> impl FnMut(Revision, &[Change]) -> Option<String> {
    let mut judge = Judge::default();
    move |revision, changes| {
        let of_service = changes.iter().any(|change| path_of(change).starts_with("/steady/v1/sequencers/service/"));
        let last = |object: &Object| task::of(object).map(|task| task.status.last_status());
        let reported = changes.iter().any(|change| {
            let Change::Put(entry) = change else { return false };
            let Ok(new) = decode(entry) else { return false };
            let old = judge.view.get(&new.key).and_then(|old| last(old));
            old.is_some() && old != last(&new.object)
        });
        let lease = if of_service && !reported { "controller.service" } else { "" };
        let fence = Some(Fence { lease: lease.to_owned(), epoch: 0 });
        let origin = Origin { name: "history".to_owned(), call: "Apply".to_owned(), fence };
        judge.revision(revision, changes, Some(&origin));
        judge.broken.clone()
    }
}

fn path_of(change: &Change) -> &str {
    match change {
        Change::Put(entry) => &entry.key,
        Change::Deleted { key, .. } => key,
    }
}

fn revision_of(change: &Change) -> Revision {
    match change {
        Change::Put(entry) => entry.mod_revision,
        Change::Deleted { revision, .. } => *revision,
    }
}
