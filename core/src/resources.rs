//! CPU, memory and ports: what a task takes and what an instance has left.

use std::collections::BTreeSet;

use steady_proto::v1::network_mode::Value as NetworkMode;
use steady_proto::v1::transport_protocol::Value as Protocol;
use steady_proto::v1::{ContainerDefinition, Demand, HostPort, InstanceResources, TaskDefinitionSpec};

/// CPU units of `1024` or `1 vCPU`. `None` for anything else.
pub fn parse_cpu(text: &str) -> Option<i32> {
    let text = text.trim();
    let lower = text.to_ascii_lowercase();
    match lower.strip_suffix("vcpu") {
        Some(cores) => {
            let cores: f64 = cores.trim().parse().ok().filter(|c: &f64| c.is_finite() && *c >= 0.0 && *c <= 1e6)?;
            Some((cores * 1024.0).round() as i32)
        }
        None => text.parse().ok(),
    }
}

/// MiB of `512`, `512 MB` or `0.5 GB`. `None` for anything else.
pub fn parse_memory(text: &str) -> Option<i32> {
    let lower = text.trim().to_ascii_lowercase();
    if let Some(gib) = lower.strip_suffix("gb") {
        let gib: f64 = gib.trim().parse().ok().filter(|g: &f64| g.is_finite() && *g >= 0.0 && *g <= 1e6)?;
        return Some((gib * 1024.0).round() as i32);
    }
    lower.strip_suffix("mb").unwrap_or(&lower).trim().parse().ok()
}

/// Host ports that a definition asks for by number.
pub fn host_ports(spec: &TaskDefinitionSpec) -> Vec<HostPort> {
    let host = matches!(spec.network_mode(), NetworkMode::Host);
    let mappings = spec.container_definitions.iter().flat_map(|c| &c.port_mappings);
    mappings
        .filter_map(|mapping| {
            let port = if host { mapping.container_port } else { mapping.host_port };
            (port != 0).then(|| HostPort { port, protocol: protocol(mapping.protocol()).into() })
        })
        .collect()
}

/// The protocol that is meant: tcp where none is named.
pub fn protocol(named: Protocol) -> Protocol {
    if named == Protocol::Udp { Protocol::Udp } else { Protocol::Tcp }
}

/// MiB that placement counts for a container: its reservation, else its limit.
pub fn container_memory(container: &ContainerDefinition) -> i32 {
    if container.memory_reservation > 0 { container.memory_reservation } else { container.memory }
}

/// What placement counts for a task of this definition: the task's own cpu and memory where it has them,
/// else the sum of its containers' (ECS).
pub fn demand(spec: &TaskDefinitionSpec) -> Demand {
    let containers = &spec.container_definitions;
    let cpu = parse_cpu(&spec.cpu).unwrap_or_else(|| containers.iter().map(|c| c.cpu).sum());
    let memory = parse_memory(&spec.memory).unwrap_or_else(|| containers.iter().map(container_memory).sum());
    Demand { cpu, memory, ports: host_ports(spec) }
}

/// What an instance has left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Free {
    /// CPU units.
    pub cpu: i64,
    /// MiB.
    pub memory: i64,
    taken: BTreeSet<(i32, i32)>,
    reserved: Vec<(i32, i32)>,
}

impl Free {
    /// All that an instance registered.
    pub fn of(registered: &InstanceResources) -> Self {
        Free {
            cpu: registered.cpu.into(),
            memory: registered.memory.into(),
            taken: BTreeSet::new(),
            reserved: registered.reserved_ports.iter().map(|r| (r.from, r.to)).collect(),
        }
    }

    /// Takes away what a task has.
    pub fn take(&mut self, demand: &Demand) {
        self.cpu -= i64::from(demand.cpu);
        self.memory -= i64::from(demand.memory);
        self.taken.extend(demand.ports.iter().map(|p| (p.port, p.protocol)));
    }

    /// First of the task's host ports that is in use or reserved here.
    pub fn port_conflict(&self, demand: &Demand) -> Option<i32> {
        let busy = |p: &&HostPort| {
            self.taken.contains(&(p.port, p.protocol))
                || self.reserved.iter().any(|(from, to)| (*from..=*to).contains(&p.port))
        };
        demand.ports.iter().find(busy).map(|p| p.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_and_memory_read_in_the_units_that_ecs_takes() {
        assert_eq!(parse_cpu("1 vCPU"), Some(1024));
        assert_eq!(parse_cpu(".25 vcpu"), Some(256));
        assert_eq!(parse_cpu("512"), Some(512));
        assert_eq!(parse_cpu("many"), None);
        assert_eq!(parse_memory("0.5 GB"), Some(512));
        assert_eq!(parse_memory("512MB"), Some(512));
        assert_eq!(parse_memory("-"), None);
    }

    #[test]
    fn a_task_takes_its_own_size_or_the_sum_of_its_containers() {
        let mut spec = TaskDefinitionSpec {
            container_definitions: vec![
                ContainerDefinition { cpu: 100, memory: 300, memory_reservation: 200, ..Default::default() },
                ContainerDefinition { cpu: 50, memory: 64, ..Default::default() },
            ],
            ..Default::default()
        };
        assert_eq!((demand(&spec).cpu, demand(&spec).memory), (150, 264));
        spec.cpu = "1 vCPU".into();
        spec.memory = "2 GB".into();
        assert_eq!((demand(&spec).cpu, demand(&spec).memory), (1024, 2048));
    }
}
