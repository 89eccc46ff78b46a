//! A task: where it runs, its containers, and why it stopped.

use std::fmt::Write as _;

use steady_core::task;
use steady_proto::v1::stop_code::Value as StopCode;
use steady_proto::v1::{Container, Object, TaskStatus};

use super::Page;
use crate::columns::{addresses, status_word};
use crate::span;
use crate::world::World;

pub(super) fn describe(page: &mut Page, object: &Object, world: &World) {
    let Some(task) = task::of(object) else { return };
    let (spec, status) = (task.spec, task.status);
    page.state("Last status", status_word(status.last_status()));
    page.state("Desired status", status.desired_status().as_str_name());
    page.state("Health", status.health_status().as_str_name());
    page.field("Task definition", &spec.task_definition);
    page.field("Group", &spec.group);
    page.field("Started by", &spec.started_by);
    page.field("Deployment", &spec.deployment);
    page.field("Instance", &spec.container_instance);
    let demand = spec.demand.clone().unwrap_or_default();
    let mut takes = vec![format!("{} cpu units", demand.cpu), format!("{} MiB", demand.memory)];
    takes.extend(demand.named.iter().map(|(name, count)| format!("{count} {name}")));
    page.field("Takes", &takes.join(", "));
    page.priority(spec.priority, spec.preemptible);
    page.field("Provider", &spec.capacity_provider);
    page.field("Scheduler", &spec.scheduler_name);
    page.field("Addresses", &addresses(object, world).join(", "));
    times(page, status);
    page.field("Stopped reason", &status.stopped_reason);
    if status.stop_code() != StopCode::Unspecified {
        page.field("Stop code", status.stop_code().as_str_name());
    }
    for target in &status.targets {
        page.field("Target", &format!("{}  {}", target.target_group, super::traffic::target(target)));
    }
    page.waiting(object);
    page.section("Containers");
    if status.containers.is_empty() {
        page.line("none yet");
    }
    for found in &status.containers {
        container(page, found);
    }
    page.conditions(object);
}

fn times(page: &mut Page, status: &TaskStatus) {
    let steps = [
        ("pulled", &status.pull_stopped_at),
        ("started", &status.started_at),
        ("stopping", &status.stopping_at),
        ("stopped", &status.stopped_at),
    ];
    let told: Vec<String> = steps
        .into_iter()
        .filter_map(|(step, at)| Some(format!("{step} {} ago", span::age(Some(at.as_ref()?), page.now))))
        .collect();
    page.field("Times", &told.join(", "));
}

fn container(page: &mut Page, container: &Container) {
    let mut line = format!("{}  {}", container.name, status_word(container.last_status()));
    if let Some(code) = container.exit_code {
        let _ = write!(line, "  exit code {code}");
    }
    let health = container.health_status().as_str_name();
    if health != "VALUE_UNSPECIFIED" {
        let _ = write!(line, "  {health}");
    }
    if container.restart_count > 0 {
        let _ = write!(line, "  restarts {}", container.restart_count);
    }
    page.line(&line);
    page.line(format!("  image    {} {}", container.image, container.image_digest).trim_end());
    for (name, value) in [("runtime", &container.runtime_id), ("reason", &container.reason)] {
        if !value.is_empty() {
            page.line(&format!("  {name:<8} {value}"));
        }
    }
    for binding in &container.network_bindings {
        let (ip, host, inside) = (&binding.bind_ip, binding.host_port, binding.container_port);
        page.line(&format!("  port     {ip}:{host} -> {inside}/{}", binding.protocol().as_str_name()));
    }
}
