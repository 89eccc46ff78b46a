//! Re-balancing: a service at steady state moves tasks to zones and instances that have fewer of them (ECS availability
//! zone rebalancing; here over instances as well).
//!
//! A move is a task more that names the one whose place it takes and the only instance it may be placed on. It does not
//! count for its deployment until it is healthy; then the other one goes. Each move makes the numbers more even by at
//! least one, so moves end by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use steady_core::placement::{Strategy, ZONE};
use steady_core::resources::Free;
use steady_core::v1::placement_constraint_type::Value as Constraint;
use steady_core::v1::rollout_state::Value as Rollout;
use steady_core::v1::{Demand, InstanceResources, Object};
use steady_core::{Key, Kind, Timestamp, service, task};

use super::Known;
use crate::daemon;
use crate::site::{self, Needs, Site};

/// A task that takes another one's place and does not run after so long is given up; one that runs and is not healthy, after
/// the longer time.
const PATIENCE: Duration = Duration::from_secs(60);
const PATIENCE_RUNNING: Duration = Duration::from_secs(900);
/// After a move that was given up or failed, none is tried for so long.
const PAUSE: Duration = Duration::from_secs(600);
/// Where numbers are uneven and nothing can be moved, whether it can is looked at again after so long.
const RETRY: Duration = Duration::from_secs(60);
/// One task in so many moves at once, and always one.
const SHARE: i32 = 20;

/// A task that is to run somewhere else.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Move<'a> {
    pub(super) task: &'a str,
    pub(super) instance: &'a str,
}

/// An instance that takes tasks.
struct Node<'a> {
    object: &'a Object,
    zone: &'a str,
    /// Tasks of the service on it.
    count: i32,
}

/// What numbers are evened out over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Zones,
    Instances,
    ZonesThenInstances,
}

/// What to move, and when to look again if it cannot be moved now.
pub(super) fn moves<'a>(known: &Known<'a>, demand: &Demand) -> (Vec<Move<'a>>, Option<Timestamp>) {
    let Some(over) = over(known).filter(|_| known.desired > 1 && is_steady(known)) else { return (Vec::new(), None) };
    if let Some(failed) = last_failure(known).filter(|at| known.now.since(*at) < PAUSE) {
        return (Vec::new(), Some(failed + PAUSE));
    }
    let mut by_instance: BTreeMap<&str, i32> = BTreeMap::new();
    for task in known.tasks.iter().filter(|t| t.is_live()) {
        *by_instance.entry(task.spec.container_instance.as_str()).or_default() += 1;
    }
    let mut nodes: Vec<Node<'a>> = known
        .view
        .in_cluster(Kind::ContainerInstance, known.object.cluster())
        .filter(|object| takes_tasks(object) || by_instance.contains_key(object.name()))
        .map(|object| Node {
            object,
            zone: site::zone(object),
            count: by_instance.get(object.name()).copied().unwrap_or(0),
        })
        .collect();
    let most = (service::bounds(known.spec, known.desired).ceiling - known.live()).min((known.desired / SHARE).max(1));
    let (mut moves, mut taken): (Vec<Move<'a>>, BTreeMap<&str, i32>) = (Vec::new(), BTreeMap::new());
    while (moves.len() as i32) < most {
        let Some((from, to)) = next(known, demand, &nodes, over, &taken) else { break };
        let leaves = |t: &&task::View<'_>| {
            t.spec.container_instance == nodes[from].object.name()
                && !t.is_protected(known.now)
                && moves.iter().all(|m| m.task != t.object.name())
        };
        let Some(task) = known.tasks.iter().filter(|t| t.is_healthy()).filter(leaves).max_by_key(|t| t.spec.attempt)
        else {
            break;
        };
        let instance = nodes[to].object.name();
        moves.push(Move { task: task.object.name(), instance });
        *taken.entry(instance).or_default() += 1;
        nodes[from].count -= 1;
        nodes[to].count += 1;
    }
    let again = (moves.is_empty() && uneven(&nodes, over).is_some()).then(|| known.now + RETRY);
    (moves, again)
}

