//! Auto scaling: how services that scale, and their policies, are named and filled in (Application Auto Scaling).

use steady_proto::v1::comparison_operator::Value as Comparison;
use steady_proto::v1::max_capacity_breach_behavior::Value as BreachBehavior;
use steady_proto::v1::policy_type::Value as PolicyType;
use steady_proto::v1::predefined_metric_type::Value as Predefined;
use steady_proto::v1::predictive_scaling_mode::Value as Mode;
use steady_proto::v1::statistic::Value as Statistic;
use steady_proto::v1::treat_missing_data::Value as Missing;
use steady_proto::v1::{
    AlarmSpec, Object, PredictiveScalingPolicyConfiguration, ScalableTargetSpec, ScalableTargetStatus,
    ScalingPolicySpec, ServiceSpec, TargetTrackingScalingPolicyConfiguration,
};

use crate::metric::{self, MINUTE, Metric, PERIOD};
use crate::{Key, Kind, View, alarm, traffic};

/// Most tasks of a service (ECS quota).
pub const MAX_CAPACITY: i32 = 5000;
/// Seconds of a cooldown that is not given.
pub const COOLDOWN: i32 = 300;
/// Seconds that metrics have to be above, or below, their target.
const OUT_SECONDS: i32 = 30;
const IN_SECONDS: i32 = 900;
/// What a metric below its target has to be below of, so that the next small load does not take it over it again.
pub const LOW: f64 = 0.9;
/// `serviceNamespace` and `scalableDimension` of all that is scaled here.
pub const NAMESPACE: &str = "ecs";
/// See [`NAMESPACE`].
pub const DIMENSION: &str = "ecs:service:DesiredCount";

/// The resource id of a service.
pub fn resource_id(cluster: &str, service: &str) -> String {
    format!("service/{cluster}/{service}")
}

/// The service that a resource id names, and its cluster.
pub fn service_of(resource_id: &str) -> Option<(&str, &str)> {
    let (cluster, service) = resource_id.strip_prefix("service/")?.split_once('/')?;
    (!cluster.is_empty() && !service.is_empty() && !service.contains('/')).then_some((cluster, service))
}

/// The fewest and the most tasks of a target now: as its spec says, or the scheduled action that came after it.
pub fn bounds(spec: &ScalableTargetSpec, status: &ScalableTargetStatus) -> (i32, i32) {
    let least = status.min_capacity.unwrap_or_else(|| spec.min_capacity());
    (least, status.max_capacity.unwrap_or_else(|| spec.max_capacity()).max(least))
}

/// The scalable target of a policy.
pub fn target_of(spec: &ScalingPolicySpec) -> Option<Key> {
    service_of(&spec.resource_id).map(|(cluster, service)| Key::new(Kind::ScalableTarget, cluster, service))
}

fn fill_names(namespace: &mut String, dimension: &mut String, resource: &mut String, cluster: &str) {
    if namespace.is_empty() {
        NAMESPACE.clone_into(namespace);
    }
    if dimension.is_empty() {
        DIMENSION.clone_into(dimension);
    }
    // In short, as the command line has it.
    if let Some(service) = resource.strip_prefix("service/").filter(|rest| !rest.contains('/')) {
        *resource = resource_id(cluster, service);
    }
}

/// Fills in a scalable target.
pub(crate) fn fill_target(spec: &mut ScalableTargetSpec, cluster: &str, name: &str) {
    if spec.resource_id.is_empty() {
        spec.resource_id = resource_id(cluster, name);
    }
    fill_names(&mut spec.service_namespace, &mut spec.scalable_dimension, &mut spec.resource_id, cluster);
}

/// Fills in a policy.
pub(crate) fn fill_policy(spec: &mut ScalingPolicySpec, cluster: &str) {
    fill_names(&mut spec.service_namespace, &mut spec.scalable_dimension, &mut spec.resource_id, cluster);
    if spec.policy_type() == PolicyType::Unspecified {
        if spec.target_tracking_scaling_policy_configuration.is_some() {
            spec.set_policy_type(PolicyType::TargetTrackingScaling);
        } else if spec.step_scaling_policy_configuration.is_some() {
            spec.set_policy_type(PolicyType::StepScaling);
        } else if spec.predictive_scaling_policy_configuration.is_some() {
            spec.set_policy_type(PolicyType::PredictiveScaling);
        }
    }
    if let Some(tracking) = &mut spec.target_tracking_scaling_policy_configuration {
        tracking.scale_out_cooldown.get_or_insert(COOLDOWN);
        tracking.scale_in_cooldown.get_or_insert(COOLDOWN);
        // A metric of one's own may have a value a minute.
        let is_slow = tracking.customized_metric_specification.as_ref().is_some_and(|own| own.prometheus.is_none());
        if tracking.scale_out_evaluation_seconds == 0 {
            tracking.scale_out_evaluation_seconds = if is_slow { 180 } else { OUT_SECONDS };
        }
        if tracking.scale_in_evaluation_seconds == 0 {
            tracking.scale_in_evaluation_seconds = IN_SECONDS;
        }
        if let Some(own) = &mut tracking.customized_metric_specification
            && own.statistic() == Statistic::Unspecified
        {
            own.set_statistic(Statistic::Average);
        }
    }
    if let Some(step) = &mut spec.step_scaling_policy_configuration {
        step.cooldown.get_or_insert(COOLDOWN);
    }
    if let Some(predictive) = &mut spec.predictive_scaling_policy_configuration {
        predictive.scheduling_buffer_time.get_or_insert(COOLDOWN);
        if predictive.mode() == Mode::Unspecified {
            predictive.set_mode(Mode::ForecastOnly);
        }
        if predictive.max_capacity_breach_behavior() == BreachBehavior::Unspecified {
            predictive.set_max_capacity_breach_behavior(BreachBehavior::HonorMaxCapacity);
        }
    }
}

