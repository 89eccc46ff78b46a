//! Checks of a Service (ECS `CreateService`, `UpdateService`).

use steady_proto::v1::availability_zone_rebalancing::Value as Rebalancing;
use steady_proto::v1::deployment_lifecycle_hook_type::Value as HookType;
use steady_proto::v1::deployment_strategy::Value as Strategy;
use steady_proto::v1::hook_timeout_action::Value as TimeoutAction;
use steady_proto::v1::lifecycle_stage::Value as Stage;
use steady_proto::v1::threshold_type::Value as ThresholdType;
use steady_proto::v1::{DeploymentAlarms, DeploymentConfiguration, DeploymentLifecycleHook, ServiceSpec};

use super::common::{Faults, capacity, constraints, priority, strategies};
use super::{network, traffic};
use crate::service::{DEFAULT_PERCENT, bounds, is_daemon, is_external, is_rolling, settings};

/// Most tasks of one service (ECS quota).
const MAX_TASKS: i64 = 5000;

pub(super) fn check(spec: &ServiceSpec, faults: &mut Faults) {
    if is_external(spec) {
        external(spec, faults);
    } else if !spec.primary_task_set.is_empty() {
        faults.add("spec.primaryTaskSet", "is for deploymentController EXTERNAL; leave it out".into());
    }
    if spec.task_definition.is_empty() && !is_external(spec) {
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
    priority(faults, spec.priority, &spec.scheduler_name);
    capacity(faults, "spec.capacityProviderStrategy", &spec.capacity_provider_strategy);
    network::configuration(spec.network_configuration.as_ref(), faults);
    traffic::load_balancers(&spec.load_balancers, faults);
    percentages(spec, faults);
    breaker(spec, faults);
    strategy(settings(spec), faults);
    for (i, hook) in settings(spec).lifecycle_hooks.iter().enumerate() {
        lifecycle_hook(hook, &format!("{SETTINGS}.lifecycleHooks[{i}]"), faults);
    }
    if let Some(alarms) = &settings(spec).alarms {
        alarms_of(alarms, faults);
    }
}

const SETTINGS: &str = "spec.deploymentConfiguration";
/// Minutes of a day: the longest that a stage may bake.
const DAY: i64 = 1440;

fn strategy(settings: &DeploymentConfiguration, faults: &mut Faults) {
    let strategy = settings.strategy();
    let minutes = |faults: &mut Faults, path: &str, value: Option<i32>| {
        faults.range(&format!("{SETTINGS}.{path}"), value.unwrap_or(0).into(), 0, DAY, "minutes");
    };
    let percent = |faults: &mut Faults, path: &str, value: Option<f64>, least: f64| {
        if let Some(value) = value.filter(|value| !(least..=100.0).contains(value)) {
            faults.add(
                &format!("{SETTINGS}.{path}"),
                format!("{value} is out of range; expected {least:.1} to 100.0 percent"),
            );
        }
    };
    minutes(faults, "bakeTimeInMinutes", settings.bake_time_in_minutes);
    if strategy == Strategy::BlueGreen && settings.bake_time_in_minutes.is_none() {
        let message = "is missing; BLUE_GREEN needs it: minutes in which the old tasks are kept, 0 to 1440".into();
        faults.add(&format!("{SETTINGS}.bakeTimeInMinutes"), message);
    }
    if let Some(linear) = &settings.linear_configuration {
        percent(faults, "linearConfiguration.stepPercent", linear.step_percent, 3.0);
        minutes(faults, "linearConfiguration.stepBakeTimeInMinutes", linear.step_bake_time_in_minutes);
    }
    if let Some(canary) = &settings.canary_configuration {
        percent(faults, "canaryConfiguration.canaryPercent", canary.canary_percent, 0.1);
        minutes(faults, "canaryConfiguration.canaryBakeTimeInMinutes", canary.canary_bake_time_in_minutes);
    }
    let is_rolling = matches!(strategy, Strategy::Rolling | Strategy::Unspecified);
    let misplaced = [
        ("linearConfiguration", settings.linear_configuration.is_some() && strategy != Strategy::Linear, "LINEAR"),
        ("canaryConfiguration", settings.canary_configuration.is_some() && strategy != Strategy::Canary, "CANARY"),
        ("lifecycleHooks", !settings.lifecycle_hooks.is_empty() && is_rolling, "BLUE_GREEN, LINEAR or CANARY"),
    ];
    for (field, _, wanted) in misplaced.iter().filter(|(_, wrong, _)| *wrong) {
        let message = format!("is for strategy {wanted}; leave it out, or change the strategy");
        faults.add(&format!("{SETTINGS}.{field}"), message);
    }
    if settings.lifecycle_hooks.len() > 10 {
        let message = format!("{} hooks; at most 10", settings.lifecycle_hooks.len());
        faults.add(&format!("{SETTINGS}.lifecycleHooks"), message);
    }
}

fn lifecycle_hook(hook: &DeploymentLifecycleHook, path: &str, faults: &mut Faults) {
    let longest = match hook.r#type() {
        HookType::Unspecified => {
            return faults.add(&format!("{path}.type"), "is missing; expected HTTP or PAUSE".into());
        }
        HookType::Http => {
            let host = hook.hook_target.strip_prefix("http://").and_then(|rest| rest.split('/').next());
            if host.is_none_or(str::is_empty) {
                let message = format!("`{}` is no address; expected http://HOST[:PORT]/PATH", hook.hook_target);
                faults.add(&format!("{path}.hookTarget"), message);
            }
            if hook.timeout_action() != TimeoutAction::Unspecified {
                faults.add(&format!("{path}.timeoutAction"), "is for PAUSE; leave it out".into());
            }
            DAY
        }
        HookType::Pause => {
            if !hook.hook_target.is_empty() {
                faults.add(&format!("{path}.hookTarget"), "is for HTTP; leave it out".into());
            }
            14 * DAY
        }
    };
    faults.range(
        &format!("{path}.timeoutInMinutes"),
        hook.timeout_in_minutes.unwrap_or(1).into(),
        1,
        longest,
        "minutes",
    );
    if hook.lifecycle_stages.is_empty() {
        faults.add(&format!("{path}.lifecycleStages"), "is empty; expected for example [POST_SCALE_UP]".into());
    }
    for stage in hook.lifecycle_stages() {
        if matches!(stage, Stage::Unspecified | Stage::ScaleUp | Stage::BakeTime | Stage::CleanUp) {
            let message = format!("{} has no hooks; see LifecycleStage for those that have", stage.as_str_name());
            faults.add(&format!("{path}.lifecycleStages"), message);
        }
    }
}

