//! Quality of packing: how many instances a stream of tasks needs, and how evenly spreading spreads them. Beside the least
//! that any placement needs, first-fit and chance, on tasks of the shape of published traces.
//!
//! Sizes: the Google cluster trace of 2011 (Reiss and others, 2012) has most tasks small, few large, CPU and memory loosely
//! coupled: here a share of cores from {1/16, 1/8, 1/4, 1/2, 1} with weights 30, 30, 25, 10, 5 and MiB for each core that are
//! half, once or twice the instances'. In services of 1 to 200 tasks, as long as the total asks.

use std::sync::Arc;

use steady_core::v1::placement_strategy_type::Value as Strategy;
use steady_core::v1::task_last_status::Value as Status;
use steady_core::v1::{
    Attribute, ContainerInstance, ContainerInstanceSpec, ContainerInstanceStatus, Demand, InstanceResources, Object,
    PlacementStrategy, Task, TaskSpec, TaskStatus, desired_status,
};
use steady_core::{Change, DEFAULT_CLUSTER, Key, Kind, Timestamp, View};
use steady_plan::scheduler::Fleet;

use crate::args::Scale;
use crate::report::{Report, Target};
use crate::sample::Sample;

/// An instance: 16 cores and 64 GiB.
const INSTANCE: (i32, i32) = (16 * 1024, 64 * 1024);
const INSTANCES: usize = 1000;
const ZONES: usize = 3;
/// Share of all the room that the tasks take together.
const FILL: f64 = 0.5;

/// Measures.
pub(crate) fn run(scale: Scale) -> Report {
    let mut report = Report::new("pack", "quality", scale);
    let (mut ours, mut memory, mut first_fit, mut chance) = <(Sample, Sample, Sample, Sample)>::default();
    let (mut spread, mut by_chance) = <(Sample, Sample)>::default();
    for round in 0..scale.rounds {
        let tasks = trace(u64::from(round) + 1);
        let least = least(&tasks);
        ours.push(used(&place(&tasks, &[(Strategy::Binpack, "cpu")])) / least);
        memory.push(used(&place(&tasks, &[(Strategy::Binpack, "memory")])) / least);
        first_fit.push(first_fitting(&tasks, |_| 0) / least);
        let mut dice = Dice(99 + u64::from(round));
        chance.push(first_fitting(&tasks, |count| dice.below(count as u64) as usize) / least);
        spread.push(unevenness(&tasks, &place(&tasks, &[])));
        by_chance.push(unevenness(&tasks, &place(&tasks, &[(Strategy::Random, "")])));
    }
    report.note(format!(
        "{INSTANCES} instances of {} CPU units and {} MiB; tasks take {:.0} % of them. Least: as many instances as all CPU, or \
         all memory, fills",
        INSTANCE.0,
        INSTANCE.1,
        FILL * 100.0
    ));
    report.goal("binpack by cpu: instances used over the least", "x", ours, Target::AtMost(1.1));
    report.figure("binpack by memory: instances used over the least", "x", memory);
    report.yardstick("first fit: instances used over the least", "x", first_fit);
    report.yardstick("chance: instances used over the least", "x", chance);
    report.goal(
        "spread: most and least tasks of a service in a zone apart, mean",
        "tasks",
        spread,
        Target::AtMost(1.0),
    );
    report.yardstick("random: most and least tasks of a service in a zone apart, mean", "tasks", by_chance);
    report
}

/// A task: its service, CPU units and MiB.
type Wanted = (usize, i32, i32);

fn trace(seed: u64) -> Vec<Wanted> {
    let mut dice = Dice(seed);
    let room = (INSTANCES as f64 * FILL * f64::from(INSTANCE.0)) as i64;
    let (mut tasks, mut taken, mut service) = (Vec::new(), 0, 0);
    while taken < room {
        let cpu = 1024
            / [(30, 16), (60, 8), (85, 4), (95, 2), (100, 1)][..]
                .iter()
                .copied()
                .find({
                    let rolled = dice.below(100);
                    move |(below, _)| rolled < *below
                })
                .map_or(1, |(_, share)| share);
        let memory = cpu * INSTANCE.1 / INSTANCE.0 * [1, 2, 4][dice.below(3) as usize] / 2;
        let count = 1 + dice.below(10) * dice.below(21);
        for _ in 0..count {
            tasks.push((service, cpu, memory));
            taken += i64::from(cpu);
        }
        service += 1;
    }
    // Memory is what is asked for too: never more than there is.
    tasks
}

/// The least number of instances that all tasks together fill.
fn least(tasks: &[Wanted]) -> f64 {
    let sum = |of: fn(&Wanted) -> i32| tasks.iter().map(|task| i64::from(of(task))).sum::<i64>() as f64;
    (sum(|t| t.1) / f64::from(INSTANCE.0)).max(sum(|t| t.2) / f64::from(INSTANCE.1)).ceil()
}

