//! Why a task is where it is, or nowhere: the scheduler's own filters and scores, for people.

use std::collections::{BTreeMap, BTreeSet};

use steady_core::{Key, Timestamp, View, task};

use super::fleet::Fleet;
use super::node::Node;
use super::refusal::Reason;
use super::room;

/// An instance that takes a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub instance: String,
    /// What each step of the chain says of it; less is better.
    pub scores: Vec<i64>,
}

/// How the scheduler sees a task.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Explanation {
    /// What it needs, in words.
    pub needs: Vec<String>,
    /// Steps of its chain of strategies, in order.
    pub steps: Vec<String>,
    /// Instances that take it, best first.
    pub candidates: Vec<Candidate>,
    /// By ECS' name of the reason: instances that do not take it, and why.
    pub refused: BTreeMap<&'static str, Vec<(String, String)>>,
    /// Tasks that are placed before it.
    pub before: usize,
    /// Since when it waits; of a task that does not, nothing.
    pub waits_since: Option<Timestamp>,
    /// The instance that is kept free for it.
    pub kept: Option<String>,
    /// Tasks that would be stopped for it now.
    pub victims: Vec<(String, String)>,
}

/// How the scheduler sees a task now: one that is placed, as if it were to be placed again beside itself.
pub fn explain(view: &View, key: &Key, now: Timestamp) -> Option<Explanation> {
    let object = view.get(key)?.clone();
    let task = task::of(&object)?;
    let mut fleet = Fleet::default();
    fleet.follow(view, &key.cluster);
    let number = fleet.class(task.spec);
    let class = &fleet.classes[number];
    let mut needs = vec![format!("{} CPU units", class.demand.cpu), format!("{} MiB", class.demand.memory)];
    needs.extend(class.demand.named.iter().map(|(name, count)| format!("{count} {name}")));
    needs.extend(class.demand.ports.iter().map(|port| {
        let protocol = port.protocol().as_str_name();
        let to = if port.to > port.port { format!("-{}", port.to) } else { String::new() };
        format!("host port {}{to}/{protocol}", port.port)
    }));
    needs.extend(class.requires.iter().map(|required| match required.value.as_str() {
        "" => format!("attribute {}", required.name),
        value => format!("attribute {} = {value}", required.name),
    }));
    needs.extend(task.spec.placement_constraints.iter().map(|constraint| {
        let kind = constraint.r#type().as_str_name();
        if constraint.expression.is_empty() { kind.to_owned() } else { format!("{kind}({})", constraint.expression) }
    }));
    if !class.provider.is_empty() {
        needs.push(format!("capacity provider {}", class.provider));
    }
    let steps: Vec<String> = class.chain.iter().map(|step| class.name(*step)).collect();
    let mut explained = Explanation { needs, steps, ..Explanation::default() };
    fleet.hold_for_all(now);
    let target = task.spec.target_instance.as_str();
    let of_daemon = !target.is_empty() && task.spec.replaces.is_empty();
    let class = &fleet.classes[number];
    let reasons: Vec<(String, Reason)> = if of_daemon {
        let reason = |node: &Node| Some((node.name.to_string(), class.refused_by_all(node, &fleet.groups)?));
        fleet.nodes.iter().filter_map(reason).filter(|(_, reason)| *reason != Reason::Gone).collect()
    } else {
        fleet.reasons(number).map(|(node, reason)| (node.name.to_string(), reason)).collect()
    };
    let refused: BTreeSet<&str> = reasons.iter().map(|(name, _)| name.as_str()).collect();
    for (at, scores) in fleet.candidates(number) {
        let instance = fleet.nodes[at].name.to_string();
        if !target.is_empty() && target != instance {
            let why = format!("the task is for {target} only");
            explained.refused.entry("TARGET").or_default().push((instance, why));
        } else if !refused.contains(instance.as_str()) {
            explained.candidates.push(Candidate { instance, scores });
        }
    }
    for (instance, reason) in reasons {
        let told = reason.told(&fleet.classes[number].demand);
        explained.refused.entry(reason.class()).or_default().push((instance, told));
    }
    if task.wants_place() {
        let created = task.created();
        explained.waits_since = Some(created);
        explained.before = fleet.before(task.spec.priority, created, object.name());
        if explained.candidates.is_empty() && target.is_empty() {
            let made = room::Room::default().make(&fleet, number, 1, now);
            let victims =
                made.victims.into_iter().flat_map(|(_, at, tasks)| tasks.into_iter().map(move |task| (task, at)));
            explained.victims = victims.map(|(task, at)| (task, fleet.nodes[at].name.to_string())).collect();
            let kept = fleet.nodes.iter().find(|node| node.held.is_some_and(|held| held.class == number));
            explained.kept = kept.map(|node| node.name.to_string());
        }
    }
    Some(explained)
}
