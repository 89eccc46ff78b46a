//! Lifecycle hooks that are asked over HTTP: what to ask, and what an answer means. The asking itself is the controller's.

use std::collections::BTreeMap;
use std::time::Duration;

use steady_core::v1::hook_status::Value as HookStatus;
use steady_core::v1::rollout_state::Value as Rollout;
use steady_core::v1::{DeploymentHook, DeploymentStatus};
use steady_core::{Key, Plan, Timestamp, View};

use super::{Rolling, of_service};

/// Between questions to one who does not answer, or who says `IN_PROGRESS` and not when (ECS).
pub const CALL_BACK: Duration = Duration::from_secs(30);

/// A question to a hook.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Which hook of the deployment.
    pub hook_id: String,
    /// Where to POST to.
    pub url: String,
    /// The same for each question about the same.
    pub execution_id: String,
    /// The stage.
    pub stage: &'static str,
    /// Name of the deployment.
    pub deployment: String,
    /// Name of the service.
    pub service: String,
    /// Digest of what is being deployed.
    pub revision: String,
    /// Percent of production and of test traffic that the deployment has.
    pub weights: (f64, f64),
    /// As the service has them.
    pub details: BTreeMap<String, String>,
}

/// What came of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The stage may be left.
    Succeeded,
    /// The deployment is to be rolled back.
    Failed(String),
    /// To be asked again after so long, and why.
    Later(Duration, String),
}

fn newest<'a>(view: &'a View, key: &Key) -> Option<Rolling<'a>> {
    let service = view.get(key).filter(|service| !service.is_deleting())?;
    of_service(view, service).pop().filter(|d| d.status.rollout_state() == Rollout::InProgress)
}

fn due(hook: &DeploymentHook) -> Option<Timestamp> {
    hook.next_call_at.as_ref().map(Timestamp::from).filter(|_| hook.status() == HookStatus::InProgress)
}

/// What is to be asked now about the deployments of a service.
pub fn calls(view: &View, key: &Key, now: Timestamp) -> Vec<Call> {
    let Some(newest) = newest(view, key) else { return Vec::new() };
    let hooks = newest.status.hooks.iter().filter(|hook| due(hook).is_some_and(|at| at <= now));
    let call = |hook: &DeploymentHook| {
        // A deployment that takes its place again asks anew.
        let execution = format!("{}-{}", newest.object.meta().uid, newest.spec.sequence);
        Call {
            hook_id: hook.hook_id.clone(),
            url: hook.hook_target.clone(),
            execution_id: format!("{execution}-{}", hook.hook_id),
            stage: newest.status.lifecycle_stage().as_str_name(),
            deployment: newest.object.name().to_owned(),
            service: key.name.to_string(),
            revision: newest.spec.revision_digest.clone(),
            weights: (newest.spec.production_traffic_weight(), newest.spec.test_traffic_weight()),
            details: hook.hook_details.clone(),
        }
    };
    hooks.map(call).collect()
}

/// When the next hook is to be asked.
pub(super) fn next_call(status: &DeploymentStatus, now: Timestamp) -> Option<Timestamp> {
    status.hooks.iter().filter_map(due).filter(|at| *at > now).min()
}

/// Writes down what was answered.
pub fn answered(view: &View, key: &Key, answers: &[(String, Answer)], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(newest) = newest(view, key) else { return plan };
    let mut status = newest.status.clone();
    for (id, answer) in answers {
        let Some(hook) = status.hooks.iter_mut().find(|hook| hook.hook_id == *id && due(hook).is_some()) else {
            continue;
        };
        hook.next_call_at = None;
        match answer {
            Answer::Succeeded => {
                hook.set_status(HookStatus::Succeeded);
                hook.message.clear();
            }
            Answer::Failed(why) => {
                hook.set_status(HookStatus::Failed);
                hook.message.clone_from(why);
            }
            Answer::Later(delay, why) => {
                hook.next_call_at = Some((now + *delay).into());
                hook.message.clone_from(why);
            }
        }
    }
    if status != *newest.status {
        plan.push(newest.change(status));
    }
    plan
}
