//! What is done for a task that fits nowhere though instances are only too full: a place is kept for it, or made.
//!
//! *Kept*: when a task has waited for a minute, the instance that comes nearest to having room for it takes nothing more of
//! the same or a lower priority until it is placed: what ends there is not filled up by smaller tasks that came later. The
//! room that is missing never grows meanwhile, so that no task is overtaken for ever. Where services' tasks stand in the
//! way, which do not end by themselves, a place is kept for five minutes of every ten: a hopeless wish must not stop
//! deployments for good. At most one instance in ten is kept at a time, and for those never the only one that
//! they could be on.
//!
//! *Made*: a task of a higher priority has tasks stopped that are marked `preemptible`, on the instance where the least is
//! lost: the lowest priorities, then the fewest tasks. What is about to stop anyway is waited for first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use steady_core::Timestamp;
use steady_core::resources::Free;
use steady_core::v1::Demand;

use super::class::Class;
use super::fleet::Fleet;
use super::node::{Held, Node};

/// How long a task waits before a place is kept for it.
pub(super) const LONG: Duration = Duration::from_secs(60);
/// How long a place is kept that may never be free, and is then left to others.
const SPELL: Duration = Duration::from_secs(300);
/// Of so many instances one may be kept.
const ONE_IN: usize = 10;
/// Classes for which one round looks for a place to keep, and tasks for which it makes room, at most.
const MOST: usize = 50;

/// What one round keeps and makes.
#[derive(Debug, Default)]
pub(super) struct Room {
    held: usize,
    /// For how many it looked for a place to keep, and for how many it made room.
    looked: usize,
    made_for: usize,
    /// Tasks that this round has stopped.
    stopped: BTreeSet<String>,
    /// What they give back on each node, and what this round promised to others there.
    given_back: BTreeMap<usize, Vec<Demand>>,
    promised: BTreeMap<usize, Vec<Demand>>,
}

/// What makes room for the tasks of a class.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// For the how manieth of the tasks: the node, and the names of the tasks to be stopped there.
    pub(super) victims: Vec<(usize, usize, Vec<String>)>,
    /// When a task that would have helped is not spared any more.
    pub(super) again: Option<Timestamp>,
}

impl Room {
    /// Keeps a place for a class whose oldest task has waited since then, if that is long. When to look again.
    pub(super) fn keep(
        &mut self,
        fleet: &mut Fleet,
        number: usize,
        since: Timestamp,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let class = &fleet.classes[number];
        let due = since + LONG;
        if due > now {
            return Some(due);
        }
        if self.held >= (fleet.len() / ONE_IN).max(1) || self.looked >= MOST {
            return None;
        }
        self.looked += 1;
        let suits = |node: &&Node| {
            node.held.is_none() && class.misfit(node, &fleet.groups).is_none() && could(class, node, false)
        };
        let suited: Vec<&Node> = fleet.nodes.iter().filter(suits).collect();
        let nearest = |hopeful: bool| {
            let nodes = suited.iter().filter(|node| !hopeful || could(class, node, true));
            nodes.min_by_key(|node| (missing(class, node), &node.name)).map(|node| Arc::clone(&node.name))
        };
        let (mut found, mut again) = (nearest(true), None);
        if found.is_none() && suited.len() > 1 {
            let spell = SPELL.as_millis() as i64;
            let waited = now.0 - due.0;
            again = Some(Timestamp(due.0 + (waited / spell + 1) * spell));
            found = if waited / spell % 2 == 0 { nearest(false) } else { None };
        }
        if let Some(at) = found.and_then(|name| fleet.node(&name)) {
            fleet.hold(at, Held { class: number, priority: fleet.classes[number].priority });
            self.held += 1;
        }
        again
    }

