//! The task engine: owns every task of the instance and brings each one step further whenever something happened.
//!
//! One actor owns all state. What to do is decided by [`step`](step::step), purely; doing it is spawned and comes
//! back as an input. Invariants: a container is remembered as launched before it is made, so that after a crash it is
//! never launched again (only its restart policy starts it once more); a task is only stopped because the control plane says so, because a container of its own
//! ended, or because its absence was verified; a task is forgotten only after its end was stored by the API.

mod adoption;
mod assignment;
mod effects;
mod environment;
mod firewall;
mod gpus;
mod images;
mod launch;
mod model;
mod over;
mod pause;
mod restart;
mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use steady_core::guard::{self, Guard};
use steady_core::v1::network_mode::Value as NetworkMode;
use steady_core::v1::task_last_status::Value as Status;
use steady_core::v1::{Assignment, ResolvedSecurityGroup, TaskDefinitionSpec, TaskReport, TaskStatus};
use steady_core::{Clock, Timestamp};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::figures::TaskFigures;
use crate::metadata::{Addresses, Told, document};
use crate::ports::Ports;
use crate::record::{Record, Records};
use crate::runtime::{ContainerId, Exit, Found, PAUSE, Runtime, RuntimeError};
use firewall::{Applied, Groups};
use gpus::Gpus;
pub use images::ImageCleanup;
use images::Images;
use model::Now;
pub(crate) use model::{ContainerState, Phase, Restarts, Stop, TaskState};
use over::Over;
use step::{Action, Step, step};

/// How often time-outs are looked at.
const TICK: Duration = Duration::from_millis(200);
/// Longer than a process lives.
const NEVER: Duration = Duration::from_secs(u32::MAX as u64);
/// Most tasks whose absence is asked about at once: whatever goes wrong, it never goes wrong for all of them.
const MAX_ABSENT: usize = 10;

/// Where the engine is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place {
    pub(crate) cluster: String,
    pub(crate) uid: String,
    pub(crate) address: String,
    /// Its availability zone; empty: none.
    pub(crate) zone: String,
    /// How containers find the metadata endpoint, where there is one.
    pub(crate) metadata: Option<Addresses>,
    /// What it has besides cpu and memory.
    pub(crate) resources: BTreeMap<String, i32>,
    /// When images are removed that no task uses; `None`: never.
    pub(crate) image_cleanup: Option<ImageCleanup>,
    /// Servers of names that containers ask whose definition names none.
    pub(crate) dns: Vec<String>,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Input {
    /// All tasks of this instance, in a session that just began.
    Snapshot(Vec<Assignment>),
    /// Tasks that changed.
    Changed(Vec<Assignment>),
    /// The security groups that its tasks have, all of them.
    SecurityGroups(Vec<ResolvedSecurityGroup>),
    /// A task's network has these rules, or could not be given them.
    Filtered { task: String, result: Result<String, RuntimeError> },
    /// Tasks that are verified not to be this instance's.
    Absent(Vec<String>),
    /// These statuses are stored, but for those refused for good.
    Stored { versions: BTreeMap<String, u64>, refused: BTreeMap<String, String> },
    /// An image of a task was pulled, or could not be; it is named if it was not here before.
    Pulled { task: String, image: Option<String>, began: Timestamp, ended: Timestamp },
    /// A container was launched, or could not be.
    Launched { id: ContainerId, result: Result<effects::Launched, RuntimeError> },
    /// A container was started again, or could not be.
    Restarted { id: ContainerId, result: Result<String, RuntimeError> },
    /// An image is gone, or stays for now.
    ImageRemoved { image: String, is_gone: bool },
    /// A container ended.
    Exited(ContainerId, Exit),
    /// It could not be stopped.
    NotStopped(ContainerId, RuntimeError),
    /// A health check answered; `None`: it could not be run.
    Probed(ContainerId, Option<bool>),
    /// A task's containers are removed.
    Removed(String),
    /// Somebody asks for what a container is told, by its token. Not answered: there is none.
    Asked { token: String, answer: oneshot::Sender<Told> },
    /// Somebody asks for figures of all tasks.
    Counted { answer: oneshot::Sender<Vec<(String, TaskFigures)>> },
    /// The agent ends, and its tasks with it.
    StopAll,
}

