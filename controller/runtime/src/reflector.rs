//! The reflector: keeps a view of the watched kinds as the API server has them.
//!
//! Invariants: a view is published only when it is whole (a snapshot is complete, a revision is complete); its
//! revision never goes back, across reconnections and API servers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use steady_core::guard::{self, Guard};
use steady_core::v1::watch_response::Phase;
use steady_core::v1::{Object, WatchRequest, WatchResponse};
use steady_core::{Key, Kind, Revision, View};
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::Client;
use crate::client::within;

/// Batches of news that a slow controller may be behind; beyond that it plans for everything.
const PENDING: usize = 4096;

/// A watch that says nothing for so long is dead: an API server says something every 10 s.
const SILENCE: Duration = Duration::from_secs(25);

/// Snapshots are read from the store as it is. When they are older than what is known for so long, whoever answers, then
/// the store was put back without anybody saying so.
const BEHIND: Duration = Duration::from_secs(30);

/// What changed in a view.
#[derive(Debug, Clone)]
pub enum News {
    /// These objects; of deleted ones, their last value.
    Changed(Arc<Vec<Object>>),
    /// Everything may have: the view was listed anew.
    Relisted,
}

/// A view that keeps itself up to date. Clones share it.
#[derive(Clone)]
pub struct Reflector {
    view: watch::Receiver<View>,
    news: broadcast::Sender<News>,
    replaced: watch::Receiver<bool>,
    /// Ends the following when the last clone is gone.
    _following: Arc<Following>,
}

struct Following(tokio::task::JoinHandle<()>);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Reflector {
    /// Follows these kinds, in every cluster.
    pub fn start(client: Client, kinds: &BTreeSet<Kind>) -> Self {
        let (publish, view) = watch::channel(View::default());
        let news = broadcast::Sender::new(PENDING);
        let (replace, replaced) = watch::channel(false);
        let mirror = Mirror {
            client,
            kinds: kinds.iter().map(|kind| i32::from(*kind)).collect(),
            view: View::default(),
            server: 0,
            epoch: None,
            behind_since: None,
            replace,
            part: None,
            changed: Vec::new(),
            publish,
            news: news.clone(),
        };
        let following = Arc::new(Following(tokio::spawn(mirror.follow())));
        Reflector { view, news, replaced, _following: following }
    }

    /// The newest view.
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Waits for a whole view that is at least this new.
    pub async fn reach(&self, revision: Revision) -> View {
        let mut view = self.view.clone();
        let newer = view.wait_for(|view| view.revision() >= revision && view.revision() > Revision(0)).await;
        let newer = newer.ok().map(|view| view.clone());
        match newer {
            Some(view) => view,
            // The following only ends with the last clone.
            None => std::future::pending().await,
        }
    }

