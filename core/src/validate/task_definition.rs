//! Checks of a `TaskDefinition` (ECS `RegisterTaskDefinition`).

use std::collections::{BTreeMap, BTreeSet};

use steady_proto::v1::container_condition::Value as Condition;
use steady_proto::v1::network_mode::Value as NetworkMode;
use steady_proto::v1::{ContainerDefinition, PortMapping, TaskDefinitionSpec};

use super::common::{Faults, constraints, name};
use super::{engine, secret};
use crate::resources::{container_memory, container_ports, implied_dependencies, parse_cpu, parse_memory, protocol};
use crate::secrets::parse_role;

pub(super) fn check(spec: &TaskDefinitionSpec, faults: &mut Faults) {
    name(faults, "spec.family", &spec.family);
    size(spec, faults);
    let containers = &spec.container_definitions;
    if containers.is_empty() || containers.len() > 10 {
        faults.add("spec.containerDefinitions", format!("{} containers; expected 1 to 10", containers.len()));
    }
    if !containers.is_empty() && !containers.iter().any(|c| c.essential.unwrap_or(true)) {
        faults.add("spec.containerDefinitions", "no container is essential; at least one has to be".into());
    }
    let role = &spec.task_role_arn;
    if !role.is_empty() && parse_role(role).is_none() {
        let message = format!("`{role}` is no role; expected a name, or arn:aws:iam::ACCOUNT:role/NAME");
        faults.add("spec.taskRoleArn", message);
    }
    faults.unsupported("spec.executionRoleArn", !spec.execution_role_arn.is_empty(), "leave it out");
    for (field, mode, known) in [
        ("spec.pidMode", &spec.pid_mode, &["host", "task"][..]),
        ("spec.ipcMode", &spec.ipc_mode, &["host", "task", "none"]),
    ] {
        if !mode.is_empty() && !known.contains(&mode.as_str()) {
            faults.add(field, format!("`{mode}` is not known; expected {}", known.join(" or ")));
        }
    }
    constraints(faults, "spec.placementConstraints", &spec.placement_constraints, true);
    volumes(spec, faults);
    let mut names = BTreeSet::new();
    for (i, container) in containers.iter().enumerate() {
        let path = format!("spec.containerDefinitions[{i}]");
        if !container.name.is_empty() && !names.insert(container.name.as_str()) {
            let message = format!("container `{}` is given twice; names are unique in a task", container.name);
            faults.add(&format!("{path}.name"), message);
        }
        check_container(spec, container, &path, faults);
    }
    host_ports(spec, faults);
    runtime_platform(spec, faults);
    dependencies(containers, faults);
}

fn size(spec: &TaskDefinitionSpec, faults: &mut Faults) {
    if !spec.cpu.is_empty() {
        match parse_cpu(&spec.cpu) {
            Some(cpu) => faults.range("spec.cpu", cpu.into(), 128, 196_608, "CPU units (1024 a core)"),
            None => faults.add("spec.cpu", format!("`{}` is no size; expected `256` or `0.25 vCPU`", spec.cpu)),
        }
    }
    if spec.memory.is_empty() {
        return;
    }
    let Some(memory) = parse_memory(&spec.memory) else {
        return faults.add("spec.memory", format!("`{}` is no size; expected `512` (MiB) or `0.5 GB`", spec.memory));
    };
    faults.range("spec.memory", memory.into(), 6, 16_777_216, "MiB");
    let sum: i64 = spec.container_definitions.iter().map(|c| i64::from(container_memory(c))).sum();
    if sum > i64::from(memory) {
        faults.add("spec.memory", format!("{memory} MiB is less than its containers' {sum} MiB"));
    }
}

