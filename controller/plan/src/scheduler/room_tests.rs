use super::*;
use crate::builders::World;
use steady_core::v1::scheduling_strategy::Value as Scheduling;
use steady_core::v1::{PlacementConstraint, placement_constraint_type};

fn cluster() -> Key {
    Key::new(Kind::Cluster, "", "default")
}

fn at(seconds: i64) -> Timestamp {
    Timestamp(seconds * 1000)
}

fn round(world: &mut World, seconds: i64) {
    let plan = plan(&world.view, &cluster(), at(seconds));
    plan.groups.into_iter().for_each(|group| world.carry_out_all(group));
}

fn stops(world: &World, seconds: i64) -> Vec<String> {
    let stopped = |change: &Change| match change {
        Change::PutStatus { object, .. } => Some(object.name().to_owned()),
        _ => None,
    };
    plan(&world.view, &cluster(), at(seconds)).changes().filter_map(stopped).collect()
}

#[test]
fn a_big_task_is_not_overtaken_for_ever_by_small_ones() {
    let mut world = World::new();
    for name in ["a", "b"] {
        world.instance(name, 1000, 1000);
        for number in 0..10 {
            let task = format!("{name}{number}");
            world.waiting(&task, 100, 100, |spec| spec.group = "family:small".into());
        }
    }
    round(&mut world, 0);
    world.waiting("big", 600, 600, |spec| spec.group = "family:big".into());
    // Each second a small one ends, and two more come.
    let mut number = 0;
    for second in 0..100 {
        let ended = world.view.of_kind(Kind::Task).filter_map(|task| task::of(task)).find(|task| {
            task.is_live() && task.spec.group == "family:small" && !task.spec.container_instance.is_empty()
        });
        let ended = ended.map(|task| task.object.name().to_owned()).expect("a small one");
        world.end(&ended);
        world.now = at(second);
        for _ in 0..2 {
            number += 1;
            world.waiting(&format!("small{number}"), 100, 100, |spec| spec.group = "family:small".into());
        }
        round(&mut world, second);
        if !world.place("big").is_empty() {
            assert!(second >= 60, "at {second} s");
            return;
        }
    }
    panic!("it waits for ever");
}

#[test]
fn what_is_kept_is_kept_from_the_same_and_lower_priorities_only() {
    let mut world = World::new();
    world.instance("a", 1000, 1000);
    world.waiting("there", 600, 600, |spec| spec.group = "family:there".into());
    round(&mut world, 0);
    world.waiting("big", 500, 500, |spec| spec.group = "family:big".into());
    world.waiting("small", 100, 100, |spec| spec.group = "family:small".into());
    world.waiting("urgent", 100, 100, |spec| (spec.group, spec.priority) = ("family:urgent".into(), 5));
    let told = plan(&world.view, &cluster(), at(61));
    round(&mut world, 61);
    assert_eq!((world.place("urgent").as_str(), world.place("small").as_str()), ("a", ""));
    let small = told.waiting.iter().find(|waiting| waiting.about.name == "small").expect("told");
    assert_eq!(small.message, "1 instance: kept free for a task that has waited longer (a)");
}

#[test]
fn a_task_that_fits_no_instance_at_all_keeps_none() {
    let mut world = World::new();
    world.instance("a", 1000, 1000);
    world.waiting("huge", 5000, 500, |spec| spec.group = "family:huge".into());
    world.waiting("small", 100, 100, |spec| spec.group = "family:small".into());
    round(&mut world, 100);
    assert_eq!(world.place("small"), "a");
}

/// Instance `a` full of pre-emptible tasks of these priorities, 250 each.
fn full_of(priorities: &[i32]) -> World {
    let mut world = World::new();
    world.instance("a", 250 * priorities.len() as i32, 1000);
    for (number, priority) in priorities.iter().enumerate() {
        world.waiting(&format!("low{number}"), 250, 10, |spec| {
            (spec.priority, spec.preemptible, spec.group) = (*priority, true, format!("family:low{number}"));
        });
    }
    round(&mut world, 0);
    world
}

#[test]
fn the_lowest_priorities_make_room_and_no_more_of_them_than_needed() {
    let mut world = full_of(&[3, -2, 1, 0]);
    world.waiting("high", 500, 10, |spec| (spec.priority, spec.group) = (9, "family:high".into()));
    let mut stopped = stops(&world, 1);
    stopped.sort();
    assert_eq!(stopped, ["low1", "low3"]);
    let told = plan(&world.view, &cluster(), at(1));
    assert!(told.waiting[0].message.contains("insufficient CPU"), "{:?}", told.waiting);
    round(&mut world, 1);
    let why = world.task_status("low1");
    assert_eq!(why.stop_code(), StopCode::SpotInterruption);
    assert_eq!(why.stopped_reason, "Task preempted: family:high of priority 9 needs its room (its own priority is -2)");
    assert_eq!(stops(&world, 2), Vec::<String>::new(), "what stops is waited for");
    world.stop_unwanted(at(3));
    round(&mut world, 3);
    assert_eq!(world.place("high"), "a");
}

