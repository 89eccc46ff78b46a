//! CPU, memory, ports and whatever else has a name: what a task takes and what an instance has left.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use steady_proto::v1::network_mode::Value as NetworkMode;
use steady_proto::v1::transport_protocol::Value as Protocol;
use steady_proto::v1::{
    Attribute, ContainerDefinition, Demand, HostPort, InstanceResources, LinuxParameters, PortMapping,
    TaskDefinitionSpec,
};

use crate::guard::{self, Guard};

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
    // A task with an address of its own takes no port of the instance.
    if spec.network_mode() == NetworkMode::Awsvpc {
        return Vec::new();
    }
    let host = matches!(spec.network_mode(), NetworkMode::Host);
    let mappings = spec.container_definitions.iter().flat_map(|c| &c.port_mappings);
    mappings
        .filter_map(|mapping| {
            let (from, to) = container_ports(mapping)?;
            let port = if host { from } else { mapping.host_port };
            let to = if host && to > from { to } else { 0 };
            (port != 0).then(|| HostPort { port, protocol: protocol(mapping.protocol()).into(), to })
        })
        .collect()
}

/// First and last container port of a mapping. `None`: its range is not `FROM-TO`.
pub fn container_ports(mapping: &PortMapping) -> Option<(i32, i32)> {
    if mapping.container_port_range.is_empty() {
        return Some((mapping.container_port, mapping.container_port));
    }
    let (from, to) = mapping.container_port_range.split_once('-')?;
    Some((from.trim().parse().ok()?, to.trim().parse().ok()?))
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
    Demand { cpu, memory, ports: host_ports(spec), named: named(spec) }
}

/// Other resources that a definition asks for, GPUs among them.
fn named(spec: &TaskDefinitionSpec) -> BTreeMap<String, i32> {
    let mut named = BTreeMap::new();
    for asked in spec.container_definitions.iter().flat_map(|container| &container.resource_requirements) {
        *named.entry(asked.r#type.clone()).or_default() += asked.value.parse::<i32>().unwrap_or(0);
    }
    named
}

/// What an instance must have to run a task of this definition (ECS requiresAttributes). What every instance can do is not
/// among it.
pub fn requires_attributes(spec: &TaskDefinitionSpec) -> Vec<Attribute> {
    let containers = &spec.container_definitions;
    let mut required = Vec::new();
    let mut capability = |name: String| required.push(Attribute { name, value: String::new() });
    if containers.iter().any(|container| container.privileged) {
        capability(capability::PRIVILEGED.to_owned());
    }
    if spec.network_mode() == NetworkMode::Awsvpc {
        capability(capability::TASK_ENI.to_owned());
    }
    let volumes = || spec.volumes.iter().filter_map(|volume| volume.docker_volume_configuration.as_ref());
    let shares = !spec.pid_mode.is_empty() || !spec.ipc_mode.is_empty() || volumes().next().is_some();
    if shares || containers.iter().any(|container| engine_only(container).is_some()) {
        capability(capability::ENGINE.to_owned());
    }
    for driver in
        volumes().map(|docker| docker.driver.as_str()).filter(|d| !matches!(*d, "" | "local")).collect::<BTreeSet<_>>()
    {
        capability(format!("{}{driver}", capability::DOCKER_PLUGIN));
    }
    for driver in containers.iter().filter_map(log_driver).collect::<BTreeSet<_>>() {
        capability(format!("{}{driver}", capability::LOGGING_DRIVER));
    }
    if let Some(platform) = &spec.runtime_platform {
        let architecture = match platform.cpu_architecture.as_str() {
            "X86_64" => "x86_64",
            "ARM64" => "aarch64",
            _ => "",
        };
        let os = platform.operating_system_family.to_ascii_lowercase();
        let named = [("ecs.cpu-architecture", architecture), ("ecs.os-type", os.as_str())];
        let named = named.into_iter().filter(|(_, value)| !value.is_empty());
        required.extend(named.map(|(name, value)| Attribute { name: name.to_owned(), value: value.to_owned() }));
    }
    required
}

/// The first of a container's settings that only a container engine can see to, if it has any. Older settings are left out:
/// who has no engine refuses them when it is to make the container.
pub fn engine_only(container: &ContainerDefinition) -> Option<&'static str> {
    let settings = [
        (
            "linuxParameters",
            container.linux_parameters.as_ref().is_some_and(|linux| *linux != LinuxParameters::default()),
        ),
        ("links", !container.links.is_empty()),
        ("volumesFrom", !container.volumes_from.is_empty()),
        ("systemControls", !container.system_controls.is_empty()),
        ("dockerSecurityOptions", !container.docker_security_options.is_empty()),
        ("dnsSearchDomains", !container.dns_search_domains.is_empty()),
    ];
    settings.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
}

