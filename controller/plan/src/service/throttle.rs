//! Restarts are throttled: tasks that fail one after the other are started less and less often (ECS service throttle
//! logic, up to 27 minutes).
//!
//! A task has failed when it stopped by itself before it ran for ten seconds. (ECS only counts tasks that never ran;
//! here a task runs within milliseconds, and one that exits at once would be started hundreds of times a second.)
//! A task that keeps running, or a new deployment, sets the count to zero.
//! Deployments that are not the newest are throttled each by their own failures.

use std::collections::BTreeMap;
use std::time::Duration;

use steady_core::guard::{self, Guard};
use steady_core::v1::StartThrottle;
use steady_core::v1::stop_code::Value as StopCode;
use steady_core::{Timestamp, task};

use super::Known;
use crate::deployment::SETTLED;

/// The longest pause (ECS).
const LONGEST: Duration = Duration::from_secs(27 * 60);
/// Failures from which on a service counts as impaired.
const IMPAIRED: i32 = 3;

/// The throttle as it is after what the view shows.
pub(super) struct Throttle {
    /// As it is to be stored; `None` when there is nothing to remember.
    pub(super) state: Option<StartThrottle>,
}

impl Throttle {
    /// As it is stored.
    pub(super) fn of(known: &Known<'_>) -> Self {
        Throttle { state: known.status.throttle.clone() }
    }

    /// Until when nothing may be started, if that is in the future.
    pub(super) fn blocked(&self, now: Timestamp) -> Option<Timestamp> {
        let until = self.state.as_ref().and_then(|s| s.until.as_ref()).map(Timestamp::from)?;
        (until > now).then_some(until)
    }
}

/// Stopped by itself before it ran for ten seconds.
pub(super) fn failed(task: &task::View<'_>) -> bool {
    let own_fault = matches!(task.status.stop_code(), StopCode::TaskFailedToStart | StopCode::EssentialContainerExited);
    let ran = match (task.started_at(), task.stopped_at()) {
        (Some(start), Some(stop)) => stop.since(start),
        _ => Duration::ZERO,
    };
    own_fault && !task.is_live() && ran < SETTLED
}

/// Counts the failures that are not counted yet.
pub(super) fn after_failures(known: &Known<'_>) -> Throttle {
    let Some(newest) = known.deployments.last() else { return Throttle::of(known) };
    let deployment = newest.object.name();
    let stored = known.status.throttle.clone().filter(|s| s.deployment == deployment);
    let counted_to = stored.as_ref().and_then(|s| s.counted_to.as_ref()).map_or(Timestamp(0), Timestamp::from);
    let fresh = known
        .tasks_of(deployment)
        .filter(|t| failed(t))
        .filter_map(task::View::stopped_at)
        .filter(|at| *at > counted_to)
        .max();
    let settled = known
        .tasks_of(deployment)
        .any(|t| t.is_healthy() && t.started_at().is_some_and(|at| known.now.since(at) >= SETTLED && at > counted_to));
    let state = match (stored, fresh) {
        (stored, Some(last)) => {
            let failures = stored.map_or(0, |s| s.failures) + 1;
            Some(StartThrottle {
                failures,
                until: Some((last + pause(failures)).into()),
                counted_to: Some(last.into()),
                deployment: deployment.to_owned(),
            })
        }
        // What was counted stays counted: the failed task is still there to be seen.
        (Some(stored), None) if settled && stored.failures > 0 => {
            guard::stands(Guard::Counted).then_some(StartThrottle { failures: 0, until: None, ..stored })
        }
        (stored, None) => stored,
    };
    Throttle { state }
}

/// Until when nothing may be started for a deployment that is not the newest, if that is in the future: what is stored is of
/// the newest one, so its failures since one of its tasks settled are counted as they are there to be seen.
pub(super) fn blocked_by_own(known: &Known<'_>, deployment: &str) -> Option<Timestamp> {
    let settled = known.tasks_of(deployment).filter_map(|t| {
        let ended = t.stopped_at().unwrap_or(known.now);
        t.started_at().filter(|start| ended.since(*start) >= SETTLED)
    });
    let settled = settled.max().unwrap_or(Timestamp(0));
    // Tasks that fail together are one failure: what counts is how often one place was tried.
    let (mut tries, mut last): (BTreeMap<i32, i32>, Option<Timestamp>) = (BTreeMap::new(), None);
    for task in known.tasks_of(deployment).filter(|t| failed(t) && t.stopped_at().is_some_and(|at| at > settled)) {
        *tries.entry(task.spec.slot).or_default() += 1;
        last = last.max(task.stopped_at());
    }
    let until = last? + pause(tries.into_values().max().unwrap_or(0));
    (until > known.now).then_some(until)
}

/// None after the first failure, then 1 s, 2 s, 4 s, …
fn pause(failures: i32) -> Duration {
    if failures <= 1 {
        return Duration::ZERO;
    }
    Duration::from_secs(1 << (failures - 2).min(11)).min(LONGEST)
}

/// Whether the service cannot start tasks.
pub(super) fn is_impaired(known: &Known<'_>) -> bool {
    after_failures(known).state.is_some_and(|s| s.failures >= IMPAIRED)
}

/// Why its last task failed.
pub(super) fn why(known: &Known<'_>) -> String {
    let last = known.tasks.iter().filter(|t| failed(t)).max_by_key(|t| t.stopped_at());
    last.map(told).unwrap_or_default()
}

/// Why a task failed.
pub(super) fn told(last: &task::View<'_>) -> String {
    let exits = last.status.containers.iter().filter_map(|c| {
        let code = c.exit_code.map(|code| format!(" exited with {code}"));
        let told = c.reason.is_empty() || c.reason == last.status.stopped_reason;
        let reason = (!told).then(|| format!(": {}", c.reason));
        (code.is_some() || reason.is_some())
            .then(|| format!("{}{}{}", c.name, code.unwrap_or_default(), reason.unwrap_or_default()))
    });
    let exits: Vec<String> = exits.collect();
    let exits = if exits.is_empty() { String::new() } else { format!(" ({})", exits.join("; ")) };
    format!(" Last failure: {}{exits}.", last.status.stopped_reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_27_minutes() {
        let pauses: Vec<u64> = (1..=14).map(|n| pause(n).as_secs()).collect();
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1620, 1620]);
    }
}
