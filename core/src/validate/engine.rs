//! Checks of the settings of a container that are handed to the container engine: what it would refuse when the
//! container is made, or pass over in silence, is said before.

use std::collections::BTreeSet;

use steady_proto::v1::container_condition::Value as Condition;
use steady_proto::v1::network_mode::Value as NetworkMode;
use steady_proto::v1::{ContainerDefinition, LinuxParameters, LogConfiguration, TaskDefinitionSpec};

use super::common::Faults;
use super::secret;
use crate::resources::parse_link;

/// Kernel parameters of a container's own besides `net.*` and `fs.mqueue.*`.
const CONTROLS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Options of a tmpfs, and those that have a value.
const TMPFS: [&str; 21] = [
    "ro",
    "rw",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "sync",
    "async",
    "dirsync",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "mand",
    "nomand",
];
const TMPFS_WITH_VALUE: [&str; 6] = ["mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"];

pub(super) fn check(spec: &TaskDefinitionSpec, container: &ContainerDefinition, path: &str, faults: &mut Faults) {
    links(spec, container, path, faults);
    for (i, from) in container.volumes_from.iter().enumerate() {
        other(spec, container, faults, &format!("{path}.volumesFrom[{i}].sourceContainer"), &from.source_container);
    }
    controls(spec, container, path, faults);
    for (i, option) in container.docker_security_options.iter().enumerate() {
        if !is_security_option(option) {
            let message = format!(
                "`{option}` is not known; expected no-new-privileges, apparmor:PROFILE, label:VALUE, seccomp:unconfined or \
                 seccomp:JSON"
            );
            faults.add(&format!("{path}.dockerSecurityOptions[{i}]"), message);
        }
    }
    for (i, domain) in container.dns_search_domains.iter().enumerate() {
        if domain.is_empty() || domain.contains(char::is_whitespace) {
            faults.add(&format!("{path}.dnsSearchDomains[{i}]"), format!("`{domain}` is no domain"));
        }
    }
    if let Some(log) = &container.log_configuration {
        logs(log, &format!("{path}.logConfiguration"), faults);
    }
    if let Some(linux) = &container.linux_parameters {
        linux_parameters(spec, container, linux, &format!("{path}.linuxParameters"), faults);
    }
}

/// Faults a name that no other container of the task has.
fn other(spec: &TaskDefinitionSpec, container: &ContainerDefinition, faults: &mut Faults, field: &str, name: &str) {
    let names = || spec.container_definitions.iter().map(|c| c.name.as_str()).filter(|name| *name != container.name);
    if !names().any(|known| known == name) {
        let names = names().collect::<Vec<_>>().join(", ");
        faults.add(field, format!("no other container is named `{name}`; containers: {names}"));
    }
}

fn links(spec: &TaskDefinitionSpec, container: &ContainerDefinition, path: &str, faults: &mut Faults) {
    let mut aliases = BTreeSet::new();
    for (i, link) in container.links.iter().enumerate() {
        let field = format!("{path}.links[{i}]");
        if !matches!(spec.network_mode(), NetworkMode::Unspecified | NetworkMode::Bridge) {
            faults.add(&field, "is for networkMode bridge; leave it out".into());
        }
        let Some((name, alias)) = parse_link(link) else {
            faults.add(&field, format!("`{link}` is no link; expected CONTAINER or CONTAINER:ALIAS"));
            continue;
        };
        other(spec, container, faults, &field, name);
        if !aliases.insert(alias) {
            faults.add(&field, format!("alias `{alias}` is given twice"));
        }
        let awaited = container.depends_on.iter().find(|needs| needs.container_name == name);
        if awaited.is_some_and(|needs| matches!(needs.condition(), Condition::Complete | Condition::Success)) {
            faults.add(
                &field,
                format!("`{name}` has ended when this container starts: there is nothing to be linked to"),
            );
        }
    }
}