/// Instances that have a task.
fn used(places: &[usize]) -> f64 {
    let mut places = places.to_vec();
    places.sort_unstable();
    places.dedup();
    places.len() as f64
}

/// Instances used when each task goes to the first that has room, counted from one that `begin` says.
fn first_fitting(tasks: &[Wanted], mut begin: impl FnMut(usize) -> usize) -> f64 {
    let mut free = vec![INSTANCE; INSTANCES];
    let mut places = Vec::new();
    for (_, cpu, memory) in tasks {
        let from = begin(INSTANCES);
        let fits =
            (0..INSTANCES).map(|at| (at + from) % INSTANCES).find(|at| free[*at].0 >= *cpu && free[*at].1 >= *memory);
        let Some(at) = fits else { continue };
        free[at] = (free[at].0 - cpu, free[at].1 - memory);
        places.push(at);
    }
    used(&places)
}

/// How many more tasks a service has in the zone where it has most than where it has fewest, on average.
fn unevenness(tasks: &[Wanted], places: &[usize]) -> f64 {
    let services = tasks.last().map_or(0, |task| task.0 + 1);
    let mut counts = vec![[0_u32; ZONES]; services];
    for ((service, ..), place) in tasks.iter().zip(places) {
        counts[*service][place % ZONES] += 1;
    }
    let apart =
        |counts: &[u32; ZONES]| counts.iter().max().zip(counts.iter().min()).map_or(0, |(most, least)| most - least);
    counts.iter().map(apart).map(f64::from).sum::<f64>() / services as f64
}

/// Where the scheduler puts each task, by the number of the instance.
fn place(tasks: &[Wanted], chain: &[(Strategy, &str)]) -> Vec<usize> {
    let mut view = View::default();
    let mut revision = 0;
    let mut put = |view: &mut View, mut object: Object| {
        revision += 1;
        object.meta_mut().revision = revision;
        view.put(Arc::new(object));
    };
    for number in 0..INSTANCES {
        let spec = ContainerInstanceSpec {
            attributes: vec![Attribute {
                name: "ecs.availability-zone".into(),
                value: format!("zone-{}", number % ZONES),
            }],
            registered_resources: Some(InstanceResources {
                cpu: INSTANCE.0,
                memory: INSTANCE.1,
                ..InstanceResources::default()
            }),
            ..ContainerInstanceSpec::default()
        };
        let status = ContainerInstanceStatus { agent_connected: true, ..ContainerInstanceStatus::default() };
        let instance = ContainerInstance { spec: Some(spec), status: Some(status) };
        put(&mut view, Object::new(DEFAULT_CLUSTER, &format!("{number:04}"), instance));
    }
    for (number, (service, cpu, memory)) in tasks.iter().enumerate() {
        let strategies =
            chain.iter().map(|(kind, field)| PlacementStrategy { r#type: (*kind).into(), field: (*field).into() });
        let spec = TaskSpec {
            group: format!("service:{service}"),
            demand: Some(Demand { cpu: *cpu, memory: *memory, ..Demand::default() }),
            placement_strategy: strategies.collect(),
            ..TaskSpec::default()
        };
        let status = TaskStatus { desired_status: desired_status::Value::Running.into(), ..TaskStatus::default() };
        put(
            &mut view,
            Object::new(DEFAULT_CLUSTER, &format!("{number:06}"), Task { spec: Some(spec), status: Some(status) }),
        );
    }
    let mut fleet = Fleet::default();
    let mut places = vec![usize::MAX; tasks.len()];
    loop {
        let plan = fleet.plan(&view, &Key::new(Kind::Cluster, "", DEFAULT_CLUSTER), Timestamp(0), "");
        let mut count = 0;
        for change in plan.groups.into_iter().flatten() {
            let Change::Bind(bind) = change else { continue };
            for (name, _) in bind.tasks {
                let Some(object) = view.get(&Key::new(Kind::Task, DEFAULT_CLUSTER, &name)) else { continue };
                let Some(task) = object.as_task().cloned() else { continue };
                let spec =
                    TaskSpec { container_instance: bind.instance.name.to_string(), ..task.spec.unwrap_or_default() };
                let status = TaskStatus { last_status: Status::Pending.into(), ..task.status.unwrap_or_default() };
                put(&mut view, Object::new(DEFAULT_CLUSTER, &name, Task { spec: Some(spec), status: Some(status) }));
                if let (Ok(task), Ok(at)) = (name.parse::<usize>(), bind.instance.name.parse()) {
                    places[task] = at;
                }
                count += 1;
            }
        }
        if count == 0 {
            return places.into_iter().filter(|place| *place != usize::MAX).collect();
        }
    }
}

/// Chance from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        steady_core::hash::mixed(self.0) % sides
    }
}
