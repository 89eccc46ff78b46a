//! Services as decisions see them.

use std::sync::LazyLock;
use std::time::Duration;

use steady_proto::Kind;
use steady_proto::v1::availability_zone_rebalancing::Value as Rebalancing;
use steady_proto::v1::deployment_controller_type::Value as ControllerType;
use steady_proto::v1::deployment_strategy::Value as Strategy;
use steady_proto::v1::scheduling_strategy::Value as Scheduling;
use steady_proto::v1::threshold_type::Value as ThresholdType;
use steady_proto::v1::{
    DeploymentConfiguration, LoadBalancer, Object, Service, ServiceSpec, ServiceStatus, TaskSet, object,
};

use crate::{View, derived_id, security};

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

/// Whether its tasks move to where there are fewer of them.
pub fn rebalances(spec: &ServiceSpec) -> bool {
    spec.availability_zone_rebalancing() == Rebalancing::Enabled
}

/// Whether somebody else deploys it, with task sets.
pub fn is_external(spec: &ServiceSpec) -> bool {
    spec.deployment_controller.is_some_and(|controller| controller.r#type() == ControllerType::External)
}

/// Task sets of this very service.
pub fn task_sets<'a>(view: &'a View, service: &Object) -> impl Iterator<Item = (&'a Object, &'a TaskSet)> {
    let uid = service.meta().uid.clone();
    let sets = view.of_service(Kind::TaskSet, service.cluster(), service.name());
    sets.filter(move |set| set.meta().owner.as_ref().is_some_and(|owner| owner.uid == uid))
        .filter_map(|set| Some((&**set, set.as_task_set()?)))
}

/// How many tasks a task set of the service is to have: its share, rounded up (ECS computedDesiredCount).
pub fn computed_count(spec: &ServiceSpec, set: &TaskSet) -> i32 {
    let scale = set.spec.as_ref().and_then(|spec| spec.scale.as_ref()).map_or(0.0, |scale| scale.value);
    // A hundredth of a percent of 5,000 tasks is half a task: what is computed is no more exact than that.
    (f64::from(spec.desired_count()) * scale / 100.0 - 1e-9).ceil().max(0.0) as i32
}

/// Its deployment configuration; the default one where it has none.
pub fn settings(spec: &ServiceSpec) -> &DeploymentConfiguration {
    static NONE: LazyLock<DeploymentConfiguration> = LazyLock::new(DeploymentConfiguration::default);
    spec.deployment_configuration.as_ref().unwrap_or(&NONE)
}

/// Whether deployments replace tasks bit by bit; else all new ones come beside the old ones before traffic moves.
pub fn is_rolling(spec: &ServiceSpec) -> bool {
    matches!(settings(spec).strategy(), Strategy::Rolling | Strategy::Unspecified)
}

/// The alarms that end its deployments.
pub fn alarms(spec: &ServiceSpec) -> &[String] {
    settings(spec).alarms.as_ref().filter(|alarms| alarms.enable).map_or(&[], |alarms| &alarms.alarm_names)
}

/// How long old and new tasks are kept, and alarms watched, before a deployment is completed.
pub fn bake_time(spec: &ServiceSpec) -> Duration {
    let usual = if alarms(spec).is_empty() { 0 } else { ALARM_BAKE };
    minutes(settings(spec).bake_time_in_minutes.unwrap_or(usual))
}

/// Minutes of bake time where alarms are watched and nobody says how long.
pub const ALARM_BAKE: i32 = 5;

/// So many minutes.
pub fn minutes(count: i32) -> Duration {
    Duration::from_secs(60 * u64::try_from(count).unwrap_or(0))
}

/// How many tasks it is to have: as its spec says; of a DAEMON service, as its controller last counted instances; of an
/// EXTERNAL one, what its task sets come to.
pub fn desired(spec: &ServiceSpec, status: &ServiceStatus) -> i32 {
    if is_daemon(spec) || is_external(spec) { status.desired_count() } else { spec.desired_count() }
}

/// Floor and ceiling of a service that is to have so many tasks (ECS deployment configuration).
pub fn bounds(spec: &ServiceSpec, desired: i32) -> Bounds {
    let desired = i64::from(desired);
    let settings = settings(spec);
    let least = i64::from(settings.minimum_healthy_percent.unwrap_or(100));
    let most = i64::from(settings.maximum_percent.unwrap_or(200));
    // Where new tasks come beside all of the old ones, there are twice as many.
    let beside = if is_rolling(spec) { 0 } else { desired };
    Bounds { floor: ((desired * least + 99) / 100) as i32, ceiling: (desired * most / 100 + beside) as i32 }
}

/// How many failures a deployment of this service may have before it is given up; `None`: as many as it likes (ECS
/// deployment circuit breaker).
pub fn failure_threshold(spec: &ServiceSpec, desired: i32) -> Option<i32> {
    let breaker = settings(spec).deployment_circuit_breaker.filter(|breaker| breaker.enable)?;
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
    let force = spec.force_new_deployment.to_string();
    let groups = security::groups(spec.network_configuration.as_ref());
    let own = [spec.task_definition.as_str(), force.as_str()].into_iter();
    let balancers = spec.load_balancers.iter().map(|balancer| {
        let LoadBalancer { target_group_arn, container_name, container_port, advanced_configuration } = balancer;
        let test = advanced_configuration.as_ref().map_or("", |advanced| &advanced.test_listener_rule);
        format!("{target_group_arn}/{container_name}:{container_port}/{test}")
    });
    let balancers: Vec<String> = balancers.collect();
    derived_id(&own.chain(groups.iter().chain(&balancers).map(String::as_str)).collect::<Vec<_>>())
}

/// The object with another status.
pub fn with_status(object: &Object, status: ServiceStatus) -> Object {
    let spec = object.as_service().and_then(|s| s.spec.clone());
    Object { meta: object.meta.clone(), kind: Some(object::Kind::Service(Service { spec, status: Some(status) })) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_proto::v1::{DeploymentCircuitBreaker, ThresholdConfiguration};

    fn of(desired: i32, least: i32, most: i32) -> Bounds {
        let spec = ServiceSpec {
            deployment_configuration: Some(DeploymentConfiguration {
                minimum_healthy_percent: Some(least),
                maximum_percent: Some(most),
                ..DeploymentConfiguration::default()
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
