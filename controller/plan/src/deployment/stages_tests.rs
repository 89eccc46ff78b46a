//! Blue/green, linear and canary deployments, hooks, alarms and bake times.
// Shares of the traffic are set, never computed with.
#![allow(clippy::float_cmp)]

use std::collections::BTreeSet;

use steady_core::v1::alarm_state::Value as AlarmState;
use steady_core::v1::deployment_lifecycle_hook_type::Value as HookType;
use steady_core::v1::deployment_strategy::Value as Strategy;
use steady_core::v1::hook_status::Value as HookStatus;
use steady_core::v1::hook_timeout_action::Value as TimeoutAction;
use steady_core::v1::task_last_status::Value as Status;
use steady_core::v1::{
    Alarm, AlarmStatus, CanaryConfiguration, DeploymentAlarms, DeploymentConfiguration, DeploymentLifecycleHook,
    LinearConfiguration,
};

use super::*;
use crate::builders::World;
use steady_core::v1::health_status::Value as Health;

const MINUTE: i64 = 60_000;

/// A service of three tasks that is complete, and is deployed from now on as `settings` say.
struct Story {
    world: World,
    now: i64,
    /// Stages, in the order in which `web-2` was in them, with the shares of production traffic of `web-1` and `web-2`.
    seen: Vec<(Stage, f64, f64)>,
}

impl Story {
    fn of(settings: &DeploymentConfiguration) -> Self {
        let mut world = World::new();
        world.service("web", 3);
        world.edit_service("web", |spec| spec.deployment_configuration = Some(settings.clone()));
        let mut story = Story { world, now: 0, seen: Vec::new() };
        story.minutes(40);
        assert_eq!(story.state("web-1"), Rollout::Completed);
        story.seen.clear();
        story
    }

    fn state(&self, name: &str) -> Rollout {
        self.world.deployment(name).status.rollout_state()
    }

    /// Controllers and agents, every twenty seconds, for so long.
    fn minutes(&mut self, count: i64) {
        for _ in 0..count * 3 {
            self.round();
        }
    }

    fn round(&mut self) {
        self.now += 20_000;
        let (now, key) = (Timestamp(self.now), World::key("web"));
        self.world.now = now;
        for _ in 0..2 {
            self.world.settle(|view| crate::service::plan(view, &key, now));
            // One stage at a time.
            for group in plan(&self.world.view, &key, now).publish(&self.world.view, None, "test", now) {
                self.world.carry_out_all(group);
            }
            self.look();
        }
        self.world.each_task(
            |_, s| s.last_status() < Status::Running,
            |spec, s| {
                "node".clone_into(&mut spec.container_instance);
                s.set_last_status(Status::Running);
                s.started_at = Some(Timestamp(now.0 - 15_000).into());
            },
        );
        self.world.stop_unwanted(now);
    }

    fn look(&mut self) {
        let green = Key::new(Kind::Deployment, "default", "web-2");
        if self.world.view.get(&green).is_none() {
            return;
        }
        let (blue, green) = (self.world.deployment("web-1"), self.world.deployment("web-2"));
        let weight = |found: &crate::builders::Found| found.spec.production_traffic_weight();
        let seen = (green.status.lifecycle_stage(), weight(&blue), weight(&green));
        if self.seen.last() != Some(&seen) {
            self.seen.push(seen);
        }
        if green.spec.production_traffic_weight.is_some() && green.status.lifecycle_stage() != Stage::Unspecified {
            assert!((weight(&blue) + weight(&green) - 100.0).abs() < 0.001, "{seen:?}");
        }
    }

    /// Gives the service hooks from now on.
    fn hooks(&mut self, hooks: &[DeploymentLifecycleHook]) {
        self.world.edit_service("web", |spec| {
            spec.deployment_configuration.as_mut().expect("settings").lifecycle_hooks = hooks.to_vec();
        });
    }

    fn deploy(&mut self) {
        self.world.edit_service("web", |spec| spec.task_definition = "web:2".into());
    }

    /// Wanted tasks of both deployments.
    fn tasks(&self) -> (usize, usize) {
        let wanted = self.world.wanted("web");
        let of = |name: &str| wanted.iter().filter(|(_, deployment)| deployment == name).count();
        (of("web-1"), of("web-2"))
    }

