//! `steady describe scalabletarget/NAME` and `scalingpolicy/NAME`: how a service scales, what is measured, and what was done last, in words
//! and numbers.

use std::time::Duration;

use steady_core::alarm::{self, number};
use steady_core::capacity::pool_lease;
use steady_core::metric::Data;
use steady_core::schedule::Schedule;
use steady_core::v1::alarm_state::Value as AlarmState;
use steady_core::{Key, Kind, Timestamp, scaling};
use steady_proto::v1::{Object, ScalableTarget, ScalingActivity, ScalingPolicySpec};

use super::Page;
use crate::columns::policy_tells;
use crate::world::World;

/// Activities that are shown of a service.
const SHOWN: usize = 3;

pub(super) fn target(page: &mut Page, object: &Object, world: &World) {
    let ScalableTarget { spec, status } = object.as_scalable_target().cloned().unwrap_or_default();
    let (spec, status) = (spec.unwrap_or_default(), status.unwrap_or_default());
    let declared = (spec.min_capacity(), spec.max_capacity());
    let bounds = scaling::bounds(&spec, &status);
    let scheduled = if bounds == declared { "" } else { ", as a scheduled action set them" };
    page.field("Capacity", &format!("{} to {} tasks{scheduled}", bounds.0, bounds.1));
    let service = world.view.get(&Key::new(Kind::Service, object.cluster(), object.name()));
    match service.and_then(|service| service.as_service()) {
        Some(service) => {
            let desired = service.spec.as_ref().map_or(0, steady_core::v1::ServiceSpec::desired_count);
            let running = service.status.as_ref().map_or(0, steady_core::v1::ServiceStatus::running_count);
            let outside = if (bounds.0..=bounds.1).contains(&desired) {
                ""
            } else {
                ", outside of these bounds until a policy acts"
            };
            page.field("Service", &format!("{}: {desired} desired, {running} running{outside}", object.name()));
        }
        None => page.field("Service", &format!("{}: is not there", object.name())),
    }
    let suspended = spec.suspended_state.unwrap_or_default();
    let parts = [
        (suspended.dynamic_scaling_out_suspended, "scaling out"),
        (suspended.dynamic_scaling_in_suspended, "scaling in"),
        (suspended.scheduled_scaling_suspended, "schedules"),
    ];
    let parts: Vec<&str> = parts.into_iter().filter(|(is, _)| *is).map(|(_, what)| what).collect();
    page.field("Suspended", &parts.join(", "));
    for (name, change) in [("Scaled out", &status.last_scale_out), ("Scaled in", &status.last_scale_in)] {
        if let Some(change) = change {
            let age = crate::span::age(change.at.as_ref(), page.now);
            page.field(name, &format!("{age} ago, by {}", change.policy));
        }
    }
    page.section("Policies");
    let of_target = |found: &&std::sync::Arc<Object>| {
        let spec = found.as_scaling_policy().and_then(|policy| policy.spec.as_ref());
        spec.and_then(scaling::target_of) == Some(Key::of(object))
    };
    let mut any = false;
    for policy in world.view.in_cluster(Kind::ScalingPolicy, object.cluster()).filter(of_target) {
        any = true;
        let spec = policy.as_scaling_policy().and_then(|policy| policy.spec.clone()).unwrap_or_default();
        page.line(&format!("{}  {}", policy.name(), policy_tells(&spec)));
        alarms(page, policy, &spec, world);
    }
    if !any {
        page.line("none: only schedules and bounds change its count (kind: ScalingPolicy)");
    }
    if !spec.scheduled_actions.is_empty() {
        page.section("Scheduled actions");
    }
    for action in &spec.scheduled_actions {
        let to = action.scalable_target_action.unwrap_or_default();
        let bound = |name: &str, value: Option<i32>| value.map(|value| format!("{name} {value}"));
        let to: Vec<String> =
            [bound("at least", to.min_capacity), bound("at most", to.max_capacity)].into_iter().flatten().collect();
        let start = action.start_time.as_ref().map(Timestamp::from).unwrap_or_default();
        let next = Schedule::parse(&action.schedule, &action.timezone).ok().and_then(|s| s.next(page.now, start));
        let over = |at: &Timestamp| action.end_time.as_ref().is_some_and(|end| *at > Timestamp::from(end));
        let next = next.filter(|at| !over(at)).map_or_else(|| "never again".to_owned(), |at| format!("next {at}"));
        let zone = if action.timezone.is_empty() { "UTC" } else { &action.timezone };
        page.line(&format!("{}  {} {zone}: {} ({next})", action.scheduled_action_name, action.schedule, to.join(", ")));
    }
    page.conditions(object);
    activities(page, &status.activities, usize::MAX);
}