/// Fills in an alarm that watches a metric.
pub(crate) fn fill_alarm(spec: &mut AlarmSpec) {
    if spec.metric_name.is_empty() && spec.prometheus.is_none() {
        return;
    }
    if spec.statistic() == Statistic::Unspecified {
        spec.set_statistic(Statistic::Average);
    }
    if spec.datapoints_to_alarm == 0 {
        spec.datapoints_to_alarm = spec.evaluation_periods;
    }
    if spec.treat_missing_data() == Missing::Unspecified {
        spec.set_treat_missing_data(Missing::Missing);
    }
}

/// What a policy with target tracking watches: a metric, and an alarm on each side of its target.
#[derive(Debug, Clone, PartialEq)]
pub struct Tracked {
    /// The metric, as it is kept.
    pub metric: Metric,
    /// Raised: more tasks.
    pub high: AlarmSpec,
    /// Raised: fewer.
    pub low: AlarmSpec,
}

/// Names of the alarms of a policy: above its target, and below.
pub fn alarm_names(policy: &str) -> [String; 2] {
    [format!("TargetTracking-{policy}-AlarmHigh"), format!("TargetTracking-{policy}-AlarmLow")]
}

/// The metric of a policy of a service, what of it counts, and whether it need not have a value in each period. `None`: requests of a
/// service that has no target group.
fn measured(
    cluster: &str,
    service: &str,
    spec: &ServiceSpec,
    config: &TargetTrackingScalingPolicyConfiguration,
) -> Option<(Metric, Statistic, bool)> {
    let own = config.customized_metric_specification.as_ref();
    let predefined = config.predefined_metric_specification.as_ref();
    Some(match (own, predefined) {
        (Some(own), _) => match &own.prometheus {
            Some(query) => (Metric::of_prometheus(query), own.statistic(), false),
            None => (Metric::new(&own.namespace, &own.metric_name, &own.dimensions), own.statistic(), true),
        },
        (None, Some(predefined)) => match predefined.predefined_metric_type() {
            Predefined::AlbRequestCountPerTarget => {
                let group = target_group(spec, &predefined.resource_label)?;
                let name = metric::REQUEST_COUNT_PER_TARGET.to_owned();
                (Metric { name, ..Metric::requests(&group) }, Statistic::Sum, false)
            }
            Predefined::EcsServiceAverageMemoryUtilization => {
                (Metric::of_service(metric::MEMORY_UTILIZATION, cluster, service), Statistic::Average, false)
            }
            _ => (Metric::of_service(metric::CPU_UTILIZATION, cluster, service), Statistic::Average, false),
        },
        (None, None) => return None,
    })
}

/// What a policy of a service watches. `None`: requests of a service that has no target group.
pub fn tracked(
    cluster: &str,
    service: &str,
    spec: &ServiceSpec,
    config: &TargetTrackingScalingPolicyConfiguration,
) -> Option<Tracked> {
    let target = config.target_value;
    let own = config.customized_metric_specification.as_ref();
    let (named, statistic, slow) = measured(cluster, service, spec, config)?;
    let alarm = |seconds: i32, threshold: f64, comparison: Comparison| {
        let fine = !slow && i64::from(seconds) <= PERIOD * metric::FINE as i64;
        let period = if fine { PERIOD } else { MINUTE };
        // A sum of a shorter period is so much less: targets are told for a minute.
        let per_minute = named.name == metric::REQUEST_COUNT_PER_TARGET;
        let threshold = if per_minute { threshold * period as f64 / MINUTE as f64 } else { threshold };
        let periods = (seconds / i32::try_from(period).unwrap_or(60)).max(1);
        let mut spec = AlarmSpec {
            alarm_description: format!(
                "DO NOT EDIT: target tracking of {} at {}",
                resource_id(cluster, service),
                target
            ),
            statistic: statistic.into(),
            period: i32::try_from(period).unwrap_or(60),
            evaluation_periods: periods,
            datapoints_to_alarm: periods,
            threshold: Some(threshold),
            comparison_operator: comparison.into(),
            treat_missing_data: Missing::Missing.into(),
            ..AlarmSpec::default()
        };
        if let Some(query) = own.and_then(|own| own.prometheus.as_ref()) {
            spec.prometheus = Some(query.clone());
        } else {
            (spec.namespace, spec.metric_name) = (named.namespace.clone(), named.name.clone());
            spec.dimensions = named.dimensions();
        }
        spec
    };
    let high = alarm(config.scale_out_evaluation_seconds, target, Comparison::GreaterThanThreshold);
    let low = alarm(config.scale_in_evaluation_seconds, target * LOW, Comparison::LessThanThreshold);
    Some(Tracked { metric: named.kept(), high, low })
}

