//! A service: what is wanted, how far it is, and why it is not steady.

use steady_core::{Kind, service, task};
use steady_proto::v1::Object;
use steady_proto::v1::service_state::Value as State;

use super::{Page, scaling};
use crate::progress;
use crate::world::World;

/// Most stopped tasks that are shown, the newest.
const STOPPED: usize = 5;

pub(super) fn describe(page: &mut Page, object: &Object, world: &World) {
    let spec = object.as_service().and_then(|s| s.spec.clone()).unwrap_or_default();
    let status = object.as_service().and_then(|s| s.status.clone()).unwrap_or_default();
    let state = if status.status() == State::Unspecified { State::Active } else { status.status() };
    page.state("Status", if object.is_deleting() { "DRAINING" } else { state.as_str_name() });
    page.field("Task definition", &spec.task_definition);
    page.field("Scheduling", spec.scheduling_strategy().as_str_name());
    let desired = service::desired(&spec, &status);
    let bounds = service::bounds(&spec, desired);
    let settings = service::settings(&spec);
    let (least, most) = (settings.minimum_healthy_percent.unwrap_or(100), settings.maximum_percent.unwrap_or(200));
    let (floor, ceiling) = (bounds.floor, bounds.ceiling);
    page.field("Deploys", &format!("with {floor} to {ceiling} tasks ({least}% to {most}%)"));
    if let Some(threshold) = service::failure_threshold(&spec, desired) {
        let rolls_back = settings.deployment_circuit_breaker.is_some_and(|breaker| breaker.rollback);
        let then = if rolls_back { "rolls back" } else { "gives up" };
        page.field("Circuit breaker", &format!("{then} after {threshold} failures"));
    }
    if !service::is_rolling(&spec) {
        page.field("Strategy", settings.strategy().as_str_name());
    }
    if let Some(stage) = progress::stage(object, world) {
        page.field("Rollout", &stage);
    }
    if let Some(reason) = progress::rollout_failure(object) {
        page.field("Rollout", &reason);
    }
    for constraint in &spec.placement_constraints {
        page.field("Constraint", format!("{} {}", constraint.r#type().as_str_name(), constraint.expression).trim());
    }
    for strategy in &spec.placement_strategy {
        page.field("Placement", format!("{} {}", strategy.r#type().as_str_name(), strategy.field).trim());
    }
    for item in &spec.capacity_provider_strategy {
        let (name, weight, base) = (&item.capacity_provider, item.weight, item.base);
        page.field("Provider", &format!("{name} (base {base}, weight {weight})"));
    }
    for balancer in &spec.load_balancers {
        let (group, container, port) = (&balancer.target_group_arn, &balancer.container_name, balancer.container_port);
        page.field("Target group", &format!("{group} → {container}:{port}"));
    }
    page.priority(spec.priority, spec.preemptible);
    page.field("Scheduler", &spec.scheduler_name);
    let (running, pending) = (status.running_count(), status.pending_count());
    page.field("Tasks", &format!("{desired} desired, {running} running, {pending} pending"));
    let steady = progress::is_steady(object);
    page.field("Steady", if steady { "yes" } else { "no" });
    if !steady {
        why_not(page, object, world);
    }
    scaling::of_service(page, object, world);
    let of = |kind| world.view.of_service(kind, object.cluster(), object.name());
    page.table("Deployments", Kind::Deployment, of(Kind::Deployment), world);
    let live = |o: &&std::sync::Arc<Object>| task::of(o).is_some_and(|task| task.is_live());
    page.table("Tasks", Kind::Task, of(Kind::Task).filter(live), world);
    stopped(page, object, world);
}

fn why_not(page: &mut Page, object: &Object, world: &World) {
    page.section("Not steady because");
    let reasons = progress::reasons(object, world);
    let status = object.as_service().and_then(|s| s.status.clone()).unwrap_or_default();
    if status.observed_generation != object.meta().generation {
        page.line("its newest change has not been looked at yet: is a controller running?");
    } else if reasons.is_empty() {
        let spec = object.as_service().and_then(|s| s.spec.as_ref());
        let desired = spec.map_or(0, |spec| service::desired(spec, &status));
        match progress::stage(object, world) {
            Some(stage) => page.line(&format!("it is being deployed: {stage}")),
            None => page.line(&format!("{} of {desired} tasks are running", status.running_count())),
        }
    }
    for (message, count) in reasons {
        let times = if count > 1 { format!(" ({count} times)") } else { String::new() };
        page.line(&format!("{message}{times}"));
    }
}

/// The last tasks that stopped, and why: the cause of most services that are not steady.
fn stopped(page: &mut Page, object: &Object, world: &World) {
    let tasks = world.view.of_service(Kind::Task, object.cluster(), object.name());
    let mut stopped: Vec<_> = tasks.filter(|o| task::of(o).is_some_and(|task| !task.is_live())).collect();
    if stopped.is_empty() {
        return;
    }
    stopped.sort_by_key(|o| task::of(o).and_then(|task| task.stopped_at()));
    page.section("Stopped tasks");
    for object in stopped.iter().rev().take(STOPPED) {
        let at = task::of(object).and_then(|task| task.stopped_at());
        let age = at.map_or_else(|| "-".to_owned(), |at| crate::span::short(page.now.since(at)));
        let (id, reason) = (crate::columns::short_id(object.name()), crate::columns::task_reason(object));
        page.line(&format!("{age:<6}  {id}  {reason}"));
    }
    if stopped.len() > STOPPED {
        page.line(&format!("({} older ones: steady get tasks --all)", stopped.len() - STOPPED));
    }
}
