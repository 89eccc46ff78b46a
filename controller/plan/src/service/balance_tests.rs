//! Re-balancing, and tasks that are protected.

use steady_core::placement::ZONE;
use steady_core::v1::availability_zone_rebalancing::Value as Rebalancing;
use steady_core::v1::placement_strategy_type::Value as Type;
use steady_core::v1::rollout_state::Value as Rollout;
use steady_core::v1::task_last_status::Value as Status;
use steady_core::v1::{DeploymentConfiguration, PlacementStrategy};

use super::*;
use crate::builders::World;

/// Controllers, scheduler and agents, at a time; agents of the instances named here.
fn round(world: &mut World, now: Timestamp, agents: &[&str]) {
    let key = World::key("web");
    world.now = now;
    world.settle(|view| crate::deployment::plan(view, &key, now));
    world.settle(|view| plan(view, &key, now));
    let cluster = Key::new(Kind::Cluster, "", "default");
    world.settle(|view| crate::scheduler::plan(view, &cluster, now));
    world.each_task(
        |spec, s| agents.contains(&spec.container_instance.as_str()) && s.last_status() < Status::Running,
        |_, s| {
            s.set_last_status(Status::Running);
            s.started_at = Some(now.into());
        },
    );
    world.stop_unwanted(now);
}

/// So many rounds, 11 s apart. No start goes over the ceiling.
fn rounds(world: &mut World, from: i64, count: i64, agents: &[&str]) -> i64 {
    for number in 0..count {
        round(world, Timestamp(from + number * 11_000), agents);
        let tasks = || world.view.of_kind(Kind::Task).filter_map(|t| task::of(t));
        let spec = world.view.get(&World::key("web")).and_then(|s| s.as_service()?.spec.clone()).expect("a spec");
        let bounds = service::bounds(&spec, spec.desired_count());
        assert!(tasks().filter(task::View::is_live).count() as i32 <= bounds.ceiling.max(6));
    }
    from + count * 11_000
}

/// A service of six tasks on `a`, in `zones` (instance, zone), of which `a` was there first.
fn lopsided(zones: &[(&str, &str)]) -> (World, i64) {
    let mut world = World::new();
    world.service("web", 6);
    world.edit_service("web", |spec| spec.set_availability_zone_rebalancing(Rebalancing::Enabled));
    let zone = |world: &mut World, (name, zone): (&str, &str)| {
        world.instance(name, 4000, 4000);
        if !zone.is_empty() {
            world.attribute(name, ZONE, zone);
        }
    };
    zone(&mut world, zones[0]);
    let now = rounds(&mut world, 0, 4, &[zones[0].0]);
    zones[1..].iter().for_each(|place| zone(&mut world, *place));
    (world, now)
}

fn counts(world: &World, instances: &[&str]) -> Vec<usize> {
    let on = |name: &&str| world.view.on_instance("default", name).count();
    instances.iter().map(on).collect()
}

#[test]
fn tasks_move_one_by_one_to_instances_that_joined_until_numbers_are_even() {
    let (mut world, now) = lopsided(&[("a", ""), ("b", ""), ("c", "")]);
    assert_eq!(counts(&world, &["a", "b", "c"]), [6, 0, 0]);
    rounds(&mut world, now, 30, &["a", "b", "c"]);
    assert_eq!(counts(&world, &["a", "b", "c"]), [2, 2, 2]);
    assert!(world.service_status("web").steady);
}

#[test]
fn zones_are_evened_out_before_instances() {
    let (mut world, now) = lopsided(&[("a", "x"), ("b", "x"), ("c", "y")]);
    rounds(&mut world, now, 40, &["a", "b", "c"]);
    assert_eq!(counts(&world, &["c"]), [3], "half of them are in zone y");
    assert_eq!(counts(&world, &["a", "b"]).iter().sum::<usize>(), 3);
    assert!(counts(&world, &["a", "b"]).iter().all(|count| *count >= 1));
}

