//! What the autoscaler does, told as stories.

use steady_core::metric::{self, MINUTE, Metric, PERIOD, Point, Window};
use steady_core::v1::adjustment_type::Value as Adjustment;
use steady_core::v1::alarm_state::Value as AlarmState;
use steady_core::v1::max_capacity_breach_behavior::Value as Breach;
use steady_core::v1::predefined_metric_type::Value as Predefined;
use steady_core::v1::{
    Alarm, AlarmSpec, AlarmStatus, CustomizedMetricSpecification, Deployment, DeploymentSpec, DeploymentStatus,
    LoadBalancer, MetricData, MetricDataSpec, Object, PredefinedMetricSpecification,
    PredictiveScalingMetricSpecification, PredictiveScalingPolicyConfiguration, ScalableTarget, ScalableTargetAction,
    ScalableTargetSpec, ScalableTargetStatus, ScalingPolicy, ScalingPolicySpec, ScalingPolicyStatus, ScheduledAction,
    ServiceSpec, StepAdjustment, StepScalingPolicyConfiguration, SuspendedState,
    TargetTrackingScalingPolicyConfiguration, object, predictive_scaling_mode, rollout_state,
};
use steady_core::{Key, Kind, Timestamp, defaults, validate};

use super::{Silent, plan};
use crate::builders::World;

/// A service `web` that scales, and its clock.
pub(super) struct Story {
    pub(super) world: World,
    pub(super) now: Timestamp,
    windows: Vec<(Metric, Window)>,
}

pub(super) fn tracking(kind: Predefined, target: f64) -> TargetTrackingScalingPolicyConfiguration {
    TargetTrackingScalingPolicyConfiguration {
        target_value: target,
        predefined_metric_specification: Some(PredefinedMetricSpecification {
            predefined_metric_type: kind.into(),
            ..PredefinedMetricSpecification::default()
        }),
        ..TargetTrackingScalingPolicyConfiguration::default()
    }
}

/// So many tasks, all of them known, each at so many percent.
pub(super) fn each_at(percent: f64, tasks: f64) -> Point {
    Point { sum: percent * tasks, samples: tasks, expected: tasks, ..Point::of(percent) }
}

fn cpu(target: f64) -> TargetTrackingScalingPolicyConfiguration {
    tracking(Predefined::EcsServiceAverageCpuUtilization, target)
}

impl Story {
    /// So many tasks that run, of so many at least and at most.
    pub(super) fn new(tasks: i32, min: i32, max: i32) -> Self {
        // 2026-11-20 was a Friday.
        let now = Timestamp::parse("2026-11-20T12:00:00Z").expect("a time");
        let mut story = Story { world: World::new(), now, windows: Vec::new() };
        story.world.service("web", tasks);
        story.run(tasks);
        story.target(|spec| (spec.min_capacity, spec.max_capacity) = (Some(min), Some(max)));
        story.plan();
        story
    }

    fn put(&mut self, mut object: Object, generation: i64) {
        defaults::fill(&mut object);
        let faults = validate::object(&object);
        assert!(faults.is_empty(), "{faults:?}");
        object.meta_mut().generation = generation;
        self.world.put(object);
    }

    pub(super) fn target(&mut self, edit: impl Fn(&mut ScalableTargetSpec)) {
        let old = self.world.view.get(&Self::key()).cloned();
        let target = old.as_ref().and_then(|old| old.as_scalable_target().cloned()).unwrap_or_default();
        let mut spec = target.spec.unwrap_or_default();
        edit(&mut spec);
        let target = ScalableTarget { spec: Some(spec), status: target.status };
        let generation = old.map_or(0, |old| old.meta().generation) + 1;
        self.put(Object::new("default", "web", target), generation);
    }

    fn policy(&mut self, name: &str, spec: ScalingPolicySpec) {
        let spec = ScalingPolicySpec { resource_id: "service/default/web".into(), ..spec };
        self.put(Object::new("default", name, ScalingPolicy { spec: Some(spec), status: None }), 1);
    }

    pub(super) fn track(&mut self, name: &str, config: TargetTrackingScalingPolicyConfiguration) {
        let spec = ScalingPolicySpec {
            target_tracking_scaling_policy_configuration: Some(config),
            ..ScalingPolicySpec::default()
        };
        self.policy(name, spec);
    }