/// What its placement strategy has it spread over; `None` where it does not.
fn over(known: &Known<'_>) -> Option<Over> {
    // Between capacity providers it is their weights that count.
    let one_pool = known.spec.capacity_provider_strategy.len() <= 1;
    if !service::rebalances(known.spec) || !one_pool || known.is_daemon() || service::is_external(known.spec) {
        return None;
    }
    let chain: Vec<Strategy> = known.spec.placement_strategy.iter().filter_map(|s| Strategy::parse(s).ok()).collect();
    match chain.as_slice() {
        [] => Some(Over::ZonesThenInstances),
        [Strategy::SpreadAttribute(zone), Strategy::SpreadInstance, ..] if zone == ZONE => {
            Some(Over::ZonesThenInstances)
        }
        [Strategy::SpreadAttribute(zone), ..] if zone == ZONE => Some(Over::Zones),
        [Strategy::SpreadInstance, ..] => Some(Over::Instances),
        _ => None,
    }
}

/// One deployment, complete, with all its tasks healthy, none of which is on its way anywhere.
fn is_steady(known: &Known<'_>) -> bool {
    known.status.steady
        && known.draining.is_empty()
        && known
            .deployments
            .last()
            .is_some_and(|d| d.status.rollout_state() == Rollout::Completed && d.spec.target_count == known.desired)
        && known.live() == known.desired
        && known.tasks.iter().filter(|t| t.is_live()).all(|t| known.is_sure(t))
}

/// When the newest task that was to take another one's place stopped without having done so.
fn last_failure(known: &Known<'_>) -> Option<Timestamp> {
    let failed = |t: &&task::View<'_>| {
        !t.spec.replaces.is_empty() && !t.is_live() && (is_wanted(known, &t.spec.replaces) || t.started_at().is_none())
    };
    known.tasks.iter().filter(failed).filter_map(task::View::stopped_at).max()
}

fn is_wanted(known: &Known<'_>, name: &str) -> bool {
    let key = Key::new(Kind::Task, known.object.cluster(), name);
    known.view.get(&key).and_then(|task| task::of(task)).is_some_and(|task| task.is_wanted())
}

fn takes_tasks(object: &Object) -> bool {
    let status = object.as_container_instance().and_then(|instance| instance.status.as_ref());
    site::is_active(object) && status.is_some_and(|status| status.agent_connected)
}

/// Zones with their numbers of tasks.
fn zones<'a>(nodes: &[Node<'a>]) -> BTreeMap<&'a str, i32> {
    let mut zones: BTreeMap<&str, i32> = BTreeMap::new();
    for node in nodes {
        *zones.entry(node.zone).or_default() += node.count;
    }
    zones
}

