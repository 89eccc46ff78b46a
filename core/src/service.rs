//! Services as decisions see them.

use steady_proto::v1::scheduling_strategy::Value as Scheduling;
use steady_proto::v1::threshold_type::Value as ThresholdType;
use steady_proto::v1::{Object, Service, ServiceSpec, ServiceStatus, object};

use crate::derived_id;

/// Most tasks that may be live, and fewest that must be healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Tasks that must stay healthy: desired × minimumHealthyPercent, rounded up.
    pub floor: i32,
    /// Tasks that may be live, STOPPING ones too: desired × maximumPercent, rounded down.
    pub ceiling: i32,
}

/// Whether it has one task on each instance, instead of a number of them.
pub fn is_daemon(spec: &ServiceSpec) -> bool {
    spec.scheduling_strategy() == Scheduling::Daemon
}

/// How many tasks it is to have: as its spec says; of a DAEMON service, as its controller last counted instances.
pub fn desired(spec: &ServiceSpec, status: &ServiceStatus) -> i32 {
    if is_daemon(spec) { status.desired_count() } else { spec.desired_count() }
}

/// Floor and ceiling of a service that is to have so many tasks (ECS deployment configuration).
pub fn bounds(spec: &ServiceSpec, desired: i32) -> Bounds {
    let desired = i64::from(desired);
    let settings = spec.deployment_configuration.unwrap_or_default();
    let least = i64::from(settings.minimum_healthy_percent.unwrap_or(100));
    let most = i64::from(settings.maximum_percent.unwrap_or(200));
    Bounds { floor: ((desired * least + 99) / 100) as i32, ceiling: (desired * most / 100) as i32 }
}

/// How many failures a deployment of this service may have before it is given up; `None`: as many as it likes (ECS
/// deployment circuit breaker).
pub fn failure_threshold(spec: &ServiceSpec, desired: i32) -> Option<i32> {
    let breaker = spec.deployment_configuration?.deployment_circuit_breaker.filter(|breaker| breaker.enable)?;
    let threshold = breaker.threshold_configuration.unwrap_or_default();
    let value = threshold.value.unwrap_or(DEFAULT_PERCENT);
    let share = ((i64::from(desired) * i64::from(value) + 99) / 100) as i32;
    Some(match threshold.r#type() {
        ThresholdType::Count => value,
        ThresholdType::UnboundedPercent => share.max(1),
        ThresholdType::BoundedPercent | ThresholdType::Unspecified => share.clamp(3, 200),
    })
}

/// Percent of desiredCount that may fail when nobody says (ECS).
pub const DEFAULT_PERCENT: i32 = 50;

/// Digest of the fields whose change starts a deployment (ECS `UpdateService`).
pub fn revision_digest(spec: &ServiceSpec) -> String {
    derived_id(&[&spec.task_definition, &spec.force_new_deployment.to_string()])
}

/// The object with another status.
pub fn with_status(object: &Object, status: ServiceStatus) -> Object {
    let spec = object.as_service().and_then(|s| s.spec.clone());
    Object { meta: object.meta.clone(), kind: Some(object::Kind::Service(Service { spec, status: Some(status) })) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_proto::v1::{DeploymentCircuitBreaker, DeploymentConfiguration, ThresholdConfiguration};

    fn of(desired: i32, least: i32, most: i32) -> Bounds {
        let spec = ServiceSpec {
            deployment_configuration: Some(DeploymentConfiguration {
                minimum_healthy_percent: Some(least),
                maximum_percent: Some(most),
                deployment_circuit_breaker: None,
            }),
            ..Default::default()
        };
        bounds(&spec, desired)
    }

    #[test]
    fn the_floor_rounds_up_and_the_ceiling_down_as_in_ecs() {
        assert_eq!(of(2, 75, 200), Bounds { floor: 2, ceiling: 4 });
        assert_eq!(of(3, 100, 125), Bounds { floor: 3, ceiling: 3 });
        assert_eq!(of(0, 100, 200), Bounds { floor: 0, ceiling: 0 });
    }
    fn threshold(desired: i32, kind: ThresholdType, value: Option<i32>) -> Option<i32> {
        let threshold = ThresholdConfiguration { r#type: kind.into(), value };
        let breaker = DeploymentCircuitBreaker {
            enable: true,
            threshold_configuration: Some(threshold),
            ..DeploymentCircuitBreaker::default()
        };
        let spec = ServiceSpec {
            deployment_configuration: Some(DeploymentConfiguration {
                deployment_circuit_breaker: Some(breaker),
                ..DeploymentConfiguration::default()
            }),
            ..ServiceSpec::default()
        };
        failure_threshold(&spec, desired)
    }

    #[test]
    fn the_breaker_s_threshold_is_half_of_the_tasks_between_3_and_200_as_in_ecs() {
        let bounded = |desired| threshold(desired, ThresholdType::Unspecified, None);
        assert_eq!([1, 25, 400, 800].map(bounded), [Some(3), Some(13), Some(200), Some(200)]);
    }

    #[test]
    fn the_breaker_s_threshold_may_have_no_bounds_or_be_a_count() {
        assert_eq!(threshold(1000, ThresholdType::UnboundedPercent, Some(50)), Some(500));
        assert_eq!(threshold(0, ThresholdType::UnboundedPercent, Some(50)), Some(1));
        assert_eq!(threshold(1000, ThresholdType::Count, Some(7)), Some(7));
        assert_eq!(failure_threshold(&ServiceSpec::default(), 4), None, "off when nobody asks for it");
    }
}
