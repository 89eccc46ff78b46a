//! Tells the control plane how targets are, and when they have no request left.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use steady_core::v1::target_state::Value as State;
use steady_core::v1::{ReportTargetHealthRequest, TargetHealth, TargetReport};
use steady_runtime::Client;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

use crate::endpoint::{Endpoint, Identity};
use crate::table::Table;

/// Most targets of one report.
const MOST: usize = 200;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between attempts.
const AGAIN: Duration = Duration::from_millis(500);
/// Between looks at what drains.
const LOOK: Duration = Duration::from_millis(2);

/// Tells of targets.
pub(crate) struct Reporter {
    pub(crate) client: Client,
    pub(crate) cluster: String,
    /// `GROUP.NAME` of this load balancer.
    pub(crate) name: String,
    /// The tables that workers know.
    pub(crate) workers: Vec<Arc<AtomicU64>>,
    /// Its data plane sends requests without it, too.
    pub(crate) goes_on: bool,
}

impl Reporter {
    /// Runs for as long as the load balancer does.
    pub(crate) async fn run(
        self,
        mut changed: UnboundedReceiver<Arc<Endpoint>>,
        mut tables: watch::Receiver<Arc<Table>>,
    ) {
        let mut pending: BTreeMap<Identity, TargetReport> = BTreeMap::new();
        let mut draining: Vec<Arc<Endpoint>> = Vec::new();
        let mut told: BTreeMap<Identity, u64> = BTreeMap::new();
        let mut begins = true;
        loop {
            tokio::select! {
                endpoint = changed.recv() => {
                    let Some(endpoint) = endpoint else { return };
                    let mut next = Some(endpoint);
                    while let Some(endpoint) = next {
                        if endpoint.is_draining() {
                            next = changed.try_recv().ok();
                            continue;
                        }
                        pending.insert(endpoint.identity.clone(), self.report(&endpoint));
                        next = changed.try_recv().ok();
                    }
                }
                Ok(()) = tables.changed() => {
                    let table = Arc::clone(&tables.borrow_and_update());
                    told.retain(|identity, _| table.endpoints.contains_key(identity));
                    pending.retain(|identity, _| table.endpoints.contains_key(identity));
                    let drains = |e: &&Arc<Endpoint>| e.is_draining() && !told.contains_key(&e.identity);
                    draining = table.endpoints.values().filter(drains).cloned().collect();
                    // What was told and is not there was forgotten, or never came.
                    for endpoint in table.endpoints.values() {
                        let drained = told.contains_key(&endpoint.identity);
                        let report = if drained { self.drained() } else { self.report(endpoint) };
                        let is_due = drained || (!endpoint.is_draining() && endpoint.state() != State::Initial);
                        if is_due && endpoint.looked_at() && endpoint.told() != report.state() {
                            pending.insert(endpoint.identity.clone(), report);
                        }
                    }
                }
                () = tokio::time::sleep(LOOK), if !draining.is_empty() || begins => {}
            }
            let oldest = self.workers.iter().map(|at| at.load(Ordering::Acquire)).min().unwrap_or(0);
            // Nobody is told that targets are healthy before they can be reached.
            begins = oldest == 0;
            if begins {
                continue;
            }
            draining.retain(|endpoint| {
                let drained = endpoint.has_drained(oldest);
                if drained {
                    pending.insert(endpoint.identity.clone(), self.drained());
                    told.insert(endpoint.identity.clone(), oldest);
                }
                !drained
            });
            self.tell(&mut pending).await;
        }
    }

    fn drained(&self) -> TargetReport {
        TargetReport { load_balancer: self.name.clone(), state: State::Draining.into(), ..TargetReport::default() }
    }

    fn report(&self, endpoint: &Endpoint) -> TargetReport {
        let (reason, description) = endpoint.why();
        TargetReport {
            load_balancer: self.name.clone(),
            state: endpoint.state().into(),
            reason: reason.to_owned(),
            description,
            goes_on: self.goes_on,
        }
    }

    /// Tells all of it, or leaves the rest for later.
    async fn tell(&self, pending: &mut BTreeMap<Identity, TargetReport>) {
        while !pending.is_empty() {
            let part: Vec<(Identity, TargetReport)> =
                pending.iter().take(MOST).map(|(identity, report)| (identity.clone(), report.clone())).collect();
            let targets = part.iter().map(|(identity, report)| TargetHealth {
                task: identity.task.clone(),
                target_group: identity.group.clone(),
                container_port: identity.container_port,
                report: Some(report.clone()),
            });
            let request = ReportTargetHealthRequest { cluster: self.cluster.clone(), targets: targets.collect() };
            let (mut traffic, place) = (self.client.traffic(), self.client.place());
            let failed = match tokio::time::timeout(PATIENCE, traffic.report_target_health(request)).await {
                Ok(Ok(_)) => {
                    for (identity, _) in &part {
                        pending.remove(identity);
                    }
                    continue;
                }
                Ok(Err(status)) => status.to_string(),
                Err(_) => format!("no answer within {PATIENCE:?}"),
            };
            tracing::debug!(failed, "targets could not be told; trying again");
            self.client.rotate(place);
            tokio::time::sleep(AGAIN).await;
            return;
        }
    }
}