/// What is uneven: two zones, or two instances, one of which has at least two tasks more than the other.
fn uneven(nodes: &[Node<'_>], over: Over) -> Option<()> {
    let apart = |counts: &mut dyn Iterator<Item = i32>| {
        let counts: Vec<i32> = counts.collect();
        counts.iter().max().zip(counts.iter().min()).is_some_and(|(most, least)| most - least >= 2)
    };
    let zones = zones(nodes);
    let over_zones = over != Over::Instances && apart(&mut zones.values().copied());
    let over_instances = match over {
        Over::Zones => false,
        Over::Instances => apart(&mut nodes.iter().map(|n| n.count)),
        Over::ZonesThenInstances => {
            zones.keys().any(|zone| apart(&mut nodes.iter().filter(|n| n.zone == *zone).map(|n| n.count)))
        }
    };
    (over_zones || over_instances).then_some(())
}

/// The next move: from where to where.
fn next(
    known: &Known<'_>,
    demand: &Demand,
    nodes: &[Node<'_>],
    over: Over,
    taken: &BTreeMap<&str, i32>,
) -> Option<(usize, usize)> {
    uneven(nodes, over)?;
    let daemons = daemon::services(known.view, known.object.cluster());
    let needs = Needs::of(known.view, known.spec);
    let fits = |node: &Node<'_>| {
        let coming = taken.get(node.object.name()).copied().unwrap_or(0);
        Site::new(known.view, node.object).satisfies(&needs) && has_room(known, demand, &daemons, node, coming)
    };
    let fullest = |zone: Option<&str>| {
        let within = nodes.iter().enumerate().filter(|(_, n)| zone.is_none_or(|zone| n.zone == zone) && n.count > 0);
        within.max_by_key(|(_, n)| n.count).map(|(place, n)| (place, n.count))
    };
    // Those with fewest tasks first: where the first one has no room the next one may.
    let emptiest = |zone: Option<&str>, below: i32| {
        let mut within: Vec<usize> = (0..nodes.len())
            .filter(|place| zone.is_none_or(|zone| nodes[*place].zone == zone) && nodes[*place].count <= below)
            .collect();
        within.sort_by_key(|place| nodes[*place].count);
        within.into_iter().find(|place| fits(&nodes[*place]))
    };
    if over != Over::Instances {
        let mut zones: Vec<(&str, i32)> = zones(nodes).into_iter().collect();
        zones.sort_by_key(|(_, count)| *count);
        let (most, count) = *zones.last()?;
        for (least, _) in zones.iter().filter(|(_, least)| count - least >= 2) {
            if let (Some((from, _)), Some(to)) = (fullest(Some(most)), emptiest(Some(least), i32::MAX)) {
                return Some((from, to));
            }
        }
        if over == Over::Zones {
            return None;
        }
        return zones.iter().find_map(|(zone, _)| {
            let (from, count) = fullest(Some(zone))?;
            Some((from, emptiest(Some(zone), count - 2)?))
        });
    }
    let (from, count) = fullest(None)?;
    Some((from, emptiest(None, count - 2)?))
}

/// Whether an instance takes a task more of this service, with so many that are on their way to it.
fn has_room(known: &Known<'_>, demand: &Demand, daemons: &[(String, Demand)], node: &Node<'_>, coming: i32) -> bool {
    let distinct = known.spec.placement_constraints.iter().any(|c| c.r#type() == Constraint::DistinctInstance);
    if !takes_tasks(node.object) || (distinct && node.count > 0) {
        return false;
    }
    let registered = node.object.as_container_instance().and_then(|i| i.spec.as_ref()?.registered_resources.as_ref());
    let mut free = Free::of(registered.unwrap_or(&InstanceResources::default()));
    let mut groups = BTreeSet::new();
    for on in known.view.on_instance(node.object.cluster(), node.object.name()).filter_map(|t| task::of(t)) {
        free.take(on.spec.demand.as_ref().unwrap_or(&Demand::default()));
        groups.insert(on.spec.group.as_str());
    }
    for (_, demand) in daemons.iter().filter(|(group, _)| !groups.contains(group.as_str())) {
        free.take(demand);
    }
    (0..coming).for_each(|_| free.take(demand));
    free.short_of(demand, (0, 0)).is_none()
}

/// Whether a task is on its way to take the place of another one that is still wanted, and not healthy yet.
pub(super) fn is_extra(known: &Known<'_>, task: &task::View<'_>) -> bool {
    !task.spec.replaces.is_empty() && is_wanted(known, &task.spec.replaces)
}

/// Whether its patience is over: it was bound to one instance, and does not run there.
pub(super) fn is_stuck(known: &Known<'_>, task: &task::View<'_>) -> bool {
    gives_up_at(known, task).is_some_and(|at| at <= known.now)
}

/// When a task that is to run on one instance, of a service that runs anywhere, is given up.
pub(super) fn gives_up_at(known: &Known<'_>, task: &task::View<'_>) -> Option<Timestamp> {
    let bound = !task.spec.target_instance.is_empty() && !known.is_daemon() && task.is_wanted();
    let late = if is_extra(known, task) { !task.is_healthy() } else { task.wants_place() };
    let patience = if task.is_running() { PATIENCE_RUNNING } else { PATIENCE };
    (bound && late).then(|| task.created() + patience)
}