    fn step(&mut self, name: &str, kind: Adjustment, steps: &[(Option<f64>, Option<f64>, i32)]) {
        let adjustment = |(from, to, by): &(Option<f64>, Option<f64>, i32)| StepAdjustment {
            metric_interval_lower_bound: *from,
            metric_interval_upper_bound: *to,
            scaling_adjustment: *by,
        };
        let config = StepScalingPolicyConfiguration {
            adjustment_type: kind.into(),
            step_adjustments: steps.iter().map(adjustment).collect(),
            ..StepScalingPolicyConfiguration::default()
        };
        let spec =
            ScalingPolicySpec { step_scaling_policy_configuration: Some(config), ..ScalingPolicySpec::default() };
        self.policy(name, spec);
    }

    /// A forecast of the CPU, each task at 50 percent.
    fn predict(&mut self, name: &str, breach: Breach) {
        let config = PredictiveScalingPolicyConfiguration {
            metric_specifications: vec![PredictiveScalingMetricSpecification {
                target_value: 50.0,
                predefined_metric_pair_specification: Some(steady_core::v1::PredefinedMetricPairSpecification {
                    predefined_metric_type: "ECSServiceCPUUtilization".into(),
                    ..<_>::default()
                }),
            }],
            mode: predictive_scaling_mode::Value::ForecastAndScale.into(),
            max_capacity_breach_behavior: breach.into(),
            ..PredictiveScalingPolicyConfiguration::default()
        };
        let spec =
            ScalingPolicySpec { predictive_scaling_policy_configuration: Some(config), ..ScalingPolicySpec::default() };
        self.policy(name, spec);
    }

    pub(super) fn key() -> Key {
        Key::new(Kind::ScalableTarget, "default", "web")
    }

    /// So many tasks run.
    pub(super) fn run(&mut self, tasks: i32) {
        let mut object = Object::clone(self.world.view.get(&World::key("web")).expect("a service"));
        if let Some(object::Kind::Service(service)) = &mut object.kind {
            service.status.get_or_insert_default().running_count = Some(tasks);
        }
        self.world.put(object);
    }

    pub(super) fn desired(&self) -> i32 {
        let object = self.world.view.get(&World::key("web")).expect("a service");
        object.as_service().and_then(|s| s.spec.as_ref()).map_or(0, ServiceSpec::desired_count)
    }

    pub(super) fn status(&self) -> ScalableTargetStatus {
        let object = self.world.view.get(&Self::key()).expect("a target");
        object.as_scalable_target().and_then(|t| t.status.clone()).unwrap_or_default()
    }

    /// What a metric was in the period that ends now.
    pub(super) fn tell(&mut self, metric: &Metric, point: Point) {
        let index = self.now.0 / 1000 / PERIOD;
        let place = self.windows.iter().position(|(known, _)| known == metric).unwrap_or_else(|| {
            self.windows.push((metric.clone(), Window::default()));
            self.windows.len() - 1
        });
        let window = &mut self.windows[place].1;
        window.set(index - 1, point);
        window.roll(index, !metric.is_fine());
        let spec = MetricDataSpec {
            namespace: metric.namespace.clone(),
            metric_name: metric.name.clone(),
            dimensions: metric.dimensions(),
            server: 1,
            series: window.to_series(index),
        };
        self.world.put(Object::new("default", &metric.object_name(1), MetricData { spec: Some(spec) }));
    }

    pub(super) fn pass_period(&mut self) {
        self.now = Timestamp(self.now.0 + PERIOD * 1000);
    }

    pub(super) fn plan(&mut self) {
        let now = self.now;
        let alarms: Vec<Key> = self.world.view.of_kind(Kind::Alarm).map(|alarm| Key::of(alarm)).collect();
        for key in alarms.into_iter().chain([Self::key()]) {
            self.world.settle(|view| plan(view, &key, now, &Silent::default()));
        }
    }

