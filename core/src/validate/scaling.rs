//! Checks of alarms, scalable targets and scaling policies.

use std::collections::BTreeSet;

use steady_proto::v1::adjustment_type::Value as Adjustment;
use steady_proto::v1::comparison_operator::Value as Comparison;
use steady_proto::v1::max_capacity_breach_behavior::Value as BreachBehavior;
use steady_proto::v1::policy_type::Value as PolicyType;
use steady_proto::v1::predefined_metric_type::Value as Predefined;
use steady_proto::v1::{
    AlarmSpec, Dimension, PredictiveScalingPolicyConfiguration, PrometheusQuery, ScalableTargetSpec, ScalingPolicySpec,
    ScheduledAction, StepAdjustment, StepScalingPolicyConfiguration, TargetTrackingScalingPolicyConfiguration,
};

use super::common::{Faults, name};
use crate::metric::{self, FINE, MINUTE, MINUTES, PERIOD};
use crate::scaling::{DIMENSION, MAX_CAPACITY, NAMESPACE, service_of};
use crate::schedule::Schedule;

/// Most dimensions of a metric (`CloudWatch`).
const MAX_DIMENSIONS: usize = 30;
const MAX_ACTIONS: usize = 50;
const MAX_STEPS: usize = 20;

pub(super) fn alarm(cluster: &str, spec: &AlarmSpec, faults: &mut Faults) {
    let description = spec.alarm_description.len();
    if description > 1024 {
        faults.add("spec.alarmDescription", format!("has {description} characters; at most 1024"));
    }
    if spec.alarm_actions.len() > 5 {
        faults.add("spec.alarmActions", format!("{} policies; at most 5", spec.alarm_actions.len()));
    }
    for (i, action) in spec.alarm_actions.iter().enumerate() {
        name(faults, &format!("spec.alarmActions[{i}]"), action);
    }
    if spec.metric_name.is_empty() && spec.prometheus.is_none() {
        for (path, given) in [
            ("spec.namespace", !spec.namespace.is_empty()),
            ("spec.period", spec.period != 0),
            ("spec.evaluationPeriods", spec.evaluation_periods != 0),
            ("spec.threshold", spec.threshold.is_some()),
            ("spec.comparisonOperator", spec.comparison_operator != 0),
        ] {
            if given {
                faults.add(path, "is of an alarm that watches a metric; give it a metricName, or prometheus".into());
            }
        }
        return;
    }
    if let Some(query) = &spec.prometheus {
        prometheus(query, "spec.prometheus", faults);
        if !spec.metric_name.is_empty() || !spec.namespace.is_empty() {
            faults.add("spec.prometheus", "comes instead of namespace and metricName; leave one of them out".into());
        }
    } else {
        named(&spec.namespace, &spec.metric_name, &spec.dimensions, "spec", faults);
        own_dimensions(cluster, spec, faults);
    }
    periods(spec, faults);
    if !spec.threshold.is_some_and(f64::is_finite) {
        faults.add("spec.threshold", "is missing; expected a number".into());
    }
    if spec.comparison_operator() == Comparison::Unspecified {
        let message = "is missing; expected GreaterThanOrEqualToThreshold, GreaterThanThreshold, LessThanThreshold or \
                       LessThanOrEqualToThreshold";
        faults.add("spec.comparisonOperator", message.into());
    }
}

/// What Steady measures itself it knows of this cluster; what is reserved, of clusters alone.
fn own_dimensions(cluster: &str, spec: &AlarmSpec, faults: &mut Faults) {
    let value = |name: &str| spec.dimensions.iter().find(|d| d.name == name).map(|d| d.value.as_str());
    if spec.namespace != metric::ECS {
        return;
    }
    if value("ClusterName") != Some(cluster) {
        let message =
            format!("ClusterName is `{}`; expected `{cluster}`, the alarm's own", value("ClusterName").unwrap_or(""));
        faults.add("spec.dimensions", message);
    }
    let reserved = [metric::CPU_RESERVATION, metric::MEMORY_RESERVATION].contains(&spec.metric_name.as_str());
    if reserved && value("ServiceName").is_some() {
        faults.add("spec.dimensions", format!("{} is of a cluster; leave ServiceName out", spec.metric_name));
    }
}

