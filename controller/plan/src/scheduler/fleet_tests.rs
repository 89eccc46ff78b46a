use super::*;
use crate::builders::World;
use steady_core::hash::mixed;
use steady_core::v1::placement_constraint_type::Value as Constraint;
use steady_core::v1::placement_strategy_type::Value as Kind_;
use steady_core::v1::task_last_status::Value as Status;
use steady_core::v1::{Attribute, Demand, HostPort, PlacementConstraint, PlacementStrategy, TaskSpec};

/// Chance from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0) % sides
    }
}

fn cluster() -> Key {
    Key::new(Kind::Cluster, "", "default")
}

const CHAINS: [&[(Kind_, &str)]; 6] = [
    &[],
    &[(Kind_::Binpack, "memory")],
    &[(Kind_::Spread, "attribute:rack"), (Kind_::Binpack, "cpu")],
    &[(Kind_::Spread, "instanceId")],
    &[(Kind_::Binpack, "cpu"), (Kind_::Spread, "attribute:ecs.availability-zone"), (Kind_::Spread, "attribute:rack")],
    &[(Kind_::Spread, "attribute:ecs.availability-zone"), (Kind_::Random, "")],
];

fn ask(dice: &mut Dice, spec: &mut TaskSpec) {
    spec.group = format!("service:{}", dice.roll(3));
    let chain = CHAINS[dice.roll(6) as usize];
    spec.placement_strategy = chain
        .iter()
        .map(|(kind, field)| PlacementStrategy { r#type: (*kind).into(), field: (*field).into() })
        .collect();
    let mut constrain = |kind: Constraint, expression: &str| {
        spec.placement_constraints.push(PlacementConstraint { r#type: kind.into(), expression: expression.into() });
    };
    match dice.roll(6) {
        0 => constrain(Constraint::DistinctInstance, ""),
        1 => constrain(Constraint::MemberOf, "attribute:rack in [1, 2]"),
        2 => constrain(Constraint::MemberOf, "not(task:group == service:1)"),
        _ => {}
    }
    let demand = spec.demand.as_mut().expect("a demand");
    match dice.roll(8) {
        0 => demand.ports.push(HostPort { port: 8000, protocol: 1, to: 8000 + dice.roll(3) as i32 }),
        1 => drop(demand.named.insert("GPU".into(), 1)),
        _ => {}
    }
    if dice.roll(8) == 0 {
        spec.requires_attributes.push(Attribute { name: "fast".into(), value: String::new() });
    }
    spec.priority = dice.roll(3) as i32;
    spec.preemptible = dice.roll(4) == 0;
}

fn instance(world: &mut World, dice: &mut Dice, number: u64) {
    let name = format!("n{number}");
    world.instance(&name, 500 + 100 * dice.roll(6) as i32, 500 + 100 * dice.roll(6) as i32);
    world.edit_instance(&name, |spec| {
        spec.registered_resources.as_mut().expect("resources").named.insert("GPU".into(), dice.roll(3) as i32);
    });
    world.attribute(&name, "ecs.availability-zone", &format!("z{}", dice.roll(3)));
    if dice.roll(5) > 0 {
        world.attribute(&name, "rack", &dice.roll(4).to_string());
    }
    if dice.roll(3) == 0 {
        world.attribute(&name, "fast", "");
    }
}

/// One more thing that happens.
fn happen(world: &mut World, dice: &mut Dice, step: u64) {
    match dice.roll(14) {
        4 => {
            let which = dice.roll(3);
            world.each_task(
                |spec, _| spec.slot as u64 % 3 == which && !spec.container_instance.is_empty(),
                |_, status| status.set_desired_status(steady_core::v1::desired_status::Value::Stopped),
            );
        }
        5 => {
            let (which, until) = (dice.roll(3), Timestamp(step as i64 * 1000 + dice.roll(5) as i64 * 1000));
            world.each_task(
                |spec, _| spec.slot as u64 % 3 == which,
                |spec, _| spec.protected_until = Some(until.into()),
            );
        }
        0 => {
            let number = dice.roll(8);
            instance(world, dice, number);
        }
        1 => {
            let name = format!("n{}", dice.roll(8));
            let key = Key::new(Kind::ContainerInstance, "default", &name);
            if world.view.get(&key).is_some() {
                world.drain(&name, dice.roll(2) == 0);
            }
        }
        2 => {
            let which = dice.roll(4);
            world.each_task(
                |spec, _| spec.slot as u64 % 4 == which,
                |_, status| status.set_last_status(Status::Stopped),
            );
        }
        3 => world.drop(&Key::new(Kind::ContainerInstance, "default", &format!("n{}", dice.roll(8)))),
        _ => {
            let (cpu, memory) = (50 * dice.roll(5) as i32, 50 * dice.roll(5) as i32);
            world.now = Timestamp(step as i64 * 1000);
            let mut spec = TaskSpec::default();
            spec.demand.get_or_insert_default();
            ask(dice, &mut spec);
            world.waiting(&format!("t{step}"), cpu, memory, |new| {
                let (demand, asked) = (new.demand.clone().expect("a demand"), spec.demand.clone().expect("a demand"));
                *new = TaskSpec {
                    demand: Some(Demand { cpu: demand.cpu, memory: demand.memory, ..asked }),
                    slot: step as i32,
                    ..spec.clone()
                };
            });
        }
    }
}

#[test]
fn a_fleet_that_followed_decides_what_a_new_one_does() {
    for seed in 0..60 {
        let (mut dice, mut world, mut fleet) = (Dice(seed), World::new(), Fleet::default());
        for step in 0..120 {
            happen(&mut world, &mut dice, step);
            if dice.roll(3) > 0 {
                continue;
            }
            let now = Timestamp(step as i64 * 1000);
            let followed = fleet.plan(&world.view, &cluster(), now, "");
            assert_eq!(followed, plan(&world.view, &cluster(), now), "seed {seed}, step {step}");
            // Not everything that is planned happens.
            for group in followed.groups.into_iter().filter(|_| dice.roll(5) > 0) {
                world.carry_out_all(group);
            }
        }
    }
}

/// The best instance by looking at each of them.
fn by_looking_at_all(world: &World, spec: &TaskSpec) -> Option<String> {
    let mut fleet = Fleet::default();
    fleet.follow(&world.view, "default");
    let number = fleet.class(spec);
    let class = &fleet.classes[number];
    let fits = |node: &&node::Node| class.refused(number, node, &fleet.groups).is_none();
    let crowd = |node: &node::Node, attribute: &str| -> i64 {
        let like =
            |other: &&node::Node| other.closed.is_none() && other.attribute(attribute) == node.attribute(attribute);
        fleet.nodes.iter().filter(like).map(|other| other.group(class.group)).sum()
    };
    let score = |node: &node::Node| -> Vec<i64> {
        let value = |step: &class::Step| match step {
            class::Step::Attribute(at) => crowd(node, &class.attributes[*at]),
            step => class.value(*step, node),
        };
        class.chain.iter().map(value).collect()
    };
    let best = fleet.nodes.iter().filter(fits).min_by_key(|node| (score(node), mixed(node.fixed.hash)));
    best.map(|node| node.name.to_string())
}

#[test]
fn the_index_finds_what_looking_at_every_instance_finds() {
    let mut placed = 0;
    for seed in 100..200 {
        let (mut dice, mut world, mut fleet) = (Dice(seed), World::new(), Fleet::default());
        (0..6).for_each(|number| instance(&mut world, &mut dice, number));
        for step in 0..40 {
            let mut spec =
                TaskSpec { demand: Some(Demand { cpu: 60, memory: 60, ..Demand::default() }), ..TaskSpec::default() };
            ask(&mut dice, &mut spec);
            spec.preemptible = false;
            let name = format!("t{step}");
            world.waiting(&name, 0, 0, |new| *new = spec.clone());
            let expected = by_looking_at_all(&world, &spec).unwrap_or_default();
            let plan = fleet.plan(&world.view, &cluster(), Timestamp(0), "");
            plan.groups.into_iter().for_each(|group| world.carry_out_all(group));
            assert_eq!(world.place(&name), expected, "seed {seed}, step {step}: {spec:?}");
            placed += usize::from(!expected.is_empty());
            if expected.is_empty() {
                world.drop(&Key::new(Kind::Task, "default", &name));
            }
        }
    }
    assert!(placed > 1000, "{placed} were placed");
}

/// What a scheduler binds, of those that are there.
fn taken(world: &World, holder: &str, now: Timestamp) -> Vec<SmolStr> {
    let plan = Fleet::default().plan(&world.view, &cluster(), now, holder);
    let tasks = |change: &Change| match change {
        Change::Bind(bind) => bind.tasks.iter().map(|(name, _)| name.clone()).collect(),
        _ => Vec::new(),
    };
    plan.changes().flat_map(tasks).collect()
}

#[test]
fn schedulers_take_turns_at_each_group_as_long_as_it_waits() {
    let mut world = World::new();
    world.instance("a", 10_000, 10_000);
    for number in 0..40 {
        world.waiting(&format!("t{number}"), 1, 1, |spec| spec.group = format!("service:{number}"));
    }
    for holder in ["one", "two", "three"] {
        world.lease(&format!("{LEASE}{holder}"));
    }
    let takes = |holder: &str, now: Timestamp| taken(&world, holder, now);
    for turn in 0..7 {
        let each = ["one", "two", "three"].map(|holder| takes(holder, Timestamp(turn * 15_000)));
        let mut all: Vec<_> = each.iter().flatten().collect();
        all.sort();
        all.dedup();
        assert_eq!((each.iter().map(Vec::len).sum::<usize>(), all.len()), (40, 40), "each by one of them: {each:?}");
        assert!(each.iter().all(|own| own.len() > 3), "{each:?}");
    }
    let of_one = |turn: i64| takes("one", Timestamp(turn * 15_000));
    let mut all = [of_one(0), of_one(1), of_one(2)].concat();
    all.sort();
    all.dedup();
    assert_eq!((all.len(), of_one(3)), (40, of_one(0)), "each is everybody's once in a round");
    let plan = Fleet::default().plan(&world.view, &cluster(), Timestamp(4000), "one");
    assert_eq!(plan.wake_at, Some(Timestamp(15_000)), "it looks again when the next turn comes");
}

#[test]
fn a_scheduler_leaves_the_room_of_one_that_has_waited_for_long_to_the_one_whose_turn_it_is() {
    let mut world = World::new();
    world.instance("a", 10_000, 1000);
    world.waiting("big", 1, 1000, |spec| spec.group = "service:big".into());
    world.now = Timestamp(65_000);
    for number in 0..20 {
        world.waiting(&format!("small{number}"), 1, 100, |spec| spec.group = format!("service:{number}"));
    }
    for holder in ["one", "two"] {
        world.lease(&format!("{LEASE}{holder}"));
    }
    let both = ["one", "two"].map(|holder| taken(&world, holder, Timestamp(66_000))).concat();
    assert_eq!(both, ["big"], "by one of them, and nothing by the other");
}
