//! One watcher: a snapshot, and then every change from a cursor of its own in the cache's ring.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, Stream};
use steady_core::v1::watch_response::Phase;
use steady_core::v1::{Object, Selector, WatchEvent, WatchRequest, WatchResponse};
use steady_core::{Kind, KindExt, Revision};
use tonic::Status;

use super::selects;
use crate::cache::{Cache, Changed};

/// Most events of one response.
const MAX_EVENTS: usize = 500;
/// A watcher hears at least this often how far the cache is.
const BOOKMARK: Duration = Duration::from_secs(10);

struct Watcher {
    cache: Cache,
    kinds: Vec<Kind>,
    selector: Selector,
    /// Everything up to here was sent, or is in `ready`.
    at: Revision,
    ready: VecDeque<WatchResponse>,
    /// Names this process.
    server: i64,
    /// Responses sent.
    sent: i64,
}

/// The stream of a request. It ends with `OUT_OF_RANGE` when the watcher fell behind what is kept.
pub(super) fn stream(
    cache: Cache,
    server: i64,
    request: WatchRequest,
) -> impl Stream<Item = Result<WatchResponse, Status>> {
    let mut kinds: Vec<Kind> = request.kinds().collect();
    if kinds.is_empty() {
        kinds.extend(Kind::USER);
    }
    let mut watcher = Watcher {
        cache,
        kinds,
        selector: request.selector.unwrap_or_default(),
        at: Revision(request.after_revision),
        ready: VecDeque::new(),
        server,
        sent: 0,
    };
    if request.after_revision == 0 {
        watcher.snapshot();
    }
    stream::unfold(Some(watcher), |watcher| async move {
        let mut watcher = watcher?;
        match watcher.next().await {
            Ok(response) => {
                watcher.sent += 1;
                let (sequence, server) = (watcher.sent, watcher.server);
                Some((Ok(WatchResponse { sequence, server, ..response }), Some(watcher)))
            }
            Err(status) => Some((Err(status), None)),
        }
    })
}

impl Watcher {
    fn snapshot(&mut self) {
        let view = self.cache.view();
        self.at = view.revision();
        for kind in self.kinds.clone() {
            let wanted: Vec<&Arc<Object>> =
                view.of_kind(kind).filter(|object| selects(&self.selector, object)).collect();
            for part in wanted.chunks(MAX_EVENTS) {
                let events = part.iter().map(|o| WatchEvent { object: Some(Object::clone(o)), deleted: false });
                self.ready.push_back(WatchResponse {
                    phase: Phase::Init.into(),
                    revision: self.at.0,
                    events: events.collect(),
                    more: true,
                    ..WatchResponse::default()
                });
            }
        }
        let done = WatchResponse { phase: Phase::InitDone.into(), revision: self.at.0, ..WatchResponse::default() };
        self.ready.push_back(done);
    }

    async fn next(&mut self) -> Result<WatchResponse, Status> {
        let mut progress = self.cache.progress();
        let deadline = tokio::time::Instant::now() + BOOKMARK;
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Ok(response);
            }
            let seen = self.at;
            let newer = progress.wait_for(|revision| *revision > seen);
            match tokio::time::timeout_at(deadline, newer).await {
                Ok(Ok(_)) => self.read()?,
                Ok(Err(_)) => return Err(Status::unavailable("the API server is ending")),
                Err(_) => {}
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
        Some(WatchEvent { object: Some(Object::clone(&change.object)), deleted: !now })
    }
}
