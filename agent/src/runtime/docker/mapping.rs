//! A container definition in the engine's words.

use std::collections::{BTreeMap, HashMap};

use bollard::models::{
    ContainerBlkioStatEntry, ContainerCreateBody, ContainerStatsResponse, DeviceMapping, HostConfig,
    HostConfigLogConfig, PortBinding, ResourcesUlimits,
};
use steady_core::resources::parse_link;
use steady_core::v1::network_mode::Value as NetworkMode;
use steady_core::v1::{Capabilities, LinuxParameters, LogConfiguration, Volume, VolumeFrom};

use crate::runtime::{ContainerId, ContainerSpec, PAUSE, Port, Usage, device_access, labels};

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

/// Whether a volume is the instance's, and stays when its task goes.
pub(super) fn is_shared(volume: &Volume) -> bool {
    volume.docker_volume_configuration.as_ref().is_some_and(|docker| docker.scope == "shared")
}

/// What the engine is asked to make.
/// In a cgroup of the task's, if it has one.
pub(super) fn container(spec: &ContainerSpec, cgroup_parent: Option<String>) -> ContainerCreateBody {
    let definition = &spec.definition;
    let mut labels: HashMap<String, String> = definition.docker_labels.clone().into_iter().collect();
    labels.extend(spec.cpu_limit.map(|units| (labels::CPU.to_owned(), units.to_string())));
    labels.extend([
        (labels::CLUSTER.to_owned(), spec.cluster.clone()),
        (labels::INSTANCE.to_owned(), spec.instance.clone()),
        (labels::TASK.to_owned(), spec.id.task.clone()),
        (labels::CONTAINER.to_owned(), spec.id.name.clone()),
        (labels::PORTS.to_owned(), serde_json::to_string(&spec.ports).unwrap_or_default()),
        (labels::GPUS.to_owned(), serde_json::to_string(spec.gpus.as_deref().unwrap_or_default()).unwrap_or_default()),
    ]);
    let bridged = spec.network_mode == NetworkMode::Bridge;
    let exposed = spec.ports.iter().map(|port| port_key(*port)).collect();
    ContainerCreateBody {
        image: Some(definition.image.clone()),
        entrypoint: some(definition.entry_point.clone()),
        cmd: some(definition.command.clone()),
        env: Some(spec.environment()),
        labels: Some(labels),
        user: set(&definition.user),
        working_dir: set(&definition.working_directory),
        hostname: set(&definition.hostname),
        tty: Some(definition.pseudo_terminal),
        open_stdin: Some(definition.interactive),
        exposed_ports: if bridged { some(exposed) } else { None },
        host_config: Some(host(spec, bridged, cgroup_parent)),
        ..ContainerCreateBody::default()
    }
}

fn host(spec: &ContainerSpec, bridged: bool, cgroup_parent: Option<String>) -> HostConfig {
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
            "" if volume.is_some_and(is_shared) => mount.source_volume.clone(),
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
    let pause = spec.id.name == PAUSE;
    let mode = match spec.network_mode {
        NetworkMode::Awsvpc if pause => "none".to_owned(),
        NetworkMode::Awsvpc => held(spec),
        _ if pause => "none".to_owned(),
        NetworkMode::Host => "host".to_owned(),
        NetworkMode::None => "none".to_owned(),
        _ => "bridge".to_owned(),
    };
    let sibling = |name: &str| self::name(&ContainerId { task: spec.id.task.clone(), name: name.to_owned() });
    let links = definition.links.iter().filter_map(|link| parse_link(link));
    let links = links.map(|(name, alias)| format!("{}:{alias}", sibling(name)));
    let from =
        |from: &VolumeFrom| format!("{}{}", sibling(&from.source_container), if from.read_only { ":ro" } else { "" });
    let controls = definition.system_controls.iter().map(|c| (c.namespace.clone(), c.value.clone()));
    let reservation = definition.memory_reservation;
    HostConfig {
        // Fewer than two shares mean two (ECS).
        cpu_shares: Some(i64::from(definition.cpu.clamp(2, 262_144))),
        nano_cpus: spec.cpu_limit.filter(|units| *units > 0).map(|units| i64::from(units) * 1_000_000_000 / 1024),
        memory: spec.memory_limit.map(|mib| i64::from(mib) * MIB),
        memory_reservation: (reservation > 0).then(|| i64::from(reservation) * MIB),
        binds: some(binds.collect()),
        network_mode: Some(mode),
        cgroup_parent,
        pid_mode: shared(spec, &spec.modes.pid, None),
        // What is not said to be shared cannot be joined.
        ipc_mode: shared(spec, &spec.modes.ipc, Some("shareable")),
        port_bindings: bridged.then_some(bindings),
        privileged: Some(definition.privileged),
        readonly_rootfs: Some(definition.readonly_root_filesystem),
        dns: some(definition.dns_servers.clone()),
        extra_hosts: some(definition.extra_hosts.iter().map(|h| format!("{}:{}", h.hostname, h.ip_address)).collect()),
        ulimits: some(ulimits.collect()),
        links: some(links.collect()),
        volumes_from: some(definition.volumes_from.iter().map(from).collect()),
        sysctls: Some(controls.collect()).filter(|controls: &HashMap<_, _>| !controls.is_empty()),
        security_opt: some(definition.docker_security_options.clone()),
        dns_search: some(definition.dns_search_domains.clone()),
        log_config: Some(logs(definition.log_configuration.as_ref(), &spec.sensitive.log_options)),
        ..linux(definition.linux_parameters.as_ref(), spec.memory_limit)
    }
}

