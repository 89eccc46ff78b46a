//! Target groups, listeners, and what load balancers say of targets.

use std::collections::BTreeMap;

use steady_core::traffic::{self, target_groups};
use steady_core::v1::network_mode::Value as NetworkMode;
use steady_core::v1::{
    GetCertificatesResponse, Listener, ListenerSpec, LoadBalancer, Object, ReportTargetHealthRequest, ServiceRegistry,
    TargetGroupSpec, TargetHealth, TaskDefinitionSpec, TaskSpec, TaskStatus,
};
use steady_core::validate::Fault;
use steady_core::{Key, Kind, Revision, Timestamp, resources, task};

use super::writes::Writes;
use super::{Registry, RegistryError, cluster, definitions, fault, upsert};
use crate::registry::commit::MAX_CHANGES;

/// Most targets of one report, and most certificates that are asked for at once.
const MAX_TARGETS: usize = 200;
const MAX_CERTIFICATES: usize = 100;

impl Registry {
    /// Takes in what a load balancer says of targets.
    pub async fn report_target_health(&self, request: &ReportTargetHealthRequest) -> Result<Revision, RegistryError> {
        let cluster = cluster(&request.cluster);
        if request.targets.len() > MAX_TARGETS {
            let message = format!("{} targets; at most {MAX_TARGETS} in one report", request.targets.len());
            return Err(RegistryError::Refused(message));
        }
        let mut by_task: BTreeMap<&str, Vec<&TargetHealth>> = BTreeMap::new();
        for said in &request.targets {
            by_task.entry(&said.task).or_default().push(said);
        }
        let mut newest = Revision(0);
        for chunk in by_task.into_iter().collect::<Vec<_>>().chunks(MAX_CHANGES / 2) {
            let ((), revision) = self
                .write(|writes| {
                    for (name, said) in chunk {
                        take_in(writes, &Key::new(Kind::Task, cluster, name), said);
                    }
                    Ok(())
                })
                .await?;
            newest = newest.max(revision);
        }
        Ok(newest)
    }

    /// Certificates of listeners: secrets of this cluster that a listener names.
    pub fn certificates(&self, of: &str, names: &[String]) -> Result<GetCertificatesResponse, RegistryError> {
        let cluster = cluster(of);
        if names.len() > MAX_CERTIFICATES {
            let message = format!("{} certificates; at most {MAX_CERTIFICATES} at once", names.len());
            return Err(RegistryError::Refused(message));
        }
        let view = self.cache().view();
        let listeners = view.in_cluster(Kind::Listener, cluster).filter_map(|l| l.as_listener()?.spec.as_ref());
        let of_listeners: Vec<&str> =
            listeners.flat_map(|spec| &spec.certificates).map(|c| c.certificate_arn.as_str()).collect();
        let mut answer = GetCertificatesResponse::default();
        for name in names {
            // Other secrets are nobody's business here.
            let opened = if of_listeners.contains(&name.as_str()) {
                self.open_secret(&view, cluster, name)
            } else {
                Err("no listener of the cluster names it".to_owned())
            };
            match opened {
                Ok(value) => answer.certificates.insert(name.clone(), value),
                Err(why) => answer.missing.insert(name.clone(), why),
            };
        }
        Ok(answer)
    }
}

fn take_in(writes: &mut Writes, key: &Key, said: &[&TargetHealth]) {
    let Some(object) = writes.get(key).cloned() else { return };
    let Some(found) = task::of(&object).filter(task::View::is_live) else { return };
    let mut status = found.status.clone();
    for said in said {
        let its = status
            .targets
            .iter_mut()
            .find(|target| target.target_group == said.target_group && target.container_port == said.container_port);
        if let (Some(target), Some(report)) = (its, &said.report) {
            traffic::report(target, report.clone());
        }
    }
    if status != *found.status {
        writes.put(found.with_status(status));
    }
}

/// Registers a task that has become RUNNING, and lets one go that is over.
pub(super) fn follow(writes: &Writes, of: &str, spec: &TaskSpec, status: &mut TaskStatus, now: Timestamp) {
    use steady_core::v1::desired_status::Value as Desired;
    use steady_core::v1::task_last_status::Value as Status;
    if status.last_status() == Status::Stopped {
        status.targets.clear();
    } else if status.last_status() == Status::Running
        && status.targets.is_empty()
        && status.desired_status() != Desired::Stopped
    {
        let delay = |group: &str| {
            let object = writes.view().get(&Key::new(Kind::TargetGroup, of, group));
            let spec = object.and_then(|object| object.as_target_group()?.spec.as_ref());
            spec.map_or(traffic::DEREGISTRATION_DELAY, TargetGroupSpec::deregistration_delay_seconds)
        };
        status.targets = traffic::registered(spec, status, delay);
    } else if status.last_status() > Status::Running {
        // Its agent has it stop for a reason of its own.
        traffic::drain(&mut status.targets, now);
    }
}

/// Target groups that a listener leads to have to be there, and its port nobody else's.
pub(super) fn listener_faults(writes: &mut Writes, wanted: &Object) -> Vec<Fault> {
    let spec = wanted.as_listener().and_then(|listener| listener.spec.clone()).unwrap_or_default();
    let mut faults = Vec::new();
    let mut names: Vec<&str> = target_groups(&spec).collect();
    names.dedup();
    for name in names {
        if let Some(message) = missing(writes, wanted.cluster(), name) {
            faults.push(fault("spec", message));
        }
    }
    let same = |other: &ListenerSpec| other.port == spec.port && other.load_balancer == spec.load_balancer;
    let mut keys: Vec<Key> = writes.view().in_cluster(Kind::Listener, wanted.cluster()).map(|l| Key::of(l)).collect();
    keys.extend(writes.written().filter(|key| key.kind == Kind::Listener && key.cluster == wanted.cluster()).cloned());
    let is_other = |key: &&Key| key.name != wanted.name();
    let taken = keys.iter().filter(is_other).find(|key| {
        let listener = writes.get(key).and_then(Object::as_listener);
        listener.and_then(|listener: &Listener| listener.spec.as_ref()).is_some_and(same)
    });
    if let Some(taken) = taken {
        let message = format!("{} is {taken}'s already, of load balancer `{}`", spec.port, spec.load_balancer);
        faults.push(fault("spec.port", message));
    }
    faults
}

