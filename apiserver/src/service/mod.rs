//! The gRPC services: decode, ask the registry, encode. No rule of Steady's is here.

mod admin;
mod agent;
mod dispatch;
mod exec;
mod leases;
mod metrics;
mod objects;
mod relay;
mod services;
mod status;
mod tasks;
mod traffic;
mod watch;

pub(crate) use admin::AdminService;
pub(crate) use agent::AgentService;
pub(crate) use leases::LeasesService;
pub(crate) use metrics::MetricsService;
pub(crate) use objects::ObjectsService;
pub(crate) use relay::Relay;
pub(crate) use services::ServicesService;
pub(crate) use tasks::TasksService;
pub(crate) use traffic::TrafficService;
pub(crate) use watch::Watches;

use steady_core::v1::{Object, Selector};

/// Whether an object is among those that a selector names.
fn selects(selector: &Selector, object: &Object) -> bool {
    let meta = object.meta();
    (selector.cluster.is_empty() || meta.cluster.is_empty() || selector.cluster == meta.cluster)
        && (selector.name.is_empty() || selector.name == meta.name)
        && selector.labels.iter().all(|(key, value)| meta.labels.get(key) == Some(value))
        && (selector.container_instance.is_empty()
            || object
                .as_task()
                .and_then(|t| t.spec.as_ref())
                .is_some_and(|s| s.container_instance == selector.container_instance))
}
