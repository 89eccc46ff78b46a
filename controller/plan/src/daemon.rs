//! Services with one task on each instance (ECS DAEMON scheduling strategy).

use steady_core::v1::instance_state::Value as State;
use steady_core::v1::{ContainerInstanceSpec, Object, ServiceSpec};
use steady_core::{Kind, View, service};

/// The instances that a DAEMON service has a task on, by name: those that take tasks, and were not given up as lost.
pub(crate) fn instances<'a>(view: &'a View, cluster: &str) -> impl Iterator<Item = &'a str> {
    view.in_cluster(Kind::ContainerInstance, cluster).filter_map(|object| {
        let instance = object.as_container_instance()?;
        let is_lost = instance.status.as_ref().is_some_and(|status| status.lost);
        (is_active(object) && !is_lost).then(|| object.name())
    })
}

/// Whether an instance is to take tasks at all.
pub(crate) fn is_active(object: &Object) -> bool {
    let spec = object.as_container_instance().and_then(|instance| instance.spec.as_ref());
    let state = spec.map_or(State::Inactive, ContainerInstanceSpec::status);
    !matches!(state, State::Draining | State::Inactive) && !object.is_deleting()
}

/// How many tasks a service is to have.
pub(crate) fn desired(view: &View, cluster: &str, spec: &ServiceSpec) -> i32 {
    if service::is_daemon(spec) { instances(view, cluster).count() as i32 } else { spec.desired_count() }
}
