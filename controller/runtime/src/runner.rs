//! Runs a controller: the loop around its pure plan.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use steady_core::guard::{self, Guard};
use steady_core::v1::{Fence, LeaseStatus};
use steady_core::{Change, Clock, Key, Kind, Revision, Timestamp, View};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::execute::{Failure, Guards, Tally, execute, execute_beside};
use crate::leadership::Leadership;
use crate::{Client, Controller, News, Queue, Reflector};

/// Passes under way at once, of different keys.
const CONCURRENCY: usize = 16;

/// Between tries to reach an API server.
const UNREACHABLE: Duration = Duration::from_millis(500);

/// A plan that takes so long is long, and so is looking through so many objects.
const LONG: Duration = Duration::from_millis(1);
const MANY: usize = 100;

/// Shortest wait for a time of the clock.
const AT_ONCE: Duration = Duration::from_millis(10);

/// Longest wait for a time of the clock: one that was set right is noticed.
const CLOCK: Duration = Duration::from_secs(5);

/// Times in a row that others write first before somebody is told: it may be no such thing.
const TOO_OFTEN: u32 = 12;

/// What became of one pass.
enum Outcome {
    /// Planned, and executed up to this revision.
    Done { wake_at: Option<Timestamp>, reached: Option<Revision> },
    /// Look again, not before the view holds this revision. It is usual that others wrote meanwhile.
    Again { after: Revision, error: String, usual: bool },
    /// The lease is another's.
    Fenced,
}

/// What a pass cost and brought.
#[derive(Default)]
struct Effort {
    tally: Tally,
    /// How long planning took for each change that came of it.
    spent: Duration,
}

type Passes = FuturesUnordered<BoxFuture<'static, (Key, Outcome, Effort)>>;

/// Runs a controller until `ending` says so: leads when it can, and gives the lease up at the end.
pub async fn run<C: Controller>(
    controller: C,
    client: Client,
    reflector: Reflector,
    clock: Arc<dyn Clock>,
    holder: String,
    mut ending: watch::Receiver<bool>,
) {
    let slow = AtomicBool::new(false);
    let shared = Arc::new(Shared { controller, client: client.clone(), reflector: reflector.clone(), clock, slow });
    loop {
        let seat = async {
            if C::SHARED {
                Leadership::join(&client, &reflector, C::NAME, &holder).await
            } else {
                Leadership::take(&client, &reflector, C::NAME, &holder).await
            }
        };
        let mut leadership = tokio::select! {
            biased;
            taken = seat => taken,
            _ = ending.wait_for(|ending| *ending) => return,
        };
        let doing = Arc::clone(&leadership.doing);
        let ended = tokio::select! {
            biased;
            () = lead(&shared, leadership.fence.clone(), leadership.since, &doing) => false,
            () = leadership.lost() => false,
            _ = ending.wait_for(|ending| *ending) => true,
        };
        if ended {
            leadership.release(&client).await;
            return;
        }
        tracing::warn!(controller = C::NAME, "leadership was lost");
    }
}

struct Shared<C> {
    controller: C,
    client: Client,
    reflector: Reflector,
    clock: Arc<dyn Clock>,
    /// The plan before took long.
    slow: AtomicBool,
}

/// Plans and executes until a commit says that the lease is another's.
async fn lead<C: Controller>(
    shared: &Arc<Shared<C>>,
    fence: Fence,
    since: Revision,
    doing: &watch::Sender<LeaseStatus>,
) {
    let mut news = shared.reflector.news();
    let view = shared.reflector.reach(since).await;
    let mut queue = Queue::default();
    let mut gates: BTreeMap<Key, Revision> = BTreeMap::new();
    let mut passes = Passes::new();
    everything(&shared.controller, &view, &mut queue);
    loop {
        while passes.len() < CONCURRENCY
            && let Some(key) = queue.next(shared.clock.now())
        {
            let gate = gates.get(&key).copied().unwrap_or(since);
            passes.push(Box::pin(pass(Arc::clone(shared), fence.clone(), key, gate)));
        }
        let depth = i32::try_from(queue.depth()).unwrap_or(i32::MAX);
        doing.send_if_modified(|doing| std::mem::replace(&mut doing.queue_depth, depth) != depth);
        let wake = queue.next_at().map(|at| at.since(shared.clock.now()));
        tokio::select! {
            biased;
            Some((key, outcome, effort)) = passes.next() => {
                effort.tally.tell(doing);
                let rest = queue.rest(effort.spent);
                let rested = shared.clock.now() + rest;
                match outcome {
                    Outcome::Done { wake_at, reached } => {
                        queue.done(&key, rested);
                        if let Some(at) = wake_at.filter(|_| guard::stands(Guard::WakeUp)) {
                            // A plan that asks for a time that has come, again and again, does not get all of the time.
                            queue.add_at(key.clone(), at.max(shared.clock.now() + AT_ONCE));
                        }
                        if let Some(reached) = reached {
                            // What was written may call for more, and the news of it may be under way.
                            gates.insert(key.clone(), reached);
                            queue.add(key);
                        }
                    }
                    Outcome::Fenced => return,
                    Outcome::Again { after, error, usual } => {
                        gates.insert(key.clone(), after);
                        if guard::stands(Guard::Retry) {
                            failed::<C>(&mut queue, &key, shared.clock.now(), rest, (&error, usual), doing);
                        } else {
                            queue.done(&key, rested);
                        }
                    }
                }
            },
            heard = news.recv() => match heard {
                Ok(News::Changed(objects)) => {
                    let view = shared.reflector.view();
                    compute(objects.len() >= MANY, || {
                        for object in objects.iter() {
                            shared.controller.keys(object, &view).into_iter().for_each(|key| queue.add(key));
                        }
                    });
                }
                Ok(News::Relisted) if !guard::stands(Guard::RelistPlans) => {}
                Ok(News::Relisted) | Err(RecvError::Lagged(_)) => {
                    everything(&shared.controller, &shared.reflector.view(), &mut queue);
                }
                Err(RecvError::Closed) => return,
            },
            // A pass that ends has this looked at, too.
            () = tokio::time::sleep(wake.unwrap_or_default().min(CLOCK)), if wake.is_some() && passes.len() < CONCURRENCY => {}
        }
    }
}