/// What the session has to bring to the control plane.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outgoing {
    /// Statuses that are not stored yet, with their versions.
    pub(crate) reports: Vec<(u64, TaskReport)>,
    /// Tasks that the control plane did not name: are they gone?
    pub(crate) unverified: Vec<String>,
    /// Tasks that are not over.
    pub(crate) tasks: usize,
    /// All of them are to stop.
    pub(crate) stopping: bool,
}

/// A task and how much of it is told.
struct Entry {
    state: TaskState,
    record: Record,
    told: TaskStatus,
    version: u64,
    stored: u64,
    /// Not in the last snapshot.
    missing: bool,
    removing: bool,
    firewall: Applied,
}

fn figures(entry: &Entry) -> TaskFigures {
    let task = steady_core::task::of(&entry.state.object);
    let running = entry.state.containers.iter().filter(|container| container.phase == Phase::Running);
    let running = running.filter(|container| container.definition.name != PAUSE);
    TaskFigures {
        service: task.map(|task| task.spec.service.clone()).unwrap_or_default(),
        status: entry.told.last_status().as_str_name(),
        running: running.map(|container| id(entry.state.name(), &container.definition.name)).collect(),
    }
}

/// The engine.
pub(crate) struct Engine {
    place: Place,
    runtime: Arc<dyn Runtime>,
    records: Records,
    clock: Arc<dyn Clock>,
    ports: Ports,
    gpus: Gpus,
    images: Images,
    /// Security groups; not known before the control plane has said something.
    groups: Groups,
    is_told: bool,
    tasks: BTreeMap<String, Entry>,
    /// Containers that were found without a record of their task.
    strays: BTreeMap<String, Vec<Found>>,
    /// None of them ever runs again.
    over: Over,
    /// Tasks to look at.
    touched: BTreeSet<String>,
    /// Every task is to stop, and none is accepted.
    stopping: bool,
    inputs: mpsc::UnboundedSender<Input>,
    outgoing: watch::Sender<Outgoing>,
}

impl Engine {
    /// An engine that knows what is remembered and what runs.
    pub(crate) async fn adopt(
        place: Place,
        runtime: Arc<dyn Runtime>,
        records: Records,
        clock: Arc<dyn Clock>,
        inputs: mpsc::UnboundedSender<Input>,
        outgoing: watch::Sender<Outgoing>,
    ) -> Result<Self, RuntimeError> {
        let mut exits = runtime.exits();
        let found = runtime.list().await?;
        let known = records.load().map_err(|e| RuntimeError::Other(e.to_string()))?;
        let (gpus, images) = (Gpus::of(&place.resources), Images::load(records.directory()));
        let mut engine = Engine {
            place,
            runtime,
            records,
            clock,
            ports: Ports::default(),
            gpus,
            images,
            groups: Groups::new(),
            is_told: false,
            tasks: BTreeMap::new(),
            strays: BTreeMap::new(),
            over: Over::default(),
            touched: BTreeSet::new(),
            stopping: false,
            inputs: inputs.clone(),
            outgoing,
        };
        let mut over = Vec::new();
        for record in known {
            if let Some(at) = record.over {
                over.push((at, record.task.name().to_owned()));
                continue;
            }
            let found: &[Found] = if guard::stands(Guard::Adoption) { &found } else { &[] };
            let here: Vec<&Found> = found.iter().filter(|f| f.id.task == record.task.name()).collect();
            engine.remember(record, &here);
        }
        engine.over = Over::of(over);
        engine.take_strays(&found);
        tokio::spawn(async move {
            while let Some((id, exit)) = exits.recv().await {
                if inputs.send(Input::Exited(id, exit)).is_err() {
                    return;
                }
            }
        });
        Ok(engine)
    }

    fn insert(&mut self, state: TaskState, record: Record) {
        self.tasks.insert(state.name().to_owned(), Entry::new(state, record));
    }