    /// Which tasks are to be stopped so that so many tasks of a class find room. What is coming anyway is counted first.
    pub(super) fn make(&mut self, fleet: &Fleet, number: usize, count: usize, now: Timestamp) -> Made {
        let class = &fleet.classes[number];
        let mut made = Made::default();
        let suits = |node: &Node| class.misfit(node, &fleet.groups).is_none() && !class.is_held(number, node);
        let helps = |at: &usize| {
            let node = &fleet.nodes[*at];
            let lower = node.victims.first().is_some_and(|victim| victim.priority < class.priority);
            lower || !node.leaving.is_empty() || self.given_back.contains_key(at)
        };
        let suited: Vec<usize> = (0..fleet.nodes.len()).filter(helps).filter(|at| suits(&fleet.nodes[*at])).collect();
        for which in 0..count {
            if self.made_for >= MOST || suited.is_empty() {
                break;
            }
            let coming = suited.iter().filter(|at| {
                let stops = !fleet.nodes[**at].leaving.is_empty() || self.given_back.contains_key(*at);
                stops && class.fits(&self.future(fleet, **at), fleet.nodes[**at].kept)
            });
            if let Some(at) = coming.min_by_key(|at| &fleet.nodes[**at].name) {
                self.promised.entry(*at).or_default().push(class.demand.clone());
                self.made_for += 1;
                continue;
            }
            let offers = suited.iter().filter_map(|at| {
                let node = &fleet.nodes[*at];
                node.victims.first().filter(|victim| victim.priority < class.priority)?;
                let victims = self.victims(class, node, self.future(fleet, *at), now, &mut made.again)?;
                let worst = victims.iter().map(|victim| node.victims[*victim].priority).max()?;
                Some(((worst, victims.len(), &node.name), *at, victims))
            });
            let Some((_, at, victims)) = offers.min_by(|a, b| a.0.cmp(&b.0)) else { break };
            let victims = victims.into_iter().map(|victim| &fleet.nodes[at].victims[victim]);
            let mut names = Vec::new();
            for victim in victims {
                self.given_back.entry(at).or_default().push(victim.demand.clone());
                self.stopped.insert(victim.task.clone());
                names.push(victim.task.clone());
            }
            self.promised.entry(at).or_default().push(class.demand.clone());
            made.victims.push((which, at, names));
            self.made_for += 1;
        }
        made
    }

    /// What is free on a node once those that stop have stopped, and those that it was promised to have come.
    fn future(&self, fleet: &Fleet, at: usize) -> Free {
        let mut free = fleet.nodes[at].future();
        self.given_back.get(&at).into_iter().flatten().for_each(|demand| free.give_back(demand));
        self.promised.get(&at).into_iter().flatten().for_each(|demand| free.take(demand));
        free
    }

    /// The fewest of a node's pre-emptible tasks without which there is room.
    fn victims(
        &self,
        class: &Class,
        node: &Node,
        mut free: Free,
        now: Timestamp,
        again: &mut Option<Timestamp>,
    ) -> Option<Vec<usize>> {
        let mut chosen = Vec::new();
        let lower = node.victims.iter().enumerate().filter(|(_, victim)| victim.priority < class.priority);
        for (at, victim) in lower.filter(|(_, victim)| !self.stopped.contains(&victim.task)) {
            if class.fits(&free, node.kept) {
                break;
            }
            if let Some(until) = victim.protected_until.filter(|until| *until > now) {
                *again = Some(again.map_or(until, |again| again.min(until)));
                continue;
            }
            free.give_back(&victim.demand);
            chosen.push(at);
        }
        if chosen.is_empty() || !class.fits(&free, node.kept) {
            return None;
        }
        // Some of the first may not be needed any more now that later ones go: the highest priorities are spared first.
        for at in chosen.clone().into_iter().rev() {
            let mut without = free.clone();
            without.take(&node.victims[at].demand);
            if class.fits(&without, node.kept) {
                free = without;
                chosen.retain(|kept| *kept != at);
            }
        }
        Some(chosen)
    }
}

/// Whether an instance would have room if nothing were on it; hopefully: if nothing were on it that ends by itself.
fn could(class: &Class, node: &Node, hopeful: bool) -> bool {
    let has = &node.fixed.registered;
    let staying = || node.staying.iter().filter(|_| hopeful);
    let cpu = i64::from(has.cpu) - node.kept.0 - staying().map(|demand| i64::from(demand.cpu)).sum::<i64>();
    let memory = i64::from(has.memory) - node.kept.1 - staying().map(|demand| i64::from(demand.memory)).sum::<i64>();
    if cpu < i64::from(class.demand.cpu) || memory < i64::from(class.demand.memory) {
        return false;
    }
    if class.demand.named.is_empty() && class.demand.ports.is_empty() {
        return true;
    }
    let mut free = Free::of(has);
    staying().for_each(|demand| free.take(demand));
    class.fits(&free, node.kept)
}

/// How much of what it needs is missing on a node: a host port is worse than anything else, which is in thousandths of what
/// the node has, the scarcest counted.
fn missing(class: &Class, node: &Node) -> (bool, i64) {
    let short = |needs: i32, left: i64, of: i32| (i64::from(needs) - left).max(0) * 1000 / i64::from(of.max(1));
    let (demand, has) = (&class.demand, &node.fixed.registered);
    let named = demand.named.iter().map(|(name, needs)| {
        short(*needs, node.free.named.get(name).copied().unwrap_or(0), has.named.get(name).copied().unwrap_or(0))
    });
    let cpu = short(demand.cpu, node.free.cpu - node.kept.0, has.cpu);
    let memory = short(demand.memory, node.free.memory - node.kept.1, has.memory);
    (node.free.port_conflict(demand).is_some(), named.fold(cpu.max(memory), i64::max))
}
