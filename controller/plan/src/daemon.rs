//! Services with one task on each instance (ECS DAEMON scheduling strategy).

use steady_core::v1::{Demand, Object, ServiceSpec};
use steady_core::{Kind, View, resources, service};

use crate::site::{self, Needs, Site};

/// The instances that a DAEMON service has a task on, by name: those that take tasks, satisfy its placement constraints, and
/// were not given up as lost.
pub(crate) fn instances<'a>(view: &'a View, cluster: &str, spec: &ServiceSpec) -> impl Iterator<Item = &'a str> {
    let needs = Needs::of(view, spec);
    view.in_cluster(Kind::ContainerInstance, cluster).filter_map(move |object| {
        let instance = object.as_container_instance()?;
        let is_lost = instance.status.as_ref().is_some_and(|status| status.lost);
        (site::is_active(object) && !is_lost && Site::new(view, object).satisfies(&needs)).then(|| object.name())
    })
}

/// How many tasks a service is to have.
pub(crate) fn desired(view: &View, object: &Object, spec: &ServiceSpec) -> i32 {
    if service::is_daemon(spec) {
        instances(view, object.cluster(), spec).count() as i32
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
        let demand = resources::demand(site::definition(view, &spec.task_definition)?);
        Some((format!("service:{}", service.name()), demand))
    });
    daemons.collect()
}
