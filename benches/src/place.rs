//! P1: placements per second in memory: rounds of the scheduler on a view, without an API server or a store. The yardstick is
//! the least that a scheduler without an index can do: look at every instance's numbers for each task.
//!
//! A round is what the product runs: it takes in what changed in the view, places, and makes the plan to be committed. That
//! the plan happens (the view's own work) is not counted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use steady_core::v1::placement_constraint_type::Value as Constraint;
use steady_core::v1::placement_strategy_type::Value as Strategy;
use steady_core::v1::task_last_status::Value as Status;
use steady_core::v1::{
    Attribute, ContainerInstance, ContainerInstanceSpec, ContainerInstanceStatus, Demand, InstanceResources, Object,
    PlacementConstraint, PlacementStrategy, Reservation, Task, TaskSpec, TaskStatus, desired_status,
};
use steady_core::{Change, DEFAULT_CLUSTER, Key, Kind, Timestamp, View};
use steady_plan::scheduler::Fleet;

use crate::args::Scale;
use crate::machine::Others;
use crate::report::{Report, Target};
use crate::sample::Sample;

/// Instances of a cluster.
const SIZES: [usize; 3] = [100, 1_000, 10_000];
/// Percent of the room that is taken before.
const FILLS: [usize; 3] = [0, 10, 90];
/// Tasks that fit one instance.
const SLOTS: usize = 20;
/// Most tasks that wait at the beginning.
const WAITING: usize = 10_000;
/// Tasks of one service.
const SERVICE: usize = 2_500;
/// Rounds of one task each.
const SINGLES: usize = 500;
const ZONES: usize = 3;

/// What tasks ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    /// The default: by zones, then instances.
    Spread,
    Binpack,
    /// memberOf, distinctInstance, and spread by zone.
    Constrained,
    /// A hundred services, each with one of the above, in turn.
    Mixed,
}

impl Ask {
    fn name(self) -> &'static str {
        match self {
            Ask::Spread => "spread (default)",
            Ask::Binpack => "binpack by memory",
            Ask::Constrained => "memberOf + distinctInstance + spread by zone",
            Ask::Mixed => "100 services of all three, in turn",
        }
    }

    fn target(self) -> f64 {
        if matches!(self, Ask::Spread | Ask::Binpack) { 100_000.0 } else { 20_000.0 }
    }
}

/// Measures.
pub(crate) fn run(scale: Scale) -> Report {
    let mut report = Report::new("place", "P1", scale);
    let others = Others::watch(&[std::process::id()]);
    for ask in [Ask::Spread, Ask::Binpack, Ask::Constrained, Ask::Mixed] {
        for fill in FILLS {
            let mut costs = Vec::new();
            for size in SIZES {
                let (mut rate, mut single) = (Sample::default(), Sample::default());
                for _ in 0..scale.rounds {
                    rate.push(many(ask, size, fill));
                }
                costs.push(1.0 / rate.median());
                let name = format!("{}, {size} instances, {fill} % full", ask.name());
                if size == SIZES[2] {
                    report.goal(&name, "tasks/s", rate, Target::AtLeast(ask.target()));
                } else {
                    report.figure(&name, "tasks/s", rate);
                }
                if ask == Ask::Spread && fill == 10 {
                    single.push(one_by_one(size, fill));
                    report.figure(&format!("a round of one task, {size} instances, {fill} % full"), "µs", single);
                }
            }
            let growth = costs[2] / costs[0];
            let logarithm = (SIZES[2] as f64).log2() / (SIZES[0] as f64).log2();
            let name = format!("{}: cost of a task at 10,000 over 100 instances, {fill} % full", ask.name());
            report.goal(&name, "x", growth, Target::AtMost(logarithm));
        }
    }
    for size in SIZES {
        report.yardstick(&format!("looking at all of {size} instances for each task"), "tasks/s", scan(size));
    }
    report.others(&others);
    report
}

/// Placements per second of rounds until all that wait is placed.
fn many(ask: Ask, size: usize, fill: usize) -> f64 {
    let mut world = World::new(size, fill);
    let mut fleet = Fleet::default();
    fleet.plan(&world.view, &cluster(), Timestamp(0), "");
    let room = size * (SLOTS - SLOTS * fill / 100);
    let count = WAITING.min(room / 2).min(if ask == Ask::Constrained { size * 2 } else { usize::MAX });
    for number in 0..count {
        world.wait(ask, number, size);
    }
    let (mut spent, mut placed) = (Duration::ZERO, 0);
    while placed < count {
        let began = Instant::now();
        let plan = fleet.plan(&world.view, &cluster(), Timestamp(0), "");
        spent += began.elapsed();
        let bound = world.bind(plan.groups);
        assert!(bound > 0, "{placed} of {count} tasks are placed, and no more: {:?}", plan.waiting.first());
        placed += bound;
    }
    placed as f64 / spent.as_secs_f64()
}

/// Microseconds of a round that places one task.
fn one_by_one(size: usize, fill: usize) -> f64 {
    let mut world = World::new(size, fill);
    let mut fleet = Fleet::default();
    let mut spent = Duration::ZERO;
    for number in 0..=SINGLES {
        world.wait(Ask::Spread, number, size);
        let began = Instant::now();
        let plan = fleet.plan(&world.view, &cluster(), Timestamp(0), "");
        if number > 0 {
            spent += began.elapsed();
        }
        world.bind(plan.groups);
    }
    spent.as_secs_f64() * 1e6 / SINGLES as f64
}