    /// So many seconds at so many percent of CPU, of all tasks that run; each plan is carried out, and tasks start at once.
    fn cpu(&mut self, seconds: i64, percent: f64) {
        let metric = Metric::of_service(metric::CPU_UTILIZATION, "default", "web");
        for _ in 0..seconds / PERIOD {
            self.pass_period();
            let tasks = f64::from(self.running());
            self.tell(&metric, each_at(percent, tasks));
            self.plan();
        }
    }

    /// The same without anything known.
    fn silence(&mut self, seconds: i64) {
        for _ in 0..seconds / PERIOD {
            self.pass_period();
            self.plan();
        }
    }

    fn running(&self) -> i32 {
        self.world.service_status("web").running_count()
    }

    fn alarm(&self, name: &str) -> AlarmState {
        let object = self.world.view.get(&Key::new(Kind::Alarm, "default", name)).expect("an alarm");
        object.as_alarm().and_then(|a| a.status.as_ref()).expect("a status").state_value()
    }

    /// Why nothing happens.
    fn waits(&self) -> Vec<(&'static str, String)> {
        let plan = plan(&self.world.view, &Self::key(), self.now, &Silent::default());
        plan.waiting.into_iter().map(|waiting| (waiting.reason, waiting.message)).collect()
    }

    fn deployment(&mut self, state: rollout_state::Value) {
        let status = DeploymentStatus { rollout_state: state.into(), ..DeploymentStatus::default() };
        let spec = DeploymentSpec { service: "web".into(), ..DeploymentSpec::default() };
        self.world.put(Object::new("default", "web-1", Deployment { spec: Some(spec), status: Some(status) }));
    }
}

#[test]
fn a_load_above_the_target_brings_as_many_tasks_as_it_needs() {
    let mut story = Story::new(4, 1, 20);
    story.track("cpu", cpu(50.0));
    story.cpu(20, 90.0);
    assert_eq!(story.desired(), 4, "two periods are not three");
    story.cpu(10, 90.0);
    // 4 × 90 / 50 = 7.2.
    assert_eq!(story.desired(), 8);
    assert_eq!(story.alarm("TargetTracking-cpu-AlarmHigh"), AlarmState::Alarm);
    let activity = &story.status().activities[0];
    assert_eq!((activity.from, activity.to, activity.description.as_str()), (4, 8, "Setting desired count to 8."));
    assert_eq!(activity.cause, "alarm TargetTracking-cpu-AlarmHigh in state ALARM triggered policy cpu");
    assert_eq!(activity.details, "4 tasks at 90 %, to be at 50 %");
    // Nothing but the count.
    let object = story.world.view.get(&World::key("web")).expect("a service");
    assert_eq!(object.as_service().and_then(|s| s.spec.clone()).expect("a spec").task_definition, "web:1");
}

#[test]
fn what_is_on_its_way_counts_and_only_more_than_that_is_added() {
    let mut story = Story::new(4, 1, 40);
    story.track("cpu", cpu(50.0));
    story.cpu(30, 90.0);
    assert_eq!(story.desired(), 8);
    story.cpu(60, 95.0);
    assert_eq!(story.desired(), 8, "they are not there yet, and 4 × 95 / 50 is no more than 8");
    story.run(8);
    story.cpu(60, 95.0);
    assert_eq!(story.desired(), 8, "the cooldown lasts: what was added has to show");
    story.cpu(200, 95.0);
    // 8 × 95 / 50 = 15.2.
    assert_eq!(story.desired(), 16);
}

#[test]
fn tasks_leave_when_the_load_has_been_low_for_long_and_not_all_at_the_first_dip() {
    let mut story = Story::new(10, 2, 20);
    story.track("cpu", cpu(50.0));
    story.cpu(600, 20.0);
    story.cpu(60, 60.0);
    story.run(12);
    story.cpu(14 * MINUTE, 20.0);
    assert_eq!(story.desired(), 12, "the last fifteen minutes were not all below");
    story.cpu(3 * MINUTE, 20.0);
    // 12 × 20 / 50 = 4.8.
    assert_eq!(story.desired(), 5);
    story.run(5);
    story.cpu(4 * MINUTE, 10.0);
    assert_eq!(story.desired(), 5, "the cooldown lasts");
    story.cpu(16 * MINUTE, 10.0);
    assert_eq!(story.desired(), 2, "never fewer than its least");
}

