//! Stages of deployments that are not ROLLING (ECS blue/green, linear and canary deployments).
//!
//! Where a deployment is stands in its status: its stage, since when, the hooks of the stage and the steps of traffic that
//! were made. How many tasks each deployment is to have and how much of the traffic follows from that.

use std::time::Duration;

use steady_core::service::{self, settings};
use steady_core::v1::deployment_lifecycle_hook_type::Value as HookType;
use steady_core::v1::deployment_strategy::Value as Strategy;
use steady_core::v1::hook_status::Value as HookStatus;
use steady_core::v1::hook_timeout_action::Value as TimeoutAction;
use steady_core::v1::lifecycle_stage::Value as Stage;
use steady_core::v1::rollout_state::Value as Rollout;
use steady_core::v1::{DeploymentHook, DeploymentStatus, ServiceSpec};
use steady_core::{Plan, Timestamp};

use super::rollback::Cause;
use super::{Rolled, Rolling};

/// The longest that a stage without a pause may take (ECS).
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Minutes that a hook has when nobody says (ECS).
const HOOK_TIMEOUT: i32 = 1440;
/// Percent and minutes of steps when nobody says (ECS).
const LINEAR: (f64, i32) = (10.0, 6);
const CANARY: (f64, i32) = (5.0, 10);
const ALL: f64 = 100.0;

/// Share of the production traffic after so many steps, percent.
fn share(spec: &ServiceSpec, steps: i32) -> f64 {
    let settings = settings(spec);
    let step = match settings.strategy() {
        _ if steps <= 0 => 0.0,
        Strategy::Linear => {
            let percent = settings.linear_configuration.as_ref().and_then(|linear| linear.step_percent);
            percent.unwrap_or(LINEAR.0) * f64::from(steps)
        }
        Strategy::Canary if steps == 1 => {
            let percent = settings.canary_configuration.as_ref().and_then(|canary| canary.canary_percent);
            percent.unwrap_or(CANARY.0)
        }
        _ => ALL,
    };
    step.min(ALL)
}

/// How long a step of production traffic is watched before the next one.
fn step_bake(spec: &ServiceSpec) -> Duration {
    let settings = settings(spec);
    service::minutes(match settings.strategy() {
        Strategy::Linear => {
            let bake = settings.linear_configuration.as_ref().and_then(|linear| linear.step_bake_time_in_minutes);
            bake.unwrap_or(LINEAR.1)
        }
        Strategy::Canary => {
            let bake = settings.canary_configuration.as_ref().and_then(|canary| canary.canary_bake_time_in_minutes);
            bake.unwrap_or(CANARY.1)
        }
        _ => 0,
    })
}

/// Begins a stage.
pub(super) fn enter(spec: &ServiceSpec, status: &mut DeploymentStatus, stage: Stage, now: Timestamp) {
    status.set_lifecycle_stage(stage);
    status.stage_started_at = Some(now.into());
    if stage == Stage::ProductionTrafficShift {
        status.traffic_steps += 1;
    }
    let recurs = matches!(stage, Stage::PreProductionTrafficShift | Stage::ProductionTrafficShift);
    let hooks = settings(spec).lifecycle_hooks.iter().enumerate();
    let hooks = hooks.filter(|(_, hook)| hook.lifecycle_stages().any(|its| its == stage)).map(|(number, hook)| {
        let timeout = service::minutes(hook.timeout_in_minutes.unwrap_or(HOOK_TIMEOUT));
        let waits = hook.r#type() == HookType::Pause;
        let step = if recurs { format!("-{}", status.traffic_steps) } else { String::new() };
        DeploymentHook {
            hook_id: format!("{}-{number}{step}", stage.as_str_name()),
            status: if waits { HookStatus::AwaitingAction } else { HookStatus::InProgress }.into(),
            next_call_at: (!waits).then(|| now.into()),
            expires_at: Some((now + timeout).into()),
            message: String::new(),
            r#type: hook.r#type,
            hook_target: hook.hook_target.clone(),
            hook_details: hook.hook_details.clone(),
            timeout_action: hook.timeout_action,
        }
    });
    status.hooks = hooks.collect();
}

fn goes_on_when_late(hook: &DeploymentHook) -> bool {
    hook.timeout_action() == TimeoutAction::Continue
}