fn periods(spec: &AlarmSpec, faults: &mut Faults) {
    let (period, count) = (i64::from(spec.period), i64::from(spec.evaluation_periods));
    let short = [10, 20, 30].contains(&period);
    if !short && (period <= 0 || period % MINUTE != 0) {
        faults.add("spec.period", format!("{period} is no period; expected 10, 20, 30 or a multiple of 60 seconds"));
        return;
    }
    let most = if short { PERIOD * FINE as i64 } else { MINUTE * MINUTES as i64 };
    faults.range("spec.evaluationPeriods", count, 1, (most / period).max(1), &format!("periods of {period} s"));
    if period > most {
        faults.add("spec.period", format!("{period} is out of range; at most {most} seconds are remembered"));
    }
    faults.range("spec.datapointsToAlarm", spec.datapoints_to_alarm.into(), 1, count.max(1), "");
}

/// Names of a metric.
pub(super) fn named(namespace: &str, metric: &str, dimensions: &[Dimension], path: &str, faults: &mut Faults) {
    for (field, value) in [("namespace", namespace), ("metricName", metric)] {
        if value.is_empty() || value.len() > 255 {
            faults.add(&format!("{path}.{field}"), format!("`{value}` is no name; expected 1-255 characters"));
        }
    }
    if dimensions.len() > MAX_DIMENSIONS {
        faults.add(&format!("{path}.dimensions"), format!("{} dimensions; at most {MAX_DIMENSIONS}", dimensions.len()));
    }
    let mut seen = BTreeSet::new();
    for (i, dimension) in dimensions.iter().enumerate() {
        let path = format!("{path}.dimensions[{i}]");
        if dimension.name.is_empty() || dimension.name.len() > 255 || !seen.insert(&dimension.name) {
            let message = format!("`{}` is no name, or is given twice; expected 1-255 characters", dimension.name);
            faults.add(&format!("{path}.name"), message);
        }
        if dimension.value.is_empty() || dimension.value.len() > 1024 {
            faults.add(&format!("{path}.value"), "expected 1-1024 characters".into());
        }
    }
    let own = match namespace {
        metric::ECS => {
            &[metric::CPU_UTILIZATION, metric::MEMORY_UTILIZATION, metric::CPU_RESERVATION, metric::MEMORY_RESERVATION]
                [..]
        }
        metric::ELB => &[metric::REQUEST_COUNT, metric::REQUEST_COUNT_PER_TARGET],
        _ => return,
    };
    let expected: &[&str] = if namespace == metric::ECS { &["ClusterName", "ServiceName"] } else { &["TargetGroup"] };
    if !own.contains(&metric) {
        let message = format!("{namespace} has no metric `{metric}`; expected one of {}", own.join(", "));
        faults.add(&format!("{path}.metricName"), message);
    } else if dimensions.is_empty() || dimensions.iter().any(|d| !expected.contains(&d.name.as_str())) {
        faults.add(&format!("{path}.dimensions"), format!("{namespace} has the dimensions {}", expected.join(", ")));
    }
}

fn prometheus(query: &PrometheusQuery, path: &str, faults: &mut Faults) {
    let rest =
        query.address.strip_prefix("http://").filter(|rest| !rest.is_empty() && !rest.contains(char::is_whitespace));
    if rest.is_none() {
        let message = format!("`{}` is no address; expected http://HOST:PORT", query.address);
        faults.add(&format!("{path}.address"), message);
    }
    if query.query.is_empty() || query.query.len() > 1024 {
        faults.add(&format!("{path}.query"), "expected a query of 1-1024 characters".into());
    }
}