fn volumes(spec: &TaskDefinitionSpec, faults: &mut Faults) {
    let mut names = BTreeSet::new();
    for (i, volume) in spec.volumes.iter().enumerate() {
        let path = format!("spec.volumes[{i}]");
        name(faults, &format!("{path}.name"), &volume.name);
        if !names.insert(&volume.name) {
            faults.add(&format!("{path}.name"), format!("volume `{}` is given twice", volume.name));
        }
        let source = volume.host.as_ref().map_or("", |h| &h.source_path);
        if !source.is_empty() && !source.starts_with('/') {
            faults.add(&format!("{path}.host.sourcePath"), format!("`{source}` is not absolute; expected `/…`"));
        }
        let Some(docker) = &volume.docker_volume_configuration else { continue };
        let path = format!("{path}.dockerVolumeConfiguration");
        if volume.host.is_some() {
            faults.add(&path, "is given together with host; expected one of them".into());
        }
        match docker.scope.as_str() {
            "" | "task" if docker.autoprovision => {
                faults.add(&format!("{path}.autoprovision"), "is for scope shared; leave it out".into());
            }
            "" | "task" | "shared" => {}
            other => faults.add(&format!("{path}.scope"), format!("`{other}` is not known; expected task or shared")),
        }
    }
}

fn check_container(spec: &TaskDefinitionSpec, container: &ContainerDefinition, path: &str, faults: &mut Faults) {
    let at = |field: &str| format!("{path}.{field}");
    name(faults, &at("name"), &container.name);
    if container.image.is_empty() {
        faults.add(&at("image"), "is missing; expected an image such as `nginx:1.27`".into());
    } else if container.image.split('@').next().unwrap_or_default().len() > 255 {
        faults.add(&at("image"), "is longer than 255 characters".into());
    }
    faults.range(&at("cpu"), container.cpu.into(), 0, 196_608, "CPU units");
    for (field, value) in [("memory", container.memory), ("memoryReservation", container.memory_reservation)] {
        if value != 0 {
            faults.range(&at(field), value.into(), 6, 16_777_216, "MiB");
        }
    }
    if spec.memory.is_empty() && container.memory == 0 && container.memory_reservation == 0 {
        let message = "is missing; at least one of memory and memoryReservation (MiB), or the task's memory";
        faults.add(&at("memory"), message.into());
    }
    if container.memory > 0 && container.memory_reservation >= container.memory {
        let message = format!("{} MiB is not below memory's {} MiB", container.memory_reservation, container.memory);
        faults.add(&at("memoryReservation"), message);
    }
    faults.range(&at("startTimeout"), container.start_timeout.unwrap_or(2).into(), 2, 86_400, "seconds");
    faults.range(&at("stopTimeout"), container.stop_timeout.unwrap_or(30).into(), 0, 86_400, "seconds");
    for (i, mapping) in container.port_mappings.iter().enumerate() {
        port_mapping(spec, mapping, &format!("{path}.portMappings[{i}]"), faults);
    }
    for (i, mount) in container.mount_points.iter().enumerate() {
        let path = format!("{path}.mountPoints[{i}]");
        if !spec.volumes.iter().any(|v| v.name == mount.source_volume) {
            faults.add(&format!("{path}.sourceVolume"), format!("no volume is named `{}`", mount.source_volume));
        }
        if !mount.container_path.starts_with('/') {
            let message = format!("`{}` is not absolute; expected `/…`", mount.container_path);
            faults.add(&format!("{path}.containerPath"), message);
        }
    }
    for (i, pair) in container.environment.iter().enumerate() {
        if pair.name.is_empty() || pair.name.contains(['=', '\0']) || pair.value.contains('\0') {
            faults.add(&format!("{path}.environment[{i}].name"), format!("`{}` is no variable's name", pair.name));
        }
    }
    if spec.network_mode() == NetworkMode::Awsvpc {
        for (field, given) in
            [("hostname", !container.hostname.is_empty()), ("extraHosts", !container.extra_hosts.is_empty())]
        {
            if given {
                faults.add(&at(field), "is the task's in networkMode awsvpc, not a container's; leave it out".into());
            }
        }
    }
    resource_requirements(container, path, faults);
    engine::check(spec, container, path, faults);
    health_check(container, path, faults);
    restart_policy(container, path, faults);
    secret::of_container(container, path, faults);
}

