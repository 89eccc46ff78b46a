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
    let fresh: Vec<Timestamp> =
        tasks().filter(|t| failed(t)).filter_map(task::View::stopped_at).filter(|at| *at > counted_to).collect();
    let settings = known.spec.deployment_configuration.unwrap_or_default();
    let resets =
        settings.deployment_circuit_breaker.is_none_or(|breaker| breaker.reset_on_healthy_task.unwrap_or(true));
    let settled = |t: &task::View<'_>| {
        t.is_healthy() && t.started_at().is_some_and(|at| at > counted_to && known.now.since(at) >= SETTLED)
    };
    if let Some(last) = fresh.iter().max() {
        status.failed_tasks += fresh.len() as i32;
        status.failures_counted_to = Some((*last).into());
    } else if resets && tasks().any(settled) {
        status.failed_tasks = 0;
    }
    status
}
