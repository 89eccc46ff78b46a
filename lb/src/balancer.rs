//! Follows the control plane: every change becomes a table, which the data plane obeys.

use std::collections::BTreeSet;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use steady_core::{Kind, View, traffic};
use steady_runtime::{Client, News, Reflector};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::certificates::Keys;
use crate::handover;
use crate::health::Health;
use crate::plane::Plane;
use crate::table::Table;

/// How long the control plane may take before the table of the last time is obeyed.
const FIRST: Duration = Duration::from_millis(500);
/// Between attempts at what did not work: ports that are somebody else's, certificates that are not there.
const AGAIN: Duration = Duration::from_secs(3);
/// Between writes of the last good table.
const KEEP: Duration = Duration::from_secs(1);
/// A table that takes longer is not made for every change.
const GATHER: Duration = Duration::from_micros(500);

/// What all of a load balancer knows together.
pub(crate) struct Balancer {
    /// What it is known by.
    pub(crate) own: String,
    pub(crate) cluster: String,
    /// Listeners of this `loadBalancer` are its own.
    pub(crate) group: String,
    pub(crate) client: Client,
    pub(crate) keys: Keys,
    pub(crate) tables: watch::Sender<Arc<Table>>,
    pub(crate) health: Health,
    pub(crate) plane: Box<dyn Plane>,
    /// Its sockets are here, and it does not know yet that they are served.
    pub(crate) process_before: Option<UnixStream>,
    /// Tells that another process has the sockets; taken when this one serves.
    pub(crate) hand_over: Option<watch::Sender<bool>>,
}

impl Balancer {
    /// Obeys what the control plane says, for ever.
    pub(crate) async fn follow(&mut self) {
        loop {
            let kinds = [Kind::Listener, Kind::TargetGroup, Kind::Task, Kind::Deployment, Kind::Secret];
            let reflector = Reflector::start(self.client.clone(), &BTreeSet::from(kinds));
            if self.tables.borrow().number == 0 {
                let there = tokio::time::timeout(FIRST, reflector.until(|_| true)).await;
                if let (Err(_), Some(view)) = (there, self.keys.kept.load()) {
                    tracing::warn!("the control plane is away; obeying the last table that is known");
                    self.keys.load();
                    self.obey(&view);
                }
            }
            reflector.until(|_| true).await;
            tokio::select! {
                () = self.track(&reflector) => {}
                () = reflector.replaced() => tracing::warn!("the store is another one; looking at everything anew"),
            }
        }
    }

    async fn track(&mut self, reflector: &Reflector) {
        let mut news = reflector.news();
        let mut view = reflector.view();
        let (mut dirty, mut kept_at) = (false, Instant::now());
        // Those of the last time will do until others are told.
        self.keys.load();
        self.keys.learn(&self.named_certificates(&view)).await;
        self.obey(&view);
        self.keep(&view);
        loop {
            let pending = self.plane.is_pending() || self.keys.lacks(&self.named_certificates(&view));
            tokio::select! {
                told = news.recv() => {
                    let mut told = Some(told);
                    let (mut relevant, mut secrets) = (false, false);
                    while let Some(one) = told {
                        match one {
                            Ok(News::Changed(objects)) => {
                                for object in objects.iter().filter(|object| object.cluster() == self.cluster) {
                                    secrets |= matches!(object.kind(), Kind::Secret | Kind::Listener);
                                    relevant |= steady_core::task::of(object).is_none_or(|task| traffic::is_behind(task.spec));
                                }
                            }
                            // Whatever was missed is in the view.
                            Ok(News::Relisted) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => (relevant, secrets) = (true, true),
                            Err(_) => return,
                        }
                        told = match news.try_recv() {
                            Err(tokio::sync::broadcast::error::TryRecvError::Empty) => None,
                            Ok(more) => Some(Ok(more)),
                            Err(_) => Some(Err(tokio::sync::broadcast::error::RecvError::Lagged(0))),
                        };
                    }
                    if !relevant {
                        continue;
                    }
                    view = reflector.view();
                    if secrets {
                        self.keys.learn(&self.named_certificates(&view)).await;
                    }
                    let began = Instant::now();
                    self.obey(&view);
                    dirty = true;
                    // What comes one after the other is gathered for as long as a table takes, when that is long.
                    if began.elapsed() > GATHER {
                        tokio::time::sleep(began.elapsed()).await;
                    }
                }
                () = tokio::time::sleep(AGAIN), if pending => {
                    self.keys.learn(&self.named_certificates(&view)).await;
                    self.obey(&view);
                }
                () = tokio::time::sleep_until(kept_at + KEEP), if dirty => {
                    self.keep(&view);
                    (dirty, kept_at) = (false, Instant::now());
                }
            }
        }
    }

    fn keep(&self, view: &View) {
        if let Err(error) = self.keys.kept.keep(view, &self.cluster) {
            tracing::warn!(%error, "the table could not be kept for a restart");
        }
    }

    /// Has everybody obey what a view says.
    fn obey(&mut self, view: &View) {
        let (began, before) = (Instant::now(), Arc::clone(&self.tables.borrow()));
        let table = Arc::new(Table::of(view, &self.cluster, &self.group, &self.own, &before));
        tracing::debug!(
            table = table.number,
            revision = table.revision.0,
            targets = table.endpoints.len(),
            micros = began.elapsed().as_micros(),
            "a table"
        );
        self.plane.obey(&table);
        self.health.obey(&table);
        self.tables.send_replace(table);
        self.settle();
    }

    /// From the first table on the process before is not needed, and the next one may come.
    fn settle(&mut self) {
        let Some(hand_over) = self.hand_over.take() else { return };
        if let Some(before) = self.process_before.take() {
            handover::confirm(&before);
        }
        let path = self.keys.kept.handover();
        let _ = std::fs::remove_file(&path);
        let door = match UnixListener::bind(&path) {
            Ok(door) => door,
            Err(error) => {
                return tracing::error!(path = %path.display(), %error, "no next process can take the sockets over");
            }
        };
        let sockets = self.plane.sockets();
        std::thread::spawn(move || {
            handover::give(&door, sockets);
            hand_over.send_replace(true);
        });
    }

    fn named_certificates(&self, view: &View) -> BTreeSet<String> {
        let listeners = view.in_cluster(Kind::Listener, &self.cluster);
        let specs = listeners.filter_map(|listener| listener.as_listener()?.spec.as_ref());
        let own = specs.filter(|spec| spec.load_balancer == self.group);
        own.flat_map(|spec| &spec.certificates).map(|certificate| certificate.certificate_arn.clone()).collect()
    }
}
