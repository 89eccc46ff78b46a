//! The scheduler: finds an instance for each waiting task. Placement, and nothing else.
//!
//! One round places waiting tasks of one cluster on a working copy of its instances: filters give a reason each,
//! strategies an order, the best instance takes the task. What is bound to one instance is one change, which the API
//! server makes only as long as the instance has room; where the choice depends on which tasks are there, only if nothing was
//! bound there meanwhile. A task that fits nowhere is told why.

mod class;
mod explain;
mod fleet;
mod index;
mod need;
mod node;
mod refusal;
mod room;
mod schedulable;
mod seats;

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;
use std::time::Duration;

use steady_core::condition::{self, Told};
use steady_core::guard::{self, Guard};
use steady_core::v1::stop_code::Value as StopCode;
use steady_core::{Bind, Change, Key, Kind, Plan, Revision, SmolStr, Timestamp, View, Waiting, task};

use refusal::{Reason, Refusals};
use room::Room;
use seats::Seats;

pub use explain::{Candidate, Explanation, explain};
pub use fleet::Fleet;
pub(crate) use need::{Sample, needed, room_for};
pub use schedulable::{Schedulable, schedulable};
pub use seats::LEASE;

/// Name of this scheduler, as `schedulerName` and Reservations write it.
pub const NAME: &str = "steady";

/// Most tasks that one round binds to one instance: with its reservation they fit one commit.
const MAX_PER_NODE: usize = 40;
/// Most tasks that one round places.
const MAX_ROUND: usize = 4000;
/// Most tasks of a class that one round tells that there is no place for them.
const MAX_TOLD: usize = 5000;
/// The controller that tells it, and the conditions' source.
const CONTROLLER: &str = "scheduler";
/// How long another scheduler has before its tasks are told that they wait for it.
const FOREIGN: Duration = Duration::from_secs(10);

/// One round of placement in the cluster that the key names, by the only scheduler.
pub fn plan(view: &View, key: &Key, now: Timestamp) -> Plan {
    Fleet::default().plan(view, key, now, "")
}

impl Fleet {
    /// One round of placement in the cluster that the key names, by the scheduler that `holder` is. It is as if the fleet
    /// had never been used before.
    pub fn plan(&mut self, view: &View, key: &Key, now: Timestamp, holder: &str) -> Plan {
        let seats = Seats::of(view, holder);
        if self.preference != seats.preference() {
            *self = Fleet::preferring(seats.preference());
        }
        self.follow(view, &key.name);
        if self.is_idle() {
            return Plan::default();
        }
        let mut round = Round {
            view,
            fleet: self,
            cluster: &key.name,
            now,
            seats,
            plan: Plan::default(),
            bound: BTreeMap::new(),
            placed: 0,
            room: Room::default(),
        };
        round.place_targeted(false);
        round.place_classes();
        round.place_targeted(true);
        round.leave();
        round.end()
    }
}

/// What a round binds to one instance.
#[derive(Default)]
struct Bound {
    /// Names, and the revision of each.
    tasks: Vec<(SmolStr, Revision)>,
    /// It was decided on which tasks are there, not on their room alone.
    strict: bool,
}

/// A round that is under way.
struct Round<'a> {
    view: &'a View,
    fleet: &'a mut Fleet,
    cluster: &'a str,
    now: Timestamp,
    seats: Seats,
    plan: Plan,
    bound: BTreeMap<Arc<str>, Bound>,
    placed: usize,
    room: Room,
}

