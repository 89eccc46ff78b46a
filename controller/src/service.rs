//! The service controller: keyed by service.

use std::collections::BTreeSet;

use steady_core::v1::Object;
use steady_core::v1::instance_state::Value as State;
use steady_core::{Key, Kind, Plan, Timestamp, View, service, task};
use steady_runtime::Controller;

/// Starting and stopping tasks of services.
pub(crate) struct Services;

impl Controller for Services {
    const NAME: &'static str = "service";

    fn watches() -> &'static [Kind] {
        &[Kind::Service, Kind::Deployment, Kind::Task, Kind::TaskDefinition, Kind::ContainerInstance, Kind::TaskSet]
    }

    fn keys(&self, changed: &Object, view: &View) -> Vec<Key> {
        if changed.kind() == Kind::ContainerInstance {
            let tasks = view.on_instance(changed.cluster(), changed.name());
            let mut services: BTreeSet<Key> = tasks.filter_map(|task| crate::service_of(task)).collect();
            // Those that have a task on each, and those that may be more even with another one.
            services.extend(crate::services(view, changed.cluster(), |spec| {
                service::is_daemon(spec) || service::rebalances(spec)
            }));
            return services.into_iter().collect();
        }
        let mut keys: Vec<Key> = crate::service_of(changed).into_iter().collect();
        // Tasks of DAEMON services leave a DRAINING instance after the others.
        if let Some(ended) = task::of(changed).filter(|t| !t.is_live()) {
            let key = Key::new(Kind::ContainerInstance, changed.cluster(), &ended.spec.container_instance);
            let instance = view.get(&key).and_then(|i| i.as_container_instance()?.spec.as_ref());
            if instance.is_some_and(|spec| spec.status() == State::Draining) {
                keys.extend(crate::services(view, changed.cluster(), service::is_daemon));
            }
        }
        keys
    }

    fn plan(&self, view: &View, key: &Key, now: Timestamp) -> Plan {
        steady_plan::service::plan(view, key, now)
    }
}