/// Decisions per second of a scan over the numbers of every instance.
fn scan(size: usize) -> f64 {
    let mut nodes: Vec<(i64, i64, u32)> = (0..size).map(|_| (64 * 1024, 256 * 1024, 0)).collect();
    let began = Instant::now();
    let mut decided = 0;
    while began.elapsed() < Duration::from_millis(300) {
        let fits = nodes.iter().enumerate().filter(|(_, (cpu, memory, _))| *cpu >= 10 && *memory >= 16);
        let best = fits.min_by_key(|(_, (_, _, tasks))| *tasks).map_or(0, |(at, _)| at);
        let node = &mut nodes[best];
        *node = (node.0 - 10, node.1 - 16, node.2 + 1);
        decided += 1;
    }
    f64::from(decided) / began.elapsed().as_secs_f64()
}

fn cluster() -> Key {
    Key::new(Kind::Cluster, "", DEFAULT_CLUSTER)
}

/// A view, and what it takes to change it.
struct World {
    view: View,
    revision: i64,
}

impl World {
    fn new(size: usize, fill: usize) -> Self {
        let mut world = World { view: View::default(), revision: 0 };
        for number in 0..size {
            let attribute = |name: &str, value: String| Attribute { name: name.into(), value };
            let zone = attribute("ecs.availability-zone", format!("zone-{}", number % ZONES));
            let class = attribute("class", ["general", "compute", "memory"][number % 7 % 3].to_owned());
            let (cpu, memory) = (SLOTS as i32 * 100, SLOTS as i32 * 256);
            let spec = ContainerInstanceSpec {
                attributes: vec![zone, class],
                registered_resources: Some(InstanceResources { cpu, memory, ..InstanceResources::default() }),
                ..ContainerInstanceSpec::default()
            };
            let status = ContainerInstanceStatus { agent_connected: true, ..ContainerInstanceStatus::default() };
            let instance = ContainerInstance { spec: Some(spec), status: Some(status) };
            world.put(Object::new(DEFAULT_CLUSTER, &format!("node-{number:05}"), instance));
            for slot in 0..SLOTS * fill / 100 {
                let spec = TaskSpec {
                    container_instance: format!("node-{number:05}"),
                    ..spec_of(&format!("old-{}", slot % 7))
                };
                world.task(&format!("old-{number}-{slot}"), spec, Status::Running);
            }
        }
        world
    }

    fn wait(&mut self, ask: Ask, number: usize, size: usize) {
        let (ask, service) = match ask {
            Ask::Mixed => ([Ask::Spread, Ask::Binpack, Ask::Constrained][number % 100 % 3], number % 100),
            // Each on an instance of its own: no service has more tasks than a third of the instances.
            Ask::Constrained => (ask, number / (size / 4).clamp(1, SERVICE)),
            ask => (ask, number / SERVICE),
        };
        let mut spec = spec_of(&format!("service-{service}"));
        let strategy = |kind: Strategy, field: &str| PlacementStrategy { r#type: kind.into(), field: field.into() };
        match ask {
            Ask::Binpack => spec.placement_strategy.push(strategy(Strategy::Binpack, "memory")),
            Ask::Constrained => {
                spec.placement_strategy.push(strategy(Strategy::Spread, "attribute:ecs.availability-zone"));
                let constraint = |kind: Constraint, expression: &str| PlacementConstraint {
                    r#type: kind.into(),
                    expression: expression.into(),
                };
                let expression = "attribute:class in [general, memory] and attribute:ecs.availability-zone exists";
                spec.placement_constraints =
                    vec![constraint(Constraint::MemberOf, expression), constraint(Constraint::DistinctInstance, "")];
            }
            Ask::Spread | Ask::Mixed => {}
        }
        self.task(&format!("new-{number:06}"), spec, Status::Provisioning);
    }

    fn task(&mut self, name: &str, spec: TaskSpec, status: Status) {
        let status = TaskStatus {
            last_status: status.into(),
            desired_status: desired_status::Value::Running.into(),
            ..TaskStatus::default()
        };
        self.put(Object::new(DEFAULT_CLUSTER, name, Task { spec: Some(spec), status: Some(status) }));
    }

    fn put(&mut self, mut object: Object) {
        self.revision += 1;
        object.meta_mut().revision = self.revision;
        self.view.put(Arc::new(object));
    }

    /// Has happen what was planned; how many tasks were bound.
    fn bind(&mut self, groups: Vec<Vec<Change>>) -> usize {
        let mut count = 0;
        for change in groups.into_iter().flatten() {
            let Change::Bind(bind) = change else { continue };
            self.put(Object::new(DEFAULT_CLUSTER, &bind.instance.name, Reservation::default()));
            for (name, _) in &bind.tasks {
                let Some(object) = self.view.get(&Key::new(Kind::Task, DEFAULT_CLUSTER, name)) else { continue };
                let Some(task) = object.as_task().cloned() else { continue };
                let spec =
                    TaskSpec { container_instance: bind.instance.name.to_string(), ..task.spec.unwrap_or_default() };
                self.task(name, spec, Status::Pending);
                count += 1;
            }
        }
        count
    }
}

fn spec_of(service: &str) -> TaskSpec {
    TaskSpec {
        task_definition: "bench:1".into(),
        group: format!("service:{service}"),
        service: service.to_owned(),
        demand: Some(Demand { cpu: 100, memory: 256, ..Demand::default() }),
        ..TaskSpec::default()
    }
}