/// Alarms of a policy, and what they see now.
fn alarms(page: &mut Page, policy: &Object, spec: &ScalingPolicySpec, world: &World) {
    let own = scaling::alarm_names(policy.name());
    let triggers = |found: &Object| {
        let spec = found.as_alarm().and_then(|alarm| alarm.spec.as_ref());
        spec.is_some_and(|spec| spec.alarm_actions.iter().any(|name| name == policy.name()))
            || own.iter().any(|name| name == found.name())
    };
    for found in world.view.in_cluster(Kind::Alarm, policy.cluster()).filter(|found| triggers(found)) {
        let alarm = found.as_alarm().cloned().unwrap_or_default();
        let (spec, status) = (alarm.spec.unwrap_or_default(), alarm.status.unwrap_or_default());
        let said = match alarm::metric(&spec) {
            Some(metric) => {
                let rule = alarm::rule(&spec, &metric);
                let data = Data::of(&world.view, policy.cluster(), &metric.kept());
                alarm::judge(&rule, &data, page.now, status.state_value()).reason
            }
            None => status.state_reason.clone(),
        };
        let state = match status.state_value() {
            AlarmState::Unspecified => AlarmState::InsufficientData,
            state => state,
        };
        page.line(&format!("  {}  {}: {said}", found.name(), state.as_str_name()));
    }
    let predictive = spec.predictive_scaling_policy_configuration.is_some();
    if let Some(status) = policy.as_scaling_policy().and_then(|policy| policy.status.clone()).filter(|_| predictive) {
        let known = status.load.iter().filter(|load| **load >= 0.0).count();
        page.line(&format!("  knows the load of {known} hours of the last fourteen days"));
        let hour = page.now.0.div_euclid(3_600_000);
        let ahead = status.load_forecast.iter().zip(&status.capacity_forecast).enumerate();
        for (place, (load, tasks)) in ahead.skip_while(|(i, _)| status.forecast_from + (*i as i64) < hour).take(6) {
            let at = Timestamp((status.forecast_from + place as i64) * 3_600_000);
            page.line(&format!("  {at}  load {}, {tasks} tasks", number(f64::from(*load))));
        }
    }
}

pub(super) fn policy(page: &mut Page, object: &Object, world: &World) {
    let spec = object.as_scaling_policy().and_then(|policy| policy.spec.clone()).unwrap_or_default();
    page.field("Resource", &spec.resource_id);
    page.field("Type", spec.policy_type().as_str_name());
    page.field("Keeps", &policy_tells(&spec));
    if let Some(tracking) = &spec.target_tracking_scaling_policy_configuration {
        let (out, inward) = (tracking.scale_out_evaluation_seconds, tracking.scale_in_evaluation_seconds);
        let fewer =
            if tracking.disable_scale_in { ", never fewer".to_owned() } else { format!(", fewer after {inward} s") };
        page.field("Acts", &format!("more after {out} s above{fewer} below {} of it", scaling::LOW));
        let (out, inward) = (tracking.scale_out_cooldown(), tracking.scale_in_cooldown());
        page.field("Cooldowns", &format!("{out} s out, {inward} s in"));
    }
    page.section("Alarms");
    alarms(page, object, &spec, world);
}

