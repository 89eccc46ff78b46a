//! The working copy of an instance that a round places on.

use std::collections::BTreeMap;

use steady_core::guard::{self, Guard};
use steady_core::query::{self, Query};
use steady_core::resources::Free;
use steady_core::v1::instance_state::Value as State;
use steady_core::v1::placement_constraint_type::Value as Constraint;
use steady_core::v1::{ContainerInstance, Demand, InstanceResources, Object, TaskSpec};
use steady_core::{Kind, Timestamp, View, task};

use super::refusal::Reason;
use crate::{daemon, site};

/// An instance as it is with what the round has placed on it so far.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) attributes: BTreeMap<String, String>,
    pub(super) free: Free,
    /// Tasks of each group on it.
    pub(super) groups: BTreeMap<String, usize>,
    /// All tasks on it.
    pub(super) tasks: usize,
    /// CPU units and MiB for tasks of DAEMON services that are to come.
    reserved: (i64, i64),
    connected: bool,
    version: String,
    registered_at: Option<Timestamp>,
    /// It takes no task at all.
    closed: Option<Reason>,
}

/// The instances of a cluster, in order of their names.
pub(super) fn nodes(view: &View, cluster: &str) -> Vec<Node> {
    let daemons = daemon::services(view, cluster);
    view.in_cluster(Kind::ContainerInstance, cluster).filter_map(|object| node(view, object, &daemons)).collect()
}

fn node(view: &View, object: &Object, daemons: &[(String, Demand)]) -> Option<Node> {
    let instance = object.as_container_instance()?;
    let spec = instance.spec.as_ref()?;
    let nothing = InstanceResources::default();
    let mut node = Node {
        name: object.name().to_owned(),
        attributes: spec.attributes.iter().map(|a| (a.name.clone(), a.value.clone())).collect(),
        free: Free::of(spec.registered_resources.as_ref().unwrap_or(&nothing)),
        groups: BTreeMap::new(),
        tasks: 0,
        reserved: (0, 0),
        connected: instance.status.as_ref().is_some_and(|status| status.agent_connected),
        version: spec.agent_version.clone(),
        registered_at: site::registered_at(object),
        closed: closed(object, instance),
    };
    for task in view.on_instance(object.cluster(), object.name()).filter_map(|t| task::of(t)) {
        node.take(task.spec);
    }
    let to_come = daemons.iter().filter(|(group, _)| node.group(group) == 0).map(|(_, demand)| demand);
    node.reserved = to_come.fold((0, 0), |(cpu, memory), d| (cpu + i64::from(d.cpu), memory + i64::from(d.memory)));
    Some(node)
}

fn closed(object: &Object, instance: &ContainerInstance) -> Option<Reason> {
    let connected = instance.status.as_ref().is_some_and(|s| s.agent_connected);
    let state = instance.spec.as_ref().map(steady_core::v1::ContainerInstanceSpec::status);
    if object.is_deleting() || state == Some(State::Draining) {
        Some(Reason::Draining)
    } else if !connected {
        Some(Reason::Disconnected)
    } else {
        None
    }
}

impl query::Instance for Node {
    fn agent_connected(&self) -> bool {
        self.connected
    }

    fn agent_version(&self) -> &str {
        &self.version
    }

    fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).map(String::as_str)
    }

    fn id(&self) -> &str {
        &self.name
    }

    fn registered_at(&self) -> String {
        self.registered_at.map(|at| at.to_string()).unwrap_or_default()
    }

    fn running_tasks_count(&self) -> usize {
        self.tasks
    }

    fn has_group(&self, which: &dyn Fn(&str) -> bool) -> bool {
        self.groups.iter().any(|(group, count)| *count > 0 && which(group))
    }
}

impl Node {
    /// Places a task on it.
    pub(super) fn take(&mut self, spec: &TaskSpec) {
        if let Some(demand) = &spec.demand {
            self.free.take(demand);
        }
        *self.groups.entry(spec.group.clone()).or_default() += 1;
        self.tasks += 1;
    }

    /// Why it does not take a task.
    pub(super) fn refuses(&self, spec: &TaskSpec, demand: &Demand, queries: &[Query]) -> Option<Reason> {
        if let Some(closed) = self.closed {
            return Some(closed);
        }
        let is_daemon = !spec.target_instance.is_empty() && spec.replaces.is_empty();
        let reserved = if is_daemon { (0, 0) } else { self.reserved };
        let (cpu, memory) = (self.free.cpu - reserved.0, self.free.memory - reserved.1);
        if memory < i64::from(demand.memory) && guard::stands(Guard::Memory) {
            return Some(Reason::Memory(memory.max(0)));
        }
        if cpu < i64::from(demand.cpu) && guard::stands(Guard::Memory) {
            return Some(Reason::Cpu(cpu.max(0)));
        }
        if let Some(port) = self.free.port_conflict(demand).filter(|_| guard::stands(Guard::Port)) {
            return Some(Reason::Port(port));
        }
        if !queries.iter().all(|query| query.selects(self)) {
            return Some(Reason::Constraint);
        }
        let distinct = spec.placement_constraints.iter().any(|c| c.r#type() == Constraint::DistinctInstance);
        (distinct && self.group(&spec.group) > 0).then_some(Reason::Distinct)
    }

    /// How many tasks of a group it has.
    pub(super) fn group(&self, group: &str) -> usize {
        self.groups.get(group).copied().unwrap_or(0)
    }
}