#[test]
fn what_is_not_known_scales_nothing() {
    let mut story = Story::new(4, 1, 20);
    story.track("cpu", cpu(50.0));
    story.cpu(20, 90.0);
    story.silence(40);
    story.cpu(20, 90.0);
    assert_eq!(story.desired(), 4, "a gap: no three in a row");
    story.cpu(20 * MINUTE, 20.0);
    assert_eq!(story.desired(), 2);
    story.run(2);
    story.silence(3600);
    assert_eq!(story.desired(), 2);
    assert_eq!(story.alarm("TargetTracking-cpu-AlarmLow"), AlarmState::InsufficientData);
    assert!(story.waits().iter().any(|(reason, _)| *reason == "INSUFFICIENT_DATA"), "{:?}", story.waits());
}

#[test]
fn tasks_that_are_silent_are_neither_idle_nor_busy() {
    let metric = Metric::of_service(metric::CPU_UTILIZATION, "default", "web");
    let mut story = Story::new(4, 1, 20);
    story.track("cpu", cpu(50.0));
    for _ in 0..18 * 6 {
        story.pass_period();
        // Two of four tell that they do nothing.
        story.tell(&metric, Point { expected: 4.0, ..each_at(2.0, 2.0) });
        story.plan();
    }
    assert_eq!(story.desired(), 4, "the others may be at 100 %");
    for _ in 0..6 {
        story.pass_period();
        story.tell(&metric, Point { expected: 4.0, ..each_at(90.0, 2.0) });
        story.plan();
    }
    assert_eq!(story.desired(), 4, "the others may be idle: 45 % is not above 50 %");
}

#[test]
fn several_policies_agree_on_fewer_and_the_largest_wins_on_more() {
    let mut story = Story::new(4, 1, 50);
    story.track("cpu", cpu(50.0));
    let memory = tracking(Predefined::EcsServiceAverageMemoryUtilization, 40.0);
    story.track("memory", memory);
    let metric = Metric::of_service(metric::MEMORY_UTILIZATION, "default", "web");
    let both = |story: &mut Story, periods: i64, cpu: f64, memory: f64| {
        for _ in 0..periods {
            let tasks = f64::from(story.running());
            story.pass_period();
            story.tell(&Metric::of_service(metric::CPU_UTILIZATION, "default", "web"), each_at(cpu, tasks));
            story.tell(&metric, each_at(memory, tasks));
            story.plan();
        }
    };
    both(&mut story, 3, 60.0, 80.0);
    // 4.8 for the CPU, and 8 for the memory.
    assert_eq!(story.desired(), 8);
    story.run(8);
    both(&mut story, 20 * 6, 10.0, 38.0);
    assert_eq!(story.desired(), 8, "memory is where it should be");
    assert!(story.waits().is_empty() || story.waits()[0].0 == "HELD", "{:?}", story.waits());
    both(&mut story, 20 * 6, 10.0, 20.0);
    assert_eq!(story.desired(), 4, "1.6 and 4");
}

#[test]
fn nothing_is_taken_away_during_a_deployment_and_more_is_added() {
    let mut story = Story::new(8, 1, 20);
    story.track("cpu", cpu(50.0));
    story.deployment(rollout_state::Value::InProgress);
    story.cpu(30 * MINUTE, 10.0);
    assert_eq!(story.desired(), 8);
    assert!(story.waits().iter().any(|(_, message)| message.contains("a deployment is under way")));
    story.cpu(30, 60.0);
    assert_eq!(story.desired(), 10);
    story.run(10);
    story.deployment(rollout_state::Value::Completed);
    story.cpu(16 * MINUTE, 10.0);
    assert_eq!(story.desired(), 2);
}