/// A capacity provider: how many instances there are, and why.
pub(super) fn provider(page: &mut Page, object: &Object, world: &World) {
    let provider = object.as_capacity_provider().cloned().unwrap_or_default();
    let (spec, status) = (provider.spec.unwrap_or_default(), provider.status.unwrap_or_default());
    let settings = steady_core::capacity::scaling(&spec);
    let pool = spec.pool.unwrap_or_default();
    let template = pool.template.clone().unwrap_or_default();
    page.field("Pool", &format!("{} to {} instances", pool.min_size, pool.max_size));
    let version = if template.version.is_empty() { String::new() } else { format!(", version {}", template.version) };
    page.field("Template", &format!("{} CPU units, {} MiB{version}", template.cpu, template.memory));
    let (needed, there, reservation) = (status.needed, status.in_service, status.reservation);
    let target = settings.target_capacity;
    page.field("Reservation", &format!("{needed} needed of {there} in service: {reservation:.0} %, to be {target} %"));
    if let Some(since) = &status.low_since {
        let evaluation = Duration::from_secs(u64::from(settings.scale_in_evaluation_seconds.unsigned_abs()));
        let at = Timestamp::from(since) + evaluation;
        let after = crate::span::short(at.since(page.now));
        let when = if at > page.now { format!("in {after}") } else { "at most half of them in a minute".to_owned() };
        page.field(
            "Shrinks",
            &format!("{when}: there are more than are of use for {}", crate::span::age(Some(since), page.now)),
        );
    }
    page.field("Made by", &made_by(object, world));
    if settings.minimum_schedulable_tasks > 0 {
        page.field("Room", &format!("for {} more tasks of each definition", settings.minimum_schedulable_tasks));
    }
    if !status.failed_template.is_empty() {
        page.field("Refresh", "gave up: instances of the template do not come; the one before it is in use");
    }
    page.section("Instances");
    if status.instances.is_empty() {
        page.line("none");
    }
    for instance in &status.instances {
        let tasks = world.view.on_instance(object.cluster(), &instance.name).count();
        let old = if instance.template == pool.template { "" } else { ", of another template" };
        let zone = if instance.availability_zone.is_empty() { "-" } else { &instance.availability_zone };
        let reason = if instance.reason.is_empty() { String::new() } else { format!(": {}", instance.reason) };
        let state = instance.state().as_str_name();
        page.line(&format!("{}  {zone}  {state}{reason}  ({tasks} tasks{old})", instance.name));
    }
    page.conditions(object);
    activities(page, &status.activities, usize::MAX);
}

/// Who makes a provider's instances: whoever holds its lease, or that of all.
fn made_by(object: &Object, world: &World) -> String {
    let holder = |name: &str| {
        let key = Key::new(Kind::Lease, "", &pool_lease(object.cluster(), name));
        Some(world.view.get(&key)?.as_lease()?.spec.as_ref()?.holder.clone())
    };
    let found = holder(object.name()).or_else(|| holder(""));
    found.map_or_else(|| "nobody: start `steady pool`".to_owned(), |holder| format!("steady pool {holder}"))
}

/// What was done last, and why.
fn activities(page: &mut Page, activities: &[ScalingActivity], most: usize) {
    page.section("Scaling activities");
    if activities.is_empty() {
        page.line("none");
    }
    for activity in activities.iter().take(most) {
        let age = crate::span::age(activity.start_time.as_ref(), page.now);
        let (from, to, cause, details) = (activity.from, activity.to, &activity.cause, &activity.details);
        page.line(&format!("{age:<6}  {from} to {to}: {cause} ({details})"));
    }
}

/// How a service scales, if it does.
pub(super) fn of_service(page: &mut Page, service: &Object, world: &World) {
    let key = Key::new(Kind::ScalableTarget, service.cluster(), service.name());
    let Some(target) = world.view.get(&key).and_then(|found| found.as_scalable_target()) else { return };
    let (spec, status) = (target.spec.clone().unwrap_or_default(), target.status.clone().unwrap_or_default());
    let (min, max) = scaling::bounds(&spec, &status);
    activities(page, &status.activities, SHOWN);
    page.line(&format!("(between {min} and {max} tasks: steady describe scalabletarget/{})", service.name()));
}
