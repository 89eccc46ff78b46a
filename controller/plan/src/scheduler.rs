//! The scheduler: finds an instance for each waiting task. Placement, and nothing else.
//!
//! One round places the waiting tasks of one cluster on a working copy of its instances: filters give a reason each,
//! strategies a score, the best instance takes the task. What is bound to one instance is one group of changes that
//! compares and writes the instance's Reservation: two schedulers that bind to the same instance at the same time
//! cannot both succeed. A task that fits nowhere is told why.

mod node;
mod refusal;
mod score;

use std::collections::BTreeMap;

use steady_core::guard::{self, Guard};
use steady_core::placement::{self, Strategy};
use steady_core::v1::Object;
use steady_core::v1::task_last_status::Value as Status;
use steady_core::v1::{Demand, Reservation, ReservationSpec, Task, TaskSpec, object};
use steady_core::{Change, Key, Kind, Plan, Revision, Timestamp, View, Waiting, task};

use node::{Node, nodes};
use refusal::{Reason, Refusals};

/// Most tasks that one round binds to one instance: with its reservation they fit one commit.
const MAX_PER_NODE: usize = 40;
/// Most tasks that one round places.
const MAX_ROUND: usize = 1000;
/// Most tasks that one round finds no place for.
const MAX_REFUSED: usize = 20_000;