fn controls(spec: &TaskDefinitionSpec, container: &ContainerDefinition, path: &str, faults: &mut Faults) {
    let mut seen = BTreeSet::new();
    for (i, control) in container.system_controls.iter().enumerate() {
        let field = format!("{path}.systemControls[{i}].namespace");
        let name = control.namespace.as_str();
        let below = |prefix: &str| name.len() > prefix.len() && name.starts_with(prefix);
        if !below("net.") && !below("fs.mqueue.") && !CONTROLS.contains(&name) {
            let expected = CONTROLS.join(", ");
            let message = format!("`{name}` is not a container's own; expected net.*, fs.mqueue.*, {expected}");
            faults.add(&field, message);
        } else if below("net.") && spec.network_mode() == NetworkMode::Host {
            faults.add(&field, format!("`{name}` would be the instance's in networkMode host"));
        }
        if !seen.insert(name) {
            faults.add(&field, format!("`{name}` is given twice"));
        }
    }
}

fn is_security_option(option: &str) -> bool {
    let (name, value) = option.split_once([':', '=']).unwrap_or((option, ""));
    match name {
        "no-new-privileges" => matches!(value, "" | "true" | "false"),
        "apparmor" | "label" => !value.is_empty(),
        "seccomp" => value == "unconfined" || value.starts_with('{'),
        _ => false,
    }
}

fn logs(log: &LogConfiguration, path: &str, faults: &mut Faults) {
    let field = format!("{path}.logDriver");
    let driver = log.log_driver.as_str();
    let is_name = driver.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    let expected = "json-file, local, journald, syslog, fluentd, gelf or none";
    if matches!(driver, "awslogs" | "awsfirelens") {
        faults.unsupported(&field, true, &format!("use {expected}"));
    } else if !is_name || driver.len() > 64 {
        faults.add(&field, format!("`{driver}` is no driver; expected {expected}"));
    } else if driver.is_empty() && !log.options.is_empty() {
        faults.add(&field, format!("is missing; options are a driver's own: expected {expected}"));
    }
    for (i, option) in log.secret_options.iter().enumerate() {
        secret::reference(option, &format!("{path}.secretOptions[{i}]"), faults);
    }
}

