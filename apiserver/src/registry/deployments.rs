//! What is asked of deployments that are under way: hooks that wait, and alarms.

use steady_core::v1::hook_status::Value as HookStatus;
use steady_core::v1::hook_timeout_action::Value as Action;
use steady_core::v1::rollout_state::Value as RolloutState;
use steady_core::v1::{Alarm, ContinueServiceDeploymentRequest, Object, SetAlarmStateRequest, alarm_state, object};
use steady_core::{Key, Kind, alarm};

use super::{Registry, RegistryError, cluster, fault};

/// Longest reason of an alarm's state, as of `CloudWatch`.
const MAX_REASON: usize = 1023;

impl Registry {
    /// Has hooks that wait go on, or fail (ECS `ContinueServiceDeployment`).
    pub async fn continue_deployment(
        &self,
        request: &ContinueServiceDeploymentRequest,
    ) -> Result<Object, RegistryError> {
        let key = Key::new(Kind::Deployment, cluster(&request.cluster), &request.service_deployment);
        let (mut object, revision) = self
            .write(|writes| {
                let mut object = writes.get(&key).cloned().ok_or_else(|| RegistryError::NotFound(key.clone()))?;
                let Some(object::Kind::Deployment(deployment)) = &mut object.kind else {
                    return Err(RegistryError::NotFound(key.clone()));
                };
                let status = deployment.status.get_or_insert_default();
                let on_its_way = status.rollout_state() == RolloutState::InProgress;
                let hooks = &mut status.hooks;
                let named = |id: &str| request.hook_id.is_empty() || request.hook_id == id;
                let waits = |status: HookStatus| status == HookStatus::AwaitingAction;
                let mut answered = 0;
                for hook in hooks.iter_mut().filter(|hook| on_its_way && waits(hook.status()) && named(&hook.hook_id)) {
                    if request.action() == Action::Rollback {
                        hook.set_status(HookStatus::Failed);
                        "was told to roll back".clone_into(&mut hook.message);
                    } else {
                        hook.set_status(HookStatus::Succeeded);
                        "was told to go on".clone_into(&mut hook.message);
                    }
                    answered += 1;
                }
                if answered == 0 {
                    let which = if request.hook_id.is_empty() { "hook" } else { &request.hook_id };
                    let message = format!("{key}: no {which} waits; `steady describe {key}` tells where it is");
                    return Err(RegistryError::Refused(message));
                }
                writes.put(object.clone());
                Ok(object)
            })
            .await?;
        object.meta_mut().revision = revision.0;
        Ok(object)
    }

    /// Says how an alarm is (`SetAlarmState`).
    pub async fn set_alarm_state(&self, request: &SetAlarmStateRequest) -> Result<Object, RegistryError> {
        let mut faults = Vec::new();
        if request.state_value() == alarm_state::Value::Unspecified {
            faults.push((0, fault("stateValue", "is missing; expected OK, ALARM or INSUFFICIENT_DATA")));
        }
        if request.state_reason.len() > MAX_REASON {
            faults.push((0, fault("stateReason", format!("is longer than {MAX_REASON} characters"))));
        }
        if !faults.is_empty() {
            return Err(RegistryError::Invalid(faults));
        }
        let key = Key::new(Kind::Alarm, cluster(&request.cluster), &request.alarm_name);
        let (mut object, revision) = self
            .write(|writes| {
                let mut object = writes.get(&key).cloned().ok_or_else(|| RegistryError::NotFound(key.clone()))?;
                let Alarm { spec, status } = object.as_alarm().cloned().unwrap_or_default();
                let (old, now) = (status.unwrap_or_default(), writes.now());
                let status = alarm::changed(&old, request.state_value(), &request.state_reason, now);
                object.kind = Some(object::Kind::Alarm(Alarm { spec, status: Some(status) }));
                writes.put(object.clone());
                Ok(object)
            })
            .await?;
        object.meta_mut().revision = revision.0;
        Ok(object)
    }
}