/// What scalable targets and policies have in common.
fn scaled(namespace: &str, dimension: &str, resource: &str, cluster: &str, faults: &mut Faults) {
    if namespace != NAMESPACE {
        faults.add("spec.serviceNamespace", format!("`{namespace}` is not scaled here; expected {NAMESPACE}"));
    }
    if dimension != DIMENSION {
        faults.add("spec.scalableDimension", format!("`{dimension}` is not scaled here; expected {DIMENSION}"));
    }
    match service_of(resource) {
        None => {
            let message = format!("`{resource}` is no resource; expected service/{cluster}/SERVICE");
            faults.add("spec.resourceId", message);
        }
        Some((of, _)) if of != cluster => {
            faults.add("spec.resourceId", format!("is of cluster `{of}`, and this object of `{cluster}`"));
        }
        Some(_) => {}
    }
}

pub(super) fn target(cluster: &str, own: &str, spec: &ScalableTargetSpec, faults: &mut Faults) {
    scaled(&spec.service_namespace, &spec.scalable_dimension, &spec.resource_id, cluster, faults);
    if let Some((_, service)) = service_of(&spec.resource_id).filter(|(_, service)| *service != own) {
        faults.add("metadata.name", format!("`{own}`: a scalable target has its service's name, `{service}`"));
    }
    match (spec.min_capacity, spec.max_capacity) {
        (None, _) => faults.add("spec.minCapacity", format!("is missing; expected 0 to {MAX_CAPACITY} tasks")),
        (_, None) => faults.add("spec.maxCapacity", format!("is missing; expected 0 to {MAX_CAPACITY} tasks")),
        (Some(min), Some(max)) => bounds(min, max, "spec", faults),
    }
    if spec.scheduled_actions.len() > MAX_ACTIONS {
        let count = spec.scheduled_actions.len();
        faults.add("spec.scheduledActions", format!("{count} actions; at most {MAX_ACTIONS}"));
    }
    let mut names = BTreeSet::new();
    for (i, action) in spec.scheduled_actions.iter().enumerate() {
        let path = format!("spec.scheduledActions[{i}]");
        if !names.insert(&action.scheduled_action_name) {
            let message = format!("`{}` is given twice", action.scheduled_action_name);
            faults.add(&format!("{path}.scheduledActionName"), message);
        }
        scheduled(action, &path, faults);
    }
}

fn bounds(min: i32, max: i32, path: &str, faults: &mut Faults) {
    faults.range(&format!("{path}.minCapacity"), min.into(), 0, MAX_CAPACITY.into(), "tasks");
    faults.range(&format!("{path}.maxCapacity"), max.into(), 0, MAX_CAPACITY.into(), "tasks");
    if min > max {
        faults.add(&format!("{path}.maxCapacity"), format!("{max} is less than minCapacity, {min}"));
    }
}

fn scheduled(action: &ScheduledAction, path: &str, faults: &mut Faults) {
    let length = action.scheduled_action_name.len();
    if !(1..=256).contains(&length) {
        faults.add(&format!("{path}.scheduledActionName"), format!("has {length} characters; expected 1 to 256"));
    }
    if let Err(message) = Schedule::parse(&action.schedule, &action.timezone) {
        let field = if message.contains("time zone `") { "timezone" } else { "schedule" };
        faults.add(&format!("{path}.{field}"), message);
    }
    let at = |time: &Option<pbjson_types::Timestamp>| time.as_ref().map(crate::Timestamp::from);
    if let (Some(start), Some(end)) = (at(&action.start_time), at(&action.end_time))
        && end <= start
    {
        faults.add(&format!("{path}.endTime"), format!("{end} is not after startTime, {start}"));
    }
    match action.scalable_target_action {
        Some(to) if to.min_capacity.is_some() || to.max_capacity.is_some() => {
            let (min, max) = (to.min_capacity.unwrap_or(0), to.max_capacity.unwrap_or(MAX_CAPACITY));
            bounds(min, max, &format!("{path}.scalableTargetAction"), faults);
        }
        _ => {
            let message = "is missing; expected minCapacity, maxCapacity or both".into();
            faults.add(&format!("{path}.scalableTargetAction"), message);
        }
    }
}