/// Has a key come again later, and tells what is not usual, or happens too often.
fn failed<C: Controller>(
    queue: &mut Queue,
    key: &Key,
    now: Timestamp,
    rest: Duration,
    (error, usual): (&str, bool),
    doing: &watch::Sender<LeaseStatus>,
) {
    let failures = queue.failed(key, now, fastrand::f64(), rest);
    if usual && failures == TOO_OFTEN {
        tracing::warn!(controller = C::NAME, %key, error, "a plan was out of date {failures} times in a row");
    }
    if !usual || failures >= TOO_OFTEN {
        doing.send_modify(|doing| {
            doing.last_error = format!("{key}: {error}");
            doing.last_error_at = Some(now.into());
        });
    }
}

/// Queues a key for everything there is.
fn everything<C: Controller>(controller: &C, view: &View, queue: &mut Queue) {
    compute(true, || {
        for object in C::watches().iter().flat_map(|kind| view.of_kind(*kind)) {
            controller.keys(object, view).into_iter().for_each(|key| queue.add(key));
        }
    });
}

/// Computes what may take long where no other task waits for it: leases are renewed meanwhile. To change places costs more
/// than what is short.
fn compute<T>(is_long: bool, what: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread if is_long => tokio::task::block_in_place(what),
        _ => what(),
    }
}

/// One pass over one key.
async fn pass<C: Controller>(shared: Arc<Shared<C>>, fence: Fence, key: Key, gate: Revision) -> (Key, Outcome, Effort) {
    let view = shared.reflector.reach(gate).await;
    let is_long = shared.slow.load(Ordering::Relaxed);
    let mut began = Instant::now();
    let acting = compute(is_long, || shared.controller.act(&view, &key, shared.clock.as_ref()));
    let spent = began.elapsed();
    // Whoever is asked may take time to answer: that is not what planning costs.
    let plan = acting.await;
    began = Instant::now();
    let now = shared.clock.now();
    let wake_at = plan.wake_at;
    let groups = compute(is_long, || plan.publish(&view, Some(&key), C::NAME, now));
    let spent = spent + began.elapsed();
    shared.slow.store(spent >= LONG, Ordering::Relaxed);
    let changes: usize = groups.iter().flatten().map(Change::size).sum();
    let spent = spent / u32::try_from(changes).unwrap_or(u32::MAX).max(1);
    if groups.is_empty() {
        return (key, Outcome::Done { wake_at, reached: None }, Effort { spent, ..Effort::default() });
    }
    let sequencer = C::SEQUENCED.then(|| {
        let name = format!("{}/{}/{}", C::NAME, key.cluster, key.name);
        let at = view.revision_of(&Key::new(Kind::Sequencer, "", &name));
        (name, at)
    });
    tracing::debug!(controller = C::NAME, %key, changes, revision = %view.revision(), "committing");
    let place = shared.client.place();
    let executed = if C::SHARED {
        execute_beside(&shared.client, groups, &fence).await
    } else {
        execute(&shared.client, groups, Guards { fence, sequencer }).await
    };
    let (reached, tally) = (executed.reached, executed.tally);
    let outcome = match executed.failure {
        None => Outcome::Done { wake_at, reached },
        // Of many that have nothing to do with each other some met others' writes: no reason to wait.
        Some(Failure::Stale(_)) if C::SHARED && reached.is_some() => Outcome::Done { wake_at, reached },
        Some(failure) => {
            // The next look is no older than what was written before it failed.
            let seen = view.revision().max(reached.unwrap_or_default());
            again((&shared.client, place), C::NAME, &key, seen, failure).await
        }
    };
    (key, outcome, Effort { tally, spent })
}

async fn again(
    (client, place): (&Client, usize),
    controller: &str,
    key: &Key,
    seen: Revision,
    failure: Failure,
) -> Outcome {
    match failure {
        Failure::Stale(message) => {
            tracing::debug!(controller, %key, message, "looking again");
            Outcome::Again { after: seen, error: message, usual: true }
        }
        Failure::Fenced => Outcome::Fenced,
        Failure::Refused(status) => {
            tracing::error!(controller, %key, message = status.message(), "the API refused a plan");
            Outcome::Again { after: seen, error: format!("the API refused a plan: {}", status.message()), usual: false }
        }
        Failure::Unknown(status) => {
            tracing::warn!(controller, %key, message = status.message(), "the outcome of a commit is unknown");
            // Whatever became of it, the next look is newer than now.
            client.rotate(place);
            let after = loop {
                let place = client.place();
                if let Ok(revision) = client.revision().await {
                    break revision;
                }
                client.rotate(place);
                tokio::time::sleep(UNREACHABLE).await;
            };
            Outcome::Again {
                after,
                error: format!("a commit's outcome is unknown: {}", status.message()),
                usual: false,
            }
        }
    }
}
