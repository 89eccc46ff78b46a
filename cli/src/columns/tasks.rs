//! Tasks in tables: their ids, addresses and reasons.

use steady_core::{Kind, condition, task};
use steady_proto::v1::Object;
use steady_proto::v1::task_last_status::Value as Status;
use steady_proto::v1::transport_protocol::Value as Protocol;

use super::{Row, cells, state};
use crate::table::Cell;
use crate::world::World;

/// As much of a task's id as a person needs.
pub fn short_id(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// A task's status as ECS spells it; one that nobody has touched yet is PROVISIONING.
pub fn status_word(status: Status) -> &'static str {
    cells::name(status.as_str_name(), "PROVISIONING")
}

pub(super) fn row(object: &Object, world: &World, age: String, wide: bool) -> Row {
    let Some(task) = task::of(object) else {
        return (vec![Cell::default(); 8], vec![Cell::default(); 2]);
    };
    let id = if wide { object.name() } else { short_id(object.name()) };
    let (spec, status) = (task.spec, task.status);
    (
        vec![
            id.into(),
            spec.group.clone().into(),
            spec.task_definition.clone().into(),
            state(status_word(status.last_status())),
            cells::name(status.desired_status().as_str_name(), "RUNNING").into(),
            spec.container_instance.clone().into(),
            addresses(object, world).join(",").into(),
            age.into(),
        ],
        vec![state(cells::name(status.health_status().as_str_name(), "")), reason(object).into()],
    )
}

/// Why a task is not running: what it waits for, why it stopped, or what its containers say.
pub fn reason(object: &Object) -> String {
    let Some(task) = task::of(object) else { return String::new() };
    if let Some(waiting) = condition::waiting(&task.status.conditions) {
        return waiting.message.clone();
    }
    let container = task.status.containers.iter().find(|c| !c.reason.is_empty()).map(|c| c.reason.as_str());
    match (task.status.stopped_reason.as_str(), container) {
        ("", container) => container.unwrap_or_default().to_owned(),
        (reason, Some(container)) if reason != container => format!("{reason}: {container}"),
        (reason, _) => reason.to_owned(),
    }
}

/// `host:port` of each of a task's host ports, udp ones with `/udp`.
pub fn addresses(object: &Object, world: &World) -> Vec<String> {
    bindings(object, world)
        .into_iter()
        .map(
            |(host, port, protocol)| {
                if protocol == Protocol::Udp { format!("{host}:{port}/udp") } else { format!("{host}:{port}") }
            },
        )
        .collect()
}

/// `http://host:port` of each of a task's tcp ports.
pub fn urls(object: &Object, world: &World) -> Vec<String> {
    bindings(object, world)
        .into_iter()
        .filter(|(_, _, protocol)| *protocol != Protocol::Udp)
        .map(|(host, port, _)| format!("http://{host}:{port}"))
        .collect()
}

fn bindings(object: &Object, world: &World) -> Vec<(String, i32, Protocol)> {
    let Some(task) = task::of(object).filter(task::View::is_live) else { return Vec::new() };
    let instance = world.get(Kind::ContainerInstance, object.cluster(), &task.spec.container_instance);
    let address = instance
        .and_then(|i| Some(i.as_container_instance()?.spec.as_ref()?.address.as_str()))
        .filter(|address| !address.is_empty())
        .unwrap_or("127.0.0.1");
    let mut found: Vec<(String, i32, Protocol)> = task
        .status
        .containers
        .iter()
        .flat_map(|container| &container.network_bindings)
        .map(|binding| {
            // A port that listens everywhere is reached at its instance's address.
            let anywhere = matches!(binding.bind_ip.as_str(), "" | "0.0.0.0" | "::");
            let host = if anywhere { address } else { &binding.bind_ip };
            let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
            (host, binding.host_port, binding.protocol())
        })
        .collect();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_proto::v1::{
        Container, ContainerInstance, ContainerInstanceSpec, NetworkBinding, Task, TaskSpec, TaskStatus,
    };

    #[test]
    fn a_port_that_listens_everywhere_is_shown_at_the_address_of_its_instance() {
        let binding = |ip: &str, port, protocol: Protocol| NetworkBinding {
            bind_ip: ip.into(),
            container_port: 80,
            host_port: port,
            protocol: protocol.into(),
        };
        let network_bindings = vec![binding("0.0.0.0", 32768, Protocol::Tcp), binding("127.0.0.1", 53, Protocol::Udp)];
        let status =
            TaskStatus { containers: vec![Container { network_bindings, ..Default::default() }], ..Default::default() };
        let spec = TaskSpec { container_instance: "node-1".into(), ..Default::default() };
        let object = Object::new("default", "a", Task { spec: Some(spec), status: Some(status) });
        let spec = ContainerInstanceSpec { address: "10.0.0.5".into(), ..Default::default() };
        let mut world = World::default();
        world.add(vec![Object::new("default", "node-1", ContainerInstance { spec: Some(spec), ..Default::default() })]);
        assert_eq!(addresses(&object, &world), ["10.0.0.5:32768", "127.0.0.1:53/udp"]);
        assert_eq!(urls(&object, &world), ["http://10.0.0.5:32768"]);
    }
}