    fn stages(&self) -> Vec<Stage> {
        let mut stages: Vec<Stage> = self.seen.iter().map(|(stage, _, _)| *stage).collect();
        stages.dedup();
        stages
    }

    /// Shares that the new deployment had, in order.
    fn shares(&self) -> Vec<f64> {
        let mut shares: Vec<f64> = self.seen.iter().map(|(_, _, green)| *green).collect();
        shares.dedup();
        shares
    }

    fn raise(&mut self, name: &str, state: AlarmState) {
        let status = AlarmStatus { state_value: state.into(), ..AlarmStatus::default() };
        self.world.put(Object::new("default", name, Alarm { spec: None, status: Some(status) }));
    }

    fn answer(&mut self, answer: &Answer) {
        let (key, now) = (World::key("web"), Timestamp(self.now));
        let calls = calls(&self.world.view, &key, now);
        let answers: Vec<_> = calls.into_iter().map(|call| (call.hook_id, answer.clone())).collect();
        let plan = answered(&self.world.view, &key, &answers, now);
        plan.groups.into_iter().for_each(|group| self.world.carry_out_all(group));
    }
}

fn blue_green() -> DeploymentConfiguration {
    DeploymentConfiguration {
        strategy: Strategy::BlueGreen.into(),
        bake_time_in_minutes: Some(5),
        ..DeploymentConfiguration::default()
    }
}

fn hook(kind: HookType, stage: Stage, action: TimeoutAction) -> DeploymentLifecycleHook {
    DeploymentLifecycleHook {
        r#type: kind.into(),
        hook_target: "http://hook/x".into(),
        lifecycle_stages: vec![stage.into()],
        timeout_in_minutes: Some(10),
        timeout_action: action.into(),
        ..DeploymentLifecycleHook::default()
    }
}

#[test]
fn blue_green_goes_through_every_stage_in_order_and_keeps_both_until_the_bake_time_is_over() {
    let mut story = Story::of(&blue_green());
    story.deploy();
    story.minutes(5);
    assert_eq!(story.world.deployment("web-2").status.lifecycle_stage(), Stage::BakeTime);
    assert_eq!(story.tasks(), (3, 3), "going back would take no time");
    story.minutes(10);
    assert_eq!(
        story.stages(),
        [
            Stage::Unspecified,
            Stage::ReconcileService,
            Stage::PreScaleUp,
            Stage::ScaleUp,
            Stage::PostScaleUp,
            Stage::TestTrafficShift,
            Stage::PostTestTrafficShift,
            Stage::PreProductionTrafficShift,
            Stage::ProductionTrafficShift,
            Stage::PostProductionTrafficShift,
            Stage::BakeTime,
            Stage::CleanUp,
            Stage::Unspecified
        ]
    );
    assert_eq!(story.shares(), [0.0, 100.0]);
    assert_eq!((story.tasks(), story.state("web-2")), ((0, 3), Rollout::Completed));
    assert!(story.world.service_status("web").steady);
}

#[test]
fn canary_gives_a_small_share_and_after_its_bake_time_all() {
    let mut story = Story::of(&DeploymentConfiguration {
        strategy: Strategy::Canary.into(),
        canary_configuration: Some(CanaryConfiguration {
            canary_percent: Some(2.5),
            canary_bake_time_in_minutes: Some(10),
        }),
        ..DeploymentConfiguration::default()
    });
    story.deploy();
    story.minutes(9);
    assert_eq!(story.shares(), [0.0, 2.5]);
    assert_eq!(story.tasks(), (3, 3), "always the full size");
    story.minutes(10);
    assert_eq!(story.shares(), [0.0, 2.5, 100.0]);
    assert_eq!((story.tasks(), story.state("web-2")), ((0, 3), Rollout::Completed));
}