/// The log driver that a container names, if it is not the one that every instance has.
pub fn log_driver(container: &ContainerDefinition) -> Option<&str> {
    let driver = container.log_configuration.as_ref()?.log_driver.as_str();
    (!matches!(driver, "" | "json-file")).then_some(driver)
}

/// Container and alias of a link, `CONTAINER` or `CONTAINER:ALIAS`. `None` for anything else.
pub fn parse_link(link: &str) -> Option<(&str, &str)> {
    let (name, alias) = link.split_once(':').unwrap_or((link, link));
    let is_name = !alias.is_empty() && alias.len() <= 255;
    (is_name && alias.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))).then_some((name, alias))
}

/// Names of the containers of its task that have to have started before a container, besides those that its `dependsOn`
/// names: it is linked to them, or has their volumes (ECS).
pub fn implied_dependencies(container: &ContainerDefinition) -> impl Iterator<Item = &str> {
    let linked = container.links.iter().filter_map(|link| parse_link(link)).map(|(name, _)| name);
    linked.chain(container.volumes_from.iter().map(|from| from.source_container.as_str()))
}

/// Attributes by which agents say what they can do (ECS).
pub mod capability {
    /// Privileged containers.
    pub const PRIVILEGED: &str = "com.amazonaws.ecs.capability.privileged-container";
    /// A volume driver, by its name behind this.
    pub const DOCKER_PLUGIN: &str = "com.amazonaws.ecs.capability.docker-plugin.";
    /// Addresses of tasks (networkMode awsvpc).
    pub const TASK_ENI: &str = "ecs.capability.task-eni";
    /// A Docker Engine: the settings that are its own.
    pub const ENGINE: &str = "com.amazonaws.ecs.capability.docker-remote-api.1.24";
    /// Security groups: nftables in networks of tasks.
    pub const SECURITY_GROUPS: &str = "steady.capability.security-groups";
    /// A log driver, by its name.
    pub const LOGGING_DRIVER: &str = "com.amazonaws.ecs.capability.logging-driver.";
}

/// Whether an instance with these attributes has one that is required: a value that is empty asks for none.
pub fn has_attribute<'a>(required: &Attribute, mut of_instance: impl Iterator<Item = (&'a str, &'a str)>) -> bool {
    of_instance.any(|(name, value)| name == required.name && (required.value.is_empty() || value == required.value))
}

/// What an instance has left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Free {
    /// CPU units.
    pub cpu: i64,
    /// MiB.
    pub memory: i64,
    /// Other resources by name.
    pub named: BTreeMap<String, i64>,
    /// Protocol, first and last port, of tasks and reserved, in the order in which they came.
    taken: Vec<(i32, i32, i32)>,
    reserved: Vec<(i32, i32)>,
}

/// What an instance has too little of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Short {
    /// MiB that are left.
    Memory(i64),
    /// CPU units that are left.
    Cpu(i64),
    /// A host port that is in use or reserved.
    Port(i32),
    /// Another resource, and how many are left.
    Named(String, i64),
}

impl Short {
    /// ECS' name of the reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Short::Memory(_) => "RESOURCE:MEMORY",
            Short::Cpu(_) => "RESOURCE:CPU",
            Short::Port(_) => "RESOURCE:PORTS",
            Short::Named(name, _) if name == "GPU" => "RESOURCE:GPU",
            Short::Named(..) => "RESOURCE:OTHER",
        }
    }
}

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Short::Memory(left) => write!(f, "{left} MiB are free"),
            Short::Cpu(left) => write!(f, "{left} CPU units are free"),
            Short::Port(port) => write!(f, "host port {port} is in use"),
            Short::Named(name, left) => write!(f, "{left} {name} are free"),
        }
    }
}

impl Free {
    /// All that an instance registered.
    pub fn of(registered: &InstanceResources) -> Self {
        let mut free = Free::default();
        free.reset(registered);
        free
    }

    /// The same in place.
    pub fn reset(&mut self, registered: &InstanceResources) {
        (self.cpu, self.memory) = (registered.cpu.into(), registered.memory.into());
        self.named.clear();
        self.named.extend(registered.named.iter().map(|(name, count)| (name.clone(), i64::from(*count))));
        self.taken.clear();
        self.reserved.clear();
        self.reserved.extend(registered.reserved_ports.iter().map(|r| (r.from, r.to)));
    }

