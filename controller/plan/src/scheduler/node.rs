//! An instance as placement sees it: what it is, and what is left of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use steady_core::hash;
use steady_core::query;
use steady_core::resources::{Free, has_attribute};
use steady_core::v1::instance_state::Value as State;
use steady_core::v1::{Attribute, ContainerInstance, Demand, InstanceResources, Object, TaskSpec};
use steady_core::{Timestamp, View, task};

use super::refusal::Reason;
use crate::site;

/// Names of groups of tasks, each with a small number.
#[derive(Debug, Default)]
pub(super) struct Groups {
    numbers: BTreeMap<Arc<str>, u32>,
    names: Vec<Arc<str>>,
}

impl Groups {
    /// Number of a group, a new one for a new name.
    pub(super) fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let (name, number): (Arc<str>, u32) = (name.into(), self.names.len() as u32);
        self.names.push(Arc::clone(&name));
        self.numbers.insert(name, number);
        number
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }
}

/// A task that may be stopped to make room.
#[derive(Debug, Clone)]
pub(super) struct Victim {
    pub(super) priority: i32,
    pub(super) task: String,
    pub(super) demand: Demand,
    /// Its service spares it until then, and nobody else stops it either.
    pub(super) protected_until: Option<Timestamp>,
    created: Timestamp,
}

/// A place that is kept for tasks of one class that have waited for long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) class: usize,
    pub(super) priority: i32,
}

/// What an instance is, whatever is on it.
#[derive(Debug)]
pub(super) struct Fixed {
    /// What it has when nothing is on it.
    pub(super) registered: InstanceResources,
    /// The same for the same name, and hardly for any other.
    pub(super) hash: u64,
    attributes: BTreeMap<String, String>,
    provider: String,
    connected: bool,
    version: String,
    registered_at: Option<Timestamp>,
    /// It takes no task at all.
    closed: Option<Reason>,
    object: Arc<Object>,
}

/// An instance with what is bound to it, and what a round has placed on it so far.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: Arc<str>,
    pub(super) fixed: Arc<Fixed>,
    pub(super) free: Free,
    /// Tasks on it that are not STOPPED.
    pub(super) tasks: usize,
    /// Tasks that may be stopped to make room: the lowest priority first, of the same priority the newest first.
    pub(super) victims: Vec<Victim>,
    /// What tasks take that are to stop and have not stopped yet.
    pub(super) leaving: Vec<Demand>,
    /// What tasks of services take, which do not end by themselves, and are not to be stopped.
    pub(super) staying: Vec<Demand>,
    /// For whom it is kept.
    pub(super) held: Option<Held>,
    /// It takes no task at all.
    pub(super) closed: Option<Reason>,
    /// CPU units and MiB for tasks of DAEMON services that are to come.
    pub(super) kept: (i64, i64),
    /// Their groups, and what each takes.
    to_come: Vec<(u32, i64, i64)>,
    /// Tasks of each group on it, by the group's number. They are few.
    groups: Vec<(u32, u32)>,
    /// Stands for all of it, as [`Placement::number`](steady_core::Placement::number) does; `None`: for something else.
    pub(super) number: Option<u64>,
}

impl Fixed {
    fn of(object: Arc<Object>) -> Self {
        let nothing = ContainerInstance::default();
        let instance = object.as_container_instance().unwrap_or(&nothing);
        let spec = instance.spec.clone().unwrap_or_default();
        Fixed {
            registered: spec.registered_resources.unwrap_or_default(),
            hash: hash::of(object.name()),
            attributes: spec.attributes.into_iter().map(|a| (a.name, a.value)).collect(),
            provider: spec.capacity_provider,
            connected: instance.status.as_ref().is_some_and(|status| status.agent_connected),
            version: spec.agent_version,
            registered_at: site::registered_at(&object),
            closed: closed(&object, instance),
            object,
        }
    }
}

impl Node {
    /// The instance of an object, with nothing on it.
    pub(super) fn of(object: &Arc<Object>) -> Self {
        let fixed = Arc::new(Fixed::of(Arc::clone(object)));
        Node {
            name: object.name().into(),
            free: Free::of(&fixed.registered),
            tasks: 0,
            victims: Vec::new(),
            leaving: Vec::new(),
            staying: Vec::new(),
            held: None,
            closed: None,
            kept: (0, 0),
            to_come: Vec::new(),
            groups: Vec::new(),
            number: None,
            fixed,
        }
    }