/// That of the task's pause container.
fn held(spec: &ContainerSpec) -> String {
    format!("container:{}", name(&ContainerId { task: spec.id.task.clone(), name: PAUSE.to_owned() }))
}

/// A namespace of a container: the pause container's, or `own` of the pause container itself.
fn shared(spec: &ContainerSpec, mode: &str, own: Option<&str>) -> Option<String> {
    let pause = spec.id.name == PAUSE;
    match mode {
        "task" if !pause => Some(held(spec)),
        "task" => own.map(str::to_owned),
        "host" | "none" if !pause => Some(mode.to_owned()),
        _ => None,
    }
}

/// What a container takes, from what the engine says of it. `None`: it does not run.
pub(super) fn usage(stats: &ContainerStatsResponse) -> Option<Usage> {
    let memory = stats.memory_stats.as_ref()?;
    let used = memory.usage?;
    // File pages that are not used are given back at once (as `docker stats` counts).
    let details = memory.stats.as_ref();
    let idle = ["total_inactive_file", "inactive_file"].iter().find_map(|name| details?.get(*name)).copied();
    let networks = || stats.networks.iter().flat_map(HashMap::values);
    let blocks = stats.blkio_stats.as_ref().and_then(|io| io.io_service_bytes_recursive.as_ref());
    let moved = |what: &str| {
        let of = |entry: &&ContainerBlkioStatEntry| entry.op.as_ref().is_some_and(|op| op.eq_ignore_ascii_case(what));
        blocks.into_iter().flatten().filter(of).filter_map(|entry| entry.value).sum()
    };
    Some(Usage {
        cpu_nanoseconds: stats.cpu_stats.as_ref()?.cpu_usage.as_ref()?.total_usage.unwrap_or(0),
        memory_bytes: used.saturating_sub(idle.unwrap_or(0)),
        memory_limit_bytes: memory.limit,
        received_bytes: networks().filter_map(|network| network.rx_bytes).sum(),
        sent_bytes: networks().filter_map(|network| network.tx_bytes).sum(),
        read_bytes: moved("read"),
        written_bytes: moved("write"),
        processes: stats.pids_stats.as_ref().and_then(|pids| pids.current).unwrap_or(0),
    })
}