    /// Takes away what a task has.
    pub fn take(&mut self, demand: &Demand) {
        self.cpu -= i64::from(demand.cpu);
        self.memory -= i64::from(demand.memory);
        for (name, count) in &demand.named {
            *self.named.entry(name.clone()).or_default() -= i64::from(*count);
        }
        self.taken.extend(demand.ports.iter().map(range));
    }

    /// Gives back what a task had.
    pub fn give_back(&mut self, demand: &Demand) {
        self.cpu += i64::from(demand.cpu);
        self.memory += i64::from(demand.memory);
        for (name, count) in &demand.named {
            *self.named.entry(name.clone()).or_default() += i64::from(*count);
        }
        for port in demand.ports.iter().map(range) {
            if let Some(at) = self.taken.iter().position(|taken| *taken == port) {
                self.taken.swap_remove(at);
            }
        }
    }

    /// First of the task's host ports that is in use or reserved here.
    pub fn port_conflict(&self, demand: &Demand) -> Option<i32> {
        let busy = |port: &&HostPort| {
            let (protocol, from, to) = range(port);
            self.taken.iter().any(|(used, first, last)| *used == protocol && *first <= to && from <= *last)
                || self.reserved.iter().any(|(first, last)| *first <= to && from <= *last)
        };
        demand.ports.iter().find(busy).map(|port| port.port)
    }

    /// What of all that a task takes there is too little of here, memory first, when these CPU units and MiB are kept free.
    pub fn short_of(&self, demand: &Demand, kept: (i64, i64)) -> Option<Short> {
        let (cpu, memory) = (self.cpu - kept.0, self.memory - kept.1);
        if memory < i64::from(demand.memory) && guard::stands(Guard::Memory) {
            return Some(Short::Memory(memory.max(0)));
        }
        if cpu < i64::from(demand.cpu) && guard::stands(Guard::Memory) {
            return Some(Short::Cpu(cpu.max(0)));
        }
        for (name, count) in &demand.named {
            let left = self.named.get(name).copied().unwrap_or(0);
            if left < i64::from(*count) {
                return Some(Short::Named(name.clone(), left.max(0)));
            }
        }
        self.port_conflict(demand).filter(|_| guard::stands(Guard::Port)).map(Short::Port)
    }
}

fn range(port: &HostPort) -> (i32, i32, i32) {
    (port.protocol, port.port, port.to.max(port.port))
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

    #[test]
    fn ranges_of_ports_overlap_by_protocol() {
        let reserved = vec![steady_proto::v1::HostPortRange { from: 22, to: 22 }];
        let mut free = Free::of(&InstanceResources { reserved_ports: reserved, ..InstanceResources::default() });
        let of = |port, to, protocol: Protocol| Demand {
            ports: vec![HostPort { port, to, protocol: protocol.into() }],
            ..Demand::default()
        };
        free.take(&of(8000, 8010, Protocol::Tcp));
        assert_eq!(free.port_conflict(&of(8010, 0, Protocol::Tcp)), Some(8010));
        assert_eq!(free.port_conflict(&of(7990, 8000, Protocol::Tcp)), Some(7990));
        assert_eq!(free.port_conflict(&of(8010, 0, Protocol::Udp)), None);
        assert_eq!(free.port_conflict(&of(8011, 0, Protocol::Tcp)), None);
        assert_eq!(free.port_conflict(&of(20, 30, Protocol::Udp)), Some(20), "reserved of every protocol");
        free.give_back(&of(8000, 8010, Protocol::Tcp));
        assert_eq!(free.port_conflict(&of(8005, 0, Protocol::Tcp)), None);
    }

    #[test]
    fn resources_of_any_name_are_counted() {
        let mut free = Free::of(&InstanceResources { named: [("GPU".into(), 2)].into(), ..Default::default() });
        let gpu = |count| Demand { named: [("GPU".into(), count)].into(), ..Demand::default() };
        assert_eq!(free.short_of(&gpu(2), (0, 0)), None);
        free.take(&gpu(1));
        assert_eq!(free.short_of(&gpu(2), (0, 0)).map(|short| short.reason()), Some("RESOURCE:GPU"));
        let other = Demand { named: [("licence".into(), 1)].into(), ..Demand::default() };
        assert_eq!(free.short_of(&other, (0, 0)), Some(Short::Named("licence".into(), 0)));
    }
}
