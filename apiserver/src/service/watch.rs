//! One watcher: a snapshot, and then every change from a cursor of its own in the cache's ring.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::registry::shown;
use futures::stream::{self, Stream};
use steady_core::v1::watch_response::Phase;
use steady_core::v1::{Selector, WatchEvent, WatchRequest, WatchResponse};
use steady_core::{Key, Kind, KindExt, Revision, View};
use tokio::sync::mpsc;
use tonic::Status;

use super::selects;
use crate::cache::{Cache, Changed};

/// Most events of one response.
const MAX_EVENTS: usize = 500;
/// A watcher hears at least this often how far the cache is.
const BOOKMARK: Duration = Duration::from_secs(10);

/// Without its store for so long a server tells nobody that nothing happens.
const LOST: Duration = Duration::from_secs(5);
/// A watcher that takes nothing for so long is cut off.
const SLOW: Duration = Duration::from_secs(60);
/// Watches that one server serves at once.
const MAX_WATCHES: usize = 20_000;
/// Responses that may wait for a watcher.
const WAITING: usize = 4;

struct Watcher {
    cache: Cache,
    kinds: Vec<Kind>,
    selector: Selector,
    /// Everything up to here was sent, or is in `ready` or `snapshot`.
    at: Revision,
    /// What is left of the snapshot: its view, the kinds to come, the last object that was sent.
    snapshot: Option<Snapshot>,
    ready: VecDeque<WatchResponse>,
    /// Names this process.
    server: i64,
    /// Responses sent.
    sent: i64,
}

struct Snapshot {
    view: View,
    kinds: VecDeque<Kind>,
    after: Option<Key>,
}

/// Watches that one server serves; their number is in the status.
#[derive(Clone, Default)]
pub(crate) struct Watches(Arc<AtomicUsize>);

/// One watch.
pub(super) struct Entered(Arc<AtomicUsize>);

impl Watches {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// One more, for as long as it is kept; `None` when there are as many as a server serves.
    pub(super) fn enter(&self) -> Option<Entered> {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        let entered = Entered(Arc::clone(&self.0));
        (before < MAX_WATCHES).then_some(entered)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The stream of a request. It ends with `OUT_OF_RANGE` when the watcher fell behind what is kept, and with
/// `RESOURCE_EXHAUSTED` when it took nothing for a minute: whoever does not read must not hold memory.
pub(super) fn stream(
    cache: Cache,
    server: i64,
    request: WatchRequest,
    watch: Entered,
) -> impl Stream<Item = Result<WatchResponse, Status>> {
    let mut kinds: Vec<Kind> = request.kinds().collect();
    if kinds.is_empty() {
        kinds.extend(Kind::USER);
    }
    let first = request.after_revision == 0;
    let view = first.then(|| cache.view());
    let watcher = Watcher {
        at: view.as_ref().map_or(Revision(request.after_revision), View::revision),
        snapshot: view.map(|view| Snapshot { view, kinds: kinds.clone().into(), after: None }),
        cache,
        kinds,
        selector: request.selector.unwrap_or_default(),
        ready: VecDeque::new(),
        server,
        sent: 0,
    };
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        watcher.run(sender).await;
        drop(watch);
    });
    stream::unfold(Some(receiver), |receiver| async move {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(Ok(response)) => Some((Ok(response), Some(receiver))),
            Some(Err(status)) => Some((Err(status), None)),
            None => {
                let message = format!("nothing was read for {} s; watch anew, and read faster", SLOW.as_secs());
                Some((Err(Status::resource_exhausted(message)), None))
            }
        }
    })
}

impl Watcher {
    async fn run(mut self, sender: mpsc::Sender<Result<WatchResponse, Status>>) {
        loop {
            let next = tokio::select! {
                biased;
                () = sender.closed() => return,
                next = self.next() => next,
            };
            let over = next.is_err();
            let next = next.map(|response| {
                self.sent += 1;
                WatchResponse { sequence: self.sent, server: self.server, ..response }
            });
            if sender.send_timeout(next, SLOW).await.is_err() || over {
                return;
            }
        }
    }

    /// The next part of the snapshot; the last one says that it is whole.
    fn part(&mut self) -> Option<WatchResponse> {
        let snapshot = self.snapshot.as_mut()?;
        let mut response = WatchResponse { revision: self.at.0, ..WatchResponse::default() };
        while let Some(kind) = snapshot.kinds.front().copied() {
            let rest = snapshot.view.of_kind_after(kind, snapshot.after.as_ref());
            let wanted = rest.filter(|object| selects(&self.selector, object)).take(MAX_EVENTS);
            let events = wanted.map(|o| WatchEvent { object: Some(shown(o)), deleted: false });
            response.events = events.collect();
            snapshot.after = response.events.last().and_then(|event| event.object.as_ref()).map(Key::of);
            if response.events.len() < MAX_EVENTS {
                snapshot.kinds.pop_front();
                snapshot.after = None;
            }
            if !response.events.is_empty() {
                response.more = true;
                response.set_phase(Phase::Init);
                return Some(response);
            }
        }
        response.epoch = snapshot.view.epoch();
        self.snapshot = None;
        response.set_phase(Phase::InitDone);
        Some(response)
    }

    async fn next(&mut self) -> Result<WatchResponse, Status> {
        let mut progress = self.cache.progress();
        let deadline = tokio::time::Instant::now() + BOOKMARK;
        loop {
            if let Some(response) = self.part().or_else(|| self.ready.pop_front()) {
                return Ok(response);
            }
            let seen = self.at;
            tokio::select! {
                biased;
                newer = progress.wait_for(|revision| *revision > seen) => match newer {
                    Ok(_) => self.read()?,
                    Err(_) => return Err(Status::unavailable("the API server is ending")),
                },
                () = tokio::time::sleep_until(deadline) => {}
                () = self.cache.is_lost(LOST) => {
                    return Err(Status::unavailable("the API server does not reach its store; watch another one"));
                }
            }
            // Also while all that happens is of no interest to this watcher.
            if self.ready.is_empty() && tokio::time::Instant::now() >= deadline {
                let (phase, revision) = (Phase::Bookmark.into(), self.at.0);
                return Ok(WatchResponse { phase, revision, ..WatchResponse::default() });
            }
        }
    }

    fn read(&mut self) -> Result<(), Status> {
        let (changes, reached) = self
            .cache
            .changes(self.at, MAX_EVENTS)
            .map_err(|gone| Status::out_of_range(format!("revision {} is too old: {gone}; list again", self.at)))?;
        self.at = reached;
        let mut events: Vec<WatchEvent> = changes.iter().filter_map(|change| self.event(change)).collect();
        while events.len() > MAX_EVENTS {
            let rest = events.split_off(MAX_EVENTS);
            self.push(std::mem::replace(&mut events, rest), true);
        }
        if !events.is_empty() {
            self.push(events, false);
        }
        Ok(())
    }

    fn push(&mut self, events: Vec<WatchEvent>, more: bool) {
        let (phase, revision) = (Phase::Changes.into(), self.at.0);
        self.ready.push_back(WatchResponse { phase, revision, events, more, ..WatchResponse::default() });
    }

    /// What a change is to this watcher: an object that is no longer selected is gone for it.
    fn event(&self, change: &Changed) -> Option<WatchEvent> {
        if !self.kinds.contains(&change.object.kind()) {
            return None;
        }
        let now = !change.deleted && selects(&self.selector, &change.object);
        let before = change.previous.as_ref().is_some_and(|object| selects(&self.selector, object));
        if !now && !before {
            return None;
        }
        Some(WatchEvent { object: Some(shown(&change.object)), deleted: !now })
    }
}
