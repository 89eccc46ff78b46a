//! DAEMON services.

use steady_core::v1::rollout_state::Value as Rollout;
use steady_core::v1::scheduling_strategy::Value as Scheduling;
use steady_core::v1::task_last_status::Value as Status;
use steady_core::v1::{DeploymentConfiguration, ServiceSpec};

use super::*;
use crate::builders::World;

const NOW: Timestamp = Timestamp(1_000_000);

fn world(instances: &[&str]) -> World {
    let mut world = World::new();
    for name in instances {
        world.instance(name, 4000, 4000);
    }
    world.service("log", 0);
    world.edit_service("log", |spec| {
        *spec = ServiceSpec {
            task_definition: "log:1".into(),
            scheduling_strategy: Scheduling::Daemon.into(),
            deployment_configuration: Some(DeploymentConfiguration {
                maximum_percent: Some(100),
                minimum_healthy_percent: Some(0),
                ..DeploymentConfiguration::default()
            }),
            ..ServiceSpec::default()
        }
    });
    rounds(&mut world);
    world
}

/// Controllers, scheduler and agents, until nothing more happens.
fn rounds(world: &mut World) {
    for _ in 0..6 {
        round(world);
    }
}

fn round(world: &mut World) {
    let key = World::key("log");
    world.settle(|view| crate::deployment::plan(view, &key, NOW));
    world.settle(|view| plan(view, &key, NOW));
    let cluster = Key::new(Kind::Cluster, "", "default");
    world.settle(|view| crate::scheduler::plan(view, &cluster, NOW));
    world.each_task(
        |spec, s| !spec.container_instance.is_empty() && s.last_status() < Status::Running,
        |_, s| {
            s.set_last_status(Status::Running);
            s.started_at = Some(Timestamp(500_000).into());
        },
    );
    world.stop_unwanted(NOW);
}

/// Instances of its tasks, as they are and in order.
fn places(world: &World) -> Vec<String> {
    let tasks = world.view.of_service(Kind::Task, "default", "log").filter_map(|t| task::of(t));
    let mut places: Vec<String> =
        tasks.filter(task::View::is_live).map(|t| t.spec.container_instance.clone()).collect();
    places.sort();
    places
}

#[test]
fn a_daemon_has_one_task_on_each_instance_and_is_then_steady() {
    let world = world(&["a", "b", "c"]);
    assert_eq!(places(&world), ["a", "b", "c"]);
    let status = world.service_status("log");
    assert!(status.steady, "{status:?}");
    assert_eq!((status.desired_count(), status.running_count()), (3, 3));
    assert_eq!(world.deployment("log-1").status.rollout_state(), Rollout::Completed);
}

#[test]
fn a_daemon_without_instances_is_steady_and_comes_to_each_new_one() {
    let mut world = world(&[]);
    assert!(world.service_status("log").steady);
    world.instance("a", 4000, 4000);
    rounds(&mut world);
    assert_eq!(places(&world), ["a"]);
}

#[test]
fn a_daemon_waits_for_an_instance_that_has_no_room_and_takes_no_other() {
    let mut world = world(&["a"]);
    world.instance("small", 10, 10);
    rounds(&mut world);
    assert_eq!(places(&world), ["", "a"]);
    assert!(!world.service_status("log").steady);
}

#[test]
fn a_new_definition_stops_the_task_of_an_instance_before_it_starts_another() {
    let mut world = world(&["a", "b", "c"]);
    world.edit_service("log", |spec| spec.task_definition = "log:2".into());
    for _ in 0..12 {
        let found = places(&world);
        let mut once = found.clone();
        once.dedup();
        assert_eq!(found, once, "two on one instance");
        round(&mut world);
    }
    assert_eq!(places(&world), ["a", "b", "c"]);
    assert!(world.wanted("log").iter().all(|(_, deployment)| deployment == "log-2"));
    assert!(world.service_status("log").steady);
}