fn linux_parameters(
    spec: &TaskDefinitionSpec,
    container: &ContainerDefinition,
    linux: &LinuxParameters,
    path: &str,
    faults: &mut Faults,
) {
    let absolute = |faults: &mut Faults, field: &str, path: &str| {
        if !path.starts_with('/') || path == "/" || path.contains(':') {
            faults.add(field, format!("`{path}` is not absolute; expected `/…`"));
        }
    };
    let capabilities = linux.capabilities.clone().unwrap_or_default();
    for (field, names) in [("add", &capabilities.add), ("drop", &capabilities.drop)] {
        for (i, name) in names.iter().enumerate() {
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_') {
                let message =
                    format!("`{name}` is no capability; expected a name such as NET_ADMIN or SYS_PTRACE, or ALL");
                faults.add(&format!("{path}.capabilities.{field}[{i}]"), message);
            }
        }
    }
    for (i, device) in linux.devices.iter().enumerate() {
        let path = format!("{path}.devices[{i}]");
        absolute(faults, &format!("{path}.hostPath"), &device.host_path);
        if !device.container_path.is_empty() {
            absolute(faults, &format!("{path}.containerPath"), &device.container_path);
        }
        for (p, permission) in device.permissions.iter().enumerate() {
            if !matches!(permission.as_str(), "read" | "write" | "mknod") {
                let message = format!("`{permission}` is not known; expected read, write or mknod");
                faults.add(&format!("{path}.permissions[{p}]"), message);
            }
        }
    }
    faults.range(&format!("{path}.sharedMemorySize"), linux.shared_memory_size.into(), 0, 16_777_216, "MiB");
    let mut mounted: BTreeSet<&str> =
        container.mount_points.iter().map(|mount| mount.container_path.as_str()).collect();
    for (i, tmpfs) in linux.tmpfs.iter().enumerate() {
        let path = format!("{path}.tmpfs[{i}]");
        absolute(faults, &format!("{path}.containerPath"), &tmpfs.container_path);
        if !mounted.insert(&tmpfs.container_path) {
            faults.add(&format!("{path}.containerPath"), format!("`{}` is mounted twice", tmpfs.container_path));
        }
        faults.range(&format!("{path}.size"), tmpfs.size.into(), 1, 16_777_216, "MiB");
        for (o, option) in tmpfs.mount_options.iter().enumerate() {
            let valued = option.split_once('=').is_some_and(|(name, value)| {
                TMPFS_WITH_VALUE.contains(&name) && !value.is_empty() && !value.contains(',')
            });
            if !valued && !TMPFS.contains(&option.as_str()) {
                let message =
                    format!("`{option}` is not known; expected an option such as noexec, nosuid or mode=1777");
                faults.add(&format!("{path}.mountOptions[{o}]"), message);
            }
        }
    }
    faults.range(&format!("{path}.maxSwap"), linux.max_swap.unwrap_or(0).into(), 0, 16_777_216, "MiB");
    faults.range(&format!("{path}.swappiness"), linux.swappiness.unwrap_or(0).into(), 0, 100, "");
    if linux.max_swap.is_some() && container.memory == 0 && spec.memory.is_empty() {
        let message = "needs the container's memory, or the task's: swap is what it may have beyond";
        faults.add(&format!("{path}.maxSwap"), message.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_proto::v1::{Capabilities, ContainerDependency, Device, SystemControl, Tmpfs, VolumeFrom};

    #[test]
    fn what_the_engine_would_refuse_is_said_before() {
        let device = Device { host_path: "fuse".into(), permissions: vec!["rw".into()], ..Device::default() };
        let tmpfs = Tmpfs { container_path: "/tmp".into(), size: 0, mount_options: vec!["size=4g".into()] };
        let web = ContainerDefinition {
            name: "web".into(),
            links: vec!["db:d".into(), "cache".into(), "init:d".into(), "db:".into()],
            depends_on: vec![ContainerDependency {
                container_name: "init".into(),
                condition: Condition::Success.into(),
            }],
            volumes_from: vec![VolumeFrom { source_container: "web".into(), read_only: false }],
            system_controls: vec![SystemControl { namespace: "vm.swappiness".into(), value: "1".into() }],
            docker_security_options: vec!["no-new-priviliges".into(), "seccomp=/etc/s.json".into(), "label:x".into()],
            log_configuration: Some(LogConfiguration {
                options: [("a".to_owned(), "b".to_owned())].into(),
                ..LogConfiguration::default()
            }),
            linux_parameters: Some(LinuxParameters {
                capabilities: Some(Capabilities { add: vec!["CAP net".into()], drop: vec!["ALL".into()] }),
                devices: vec![device],
                tmpfs: vec![tmpfs],
                max_swap: Some(1),
                ..LinuxParameters::default()
            }),
            ..ContainerDefinition::default()
        };
        let others = ["db", "init"].map(|name| ContainerDefinition { name: name.into(), ..<_>::default() });
        let mut spec = TaskDefinitionSpec { container_definitions: others.into(), ..TaskDefinitionSpec::default() };
        spec.container_definitions.push(web.clone());
        let mut faults = Faults::default();
        check(&spec, &web, "c", &mut faults);
        let found: Vec<String> = faults.found.iter().map(ToString::to_string).collect();
        let expected = [
            ("c.links[1]", "no other container is named `cache`; containers: db, init"),
            ("c.links[2]", "alias `d` is given twice"),
            ("c.links[2]", "`init` has ended"),
            ("c.links[3]", "`db:` is no link"),
            ("c.volumesFrom[0].sourceContainer", "`web`"),
            ("c.systemControls[0].namespace", "`vm.swappiness` is not a container's own"),
            ("c.dockerSecurityOptions[0]", "`no-new-priviliges` is not known"),
            ("c.dockerSecurityOptions[1]", "`seccomp=/etc/s.json` is not known"),
            ("c.logConfiguration.logDriver", "is missing"),
            ("c.linuxParameters.capabilities.add[0]", "`CAP net` is no capability"),
            ("c.linuxParameters.devices[0].hostPath", "`fuse` is not absolute"),
            ("c.linuxParameters.devices[0].permissions[0]", "`rw` is not known"),
            ("c.linuxParameters.tmpfs[0].size", "expected 1 to"),
            ("c.linuxParameters.tmpfs[0].mountOptions[0]", "`size=4g` is not known"),
            ("c.linuxParameters.maxSwap", "needs the container's memory"),
        ];
        for (told, (field, says)) in found.iter().zip(expected) {
            assert!(told.starts_with(&format!("{field}: ")) && told.contains(says), "{field}: {told}");
        }
        assert_eq!(found.len(), expected.len(), "{found:#?}");
    }
}
