//! A watch that survives its connection: a snapshot, then every change once and in order.
//!
//! Changes of one revision are handed on together, and only when all of them have come: a stream that
//! breaks in between is resumed after the last whole revision, so nothing is seen twice. When the
//! server has forgotten that revision (`OUT_OF_RANGE`), a new snapshot comes instead of changes.

use std::time::Duration;

use steady_core::Kind;
use steady_proto::v1::watch_response::Phase;
use steady_proto::v1::{Object, Selector, WatchEvent, WatchRequest, WatchResponse};
use tonic::{Code, Streaming};

use crate::client::{Client, scoped};
use crate::failure::Failure;
use crate::out;

/// Longest pause between two tries to connect.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// What a watch delivers.
#[derive(Debug)]
pub enum Seen {
    /// All there is; what is not in it is gone.
    Snapshot(Vec<Object>),
    /// What changed, in order.
    Changes(Vec<WatchEvent>),
}

/// An open watch.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    kinds: Vec<Kind>,
    selector: Selector,
    stream: Option<Streaming<WatchResponse>>,
    gathered: Gathered,
}

impl Watch {
    /// Watches `kinds`. Fails at once when the server cannot be reached now; later losses are mended.
    pub async fn open(client: &Client, kinds: &[Kind], selector: Selector) -> Result<Self, Failure> {
        let selector = scoped(kinds, selector);
        let mut watch = Watch {
            client: client.clone(),
            kinds: kinds.to_vec(),
            selector,
            stream: None,
            gathered: Gathered::default(),
        };
        watch.stream = Some(watch.client.open_watch(watch.request()).await?);
        Ok(watch)
    }

    fn request(&self) -> WatchRequest {
        WatchRequest {
            kinds: self.kinds.iter().map(|kind| (*kind).into()).collect(),
            selector: Some(self.selector.clone()),
            after_revision: self.gathered.revision,
            server: self.gathered.server,
        }
    }

    /// The snapshot, or what changed since the last call. Waits for it, however long.
    pub async fn next(&mut self) -> Result<Seen, Failure> {
        loop {
            let Some(stream) = &mut self.stream else {
                self.resume().await?;
                continue;
            };
            match stream.message().await {
                Ok(Some(response)) => {
                    if let Some(seen) = self.gathered.take(response) {
                        return Ok(seen);
                    }
                }
                Ok(None) => self.stream = None,
                Err(status) if status.code() == Code::OutOfRange => {
                    self.gathered = Gathered::default();
                    self.stream = None;
                }
                Err(status) if is_passing(status.code()) => self.stream = None,
                Err(status) => return Err(self.client.stream_failure(&status)),
            }
        }
    }

    /// Opens the stream again, after the last revision that came whole.
    async fn resume(&mut self) -> Result<(), Failure> {
        self.gathered.drop_partial();
        let mut pause = Duration::from_millis(200);
        let mut said = false;
        loop {
            tokio::time::sleep(pause).await;
            match self.client.open_watch(self.request()).await {
                Ok(stream) => {
                    self.stream = Some(stream);
                    return Ok(());
                }
                Err(failure) if failure.is(Code::OutOfRange) => self.gathered = Gathered::default(),
                Err(failure) if failure.status.as_ref().is_none_or(|status| is_passing(status.code())) => {
                    if !std::mem::replace(&mut said, true) {
                        out::note(&format!("{} does not answer; trying again", self.client.address()));
                    }
                    // Another of the servers may be up.
                    let _ = self.client.reconnect().await;
                }
                Err(failure) => return Err(failure),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Whether trying again may help.
fn is_passing(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled | Code::DeadlineExceeded | Code::Aborted
    )
}

/// What has come of a snapshot or of a revision so far.
#[derive(Debug, Default)]
struct Gathered {
    /// Everything up to it was handed on. 0: no snapshot yet.
    revision: i64,
    /// Who told it.
    server: i64,
    snapshot: Vec<Object>,
    changes: Vec<WatchEvent>,
}

impl Gathered {
    fn take(&mut self, response: WatchResponse) -> Option<Seen> {
        let phase = response.phase();
        self.server = response.server;
        match phase {
            Phase::Init | Phase::InitDone => {
                self.snapshot.extend(response.events.into_iter().filter_map(|event| event.object));
                if phase == Phase::Init || response.more {
                    return None;
                }
                let objects = std::mem::take(&mut self.snapshot);
                let resumed = self.revision != 0;
                self.revision = response.revision;
                // A resumed watch may be answered with an empty beginning: that is no snapshot.
                (!resumed || !objects.is_empty()).then_some(Seen::Snapshot(objects))
            }
            Phase::Changes | Phase::Bookmark | Phase::Unspecified => {
                self.changes.extend(response.events);
                if response.more {
                    return None;
                }
                self.revision = self.revision.max(response.revision);
                let changes = std::mem::take(&mut self.changes);
                (!changes.is_empty()).then_some(Seen::Changes(changes))
            }
        }
    }

    fn drop_partial(&mut self) {
        if self.revision == 0 {
            self.server = 0;
        }
        self.snapshot.clear();
        self.changes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_proto::v1::Cluster;

    fn response(phase: Phase, revision: i64, names: &[&str], more: bool) -> WatchResponse {
        let events = names
            .iter()
            .map(|name| WatchEvent { object: Some(Object::new("", name, Cluster::default())), deleted: false });
        let events = events.collect();
        WatchResponse { phase: phase.into(), revision, events, more, ..WatchResponse::default() }
    }

    fn names(seen: Option<Seen>) -> Vec<String> {
        match seen {
            Some(Seen::Snapshot(objects)) => objects.iter().map(|o| o.name().to_owned()).collect(),
            Some(Seen::Changes(events)) => {
                events.iter().filter_map(|e| Some(e.object.as_ref()?.name().to_owned())).collect()
            }
            None => vec![],
        }
    }

    #[test]
    fn a_snapshot_is_handed_on_when_it_is_whole() {
        let mut gathered = Gathered::default();
        assert!(gathered.take(response(Phase::Init, 0, &["a", "b"], false)).is_none());
        assert_eq!(names(gathered.take(response(Phase::InitDone, 7, &[], false))), ["a", "b"]);
        assert_eq!(gathered.revision, 7);
    }

    #[test]
    fn a_revision_that_came_in_parts_is_seen_once_though_the_stream_broke() {
        let mut gathered = Gathered::default();
        gathered.take(response(Phase::InitDone, 7, &[], false));
        assert!(gathered.take(response(Phase::Changes, 9, &["a"], true)).is_none());
        gathered.drop_partial();
        assert_eq!(gathered.revision, 7);
        assert!(gathered.take(response(Phase::Changes, 9, &["a"], true)).is_none());
        assert_eq!(names(gathered.take(response(Phase::Changes, 9, &["b"], false))), ["a", "b"]);
        assert_eq!(gathered.revision, 9);
    }

    #[test]
    fn bookmarks_move_the_revision_and_an_empty_world_is_a_snapshot_too() {
        let mut gathered = Gathered::default();
        assert!(matches!(gathered.take(response(Phase::InitDone, 3, &[], false)), Some(Seen::Snapshot(_))));
        assert!(gathered.take(response(Phase::Bookmark, 12, &[], false)).is_none());
        assert_eq!(gathered.revision, 12);
        assert!(gathered.take(response(Phase::InitDone, 13, &[], false)).is_none());
    }
}
