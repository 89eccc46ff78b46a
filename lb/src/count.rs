//! Tells the control plane how many requests target groups have: services scale by that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use steady_core::v1::ReportRequestCountRequest;
use steady_runtime::Client;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Code;

use crate::endpoint::Identity;
use crate::table::Table;

/// Between reports.
const EVERY: Duration = Duration::from_secs(5);
/// What was not heard for so long is not told any more.
const LONGEST: Duration = Duration::from_secs(60);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(4);

/// Counts requests.
pub(crate) struct Counter {
    pub(crate) client: Client,
    pub(crate) cluster: String,
    /// `GROUP.NAME` of this load balancer.
    pub(crate) name: String,
    pub(crate) tables: watch::Receiver<Arc<Table>>,
}

impl Counter {
    /// Runs for as long as the load balancer does.
    pub(crate) async fn run(self) {
        let mut before: BTreeMap<Identity, u64> = BTreeMap::new();
        let mut refused: BTreeMap<String, u64> = BTreeMap::new();
        let (mut pending, mut since) = (BTreeMap::new(), Instant::now());
        loop {
            tokio::time::sleep(EVERY).await;
            let table = Arc::clone(&self.tables.borrow());
            let now: BTreeMap<Identity, u64> = table
                .endpoints
                .iter()
                .map(|(identity, endpoint)| (identity.clone(), endpoint.figures.requests.load(Ordering::Relaxed)))
                .collect();
            add(&mut pending, &before, &now);
            before = now;
            // Who has no target asks, too: a service without tasks comes back by that.
            for group in table.groups.values() {
                let rejected = group.counters.rejected.load(Ordering::Relaxed);
                let known = refused.insert(group.name.clone(), rejected).unwrap_or(0);
                *pending.entry(group.name.clone()).or_default() += rejected.saturating_sub(known);
            }
            if since.elapsed() > LONGEST {
                // Too long ago to say anything of now.
                (pending, since) = (BTreeMap::new(), Instant::now());
                continue;
            }
            let request = ReportRequestCountRequest {
                cluster: self.cluster.clone(),
                load_balancer: self.name.clone(),
                requests: pending.clone(),
                seconds: since.elapsed().as_secs_f64(),
            };
            let (mut metrics, place) = (self.client.metrics(), self.client.place());
            // What was not heard is told with what comes next.
            match tokio::time::timeout(PATIENCE, metrics.report_request_count(request)).await {
                Ok(Ok(_)) => (pending, since) = (BTreeMap::new(), Instant::now()),
                Ok(Err(status)) => {
                    tracing::debug!(%status, "requests could not be told; trying again");
                    if matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) {
                        self.client.rotate(place);
                    }
                }
                Err(_) => self.client.rotate(place),
            }
        }
    }
}

/// Requests since the look before, by target group.
fn add(pending: &mut BTreeMap<String, u64>, before: &BTreeMap<Identity, u64>, now: &BTreeMap<Identity, u64>) {
    for (identity, count) in now {
        let known = before.get(identity).copied().unwrap_or(0);
        *pending.entry(identity.group.clone()).or_default() += count.saturating_sub(known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_those_since_the_look_before() {
        let of = |group: &str, task: &str| Identity {
            group: group.into(),
            task: task.into(),
            container_port: 80,
            address: "127.0.0.1:80".parse().expect("an address"),
        };
        let mut pending = BTreeMap::new();
        let first = BTreeMap::from([(of("web", "a"), 5), (of("web", "b"), 7)]);
        add(&mut pending, &BTreeMap::new(), &first);
        let second = BTreeMap::from([(of("web", "b"), 10), (of("web", "c"), 1), (of("api", "d"), 2)]);
        add(&mut pending, &first, &second);
        assert_eq!(pending, BTreeMap::from([("web".to_owned(), 16), ("api".to_owned(), 2)]));
    }
}
