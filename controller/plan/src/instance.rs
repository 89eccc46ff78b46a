//! Container instances: whether their agents are there, and what becomes of the tasks of one that is gone.
//!
//! Silence is not death. An instance whose lease is gone takes no more tasks; only after a minute are its tasks given
//! up and replaced. And when most instances fall silent together, none is given up: then the control plane, or the
//! network around it, is the likelier fault.

use std::time::Duration;

use steady_core::guard::{self, Guard};
use steady_core::v1::stop_code::Value as StopCode;
use steady_core::v1::{ContainerInstance, ContainerInstanceStatus, Object, object, severity};
use steady_core::{Change, Event, Key, Kind, Plan, Revision, Timestamp, View, Waiting, instance_lease, task};

/// How often a silent instance is looked at before its tasks are given up, and how far apart: a minute.
const LOOKS: i32 = 6;
const LOOK: Duration = Duration::from_secs(10);
/// Silent instances, in percent, from which on nothing is given up; of at least this many instances.
const MASS_SILENCE: (usize, usize) = (55, 3);
/// Most tasks that one commit gives up.
const MAX_GIVEN_UP: usize = 40;

/// What to do about one instance.
pub fn plan(view: &View, key: &Key, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(object) = view.get(key) else { return plan };
    let Some(instance) = object.as_container_instance() else { return plan };
    let known = instance.status.clone().unwrap_or_default();
    let mut status = known.clone();
    if is_connected(view, key) {
        if !status.agent_connected {
            status.agent_connected = true;
            status.connected_at = Some(now.into());
            status.disconnected_at = None;
            status.silent_looks = 0;
            status.looked_at = None;
            status.lost &= !guard::stands(Guard::Returned);
            plan.events.push(event(object, "AGENT_CONNECTED", "the agent is connected.", severity::Value::Info));
        }
    } else {
        silent(view, object, &mut status, now, &mut plan);
    }
    if status != known || instance.status.is_none() {
        plan.groups.insert(0, vec![put(object, instance, status)]);
    }
    plan
}

fn is_connected(view: &View, key: &Key) -> bool {
    let lease = Key::new(Kind::Lease, "", &instance_lease(&key.cluster, &key.name));
    view.get(&lease).is_some()
}

fn silent(view: &View, object: &Object, status: &mut ContainerInstanceStatus, now: Timestamp, plan: &mut Plan) {
    if status.agent_connected || status.disconnected_at.is_none() {
        if status.agent_connected {
            plan.events.push(event(object, "AGENT_DISCONNECTED", "the agent is silent.", severity::Value::Warn));
        }
        status.agent_connected = false;
        status.disconnected_at = Some(now.into());
    }
    if status.lost && view.on_instance(object.cluster(), object.name()).next().is_none() {
        return;
    }
    let looked_at = status.looked_at.as_ref().map(Timestamp::from);
    // Counted, not measured: a clock that is set, or another controller's, is wrong about one look and no more.
    let due = looked_at.filter(|at| *at <= now).map_or(now, |at| at + LOOK);
    if now < due {
        plan.wake(due);
        return;
    }
    plan.wake(now + LOOK);
    let looks = if guard::stands(Guard::Patience) { LOOKS } else { 1 };
    if let Some(message) = mass_silence(view, object.cluster()).filter(|_| guard::stands(Guard::MassSilence)) {
        plan.waiting.push(Waiting { about: Key::of(object), reason: "MASS_SILENCE", message, quiet: false });
        return;
    }
    if status.silent_looks < looks {
        // The first look begins the count; one that a clock set back has put into the future begins it anew.
        status.silent_looks += i32::from(looked_at.is_some_and(|at| at <= now));
        status.looked_at = Some(now.into());
    }
    if status.silent_looks >= looks {
        give_up(view, object, status, now, plan);
    }
}

/// Why nothing is given up, if so many are silent that it is not to be believed.
fn mass_silence(view: &View, cluster: &str) -> Option<String> {
    let (mut all, mut silent) = (0, 0);
    for object in view.in_cluster(Kind::ContainerInstance, cluster) {
        let lost = object.as_container_instance().and_then(|i| i.status.as_ref()).is_some_and(|s| s.lost);
        if lost {
            continue;
        }
        all += 1;
        silent += usize::from(!is_connected(view, &Key::of(object)));
    }
    let most = all >= MASS_SILENCE.1 && silent * 100 >= all * MASS_SILENCE.0;
    (most || silent == all).then(|| {
        format!("{silent} of {all} instances are silent: their tasks are left as they are until some of them are back")
    })
}