    /// Runs until nobody can send inputs any more.
    pub(crate) async fn run(mut self, mut inputs: mpsc::UnboundedReceiver<Input>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let cleanup = self.place.image_cleanup;
        let every = cleanup.map_or(NEVER, |cleanup| cleanup.interval);
        let mut cleaning = tokio::time::interval_at(Instant::now() + every, every);
        loop {
            // Where nothing is waited for, nothing ticks: a machine may hold thousands of engines (hollow ones).
            let is_restless = |(name, entry): (&String, &Entry)| entry.is_restless() && !self.is_stray(name);
            let restless = self.stopping || self.tasks.iter().any(is_restless);
            tokio::select! {
                biased;
                input = inputs.recv() => match input {
                    Some(input) => {
                        self.take(input);
                        // What has piled up is taken together, and told together.
                        while let Ok(input) = inputs.try_recv() {
                            self.take(input);
                        }
                    }
                    None => return,
                },
                _ = tick.tick(), if restless => {
                    let restless = self.tasks.iter().filter(|(_, e)| e.is_restless()).map(|(name, _)| name.clone());
                    self.touched.extend(restless);
                }
                _ = cleaning.tick(), if cleanup.is_some() => self.clean_images(cleanup.unwrap_or_default().minimum_age),
            }
            self.advance();
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Snapshot(assignments) => {
                self.is_told = true;
                self.snapshot(assignments);
            }
            Input::SecurityGroups(groups) => self.grouped(groups),
            Input::Filtered { task, result } => self.filtered(&task, result),
            Input::Changed(assignments) => assignments.into_iter().for_each(|a| self.assign(a)),
            Input::Absent(names) => self.absent(&names),
            Input::Stored { versions, refused } => self.stored(&versions, &refused),
            Input::Pulled { task, image, began, ended } => {
                if let Some(image) = image.filter(|_| self.place.image_cleanup.is_some()) {
                    self.images.learn(&image, self.clock.now());
                }
                self.pulled(&task, began, ended);
            }
            Input::Launched { id, result } => self.launched(&id, result),
            Input::Restarted { id, result } => self.restarted(&id, result),
            Input::ImageRemoved { image, is_gone: true } => self.images.forget(&image),
            Input::ImageRemoved { image, is_gone: false } => self.images.touch([&image], self.clock.now()),
            Input::Exited(id, exit) => self.exited(&id, exit),
            Input::NotStopped(id, error) => {
                tracing::error!(container = %id, %error, "a container could not be stopped; trying again");
                self.with(&id, |container, _| {
                    // It may have ended meanwhile.
                    if container.phase == Phase::Stopping {
                        container.phase = Phase::Running;
                    }
                });
            }
            Input::Probed(id, passed) => self.with(&id, |container, now| effects::probed(container, passed, now)),
            Input::Removed(name) => self.removed(&name),
            Input::Asked { token, answer } => {
                if let Some(told) = self.described(&token) {
                    let _ = answer.send(told);
                }
            }
            Input::Counted { answer } => {
                let _ = answer.send(self.tasks.iter().map(|(name, entry)| (name.clone(), figures(entry))).collect());
            }
            Input::StopAll => self.stop_all(),
        }
    }

    fn now(&self) -> Now {
        Now { at: self.clock.now(), instant: Instant::now() }
    }

    fn with(&mut self, id: &ContainerId, change: impl FnOnce(&mut model::ContainerState, Now)) {
        let now = self.now();
        if let Some(entry) = self.tasks.get_mut(&id.task)
            && let Some(container) = entry.state.container_mut(&id.name)
        {
            change(container, now);
            self.touched.insert(id.task.clone());
        }
    }

    /// Nothing is known of a task but its containers: until that is otherwise, nothing is decided about it.
    fn is_stray(&self, name: &str) -> bool {
        self.strays.contains_key(name) && self.tasks.get(name).is_some_and(|entry| entry.state.stop.is_none())
    }

    /// Remembers a task as it is now. A stray is only remembered once it is known what it is.
    fn note(&self, name: &str) {
        if let Some(entry) = self.tasks.get(name).filter(|_| !self.strays.contains_key(name)) {
            self.records.note(&entry.record);
        }
    }

    /// What the container of this token is told.
    fn described(&self, token: &str) -> Option<Told> {
        let addresses = self.place.metadata.as_ref()?;
        let (task, _) = token.split_once('-')?;
        let state = &self.tasks.get(task)?.state;
        let container = state.containers.iter().find(|c| addresses.token(&id(task, &c.definition.name)) == token)?;
        let running = state.containers.iter().filter(|c| c.phase == Phase::Running && c.definition.name != PAUSE);
        let role = &state.definition.task_role_arn;
        Some(Told {
            id: id(task, &container.definition.name),
            has_own_network: state.definition.network_mode() == NetworkMode::Awsvpc,
            from: state.container(PAUSE).and_then(|pause| pause.address.clone()),
            task: document::of_task(state, &self.place, self.clock.now()),
            running: running.map(|c| (id(task, &c.definition.name), c.runtime_id.clone())).collect(),
            role: role.clone(),
            credentials: state.secrets.role(),
            protected_until: steady_core::task::of(&state.object).and_then(|task| task.protected_until()),
        })
    }

