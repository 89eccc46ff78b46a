use super::*;
use crate::builders::World;
use steady_core::v1::placement_strategy_type::Value as Type;
use steady_core::v1::task_last_status::Value as Status;
use steady_core::v1::{HostPort, PlacementConstraint, PlacementStrategy, TaskSpec, placement_constraint_type};

fn round(world: &mut World) {
    let key = Key::new(Kind::Cluster, "", "default");
    world.settle(|view| plan(view, &key, Timestamp(0)));
}

fn strategy(kind: Type, field: &str) -> Vec<PlacementStrategy> {
    vec![PlacementStrategy { r#type: kind.into(), field: field.into() }]
}

fn places(world: &World, count: usize) -> Vec<String> {
    (0..count).map(|i| world.place(&format!("t{i}"))).collect()
}

#[test]
fn tasks_are_spread_over_instances_by_default() {
    let mut world = World::new();
    for name in ["a", "b", "c"] {
        world.instance(name, 1000, 1000);
    }
    for i in 0..6 {
        world.waiting(&format!("t{i}"), 10, 10, |_| {});
    }
    round(&mut world);
    let places = places(&world, 6);
    for name in ["a", "b", "c"] {
        assert_eq!(places.iter().filter(|p| *p == name).count(), 2, "{places:?}");
    }
    assert_eq!(world.task_status("t0").last_status(), Status::Pending);
}

#[test]
fn tasks_are_spread_over_the_values_of_an_attribute() {
    let mut world = World::new();
    for (name, rack) in [("a", "1"), ("b", "1"), ("c", "2")] {
        world.instance(name, 1000, 1000);
        world.attribute(name, "rack", rack);
    }
    for i in 0..4 {
        world.waiting(&format!("t{i}"), 10, 10, |spec| {
            spec.placement_strategy = strategy(Type::Spread, "attribute:rack");
        });
    }
    round(&mut world);
    assert_eq!(places(&world, 4).iter().filter(|p| *p == "c").count(), 2);
}

#[test]
fn binpack_fills_the_fullest_instance_first() {
    let mut world = World::new();
    world.instance("a", 1000, 1000);
    world.instance("b", 1000, 500);
    for i in 0..3 {
        world.waiting(&format!("t{i}"), 10, 200, |spec| spec.placement_strategy = strategy(Type::Binpack, "memory"));
    }
    round(&mut world);
    assert_eq!(places(&world, 3), ["b", "b", "a"]);
}

#[test]
fn no_instance_gets_more_than_it_has() {
    let mut world = World::new();
    world.instance("a", 100, 1000);
    for i in 0..5 {
        world.waiting(&format!("t{i}"), 40, 10, |_| {});
    }
    round(&mut world);
    assert_eq!(places(&world, 5).iter().filter(|p| !p.is_empty()).count(), 2);
    let why = world.task_status("t4").conditions[0].clone();
    assert_eq!(why.reason, "RESOURCE:CPU");
    assert_eq!(
        why.message,
        "1 instance: insufficient CPU (needs 40 CPU units; a has the most free, 20 CPU units: 20 CPU units missing)"
    );
}

#[test]
fn a_host_port_is_given_once_on_an_instance() {
    let mut world = World::new();
    world.instance("a", 1000, 1000);
    world.instance("b", 1000, 1000);
    for i in 0..3 {
        world.waiting(&format!("t{i}"), 1, 1, |spec| {
            spec.demand.as_mut().expect("a demand").ports = vec![HostPort { port: 80, protocol: 1, to: 0 }];
        });
    }
    round(&mut world);
    assert_eq!(places(&world, 3), ["a", "b", ""]);
    assert!(world.task_status("t2").conditions[0].message.contains("host port 80 is in use"));
}

#[test]
fn distinct_instance_puts_each_task_of_a_group_elsewhere() {
    let mut world = World::new();
    world.instance("a", 1000, 1000);
    for i in 0..2 {
        world.waiting(&format!("t{i}"), 1, 1, |spec| {
            let kind = placement_constraint_type::Value::DistinctInstance.into();
            spec.placement_constraints = vec![PlacementConstraint { r#type: kind, expression: String::new() }];
        });
    }
    let binds = |world: &World| {
        let plan = plan(&world.view, &Key::new(Kind::Cluster, "", "default"), Timestamp(0));
        let seen = |change: &Change| match change {
            Change::Bind(bind) => Some(bind.reservation),
            _ => None,
        };
        plan.changes().filter_map(seen).collect::<Vec<_>>()
    };
    assert_eq!(binds(&world), [Some(Revision(0))], "decided on what is there");
    round(&mut world);
    assert_eq!(places(&world, 2), ["a", ""]);
    world.waiting("t2", 1, 1, |_| {});
    assert_eq!(binds(&world), [None], "it asks for room alone");
}

#[test]
fn without_instances_the_reason_is_ecs_own() {
    let mut world = World::new();
    world.waiting("t0", 1, 1, |_| {});
    round(&mut world);
    let why = world.task_status("t0").conditions[0].clone();
    assert!(why.message.starts_with("No Container Instances were found in your cluster."), "{why:?}");
    assert_eq!(world.events().len(), 1, "a standalone task tells it itself");
}

#[test]
fn a_thousand_tasks_are_placed_in_groups_that_fit_a_commit() {
    let mut world = World::new();
    for i in 0..20 {
        world.instance(&format!("n{i}"), 100_000, 100_000);
    }
    for i in 0..1000 {
        world.waiting(&format!("t{i}"), 10, 10, |_| {});
    }
    let key = Key::new(Kind::Cluster, "", "default");
    let first = plan(&world.view, &key, Timestamp(0));
    assert!(first.changes().all(|change| change.size() <= MAX_PER_NODE + 2));
    round(&mut world);
    for i in 0..20 {
        let name = format!("n{i}");
        assert_eq!(places(&world, 1000).iter().filter(|p| **p == name).count(), 50);
    }
}

#[test]
fn tasks_that_can_be_on_one_instance_only_do_not_keep_others_waiting() {
    let mut world = World::new();
    for number in 0..MAX_ROUND + 10 {
        world.instance(&format!("full-{number:04}"), 0, 0);
        world
            .waiting(&format!("daemon-{number:04}"), 10, 10, |spec| spec.target_instance = format!("full-{number:04}"));
    }
    world.instance("free", 100, 100);
    world.waiting("replica", 10, 10, |_| {});
    world.waiting("elsewhere", 10, 10, |spec| spec.target_instance = "gone".into());
    let cluster = Key::new(Kind::Cluster, "", "default");
    for group in plan(&world.view, &cluster, Timestamp(0)).groups {
        world.carry_out_all(group);
    }
    assert_eq!(world.place("replica"), "free");
    assert_eq!(world.place("elsewhere"), "");
}

#[test]
fn a_member_of_constraint_selects_instances_and_says_when_it_selects_none() {
    let mut world = World::new();
    for (name, stack) in [("a", "test"), ("b", "prod"), ("c", "prod")] {
        world.instance(name, 4000, 4000);
        world.attribute(name, "stack", stack);
    }
    let of = |expression: &str| {
        let expression = expression.to_owned();
        move |spec: &mut TaskSpec| {
            let kind = steady_core::v1::placement_constraint_type::Value::MemberOf.into();
            spec.placement_constraints = vec![PlacementConstraint { r#type: kind, expression: expression.clone() }];
        }
    };
    world.waiting("one", 10, 10, of("attribute:stack == prod"));
    world.waiting("apart", 10, 10, of("attribute:stack == prod and not(task:group == service:web)"));
    world.waiting("none", 10, 10, of("attribute:stack == other"));
    let cluster = Key::new(Kind::Cluster, "", "default");
    let plan = plan(&world.view, &cluster, Timestamp(0));
    let told: Vec<String> = plan.waiting.iter().map(|waiting| waiting.message.clone()).collect();
    for group in plan.groups {
        world.carry_out_all(group);
    }
    let places = [world.place("one"), world.place("apart")];
    assert!(places.iter().all(|place| place == "b" || place == "c") && places[0] != places[1], "{places:?}");
    assert_eq!(world.place("none"), "");
    assert!(told[0].contains("MemberOf placement constraint unsatisfied"), "{told:?}");
}