#[test]
fn nobody_is_stopped_for_the_same_priority_or_where_it_would_not_help() {
    let mut world = full_of(&[0, 0]);
    world.waiting("same", 250, 10, |spec| spec.group = "family:same".into());
    world.waiting("large", 900, 10, |spec| (spec.priority, spec.group) = (9, "family:large".into()));
    world.waiting("elsewhere", 250, 10, |spec| {
        (spec.priority, spec.group) = (9, "family:elsewhere".into());
        spec.placement_constraints.push(PlacementConstraint {
            r#type: placement_constraint_type::Value::MemberOf.into(),
            expression: "attribute:rack == 7".into(),
        });
    });
    assert_eq!(stops(&world, 1), Vec::<String>::new());
    world.each_task(|spec, _| spec.group == "family:low0", |spec, _| spec.preemptible = false);
    world.waiting("high", 250, 10, |spec| (spec.priority, spec.group) = (9, "family:high".into()));
    assert_eq!(stops(&world, 1), ["low1"], "one that is not marked is never stopped");
    world.each_task(|spec, _| spec.group == "family:low1", |spec, _| spec.protected_until = Some(at(60).into()));
    assert_eq!(stops(&world, 1), Vec::<String>::new(), "nor one that is protected");
}

#[test]
fn the_room_of_one_that_stops_is_counted_once() {
    let mut world = full_of(&[0, 0, 0, 0]);
    for number in 0..3 {
        world
            .waiting(&format!("high{number}"), 250, 10, |spec| (spec.priority, spec.group) = (9, "family:high".into()));
    }
    assert_eq!(stops(&world, 1).len(), 3);
    round(&mut world, 1);
    world.waiting("other", 250, 10, |spec| (spec.priority, spec.group) = (8, "family:other".into()));
    assert_eq!(stops(&world, 2).len(), 1, "those that stop are for the others");
}

#[test]
fn a_fleet_sees_that_two_tasks_of_one_instance_are_to_stop_at_once() {
    let (mut world, mut fleet) = (full_of(&[0, 0]), Fleet::default());
    world.waiting("high", 500, 10, |spec| (spec.priority, spec.group) = (9, "family:high".into()));
    let first = fleet.plan(&world.view, &cluster(), at(1), "");
    assert_eq!(first.changes().filter(|change| matches!(change, Change::PutStatus { .. })).count(), 2);
    first.groups.into_iter().for_each(|group| world.carry_out_all(group));
    let second = fleet.plan(&world.view, &cluster(), at(2), "");
    assert_eq!(second.groups, Vec::<Vec<Change>>::new(), "what stops is waited for");
}

#[test]
fn tasks_of_daemon_services_make_no_room() {
    let mut world = full_of(&[0]);
    world.each_task(|_, _| true, |spec, _| spec.target_instance = "a".into());
    world.waiting("high", 250, 10, |spec| (spec.priority, spec.group) = (9, "family:high".into()));
    assert_eq!(stops(&world, 1), Vec::<String>::new());
}

#[test]
fn the_room_of_a_daemon_s_task_is_counted_once() {
    let mut world = full_of(&[0, 0]);
    world.edit_instance("a", |spec| spec.registered_resources.as_mut().expect("resources").cpu = 1000);
    world.service("logs", 1);
    world.edit_service("logs", |spec| spec.set_scheduling_strategy(Scheduling::Daemon));
    world.waiting("daemon", 100, 100, |spec| {
        (spec.group, spec.service, spec.target_instance) = ("service:logs".into(), "logs".into(), "a".into());
    });
    world.waiting("high", 400, 10, |spec| (spec.priority, spec.group) = (9, "family:high".into()));
    assert_eq!(stops(&world, 1), Vec::<String>::new());
    round(&mut world, 1);
    assert_eq!((world.place("daemon").as_str(), world.place("high").as_str()), ("a", "a"));
}

#[test]
fn what_makes_room_goes_in_groups_that_fit_a_commit_and_only_for_who_still_waits() {
    let mut world = World::new();
    world.instance("a", 1000, 1000);
    for number in 0..100 {
        world.waiting(&format!("low{number:02}"), 10, 10, |spec| {
            (spec.preemptible, spec.group) = (true, "family:low".into());
        });
    }
    (0..3).for_each(|_| round(&mut world, 0));
    world.waiting("high", 1000, 10, |spec| (spec.priority, spec.group) = (9, "family:high".into()));
    let plan = plan(&world.view, &cluster(), at(1));
    let winner = Key::new(Kind::Task, "default", "high");
    let checks = |group: &Vec<Change>| matches!(&group[0], Change::Check { key, .. } if *key == winner);
    assert!(plan.groups.iter().all(|group| group.len() <= 45 && checks(group)), "{:?}", plan.groups.len());
    assert_eq!(plan.changes().filter(|change| matches!(change, Change::PutStatus { .. })).count(), 100);
}

#[test]
fn wishes_that_nobody_can_grant_do_not_use_up_the_room_that_is_made() {
    let mut world = full_of(&[0]);
    for number in 0..60 {
        world.waiting(&format!("gpu{number:02}"), 10, 10, |spec| {
            (spec.priority, spec.group) = (9, format!("family:gpu{number}"));
            spec.demand.as_mut().expect("a demand").named.insert("GPU".into(), 1);
        });
    }
    world.waiting("high", 250, 10, |spec| (spec.priority, spec.group) = (5, "family:high".into()));
    assert_eq!(stops(&world, 1), ["low0"]);
}