    fn stored(&mut self, versions: &BTreeMap<String, u64>, refused: &BTreeMap<String, String>) {
        for (name, version) in versions {
            let Some(entry) = self.tasks.get_mut(name) else { continue };
            entry.stored = entry.stored.max(*version);
            if let Some(reason) = refused.get(name) {
                tracing::warn!(task = name, reason, "a status was refused; asking whether the task is gone");
                entry.missing = true;
            }
            self.touched.insert(name.clone());
        }
    }

    fn pulled(&mut self, name: &str, began: Timestamp, ended: Timestamp) {
        let Some(entry) = self.tasks.get_mut(name) else { return };
        let (first, last) = entry.state.pulled.unwrap_or((began, ended));
        entry.state.pulled = Some((first.min(began), last.max(ended)));
        self.touched.insert(name.to_owned());
    }

    fn launched(&mut self, id: &ContainerId, result: Result<effects::Launched, RuntimeError>) {
        let mut filtered = None;
        self.with(id, |container, now| match result {
            Ok(launched) => {
                container.runtime_id = launched.runtime_id;
                container.digest = launched.digest.unwrap_or_default();
                container.address = launched.address;
                filtered = launched.firewall;
                if container.phase == Phase::Starting {
                    effects::runs(container, now);
                    // It may have ended before its start was known here.
                    if let Some(exit) = container.exit.take() {
                        effects::ended(container, exit);
                    }
                }
            }
            Err(error) => {
                container.reason = error.to_string();
                if container.phase < Phase::Stopped {
                    container.phase = Phase::Stopped;
                }
            }
        });
        if let Some((entry, rules)) = self.tasks.get_mut(&id.task).zip(filtered) {
            entry.firewall = Applied::made(rules);
        }
    }

    fn exited(&mut self, id: &ContainerId, exit: Exit) {
        let now = self.now();
        let Some(entry) = self.tasks.get_mut(&id.task) else { return };
        let wanted = entry.state.wants_to_run();
        let Some(container) = entry.state.container_mut(&id.name) else { return };
        if container.restarts.has_answered(&exit) {
            return;
        }
        let ran = container.running_since.map_or(Duration::ZERO, |since| now.instant.duration_since(since));
        self.touched.insert(id.task.clone());
        match container.phase {
            // It ended before its start was known here.
            Phase::Starting | Phase::Restarting => container.exit = Some(exit),
            Phase::Running if wanted && container.is_restarted_after(&exit, ran) => self.restart(id, Some(exit)),
            Phase::New | Phase::Running | Phase::Stopping => {
                container.started_at.get_or_insert(exit.at);
                effects::ended(container, exit);
            }
            Phase::Stopped => {}
        }
    }

    fn removed(&mut self, name: &str) {
        let Some(entry) = self.tasks.remove(name) else { return };
        self.strays.remove(name);
        entry.state.host_ports().for_each(|port| self.ports.release(port.host, port.udp));
        self.gpus.release(name);
        let now = self.clock.now();
        if self.place.image_cleanup.is_some() {
            self.images.touch(entry.state.containers.iter().map(|container| &container.definition.image), now);
        }
        self.records.note(&Record { over: Some(now), ..Record::new(entry.record.task, TaskDefinitionSpec::default()) });
        for forgotten in self.over.add(name, now) {
            self.records.forget(&forgotten);
        }
    }

    /// Brings every touched task one step further, and tells what changed.
    fn advance(&mut self) {
        let touched = std::mem::take(&mut self.touched);
        if touched.is_empty() && !self.stopping {
            return;
        }
        for name in &touched {
            self.step(name);
        }
        let mut outgoing = Outgoing { tasks: self.tasks.len(), stopping: self.stopping, ..Outgoing::default() };
        for (name, entry) in &self.tasks {
            if entry.stored < entry.version && !entry.state.forgotten && !entry.missing {
                let report = TaskReport { task: name.clone(), status: Some(entry.told.clone()) };
                outgoing.reports.push((entry.version, report));
            }
            if entry.missing && !entry.state.forgotten && outgoing.unverified.len() < MAX_ABSENT {
                outgoing.unverified.push(name.clone());
            }
        }
        self.outgoing.send_replace(outgoing);
    }

