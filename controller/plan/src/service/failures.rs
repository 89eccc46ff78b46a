//! Failures that a deployment's circuit breaker counts (ECS deployment circuit breaker).
//!
//! A task of a deployment that is `IN_PROGRESS` has failed when it failed to start ([`throttle::failed`]), or when it was
//! replaced because its health checks failed. One that stays healthy sets the count to zero, unless the breaker is to
//! count them all.

use steady_core::v1::DeploymentStatus;
use steady_core::v1::health_status::Value as Health;
use steady_core::v1::rollout_state::Value as Rollout;
use steady_core::v1::stop_code::Value as StopCode;
use steady_core::{Timestamp, task};

use super::{Known, throttle};
use crate::deployment::{Rolling, SETTLED};

/// Failed to start, or was replaced because its health checks failed.
fn failed(task: &task::View<'_>) -> bool {
    let replaced = task.status.stop_code() == StopCode::ServiceSchedulerInitiated
        && task.status.health_status() == Health::Unhealthy
        && !task.is_live();
    replaced || throttle::failed(task)
}

/// A deployment's status with the failures that the view shows and that are not counted yet.
pub(super) fn counted(known: &Known<'_>, deployment: &Rolling<'_>) -> DeploymentStatus {
    let mut status = deployment.status.clone();
    if status.rollout_state() != Rollout::InProgress {
        return status;
    }
    let counted_to = status.failures_counted_to.as_ref().map_or(Timestamp(0), Timestamp::from);
    let tasks = || known.tasks_of(deployment.object.name());
    let stopped = |t: &task::View<'_>| t.stopped_at().filter(|at| *at > counted_to);
    let fresh: Vec<&task::View<'_>> = tasks().filter(|t| failed(t) && stopped(t).is_some()).collect();
    let settings = steady_core::service::settings(known.spec);
    let resets =
        settings.deployment_circuit_breaker.is_none_or(|breaker| breaker.reset_on_healthy_task.unwrap_or(true));
    let settled = |t: &task::View<'_>| {
        t.is_healthy() && t.started_at().is_some_and(|at| at > counted_to && known.now.since(at) >= SETTLED)
    };
    if let Some(last) = fresh.iter().max_by_key(|t| t.stopped_at()) {
        status.failed_tasks += fresh.len() as i32;
        status.failures_counted_to = last.stopped_at().map(Into::into);
        status.last_failure = if throttle::failed(last) {
            format!("tasks failed to start.{}", throttle::told(last))
        } else {
            "tasks failed their container health checks.".to_owned()
        };
    } else if resets && tasks().any(settled) {
        (status.failed_tasks, status.last_failure) = (0, String::new());
    }
    status
}
