//! Services that scale: whoever tells how much there is to do, and what has to hold of their counts.

use std::sync::Arc;
use std::time::Duration;

use steady_core::v1::adjustment_type::Value as Adjustment;
use steady_core::v1::comparison_operator::Value as Comparison;
use steady_core::v1::{
    Alarm, AlarmSpec, CustomizedMetricSpecification, Dimension, MetricDatum, Object, PutMetricDataRequest,
    ScalableTarget, ScalableTargetSpec, ScalingPolicy, ScalingPolicySpec, ServiceSpec, StepAdjustment,
    StepScalingPolicyConfiguration, TargetTrackingScalingPolicyConfiguration,
};
use steady_core::{Key, Kind, View};

use super::judge::Verdict;
use super::life::Life;
use super::users::Wish;
use super::{PATIENCE, World, net};

const NAMESPACE: &str = "Sim";
const METRIC: &str = "Load";
/// What there is to be of it.
const TARGET: f64 = 50.0;

/// Fewest tasks of a service that scales.
fn least(wish: &Wish) -> i32 {
    wish.desired / 3
}

fn dimensions(service: &str) -> Vec<Dimension> {
    vec![Dimension { name: "Service".into(), value: service.into() }]
}

/// What has a service scale.
pub(crate) fn objects(service: &str, wish: &Wish) -> Vec<Object> {
    let target = ScalableTargetSpec {
        min_capacity: Some(least(wish)),
        max_capacity: Some(wish.desired),
        ..ScalableTargetSpec::default()
    };
    let tracking = TargetTrackingScalingPolicyConfiguration {
        target_value: TARGET,
        customized_metric_specification: Some(CustomizedMetricSpecification {
            metric_name: METRIC.into(),
            namespace: NAMESPACE.into(),
            dimensions: dimensions(service),
            ..CustomizedMetricSpecification::default()
        }),
        scale_out_cooldown: Some(5),
        scale_in_cooldown: Some(15),
        scale_out_evaluation_seconds: 60,
        scale_in_evaluation_seconds: 60,
        ..TargetTrackingScalingPolicyConfiguration::default()
    };
    let step = |lower: Option<f64>, upper: Option<f64>, by: i32| StepScalingPolicyConfiguration {
        adjustment_type: Adjustment::ChangeInCapacity.into(),
        step_adjustments: vec![StepAdjustment {
            metric_interval_lower_bound: lower,
            metric_interval_upper_bound: upper,
            scaling_adjustment: by,
        }],
        cooldown: Some(10),
        ..StepScalingPolicyConfiguration::default()
    };
    let policy = |name: &str, spec: ScalingPolicySpec| {
        let resource_id = format!("service/{service}");
        let spec = ScalingPolicySpec { resource_id, ..spec };
        Object::new("default", &format!("{name}-{service}"), ScalingPolicy { spec: Some(spec), status: None })
    };
    let tracks = |tracking| ScalingPolicySpec {
        target_tracking_scaling_policy_configuration: Some(tracking),
        ..ScalingPolicySpec::default()
    };
    let steps =
        |step| ScalingPolicySpec { step_scaling_policy_configuration: Some(step), ..ScalingPolicySpec::default() };
    let alarm = |name: &str, comparison: Comparison, threshold: f64| {
        let spec = AlarmSpec {
            namespace: NAMESPACE.into(),
            metric_name: METRIC.into(),
            dimensions: dimensions(service),
            period: 10,
            evaluation_periods: 1,
            threshold: Some(threshold),
            comparison_operator: comparison.into(),
            alarm_actions: vec![format!("{name}-{service}")],
            ..AlarmSpec::default()
        };
        Object::new("default", &format!("{name}-{service}"), Alarm { spec: Some(spec), status: None })
    };
    vec![
        Object::new("default", service, ScalableTarget { spec: Some(target), status: None }),
        policy("load", tracks(tracking)),
        policy("more", steps(step(Some(0.0), None, 2))),
        policy("less", steps(step(None, Some(0.0), -1))),
        alarm("more", Comparison::GreaterThanThreshold, 1.5 * TARGET),
        alarm("less", Comparison::LessThanThreshold, 0.5 * TARGET),
    ]
}

/// Tells how much there is to do, until everything is calm.
pub(crate) async fn run(world: Arc<World>, life: Arc<Life>) {
    let client = net::client(&world, &life);
    let service = format!("s{}", world.settings.services - 1);
    let mut load = Some(TARGET);
    while !world.is_calm() {
        tokio::time::sleep(Duration::from_secs(5)).await;
        if world.chance(0.15) {
            load = [None, Some(0.0), Some(0.4 * TARGET), Some(TARGET), Some(1.6 * TARGET), Some(4.0 * TARGET)]
                [world.below(6)];
        }
        let Some(load) = load else { continue };
        let datum = MetricDatum {
            metric_name: METRIC.into(),
            dimensions: dimensions(&service),
            value: Some(load),
            ..MetricDatum::default()
        };
        let request =
            PutMetricDataRequest { cluster: "default".into(), namespace: NAMESPACE.into(), metric_data: vec![datum] };
        let (mut metrics, place) = (client.metrics(), client.place());
        if !matches!(tokio::time::timeout(PATIENCE, metrics.put_metric_data(request)).await, Ok(Ok(_))) {
            client.rotate(place);
        }
    }
}

/// S22: the autoscaler sets how many tasks there are to be, within the bounds of its target, and nothing else.
pub(crate) fn judge(before: &View, after: &View, service: &Key) -> Verdict {
    let spec = |view: &View| view.get(service).and_then(|object| object.as_service()?.spec.clone());
    let (Some(mut was), Some(is)) = (spec(before), spec(after)) else { return Ok(()) };
    let target = before.get(&Key::new(Kind::ScalableTarget, &service.cluster, &service.name));
    let Some(target) = target.and_then(|target| target.as_scalable_target()?.spec.clone()) else {
        return Err(format!("S22: {service} was scaled, and nobody asked for it"));
    };
    let count = is.desired_count();
    if count < target.min_capacity() || count > target.max_capacity() {
        let (min, max) = (target.min_capacity(), target.max_capacity());
        return Err(format!("S22: {service} was set to {count} tasks, of {min} to {max}"));
    }
    was.desired_count = is.desired_count;
    if was == is { Ok(()) } else { Err(format!("S22: more of {service} was changed than its count")) }
}

/// How many tasks a service that scales is to have.
pub(crate) fn desired(view: &View, name: &str, wish: &Wish, found: &mut Vec<String>) -> i32 {
    let service = view.get(&Key::new(Kind::Service, "default", name));
    let desired = service.and_then(|object| object.as_service()?.spec.as_ref()).map_or(0, ServiceSpec::desired_count);
    if desired < least(wish) || desired > wish.desired {
        found.push(format!("service {name} is to have {desired} tasks, of {} to {}", least(wish), wish.desired));
    }
    desired
}
