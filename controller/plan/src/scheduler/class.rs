//! A class of tasks: all that ask for the same, and are interchangeable for placement.

use std::collections::BTreeSet;

use steady_core::placement::{self, Strategy, ZONE};
use steady_core::query::Query;
use steady_core::resources::Free;
use steady_core::v1::placement_constraint_type::Value as Constraint;
use steady_core::v1::{Attribute, Demand, TaskSpec};
use steady_core::{SmolStr, Timestamp, View};

use super::node::{Groups, Node, Seen};
use super::refusal::Reason;
use steady_core::hash::mixed;

/// One step of a chain of strategies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Tasks of the group on instances with the same value of the how manieth attribute.
    Attribute(usize),
    /// Tasks of the group on the instance.
    Group,
    /// All tasks on the instance.
    Tasks,
    Cpu,
    Memory,
    Random,
}

/// What tasks of a class ask for.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) demand: Demand,
    /// Number of their group, and its name.
    pub(super) group: u32,
    pub(super) group_name: String,
    pub(super) priority: i32,
    pub(super) provider: String,
    pub(super) requires: Vec<Attribute>,
    pub(super) queries: Vec<Query>,
    pub(super) distinct: bool,
    pub(super) chain: Vec<Step>,
    /// Attributes that the chain spreads over.
    pub(super) attributes: Vec<String>,
    /// Those that wait, the oldest first.
    pub(super) waiting: BTreeSet<(Timestamp, SmolStr)>,
}