    fn step(&mut self, name: &str) {
        if self.is_stray(name) {
            return;
        }
        let now = self.now();
        loop {
            let Some(entry) = self.tasks.get_mut(name) else { return };
            let state = &mut entry.state;
            if state.started_at.is_none() && state.containers.iter().all(|c| c.phase >= Phase::Running) {
                let ran = state.containers.iter().all(|c| c.started_at.is_some());
                state.started_at = ran.then_some(now.at);
            }
            if state.stop.is_some() && state.deregisters_since.is_none() {
                state.deregisters_since = Some(now.instant);
            }
            let Step { stop, actions } = step(state, now);
            let again = stop.is_some();
            if let Some(stop) = stop {
                state.stop = Some(stop);
                entry.record.stop.clone_from(&state.stop);
                // With its targets: the next one waits for load balancers, too.
                entry.record.task.clone_from(&state.object);
                // Should the agent end meanwhile, the next one must not start again what is to stop.
                self.note(name);
            }
            let skipped = actions.iter().any(|a| matches!(a, Action::Skip(_)));
            for action in actions {
                self.act(name, action);
            }
            if !again && !skipped {
                break;
            }
        }
        self.filter(name);
        self.tell(name);
    }

    /// Notices what is new about a task for the control plane, and removes what is over.
    fn tell(&mut self, name: &str) {
        let now = self.clock.now();
        let Some(entry) = self.tasks.get_mut(name) else { return };
        if entry.state.is_stopped() && entry.state.stopped_at.is_none() {
            entry.state.stopped_at = Some(now);
            // By the time that this is told they may be another task's.
            self.gpus.release(name);
        }
        let status = entry.state.status(&self.place.address, now);
        // What the control plane has said already needs no telling.
        let worth = status.last_status() > Status::Pending || entry.version > 0;
        if worth && status != entry.told {
            entry.told = status;
            entry.version += 1;
        }
        let stored = entry.stored >= entry.version || !guard::stands(Guard::Stored);
        let over = entry.state.is_stopped() && (entry.state.forgotten || stored);
        if over && !entry.removing {
            entry.removing = true;
            let ids = entry.state.containers.iter().map(|c| id(name, &c.definition.name)).collect();
            effects::remove(Arc::clone(&self.runtime), self.inputs.clone(), name.to_owned(), ids);
        }
    }

    fn act(&mut self, name: &str, action: Action) {
        match action {
            Action::Launch(container) => self.launch(name, &container),
            Action::Skip(container) => self.with(&id(name, &container), |c, _| c.phase = Phase::Stopped),
            Action::Stop(container, grace) => {
                self.with(&id(name, &container), |c, _| c.phase = Phase::Stopping);
                effects::stop(
                    Arc::clone(&self.runtime),
                    self.inputs.clone(),
                    id(name, &container),
                    grace,
                    Arc::clone(&self.clock),
                );
            }
            Action::Probe(container) => {
                self.with(&id(name, &container), |c, _| c.probes.busy = true);
                let check = self.tasks.get(name).and_then(|e| e.state.container(&container));
                if let Some(check) = check.and_then(|c| c.definition.health_check.clone()) {
                    effects::probe(Arc::clone(&self.runtime), self.inputs.clone(), id(name, &container), check);
                }
            }
        }
    }
}

impl Entry {
    fn new(state: TaskState, record: Record) -> Self {
        let told = TaskStatus::default();
        Entry {
            state,
            record,
            told,
            version: 0,
            stored: 0,
            missing: false,
            removing: false,
            firewall: Applied::default(),
        }
    }

    /// Time alone can change something about it.
    fn is_restless(&self) -> bool {
        !self.removing
            && (!self.state.wants_to_run()
                || self.state.started_at.is_none()
                || self.state.containers.iter().any(|c| c.probes.due.is_some()))
    }
}

fn id(task: &str, container: &str) -> ContainerId {
    ContainerId { task: task.to_owned(), name: container.to_owned() }
}