#[test]
fn what_is_suspended_is_not_done() {
    let mut story = Story::new(4, 1, 20);
    story.track("cpu", cpu(50.0));
    let suspended = SuspendedState { dynamic_scaling_out_suspended: true, ..SuspendedState::default() };
    story.target(|spec| spec.suspended_state = Some(suspended));
    story.cpu(60, 90.0);
    assert_eq!(story.desired(), 4);
    assert_eq!(story.waits()[0].0, "SUSPENDED");
    let suspended = SuspendedState { dynamic_scaling_in_suspended: true, ..SuspendedState::default() };
    story.target(|spec| spec.suspended_state = Some(suspended));
    story.cpu(30 * MINUTE, 5.0);
    assert_eq!(story.desired(), 4);
    story.target(|spec| spec.suspended_state = None);
    story.cpu(10, 5.0);
    assert_eq!(story.desired(), 1);
}

#[test]
fn a_policy_may_leave_fewer_to_others() {
    let mut story = Story::new(4, 1, 20);
    story.track("cpu", TargetTrackingScalingPolicyConfiguration { disable_scale_in: true, ..cpu(50.0) });
    story.cpu(30 * MINUTE, 5.0);
    assert_eq!(story.desired(), 4);
}

#[test]
fn a_count_outside_its_bounds_stays_until_a_policy_acts() {
    let mut story = Story::new(4, 2, 10);
    story.track("cpu", cpu(50.0));
    story.world.edit_service("web", |spec| spec.desired_count = Some(1));
    story.run(1);
    story.cpu(60, 40.0);
    assert_eq!(story.desired(), 1);
    story.cpu(30, 55.0);
    assert_eq!(story.desired(), 2);
    story.world.edit_service("web", |spec| spec.desired_count = Some(15));
    story.run(15);
    story.cpu(10 * MINUTE, 60.0);
    assert_eq!(story.desired(), 15, "it has its most, and more");
    assert!(story.waits().iter().any(|(reason, _)| *reason == "AlreadyAtMaxCapacity"), "{:?}", story.waits());
    story.cpu(16 * MINUTE, 40.0);
    assert_eq!(story.desired(), 10);
}

#[test]
fn new_bounds_hold_at_once() {
    let mut story = Story::new(4, 1, 10);
    story.target(|spec| spec.min_capacity = Some(6));
    story.plan();
    assert_eq!(story.desired(), 6);
    story.target(|spec| (spec.min_capacity, spec.max_capacity) = (Some(1), Some(3)));
    story.plan();
    assert_eq!(story.desired(), 3);
}

#[test]
fn another_service_of_the_same_name_is_within_the_bounds_at_once() {
    let mut story = Story::new(4, 2, 10);
    let recreate = |story: &mut Story| {
        let mut object = Object::clone(story.world.view.get(&World::key("web")).expect("a service"));
        object.meta_mut().uid.push('x');
        story.world.put(object);
        story.world.edit_service("web", |spec| spec.desired_count = Some(1));
        story.plan();
    };
    recreate(&mut story);
    assert_eq!(story.desired(), 2);
    story.plan();
    story.world.edit_service("web", |spec| spec.desired_count = Some(1));
    story.plan();
    assert_eq!(story.desired(), 1, "what its user sets stays");
    recreate(&mut story);
    assert_eq!(story.desired(), 2);
}

#[test]
fn schedules_set_bounds_each_in_its_time_zone() {
    let action = |name: &str, schedule: &str, min: i32, max: i32| ScheduledAction {
        scheduled_action_name: name.into(),
        schedule: schedule.into(),
        timezone: "Europe/Berlin".into(),
        scalable_target_action: Some(ScalableTargetAction { min_capacity: Some(min), max_capacity: Some(max) }),
        ..ScheduledAction::default()
    };
    let mut story = Story::new(3, 2, 10);
    story.target(|spec| {
        spec.scheduled_actions =
            vec![action("evening", "cron(0 18 ? * MON-FRI *)", 5, 10), action("night", "cron(0 22 * * ? *)", 1, 2)];
    });
    story.plan();
    // Noon in UTC is 13:00 there: the night before is not made up for.
    assert_eq!(story.desired(), 3);
    let at = |story: &mut Story, time: &str| {
        story.now = Timestamp::parse(time).expect("a time");
        story.plan();
        story.desired()
    };
    assert_eq!(at(&mut story, "2026-11-20T16:59:59Z"), 3);
    let wake = plan(&story.world.view, &Story::key(), story.now, &Silent::default()).wake_at;
    assert_eq!(wake, Timestamp::parse("2026-11-20T17:00:00Z"));
    assert_eq!(at(&mut story, "2026-11-20T17:00:00Z"), 5);
    assert!(story.status().activities[0].cause.starts_with("scheduled action evening"));
    assert_eq!(at(&mut story, "2026-11-20T21:00:01Z"), 2);
    // It was away for days: the last one counts, and that was a night's.
    assert_eq!(at(&mut story, "2026-11-23T23:00:00Z"), 2);
    assert_eq!(at(&mut story, "2026-11-24T17:00:00Z"), 5);
    // The spec's bounds hold again when they are others.
    story.target(|spec| spec.max_capacity = Some(4));
    story.plan();
    assert_eq!(story.desired(), 4);
    let suspended = SuspendedState { scheduled_scaling_suspended: true, ..SuspendedState::default() };
    story.target(|spec| spec.suspended_state = Some(suspended));
    assert_eq!(at(&mut story, "2026-11-25T17:00:00Z"), 4);
    story.target(|spec| spec.suspended_state = None);
    assert_eq!(at(&mut story, "2026-11-25T17:30:00Z"), 4, "what was suspended is not made up for");
}

