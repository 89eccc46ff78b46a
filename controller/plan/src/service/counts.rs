//! Counts of tasks in the status of the service and its deployments, and whether it is at steady state.

use std::time::Duration;

use steady_core::guard::{self, Guard};
use steady_core::v1::rollout_state::Value as Rollout;
use steady_core::v1::{DeploymentStatus, ServiceStatus, severity};
use steady_core::{Change, Key, Plan, Revision, service, task};

use super::throttle::Throttle;
use super::{Known, failures, starts};
use crate::deployment::SETTLED;

/// Running, and on the way there.
fn tally<'a>(tasks: impl Iterator<Item = &'a task::View<'a>>) -> (i32, i32) {
    tasks.filter(|t| t.is_wanted()).fold((0, 0), |(running, pending), task| {
        if task.is_running() { (running + 1, pending) } else { (running, pending + 1) }
    })
}

/// Adds the statuses that differ from what the view shows. `started` are deployments that start tasks in this plan,
/// with the number of the last one: it is written before any of them, so that no number comes twice.
pub(super) fn counts(known: &Known<'_>, throttle: &Throttle, started: &[(String, i64)], plan: &mut Plan) {
    let mut first: Vec<Change> = Vec::new();
    for deployment in &known.deployments {
        let name = deployment.object.name();
        let (running, pending) = tally(known.tasks_of(name));
        let started = if guard::stands(Guard::Attempts) { started } else { &[] };
        let attempts = started.iter().find(|(n, _)| n == name).map_or(deployment.status.attempts, |(_, last)| *last);
        let status = DeploymentStatus {
            desired_count: Some(deployment.spec.target_count),
            running_count: Some(running),
            pending_count: Some(pending),
            attempts,
            image_digests: starts::image_digests(known, deployment),
            ..failures::counted(known, deployment)
        };
        if status != *deployment.status {
            first.push(deployment.change(status));
        }
    }
    let status = service_status(known, throttle);
    if status.steady && !known.status.steady {
        plan.events.push(known.event("SERVICE_STEADY_STATE", "has reached a steady state.", severity::Value::Info));
    }
    if status != *known.status {
        first.push(Change::PutStatus {
            object: service::with_status(known.object, status),
            expect: Revision(known.object.meta().revision),
        });
    } else if !plan.groups.is_empty() {
        // Whatever is started or stopped is started or stopped for the service as it was looked at.
        first.push(Change::Check { key: Key::of(known.object), expect: Revision(known.object.meta().revision) });
    }
    if !first.is_empty() {
        plan.groups.insert(0, first);
    }
    if let Some(at) = settles_at(known, throttle) {
        plan.wake(at);
    }
    // One that is young makes room for nobody yet.
    let young = known.tasks.iter().filter_map(|t| known.counts_from(t)).filter(|from| *from > known.now);
    young.for_each(|from| plan.wake(from));
    let protected = known.tasks.iter().filter(|t| t.is_wanted()).filter_map(task::View::protected_until);
    protected.filter(|until| *until > known.now).for_each(|until| plan.wake(until));
    // A task whose checks fail is looked at again when its grace period is over.
    for task in known.tasks.iter().filter(|t| t.is_unhealthy() && !known.is_failing(t)) {
        let grace = Duration::from_secs(u64::from(known.spec.health_check_grace_period_seconds().unsigned_abs()));
        plan.wake(task.started_at().unwrap_or(known.now) + grace);
    }
}

/// When a task will have run long enough to end the throttle, and the count of the circuit breaker.
fn settles_at(known: &Known<'_>, throttle: &Throttle) -> Option<steady_core::Timestamp> {
    let throttled = throttle.state.as_ref().is_some_and(|s| s.failures > 0);
    let counted = known.deployments.last().is_some_and(|d| d.status.failed_tasks > 0);
    if !throttled && !counted {
        return None;
    }
    let healthy = known.tasks.iter().filter(|t| t.is_healthy()).filter_map(task::View::started_at);
    healthy.map(|at| at + SETTLED).filter(|at| *at > known.now).min()
}

fn service_status(known: &Known<'_>, throttle: &Throttle) -> ServiceStatus {
    let (running, pending) = tally(known.tasks.iter());
    let desired = if known.object.is_deleting() { 0 } else { known.desired };
    let digest = service::revision_digest(known.spec);
    let refused = known.status.failed_rollout.as_ref().is_some_and(|failed| failed.revision_digest == digest);
    let obeyed = known.deployments.last().is_some_and(|d| {
        (d.spec.revision_digest == digest || refused)
            && d.spec.target_count == desired
            && d.status.rollout_state() == Rollout::Completed
    });
    let shared_out = || {
        let as_many = |d: &crate::deployment::Rolling<'_>| {
            known.tasks_of(d.object.name()).filter(|t| t.is_live()).count() as i32 == d.spec.target_count
        };
        known.deployments.iter().all(as_many)
            && known.deployments.iter().map(|d| d.spec.target_count).sum::<i32>() == desired
    };
    let obeyed = if service::is_external(known.spec) { shared_out() } else { obeyed };
    let only_one = known.tasks.iter().filter(|t| t.is_live()).count() as i32 == desired;
    let healthy = known.healthy() == desired;
    ServiceStatus {
        running_count: Some(running),
        pending_count: Some(pending),
        desired_count: Some(desired),
        observed_generation: known.object.meta().generation,
        steady: obeyed && only_one && healthy && !known.object.is_deleting(),
        throttle: throttle.state.clone(),
        ..known.status.clone()
    }
}
