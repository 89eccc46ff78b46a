//! A container definition in the engine's words.

use std::collections::HashMap;

use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig, PortBinding, ResourcesUlimits};
use steady_core::v1::network_mode::Value as NetworkMode;

use crate::runtime::{ContainerId, ContainerSpec, Port};

/// Labels that say whose a container is.
pub(super) mod labels {
    pub(in super::super) const CLUSTER: &str = "steady.cluster";
    pub(in super::super) const INSTANCE: &str = "steady.instance";
    pub(in super::super) const TASK: &str = "steady.task";
    pub(in super::super) const CONTAINER: &str = "steady.container";
    pub(in super::super) const PORTS: &str = "steady.ports";
}

const MIB: i64 = 1024 * 1024;

/// Name of a container; the engine has each only once.
pub(super) fn name(id: &ContainerId) -> String {
    format!("steady-{}-{}", id.task, id.name)
}

/// Name of a volume that lives as long as its task.
pub(super) fn volume_name(task: &str, volume: &str) -> String {
    format!("steady-{task}-{volume}")
}

fn port_key(port: Port) -> String {
    format!("{}/{}", port.container, if port.udp { "udp" } else { "tcp" })
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

fn set(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// What the engine is asked to make.
pub(super) fn container(spec: &ContainerSpec) -> ContainerCreateBody {
    let definition = &spec.definition;
    let mut labels: HashMap<String, String> = definition.docker_labels.clone().into_iter().collect();
    labels.extend([
        (labels::CLUSTER.to_owned(), spec.cluster.clone()),
        (labels::INSTANCE.to_owned(), spec.instance.clone()),
        (labels::TASK.to_owned(), spec.id.task.clone()),
        (labels::CONTAINER.to_owned(), spec.id.name.clone()),
        (labels::PORTS.to_owned(), serde_json::to_string(&spec.ports).unwrap_or_default()),
    ]);
    let bridged = spec.network_mode == NetworkMode::Bridge;
    let exposed = spec.ports.iter().map(|port| port_key(*port)).collect();
    ContainerCreateBody {
        image: Some(definition.image.clone()),
        entrypoint: some(definition.entry_point.clone()),
        cmd: some(definition.command.clone()),
        env: Some(environment(spec)),
        labels: Some(labels),
        user: set(&definition.user),
        working_dir: set(&definition.working_directory),
        hostname: set(&definition.hostname),
        tty: Some(definition.pseudo_terminal),
        open_stdin: Some(definition.interactive),
        exposed_ports: if bridged { some(exposed) } else { None },
        host_config: Some(host(spec, bridged)),
        ..ContainerCreateBody::default()
    }
}

fn environment(spec: &ContainerSpec) -> Vec<String> {
    let own = [("STEADY_TASK", spec.id.task.clone()), ("STEADY_CONTAINER", spec.id.name.clone())];
    // A program that listens on PORT works on every runtime.
    let port = spec.ports.first().map(|port| ("PORT", port.container.to_string()));
    let given = &spec.definition.environment;
    let own = own.into_iter().chain(port).filter(|(name, _)| !given.iter().any(|pair| pair.name == *name));
    let own = own.map(|(name, value)| format!("{name}={value}"));
    own.chain(given.iter().map(|pair| format!("{}={}", pair.name, pair.value))).collect()
}

fn host(spec: &ContainerSpec, bridged: bool) -> HostConfig {
    let definition = &spec.definition;
    // One port of a container may have several of the host.
    let mut bindings: HashMap<String, Option<Vec<PortBinding>>> = HashMap::new();
    for port in &spec.ports {
        let binding = PortBinding { host_ip: None, host_port: Some(port.host.to_string()) };
        bindings.entry(port_key(*port)).or_default().get_or_insert_default().push(binding);
    }
    let binds = definition.mount_points.iter().map(|mount| {
        let volume = spec.volumes.iter().find(|v| v.name == mount.source_volume);
        let source = match volume.and_then(|v| v.host.as_ref()).map_or("", |h| &h.source_path) {
            "" => volume_name(&spec.id.task, &mount.source_volume),
            path => path.to_owned(),
        };
        format!("{source}:{}{}", mount.container_path, if mount.read_only { ":ro" } else { "" })
    });
    let ulimits = definition.ulimits.iter().map(|limit| ResourcesUlimits {
        name: Some(limit.name.clone()),
        soft: Some(limit.soft_limit),
        hard: Some(limit.hard_limit),
    });
    let mode = match spec.network_mode {
        NetworkMode::Host => "host",
        NetworkMode::None => "none",
        _ => "bridge",
    };
    let rotation = [("max-size".to_owned(), "10m".to_owned()), ("max-file".to_owned(), "2".to_owned())];
    let reservation = definition.memory_reservation;
    HostConfig {
        // Fewer than two shares mean two (ECS).
        cpu_shares: Some(i64::from(definition.cpu.clamp(2, 262_144))),
        nano_cpus: spec.cpu_limit.filter(|units| *units > 0).map(|units| i64::from(units) * 1_000_000_000 / 1024),
        memory: spec.memory_limit.map(|mib| i64::from(mib) * MIB),
        memory_reservation: (reservation > 0).then(|| i64::from(reservation) * MIB),
        binds: some(binds.collect()),
        network_mode: Some(mode.to_owned()),
        port_bindings: bridged.then_some(bindings),
        privileged: Some(definition.privileged),
        readonly_rootfs: Some(definition.readonly_root_filesystem),
        dns: some(definition.dns_servers.clone()),
        extra_hosts: some(definition.extra_hosts.iter().map(|h| format!("{}:{}", h.hostname, h.ip_address)).collect()),
        ulimits: some(ulimits.collect()),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from(rotation)),
        }),
        ..HostConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_core::v1::{ContainerDefinition, MountPoint, Volume};

    #[test]
    fn a_definition_becomes_what_the_engine_is_asked_for() {
        let spec = ContainerSpec {
            id: ContainerId { task: "t".into(), name: "web".into() },
            cluster: "default".into(),
            instance: "i".into(),
            definition: ContainerDefinition {
                image: "web:1".into(),
                mount_points: vec![MountPoint {
                    source_volume: "data".into(),
                    container_path: "/data".into(),
                    read_only: true,
                }],
                ..Default::default()
            },
            volumes: vec![Volume { name: "data".into(), host: None }],
            network_mode: NetworkMode::Bridge,
            ports: vec![Port { container: 80, host: 20_000, udp: false }],
            cpu_limit: Some(512),
            memory_limit: Some(64),
        };
        let body = container(&spec);
        let host = body.host_config.expect("a host configuration");
        assert_eq!(host.binds, Some(vec!["steady-t-data:/data:ro".to_owned()]));
        assert_eq!((host.nano_cpus, host.memory, host.cpu_shares), (Some(500_000_000), Some(64 * MIB), Some(2)));
        let bindings = host.port_bindings.expect("bindings");
        let binding = bindings["80/tcp"].as_ref().expect("a binding");
        assert_eq!(binding[0].host_port.as_deref(), Some("20000"));
        assert!(body.env.expect("environment").contains(&"PORT=80".to_owned()));
        let labels = body.labels.expect("labels");
        assert_eq!((labels["steady.task"].as_str(), labels["steady.instance"].as_str()), ("t", "i"));
    }
}