#[test]
fn a_floor_holds_for_daemons_too() {
    let mut world = world(&["a", "b", "c", "d"]);
    world.edit_service("log", |spec| {
        spec.task_definition = "log:2".into();
        spec.deployment_configuration.as_mut().expect("settings").minimum_healthy_percent = Some(50);
    });
    for _ in 0..12 {
        round(&mut world);
        let healthy = world.view.of_kind(Kind::Task).filter_map(|t| task::of(t)).filter(task::View::is_healthy);
        assert!(healthy.count() >= 2);
    }
    // Where no health check says so, a task that runs for others to go is sure only after ten seconds: it ran for longer.
    assert!(world.wanted("log").iter().all(|(_, deployment)| deployment == "log-2"));
}

#[test]
fn a_daemon_leaves_a_draining_instance_after_all_others_have() {
    let mut world = world(&["a", "b"]);
    world.service("web", 1);
    world.task("web", "web-1", "replica", |s| s.set_last_status(Status::Running));
    world.each_task(|spec, _| spec.service == "web", |spec, _| spec.container_instance = "a".into());
    world.drain("a", true);
    rounds(&mut world);
    assert_eq!(places(&world), ["a", "b"], "web is still there");
    world.each_task(|spec, _| spec.service == "web", |_, s| s.set_last_status(Status::Stopped));
    rounds(&mut world);
    assert_eq!(places(&world), ["b"]);
    assert!(world.service_status("log").steady);
}

#[test]
fn the_room_of_a_daemon_that_is_to_come_is_not_given_to_others() {
    let mut world = world(&[]);
    world.instance("a", 150, 150);
    world.waiting("other", 100, 100, |_| {});
    let cluster = Key::new(Kind::Cluster, "", "default");
    world.settle(|view| crate::scheduler::plan(view, &cluster, NOW));
    assert_eq!(world.place("other"), "");
    rounds(&mut world);
    assert_eq!(places(&world), ["a"]);
}

#[test]
fn a_task_that_waits_for_an_instance_that_drains_is_the_one_that_goes() {
    let mut world = world(&["a"]);
    world.instance("b", 10, 10);
    world.instance("c", 10, 10);
    rounds(&mut world);
    assert_eq!(places(&world), ["", "", "a"], "no room on either");
    world.drain("c", true);
    rounds(&mut world);
    let waiting = world.view.of_kind(Kind::Task).filter_map(|t| task::of(t)).filter(task::View::wants_place);
    let targets: Vec<String> = waiting.map(|t| t.spec.target_instance.clone()).collect();
    assert_eq!(targets, ["b"]);
}

#[test]
fn a_daemon_is_on_the_instances_that_its_constraints_select_and_leaves_those_that_change() {
    use steady_core::v1::PlacementConstraint;
    use steady_core::v1::placement_constraint_type::Value as Type;
    let mut world = World::new();
    for (name, stack) in [("a", "prod"), ("b", "test"), ("c", "prod")] {
        world.instance(name, 4000, 4000);
        world.attribute(name, "stack", stack);
    }
    world.service("log", 0);
    world.edit_service("log", |spec| {
        spec.desired_count = None;
        spec.set_scheduling_strategy(Scheduling::Daemon);
        let expression = "attribute:stack == prod".to_owned();
        spec.placement_constraints = vec![PlacementConstraint { r#type: Type::MemberOf.into(), expression }];
        spec.deployment_configuration = Some(DeploymentConfiguration {
            maximum_percent: Some(100),
            minimum_healthy_percent: Some(0),
            ..DeploymentConfiguration::default()
        });
    });
    rounds(&mut world);
    assert_eq!(places(&world), ["a", "c"]);
    world.drop(&Key::new(Kind::ContainerInstance, "default", "c"));
    world.instance("c", 4000, 4000);
    rounds(&mut world);
    assert_eq!(places(&world), ["a"]);
    let stopped = world.view.of_kind(Kind::Task).filter_map(|t| task::of(t)).find(|t| !t.is_live()).expect("one");
    assert!(stopped.status.stopped_reason.contains("does not satisfy the placement constraints"));
}