#[test]
fn nothing_moves_where_it_is_off_or_has_no_room_or_is_not_spread() {
    let random = PlacementStrategy { r#type: Type::Random.into(), field: String::new() };
    let edits: [&dyn Fn(&mut ServiceSpec); 3] = [
        &|spec| spec.set_availability_zone_rebalancing(Rebalancing::Disabled),
        &|spec| spec.placement_strategy = vec![random.clone()],
        &|spec| {
            spec.deployment_configuration = Some(DeploymentConfiguration {
                maximum_percent: Some(100),
                minimum_healthy_percent: Some(50),
                ..DeploymentConfiguration::default()
            });
        },
    ];
    for edit in edits {
        let (mut world, now) = lopsided(&[("a", ""), ("b", "")]);
        world.edit_service("web", edit);
        rounds(&mut world, now, 10, &["a", "b"]);
        assert_eq!(counts(&world, &["a", "b"]), [6, 0]);
    }
}

#[test]
fn a_move_that_does_not_succeed_is_given_up_and_not_tried_again_at_once() {
    let (mut world, now) = lopsided(&[("a", ""), ("b", "")]);
    // The agent of `b` says nothing.
    let now = rounds(&mut world, now, 10, &["a"]);
    assert_eq!(counts(&world, &["a", "b"]), [6, 0]);
    let tries = world.view.of_kind(Kind::Task).count() - 6;
    assert_eq!(tries, 1);
    assert!(world.service_status("web").steady);
    rounds(&mut world, now + 600_000, 30, &["a", "b"]);
    assert_eq!(counts(&world, &["a", "b"]), [3, 3]);
}

#[test]
fn an_instance_without_room_is_passed_over() {
    let (mut world, now) = lopsided(&[("a", ""), ("b", ""), ("c", "")]);
    world.task_on("b", "big", |_| {});
    world.each_task(
        |spec, _| spec.service.is_empty(),
        |spec, _| spec.demand = Some(steady_core::v1::Demand { cpu: 4000, memory: 4000, ..Default::default() }),
    );
    rounds(&mut world, now, 30, &["a", "c"]);
    assert_eq!(counts(&world, &["a", "c"]), [3, 3]);
}

#[test]
fn tasks_that_are_protected_are_not_chosen_to_stop_until_that_ends() {
    let (mut world, now) = lopsided(&[("a", "")]);
    let until = Timestamp(now + 60_000);
    world.each_task(|_, _| true, |spec, _| spec.protected_until = Some(until.into()));
    world.edit_service("web", |spec| spec.desired_count = Some(2));
    let after = rounds(&mut world, now, 5, &["a"]);
    assert_eq!(counts(&world, &["a"]), [6]);
    let told: Vec<String> = world.events().into_iter().filter(|text| text.contains("unable to scale in")).collect();
    assert_eq!(
        told,
        ["(service web) was unable to scale in. Reason: The number of protected tasks (6) are more than the desired \
          count of tasks (2)"]
    );
    rounds(&mut world, after + 11_000, 3, &["a"]);
    assert_eq!(counts(&world, &["a"]), [2]);
}

#[test]
fn a_deployment_waits_for_protected_tasks_and_leaves_them_where_an_instance_drains() {
    let (mut world, now) = lopsided(&[("a", ""), ("b", "")]);
    let until = Timestamp(now + 100_000);
    world.each_task(|_, _| true, |spec, _| spec.protected_until = Some(until.into()));
    world.edit_service("web", |spec| spec.task_definition = "web:2".into());
    world.drain("a", true);
    let after = rounds(&mut world, now, 8, &["a", "b"]);
    assert_eq!(counts(&world, &["a", "b"]), [6, 6], "the new ones run beside");
    assert_eq!(world.deployment("web-2").status.rollout_state(), Rollout::InProgress);
    rounds(&mut world, after + 22_000, 6, &["a", "b"]);
    assert_eq!(counts(&world, &["a", "b"]), [0, 6]);
    assert_eq!(world.deployment("web-2").status.rollout_state(), Rollout::Completed);
}

#[test]
fn a_task_that_takes_long_to_be_healthy_is_waited_for_and_one_that_never_is_is_not_tried_again_at_once() {
    use steady_core::v1::health_status::Value as Health;
    let (mut world, now) = lopsided(&[("a", ""), ("b", "")]);
    let unknown = |world: &mut World, health: Health| {
        world.each_task(
            |spec, s| spec.container_instance == "b" && s.last_status() == Status::Running,
            |_, s| s.set_health_status(health),
        );
    };
    let moved = |world: &World| world.view.of_kind(Kind::Task).count() - 6;
    let mut at = now;
    for _ in 0..30 {
        at = rounds(&mut world, at, 1, &["a", "b"]);
        unknown(&mut world, Health::Unknown);
    }
    assert_eq!((moved(&world), counts(&world, &["a", "b"])), (1, vec![6, 1]), "five minutes");
    for _ in 0..90 {
        at = rounds(&mut world, at, 1, &["a", "b"]);
        unknown(&mut world, Health::Unknown);
    }
    assert!(moved(&world) <= 2, "{} moves", moved(&world));
}
