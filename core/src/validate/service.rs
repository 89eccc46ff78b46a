//! Checks of a Service (ECS `CreateService`, `UpdateService`).

use steady_proto::v1::ServiceSpec;
use steady_proto::v1::availability_zone_rebalancing::Value as Rebalancing;
use steady_proto::v1::threshold_type::Value as ThresholdType;

use super::common::{Faults, constraints, strategies};
use crate::service::{DEFAULT_PERCENT, bounds, is_daemon};

/// Most tasks of one service (ECS quota).
const MAX_TASKS: i64 = 5000;

pub(super) fn check(spec: &ServiceSpec, faults: &mut Faults) {
    if spec.task_definition.is_empty() {
        faults.add("spec.taskDefinition", "is missing; expected `family` or `family:revision`".into());
    }
    if let Some(desired) = spec.desired_count {
        faults.range("spec.desiredCount", desired.into(), 0, MAX_TASKS, "tasks");
    }
    if is_daemon(spec) {
        daemon(spec, faults);
    }
    faults.range(
        "spec.healthCheckGracePeriodSeconds",
        spec.health_check_grace_period_seconds().into(),
        0,
        i64::from(i32::MAX),
        "seconds",
    );
    constraints(faults, "spec.placementConstraints", &spec.placement_constraints, false);
    strategies(faults, "spec.placementStrategy", &spec.placement_strategy);
    percentages(spec, faults);
    breaker(spec, faults);
}

/// What a service with one task on each instance cannot have.
fn daemon(spec: &ServiceSpec, faults: &mut Faults) {
    if spec.desired_count.is_some() {
        faults
            .add("spec.desiredCount", "is not for schedulingStrategy DAEMON: it has one task on each instance".into());
    }
    if !spec.placement_strategy.is_empty() {
        faults.add("spec.placementStrategy", "is not for schedulingStrategy DAEMON: it has a task everywhere".into());
    }
    if spec.availability_zone_rebalancing() == Rebalancing::Enabled {
        faults
            .add("spec.availabilityZoneRebalancing", "is not for schedulingStrategy DAEMON; expected DISABLED".into());
    }
    let settings = spec.deployment_configuration.unwrap_or_default();
    if let Some(most) = settings.maximum_percent.filter(|most| *most != 100) {
        let message = format!("is {most}; expected 100: a DAEMON service has one task on each instance, never two");
        faults.add("spec.deploymentConfiguration.maximumPercent", message);
    }
}

fn breaker(spec: &ServiceSpec, faults: &mut Faults) {
    let settings = spec.deployment_configuration.unwrap_or_default();
    let Some(breaker) = settings.deployment_circuit_breaker else { return };
    let path = "spec.deploymentConfiguration.deploymentCircuitBreaker";
    if breaker.rollback && !breaker.enable {
        faults.add(
            &format!("{path}.rollback"),
            "is true while enable is false: nothing would ever be rolled back".into(),
        );
    }
    let threshold = breaker.threshold_configuration.unwrap_or_default();
    let path = format!("{path}.thresholdConfiguration.value");
    match (threshold.r#type(), threshold.value) {
        (ThresholdType::Count, None) => faults.add(&path, "is missing; expected a number of failures".into()),
        (ThresholdType::Count, Some(value)) => faults.range(&path, value.into(), 1, i64::from(i32::MAX), "failures"),
        (_, value) => faults.range(&path, value.unwrap_or(DEFAULT_PERCENT).into(), 1, 100, "percent"),
    }
}

fn percentages(spec: &ServiceSpec, faults: &mut Faults) {
    let path = "spec.deploymentConfiguration";
    let settings = spec.deployment_configuration.unwrap_or_default();
    let usual = if is_daemon(spec) { (0, 100) } else { (100, 200) };
    let (least, most) =
        (settings.minimum_healthy_percent.unwrap_or(usual.0), settings.maximum_percent.unwrap_or(usual.1));
    let before = faults.found.len();
    faults.range(&format!("{path}.minimumHealthyPercent"), least.into(), 0, 100, "percent");
    faults.range(&format!("{path}.maximumPercent"), most.into(), 100, 1000, "percent");
    if faults.found.len() > before {
        return;
    }
    let desired = spec.desired_count.unwrap_or(1);
    let bounds = bounds(spec, desired);
    if desired > 0 && bounds.floor >= desired && bounds.ceiling <= desired {
        faults.add(
            path,
            format!(
                "minimumHealthyPercent {least} and maximumPercent {most} of {desired} tasks allow neither stopping \
                 a task nor starting one more: no deployment could ever progress; lower minimumHealthyPercent or \
                 raise maximumPercent"
            ),
        );
    }
}