#[test]
fn linear_gives_equal_steps_and_does_not_bake_after_the_last() {
    let mut story = Story::of(&DeploymentConfiguration {
        strategy: Strategy::Linear.into(),
        linear_configuration: Some(LinearConfiguration {
            step_percent: Some(40.0),
            step_bake_time_in_minutes: Some(6),
        }),
        ..DeploymentConfiguration::default()
    });
    story.deploy();
    story.minutes(20);
    assert_eq!(story.shares(), [0.0, 40.0, 80.0, 100.0]);
    assert_eq!(story.state("web-2"), Rollout::Completed);
}

#[test]
fn a_pause_waits_until_it_is_told_to_go_on() {
    let pause = hook(HookType::Pause, Stage::PostScaleUp, TimeoutAction::Unspecified);
    let mut story = Story::of(&blue_green());
    story.hooks(&[pause]);
    story.deploy();
    story.minutes(5);
    let status = story.world.deployment("web-2").status;
    assert_eq!(status.lifecycle_stage(), Stage::PostScaleUp);
    assert_eq!(status.hooks[0].status(), HookStatus::AwaitingAction);
    assert_eq!(status.hooks[0].hook_id, "POST_SCALE_UP-0");
    let mut object = Object::clone(story.world.view.get(&Key::new(Kind::Deployment, "default", "web-2")).expect("it"));
    if let Some(object::Kind::Deployment(deployment)) = &mut object.kind {
        deployment.status.as_mut().expect("a status").hooks[0].set_status(HookStatus::Succeeded);
    }
    story.world.put(object);
    story.minutes(10);
    assert_eq!(story.state("web-2"), Rollout::Completed);
}

#[test]
fn a_pause_that_nobody_ends_is_rolled_back_or_goes_on_as_it_says() {
    for (action, ends) in [(TimeoutAction::Rollback, Rollout::Failed), (TimeoutAction::Continue, Rollout::Completed)] {
        let pause = hook(HookType::Pause, Stage::PreScaleUp, action);
        let mut story = Story::of(&blue_green());
        story.hooks(&[pause]);
        story.deploy();
        story.minutes(9);
        assert_eq!(story.state("web-2"), Rollout::InProgress);
        assert_eq!(story.tasks(), (3, 0), "nothing was started yet");
        story.minutes(20);
        assert_eq!(story.state("web-2"), ends);
    }
}

#[test]
fn hooks_are_asked_until_they_answer_and_before_each_step_of_traffic() {
    let mut settings = blue_green();
    settings.strategy = Strategy::Linear.into();
    settings.linear_configuration =
        Some(LinearConfiguration { step_percent: Some(50.0), step_bake_time_in_minutes: Some(0) });
    settings.lifecycle_hooks = vec![hook(HookType::Http, Stage::PreProductionTrafficShift, TimeoutAction::Unspecified)];
    let mut story = Story::of(&DeploymentConfiguration { lifecycle_hooks: Vec::new(), ..settings.clone() });
    story.world.edit_service("web", |spec| spec.deployment_configuration = Some(settings.clone()));
    story.deploy();
    story.minutes(5);
    let key = World::key("web");
    let asked = calls(&story.world.view, &key, Timestamp(story.now));
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].stage, asked[0].url.as_str()), ("PRE_PRODUCTION_TRAFFIC_SHIFT", "http://hook/x"));
    assert_eq!((asked[0].deployment.as_str(), asked[0].weights), ("web-2", (0.0, 100.0)));
    story.answer(&Answer::Later(Duration::from_secs(60), String::new()));
    assert!(calls(&story.world.view, &key, Timestamp(story.now)).is_empty());
    let again = calls(&story.world.view, &key, Timestamp(story.now + MINUTE));
    assert_eq!(again[0].execution_id, asked[0].execution_id);
    story.minutes(1);
    story.answer(&Answer::Succeeded);
    story.minutes(1);
    let next = calls(&story.world.view, &key, Timestamp(story.now));
    assert_eq!(next[0].weights.0, 50.0);
    assert_ne!(next[0].execution_id, asked[0].execution_id);
    story.answer(&Answer::Succeeded);
    story.minutes(10);
    assert_eq!(story.state("web-2"), Rollout::Completed);
}

