//! The deployment controller: keyed by service.

use steady_core::v1::Object;
use steady_core::{Key, Kind, Plan, Timestamp, View};
use steady_runtime::Controller;

/// Rollouts.
pub(crate) struct Deployments;

impl Controller for Deployments {
    const NAME: &'static str = "deployment";

    fn watches() -> &'static [Kind] {
        &[Kind::Service, Kind::Deployment, Kind::Task]
    }

    fn keys(&self, changed: &Object, _: &View) -> Vec<Key> {
        crate::service_of(changed).into_iter().collect()
    }

    fn plan(&self, view: &View, key: &Key, now: Timestamp) -> Plan {
        steady_plan::deployment::plan(view, key, now)
    }
}
