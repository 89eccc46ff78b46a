//! The registrar: lets tasks that are to stop do so once their requests are over, and forgets what load balancers say that are gone.
//!
//! Tasks are registered with the write that makes them RUNNING, and drain from the one that has them stop (`steady_core::traffic`):
//! here is what takes time.

use std::collections::{BTreeMap, BTreeSet};

use steady_core::v1::target_state::Value as State;
use steady_core::v1::{Target, TaskStatus};
use steady_core::{Change, Key, Kind, Plan, Timestamp, View, Waiting, condition, task, traffic};

/// Most tasks of one commit.
const MAX_TASKS: usize = 50;

/// What to do about the targets of a service.
pub fn plan(view: &View, key: &Key, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let there = traffic::load_balancers(view, &key.cluster);
    // Those that send requests to each group.
    let mut theirs: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let (mut changes, mut alone) = (Vec::new(), BTreeSet::new());
    for task in view.of_service(Kind::Task, &key.cluster, &key.name).filter_map(|task| task::of(task)) {
        let mut targets = task.status.targets.clone();
        for target in &mut targets {
            traffic::forget(target, &there);
        }
        for target in &task.status.targets {
            theirs.entry(&target.target_group).or_insert_with(|| {
                let groups = traffic::groups_of(view, &key.cluster, &target.target_group);
                let of_group = |name: &&String| name.split_once('.').is_some_and(|(group, _)| groups.contains(group));
                there.iter().filter(of_group).cloned().collect()
            });
        }
        let of_group = |group: &str| theirs.get(group).cloned().unwrap_or_default();
        // Those that sent it requests before their listener led somewhere else have some of them still.
        let of_target = |target: &Target| {
            let told = target.reports.iter().filter(|report| traffic::sends(report, &there));
            let told = told.map(|report| report.load_balancer.clone());
            of_group(&target.target_group).into_iter().chain(told).collect::<BTreeSet<String>>()
        };
        if task.is_wanted() {
            let new = targets.iter().filter(|target| target.state() == State::Initial);
            alone.extend(new.map(|t| t.target_group.clone()).filter(|group| of_group(group).is_empty()));
        } else if !task.is_live() || targets.iter().all(|target| traffic::has_drained(target, &of_target(target))) {
            targets.clear();
        } else {
            traffic::drain(&mut targets, now);
        }
        if targets != task.status.targets {
            let object = task.with_status(TaskStatus { targets, ..task.status.clone() });
            changes.push(Change::PutStatus { object, expect: task.revision() });
        }
    }
    plan.groups.extend(changes.chunks(MAX_TASKS).map(<[Change]>::to_vec));
    if !alone.is_empty() && view.get(key).is_some_and(|service| !service.is_deleting()) {
        let groups: Vec<String> = alone.into_iter().collect();
        let message = format!(
            "(service {}) has targets that no load balancer looks at: (target-group {}). Start one: `steady lb`",
            key.name,
            groups.join(") (target-group ")
        );
        plan.waiting.push(Waiting { about: key.clone(), reason: "NO_LOAD_BALANCER", message, quiet: false });
        plan.wake(now + condition::TELL_AGAIN);
    }
    plan
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use steady_core::v1::{
        Action, Lease, Listener, ListenerSpec, LoadBalancer, Object, Service, TargetReport, Task, TaskSpec,
        desired_status, task_last_status,
    };

    const NOW: Timestamp = Timestamp(1_000_000_000_000);

    struct World {
        view: View,
    }

    impl World {
        fn new(balancers: &[&str]) -> Self {
            let mut view = View::default();
            let action = Action { r#type: "forward".into(), target_group_arn: "web".into(), ..Action::default() };
            let spec = ListenerSpec {
                load_balancer: "default".into(),
                port: 80,
                default_actions: vec![action],
                ..ListenerSpec::default()
            };
            view.put(Arc::new(Object::new("default", "http", Listener { spec: Some(spec) })));
            view.put(Arc::new(Object::new("default", "web", Service::default())));
            for name in balancers {
                view.put(Arc::new(Object::new("", &format!("lb.default.{name}"), Lease::default())));
            }
            World { view }
        }

        fn task(mut self, last: task_last_status::Value, wanted: bool, reports: &[(&str, State)]) -> Self {
            let mut target = Target {
                target_group: "web".into(),
                deregistration_delay_seconds: 30,
                state: State::Initial.into(),
                ..Target::default()
            };
            for (name, state) in reports {
                let report =
                    TargetReport { load_balancer: (*name).into(), state: (*state).into(), ..TargetReport::default() };
                traffic::report(&mut target, report);
            }
            let mut status = TaskStatus { targets: vec![target], ..TaskStatus::default() };
            status.set_last_status(last);
            let desired = desired_status::Value::Running;
            status.set_desired_status(if wanted { desired } else { desired_status::Value::Stopped });
            if !wanted {
                traffic::drain(&mut status.targets, NOW);
            }
            let balancer = LoadBalancer { target_group_arn: "web".into(), ..LoadBalancer::default() };
            let spec = TaskSpec { service: "web".into(), load_balancers: vec![balancer], ..TaskSpec::default() };
            self.view.put(Arc::new(Object::new("default", "t", Task { spec: Some(spec), status: Some(status) })));
            self
        }

        /// Targets of the task after the plan; `None`: nothing changes.
        fn after(&self, now: Timestamp) -> Option<Vec<Target>> {
            let plan = plan(&self.view, &Key::new(Kind::Service, "default", "web"), now);
            let change = plan.groups.into_iter().flatten().next()?;
            let Change::PutStatus { object, .. } = change else { return None };
            Some(task::of(&object)?.status.targets.clone())
        }
    }

    use task_last_status::Value::{Running, Stopped};

    #[test]
    fn a_task_may_stop_when_every_load_balancer_has_no_request_of_it_left() {
        let world = World::new(&["default.a", "default.b", "edge.c"]);
        let world = world.task(Running, false, &[("default.a", State::Draining), ("default.b", State::Healthy)]);
        assert_eq!(world.after(NOW), None);
        let world = world.task(Running, false, &[("default.a", State::Draining), ("default.b", State::Draining)]);
        assert_eq!(world.after(NOW), Some(vec![]), "the other group's has nothing to do with it");
    }

    #[test]
    fn without_load_balancers_nobody_waits_and_a_service_that_waits_is_told() {
        assert_eq!(World::new(&[]).task(Running, false, &[]).after(NOW), Some(vec![]));
        let world = World::new(&["edge.c"]).task(Running, true, &[]);
        let plan = plan(&world.view, &Key::new(Kind::Service, "default", "web"), NOW);
        assert_eq!(plan.waiting.iter().map(|w| w.reason).collect::<Vec<_>>(), ["NO_LOAD_BALANCER"]);
        assert!(plan.groups.is_empty());
    }

    #[test]
    fn what_is_over_is_no_target_and_who_is_gone_has_no_say() {
        assert_eq!(World::new(&["default.a"]).task(Stopped, true, &[]).after(NOW), Some(vec![]));
        let reports = [("default.a", State::Unhealthy), ("default.b", State::Healthy)];
        let world = World::new(&["default.a"]).task(Running, true, &reports);
        let targets = world.after(NOW).expect("a change");
        assert_eq!((targets[0].state(), targets[0].reports.len()), (State::Unhealthy, 1));
    }
}