#[test]
fn requests_are_shared_among_tasks() {
    let mut story = Story::new(2, 1, 20);
    let balancer = LoadBalancer { target_group_arn: "front".into(), ..LoadBalancer::default() };
    story.world.edit_service("web", |spec| spec.load_balancers = vec![balancer.clone()]);
    story.track("requests", tracking(Predefined::AlbRequestCountPerTarget, 600.0));
    let target = |name: &str, world: &mut World| {
        world.task("web", "web-1", name, |status| {
            status.targets = vec![steady_core::v1::Target {
                target_group: "front".into(),
                state: steady_core::v1::target_state::Value::Healthy.into(),
                ..<_>::default()
            }];
        });
    };
    target("a", &mut story.world);
    target("b", &mut story.world);
    for _ in 0..3 {
        story.pass_period();
        // 500 in ten seconds are 3000 a minute.
        story.tell(&Metric::requests("front"), Point { samples: 1.0, expected: 1.0, ..Point::of(500.0) });
        story.plan();
    }
    assert_eq!(story.desired(), 5);
    assert_eq!(story.status().activities[0].details, "3000 requests a minute, 600 for each task");
    // A load balancer that does not tell makes nobody think that there are few requests.
    for _ in 0..20 * 6 {
        story.pass_period();
        story.tell(&Metric::requests("front"), Point { samples: 1.0, expected: 2.0, ..Point::of(10.0) });
        story.plan();
    }
    assert_eq!(story.desired(), 5);
}

#[test]
fn a_metric_of_ones_own_is_tracked_a_minute_at_a_time() {
    let mut story = Story::new(2, 1, 20);
    let own = CustomizedMetricSpecification {
        namespace: "Shop".into(),
        metric_name: "Backlog".into(),
        ..CustomizedMetricSpecification::default()
    };
    story.track(
        "backlog",
        TargetTrackingScalingPolicyConfiguration {
            target_value: 10.0,
            customized_metric_specification: Some(own),
            ..TargetTrackingScalingPolicyConfiguration::default()
        },
    );
    let metric = Metric::new("Shop", "Backlog", &[]);
    // A value a minute.
    for period in 0..24 {
        story.pass_period();
        if period % 6 == 2 {
            story.tell(&metric, Point::of(25.0));
        }
        story.plan();
    }
    assert_eq!(story.desired(), 5);
}

