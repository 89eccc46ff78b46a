//! What is counted when it is asked for: an instance's free resources, a cluster's tasks.

use steady_core::{Kind, resources::Free, task};
use steady_proto::v1::Object;
use steady_proto::v1::task_last_status::Value as Status;

use super::{Row, cells, state, yes_no};
use crate::table::Cell;
use crate::world::World;

/// What an instance registered, has left and runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU units left.
    pub free_cpu: i64,
    /// CPU units registered.
    pub cpu: i64,
    /// MiB left.
    pub free_memory: i64,
    /// MiB registered.
    pub memory: i64,
    /// Tasks that are not STOPPED.
    pub tasks: usize,
}

impl Usage {
    /// Counts the tasks of an instance.
    pub fn of(instance: &Object, world: &World) -> Self {
        let spec = instance.as_container_instance().and_then(|i| i.spec.as_ref());
        let registered = spec.and_then(|s| s.registered_resources.clone()).unwrap_or_default();
        let free = free(instance, world);
        let tasks = world.view.on_instance(instance.cluster(), instance.name()).count();
        let (cpu, memory) = (registered.cpu.into(), registered.memory.into());
        Usage { free_cpu: free.cpu, cpu, free_memory: free.memory, memory, tasks }
    }
}

/// What an instance has left.
pub fn free(instance: &Object, world: &World) -> Free {
    let spec = instance.as_container_instance().and_then(|i| i.spec.as_ref());
    let registered = spec.and_then(|s| s.registered_resources.clone()).unwrap_or_default();
    let mut free = Free::of(&registered);
    for object in world.view.on_instance(instance.cluster(), instance.name()) {
        if let Some(demand) = task::of(object).and_then(|task| task.spec.demand.as_ref()) {
            free.take(demand);
        }
    }
    free
}

pub(super) fn instance(object: &Object, world: &World, age: String) -> Row {
    let spec = object.as_container_instance().and_then(|i| i.spec.clone()).unwrap_or_default();
    let status = object.as_container_instance().and_then(|i| i.status.clone()).unwrap_or_default();
    let usage = Usage::of(object, world);
    let shown = if status.lost { "LOST" } else { cells::name(spec.status().as_str_name(), "ACTIVE") };
    (
        vec![
            object.name().into(),
            state(shown),
            yes_no(status.agent_connected),
            spec.runtime.into(),
            format!("{}/{}", usage.free_cpu, usage.cpu).into(),
            format!("{}/{}", usage.free_memory, usage.memory).into(),
            usage.tasks.to_string().into(),
            age.into(),
        ],
        vec![spec.address.into(), spec.agent_version.into()],
    )
}

pub(super) fn cluster(object: &Object, world: &World) -> Vec<Cell> {
    let name = object.name();
    let (mut running, mut pending) = (0, 0);
    for object in world.view.in_cluster(Kind::Task, name) {
        match task::of(object).map(|task| task.status.last_status()) {
            Some(Status::Running) => running += 1,
            Some(Status::Provisioning | Status::Pending | Status::Activating | Status::Unspecified) => pending += 1,
            _ => {}
        }
    }
    let count = |kind| world.view.in_cluster(kind, name).count().to_string();
    vec![
        name.into(),
        count(Kind::Service).into(),
        format!("{running}/{pending}").into(),
        count(Kind::ContainerInstance).into(),
    ]
}

/// How many more tasks fit: of the largest task definition first, and of each capacity provider.
pub(super) fn schedulable(object: &Object, world: &World, wide: bool) -> Vec<Cell> {
    if !wide {
        return vec![];
    }
    let all = steady_plan::scheduler::schedulable(&world.view, object.name());
    let words = all.iter().map(|room| {
        let of = &room.capacity_provider;
        let of = if of.is_empty() { String::new() } else { format!("@{of}") };
        format!("{}{of}={}", room.task_definition, room.count)
    });
    vec![words.collect::<Vec<_>>().join(" ").into()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_proto::v1::{
        ContainerInstance, ContainerInstanceSpec, Demand, InstanceResources, Task, TaskSpec, TaskStatus,
    };

    #[test]
    fn stopped_tasks_take_nothing_from_their_instance() {
        let registered = InstanceResources { cpu: 2048, memory: 4096, ..InstanceResources::default() };
        let spec = ContainerInstanceSpec { registered_resources: Some(registered), ..Default::default() };
        let instance = Object::new("default", "node-1", ContainerInstance { spec: Some(spec), ..Default::default() });
        let mut world = World::default();
        for (name, status) in [("a", Status::Running), ("b", Status::Stopped)] {
            let spec = TaskSpec {
                container_instance: "node-1".into(),
                demand: Some(Demand { cpu: 256, memory: 128, ..Demand::default() }),
                ..Default::default()
            };
            let status = TaskStatus { last_status: status.into(), ..Default::default() };
            world.add(vec![Object::new("default", name, Task { spec: Some(spec), status: Some(status) })]);
        }
        let expected = Usage { free_cpu: 1792, cpu: 2048, free_memory: 3968, memory: 4096, tasks: 1 };
        assert_eq!(Usage::of(&instance, &world), expected);
    }
}