impl Round<'_> {
    /// Places tasks that can be on one instance only: those of DAEMON services, or those that move.
    fn place_targeted(&mut self, moves: bool) {
        let of_kind = self.fleet.targeted.iter().filter(|(moving, ..)| *moving == moves);
        let tasks: Vec<(Timestamp, SmolStr)> = of_kind.map(|(_, since, name)| (*since, name.clone())).collect();
        for (since, name) in tasks {
            let view = self.view;
            let Some(task) = view.get(&self.key(&name)).and_then(|object| task::of(object)) else { continue };
            let target = &task.spec.target_instance;
            if self.placed >= MAX_ROUND || !self.is_turn(self.seats.turn(target), since) {
                continue;
            }
            let number = self.fleet.class(task.spec);
            let class = &self.fleet.classes[number];
            let place = self.fleet.node(target);
            let reason = match place.map(|at| &self.fleet.nodes[at]) {
                None => Some(Reason::Gone),
                // What is kept for one that has waited is not for one that moves.
                Some(node) if moves => class.refused(usize::MAX, node, &self.fleet.groups),
                Some(node) => class.refused_by_all(node, &self.fleet.groups),
            };
            match (place, reason) {
                (Some(at), None) => {
                    self.bind(at, &task, number);
                }
                (_, reason) => {
                    let mut refusals = Refusals::new(&class.demand);
                    refusals.add(target, &reason.unwrap_or(Reason::Gone));
                    self.tell(&task, refusals.reason(), &refusals.to_string());
                }
            }
        }
    }

    /// Places all others: by priority, and then by age.
    fn place_classes(&mut self) {
        let mut heads = self.fleet.heads();
        let view = self.view;
        let lowest = heads.last().map_or(0, |(priority, ..)| -priority);
        while let Some((priority, created, name, number)) = heads.pop_first() {
            if self.placed >= MAX_ROUND {
                break;
            }
            let is_turn = self.is_turn(self.seats.turn(&self.fleet.classes[number].group_name), created);
            let Some(at) = self.fleet.best(number) else {
                self.refuse(number, (created, name), is_turn);
                continue;
            };
            if !is_turn {
                self.leave_room(number, created, lowest);
                continue;
            }
            if let Some(task) = view.get(&self.key(&name)).and_then(|object| task::of(object))
                && !self.bind(at, &task, number)
            {
                // The rest of the round would be decided on a choice that was not made.
                break;
            }
            let later = (Excluded((created, name)), Unbounded);
            if let Some((created, name)) = self.fleet.classes[number].waiting.range(later).next().cloned() {
                heads.insert((priority, created, name, number));
            }
        }
    }

    /// Tells tasks that name another scheduler that they wait for it, once they have for a while.
    fn leave(&mut self) {
        let view = self.view;
        let tasks: Vec<(Timestamp, SmolStr)> = self.fleet.foreign.iter().cloned().collect();
        for (created, name) in tasks {
            let due = created + FOREIGN;
            let Some(task) = view.get(&self.key(&name)).and_then(|object| task::of(object)) else { continue };
            if due > self.now {
                self.plan.wake(due);
                break;
            }
            let scheduler = &task.spec.scheduler_name;
            if self.is_turn(self.seats.turn(scheduler), created) {
                self.tell(
                    &task,
                    "SCHEDULER",
                    &format!("waits for the scheduler `{scheduler}`: schedulerName names it"),
                );
            }
        }
    }

    /// Binds a task of a class to a node; false when the node has had enough of this round.
    fn bind(&mut self, at: usize, task: &task::View<'_>, number: usize) -> bool {
        let class = &self.fleet.classes[number];
        let bound = self.bound.entry(Arc::clone(&self.fleet.nodes[at].name)).or_default();
        if bound.tasks.len() >= MAX_PER_NODE {
            return false;
        }
        bound.tasks.push((SmolStr::new(task.object.name()), task.revision()));
        // Of what is kept for tasks of DAEMON services the API server does not know.
        bound.strict |= class.heeds_tasks() || self.fleet.nodes[at].kept != (0, 0);
        self.placed += 1;
        if guard::stands(Guard::RoundCounts) {
            self.fleet.take(at, task, class.group);
        }
        true
    }

    /// Whether it is this scheduler's turn to place tasks that wait since then; if not, looks again when it is.
    fn is_turn(&mut self, turn: usize, since: Timestamp) -> bool {
        let until = self.seats.until(turn, self.now.since(since));
        if let Some(until) = until {
            self.plan.wake(self.now + until);
        }
        until.is_none()
    }

    /// Another scheduler places these just now: tasks of a lower priority do not get their room, and nobody that of the
    /// first when it has waited for long.
    fn leave_room(&mut self, number: usize, oldest: Timestamp, lowest: i32) {
        let long = self.now.since(oldest) >= room::LONG;
        let count = if self.fleet.classes[number].priority > lowest { MAX_ROUND } else { usize::from(long) };
        let view = self.view;
        let waiting = self.fleet.classes[number].waiting.range((oldest, SmolStr::default())..);
        let names: Vec<SmolStr> = waiting.take(count).map(|(_, name)| name.clone()).collect();
        for name in names {
            let task = view.get(&self.key(&name)).and_then(|object| task::of(object));
            let (Some(task), Some(at)) = (task, self.fleet.best(number)) else { break };
            self.fleet.take(at, &task, self.fleet.classes[number].group);
        }
    }

    /// Tells the tasks of a class, from the oldest that is left on, that no instance takes them, and sees to their finding
    /// room.
    fn refuse(&mut self, number: usize, oldest: (Timestamp, SmolStr), own: bool) {
        let refusals = self.fleet.refusals(number);
        if refusals.is_for_room()
            && let Some(again) = self.room.keep(self.fleet, number, oldest.0, self.now)
        {
            self.plan.wake(again);
        }
        if !own {
            return;
        }
        let waiting = self.fleet.classes[number].waiting.range(oldest..);
        let left: Vec<SmolStr> = waiting.take(MAX_TOLD).map(|(_, name)| name.clone()).collect();
        if refusals.is_for_room() {
            self.preempt(number, &left);
        }
        let (reason, message) = (refusals.reason(), refusals.to_string());
        let view = self.view;
        for name in &left {
            if let Some(task) = view.get(&self.key(name)).and_then(|object| task::of(object)) {
                self.tell(&task, reason, &message);
            }
        }
    }

    /// Has tasks stop to make room for these tasks of a class.
    fn preempt(&mut self, number: usize, waiting: &[SmolStr]) {
        let view = self.view;
        let made = self.room.make(self.fleet, number, waiting.len(), self.now);
        if let Some(again) = made.again {
            self.plan.wake(again);
        }
        let class = &self.fleet.classes[number];
        for (which, _, victims) in made.victims {
            let winner = self.key(&waiting[which]);
            let mut stops = Vec::new();
            for name in &victims {
                let victim = view.get(&self.key(name)).and_then(|object| task::of(object));
                let may_go = |t: &task::View<'_>| t.spec.preemptible && t.spec.priority < class.priority;
                let Some(victim) = victim.filter(may_go) else { continue };
                let reason = format!(
                    "Task preempted: {} of priority {} needs its room (its own priority is {})",
                    class.group_name, class.priority, victim.spec.priority
                );
                let object = victim.stopped(StopCode::SpotInterruption, &reason, self.now);
                stops.push(Change::PutStatus { object, expect: victim.revision() });
            }
            // Nobody is stopped for one that was placed meanwhile. More than a commit takes go bit by bit.
            for stops in stops.chunks(MAX_PER_NODE) {
                let check = Change::Check { expect: view.revision_of(&winner), key: winner.clone() };
                self.plan.groups.push(std::iter::once(check).chain(stops.iter().cloned()).collect());
            }
        }
    }

    fn tell(&mut self, task: &task::View<'_>, reason: &'static str, message: &str) {
        match condition::told(&task.status.conditions, CONTROLLER, reason, message, self.now) {
            Told::Yes => {}
            Told::Recently(until) => self.plan.wake(until),
            Told::No => {
                // Of a service's task the service tells it, once for all of them.
                let quiet = !task.spec.service.is_empty();
                self.plan.waiting.push(Waiting { about: task.key(), reason, message: message.to_owned(), quiet });
            }
        }
    }

    fn key(&self, task: &str) -> Key {
        Key::new(Kind::Task, self.cluster, task)
    }

    /// The plan: one group for each instance.
    fn end(self) -> Plan {
        let Round { view, cluster, mut plan, bound, .. } = self;
        for (name, Bound { tasks, strict }) in bound {
            let instance = Key::new(Kind::ContainerInstance, cluster, &name);
            let reservation = Key::new(Kind::Reservation, cluster, &instance.name);
            // What matters of the room alone is looked at when it is committed.
            let reservation = strict.then(|| view.revision_of(&reservation));
            plan.push(Change::Bind(Bind { instance, reservation, scheduler: NAME.to_owned(), tasks }));
        }
        plan
    }
}

#[cfg(test)]
mod fleet_tests;
#[cfg(test)]
mod room_tests;
#[cfg(test)]
mod tests;
