//! Rows of what scales, and of what is measured.

use steady_core::alarm::number;
use steady_core::metric::{Data, Metric, PERIOD};
use steady_core::v1::policy_type::Value as PolicyType;
use steady_core::v1::pool_instance_state::Value as State;
use steady_core::{Timestamp, condition, scaling};
use steady_proto::v1::{Object, ScalingPolicySpec};

use super::Row;
use crate::span;
use crate::world::World;

pub(super) fn target(object: &Object, now: Timestamp, age: String) -> Row {
    let target = object.as_scalable_target().cloned().unwrap_or_default();
    let (spec, status) = (target.spec.unwrap_or_default(), target.status.unwrap_or_default());
    let (min, max) = scaling::bounds(&spec, &status);
    let last = status.activities.first();
    let shown = last.map_or_else(
        || "-".to_owned(),
        |last| format!("{} to {}, {} ago", last.from, last.to, span::age(last.start_time.as_ref(), now)),
    );
    let waits = condition::waiting(&status.conditions).map_or(String::new(), |waiting| waiting.message.clone());
    let cause = last.map_or(String::new(), |last| last.cause.clone());
    (
        vec![object.name().into(), min.to_string().into(), max.to_string().into(), shown.into(), age.into()],
        vec![cause.into(), waits.into()],
    )
}

pub(super) fn provider(object: &Object, age: String) -> Row {
    let provider = object.as_capacity_provider().cloned().unwrap_or_default();
    let status = provider.status.unwrap_or_default();
    let pool = provider.spec.and_then(|spec| spec.pool).unwrap_or_default();
    let count = |states: &[State]| status.instances.iter().filter(|i| states.contains(&i.state())).count().to_string();
    let waits = condition::waiting(&status.conditions).map_or(String::new(), |waiting| waiting.message.clone());
    (
        vec![
            object.name().into(),
            pool.min_size.to_string().into(),
            pool.max_size.to_string().into(),
            count(&[State::InService]).into(),
            count(&[State::Pending]).into(),
            count(&[State::Draining, State::Terminating]).into(),
            status.needed.to_string().into(),
            format!("{:.0}%", status.reservation).into(),
            age.into(),
        ],
        vec![waits.into()],
    )
}

pub(super) fn policy(object: &Object, age: String) -> Row {
    let spec = object.as_scaling_policy().and_then(|policy| policy.spec.clone()).unwrap_or_default();
    let service = steady_core::scaling::service_of(&spec.resource_id).map_or("", |(_, service)| service).to_owned();
    let kind = match spec.policy_type() {
        PolicyType::Unspecified => "",
        kind => kind.as_str_name(),
    };
    (vec![object.name().into(), service.into(), kind.into(), tells(&spec).into(), age.into()], vec![])
}

/// What a policy does, in a few words.
pub fn tells(spec: &ScalingPolicySpec) -> String {
    if let Some(tracking) = &spec.target_tracking_scaling_policy_configuration {
        let metric = match (&tracking.predefined_metric_specification, &tracking.customized_metric_specification) {
            (Some(predefined), _) => predefined.predefined_metric_type().as_str_name().to_owned(),
            (_, Some(own)) => match &own.prometheus {
                Some(prometheus) => prometheus.query.clone(),
                None => format!("{} {}", own.namespace, own.metric_name),
            },
            _ => String::new(),
        };
        return format!("{metric} at {}", number(tracking.target_value));
    }
    if let Some(step) = &spec.step_scaling_policy_configuration {
        let steps: Vec<String> = step.step_adjustments.iter().map(|s| s.scaling_adjustment.to_string()).collect();
        return format!("{} {}", step.adjustment_type().as_str_name(), steps.join(", "));
    }
    let Some(predictive) = &spec.predictive_scaling_policy_configuration else { return String::new() };
    let first = predictive.metric_specifications.first().cloned().unwrap_or_default();
    let pair = first.predefined_metric_pair_specification.unwrap_or_default();
    format!("{} at {}, {}", pair.predefined_metric_type, number(first.target_value), predictive.mode().as_str_name())
}

pub(super) fn metric(object: &Object, world: &World, now: Timestamp) -> Row {
    let spec = object.as_metric_data().and_then(|data| data.spec.clone()).unwrap_or_default();
    let metric = Metric::from(&spec);
    let of: Vec<String> = metric.dimensions.iter().map(|(name, value)| format!("{name}={value}")).collect();
    // Every API server's object shows what all of them know.
    let newest = Data::of(&world.view, object.cluster(), &metric).newest();
    let (value, at) = newest.map_or((String::new(), None), |(index, point)| {
        let average = match point.samples {
            // Requests of all load balancers.
            _ if metric.target_group().is_some() => number(point.sum),
            samples if samples > 0.0 => number(point.sum / samples),
            _ => "-".to_owned(),
        };
        (average, Some(Timestamp((index + 1) * PERIOD * 1000)))
    });
    let age = at.map_or_else(|| "-".to_owned(), |at| span::short(now.since(at)));
    let samples = newest
        .map_or(String::new(), |(_, p)| format!("{} of {}", number(p.samples), number(p.expected.max(p.samples))));
    (
        vec![
            metric.namespace.into(),
            metric.name.into(),
            of.join(",").into(),
            value.into(),
            samples.into(),
            age.into(),
        ],
        vec![object.name().into()],
    )
}