fn port_mapping(spec: &TaskDefinitionSpec, mapping: &PortMapping, path: &str, faults: &mut Faults) {
    if mapping.container_port_range.is_empty() {
        faults.range(&format!("{path}.containerPort"), mapping.container_port.into(), 1, 65_535, "");
    } else {
        port_range(mapping, path, faults);
    }
    faults.range(&format!("{path}.hostPort"), mapping.host_port.into(), 0, 65_535, "");
    match spec.network_mode() {
        NetworkMode::None => faults.add(path, "networkMode none has no ports; use bridge".into()),
        mode @ (NetworkMode::Host | NetworkMode::Awsvpc)
            if mapping.host_port != 0 && mapping.host_port != mapping.container_port =>
        {
            let message = format!(
                "{} differs from containerPort {}; in networkMode {} they are one: leave hostPort out",
                mapping.host_port,
                mapping.container_port,
                mode.as_str_name()
            );
            faults.add(&format!("{path}.hostPort"), message);
        }
        _ => {}
    }
}

fn port_range(mapping: &PortMapping, path: &str, faults: &mut Faults) {
    let text = &mapping.container_port_range;
    match container_ports(mapping) {
        Some((from, to)) if from >= 1 && to <= 65_535 && from <= to && to - from < 100 => {}
        _ => {
            let message = format!("`{text}` is no range; expected FROM-TO of at most 100 ports, such as 8000-8010");
            faults.add(&format!("{path}.containerPortRange"), message);
        }
    }
    for (field, port) in [("containerPort", mapping.container_port), ("hostPort", mapping.host_port)] {
        if port != 0 {
            faults.add(&format!("{path}.{field}"), "is not for a mapping with containerPortRange; leave it out".into());
        }
    }
}

