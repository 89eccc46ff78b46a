//! The deployment controller: keyed by service.

use steady_core::v1::Object;
use steady_core::{Key, Kind, Plan, Timestamp, View, service};
use steady_runtime::Controller;

/// Rollouts.
pub(crate) struct Deployments;

impl Controller for Deployments {
    const NAME: &'static str = "deployment";

    fn watches() -> &'static [Kind] {
        &[Kind::Service, Kind::Deployment, Kind::Task, Kind::ContainerInstance]
    }

    fn keys(&self, changed: &Object, view: &View) -> Vec<Key> {
        if changed.kind() == Kind::ContainerInstance {
            // A DAEMON service has a task on each of them.
            return crate::services(view, changed.cluster(), service::is_daemon).collect();
        }
        crate::service_of(changed).into_iter().collect()
    }

    fn plan(&self, view: &View, key: &Key, now: Timestamp) -> Plan {
        steady_plan::deployment::plan(view, key, now)
    }
}
