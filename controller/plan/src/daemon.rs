//! Services with one task on each instance (ECS DAEMON scheduling strategy).

use steady_core::v1::instance_state::Value as State;
use steady_core::v1::{ContainerInstanceSpec, Demand, Object, ServiceSpec};
use steady_core::{Key, Kind, View, resources, service};

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
pub(crate) fn desired(view: &View, object: &Object, spec: &ServiceSpec) -> i32 {
    if service::is_daemon(spec) {
        instances(view, object.cluster()).count() as i32
    } else if service::is_external(spec) {
        service::task_sets(view, object).map(|(_, set)| service::computed_count(spec, set)).sum()
    } else {
        spec.desired_count()
    }
}

/// DAEMON services, and what a task of each takes: it comes before tasks that can be anywhere (ECS).
pub(crate) fn services(view: &View, cluster: &str) -> Vec<(String, Demand)> {
    let services = view.in_cluster(Kind::Service, cluster).filter(|service| !service.is_deleting());
    let daemons = services.filter_map(|service| {
        let spec = service.as_service()?.spec.as_ref().filter(|spec| service::is_daemon(spec))?;
        let definition = view.get(&Key::new(Kind::TaskDefinition, "", &spec.task_definition))?;
        let demand = resources::demand(definition.as_task_definition()?.spec.as_ref()?);
        Some((format!("service:{}", service.name()), demand))
    });
    daemons.collect()
}
