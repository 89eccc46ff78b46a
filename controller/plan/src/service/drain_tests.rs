//! Tasks on container instances that are DRAINING.

use steady_core::v1::DeploymentConfiguration;
use steady_core::v1::desired_status;
use steady_core::v1::task_last_status::Value as Status;

use super::*;
use crate::builders::World;

const NOW: Timestamp = Timestamp(1_000_000);

/// Four tasks on `a` that run; `b` is free, and takes what `places` says.
fn world(least: i32, most: i32) -> World {
    let mut world = World::new();
    world.instance("a", 4000, 4000);
    world.instance("b", 4000, 4000);
    world.service("web", 4);
    world.edit_service("web", |spec| {
        spec.deployment_configuration = Some(DeploymentConfiguration {
            minimum_healthy_percent: Some(least),
            maximum_percent: Some(most),
            ..DeploymentConfiguration::default()
        });
    });
    for _ in 0..5 {
        controllers(&mut world);
        agents(&mut world, "a", 4);
    }
    world
}

fn controllers(world: &mut World) {
    let key = World::key("web");
    for _ in 0..3 {
        world.settle(|view| crate::deployment::plan(view, &key, NOW));
        world.settle(|view| plan(view, &key, NOW));
    }
}

/// What is new runs on an instance, as far as there are places; what is to stop has stopped.
fn agents(world: &mut World, instance: &str, places: usize) {
    let taken = std::cell::Cell::new(on(world, instance));
    world.each_task(
        |_, s| s.desired_status() == desired_status::Value::Running && s.last_status() < Status::Running,
        |spec, s| {
            if taken.get() < places {
                taken.set(taken.get() + 1);
                instance.clone_into(&mut spec.container_instance);
                s.set_last_status(Status::Running);
                s.started_at = Some(Timestamp(500_000).into());
            }
        },
    );
    world.stop_unwanted(NOW);
}

fn tasks(world: &World) -> impl Iterator<Item = task::View<'_>> {
    world.view.of_kind(Kind::Task).filter_map(|t| task::of(t))
}

fn on(world: &World, instance: &str) -> usize {
    tasks(world).filter(|t| t.is_wanted() && t.spec.container_instance == instance).count()
}

#[test]
fn tasks_of_a_draining_instance_move_within_floor_and_ceiling() {
    for (least, most) in [(100, 200), (50, 100), (50, 150), (100, 125), (0, 100)] {
        let mut world = world(least, most);
        assert_eq!(on(&world, "a"), 4);
        world.drain("a", true);
        for _ in 0..20 {
            controllers(&mut world);
            let (live, healthy) = (
                tasks(&world).filter(task::View::is_live).count(),
                tasks(&world).filter(task::View::is_healthy).count(),
            );
            assert!(live as i32 <= 4 * most / 100, "{least} {most}: {live} live");
            assert!(healthy as i32 >= 4 * least / 100, "{least} {most}: {healthy} healthy");
            agents(&mut world, "b", 4);
        }
        assert_eq!((on(&world, "a"), on(&world, "b")), (0, 4), "{least} {most}");
        assert!(world.service_status("web").steady, "{least} {most}");
    }
}

#[test]
fn where_there_is_no_other_place_they_stay() {
    let mut world = world(100, 200);
    world.drain("a", true);
    for _ in 0..10 {
        controllers(&mut world);
        agents(&mut world, "b", 0);
    }
    assert_eq!(tasks(&world).filter(task::View::is_healthy).count(), 4);
    // Somebody says that it drains no more: what was started for it goes again.
    world.drain("a", false);
    for _ in 0..10 {
        controllers(&mut world);
        agents(&mut world, "b", 0);
    }
    assert_eq!((on(&world, "a"), tasks(&world).filter(task::View::is_wanted).count()), (4, 4));
}

#[test]
fn what_does_not_run_yet_stops_at_once() {
    let mut world = world(100, 200);
    world.edit_service("web", |spec| spec.desired_count = Some(5));
    controllers(&mut world);
    world.each_task(
        |_, s| s.last_status() < Status::Running,
        |spec, s| {
            "a".clone_into(&mut spec.container_instance);
            s.set_last_status(Status::Pending);
        },
    );
    world.drain("a", true);
    controllers(&mut world);
    assert!(!tasks(&world).any(|t| t.is_wanted() && t.spec.container_instance == "a" && !t.is_running()));
    let told = |t: &task::View<'_>| t.status.stopped_reason == "Container instance a is draining";
    assert_eq!(tasks(&world).filter(told).count(), 1);
}