/// When a stage has taken too long: what it waits by itself, a pause or a bake time, is not counted.
fn latest(spec: &ServiceSpec, status: &DeploymentStatus, now: Timestamp) -> Timestamp {
    let since = status.stage_started_at.as_ref().map_or(now, Timestamp::from);
    let bake = match status.lifecycle_stage() {
        Stage::BakeTime => service::bake_time(spec),
        Stage::ProductionTrafficShift => step_bake(spec),
        _ => Duration::ZERO,
    };
    let pauses = status.hooks.iter().filter(|hook| hook.r#type() == HookType::Pause);
    let longest = pauses.filter_map(|hook| hook.expires_at.as_ref().map(Timestamp::from)).max();
    longest.map_or(since + bake, |until| until.max(since + bake)) + LONGEST
}

/// Why a deployment has to be given up at the stage it is in.
pub(super) fn failure(spec: &ServiceSpec, status: &DeploymentStatus, now: Timestamp) -> Option<Cause> {
    let stage = status.lifecycle_stage();
    if status.rollout_state() != Rollout::InProgress || matches!(stage, Stage::Unspecified | Stage::CleanUp) {
        return None;
    }
    let fails = |hook: &&DeploymentHook| {
        hook.status() == HookStatus::Failed || (hook.status() == HookStatus::TimedOut && !goes_on_when_late(hook))
    };
    if let Some(hook) = status.hooks.iter().find(fails) {
        let how = if hook.status() == HookStatus::Failed { "failed" } else { "timed out" };
        let message = if hook.message.is_empty() { String::new() } else { format!(": {}", hook.message) };
        return Some(Cause {
            detector: "lifecycle hook",
            told: "lifecycle hook failed.",
            why: format!("lifecycle hook {} {how}{message}.", hook.hook_id),
            rolls_back: true,
        });
    }
    (!service::is_rolling(spec) && latest(spec, status, now) <= now).then(|| Cause {
        detector: "lifecycle stage",
        told: "lifecycle stage took too long.",
        why: format!("stage {} took more than 24 hours.", stage.as_str_name()),
        rolls_back: true,
    })
}

impl Rolled<'_> {
    /// Moves a deployment in force on by at most one stage. `None`: it has all the traffic, and no other one has tasks.
    pub(super) fn on_its_way(&self, green: &Rolling<'_>, plan: &mut Plan) -> Option<DeploymentStatus> {
        let mut status = green.status.clone();
        let stage = status.lifecycle_stage();
        if stage == Stage::Unspecified {
            enter(self.spec, &mut status, Stage::ReconcileService, self.now);
            if !self.has_unfinished(green) {
                status.hooks.clear();
            }
            return Some(status);
        }
        for hook in &mut status.hooks {
            let waits = matches!(hook.status(), HookStatus::AwaitingAction | HookStatus::InProgress);
            let Some(expires) = hook.expires_at.as_ref().map(Timestamp::from).filter(|_| waits) else { continue };
            if expires <= self.now {
                hook.set_status(HookStatus::TimedOut);
            } else {
                plan.wake(expires);
            }
        }
        let passed = |hook: &DeploymentHook| {
            hook.status() == HookStatus::Succeeded || (hook.status() == HookStatus::TimedOut && goes_on_when_late(hook))
        };
        let since = status.stage_started_at.as_ref().map_or(self.now, Timestamp::from);
        let latest = latest(self.spec, &status, self.now);
        if latest > self.now {
            plan.wake(latest);
        }
        if !status.hooks.iter().all(passed) || !self.is_over(stage, green, since, plan) {
            return Some(status);
        }
        let share = self.share(status.traffic_steps);
        let next = match stage {
            Stage::Unspecified | Stage::ReconcileService => Stage::PreScaleUp,
            Stage::PreScaleUp => Stage::ScaleUp,
            Stage::ScaleUp => Stage::PostScaleUp,
            Stage::PostScaleUp => Stage::TestTrafficShift,
            Stage::TestTrafficShift => Stage::PostTestTrafficShift,
            Stage::PostTestTrafficShift => Stage::PreProductionTrafficShift,
            Stage::ProductionTrafficShift if share < ALL => Stage::PreProductionTrafficShift,
            Stage::PreProductionTrafficShift => Stage::ProductionTrafficShift,
            Stage::ProductionTrafficShift => Stage::PostProductionTrafficShift,
            Stage::PostProductionTrafficShift => Stage::BakeTime,
            Stage::BakeTime => Stage::CleanUp,
            Stage::CleanUp => return None,
        };
        enter(self.spec, &mut status, next, self.now);
        Some(status)
    }

    /// Whether what a stage is for, besides its hooks, is done.
    fn is_over(&self, stage: Stage, green: &Rolling<'_>, since: Timestamp, plan: &mut Plan) -> bool {
        let waited = |bake: Duration, plan: &mut Plan| {
            let over = self.now.since(since) >= bake;
            if !over {
                plan.wake(since + bake);
            }
            over
        };
        // No traffic goes to, and nothing goes for, what is not there.
        if stage >= Stage::ScaleUp && stage != Stage::CleanUp && !self.has_all(green, plan) {
            return false;
        }
        match stage {
            Stage::ProductionTrafficShift if self.share(green.status.traffic_steps) < ALL => {
                waited(step_bake(self.spec), plan)
            }
            Stage::BakeTime => self.blue().is_none() || waited(service::bake_time(self.spec), plan),
            Stage::CleanUp => self.is_complete(green, plan),
            _ => true,
        }
    }

    /// Share of the production traffic after so many steps, percent. Where nothing else serves it is all of it at once.
    fn share(&self, steps: i32) -> f64 {
        if steps > 0 && self.blue().is_none() { ALL } else { share(self.spec, steps) }
    }

    /// Deployments that were not finished, neither this one nor the one that serves, still have tasks.
    fn has_unfinished(&self, green: &Rolling<'_>) -> bool {
        let blue = self.blue().map(|blue| blue.object.name());
        let mut others = self.deployments.iter().filter(|d| d.object.name() != green.object.name());
        others.any(|d| Some(d.object.name()) != blue && self.lives(d))
    }

    /// The deployment that served until now: the last that was completed, or else one that has traffic.
    pub(super) fn blue(&self) -> Option<&Rolling<'_>> {
        let (_, before) = self.deployments.split_last()?;
        let has_traffic = |d: &&Rolling<'_>| d.spec.production_traffic_weight() > 0.0 && self.lives(d);
        before.iter().rfind(|d| d.serves()).or_else(|| before.iter().rfind(has_traffic))
    }

    /// How many tasks each deployment is to have, with the newest one on its way.
    pub(super) fn staged_targets(&self, newest: &DeploymentStatus) -> Vec<i32> {
        let blue = self.blue().map(|blue| blue.object.name());
        let last = self.deployments.len().saturating_sub(1);
        let stage = newest.lifecycle_stage();
        let on_its_way = newest.rollout_state() == Rollout::InProgress;
        let target = |(place, deployment): (usize, &Rolling<'_>)| {
            let scaled = !on_its_way || stage >= Stage::ScaleUp;
            let kept = on_its_way && stage < Stage::CleanUp && Some(deployment.object.name()) == blue;
            if (place == last && scaled) || kept { self.desired } else { 0 }
        };
        self.deployments.iter().enumerate().map(target).collect()
    }

    /// Percent of production and test traffic of each deployment; none where all tasks get traffic alike.
    pub(super) fn weights(&self, newest: &DeploymentStatus) -> Vec<Option<(f64, f64)>> {
        if service::is_rolling(self.spec) {
            return vec![None; self.deployments.len()];
        }
        let blue = self.blue().map(|blue| blue.object.name());
        let last = self.deployments.len().saturating_sub(1);
        let stage = newest.lifecycle_stage();
        let (production, test) = match newest.rollout_state() {
            Rollout::InProgress if stage < Stage::CleanUp => {
                let test = if stage >= Stage::TestTrafficShift { ALL } else { 0.0 };
                (self.share(newest.traffic_steps), test)
            }
            Rollout::Failed if blue.is_some() => (0.0, 0.0),
            _ => (ALL, ALL),
        };
        let weight = |(place, deployment): (usize, &Rolling<'_>)| {
            if place == last {
                Some((production, test))
            } else if Some(deployment.object.name()) == blue {
                Some((ALL - production, ALL - test))
            } else {
                Some((0.0, 0.0))
            }
        };
        self.deployments.iter().enumerate().map(weight).collect()
    }
}