#[test]
fn a_task_that_is_spared_for_a_while_is_looked_at_again_then() {
    let mut world = full_of(&[0]);
    world.each_task(|_, _| true, |spec, _| spec.protected_until = Some(at(30).into()));
    world.waiting("high", 250, 10, |spec| (spec.priority, spec.group) = (9, "family:high".into()));
    let early = plan(&world.view, &cluster(), at(1));
    assert_eq!((early.groups.len(), early.wake_at), (0, Some(at(30))));
    assert_eq!(stops(&world, 30), ["low0"]);
}

#[test]
fn where_services_stand_in_the_way_a_place_is_kept_in_spells_and_never_the_only_one() {
    let mut world = World::new();
    for name in ["a", "b"] {
        world.instance(name, 1000, 1000);
        world.waiting(&format!("service-{name}"), 600, 600, |spec| spec.service = "web".into());
    }
    round(&mut world, 0);
    world.waiting("big", 700, 700, |spec| spec.group = "family:big".into());
    let kept = |world: &World, seconds: i64| {
        let key = Key::new(Kind::Task, "default", "big");
        explain(&world.view, &key, at(seconds)).expect("a task").kept
    };
    assert_eq!(kept(&world, 59), None);
    assert!(kept(&world, 61).is_some());
    assert_eq!(plan(&world.view, &cluster(), at(61)).wake_at, Some(at(360)));
    assert_eq!((kept(&world, 361), kept(&world, 659)), (None, None), "others have their turn");
    assert!(kept(&world, 661).is_some());
    world.drop(&Key::new(Kind::ContainerInstance, "default", "b"));
    assert_eq!(kept(&world, 61), None);
}

#[test]
fn many_tasks_without_a_place_do_not_hold_up_those_that_have_one() {
    let mut world = World::new();
    world.instance("a", 100, 100);
    for number in 0..2 * MAX_TOLD {
        world.waiting(&format!("huge{number:05}"), 5000, 10, |spec| spec.group = format!("service:{}", number % 3));
    }
    world.now = at(5);
    world.waiting("small", 10, 10, |spec| spec.group = "family:small".into());
    round(&mut world, 6);
    assert_eq!(world.place("small"), "a");
}

#[test]
fn tasks_of_a_higher_priority_are_placed_first() {
    let mut world = World::new();
    world.instance("a", 100, 100);
    world.waiting("old", 100, 10, |_| {});
    world.waiting("high", 100, 10, |spec| spec.priority = 1);
    round(&mut world, 1);
    assert_eq!((world.place("old").as_str(), world.place("high").as_str()), ("", "a"));
}

#[test]
fn a_task_that_names_another_scheduler_is_left_to_it_and_told_so_after_a_while() {
    let mut world = World::new();
    world.instance("a", 100, 100);
    world.waiting("theirs", 10, 10, |spec| spec.scheduler_name = "theirs".into());
    let early = plan(&world.view, &cluster(), at(1));
    assert_eq!((early.groups.len(), early.waiting.len(), early.wake_at), (0, 0, Some(at(10))));
    let late = plan(&world.view, &cluster(), at(10));
    assert_eq!(late.waiting[0].message, "waits for the scheduler `theirs`: schedulerName names it");
}

#[test]
fn how_many_more_fit_is_counted_for_each_definition() {
    let mut world = World::new();
    world.service("web", 1);
    for name in ["a", "b"] {
        world.instance(name, 1000, 550);
    }
    world.instance("drains", 1000, 1000);
    world.drain("drains", true);
    world.edit_instance("b", |spec| spec.capacity_provider = "spot".into());
    let counts = schedulable(&world.view, "default");
    let counts: Vec<(&str, u64)> = counts.iter().map(|s| (s.capacity_provider.as_str(), s.count)).collect();
    assert_eq!(counts, [("", 10), ("spot", 5)]);
}

#[test]
fn an_explanation_says_what_every_instance_says() {
    let mut world = World::new();
    world.instance("a", 1000, 1000);
    world.instance("b", 1000, 100);
    world.instance("c", 1000, 1000);
    world.drain("c", true);
    world.waiting("big", 500, 500, |_| {});
    let explained = explain(&world.view, &Key::new(Kind::Task, "default", "big"), at(1)).expect("a task");
    assert_eq!(explained.steps, ["spread(attribute:ecs.availability-zone)", "spread(instanceId)", "fewest tasks"]);
    assert_eq!(explained.candidates, [Candidate { instance: "a".into(), scores: vec![0, 0, 0] }]);
    assert_eq!(explained.refused["DRAINING"], [("c".to_owned(), "is draining".to_owned())]);
    assert_eq!(explained.refused["RESOURCE:MEMORY"], [("b".to_owned(), "needs 500 MiB, 100 are free".to_owned())]);
    assert_eq!(explained.waits_since, Some(at(0)));
}