fn alarms_of(alarms: &DeploymentAlarms, faults: &mut Faults) {
    if alarms.enable && alarms.alarm_names.is_empty() {
        faults.add(&format!("{SETTINGS}.alarms.alarmNames"), "is empty; expected names of alarms".into());
    }
    if alarms.rollback && !alarms.enable {
        let message = "is true while enable is false: nothing would ever be rolled back".into();
        faults.add(&format!("{SETTINGS}.alarms.rollback"), message);
    }
}

/// What a service that somebody else deploys cannot have.
fn external(spec: &ServiceSpec, faults: &mut Faults) {
    let settings = settings(spec);
    let given = [
        ("spec.taskDefinition", !spec.task_definition.is_empty(), "its task sets have one each"),
        ("spec.networkConfiguration", spec.network_configuration.is_some(), "its task sets have one each"),
        ("spec.loadBalancers", !spec.load_balancers.is_empty(), "its task sets have their own"),
        ("spec.schedulingStrategy", is_daemon(spec), "expected REPLICA"),
        ("spec.forceNewDeployment", spec.force_new_deployment != 0, "make another task set"),
        ("spec.deploymentConfiguration.strategy", !is_rolling(spec), "shift traffic as you like"),
        (
            "spec.deploymentConfiguration.deploymentCircuitBreaker",
            settings.deployment_circuit_breaker.is_some(),
            "nothing is rolled out here that could be given up",
        ),
        ("spec.deploymentConfiguration.alarms", settings.alarms.is_some(), "nothing is rolled out here"),
        (
            "spec.deploymentConfiguration.bakeTimeInMinutes",
            settings.bake_time_in_minutes.is_some(),
            "nothing is rolled out here",
        ),
    ];
    for (path, _, instead) in given.iter().filter(|(_, given, _)| *given) {
        faults.add(path, format!("is not for deploymentController EXTERNAL: {instead}"));
    }
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
    if spec.preemptible {
        let message = "is not for schedulingStrategy DAEMON: its tasks come before all others".into();
        faults.add("spec.preemptible", message);
    }
    if !spec.capacity_provider_strategy.is_empty() {
        let message = "is not for schedulingStrategy DAEMON: choose instances with placementConstraints".into();
        faults.add("spec.capacityProviderStrategy", message);
    }
    let settings = settings(spec);
    if !is_rolling(spec) {
        let message = "is not for schedulingStrategy DAEMON; expected ROLLING".into();
        faults.add("spec.deploymentConfiguration.strategy", message);
    }
    if let Some(most) = settings.maximum_percent.filter(|most| *most != 100) {
        let message = format!("is {most}; expected 100: a DAEMON service has one task on each instance, never two");
        faults.add("spec.deploymentConfiguration.maximumPercent", message);
    }
}

fn breaker(spec: &ServiceSpec, faults: &mut Faults) {
    let Some(breaker) = settings(spec).deployment_circuit_breaker else { return };
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
    let settings = settings(spec);
    let usual = if is_daemon(spec) { (0, 100) } else { (100, 200) };
    let (least, most) =
        (settings.minimum_healthy_percent.unwrap_or(usual.0), settings.maximum_percent.unwrap_or(usual.1));
    let before = faults.found.len();
    faults.range(&format!("{path}.minimumHealthyPercent"), least.into(), 0, 100, "percent");
    faults.range(&format!("{path}.maximumPercent"), most.into(), 100, 1000, "percent");
    if faults.found.len() > before {
        return;
    }
    if is_daemon(spec) {
        if least == 100 {
            let message =
                "is 100; of a DAEMON service, whose tasks are replaced one for one, no task could ever be stopped";
            faults.add(&format!("{path}.minimumHealthyPercent"), message.into());
        }
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