/// One round of placement in the cluster that the key names.
pub fn plan(view: &View, key: &Key, _now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let cluster = key.name.as_str();
    let mut waiting: Vec<task::View<'_>> = view.unplaced(cluster).filter_map(|t| task::of(t)).collect();
    if waiting.is_empty() {
        return plan;
    }
    // Those that can be nowhere else first: tasks of DAEMON services (ECS).
    let is_daemon = |t: &task::View<'_>| !t.spec.target_instance.is_empty() && t.spec.replaces.is_empty();
    waiting.sort_by_key(|t| (!is_daemon(t), created(t.object)));
    let mut nodes = nodes(view, cluster);
    let mut bound: BTreeMap<usize, Vec<Change>> = BTreeMap::new();
    let mut refused: BTreeMap<String, (&'static str, String)> = BTreeMap::new();
    let (mut placed, mut refused_of_any) = (0, 0);
    for task in &waiting {
        if placed >= MAX_ROUND || refused_of_any >= MAX_REFUSED {
            break;
        }
        if !task.spec.target_instance.is_empty() {
            match on_its_target(&nodes, task) {
                Ok(place) => {
                    let changes = bound.entry(place).or_default();
                    if changes.len() < MAX_PER_NODE * 2 {
                        changes.extend(bind(task, &nodes[place].name));
                        nodes[place].take(task.spec);
                        placed += 1;
                    }
                }
                Err(refusals) => plan.waiting.push(refusal(task, refusals.reason(), refusals.to_string())),
            }
            continue;
        }
        let likeness = likeness(task.spec);
        if let Some((reason, message)) = refused.get(&likeness) {
            refused_of_any += 1;
            plan.waiting.push(refusal(task, reason, message.clone()));
            continue;
        }
        match best(&nodes, task) {
            Ok(place) => {
                let changes = bound.entry(place).or_default();
                if changes.len() >= MAX_PER_NODE * 2 {
                    // The rest of the round would be decided on a choice that was not made.
                    break;
                }
                changes.extend(bind(task, &nodes[place].name));
                placed += 1;
                if guard::stands(Guard::RoundCounts) {
                    nodes[place].take(task.spec);
                }
            }
            Err(refusals) => {
                let (reason, message) = (refusals.reason(), refusals.to_string());
                plan.waiting.push(refusal(task, reason, message.clone()));
                refused.insert(likeness, (reason, message));
            }
        }
    }
    for (place, mut changes) in bound {
        let count = changes.len() as i64 / 2;
        if guard::stands(Guard::Reservation) {
            changes.insert(0, reserve(view, cluster, &nodes[place].name, count));
        }
        plan.groups.push(changes);
    }
    plan
}

fn created(object: &Object) -> (Timestamp, &str) {
    (object.meta().created.as_ref().map_or(Timestamp(0), Timestamp::from), object.name())
}

/// Tasks of the same likeness are refused for the same reasons.
fn likeness(spec: &TaskSpec) -> String {
    format!("{:?} {:?} {}", spec.demand, spec.placement_constraints, spec.group)
}

fn refusal(task: &task::View<'_>, reason: &'static str, message: String) -> Waiting {
    // Of a service's task the service tells it, once for all of them.
    Waiting { about: task.key(), reason, message, quiet: !task.spec.service.is_empty() }
}

/// The only instance that a task may be on, or why it does not take it.
fn on_its_target(nodes: &[Node], task: &task::View<'_>) -> Result<usize, Refusals> {
    let none = Demand::default();
    let demand = task.spec.demand.as_ref().unwrap_or(&none);
    let mut refusals = Refusals::new(demand);
    let target = &task.spec.target_instance;
    // They are in order of their names.
    let Ok(place) = nodes.binary_search_by(|node| node.name.cmp(target)) else {
        refusals.add(target, Reason::Gone);
        return Err(refusals);
    };
    match nodes[place].refuses(task.spec, demand, &placement::queries(&task.spec.placement_constraints)) {
        None => Ok(place),
        Some(reason) => {
            refusals.add(target, reason);
            Err(refusals)
        }
    }
}

/// The best instance for a task, or why there is none.
fn best(nodes: &[Node], task: &task::View<'_>) -> Result<usize, Refusals> {
    let none = Demand::default();
    let demand = task.spec.demand.as_ref().unwrap_or(&none);
    let mut refusals = Refusals::new(demand);
    let chain: Vec<Strategy> = task.spec.placement_strategy.iter().filter_map(|s| Strategy::parse(s).ok()).collect();
    let queries = placement::queries(&task.spec.placement_constraints);
    let fits = nodes.iter().enumerate().filter(|(_, node)| match node.refuses(task.spec, demand, &queries) {
        None => true,
        Some(reason) => {
            refusals.add(&node.name, reason);
            false
        }
    });
    let candidates: Vec<usize> = fits.map(|(place, _)| place).collect();
    let crowds = score::Crowds::of(nodes, &candidates, &task.spec.group, &chain);
    let score = |place: &usize| score::Score::of(&nodes[*place], task, &chain, &crowds);
    candidates.iter().min_by_key(|place| score(place)).copied().ok_or(refusals)
}

/// Writes the place, and that the task now waits for its agent.
fn bind(task: &task::View<'_>, instance: &str) -> [Change; 2] {
    let spec = TaskSpec { container_instance: instance.to_owned(), ..task.spec.clone() };
    let mut status = task.status.clone();
    status.set_last_status(Status::Pending);
    status.conditions.clear();
    let mut object = task.object.clone();
    object.kind = Some(object::Kind::Task(Task { spec: Some(spec), status: Some(status) }));
    let expect = task.revision();
    [
        Change::PutSpec { object: object.clone(), fields: &["containerInstance"], expect },
        Change::PutStatus { object, expect },
    ]
}

/// Compares and writes the instance's reservation.
fn reserve(view: &View, cluster: &str, instance: &str, count: i64) -> Change {
    let key = Key::new(Kind::Reservation, cluster, instance);
    let known = view.get(&key);
    let bound = known.and_then(|o| o.as_reservation()?.spec.as_ref()).map_or(0, |s| s.bound) + count;
    let spec = ReservationSpec { scheduler: "steady".into(), bound };
    match known {
        Some(known) => {
            let mut object = Object::clone(known);
            object.kind = Some(object::Kind::Reservation(Reservation { spec: Some(spec) }));
            Change::PutSpec { expect: Revision(object.meta().revision), object, fields: &[] }
        }
        None => Change::Create(Object::new(cluster, instance, Reservation { spec: Some(spec) })),
    }
}

#[cfg(test)]
mod tests;
