//! Giving a deployment up, and going back to an older one.

use steady_core::v1::alarm_state::Value as AlarmState;
use steady_core::v1::deployment_role::Value as Role;
use steady_core::v1::lifecycle_stage::Value as Stage;
use steady_core::v1::rollout_state::Value as Rollout;
use steady_core::v1::{DeploymentSpec, DeploymentStatus, FailedRollout, ServiceStatus, severity};
use steady_core::{Change, Key, Kind, Plan, service};

use super::{Rolled, Rolling, is_tripped, stages};

/// Why a deployment is given up.
pub(super) struct Cause {
    /// Who noticed.
    pub(super) detector: &'static str,
    /// As the event says it.
    pub(super) told: &'static str,
    pub(super) why: String,
    /// The last completed deployment is to take its place.
    pub(super) rolls_back: bool,
}

impl Rolled<'_> {
    /// Has an older deployment take the place of the newest again: its tasks that still run stay.
    pub(super) fn resume(
        &self,
        again: &Rolling<'_>,
        failed: Option<FailedRollout>,
        mut group: Vec<Change>,
    ) -> Vec<Change> {
        let sequence = self.deployments.last().map_or(0, |d| d.spec.sequence) + 1;
        let spec = DeploymentSpec { sequence, target_count: self.desired, ..again.spec.clone() };
        // What served until now has its tasks, and gets the traffic back at once.
        let stage = if again.serves() { Stage::CleanUp } else { Stage::Unspecified };
        let stage = if service::is_rolling(self.spec) { Stage::Unspecified } else { stage };
        let status = DeploymentStatus {
            lifecycle_stage: stage.into(),
            stage_started_at: Some(self.now.into()),
            hooks: Vec::new(),
            traffic_steps: 0,
            ignored_alarms: self.raised().map(str::to_owned).collect(),
            role: Role::Primary.into(),
            rollout_state: Rollout::InProgress.into(),
            rollout_state_reason: again.in_progress(),
            failed_tasks: 0,
            last_failure: String::new(),
            failures_counted_to: Some(self.now.into()),
            ..again.status.clone()
        };
        group.push(again.respecified(spec, &["sequence", "targetCount"]));
        group.push(again.change(status));
        group.push(self.with_status(ServiceStatus {
            primary_deployment: again.object.name().to_owned(),
            steady: false,
            failed_rollout: failed,
            ..self.status.clone()
        }));
        group
    }

    /// Alarms of the service that are raised.
    pub(super) fn raised(&self) -> impl Iterator<Item = &str> {
        let is_raised = |name: &&String| {
            let alarm = self.view.get(&Key::new(Kind::Alarm, self.object.cluster(), name));
            let status = alarm.and_then(|alarm| alarm.as_alarm()?.status.as_ref());
            status.is_some_and(|status| status.state_value() == AlarmState::Alarm)
        };
        service::alarms(self.spec).iter().filter(is_raised).map(String::as_str)
    }

    /// Why the newest deployment is to be given up, if it is.
    pub(super) fn cause_to_give_up(&self, newest: &Rolling<'_>) -> Option<Cause> {
        let (status, settings) = (newest.status, service::settings(self.spec));
        if is_tripped(self.spec, self.desired, status) {
            return Some(Cause {
                detector: "deployment circuit breaker",
                told: "tasks failed to start.",
                why: status.last_failure.clone(),
                rolls_back: settings.deployment_circuit_breaker.is_some_and(|breaker| breaker.rollback),
            });
        }
        let heeded = status.rollout_state() == Rollout::InProgress && status.lifecycle_stage() != Stage::CleanUp;
        let raised = self.raised().find(|name| !status.ignored_alarms.iter().any(|ignored| ignored == name));
        if let Some(name) = raised.filter(|_| heeded) {
            let alarm = self.view.get(&Key::new(Kind::Alarm, self.object.cluster(), name));
            let reason = alarm.and_then(|a| a.as_alarm()?.status.as_ref()).map_or("", |status| &status.state_reason);
            let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
            return Some(Cause {
                detector: "deployment alarms",
                told: "alarm detected.",
                why: format!("alarm {name} was raised{reason}."),
                rolls_back: settings.alarms.as_ref().is_some_and(|alarms| alarms.rollback),
            });
        }
        stages::failure(self.spec, status, self.now)
    }

    /// Ends a deployment whose tasks fail. The last one that was completed takes its place, where that is wanted and this
    /// one is not such a one itself: what was rolled back to is not rolled back from.
    pub(super) fn give_up(
        &self,
        deployment: &Rolling<'_>,
        refused: bool,
        digest: String,
        cause: &Cause,
        plan: &mut Plan,
    ) {
        let name = deployment.object.name();
        let rolls_back = cause.rolls_back && !refused;
        let before = self.deployments.iter().rfind(|d| d.status.rollout_state() == Rollout::Completed);
        let before = before.filter(|_| rolls_back);
        let mut status = DeploymentStatus { completed_at: None, ..deployment.status.clone() };
        status.set_rollout_state(Rollout::Failed);
        status.set_lifecycle_stage(Stage::Unspecified);
        status.hooks.clear();
        let (detector, why) = (cause.detector, cause.why.clone());
        status.rollout_state_reason = match before {
            Some(before) => format!("ECS {detector}: rolling back to deploymentId {}.", before.object.name()),
            None if detector == "deployment circuit breaker" => format!("ECS {detector}: task failed to start."),
            None => format!("ECS {detector}: {why}"),
        };
        let failed = match self.status.failed_rollout.clone().filter(|_| refused) {
            Some(first) => {
                let reason = format!("{} What it was rolled back to failed, too: {why}", first.reason);
                FailedRollout { reason, ..first }
            }
            None => FailedRollout {
                deployment: name.to_owned(),
                revision_digest: digest,
                reason: why,
                rolled_back_to: before.map(|before| before.object.name().to_owned()).unwrap_or_default(),
            },
        };
        let message = format!("(deployment {name}) deployment failed: {}", cause.told);
        plan.events.push(self.event("SERVICE_DEPLOYMENT_FAILED", &message, severity::Value::Error));
        let Some(before) = before else {
            plan.groups.push(vec![
                deployment.change(status),
                self.with_status(ServiceStatus { failed_rollout: Some(failed), ..self.status.clone() }),
            ]);
            return;
        };
        status.set_role(Role::Active);
        plan.groups.push(self.resume(before, Some(failed), vec![deployment.change(status)]));
        let message = format!("rolling back to (deployment {}).", before.object.name());
        plan.events.push(self.event("SERVICE_DEPLOYMENT_ROLLBACK", &message, severity::Value::Warn));
    }
}