    /// Returns when the store is another one, or was restored from a backup. What is known of the one before is wrong, its
    /// revisions too: start anew.
    pub async fn replaced(&self) {
        let mut replaced = self.replaced.clone();
        if replaced.wait_for(|replaced| *replaced).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// News from now on.
    pub fn news(&self) -> broadcast::Receiver<News> {
        self.news.subscribe()
    }

    /// Waits until the view satisfies a condition.
    pub async fn until(&self, condition: impl Fn(&View) -> bool) {
        let mut view = self.view.clone();
        if view.wait_for(|view| view.revision() > Revision(0) && condition(view)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

struct Mirror {
    client: Client,
    kinds: Vec<i32>,
    view: View,
    /// Who told it.
    server: i64,
    /// The store's epoch: greater with each restoration.
    epoch: Option<i64>,
    /// Since when API servers have been behind what is known.
    behind_since: Option<Instant>,
    replace: watch::Sender<bool>,
    /// A snapshot that is not whole yet.
    part: Option<View>,
    /// Objects changed since the last view was published.
    changed: Vec<Object>,
    publish: watch::Sender<View>,
    news: broadcast::Sender<News>,
}

impl Mirror {
    async fn follow(mut self) {
        let retries = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_secs(2))
            .with_jitter()
            .without_max_times();
        let mut delays = retries.build();
        loop {
            let (before, place) = (self.view.revision(), self.client.place());
            let ended = self.watch().await;
            if self.view.revision() > before {
                delays = retries.build();
            }
            // What is half told is forgotten.
            self.view = self.publish.borrow().clone();
            match ended.code() {
                Code::OutOfRange if !guard::stands(Guard::TooOld) => {}
                // What was missed is not to be had any more, or not from this API server: list again.
                Code::OutOfRange => self.view.set_revision(Revision(0)),
                Code::DataLoss => tracing::warn!(%ended, "watching again"),
                _ => {
                    tracing::debug!(%ended, "the watch ended; watching again, from the next API server");
                    self.client.rotate(place);
                }
            }
            tokio::time::sleep(delays.next().unwrap_or_default()).await;
        }
    }

    async fn watch(&mut self) -> Status {
        self.part = None;
        self.changed.clear();
        let after_revision = self.view.revision().0;
        let server = if after_revision == 0 || !guard::stands(Guard::OneSource) { 0 } else { self.server };
        let request = WatchRequest { kinds: self.kinds.clone(), selector: None, after_revision, server };
        let mut objects = self.client.objects();
        let mut stream = match within(SILENCE, objects.watch(request)).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return status,
        };
        let mut seen = 0;
        loop {
            match within(SILENCE, stream.message()).await {
                // Told twice. (An API server of before there were numbers sends 0.)
                Ok(Some(response)) if response.sequence != 0 && response.sequence <= seen => {}
                Ok(Some(response)) if response.sequence > seen + 1 && guard::stands(Guard::Gap) => {
                    return Status::data_loss("a message of the watch was lost on the way");
                }
                Ok(Some(response)) => {
                    seen = response.sequence;
                    if let Err(status) = self.take(response) {
                        return status;
                    }
                }
                Ok(None) => return Status::unavailable("the API server ended the watch"),
                Err(status) => return status,
            }
        }
    }

    fn take(&mut self, response: WatchResponse) -> Result<(), Status> {
        let revision = Revision(response.revision);
        match response.phase() {
            Phase::Init => {
                let part = self.part.get_or_insert_with(View::default);
                response.events.into_iter().filter_map(|e| e.object).for_each(|object| part.put(Arc::new(object)));
            }
            Phase::InitDone => {
                let mut whole = self.part.take().unwrap_or_default();
                whole.set_revision(revision);
                if *self.epoch.get_or_insert(response.epoch) != response.epoch {
                    tracing::warn!(
                        epoch = response.epoch,
                        "the store was restored from a backup; forgetting what was known"
                    );
                    self.replace.send_replace(true);
                    return Err(Status::unavailable("the store was restored"));
                }
                let known = self.publish.borrow().revision();
                if revision < known {
                    // An API server that is behind the one before: what is known is newer.
                    let since = *self.behind_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > BEHIND {
                        tracing::error!(%revision, %known, "the store lost what was known of it; forgetting that too");
                        self.replace.send_replace(true);
                    }
                    return Err(Status::unavailable(format!("an API server is behind what is known, at {revision}")));
                }
                self.behind_since = None;
                tracing::debug!(%revision, objects = whole.len(), "listed");
                self.view = whole;
                self.server = response.server;
                self.publish.send_replace(self.view.clone());
                let _ = self.news.send(News::Relisted);
            }
            Phase::Changes => {
                for event in response.events {
                    let Some(object) = event.object else { continue };
                    if event.deleted {
                        self.view.remove(&Key::of(&object));
                    } else {
                        self.view.put(Arc::new(object.clone()));
                    }
                    self.changed.push(object);
                }
                if !response.more {
                    self.view.set_revision(revision);
                    self.publish.send_replace(self.view.clone());
                    let _ = self.news.send(News::Changed(Arc::new(std::mem::take(&mut self.changed))));
                }
            }
            Phase::Bookmark => {
                self.view.set_revision(revision.max(self.view.revision()));
                self.publish.send_replace(self.view.clone());
            }
            Phase::Unspecified => {}
        }
        Ok(())
    }
}