/// What to say of a target group that is not there.
fn missing(writes: &mut Writes, of: &str, name: &str) -> Option<String> {
    upsert::missing(writes, Kind::TargetGroup, "target group", of, name)
}

/// What is wrong with a service's load balancers: the group, a listener that leads to it, the container and its port.
pub(super) fn faults(
    writes: &mut Writes,
    of: &str,
    balancers: &[LoadBalancer],
    definition: Option<&str>,
    listeners: &[Object],
) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (i, balancer) in balancers.iter().enumerate() {
        let path = format!("spec.loadBalancers[{i}]");
        let group = balancer.target_group_arn.as_str();
        if let Some(message) = missing(writes, of, group) {
            faults.push(fault(&format!("{path}.targetGroupArn"), message));
        } else {
            let beside = listeners.iter().filter(|o| o.kind() == Kind::Listener && o.cluster() == of);
            let there = writes.view().in_cluster(Kind::Listener, of).map(|object| &**object);
            let mut specs = there.chain(beside).filter_map(|l| l.as_listener()?.spec.as_ref());
            if !specs.any(|spec| target_groups(spec).any(|name| name == group)) {
                let message = format!(
                    "The target group `{group}` does not have an associated load balancer; apply a Listener that forwards to it first, \
                     or in the same manifest"
                );
                faults.push(fault(&format!("{path}.targetGroupArn"), message));
            }
        }
        if let Some(definition) = definition.and_then(|name| definitions::spec_of(writes, name)) {
            faults.extend(port_fault(definition, balancer, &path));
        }
    }
    faults
}

/// What is wrong with how a service is found: without a port its tasks need addresses of their own.
pub(super) fn registry_faults(writes: &Writes, registries: &[ServiceRegistry], definition: Option<&str>) -> Vec<Fault> {
    let Some(definition) = definition.and_then(|name| definitions::spec_of(writes, name)) else { return Vec::new() };
    let mut faults = Vec::new();
    for (i, registry) in registries.iter().enumerate() {
        let path = format!("spec.serviceRegistries[{i}]");
        if registry.container_port == 0 && definition.network_mode() != NetworkMode::Awsvpc {
            let message =
                "needs containerName and containerPort: without networkMode awsvpc tasks have no address of their own";
            faults.push(fault(&path, message.to_owned()));
        } else if registry.container_port != 0 {
            let balancer = LoadBalancer {
                container_name: registry.container_name.clone(),
                container_port: registry.container_port,
                ..LoadBalancer::default()
            };
            faults.extend(port_fault(definition, &balancer, &path));
        }
    }
    faults
}

fn port_fault(definition: &TaskDefinitionSpec, balancer: &LoadBalancer, path: &str) -> Option<Fault> {
    let (name, port) = (&balancer.container_name, balancer.container_port);
    let containers = &definition.container_definitions;
    let Some(container) = containers.iter().find(|container| container.name == *name) else {
        let known: Vec<&str> = containers.iter().map(|container| container.name.as_str()).collect();
        let message =
            format!("The container {name} does not exist in the task definition; containers: {}", known.join(", "));
        return Some(fault(&format!("{path}.containerName"), message));
    };
    if definition.network_mode() == NetworkMode::None {
        let message = "a task with networkMode none has no ports that anybody reaches".to_owned();
        return Some(fault(&format!("{path}.containerPort"), message));
    }
    let has = container.port_mappings.iter().filter_map(resources::container_ports);
    let ports: Vec<(i32, i32)> = has.collect();
    if ports.iter().any(|(from, to)| (*from..=*to).contains(&port)) {
        return None;
    }
    let message = format!("The container {name} did not have a container port {port} defined.");
    Some(fault(&format!("{path}.containerPort"), message))
}

/// Who names a target group, if anybody does (Elastic Load Balancing `ResourceInUse`).
pub(super) fn in_use(writes: &Writes, key: &Key) -> Option<String> {
    let view = writes.view();
    let names = |balancers: &[LoadBalancer]| balancers.iter().any(|balancer| balancer.target_group_arn == *key.name);
    let services = view.in_cluster(Kind::Service, &key.cluster).filter(|o| {
        o.as_service().and_then(|service| service.spec.as_ref()).is_some_and(|spec| names(&spec.load_balancers))
    });
    let sets = view
        .in_cluster(Kind::TaskSet, &key.cluster)
        .filter(|o| o.as_task_set().and_then(|set| set.spec.as_ref()).is_some_and(|spec| names(&spec.load_balancers)));
    let listeners = view.in_cluster(Kind::Listener, &key.cluster).filter(|o| {
        let spec = o.as_listener().and_then(|listener| listener.spec.as_ref());
        spec.is_some_and(|spec| target_groups(spec).any(|name| name == key.name))
    });
    let users: Vec<String> = listeners.chain(services).chain(sets).map(|o| Key::of(o).to_string()).take(5).collect();
    (!users.is_empty()).then(|| users.join(", "))
}