impl Class {
    pub(super) fn of(spec: &TaskSpec, groups: &mut Groups) -> Self {
        let mut attributes: Vec<String> = Vec::new();
        let mut attribute = |name: String| {
            let known = attributes.iter().position(|known| *known == name);
            Step::Attribute(known.unwrap_or_else(|| {
                attributes.push(name);
                attributes.len() - 1
            }))
        };
        let strategies = spec.placement_strategy.iter().filter_map(|s| Strategy::parse(s).ok());
        let mut chain: Vec<Step> = strategies
            .map(|strategy| match strategy {
                Strategy::Random => Step::Random,
                Strategy::SpreadInstance => Step::Group,
                Strategy::SpreadAttribute(name) => attribute(name),
                Strategy::BinpackCpu => Step::Cpu,
                Strategy::BinpackMemory => Step::Memory,
            })
            .collect();
        if chain.is_empty() {
            // ECS' default: the zone, and in it the instance, with fewest tasks of the service.
            chain = vec![attribute(ZONE.to_owned()), Step::Group, Step::Tasks];
        }
        Class {
            demand: spec.demand.clone().unwrap_or_default(),
            group: groups.number(&spec.group),
            group_name: spec.group.clone(),
            priority: spec.priority,
            provider: spec.capacity_provider.clone(),
            requires: spec.requires_attributes.clone(),
            queries: placement::queries(&spec.placement_constraints),
            distinct: spec.placement_constraints.iter().any(|c| c.r#type() == Constraint::DistinctInstance),
            chain,
            attributes,
            waiting: BTreeSet::new(),
        }
    }

    /// Why an instance is none for it whatever room it has.
    pub(super) fn misfit(&self, node: &Node, groups: &Groups) -> Option<Reason> {
        self.unfit(node, groups).or_else(|| self.crowded(node, groups))
    }

    /// Why an instance is none for it whatever is on it.
    pub(super) fn unfit(&self, node: &Node, groups: &Groups) -> Option<Reason> {
        if let Some(closed) = &node.closed {
            return Some(closed.clone());
        }
        if !node.is_of(&self.provider) {
            return Some(Reason::Provider(self.provider.clone()));
        }
        if let Some(lacking) = node.lacks(&self.requires) {
            return Some(Reason::Attribute(lacking.name.clone()));
        }
        let selects = |query: &Query| query.heeds_tasks() || query.selects(&Seen { node, groups });
        (!self.queries.iter().all(selects)).then_some(Reason::Constraint)
    }

    /// Whether which other tasks are on an instance matters to it, besides the room that they take.
    pub(super) fn heeds_tasks(&self) -> bool {
        self.distinct || self.queries.iter().any(Query::heeds_tasks)
    }

    /// Why an instance is none for it because of the tasks that are on it.
    fn crowded(&self, node: &Node, groups: &Groups) -> Option<Reason> {
        let selects = |query: &Query| !query.heeds_tasks() || query.selects(&Seen { node, groups });
        if !self.queries.iter().all(selects) {
            return Some(Reason::Constraint);
        }
        (self.distinct && node.group(self.group) > 0).then_some(Reason::Distinct)
    }

    /// Why an instance does not take one of them; the class' own number says for whom it may be held.
    /// What can be helped least is said first.
    pub(super) fn refused(&self, own: usize, node: &Node, groups: &Groups) -> Option<Reason> {
        let short = || node.free.short_of(&self.demand, node.kept).map(Reason::Short);
        let held = || self.is_held(own, node).then_some(Reason::Held);
        self.unfit(node, groups).or_else(short).or_else(|| self.crowded(node, groups)).or_else(held)
    }

    /// Whether an instance takes one of them, of which it is known that it is not unfit.
    pub(super) fn accepted(&self, own: usize, node: &Node, groups: &Groups) -> bool {
        self.fits(&node.free, node.kept) && self.crowded(node, groups).is_none() && !self.is_held(own, node)
    }

    /// Why an instance does not take a task of a DAEMON service: nothing is kept from that.
    pub(super) fn refused_by_all(&self, node: &Node, groups: &Groups) -> Option<Reason> {
        let short = || node.free.short_of(&self.demand, (0, 0)).map(Reason::Short);
        self.unfit(node, groups).or_else(short).or_else(|| self.crowded(node, groups))
    }

    /// Whether an instance is kept for another class, of the same or a higher priority.
    pub(super) fn is_held(&self, own: usize, node: &Node) -> bool {
        node.held.is_some_and(|held| held.class != own && held.priority >= self.priority)
    }

    /// Whether one of them fits where this much is free.
    pub(super) fn fits(&self, free: &Free, kept: (i64, i64)) -> bool {
        free.short_of(&self.demand, kept).is_none()
    }

    /// How good an instance is by one step of the chain, as far as it is known without the others: less is better.
    pub(super) fn value(&self, step: Step, node: &Node) -> i64 {
        match step {
            Step::Attribute(_) => 0,
            Step::Group => node.group(self.group),
            Step::Tasks => node.tasks as i64,
            Step::Cpu => node.free.cpu,
            Step::Memory => node.free.memory,
            // Drawn anew whenever the instance has one task more or less.
            Step::Random => (mixed(node.fixed.hash.wrapping_add(node.tasks as u64)) >> 1) as i64,
        }
    }

    /// Whether a task that comes to an instance can only make it worse for this class, as far as it is of another group: then
    /// such news can wait until the instance seems to be the best.
    pub(super) fn only_worsens(&self) -> bool {
        let steps = self.chain.iter().all(|step| matches!(step, Step::Attribute(_) | Step::Group | Step::Tasks));
        steps && !self.queries.iter().any(Query::heeds_tasks)
    }

    /// A step in words.
    pub(super) fn name(&self, step: Step) -> String {
        match step {
            Step::Attribute(at) => format!("spread(attribute:{})", self.attributes[at]),
            Step::Group => "spread(instanceId)".to_owned(),
            Step::Tasks => "fewest tasks".to_owned(),
            Step::Cpu => "binpack(cpu)".to_owned(),
            Step::Memory => "binpack(memory)".to_owned(),
            Step::Random => "random".to_owned(),
        }
    }
}

/// What a task definition of this name asks for, as a standalone task.
pub(super) fn of_definition(view: &View, name: &str, groups: &mut Groups) -> Option<Class> {
    let definition = crate::site::definition(view, name)?;
    let spec = TaskSpec {
        group: format!("family:{}", name.split(':').next().unwrap_or_default()),
        demand: Some(steady_core::resources::demand(definition)),
        placement_constraints: definition.placement_constraints.clone(),
        requires_attributes: steady_core::resources::requires_attributes(definition),
        ..TaskSpec::default()
    };
    Some(Class::of(&spec, groups))
}
