//! The service controller: keyed by service.

use std::collections::BTreeSet;

use steady_core::v1::Object;
use steady_core::{Key, Kind, Plan, Timestamp, View};
use steady_runtime::Controller;

/// Starting and stopping tasks of services.
pub(crate) struct Services;

impl Controller for Services {
    const NAME: &'static str = "service";

    fn watches() -> &'static [Kind] {
        &[Kind::Service, Kind::Deployment, Kind::Task, Kind::TaskDefinition, Kind::ContainerInstance]
    }

    fn keys(&self, changed: &Object, view: &View) -> Vec<Key> {
        if changed.kind() == Kind::ContainerInstance {
            let tasks = view.on_instance(changed.cluster(), changed.name());
            let services: BTreeSet<Key> = tasks.filter_map(|task| crate::service_of(task)).collect();
            return services.into_iter().collect();
        }
        crate::service_of(changed).into_iter().collect()
    }

    fn plan(&self, view: &View, key: &Key, now: Timestamp) -> Plan {
        steady_plan::service::plan(view, key, now)
    }
}
