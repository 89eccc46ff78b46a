//! The registrar: keyed by service.

use steady_core::v1::Object;
use steady_core::{Key, Kind, Plan, Timestamp, View, task, traffic};
use steady_runtime::Controller;

/// Targets that drain.
pub(crate) struct Registrar;

impl Controller for Registrar {
    const NAME: &'static str = "registrar";
    // Each change compares the task that it is about.
    const SEQUENCED: bool = false;

    fn watches() -> &'static [Kind] {
        &[Kind::Service, Kind::Task, Kind::Listener, Kind::Lease]
    }

    fn keys(&self, changed: &Object, view: &View) -> Vec<Key> {
        let is_behind =
            |cluster: &str| crate::services(view, cluster, |spec| !spec.load_balancers.is_empty()).collect();
        match changed.kind() {
            Kind::Task => {
                let task = task::of(changed).filter(|task| traffic::is_behind(task.spec));
                task.and_then(|_| crate::service_of(changed)).into_iter().collect()
            }
            Kind::Listener => is_behind(changed.cluster()),
            Kind::Lease => traffic::of_lease(changed.name()).map_or_else(Vec::new, |(cluster, ..)| is_behind(cluster)),
            _ => vec![],
        }
    }

    fn plan(&self, view: &View, key: &Key, now: Timestamp) -> Plan {
        steady_plan::registrar::plan(view, key, now)
    }
}