fn give_up(view: &View, object: &Object, status: &mut ContainerInstanceStatus, now: Timestamp, plan: &mut Plan) {
    let name = object.name();
    let reason = format!("Container instance {name} has not been heard of for {} s", LOOK.as_secs() * LOOKS as u64);
    let mut count = 0;
    let mut changes = Vec::new();
    for found in view.on_instance(object.cluster(), name).filter_map(|t| task::of(t)) {
        let object = found.given_up(StopCode::InfrastructureHealth, &reason, now);
        changes.push(Change::PutStatus { object, expect: found.revision() });
        count += 1;
    }
    // Each commit says so only as long as the instance is silent: it may come back at this very moment.
    let lease = Key::new(Kind::Lease, "", &instance_lease(object.cluster(), name));
    for part in changes.chunks(MAX_GIVEN_UP) {
        let mut group = part.to_vec();
        if guard::stands(Guard::StillSilent) {
            group.push(Change::Check { key: lease.clone(), expect: Revision(0) });
        }
        plan.groups.push(group);
    }
    if !status.lost {
        status.lost = true;
        let message = format!("{reason}; its {count} tasks are given up and replaced.");
        plan.events.push(event(object, "INSTANCE_LOST", &message, severity::Value::Error));
    }
}

fn event(object: &Object, reason: &'static str, message: &str, severity: severity::Value) -> Event {
    let message = format!("(container-instance {}) {message}", object.name());
    Event { about: object.reference(), reason, message, severity }
}

fn put(object: &Object, instance: &ContainerInstance, status: ContainerInstanceStatus) -> Change {
    let changed = ContainerInstance { spec: instance.spec.clone(), status: Some(status) };
    Change::PutStatus {
        object: Object { meta: object.meta.clone(), kind: Some(object::Kind::ContainerInstance(changed)) },
        expect: Revision(object.meta().revision),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builders::World;
    use steady_core::v1::task_last_status::Value as Status;

    fn key(name: &str) -> Key {
        Key::new(Kind::ContainerInstance, "default", name)
    }

    fn status(world: &World, name: &str) -> ContainerInstanceStatus {
        let object = world.view.get(&key(name)).expect("an instance");
        object.as_container_instance().and_then(|i| i.status.clone()).expect("a status")
    }

    /// Instances, of which `silent` have no lease; each planned at these seconds.
    fn after(all: usize, silent: usize, seconds: impl IntoIterator<Item = i64>) -> World {
        let mut world = World::new();
        for i in 0..all {
            world.instance(&format!("node-{i}"), 1024, 1024);
            world.lease(&instance_lease("default", &format!("node-{i}")));
        }
        world.task_on("node-0", "t", |status| status.set_last_status(Status::Running));
        for i in 0..silent {
            world.drop_lease(&instance_lease("default", &format!("node-{i}")));
        }
        for second in seconds {
            for i in 0..all {
                world.settle(|view| plan(view, &key(&format!("node-{i}")), Timestamp(second * 1000)));
            }
        }
        world
    }

    #[test]
    fn a_silent_instance_takes_no_tasks_but_keeps_those_it_has_for_a_minute() {
        let world = after(3, 1, (100..160).step_by(10));
        assert!(!status(&world, "node-0").agent_connected);
        assert!(status(&world, "node-1").agent_connected);
        assert_eq!(world.task_status("t").last_status(), Status::Running);
    }

    #[test]
    fn after_a_minute_its_tasks_are_given_up() {
        let world = after(3, 1, (100..=160).step_by(10));
        assert!(status(&world, "node-0").lost);
        let task = world.task_status("t");
        assert_eq!((task.last_status(), task.stop_code()), (Status::Stopped, StopCode::InfrastructureHealth));
    }

    #[test]
    fn a_clock_that_is_set_hastens_it_by_one_look_and_no_more() {
        let world = after(3, 1, (100..140).step_by(10).chain((1_000_000..1_000_020).step_by(10)));
        assert!(!status(&world, "node-0").lost);
        let world = after(3, 1, (1_000_000..1_000_030).step_by(10).chain((100..=130).step_by(10)));
        assert!(!status(&world, "node-0").lost, "set back: counted on from there");
    }

    #[test]
    fn when_most_or_all_are_silent_nothing_is_given_up() {
        for (all, silent) in [(1, 1), (3, 2), (2, 2), (20, 11)] {
            let world = after(all, silent, (100..500).step_by(10));
            assert_eq!(world.task_status("t").last_status(), Status::Running, "{silent} of {all}");
        }
        let world = after(20, 10, (100..500).step_by(10));
        assert_eq!(world.task_status("t").last_status(), Status::Stopped);
    }

    #[test]
    fn an_instance_that_is_back_is_connected_again() {
        let mut world = after(3, 1, (100..=160).step_by(10));
        world.lease(&instance_lease("default", "node-0"));
        world.settle(|view| plan(view, &key("node-0"), Timestamp(200_000)));
        let status = status(&world, "node-0");
        assert!(status.agent_connected && !status.lost && status.disconnected_at.is_none());
    }
}
