//! The pause container: holds what the containers of a task share, for as long as any of them is there. It is the first to
//! start and the last to stop; when it ends the task ends. Nobody is told of it (as with ECS' agent).

use steady_core::v1::container_condition::Value as Condition;
use steady_core::v1::network_mode::Value as NetworkMode;
use steady_core::v1::{ContainerDefinition, ContainerDependency, SystemControl, TaskDefinitionSpec};

use crate::runtime::PAUSE;

/// The image that is the running steady program.
const IMAGE: &str = "steady:self";

/// Whether containers of a definition share something that has to be held.
pub(super) fn is_needed(definition: &TaskDefinitionSpec) -> bool {
    definition.network_mode() == NetworkMode::Awsvpc || definition.pid_mode == "task" || definition.ipc_mode == "task"
}

/// The pause container of a task. What belongs to the network is its own: names of servers, kernel parameters.
pub(super) fn of(definition: &TaskDefinitionSpec) -> ContainerDefinition {
    let containers = &definition.container_definitions;
    let mut pause = ContainerDefinition {
        name: PAUSE.to_owned(),
        image: IMAGE.to_owned(),
        command: ["/usr/local/bin/steady", "__pause"].map(str::to_owned).to_vec(),
        stop_timeout: Some(0),
        ..ContainerDefinition::default()
    };
    if definition.network_mode() == NetworkMode::Awsvpc {
        let distinct = |lists: Vec<&String>| {
            let mut found: Vec<String> = Vec::new();
            for item in lists {
                if !found.contains(item) {
                    found.push(item.clone());
                }
            }
            found
        };
        pause.dns_servers = distinct(containers.iter().flat_map(|c| &c.dns_servers).collect());
        pause.dns_search_domains = distinct(containers.iter().flat_map(|c| &c.dns_search_domains).collect());
        // Of a parameter that several containers set the last one counts (ECS).
        let mut controls: Vec<SystemControl> = Vec::new();
        for control in containers.iter().flat_map(|c| &c.system_controls).filter(|c| is_of_network(c)) {
            controls.retain(|known| known.namespace != control.namespace);
            controls.push(control.clone());
        }
        pause.system_controls = controls;
    }
    pause
}

/// A container of a task with a pause container: waits for it, and leaves to it what is the network's.
pub(super) fn depend(definition: &mut ContainerDefinition, network: NetworkMode) {
    let condition = Condition::Start.into();
    definition.depends_on.push(ContainerDependency { container_name: PAUSE.to_owned(), condition });
    if network == NetworkMode::Awsvpc {
        definition.dns_servers.clear();
        definition.dns_search_domains.clear();
        definition.system_controls.retain(|control| !is_of_network(control));
    }
}

fn is_of_network(control: &SystemControl) -> bool {
    control.namespace.starts_with("net.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_network_s_moves_to_the_pause_container() {
        let control = |name: &str, value: &str| SystemControl { namespace: name.into(), value: value.into() };
        let container = |value: &str| ContainerDefinition {
            dns_servers: vec!["10.0.0.2".into()],
            system_controls: vec![control("net.core.somaxconn", value), control("kernel.msgmax", "9")],
            ..ContainerDefinition::default()
        };
        let mut definition = TaskDefinitionSpec {
            container_definitions: vec![container("1"), container("2")],
            ..TaskDefinitionSpec::default()
        };
        assert!(!is_needed(&definition));
        definition.set_network_mode(NetworkMode::Awsvpc);
        assert!(is_needed(&definition));
        let pause = of(&definition);
        assert_eq!(
            (pause.dns_servers, pause.system_controls),
            (vec!["10.0.0.2".to_owned()], vec![control("net.core.somaxconn", "2")])
        );
        let mut first = container("1");
        depend(&mut first, NetworkMode::Awsvpc);
        assert_eq!((first.dns_servers, first.system_controls), (vec![], vec![control("kernel.msgmax", "9")]));
        assert_eq!(first.depends_on[0].container_name, PAUSE);
    }
}