/// The load that a predictive policy of a service forecasts, and how much of it each task may have.
pub fn predicted(
    cluster: &str,
    service: &str,
    spec: &ServiceSpec,
    config: &PredictiveScalingPolicyConfiguration,
) -> Option<(Metric, f64)> {
    let specification = config.metric_specifications.first()?;
    let pair = specification.predefined_metric_pair_specification.as_ref()?;
    let metric = match pair.predefined_metric_type.as_str() {
        "ALBRequestCount" => Metric::requests(&target_group(spec, &pair.resource_label)?),
        "ECSServiceMemoryUtilization" => Metric::of_service(metric::MEMORY_UTILIZATION, cluster, service),
        _ => Metric::of_service(metric::CPU_UTILIZATION, cluster, service),
    };
    Some((metric, specification.target_value))
}

/// Metrics that an alarm or a policy is decided on, as they are kept; those of other objects are none.
pub fn wanted(view: &View, object: &Object) -> Vec<Metric> {
    if let Some(alarm) = object.as_alarm() {
        return alarm.spec.as_ref().and_then(alarm::metric).map(|metric| metric.kept()).into_iter().collect();
    }
    let Some(spec) = object.as_scaling_policy().and_then(|policy| policy.spec.as_ref()) else { return vec![] };
    let Some((cluster, name)) = service_of(&spec.resource_id) else { return vec![] };
    let service = view.get(&Key::new(Kind::Service, cluster, name));
    let Some(service) = service.and_then(|service| service.as_service()?.spec.as_ref()) else { return vec![] };
    let tracked = spec.target_tracking_scaling_policy_configuration.as_ref();
    let tracked = tracked.and_then(|config| measured(cluster, name, service, config));
    let predicted = spec.predictive_scaling_policy_configuration.as_ref();
    let predicted = predicted.and_then(|config| self::predicted(cluster, name, service, config));
    tracked.map(|(metric, ..)| metric.kept()).into_iter().chain(predicted.map(|(metric, _)| metric)).collect()
}

/// The target group of a resource label (`app/…/targetgroup/NAME/ID`, or a name), or a service's first.
pub fn target_group(spec: &ServiceSpec, label: &str) -> Option<String> {
    if label.is_empty() {
        return spec.load_balancers.first().map(|balancer| traffic::name_of(&balancer.target_group_arn).to_owned());
    }
    let name = label.split_once("targetgroup/").map_or(label, |(_, rest)| rest);
    Some(name.split('/').next().unwrap_or(name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_proto::v1::{LoadBalancer, PredefinedMetricSpecification};

    #[test]
    fn a_resource_id_names_one_service() {
        assert_eq!(service_of("service/prod/web"), Some(("prod", "web")));
        for wrong in ["service/web", "web", "service//web", "service/a/b/c", "table/a/b"] {
            assert_eq!(service_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn alarms_of_requests_are_of_a_minute_whatever_their_period() {
        let specification = PredefinedMetricSpecification {
            predefined_metric_type: Predefined::AlbRequestCountPerTarget.into(),
            ..PredefinedMetricSpecification::default()
        };
        let mut policy = ScalingPolicySpec {
            target_tracking_scaling_policy_configuration: Some(TargetTrackingScalingPolicyConfiguration {
                target_value: 600.0,
                predefined_metric_specification: Some(specification),
                ..TargetTrackingScalingPolicyConfiguration::default()
            }),
            ..ScalingPolicySpec::default()
        };
        fill_policy(&mut policy, "default");
        let config = policy.target_tracking_scaling_policy_configuration.clone().expect("a configuration");
        assert_eq!(tracked("default", "web", &ServiceSpec::default(), &config), None, "it has no target group");
        let balancer = LoadBalancer { target_group_arn: "front".into(), ..LoadBalancer::default() };
        let spec = ServiceSpec { load_balancers: vec![balancer], ..ServiceSpec::default() };
        let tracked = tracked("default", "web", &spec, &config).expect("a metric");
        assert_eq!(tracked.metric, Metric::requests("front"));
        assert_eq!((tracked.high.period, tracked.high.evaluation_periods, tracked.high.threshold()), (10, 3, 100.0));
        assert_eq!((tracked.low.period, tracked.low.evaluation_periods, tracked.low.threshold()), (60, 15, 540.0));
    }

    #[test]
    fn a_target_group_is_found_in_a_label() {
        let spec = ServiceSpec::default();
        for label in ["web", "app/my-lb/778/targetgroup/web/943"] {
            assert_eq!(target_group(&spec, label).as_deref(), Some("web"));
        }
    }
}
