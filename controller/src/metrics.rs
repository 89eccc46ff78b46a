//! What a controller process knows of the clusters and of the controllers, as `OpenMetrics` over HTTP.
//!
//! Everything is worked out from the view when it is asked for: nothing is counted twice, and every process that is asked
//! says the same.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use steady_core::{DEFAULT_CLUSTER, Kind, View};
use steady_plan::scheduler::schedulable;
use steady_runtime::{Reflector, metrics};
use tokio::net::TcpListener;

/// Kinds that the figures are of.
pub(crate) const KINDS: [Kind; 5] =
    [Kind::Cluster, Kind::Task, Kind::ContainerInstance, Kind::Service, Kind::TaskDefinition];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCluster {
    cluster: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDefinition {
    cluster: String,
    task_definition: String,
    /// Empty: all instances.
    capacity_provider: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfController {
    controller: String,
    holder: String,
}

/// The text that was worked out last, and when: whoever asks again at once gets the same.
#[derive(Debug, Default)]
struct Figures(Mutex<Option<(Instant, String)>>);

/// How long a text is good for.
const FRESH: Duration = Duration::from_secs(5);

impl Figures {
    /// Worked out by one at a time; the others wait for it.
    fn text(&self, view: &View) -> String {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, text)) = known.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return text.clone();
        }
        let text = text(view);
        *known = Some((Instant::now(), text.clone()));
        text
    }
}

/// Serves `/metrics` until the future is dropped.
pub(crate) async fn serve(listener: Option<&TcpListener>, reflector: Reflector) {
    let figures = Arc::new(Figures::default());
    let tell = move || {
        let (view, figures) = (reflector.view(), Arc::clone(&figures));
        async move { tokio::task::spawn_blocking(move || figures.text(&view)).await.unwrap_or_default() }
    };
    metrics::serve(listener, tell).await;
}

/// Everything there is to know of a view.
fn text(view: &View) -> String {
    let mut registry = Registry::with_prefix("steady");
    let (waiting, room) = (Family::<OfCluster, Gauge>::default(), Family::<OfDefinition, Gauge>::default());
    let depth = Family::<OfController, Gauge>::default();
    let (commits, conflicts) = <(Family<OfController, Counter>, Family<OfController, Counter>)>::default();
    registry.register("waiting_tasks", "Tasks that wait for an instance", waiting.clone());
    registry.register("schedulable_tasks", "How many more tasks of a definition fit, each alone", room.clone());
    registry.register("controller_queue_depth", "Keys that wait to be looked at", depth.clone());
    registry.register("controller_commits", "Commits since the controller leads", commits.clone());
    registry.register("controller_conflicts", "Commits that others' writes came before", conflicts.clone());
    let named = view.of_kind(Kind::Cluster).map(|cluster| cluster.name());
    let clusters = named.filter(|name| *name != DEFAULT_CLUSTER).chain([DEFAULT_CLUSTER]);
    for cluster in clusters {
        let of = OfCluster { cluster: cluster.to_owned() };
        waiting.get_or_create(&of).set(view.unplaced(cluster).count() as i64);
        for fits in schedulable(view, cluster) {
            let of = OfDefinition {
                cluster: cluster.to_owned(),
                task_definition: fits.task_definition,
                capacity_provider: fits.capacity_provider,
            };
            room.get_or_create(&of).set(i64::try_from(fits.count).unwrap_or(i64::MAX));
        }
    }
    for lease in view.of_kind(Kind::Lease) {
        let Some(controller) = lease.name().strip_prefix("controller.") else { continue };
        let Some((spec, status)) = lease.as_lease().and_then(|l| Some((l.spec.as_ref()?, l.status.as_ref()?))) else {
            continue;
        };
        let controller = controller.split('.').next().unwrap_or_default().to_owned();
        let of = OfController { controller, holder: spec.holder.clone() };
        depth.get_or_create(&of).set(status.queue_depth.into());
        let count = |family: &Family<OfController, Counter<u64, AtomicU64>>, count: i64| {
            family.get_or_create(&of).inc_by(count.unsigned_abs());
        };
        count(&commits, status.commits);
        count(&conflicts, status.conflicts);
    }
    metrics::written(&registry)
}
