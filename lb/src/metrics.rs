//! Figures of a load balancer, as `OpenMetrics` over HTTP.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use steady_core::v1::target_state::Value as State;
use steady_runtime::metrics;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::group::BUCKETS;
use crate::plane::Open;
use crate::proxy::AccessLog;
use crate::table::Table;

/// What figures are of.
pub(crate) struct Figures {
    pub(crate) tables: watch::Receiver<Arc<Table>>,
    pub(crate) open: Open,
    pub(crate) log: Option<AccessLog>,
}

impl Figures {
    /// Answers whoever asks, for as long as the load balancer runs.
    pub(crate) async fn serve(self, address: String) {
        // The process before may still have the port.
        let listener = loop {
            match TcpListener::bind(&address).await {
                Ok(listener) => break listener,
                Err(error) => {
                    tracing::warn!(address, %error, "cannot listen for those who ask for metrics; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        };
        let figures = Arc::new(self);
        metrics::serve(Some(&listener), move || std::future::ready(figures.text())).await;
    }

    fn text(&self) -> String {
        let table = Arc::clone(&self.tables.borrow());
        let mut text = String::new();
        let count = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let mut family = |name: &str, kind: &str, help: &str, samples: Vec<(String, String)>| {
            let _ = write!(text, "# TYPE {name} {kind}\n# HELP {name} {help}\n");
            for (labels, value) in samples {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        };
        let single = |value: String| vec![(String::new(), value)];
        family("steady_lb_table", "gauge", "Number of the table that is obeyed.", single(table.number.to_string()));
        family(
            "steady_lb_connections",
            "gauge",
            "Connections of clients.",
            single(self.open.load(Ordering::Relaxed).to_string()),
        );
        if let Some(log) = &self.log {
            family(
                "steady_lb_access_log_lost",
                "counter",
                "Lines that could not be written in time.",
                vec![("_total".into(), log.lost().to_string())],
            );
        }
        let mut answers = Vec::new();
        let (mut retries, mut rejected, mut latency) = (Vec::new(), Vec::new(), Vec::new());
        for group in table.groups.values() {
            let label = format!("target_group=\"{}\"", group.name);
            for (digit, answered) in group.counters.answers.iter().enumerate().skip(1) {
                answers.push((format!("_total{{{label},code=\"{digit}xx\"}}"), count(answered).to_string()));
            }
            retries.push((format!("_total{{{label}}}"), count(&group.counters.retries).to_string()));
            rejected.push((format!("_total{{{label}}}"), count(&group.counters.rejected).to_string()));
            let mut sum = 0;
            for (place, bucket) in group.counters.latency.iter().enumerate() {
                sum += count(bucket);
                let bound = BUCKETS.get(place).map_or("+Inf".to_owned(), |bound| format!("{bound:?}"));
                latency.push((format!("_bucket{{{label},le=\"{bound}\"}}"), sum.to_string()));
            }
            latency.push((format!("_count{{{label}}}"), sum.to_string()));
            let seconds = count(&group.counters.microseconds) as f64 / 1e6;
            latency.push((format!("_sum{{{label}}}"), seconds.to_string()));
        }
        family("steady_lb_requests", "counter", "Requests by status.", answers);
        family("steady_lb_retries", "counter", "Requests that were sent to another target once more.", retries);
        family("steady_lb_rejected", "counter", "Requests that no target was there for.", rejected);
        family("steady_lb_latency_seconds", "histogram", "Seconds until a target's answer began.", latency);
        let mut targets: Vec<_> = table.endpoints.values().collect();
        targets.sort_by(|a, b| a.identity.cmp(&b.identity));
        let (mut healthy, mut busy) = (Vec::new(), Vec::new());
        let (mut requests, mut errors, mut failures) = (Vec::new(), Vec::new(), Vec::new());
        for target in targets {
            let identity = &target.identity;
            let (group, task, at) = (&identity.group, &identity.task, identity.address);
            let label = format!("{{target_group=\"{group}\",task=\"{task}\",target=\"{at}\"}}");
            let is_healthy = target.state() == State::Healthy && !target.is_draining();
            healthy.push((label.clone(), u8::from(is_healthy).to_string()));
            busy.push((label.clone(), target.outstanding().to_string()));
            requests.push((format!("_total{label}"), count(&target.figures.requests).to_string()));
            errors.push((format!("_total{label}"), count(&target.figures.errors).to_string()));
            failures.push((format!("_total{label}"), count(&target.figures.failures).to_string()));
        }
        family("steady_lb_target_healthy", "gauge", "1: healthy, and gets requests.", healthy);
        family("steady_lb_target_outstanding", "gauge", "Requests, or connections, that go on.", busy);
        family("steady_lb_target_requests", "counter", "Requests that a target was sent.", requests);
        family("steady_lb_target_errors", "counter", "Answers of 5xx.", errors);
        family(
            "steady_lb_target_failures",
            "counter",
            "Times that a target could not be reached, or broke off.",
            failures,
        );
        text.push_str("# EOF\n");
        text
    }
}
