//! What is told, in ECS' JSON (task metadata version 4).

use serde_json::{Map, Value, json};
use steady_core::Timestamp;
use steady_core::v1::health_status::Value as Health;
use steady_core::v1::network_mode::Value as NetworkMode;
use steady_core::v1::transport_protocol::Value as Protocol;
use steady_core::{resources, task};

use crate::engine::{ContainerState, Phase, Place, TaskState};
use crate::runtime::{PAUSE, Usage};

/// As an ARN: tools take its last part for the id.
pub(super) fn arn(kind: &str, rest: &str) -> String {
    format!("arn:aws:ecs:steady:000000000000:{kind}/{rest}")
}

/// Without what is not known.
fn some(pairs: impl IntoIterator<Item = (&'static str, Option<Value>)>) -> Map<String, Value> {
    pairs.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

fn time(at: Option<Timestamp>) -> Option<Value> {
    at.map(|at| json!(at.to_string()))
}

/// A task and its containers.
pub(crate) fn of_task(state: &TaskState, place: &Place, now: Timestamp) -> Value {
    let spec = task::of(&state.object).map(|t| t.spec.clone()).unwrap_or_default();
    let (family, revision) = spec.task_definition.rsplit_once(':').unwrap_or((&spec.task_definition, ""));
    let status = state.status(&place.address, now);
    let cpu = resources::parse_cpu(&state.definition.cpu).map(|units| f64::from(units) / 1024.0);
    let memory = resources::parse_memory(&state.definition.memory);
    let limits = some([("CPU", cpu.map(|cpu| json!(cpu))), ("Memory", memory.map(|mib| json!(mib)))]);
    let containers = state.containers.iter().filter(|c| c.definition.name != PAUSE);
    let containers: Vec<Value> = containers.map(|c| of_container(state, c, place, family, revision)).collect();
    let text = |text: &str| (!text.is_empty()).then(|| json!(text));
    let (began, ended) = state.pulled.unzip();
    let known = [
        ("Cluster", Some(json!(place.cluster))),
        ("TaskARN", Some(json!(arn("task", &format!("{}/{}", place.cluster, state.name()))))),
        ("Family", Some(json!(family))),
        ("Revision", Some(json!(revision))),
        ("DesiredStatus", Some(json!(if state.wants_to_run() { "RUNNING" } else { "STOPPED" }))),
        ("KnownStatus", Some(json!(status.last_status().as_str_name()))),
        ("Limits", (!limits.is_empty()).then_some(Value::Object(limits))),
        ("PullStartedAt", time(began)),
        ("PullStoppedAt", time(ended)),
        ("ExecutionStoppedAt", time(state.stopped_at)),
        ("AvailabilityZone", text(&place.zone)),
        ("LaunchType", Some(json!("EXTERNAL"))),
        ("ServiceName", text(&spec.service)),
        ("Containers", Some(json!(containers))),
    ];
    Value::Object(some(known))
}

fn of_container(state: &TaskState, c: &ContainerState, place: &Place, family: &str, revision: &str) -> Value {
    let definition = &c.definition;
    let known = match c.phase {
        Phase::New | Phase::Starting => "CREATED",
        Phase::Running | Phase::Restarting | Phase::Stopping => "RUNNING",
        Phase::Stopped => "STOPPED",
    };
    let id = format!("{}/{}", state.name(), definition.name);
    let task = arn("task", &format!("{}/{}", place.cluster, state.name()));
    let mut labels: Map<String, Value> = definition.docker_labels.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    for (name, value) in [
        ("cluster", place.cluster.as_str()),
        ("container-name", &definition.name),
        ("task-arn", &task),
        ("task-definition-family", family),
        ("task-definition-version", revision),
    ] {
        labels.insert(format!("com.amazonaws.ecs.{name}"), json!(value));
    }
    let mode = match state.definition.network_mode() {
        NetworkMode::Unspecified => NetworkMode::Bridge,
        mode => mode,
    };
    let own = state.container(PAUSE).and_then(|pause| pause.address.clone());
    let network =
        json!({ "NetworkMode": mode.as_str_name().to_ascii_lowercase(), "IPv4Addresses": Vec::from_iter(own) });
    let ports = c.ports.iter().map(|port| {
        let protocol = if port.protocol() == Protocol::Udp { "udp" } else { "tcp" };
        json!({ "ContainerPort": port.container, "HostPort": port.host, "Protocol": protocol, "HostIp": place.address })
    });
    let ports: Vec<Value> = ports.collect();
    let health = match c.probes.health {
        Health::Unspecified => None,
        health => Some(json!({ "status": health.as_str_name() })),
    };
    let log = definition.log_configuration.as_ref();
    let memory = if definition.memory > 0 { definition.memory } else { definition.memory_reservation };
    let known = [
        ("DockerId", Some(json!(c.runtime_id))),
        ("Name", Some(json!(definition.name))),
        ("DockerName", Some(json!(format!("steady-{}-{}", state.name(), definition.name)))),
        ("Image", Some(json!(definition.image))),
        ("ImageID", (!c.digest.is_empty()).then(|| json!(c.digest))),
        ("Labels", Some(Value::Object(labels))),
        ("DesiredStatus", Some(json!(if state.wants_to_run() { "RUNNING" } else { "STOPPED" }))),
        ("KnownStatus", Some(json!(known))),
        ("ExitCode", c.exit_code().map(|code| json!(code))),
        ("Limits", Some(json!({ "CPU": definition.cpu, "Memory": memory }))),
        ("CreatedAt", time(Some(state.accepted_at))),
        ("StartedAt", time(c.started_at)),
        ("FinishedAt", time(c.exit.as_ref().map(|exit| exit.at))),
        ("Type", Some(json!("NORMAL"))),
        ("Health", health),
        ("RestartCount", definition.restart_policy.as_ref().map(|_| json!(c.restarts.count))),
        ("LogDriver", log.map(|log| json!(log.log_driver))),
        ("LogOptions", log.map(|log| json!(log.options))),
        ("ContainerARN", Some(json!(arn("container", &format!("{}/{id}", place.cluster))))),
        ("Networks", Some(json!([network]))),
        ("Ports", (!ports.is_empty()).then(|| json!(ports))),
    ];
    Value::Object(some(known))
}

/// One container of a task's document.
pub(super) fn container(task: &Value, name: &str) -> Option<Value> {
    task["Containers"].as_array()?.iter().find(|container| container["Name"] == name).cloned()
}

/// What a container takes, as Docker's API has it.
pub(super) fn stats(name: &str, usage: &Usage, now: Timestamp) -> Value {
    let entry = |op: &str, value: u64| json!({ "major": 0, "minor": 0, "op": op, "value": value });
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    json!({
        "name": name,
        "read": now.to_string(),
        "pids_stats": { "current": usage.processes },
        "cpu_stats": { "cpu_usage": { "total_usage": usage.cpu_nanoseconds }, "online_cpus": cores },
        "memory_stats": { "usage": usage.memory_bytes, "limit": usage.memory_limit_bytes },
        "networks": { "eth0": { "rx_bytes": usage.received_bytes, "tx_bytes": usage.sent_bytes } },
        "blkio_stats": {
            "io_service_bytes_recursive": [entry("Read", usage.read_bytes), entry("Write", usage.written_bytes)],
        },
    })
}

/// Credentials of a role, out of a secret with `AccessKeyId`, `SecretAccessKey` and perhaps `Token`.
pub(super) fn credentials(role: &str, secret: &str, until: Timestamp) -> Option<Value> {
    let secret: Value = serde_json::from_str(secret).ok()?;
    Some(json!({
        "RoleArn": role,
        "AccessKeyId": secret["AccessKeyId"].as_str()?,
        "SecretAccessKey": secret["SecretAccessKey"].as_str()?,
        "Token": secret["Token"].as_str().unwrap_or_default(),
        // Those that expire by themselves say when.
        "Expiration": secret["Expiration"].as_str().map_or_else(|| until.to_string(), str::to_owned),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_members_of_the_secret() {
        let until = Timestamp(0);
        let made = credentials("app", r#"{"AccessKeyId":"AKID","SecretAccessKey":"s"}"#, until).expect("complete");
        assert_eq!((made["AccessKeyId"].as_str(), made["Token"].as_str()), (Some("AKID"), Some("")));
        assert_eq!(made["Expiration"], "1970-01-01T00:00:00Z");
        assert_eq!(credentials("app", "no json", until), None);
        assert_eq!(credentials("app", r#"{"AccessKeyId":"AKID"}"#, until), None);
    }
}