/// Where the output goes. A file of the engine's is rotated, unless its options say otherwise.
fn logs(given: Option<&LogConfiguration>, secret: &BTreeMap<String, String>) -> HostConfigLogConfig {
    let driver = given.map(|log| log.log_driver.as_str()).filter(|driver| !driver.is_empty()).unwrap_or("json-file");
    let mut config: HashMap<String, String> =
        given.map(|log| log.options.clone()).unwrap_or_default().into_iter().chain(secret.clone()).collect();
    if driver == "json-file" {
        for (option, value) in [("max-size", "10m"), ("max-file", "2")] {
            config.entry(option.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    HostConfigLogConfig { typ: Some(driver.to_owned()), config: Some(config) }
}

fn linux(given: Option<&LinuxParameters>, memory: Option<i32>) -> HostConfig {
    let Some(linux) = given else { return HostConfig::default() };
    let Capabilities { add, drop } = linux.capabilities.clone().unwrap_or_default();
    let devices = linux.devices.iter().map(|device| {
        let inside = if device.container_path.is_empty() { &device.host_path } else { &device.container_path };
        DeviceMapping {
            path_on_host: Some(device.host_path.clone()),
            path_in_container: Some(inside.clone()),
            cgroup_permissions: Some(device_access(device)),
        }
    });
    let tmpfs = linux.tmpfs.iter().map(|tmpfs| {
        let options = std::iter::once(format!("size={}m", tmpfs.size)).chain(tmpfs.mount_options.iter().cloned());
        (tmpfs.container_path.clone(), options.collect::<Vec<_>>().join(","))
    });
    // Docker counts memory and swap together.
    let swap = linux.max_swap.zip(memory).map(|(swap, memory)| (i64::from(swap) + i64::from(memory)) * MIB);
    HostConfig {
        cap_add: some(add),
        cap_drop: some(drop),
        devices: some(devices.collect()),
        init: linux.init_process_enabled,
        shm_size: Some(i64::from(linux.shared_memory_size) * MIB).filter(|bytes| *bytes > 0),
        tmpfs: Some(tmpfs.collect()).filter(|tmpfs: &HashMap<_, _>| !tmpfs.is_empty()),
        memory_swap: swap,
        memory_swappiness: linux.swappiness.filter(|_| swap.is_some()).map(i64::from),
        ..HostConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_core::v1::{ContainerDefinition, Device, MountPoint};

    fn id() -> ContainerId {
        ContainerId { task: "t".into(), name: "web".into() }
    }

    #[test]
    fn a_definition_becomes_what_the_engine_is_asked_for() {
        let spec = ContainerSpec {
            definition: ContainerDefinition {
                image: "web:1".into(),
                mount_points: vec![MountPoint {
                    source_volume: "data".into(),
                    container_path: "/data".into(),
                    read_only: true,
                }],
                ..Default::default()
            },
            volumes: vec![Volume { name: "data".into(), ..Volume::default() }],
            ports: vec![Port { container: 80, host: 20_000, udp: false }],
            cpu_limit: Some(512),
            memory_limit: Some(64),
            ..ContainerSpec::new(id(), "default", "i", NetworkMode::Bridge)
        };
        let body = container(&spec, None);
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

    #[test]
    fn what_is_the_engine_s_own_is_handed_to_it() {
        let definition = ContainerDefinition {
            links: vec!["db".into(), "cache:c".into()],
            volumes_from: vec![VolumeFrom { source_container: "db".into(), read_only: true }],
            log_configuration: Some(LogConfiguration {
                options: [("max-size".to_owned(), "1m".to_owned())].into(),
                ..LogConfiguration::default()
            }),
            linux_parameters: Some(LinuxParameters {
                devices: vec![Device {
                    host_path: "/dev/fuse".into(),
                    permissions: vec!["read".into()],
                    ..<_>::default()
                }],
                max_swap: Some(8),
                swappiness: Some(10),
                ..LinuxParameters::default()
            }),
            ..ContainerDefinition::default()
        };
        let spec = ContainerSpec {
            definition,
            memory_limit: Some(64),
            ..ContainerSpec::new(id(), "default", "i", NetworkMode::Bridge)
        };
        let host = container(&spec, None).host_config.expect("a host configuration");
        assert_eq!(host.links, Some(vec!["steady-t-db:db".to_owned(), "steady-t-cache:c".to_owned()]));
        assert_eq!(host.volumes_from, Some(vec!["steady-t-db:ro".to_owned()]));
        assert_eq!((host.memory_swap, host.memory_swappiness), (Some(72 * MIB), Some(10)));
        let device = &host.devices.expect("devices")[0];
        assert_eq!(device.path_in_container.as_deref(), Some("/dev/fuse"));
        assert_eq!(device.cgroup_permissions.as_deref(), Some("r"));
        let log = host.log_config.expect("a log configuration");
        let options = log.config.expect("options");
        assert_eq!((log.typ.as_deref(), options["max-size"].as_str()), (Some("json-file"), "1m"));
        assert_eq!(options["max-file"], "2", "rotated all the same");
    }
}