    /// Brings it up to its object, with what a view has bound to it.
    pub(super) fn fill(
        &mut self,
        view: &View,
        object: &Arc<Object>,
        daemons: &[(String, Demand)],
        groups: &mut Groups,
    ) {
        if !Arc::ptr_eq(object, &self.fixed.object) {
            self.fixed = Arc::new(Fixed::of(Arc::clone(object)));
        }
        self.free.reset(&self.fixed.registered);
        (self.tasks, self.held) = (0, None);
        self.closed.clone_from(&self.fixed.closed);
        self.victims.clear();
        self.leaving.clear();
        self.staying.clear();
        self.to_come.clear();
        self.groups.clear();
        for task in view.on_instance(object.cluster(), object.name()).filter_map(|t| task::of(t)) {
            self.take(task.spec, groups.number(&task.spec.group));
            let demand = || task.spec.demand.clone().unwrap_or_default();
            if task.is_wanted() && !task.spec.service.is_empty() {
                self.staying.push(demand());
            }
            if !task.is_wanted() {
                self.leaving.push(demand());
            } else if task.spec.preemptible && (task.spec.target_instance.is_empty() || !task.spec.replaces.is_empty())
            {
                // One of a DAEMON service would come back before anything else.
                self.victims.push(Victim {
                    priority: task.spec.priority,
                    task: task.object.name().to_owned(),
                    demand: demand(),
                    protected_until: task.protected_until(),
                    created: task.created(),
                });
            }
        }
        self.victims.sort_by(|a, b| (a.priority, b.created, &a.task).cmp(&(b.priority, a.created, &b.task)));
        self.kept = (0, 0);
        for (group, demand) in daemons {
            let group = groups.number(group);
            if self.group(group) == 0 {
                let (cpu, memory) = (i64::from(demand.cpu), i64::from(demand.memory));
                self.to_come.push((group, cpu, memory));
                self.kept = (self.kept.0 + cpu, self.kept.1 + memory);
            }
        }
    }

    /// Places a task of a group on it.
    pub(super) fn take(&mut self, spec: &TaskSpec, group: u32) {
        if let Some(demand) = &spec.demand {
            self.free.take(demand);
        }
        if let Some(at) = self.to_come.iter().position(|(daemon, ..)| *daemon == group) {
            let (_, cpu, memory) = self.to_come.swap_remove(at);
            self.kept = (self.kept.0 - cpu, self.kept.1 - memory);
        }
        match self.groups.iter_mut().find(|(known, _)| *known == group) {
            Some((_, count)) => *count += 1,
            None => self.groups.push((group, 1)),
        }
        self.tasks += 1;
    }

    /// How many tasks of a group it has.
    pub(super) fn group(&self, group: u32) -> i64 {
        self.groups.iter().find(|(known, _)| *known == group).map_or(0, |(_, count)| i64::from(*count))
    }

    /// Value of an attribute.
    pub(super) fn attribute(&self, name: &str) -> Option<&str> {
        self.fixed.attributes.get(name).map(String::as_str)
    }

    /// The first attribute of these that it does not have.
    pub(super) fn lacks<'a>(&self, required: &'a [Attribute]) -> Option<&'a Attribute> {
        let own = || self.fixed.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        required.iter().find(|required| !has_attribute(required, own()))
    }

    /// Whether it belongs to a capacity provider; to any where none is named.
    pub(super) fn is_of(&self, provider: &str) -> bool {
        provider.is_empty() || self.fixed.provider == provider
    }

    /// The capacity provider that it belongs to, empty for none.
    pub(super) fn provider(&self) -> &str {
        &self.fixed.provider
    }

    /// What it has left once those that stop have stopped.
    pub(super) fn future(&self) -> Free {
        let mut free = self.free.clone();
        self.leaving.iter().for_each(|demand| free.give_back(demand));
        free
    }
}

fn closed(object: &Object, instance: &ContainerInstance) -> Option<Reason> {
    let connected = instance.status.as_ref().is_some_and(|s| s.agent_connected);
    let state = instance.spec.as_ref().map(steady_core::v1::ContainerInstanceSpec::status);
    if object.is_deleting() || matches!(state, Some(State::Draining | State::Inactive)) {
        Some(Reason::Draining)
    } else if !connected {
        Some(Reason::Disconnected)
    } else {
        None
    }
}

/// An instance as queries see it.
pub(super) struct Seen<'a> {
    pub(super) node: &'a Node,
    pub(super) groups: &'a Groups,
}

impl query::Instance for Seen<'_> {
    fn agent_connected(&self) -> bool {
        self.node.fixed.connected
    }

    fn agent_version(&self) -> &str {
        &self.node.fixed.version
    }

    fn attribute(&self, name: &str) -> Option<&str> {
        self.node.attribute(name)
    }

    fn id(&self) -> &str {
        &self.node.name
    }

    fn registered_at(&self) -> String {
        self.node.fixed.registered_at.map(|at| at.to_string()).unwrap_or_default()
    }

    fn running_tasks_count(&self) -> usize {
        self.node.tasks
    }

    fn has_group(&self, which: &dyn Fn(&str) -> bool) -> bool {
        let there = self.node.groups.iter();
        there.filter_map(|(group, _)| self.groups.names.get(*group as usize)).any(|name| which(name))
    }
}