pub(super) fn policy(cluster: &str, own: &str, spec: &ScalingPolicySpec, faults: &mut Faults) {
    scaled(&spec.service_namespace, &spec.scalable_dimension, &spec.resource_id, cluster, faults);
    // Its alarms have its name in theirs.
    if own.len() > 200 {
        faults.add("metadata.name", format!("has {} characters; at most 200", own.len()));
    }
    let step = spec.step_scaling_policy_configuration.as_ref();
    let tracking = spec.target_tracking_scaling_policy_configuration.as_ref();
    let predictive = spec.predictive_scaling_policy_configuration.as_ref();
    let given = [tracking.is_some(), step.is_some(), predictive.is_some()];
    let wanted = match spec.policy_type() {
        PolicyType::TargetTrackingScaling => [true, false, false],
        PolicyType::StepScaling => [false, true, false],
        PolicyType::PredictiveScaling => [false, false, true],
        PolicyType::Unspecified => {
            let message = "is missing; expected TargetTrackingScaling, StepScaling or PredictiveScaling";
            return faults.add("spec.policyType", message.into());
        }
    };
    if given != wanted {
        let kind = spec.policy_type().as_str_name();
        let message = format!("{kind} takes its own configuration, and no other one");
        return faults.add("spec.policyType", message);
    }
    match (tracking, step, predictive) {
        (Some(tracking), ..) => tracked(tracking, faults),
        (_, Some(step), _) => steps(step, faults),
        (_, _, Some(predictive)) => predicted(predictive, faults),
        _ => {}
    }
}

const TRACKING: &str = "spec.targetTrackingScalingPolicyConfiguration";
const STEP: &str = "spec.stepScalingPolicyConfiguration";
const PREDICTIVE: &str = "spec.predictiveScalingPolicyConfiguration";

fn tracked(config: &TargetTrackingScalingPolicyConfiguration, faults: &mut Faults) {
    positive(config.target_value, &format!("{TRACKING}.targetValue"), faults);
    for (field, seconds) in
        [("scaleOutCooldown", config.scale_out_cooldown), ("scaleInCooldown", config.scale_in_cooldown)]
    {
        faults.range(&format!("{TRACKING}.{field}"), seconds.unwrap_or(0).into(), 0, 3600, "seconds");
    }
    let own = config.customized_metric_specification.as_ref();
    match (config.predefined_metric_specification.as_ref(), own) {
        (Some(predefined), None) => {
            if predefined.predefined_metric_type() == Predefined::Unspecified {
                let message = "is missing; expected ECSServiceAverageCPUUtilization, \
                               ECSServiceAverageMemoryUtilization or ALBRequestCountPerTarget";
                faults.add(&format!("{TRACKING}.predefinedMetricSpecification.predefinedMetricType"), message.into());
            }
        }
        (None, Some(own)) => {
            let path = format!("{TRACKING}.customizedMetricSpecification");
            match &own.prometheus {
                Some(query) => prometheus(query, &format!("{path}.prometheus"), faults),
                None => named(&own.namespace, &own.metric_name, &own.dimensions, &path, faults),
            }
        }
        _ => {
            let message = "expected predefinedMetricSpecification or customizedMetricSpecification, one of them".into();
            faults.add(TRACKING, message);
        }
    }
    let slow = own.is_some_and(|own| own.prometheus.is_none());
    let (fine, longest) = (PERIOD * FINE as i64, MINUTE * MINUTES as i64);
    for (field, seconds, most) in [
        ("scaleOutEvaluationSeconds", config.scale_out_evaluation_seconds, if slow { longest } else { fine }),
        ("scaleInEvaluationSeconds", config.scale_in_evaluation_seconds, longest),
    ] {
        let unit = if slow || i64::from(seconds) > fine { MINUTE } else { PERIOD };
        let seconds = i64::from(seconds);
        if seconds < unit || seconds > most || seconds % unit != 0 {
            let message = format!("{seconds} is out of range; expected a multiple of {unit}, up to {most} seconds");
            faults.add(&format!("{TRACKING}.{field}"), message);
        }
    }
}

fn positive(value: f64, path: &str, faults: &mut Faults) {
    if !(value.is_finite() && value > 0.0) {
        faults.add(path, format!("{value} is out of range; expected more than 0"));
    }
}

