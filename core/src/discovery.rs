//! Names of services, and the tasks that are found by them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use steady_proto::Kind;
use steady_proto::v1::{ServiceRegistry, TaskStatus};

use crate::{View, security, task, traffic};

/// Where a task is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The task.
    pub task: String,
    /// Its own address, or its instance's.
    pub address: IpAddr,
    /// Where it answers; `None`: nobody says.
    pub port: Option<u16>,
    /// Its health checks pass, those of its target groups too.
    pub is_healthy: bool,
}

/// The name in a registry's ARN, or the name itself; of a service that gives none, the service's.
pub fn name<'a>(registry: &'a ServiceRegistry, service: &'a str) -> &'a str {
    match registry.registry_arn.rsplit('/').next().unwrap_or_default() {
        "" => service,
        name => name,
    }
}

fn found(status: &TaskStatus, registry: &ServiceRegistry) -> Option<(IpAddr, Option<u16>)> {
    if registry.container_port == 0 {
        return Some((security::address(status)?.parse().ok()?, None));
    }
    let (address, port) = traffic::endpoint(status, &registry.container_name, registry.container_port)?;
    Some((address.parse().ok()?, Some(u16::try_from(port).ok()?)))
}

/// Running tasks by cluster and name, lower case. Names of services without such tasks are there, too.
pub fn instances(view: &View) -> BTreeMap<(String, String), Vec<Instance>> {
    let mut names: BTreeMap<(String, String), Vec<Instance>> = BTreeMap::new();
    for object in view.of_kind(Kind::Service) {
        let Some(spec) = object.as_service().and_then(|service| service.spec.as_ref()) else { continue };
        for registry in &spec.service_registries {
            let key = (object.cluster().to_lowercase(), name(registry, object.name()).to_lowercase());
            let its = names.entry(key).or_default();
            let tasks = view.of_service(Kind::Task, object.cluster(), object.name());
            let running = tasks.filter_map(|task| task::of(task)).filter(task::View::is_running);
            its.extend(running.filter_map(|task| {
                let (address, port) = found(task.status, registry)?;
                Some(Instance { task: task.object.name().to_owned(), address, port, is_healthy: task.is_healthy() })
            }));
        }
    }
    names
}
