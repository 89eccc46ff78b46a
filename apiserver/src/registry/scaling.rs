//! What scales: targets and policies, and what they name.

use steady_core::v1::{Alarm, Object, alarm_state, object};
use steady_core::validate::Fault;
use steady_core::{Key, Kind, alarm, scaling, service};

use super::fault;
use super::upsert::{missing, unknown};
use super::writes::Writes;

/// Policies of one target (Application Auto Scaling quota).
const MAX_POLICIES: usize = 50;

/// What names a scalable target has that are not there.
pub(super) fn target_faults(writes: &mut Writes, object: &Object, beside: &[Object]) -> Vec<Fault> {
    let key = Key::new(Kind::Service, object.cluster(), object.name());
    let given = beside.iter().find(|other| Key::of(other) == key);
    let found = given.or_else(|| writes.get(&key)).and_then(|service| service.as_service()?.spec.clone());
    match found {
        None => {
            let known: Vec<&str> = writes.view().in_cluster(Kind::Service, &key.cluster).map(|s| s.name()).collect();
            vec![fault("spec.resourceId", unknown("service", &key.name, &known))]
        }
        Some(spec) if service::is_daemon(&spec) || service::is_external(&spec) => {
            let message = format!("service `{}` has no desiredCount of its own: it is DAEMON or EXTERNAL", key.name);
            vec![fault("spec.resourceId", message)]
        }
        Some(_) => vec![],
    }
}

/// An alarm that watches nothing any more is not raised by what it watched; a policy that tracks nothing has no alarms.
pub(super) fn respecified(writes: &mut Writes, object: &Object) {
    let key = Key::of(object);
    if let Some(spec) = object.as_scaling_policy().and_then(|policy| policy.spec.as_ref()) {
        if spec.target_tracking_scaling_policy_configuration.is_none() {
            delete_policy(writes, &key);
        }
        return;
    }
    let watches = |object: &Object| object.as_alarm()?.spec.as_ref().and_then(alarm::metric);
    let before = writes.view().get(&key).and_then(|old| watches(old));
    if before.is_some() && watches(object) != before {
        let now = writes.now();
        let Some(mut object) = writes.get(&key).cloned() else { return };
        let found = object.as_alarm().cloned().unwrap_or_default();
        let unknown = alarm_state::Value::InsufficientData;
        let old = found.status.unwrap_or_default();
        let status = alarm::changed(&old, unknown, "it watches something else since now", now);
        object.kind = Some(object::Kind::Alarm(Alarm { spec: found.spec, status: Some(status) }));
        writes.put(object);
    }
}

/// The same of a policy.
pub(super) fn policy_faults(writes: &mut Writes, object: &Object) -> Vec<Fault> {
    let Some(spec) = object.as_scaling_policy().and_then(|policy| policy.spec.as_ref()) else { return vec![] };
    let Some(target) = scaling::target_of(spec) else { return vec![] };
    let mut faults = Vec::new();
    // Its target is applied before it, when both come together.
    if writes.get(&target).is_none() {
        let message = missing(writes, Kind::ScalableTarget, "ScalableTarget", &target.cluster, &target.name);
        faults.extend(message.map(|message| fault("spec.resourceId", message)));
    }
    let own = Key::of(object);
    if policies(writes, &target).iter().filter(|policy| **policy != own).count() >= MAX_POLICIES {
        let message = format!("{target} has {MAX_POLICIES} policies, and takes no more");
        faults.push(fault("spec.resourceId", message));
    }
    faults
}

fn policies(writes: &Writes, target: &Key) -> Vec<Key> {
    let policies = writes.view().in_cluster(Kind::ScalingPolicy, &target.cluster);
    let of_target = policies.filter(|object| {
        let spec = object.as_scaling_policy().and_then(|policy| policy.spec.as_ref());
        spec.and_then(scaling::target_of).as_ref() == Some(target)
    });
    of_target.map(|object| Key::of(object)).collect()
}

/// A target's policies go with it (Application Auto Scaling `DeregisterScalableTarget`).
pub(super) fn delete_target(writes: &mut Writes, target: &Key) {
    for policy in policies(writes, target) {
        delete_policy(writes, &policy);
        writes.remove(&policy);
    }
}

/// A policy's alarms go with it.
pub(super) fn delete_policy(writes: &mut Writes, policy: &Key) {
    for name in scaling::alarm_names(&policy.name) {
        let alarm = Key::new(Kind::Alarm, &policy.cluster, &name);
        let is_own = |object: &Object| {
            object.meta().owner.as_ref().is_some_and(|owner| Key::of_ref(owner) == *policy)
                && matches!(object.kind, Some(object::Kind::Alarm(_)))
        };
        if writes.get(&alarm).is_some_and(is_own) {
            writes.remove(&alarm);
        }
    }
}