#[test]
fn a_hook_that_fails_gives_the_traffic_back_at_once_and_the_old_tasks_were_never_touched() {
    let mut story = Story::of(&blue_green());
    let before: BTreeSet<(String, String)> = story.world.wanted("web").into_iter().collect();
    story.hooks(&[hook(HookType::Http, Stage::PostProductionTrafficShift, TimeoutAction::Unspecified)]);
    story.deploy();
    story.minutes(5);
    assert_eq!(story.shares(), [0.0, 100.0]);
    story.answer(&Answer::Failed("answered FAILED".into()));
    story.minutes(5);
    let after: BTreeSet<(String, String)> = story.world.wanted("web").into_iter().collect();
    assert_eq!(before, after);
    assert_eq!(story.shares(), [0.0, 100.0, 0.0]);
    assert_eq!((story.state("web-1"), story.state("web-2")), (Rollout::Completed, Rollout::Failed));
    let failed = story.world.service_status("web").failed_rollout.expect("told");
    assert_eq!(failed.reason, "lifecycle hook POST_PRODUCTION_TRAFFIC_SHIFT-0 failed: answered FAILED.");
    assert_eq!(failed.rolled_back_to, "web-1");
}

#[test]
fn an_alarm_ends_a_deployment_unless_it_was_raised_before_and_no_longer_once_it_is_complete() {
    for (strategy, early) in [(Strategy::BlueGreen, true), (Strategy::BlueGreen, false), (Strategy::Rolling, false)] {
        let mut settings = blue_green();
        settings.set_strategy(strategy);
        settings.alarms = Some(DeploymentAlarms { alarm_names: vec!["errors".into()], enable: true, rollback: true });
        let mut story = Story::of(&settings);
        if early {
            story.raise("errors", AlarmState::Alarm);
        }
        story.deploy();
        story.minutes(4);
        assert_eq!(story.world.deployment("web-2").status.lifecycle_stage(), Stage::BakeTime, "{strategy:?}");
        story.raise("errors", AlarmState::Alarm);
        story.minutes(10);
        let expected = if early { Rollout::Completed } else { Rollout::Failed };
        assert_eq!(story.state("web-2"), expected, "{strategy:?} {early}");
        assert_eq!(story.tasks(), if early { (0, 3) } else { (3, 0) });
        assert_eq!(story.state("web-1"), Rollout::Completed);
        if early {
            story.raise("errors", AlarmState::Ok);
            story.raise("errors", AlarmState::Alarm);
            story.minutes(2);
            assert_eq!(story.state("web-2"), Rollout::Completed);
        }
    }
}

#[test]
fn a_deployment_that_takes_another_one_s_place_on_its_way_starts_from_what_served() {
    let mut story = Story::of(&blue_green());
    story.deploy();
    story.minutes(5);
    assert_eq!(story.world.deployment("web-2").spec.production_traffic_weight(), 100.0);
    story.world.edit_service("web", |spec| spec.force_new_deployment = 7);
    story.round();
    let weight = |story: &Story, name: &str| story.world.deployment(name).spec.production_traffic_weight();
    assert_eq!((weight(&story, "web-1"), weight(&story, "web-2")), (100.0, 0.0));
    assert_eq!(story.state("web-2"), Rollout::Failed);
    story.minutes(15);
    assert_eq!(story.state("web-3"), Rollout::Completed);
    assert_eq!((weight(&story, "web-1"), weight(&story, "web-3")), (0.0, 100.0));
    assert_eq!(story.world.wanted("web").len(), 3);
}

#[test]
fn going_back_on_the_way_gives_the_traffic_back_and_needs_no_stages() {
    let mut story = Story::of(&blue_green());
    story.deploy();
    story.minutes(5);
    story.world.edit_service("web", |spec| spec.task_definition = "web:1".into());
    story.minutes(1);
    assert_eq!(story.world.deployment("web-1").spec.production_traffic_weight(), 100.0);
    story.minutes(2);
    assert_eq!((story.tasks(), story.state("web-1")), ((3, 0), Rollout::Completed));
}

impl Story {
    fn weight(&self, name: &str) -> f64 {
        self.world.deployment(name).spec.production_traffic_weight()
    }