fn resource_requirements(container: &ContainerDefinition, path: &str, faults: &mut Faults) {
    if container.resource_requirements.len() > 10 {
        let message = format!("{} resources; at most 10", container.resource_requirements.len());
        faults.add(&format!("{path}.resourceRequirements"), message);
    }
    for (i, asked) in container.resource_requirements.iter().enumerate() {
        let path = format!("{path}.resourceRequirements[{i}]");
        name(faults, &format!("{path}.type"), &asked.r#type);
        if !asked.value.parse::<i32>().is_ok_and(|count| (1..=1_000_000).contains(&count)) {
            let message = format!("`{}` is no count; expected 1 to 1000000", asked.value);
            faults.add(&format!("{path}.value"), message);
        }
    }
}

fn runtime_platform(spec: &TaskDefinitionSpec, faults: &mut Faults) {
    let Some(platform) = &spec.runtime_platform else { return };
    if !matches!(platform.cpu_architecture.as_str(), "" | "X86_64" | "ARM64") {
        let message = format!("`{}` is not known; expected X86_64 or ARM64", platform.cpu_architecture);
        faults.add("spec.runtimePlatform.cpuArchitecture", message);
    }
    if !matches!(platform.operating_system_family.as_str(), "" | "LINUX") {
        let message = format!("`{}` is not supported; expected LINUX", platform.operating_system_family);
        faults.add("spec.runtimePlatform.operatingSystemFamily", message);
    }
}

fn health_check(container: &ContainerDefinition, path: &str, faults: &mut Faults) {
    let Some(check) = &container.health_check else { return };
    let at = |field: &str| format!("{path}.healthCheck.{field}");
    match check.command.first().map(String::as_str) {
        Some("CMD" | "CMD-SHELL") if check.command.len() > 1 => {}
        _ => faults.add(&at("command"), "expected [CMD, PROGRAM, …] or [CMD-SHELL, LINE]".into()),
    }
    faults.range(&at("interval"), check.interval.unwrap_or(30).into(), 5, 300, "seconds");
    faults.range(&at("timeout"), check.timeout.unwrap_or(5).into(), 2, 60, "seconds");
    faults.range(&at("retries"), check.retries.unwrap_or(3).into(), 1, 10, "");
    faults.range(&at("startPeriod"), check.start_period.unwrap_or(0).into(), 0, 300, "seconds");
}

fn restart_policy(container: &ContainerDefinition, path: &str, faults: &mut Faults) {
    let Some(policy) = &container.restart_policy else { return };
    let at = |field: &str| format!("{path}.restartPolicy.{field}");
    let period = policy.restart_attempt_period.unwrap_or(60);
    faults.range(&at("restartAttemptPeriod"), period.into(), 60, 1800, "seconds");
    if policy.ignored_exit_codes.len() > 50 {
        let message = format!("{} exit codes; at most 50", policy.ignored_exit_codes.len());
        faults.add(&at("ignoredExitCodes"), message);
    }
}

fn host_ports(spec: &TaskDefinitionSpec, faults: &mut Faults) {
    let mut seen = BTreeSet::new();
    for (c, container) in spec.container_definitions.iter().enumerate() {
        for (m, mapping) in container.port_mappings.iter().enumerate() {
            if spec.network_mode() == NetworkMode::Awsvpc {
                continue;
            }
            let host = spec.network_mode() == NetworkMode::Host;
            let range = container_ports(mapping).filter(|(from, to)| host && *from >= 1 && from <= to && *to <= 65_535);
            let (from, to) = range.unwrap_or((mapping.host_port, mapping.host_port));
            let twice = |port: &i32| *port != 0 && !seen.insert((*port, protocol(mapping.protocol())));
            if let Some(port) = (from..=to).find(twice) {
                let path = format!("spec.containerDefinitions[{c}].portMappings[{m}].hostPort");
                faults.add(&path, format!("host port {port} is given twice; each can be had once on an instance"));
            }
        }
    }
}

fn dependencies(containers: &[ContainerDefinition], faults: &mut Faults) {
    let by_name: BTreeMap<&str, &ContainerDefinition> = containers.iter().map(|c| (c.name.as_str(), c)).collect();
    for (i, container) in containers.iter().enumerate() {
        for (d, dependency) in container.depends_on.iter().enumerate() {
            let path = format!("spec.containerDefinitions[{i}].dependsOn[{d}]");
            let Some(other) = by_name.get(dependency.container_name.as_str()) else {
                let names: Vec<&str> = by_name.keys().copied().collect();
                let hint = steady_proto::manifest::nearest(&dependency.container_name, &names)
                    .map_or_else(|| format!("containers: {}", names.join(", ")), |n| format!("did you mean `{n}`?"));
                let message = format!("no container is named `{}`; {hint}", dependency.container_name);
                faults.add(&format!("{path}.containerName"), message);
                continue;
            };
            let at = format!("{path}.condition");
            match dependency.condition() {
                Condition::Unspecified => {
                    faults.add(&at, "is missing; expected START, COMPLETE, SUCCESS or HEALTHY".into());
                }
                Condition::Complete | Condition::Success if other.essential.unwrap_or(true) => {
                    let message = format!(
                        "{} waits for `{}` to end, which is essential: its end stops the task; set essential: false there",
                        dependency.condition().as_str_name(),
                        other.name
                    );
                    faults.add(&at, message);
                }
                Condition::Healthy if other.health_check.is_none() => {
                    faults.add(&at, format!("HEALTHY needs a healthCheck of container `{}`", other.name));
                }
                _ => {}
            }
        }
    }
    if let Some(cycle) = cycle(containers) {
        let message = format!("containers wait for each other: {}; break the circle", cycle.join(" -> "));
        faults.add("spec.containerDefinitions", message);
    }
}

/// Names of containers that wait for each other in a circle.
fn cycle(containers: &[ContainerDefinition]) -> Option<Vec<&str>> {
    fn visit<'a>(
        name: &'a str,
        edges: &BTreeMap<&'a str, Vec<&'a str>>,
        path: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
    ) -> Option<Vec<&'a str>> {
        if let Some(from) = path.iter().position(|n| *n == name) {
            return Some(path[from..].iter().copied().chain([name]).collect());
        }
        if done.contains(name) {
            return None;
        }
        path.push(name);
        let found = edges.get(name).into_iter().flatten().find_map(|next| visit(next, edges, path, done));
        path.pop();
        done.insert(name);
        found
    }
    let edges: BTreeMap<&str, Vec<&str>> = containers
        .iter()
        .map(|c| {
            let named = c.depends_on.iter().map(|d| d.container_name.as_str());
            (c.name.as_str(), named.chain(implied_dependencies(c)).collect())
        })
        .collect();
    let mut done = BTreeSet::new();
    containers.iter().find_map(|c| visit(&c.name, &edges, &mut Vec::new(), &mut done))
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_proto::v1::{ContainerDependency, VolumeFrom};

    fn container(name: &str, needs: &[(&str, Condition)]) -> ContainerDefinition {
        ContainerDefinition {
            name: name.into(),
            image: "busybox".into(),
            memory: 64,
            depends_on: needs
                .iter()
                .map(|(n, c)| ContainerDependency { container_name: (*n).into(), condition: (*c).into() })
                .collect(),
            ..Default::default()
        }
    }

    fn faults(containers: Vec<ContainerDefinition>) -> Vec<String> {
        let spec = TaskDefinitionSpec { family: "web".into(), container_definitions: containers, ..Default::default() };
        let mut faults = Faults::default();
        check(&spec, &mut faults);
        faults.found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_definition_of_one_container_is_right() {
        assert_eq!(faults(vec![container("web", &[])]), Vec::<String>::new());
    }

    #[test]
    fn containers_that_wait_for_each_other_are_refused_with_the_circle() {
        let found = faults(vec![
            container("a", &[("b", Condition::Start)]),
            container("b", &[("c", Condition::Start)]),
            container("c", &[("a", Condition::Start)]),
        ]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("a -> b -> c -> a"), "{found:?}");
    }

    #[test]
    fn every_fault_is_told_at_once_with_its_path() {
        let mut bad = container("web", &[("bd", Condition::Start)]);
        bad.memory = 0;
        bad.port_mappings.push(PortMapping { container_port: 70_000, ..Default::default() });
        let found = faults(vec![bad, container("db", &[]), container("db", &[])]);
        for expected in [
            "spec.containerDefinitions[0].memory:",
            "spec.containerDefinitions[0].portMappings[0].containerPort: 70000",
            "spec.containerDefinitions[0].dependsOn[0].containerName: no container is named `bd`; did you mean `db`?",
            "spec.containerDefinitions[2].name: container `db` is given twice",
        ] {
            assert!(found.iter().any(|f| f.starts_with(expected)), "{expected} in {found:#?}");
        }
    }

    #[test]
    fn a_wait_for_the_end_of_an_essential_container_is_refused() {
        let found = faults(vec![container("web", &[("init", Condition::Success)]), container("init", &[])]);
        assert!(found[0].contains("essential"), "{found:?}");
    }

    #[test]
    fn ranges_of_ports_and_other_resources_are_read_or_refused() {
        let with = |mapping: PortMapping, mode: NetworkMode| {
            let mut container = ContainerDefinition { port_mappings: vec![mapping], ..container("main", &[]) };
            container.resource_requirements =
                vec![steady_proto::v1::ResourceRequirement { r#type: "GPU".into(), value: "0".into() }];
            let spec = TaskDefinitionSpec {
                family: "f".into(),
                container_definitions: vec![container],
                network_mode: mode.into(),
                ..TaskDefinitionSpec::default()
            };
            let mut faults = Faults::default();
            check(&spec, &mut faults);
            (crate::resources::host_ports(&spec), faults.found.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let range = |text: &str| PortMapping { container_port_range: text.into(), ..PortMapping::default() };
        let (ports, faults) = with(range("8000-8010"), NetworkMode::Host);
        assert_eq!((ports[0].port, ports[0].to), (8000, 8010));
        let gpu = "spec.containerDefinitions[0].resourceRequirements[0].value: `0` is no count; expected 1 to 1000000";
        assert_eq!(faults, [gpu]);
        assert!(with(range("8000-8010"), NetworkMode::Bridge).0.is_empty(), "any free ports of the host");
        for wrong in ["8010-8000", "8000", "1-200", "0-5", "65000-65600"] {
            let (_, faults) = with(range(wrong), NetworkMode::Bridge);
            assert!(faults[0].contains("expected FROM-TO"), "{wrong}: {faults:?}");
        }
        let both = PortMapping { host_port: 80, ..range("8000-8001") };
        assert!(with(both, NetworkMode::Bridge).1[0].contains("leave it out"));
    }

    #[test]
    fn links_wait_for_each_other_in_a_circle_too() {
        let mut web = container("web", &[]);
        web.links = vec!["db".into()];
        let mut db = container("db", &[]);
        db.volumes_from = vec![VolumeFrom { source_container: "web".into(), read_only: true }];
        let found = faults(vec![web, db]).join("\n");
        assert!(found.contains("web -> db -> web"), "{found}");
    }
}
