//! Stopping what is too much, within the floor.

use steady_core::guard::{self, Guard};
use steady_core::v1::severity;
use steady_core::v1::stop_code::Value as StopCode;
use steady_core::{Change, Plan, Timestamp, service, task};

use super::{Known, balance, choice, listed, on};

pub(super) fn stop(task: &task::View<'_>, reason: &str, now: Timestamp) -> Change {
    let object = task.stopped(StopCode::ServiceSchedulerInitiated, reason, now);
    Change::PutStatus { object, expect: task.revision() }
}

/// Stops what is too much: tasks that fail their health checks, and tasks above their deployment's target.
pub(super) fn stop_surplus(known: &Known<'_>, plan: &mut Plan) {
    let bounds = service::bounds(known.spec, known.desired);
    let above = |healthy: i32| if guard::stands(Guard::Floor) { healthy - bounds.floor } else { i32::MAX };
    let (mut spare, mut spare_sure) = (above(known.healthy()), above(known.sure()));
    let mut stopped = Vec::new();
    for deployment in &known.deployments {
        let name = deployment.object.name();
        let wanted: Vec<&task::View<'_>> = known.tasks_of(name).filter(|t| t.is_wanted()).collect();
        let unhealthy: Vec<&task::View<'_>> = wanted.iter().copied().filter(|t| known.is_failing(t)).collect();
        let good = wanted.iter().filter(|t| known.counts(t)).count() as i32;
        let target = deployment.spec.target_count;
        for task in wanted.iter().filter(|t| balance::is_stuck(known, t)) {
            let reason = format!("It did not run on container instance {} in time", task.spec.target_instance);
            plan.push(stop(task, &reason, known.now));
            stopped.push(task.object.name().to_owned());
        }
        // A replacement comes first while there is room for one; after it, or without room, the task that is to go does.
        let stays = |t: &&task::View<'_>| t.is_healthy() && !known.is_moving(t);
        let replaced = known.tasks_of(name).filter(stays).count() as i32 >= target;
        let full = (known.live() >= bounds.ceiling && good < target) || known.is_daemon();
        if replaced || full {
            let most = if replaced { unhealthy.len() } else { 1 };
            for task in unhealthy.iter().take(most) {
                let reason = match task.unhealthy_target() {
                    Some(target) => format!("Task failed ELB health checks in (target-group {})", target.target_group),
                    None => "Task failed container health checks".to_owned(),
                };
                plan.push(stop(task, &reason, known.now));
                stopped.push(task.object.name().to_owned());
            }
        }
        let stays_longer = |t: &task::View<'_>| {
            known.is_protected(t)
                || (known.draining.contains(on(t)) && known.is_daemon() && t.is_running() && known.has_replicas(on(t)))
        };
        let moving = wanted.iter().copied().filter(|t| known.is_moving(t) && !known.is_failing(t) && !stays_longer(t));
        let (ready, pending): (Vec<&task::View<'_>>, Vec<&task::View<'_>>) = moving.partition(|t| t.is_healthy());
        let most = if replaced || known.is_daemon() { ready.len() } else { usize::from(full) };
        let most = most.min(usize::try_from(spare.min(spare_sure)).unwrap_or(0));
        (spare, spare_sure) = (spare - most as i32, spare_sure - most as i32);
        for task in pending.into_iter().chain(ready.into_iter().take(most)) {
            let reason = match known.successor(task) {
                Some(successor) => format!("Service rebalanced: (task {}) runs elsewhere", successor.object.name()),
                None if known.is_daemon() && !known.draining.contains(on(task)) => {
                    format!("Container instance {} does not satisfy the placement constraints", on(task))
                }
                None => format!("Container instance {} is draining", on(task)),
            };
            plan.push(stop(task, &reason, known.now));
            stopped.push(task.object.name().to_owned());
        }
        let reason = format!("Scaling activity initiated by (deployment {name})");
        let surplus = usize::try_from(good - target).unwrap_or(0);
        for task in choice::leaving(known, name, surplus) {
            if task.is_healthy() {
                let sure = i32::from(known.is_sure(task));
                if spare <= 0 || (sure > 0 && spare_sure <= 0) {
                    continue;
                }
                (spare, spare_sure) = (spare - 1, spare_sure - sure);
            }
            plan.push(stop(task, &reason, known.now));
            stopped.push(task.object.name().to_owned());
        }
    }
    if !stopped.is_empty() {
        let message = format!("has stopped {} running tasks: {}.", stopped.len(), listed(&stopped));
        plan.events.push(known.event("SERVICE_TASKS_STOPPED", &message, severity::Value::Info));
    }
}