#[test]
fn steps_follow_how_far_the_threshold_is_exceeded() {
    let mut story = Story::new(10, 1, 40);
    let alarm = AlarmSpec {
        namespace: metric::ECS.into(),
        metric_name: metric::CPU_UTILIZATION.into(),
        dimensions: Metric::of_service("", "default", "web").dimensions(),
        period: 10,
        evaluation_periods: 2,
        threshold: Some(60.0),
        comparison_operator: steady_core::v1::comparison_operator::Value::GreaterThanOrEqualToThreshold.into(),
        alarm_actions: vec!["out".into()],
        ..AlarmSpec::default()
    };
    story.put(Object::new("default", "busy", Alarm { spec: Some(alarm.clone()), status: None }), 1);
    let idle = AlarmSpec {
        threshold: Some(20.0),
        comparison_operator: steady_core::v1::comparison_operator::Value::LessThanThreshold.into(),
        alarm_actions: vec!["in".into()],
        ..alarm
    };
    story.put(Object::new("default", "idle", Alarm { spec: Some(idle), status: None }), 1);
    let percent = Adjustment::PercentChangeInCapacity;
    story.step("out", percent, &[(Some(0.0), Some(15.0), 10), (Some(15.0), None, 50)]);
    story.step("in", Adjustment::ChangeInCapacity, &[(None, Some(0.0), -2)]);
    story.cpu(30, 62.0);
    assert_eq!(story.desired(), 11);
    story.run(11);
    story.cpu(30, 80.0);
    assert_eq!(story.desired(), 15, "more at once, from the ten that there were");
    story.run(15);
    story.cpu(200, 62.0);
    assert_eq!(story.desired(), 15, "within the cooldown");
    story.cpu(150, 10.0);
    assert_eq!(story.desired(), 13);
    assert_eq!(story.alarm("idle"), AlarmState::Alarm);
    story.run(13);
    story.cpu(200, 10.0);
    assert_eq!(story.desired(), 13, "within the cooldown");
}

#[test]
fn an_alarm_that_somebody_raises_steps_too() {
    let mut story = Story::new(2, 1, 40);
    story.step("out", Adjustment::ExactCapacity, &[(Some(0.0), None, 7)]);
    let spec = AlarmSpec { alarm_actions: vec!["out".into()], ..AlarmSpec::default() };
    let status = AlarmStatus { state_value: AlarmState::Alarm.into(), ..AlarmStatus::default() };
    story.put(Object::new("default", "hand", Alarm { spec: Some(spec), status: Some(status) }), 1);
    story.plan();
    assert_eq!(story.desired(), 7);
}

#[test]
fn a_forecast_has_tasks_there_before_the_load() {
    let mut story = Story::new(2, 1, 10);
    story.predict("daily", Breach::HonorMaxCapacity);
    story.plan();
    assert!(story.waits()[0].1.contains("knows the load of 0 hours"), "{:?}", story.waits());
    // Three days of a load that is high from 13:00 to 15:00.
    let hour = story.now.0 / 3_600_000;
    let load: Vec<f32> =
        (hour - 72..hour).map(|hour| if (13..15).contains(&(hour % 24)) { 300.0 } else { 60.0 }).collect();
    let key = Key::new(Kind::ScalingPolicy, "default", "daily");
    let mut object = Object::clone(story.world.view.get(&key).expect("a policy"));
    if let Some(object::Kind::ScalingPolicy(policy)) = &mut object.kind {
        let taken_until = story.now.0 / 60_000;
        let status = ScalingPolicyStatus {
            first_hour: hour - 72,
            load,
            taken_until,
            metric: Metric::of_service(metric::CPU_UTILIZATION, "default", "web").to_string(),
            ..<_>::default()
        };
        policy.status = Some(status);
    }
    story.world.put(object);
    story.plan();
    assert_eq!(story.desired(), 2);
    story.now = Timestamp(story.now.0 + 54 * 60_000);
    story.plan();
    assert_eq!(story.desired(), 2, "five minutes before the hour, and not six");
    story.now = Timestamp(story.now.0 + 60_000);
    story.plan();
    assert_eq!(story.desired(), 6);
    assert!(story.status().activities[0].cause.contains("forecast of policy daily"));
    story.now = Timestamp(story.now.0 + 6 * 3_600_000);
    story.plan();
    assert_eq!(story.desired(), 6, "it takes nothing away");
}

#[test]
fn a_target_without_a_service_says_so() {
    let mut story = Story::new(2, 1, 10);
    story.world.drop(&World::key("web"));
    assert_eq!(story.waits()[0].0, "SERVICE_NOT_FOUND");
}

