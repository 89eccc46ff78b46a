//! `steady top services`, `tasks` and `instances`: what agents said last, against what is reserved.

use std::collections::{BTreeMap, BTreeSet};

use steady_core::{Key, Kind, task};
use steady_proto::v1::{Demand, InstanceUsage};

use crate::args::Global;
use crate::client::Client;
use crate::columns::short_id;
use crate::failure::Failure;
use crate::out::Style;
use crate::table::{Cell, Table};
use crate::target;
use crate::top::bytes;
use crate::world::World;

const MIB: f64 = 1024.0 * 1024.0;

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// Services: their tasks together.
    Services,
    /// Tasks.
    Tasks,
    /// Container instances: the tasks on them together.
    Instances,
}

impl Of {
    /// As the command line writes it.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "services" => Some(Of::Services),
            "tasks" => Some(Of::Tasks),
            "instances" => Some(Of::Instances),
            _ => None,
        }
    }
}

/// What something takes of what it has.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Taken {
    tasks: i32,
    /// Tasks of which something is known.
    known: i32,
    /// CPU units.
    cpu: f64,
    /// Bytes.
    memory: f64,
    reserved: (f64, f64),
    /// Of the tasks of which something is known.
    against: (f64, f64),
}

impl Taken {
    fn add(&mut self, demand: Option<&Demand>, told: Option<(f64, f64)>) {
        let reserved = demand.map_or((0.0, 0.0), |d| (f64::from(d.cpu), f64::from(d.memory) * MIB));
        self.tasks += 1;
        self.reserved = (self.reserved.0 + reserved.0, self.reserved.1 + reserved.1);
        if let Some((cpu, memory)) = told {
            self.known += 1;
            self.cpu += cpu;
            self.memory += memory;
            self.against = (self.against.0 + reserved.0, self.against.1 + reserved.1);
        }
    }

    fn cells(&self, against: (f64, f64)) -> Vec<Cell> {
        let percent = |part: f64, whole: f64| if whole > 0.0 { Some(100.0 * part / whole) } else { None };
        let cell = |percent: Option<f64>| {
            let style = if percent.is_some_and(|percent| percent >= 90.0) { Style::Busy } else { Style::Plain };
            Cell::styled(percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent:.0}%")), style)
        };
        if self.known == 0 {
            return vec!["-".into(), "-".into(), "-".into(), "-".into()];
        }
        vec![
            format!("{:.0}", self.cpu).into(),
            cell(percent(self.cpu, against.0)),
            bytes(self.memory as u64).into(),
            cell(percent(self.memory, against.1)),
        ]
    }
}

/// One look: the table, and how many running tasks nothing is known of.
pub async fn look(client: &Client, of: Of, global: &Global, color: bool) -> Result<(Table, usize), Failure> {
    let cluster = &global.cluster;
    let mut world = World::default();
    world.add(client.list(Kind::Task, target::in_cluster(cluster)).await?);
    if of == Of::Instances {
        world.add(client.list(Kind::ContainerInstance, target::in_cluster(cluster)).await?);
    }
    let usage = client.usage(cluster).await?;
    Ok(table(&world, &usage, of, cluster, color))
}