    /// Ends the pause of a deployment.
    fn go_on(&mut self, name: &str) {
        let key = Key::new(Kind::Deployment, "default", name);
        let mut object = Object::clone(self.world.view.get(&key).expect("a deployment"));
        if let Some(object::Kind::Deployment(deployment)) = &mut object.kind {
            deployment.status.as_mut().expect("a status").hooks[0].set_status(HookStatus::Succeeded);
        }
        self.world.put(object);
    }
}

#[test]
fn a_pause_of_two_days_that_is_ended_goes_on() {
    let mut pause = hook(HookType::Pause, Stage::PostScaleUp, TimeoutAction::Unspecified);
    pause.timeout_in_minutes = Some(4320);
    let mut story = Story::of(&blue_green());
    story.hooks(&[pause]);
    story.deploy();
    story.minutes(3);
    story.now += 48 * 60 * MINUTE;
    story.minutes(1);
    assert_eq!(story.state("web-2"), Rollout::InProgress);
    story.go_on("web-2");
    story.minutes(10);
    assert_eq!(story.state("web-2"), Rollout::Completed);
}

#[test]
fn what_has_taken_over_keeps_the_traffic_when_the_next_one_comes_before_the_old_one_is_gone() {
    let mut story = Story::of(&blue_green());
    story.deploy();
    story.round();
    while story.world.deployment("web-2").status.lifecycle_stage() != Stage::CleanUp {
        story.round();
    }
    story.world.edit_service("web", |spec| spec.force_new_deployment = 7);
    for _ in 0..3 {
        story.round();
        assert_eq!((story.weight("web-1"), story.weight("web-2"), story.weight("web-3")), (0.0, 100.0, 0.0));
    }
    assert_eq!(story.state("web-2"), Rollout::Completed);
    story.minutes(15);
    assert_eq!((story.state("web-3"), story.weight("web-3")), (Rollout::Completed, 100.0));
}

#[test]
fn the_first_deployment_keeps_the_traffic_that_it_has_when_another_one_takes_its_place() {
    let mut world = World::new();
    world.service("web", 3);
    let mut settings = blue_green();
    settings.lifecycle_hooks =
        vec![hook(HookType::Pause, Stage::PostProductionTrafficShift, TimeoutAction::Unspecified)];
    world.edit_service("web", |spec| spec.deployment_configuration = Some(settings.clone()));
    let mut story = Story { world, now: 0, seen: Vec::new() };
    story.minutes(3);
    assert_eq!(story.weight("web-1"), 100.0);
    story.deploy();
    for _ in 0..6 {
        story.round();
        assert_eq!(story.weight("web-1") + story.weight("web-2"), 100.0);
    }
    story.go_on("web-2");
    story.minutes(10);
    assert_eq!((story.state("web-2"), story.tasks()), (Rollout::Completed, (0, 3)));
}

#[test]
fn scaling_to_none_and_back_on_the_way_does_not_forget_what_served() {
    let mut story = Story::of(&blue_green());
    story.hooks(&[hook(HookType::Pause, Stage::PostScaleUp, TimeoutAction::Unspecified)]);
    story.deploy();
    story.minutes(2);
    story.world.edit_service("web", |spec| spec.desired_count = Some(0));
    story.minutes(1);
    assert_eq!(story.tasks(), (0, 0));
    story.world.edit_service("web", |spec| spec.desired_count = Some(3));
    story.minutes(1);
    assert_eq!((story.tasks(), story.weight("web-1")), ((3, 3), 100.0));
}

#[test]
fn no_traffic_goes_to_tasks_that_are_gone() {
    let mut story = Story::of(&blue_green());
    story.hooks(&[hook(HookType::Pause, Stage::PostTestTrafficShift, TimeoutAction::Unspecified)]);
    story.deploy();
    story.minutes(3);
    // Its tasks do not answer any more while it pauses.
    story.world.each_task(|spec, _| spec.deployment == "web-2", |_, s| s.set_health_status(Health::Unhealthy));
    story.go_on("web-2");
    story.now += 1;
    let (key, now) = (World::key("web"), Timestamp(story.now));
    for _ in 0..5 {
        let plan = plan(&story.world.view, &key, now);
        plan.groups.into_iter().for_each(|group| story.world.carry_out_all(group));
    }
    assert_eq!((story.weight("web-1"), story.weight("web-2")), (100.0, 0.0));
}