#[test]
fn what_is_added_meanwhile_by_others_is_no_new_base() {
    let mut story = Story::new(4, 1, 60);
    let balancer = LoadBalancer { target_group_arn: "front".into(), ..LoadBalancer::default() };
    story.world.edit_service("web", |spec| spec.load_balancers = vec![balancer.clone()]);
    story.track("cpu", cpu(50.0));
    story.cpu(30, 90.0);
    assert_eq!(story.desired(), 8);
    // Somebody else adds one; the four that are measured are as busy as before.
    story.track("requests", tracking(Predefined::AlbRequestCountPerTarget, 600.0));
    for _ in 0..4 {
        story.pass_period();
        story.tell(&Metric::requests("front"), Point { expected: 1.0, ..Point::of(900.0) });
        story.tell(&Metric::of_service(metric::CPU_UTILIZATION, "default", "web"), each_at(90.0, 4.0));
        story.plan();
    }
    assert_eq!(story.desired(), 9, "5400 requests a minute are nine tasks, and the CPU needs no more than eight");
}

#[test]
fn a_forecast_above_the_most_is_kept_and_nobody_else_gets_more() {
    let mut story = Story::new(2, 1, 3);
    story.predict("daily", Breach::IncreaseMaxCapacity);
    story.track("cpu", TargetTrackingScalingPolicyConfiguration { scale_in_evaluation_seconds: 60, ..cpu(50.0) });
    let key = Key::new(Kind::ScalingPolicy, "default", "daily");
    let mut object = Object::clone(story.world.view.get(&key).expect("a policy"));
    let hour = story.now.0 / 3_600_000;
    if let Some(object::Kind::ScalingPolicy(policy)) = &mut object.kind {
        let metric = Metric::of_service(metric::CPU_UTILIZATION, "default", "web").to_string();
        let taken_until = story.now.0 / 60_000;
        // A load of five tasks, always.
        let load = vec![250.0; 72];
        policy.status =
            Some(ScalingPolicyStatus { first_hour: hour - 72, load, taken_until, metric, ..<_>::default() });
    }
    story.world.put(object);
    story.plan();
    assert_eq!(story.desired(), 5, "more than its most, as the forecast says");
    story.run(5);
    // It is quiet: the forecast stays the floor.
    story.cpu(20 * MINUTE, 5.0);
    assert_eq!((story.desired(), story.status().last_scale_in), (5, None));
    // And busy: there is no more than the forecast has allowed.
    story.cpu(10 * MINUTE, 95.0);
    assert_eq!(story.desired(), 5);
}

#[test]
fn several_things_that_are_waited_for_are_one_condition() {
    let mut story = Story::new(8, 1, 20);
    story.track("cpu", cpu(50.0));
    story.track("memory", tracking(Predefined::EcsServiceAverageMemoryUtilization, 40.0));
    story.deployment(rollout_state::Value::InProgress);
    // Nothing is known of the memory, and the CPU is idle: settles all the same.
    story.cpu(20 * MINUTE, 5.0);
    assert_eq!(story.desired(), 8);
    assert_eq!(story.status().conditions.len(), 1);
}

#[test]
fn editing_a_target_loses_no_schedule_and_runs_none_twice() {
    let action = ScheduledAction {
        scheduled_action_name: "evening".into(),
        schedule: "cron(0 18 * * ? *)".into(),
        scalable_target_action: Some(ScalableTargetAction { min_capacity: Some(5), max_capacity: None }),
        ..ScheduledAction::default()
    };
    let mut story = Story::new(3, 2, 10);
    story.target(|spec| spec.scheduled_actions = vec![action.clone()]);
    story.plan();
    // Nobody looks while it is due, and then the target is edited.
    story.now = Timestamp::parse("2026-11-20T18:01:00Z").expect("a time");
    let new = ScheduledAction {
        scheduled_action_name: "noon".into(),
        schedule: "cron(0 12 * * ? *)".into(),
        ..action.clone()
    };
    story.target(|spec| spec.scheduled_actions.push(new.clone()));
    story.plan();
    assert_eq!(story.desired(), 5);
    story.world.edit_service("web", |spec| spec.desired_count = Some(3));
    story.now = Timestamp::parse("2026-11-20T18:02:00Z").expect("a time");
    story.plan();
    assert_eq!(story.desired(), 3, "what a user sets stays");
}