fn steps(config: &StepScalingPolicyConfiguration, faults: &mut Faults) {
    let kind = config.adjustment_type();
    if kind == Adjustment::Unspecified {
        let message = "is missing; expected ChangeInCapacity, PercentChangeInCapacity or ExactCapacity";
        faults.add(&format!("{STEP}.adjustmentType"), message.into());
    }
    faults.range(&format!("{STEP}.cooldown"), config.cooldown.unwrap_or(0).into(), 0, 3600, "seconds");
    faults.range(
        &format!("{STEP}.minAdjustmentMagnitude"),
        config.min_adjustment_magnitude.into(),
        0,
        MAX_CAPACITY.into(),
        "tasks",
    );
    if config.min_adjustment_magnitude != 0 && kind != Adjustment::PercentChangeInCapacity {
        let path = format!("{STEP}.minAdjustmentMagnitude");
        faults.add(&path, "is of adjustmentType PercentChangeInCapacity alone".into());
    }
    let path = format!("{STEP}.stepAdjustments");
    let count = config.step_adjustments.len();
    if !(1..=MAX_STEPS).contains(&count) {
        return faults.add(&path, format!("{count} steps; expected 1 to {MAX_STEPS}"));
    }
    for (i, step) in config.step_adjustments.iter().enumerate() {
        let (from, to) = interval(step);
        if from >= to {
            faults.add(&format!("{path}[{i}]"), "its upper bound is not above its lower one".into());
        }
        if kind == Adjustment::ExactCapacity {
            let path = format!("{path}[{i}].scalingAdjustment");
            faults.range(&path, step.scaling_adjustment.into(), 0, MAX_CAPACITY.into(), "tasks");
        }
    }
    let mut sorted: Vec<(f64, f64)> = config.step_adjustments.iter().map(interval).collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    for pair in sorted.windows(2) {
        let (end, begin) = (pair[0].1, pair[1].0);
        if end < begin {
            faults.add(&path, format!("there is a gap from {end} to {begin}"));
        } else if end > begin {
            faults.add(&path, format!("steps overlap from {begin} to {end}"));
        }
    }
}

/// From and to, relative to the threshold.
pub fn interval(step: &StepAdjustment) -> (f64, f64) {
    let from = step.metric_interval_lower_bound.unwrap_or(f64::NEG_INFINITY);
    (from, step.metric_interval_upper_bound.unwrap_or(f64::INFINITY))
}

fn predicted(config: &PredictiveScalingPolicyConfiguration, faults: &mut Faults) {
    let path = format!("{PREDICTIVE}.metricSpecifications");
    let [specification] = config.metric_specifications.as_slice() else {
        return faults.add(&path, format!("{} of them; expected one", config.metric_specifications.len()));
    };
    positive(specification.target_value, &format!("{path}[0].targetValue"), faults);
    let kind = specification.predefined_metric_pair_specification.as_ref().map_or("", |p| &p.predefined_metric_type);
    if !["ECSServiceCPUUtilization", "ECSServiceMemoryUtilization", "ALBRequestCount"].contains(&kind) {
        let message = format!(
            "`{kind}` is no metric; expected ECSServiceCPUUtilization, ECSServiceMemoryUtilization or ALBRequestCount"
        );
        faults.add(&format!("{path}[0].predefinedMetricPairSpecification.predefinedMetricType"), message);
    }
    let buffer = config.scheduling_buffer_time.unwrap_or(0).into();
    faults.range(&format!("{PREDICTIVE}.schedulingBufferTime"), buffer, 0, 3600, "seconds");
    faults.range(&format!("{PREDICTIVE}.maxCapacityBuffer"), config.max_capacity_buffer.into(), 0, 100, "percent");
    if config.max_capacity_buffer != 0 && config.max_capacity_breach_behavior() != BreachBehavior::IncreaseMaxCapacity {
        let path = format!("{PREDICTIVE}.maxCapacityBuffer");
        faults.add(&path, "is of maxCapacityBreachBehavior IncreaseMaxCapacity alone".into());
    }
}