fn table(world: &World, usage: &[InstanceUsage], of: Of, cluster: &str, color: bool) -> (Table, usize) {
    let told: BTreeMap<&str, (f64, f64)> = usage
        .iter()
        .flat_map(|instance| &instance.tasks)
        .map(|task| (task.task.as_str(), (task.cpu, task.memory_bytes as f64)))
        .collect();
    let running =
        || world.view.in_cluster(Kind::Task, cluster).filter_map(|o| task::of(o)).filter(task::View::is_running);
    let silent = running().filter(|found| !told.contains_key(found.object.name())).count();
    let mut rows: BTreeMap<Vec<String>, Taken> = BTreeMap::new();
    let mut instances: BTreeSet<String> =
        world.view.in_cluster(Kind::ContainerInstance, cluster).map(|instance| instance.name().to_owned()).collect();
    for found in running() {
        let (service, instance) = (&found.spec.service, &found.spec.container_instance);
        let key = match of {
            Of::Services if service.is_empty() => continue,
            Of::Services => vec![service.clone()],
            Of::Tasks => vec![found.object.name().to_owned(), service.clone(), instance.clone()],
            Of::Instances => vec![instance.clone()],
        };
        instances.remove(instance);
        rows.entry(key).or_default().add(found.spec.demand.as_ref(), told.get(found.object.name()).copied());
    }
    if of == Of::Instances {
        // Those without a task take nothing.
        rows.extend(instances.into_iter().map(|name| (vec![name], Taken { known: 1, ..Taken::default() })));
    }
    let heads: &[&str] = match of {
        Of::Services => &["SERVICE", "TASKS", "CPU", "OF-RESERVED", "MEMORY", "OF-RESERVED"],
        Of::Tasks => &["TASK", "SERVICE", "INSTANCE", "CPU", "OF-RESERVED", "MEMORY", "OF-RESERVED"],
        Of::Instances => &["INSTANCE", "TASKS", "RESERVED", "CPU", "OF-ALL", "MEMORY", "OF-ALL"],
    };
    let mut rows: Vec<(Vec<String>, Taken)> = rows.into_iter().collect();
    rows.sort_by(|(_, a), (_, b)| b.cpu.total_cmp(&a.cpu));
    let mut table = Table::new(heads, color);
    for (key, taken) in rows {
        let mut cells: Vec<Cell> = match of {
            Of::Tasks => vec![short_id(&key[0]).into(), key[1].clone().into(), key[2].clone().into()],
            _ => vec![key[0].clone().into(), taken.tasks.to_string().into()],
        };
        let against = if of == Of::Instances {
            let has = has(world, cluster, &key[0]);
            let part = |reserved: f64, has: f64| if has > 0.0 { 100.0 * reserved / has } else { 0.0 };
            let reserved = (part(taken.reserved.0, has.0), part(taken.reserved.1, has.1));
            cells.push(format!("{:.0}%/{:.0}%", reserved.0, reserved.1).into());
            has
        } else {
            taken.against
        };
        cells.extend(taken.cells(against));
        table.push(cells);
    }
    (table, silent)
}

/// CPU units and bytes of an instance.
fn has(world: &World, cluster: &str, name: &str) -> (f64, f64) {
    let found = world.view.get(&Key::new(Kind::ContainerInstance, cluster, name));
    let registered = found.and_then(|i| i.as_container_instance()?.spec.as_ref()?.registered_resources.as_ref());
    registered.map_or((0.0, 0.0), |has| (f64::from(has.cpu), f64::from(has.memory) * MIB))
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_proto::v1::{Object, Task, TaskSpec, TaskStatus, TaskUsage, desired_status, task_last_status};

    #[test]
    fn services_take_what_their_tasks_take_of_what_those_reserve() {
        let mut world = World::default();
        for (name, service) in [("a", "web"), ("b", "web"), ("c", "web"), ("d", "")] {
            let demand = Demand { cpu: 256, memory: 64, ..Demand::default() };
            let spec = TaskSpec { service: service.into(), demand: Some(demand), ..TaskSpec::default() };
            let mut status = TaskStatus::default();
            status.set_last_status(task_last_status::Value::Running);
            status.set_desired_status(desired_status::Value::Running);
            world.add(vec![Object::new("default", name, Task { spec: Some(spec), status: Some(status) })]);
        }
        let told = |name: &str, cpu: f64| TaskUsage { task: name.into(), cpu, memory_bytes: 32 << 20 };
        let tasks = vec![told("a", 128.0), told("b", 256.0), told("d", 0.0)];
        let usage = [InstanceUsage { container_instance: "m".into(), tasks }];
        let (services, silent) = table(&world, &usage, Of::Services, "default", false);
        let text = services.render();
        assert_eq!(silent, 1);
        let row: Vec<&str> = text.lines().nth(1).expect("a row").split_whitespace().collect();
        // Of the two that are known, not of the three that there are.
        assert_eq!(row, ["web", "3", "384", "75%", "64.0", "MiB", "50%"]);
        let (tasks, _) = table(&world, &usage, Of::Tasks, "default", false);
        assert_eq!(tasks.render().lines().count(), 5);
    }
}
