//! Deployments whose tasks fail, as both controllers of a service see them.

use steady_core::v1::health_status::Value as Health;
use steady_core::v1::rollout_state::Value as Rollout;
use steady_core::v1::stop_code::Value as StopCode;
use steady_core::v1::task_last_status::Value as Status;
use steady_core::v1::{DeploymentCircuitBreaker, DeploymentConfiguration};
use steady_core::v1::{TaskSpec, desired_status};

use super::*;
use crate::builders::World;

/// What the tasks of a task definition do.
#[derive(Clone, Copy)]
enum Fate {
    Run,
    FailToStart,
    Unhealthy,
    /// Runs until the next step.
    Exit,
}

/// A world in which time goes on, ten seconds at a time more than the throttle makes anyone wait.
struct Story {
    world: World,
    now: i64,
    /// Live tasks at the step before.
    live: usize,
    /// Milliseconds between steps.
    pace: i64,
    /// What tasks of `web:1` and `web:2` do.
    first: Fate,
    second: Fate,
}

impl Story {
    fn new(desired: i32, breaker: impl Into<Option<DeploymentCircuitBreaker>>) -> Self {
        let deployment_circuit_breaker = breaker.into();
        let mut world = World::new();
        world.service("web", desired);
        world.edit_service("web", |spec| {
            spec.deployment_configuration =
                Some(DeploymentConfiguration { deployment_circuit_breaker, ..DeploymentConfiguration::default() });
        });
        Story { world, now: 1_000_000, live: 0, pace: 30_000, first: Fate::Run, second: Fate::Run }
    }

    /// Both controllers until nothing is left to do, then the agents.
    fn step(&mut self) {
        let (key, now) = (World::key("web"), Timestamp(self.now));
        for _ in 0..5 {
            self.world.settle(|view| crate::deployment::plan(view, &key, now));
            self.world.settle(|view| plan(view, &key, now));
        }
        self.holds();
        let (first, second) = (self.first, self.second);
        let fate = |spec: &TaskSpec| if spec.task_definition == "web:2" { second } else { first };
        self.world.each_task(
            |spec, s| matches!(fate(spec), Fate::Exit) && s.last_status() == Status::Running,
            |_, s| {
                s.set_last_status(Status::Stopped);
                s.set_stop_code(StopCode::EssentialContainerExited);
                s.stopped_at = Some(now.into());
            },
        );
        self.world.each_task(
            |_, s| s.desired_status() == desired_status::Value::Running && s.last_status() < Status::Running,
            |spec, s| {
                "node".clone_into(&mut spec.container_instance);
                s.set_last_status(Status::Running);
                s.started_at = Some(now.into());
                match fate(spec) {
                    Fate::Run | Fate::Exit => {}
                    Fate::Unhealthy => s.set_health_status(Health::Unhealthy),
                    Fate::FailToStart => {
                        s.set_last_status(Status::Stopped);
                        s.set_desired_status(desired_status::Value::Stopped);
                        s.set_stop_code(StopCode::TaskFailedToStart);
                        s.started_at = None;
                        s.stopped_at = Some(now.into());
                    }
                }
            },
        );
        self.world.stop_unwanted(now);
        self.now += self.pace;
    }

    /// Floor, ceiling and one primary, in every state.
    fn holds(&mut self) {
        let service = self.world.view.get(&World::key("web")).expect("a service");
        let bounds = service.as_service().and_then(|s| s.spec.as_ref()).map(|s| service::bounds(s, s.desired_count()));
        let bounds = bounds.expect("a spec");
        let tasks = self.world.view.of_kind(Kind::Task).filter_map(|t| task::of(t));
        let live = tasks.filter(task::View::is_live).count();
        assert!(live <= self.live.max(bounds.ceiling as usize), "{live} tasks are above the ceiling");
        self.live = live;
        let primary = |d: &&std::sync::Arc<Object>| {
            d.as_deployment().and_then(|d| d.status.as_ref()).is_some_and(|s| s.role().as_str_name() == "PRIMARY")
        };
        assert_eq!(self.world.view.of_kind(Kind::Deployment).filter(primary).count(), 1);
    }

    fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.step();
        }
    }

    fn deploy(&mut self, definition: &str) {
        self.world.edit_service("web", |spec| definition.clone_into(&mut spec.task_definition));
        self.steps(20);
    }

    fn rollout(&self, deployment: &str) -> (Rollout, String) {
        let status = self.world.deployment(deployment).status;
        (status.rollout_state(), status.rollout_state_reason)
    }

    fn healthy_of(&self, deployment: &str) -> usize {
        let tasks = self.world.view.of_kind(Kind::Task).filter_map(|t| task::of(t));
        tasks.filter(|t| t.is_healthy() && t.spec.deployment == deployment).count()
    }

    fn attempts(&self, deployment: &str) -> i64 {
        self.world.deployment(deployment).status.attempts
    }
}

fn breaker(rollback: bool) -> DeploymentCircuitBreaker {
    DeploymentCircuitBreaker { enable: true, rollback, ..DeploymentCircuitBreaker::default() }
}

#[test]
fn tasks_that_fail_to_start_are_tried_for_ever_without_a_breaker() {
    let mut story = Story::new(2, None);
    story.steps(5);
    story.second = Fate::FailToStart;
    story.deploy("web:2");
    assert_eq!(story.rollout("web-2").0, Rollout::InProgress);
    assert_eq!(story.healthy_of("web-1"), 2, "the floor holds");
}

#[test]
fn a_deployment_whose_tasks_fail_is_given_up_and_the_one_before_has_its_place_again() {
    for (fate, desired) in [(Fate::FailToStart, 1), (Fate::FailToStart, 4), (Fate::Unhealthy, 1), (Fate::Unhealthy, 4)]
    {
        let mut story = Story::new(desired, breaker(true));
        story.steps(5);
        let before = story.world.wanted("web");
        story.second = fate;
        story.deploy("web:2");
        let (state, reason) = story.rollout("web-2");
        assert_eq!(state, Rollout::Failed);
        assert_eq!(reason, "ECS deployment circuit breaker: rolling back to deploymentId web-1.");
        assert_eq!(story.rollout("web-1"), (Rollout::Completed, "ECS deployment web-1 completed.".into()));
        assert_eq!(story.world.wanted("web"), before, "what ran goes on, and nothing else does");
        let status = story.world.service_status("web");
        assert_eq!((status.primary_deployment.as_str(), status.steady), ("web-1", true));
        assert_eq!(status.failed_rollout.expect("says so").rolled_back_to, "web-1");
        let told = story.world.events();
        let once = |text: &str| told.iter().filter(|event| *event == text).count() == 1;
        assert!(once("(service web) (deployment web-2) deployment failed: tasks failed to start."), "{told:?}");
        assert!(once("(service web) rolling back to (deployment web-1)."), "{told:?}");
        let attempts = story.attempts("web-2");
        story.steps(50);
        assert_eq!(story.attempts("web-2"), attempts, "it is not tried again");
        assert!((3..=3 + i64::from(desired) * 2).contains(&attempts), "{attempts} tries");
    }
}

#[test]
fn tasks_that_run_for_a_moment_make_no_room_and_complete_nothing() {
    let mut story = Story::new(2, breaker(true));
    story.pace = 3_000;
    story.steps(10);
    assert_eq!(story.rollout("web-1").0, Rollout::Completed);
    let before = story.world.wanted("web");
    story.second = Fate::Exit;
    story.world.edit_service("web", |spec| spec.task_definition = "web:2".into());
    for _ in 0..40 {
        story.step();
        let wanted = story.world.wanted("web");
        assert!(before.iter().all(|old| wanted.contains(old)), "none of the old ones goes");
    }
    assert_eq!(story.rollout("web-2").0, Rollout::Failed);
    assert!(story.world.service_status("web").steady);
}

#[test]
fn without_rollback_nothing_more_is_started_and_the_old_tasks_are_kept_up() {
    let mut story = Story::new(4, breaker(false));
    story.steps(5);
    story.second = Fate::FailToStart;
    story.deploy("web:2");
    assert_eq!(story.rollout("web-2").1, "ECS deployment circuit breaker: task failed to start.");
    let attempts = story.attempts("web-2");
    // One of the old ones dies: somebody has to serve.
    let victim = story.world.wanted("web")[0].0.clone();
    story.world.drop(&Key::new(Kind::Task, "default", &victim));
    story.steps(10);
    assert_eq!((story.healthy_of("web-1"), story.attempts("web-2")), (4, attempts));
    assert!(!story.world.service_status("web").steady, "what is wanted is not there");
}

#[test]
fn a_first_deployment_that_fails_stalls() {
    let mut story = Story::new(2, breaker(true));
    story.world.edit_service("web", |spec| spec.task_definition = "web:2".into());
    story.second = Fate::FailToStart;
    story.steps(30);
    assert_eq!(story.rollout("web-1").0, Rollout::Failed);
    let attempts = story.attempts("web-1");
    assert!((3..=6).contains(&attempts), "{attempts} tries");
    // What is wanted next is tried.
    story.deploy("web:1");
    assert_eq!(story.rollout("web-2").0, Rollout::Completed);
    assert_eq!(story.world.service_status("web").failed_rollout, None);
}

#[test]
fn what_was_rolled_back_to_is_not_rolled_back_from() {
    let mut story = Story::new(2, breaker(true));
    story.steps(5);
    story.second = Fate::FailToStart;
    story.world.edit_service("web", |spec| spec.task_definition = "web:2".into());
    story.steps(2);
    // From now on the old revision's tasks fail, too, and one is gone.
    story.first = Fate::FailToStart;
    let victim = story.world.wanted("web").into_iter().find(|(_, deployment)| deployment == "web-1").expect("one").0;
    story.world.drop(&Key::new(Kind::Task, "default", &victim));
    story.steps(40);
    let status = story.world.service_status("web");
    assert_eq!((status.primary_deployment.as_str(), status.steady), ("web-1", false));
    assert_eq!(
        story.rollout("web-1"),
        (Rollout::Failed, "ECS deployment circuit breaker: task failed to start.".into())
    );
    assert_eq!(story.rollout("web-2").0, Rollout::Failed);
    assert_eq!(story.healthy_of("web-1"), 1, "what runs is kept");
    let attempts = (story.attempts("web-1"), story.attempts("web-2"));
    story.steps(20);
    assert_eq!((story.attempts("web-1"), story.attempts("web-2")), attempts, "it has come to rest");
    let told = story.world.events().iter().filter(|event| event.contains("rolling back")).count();
    assert_eq!(told, 1);
    let failed = status.failed_rollout.expect("says so");
    assert_eq!((failed.deployment.as_str(), failed.rolled_back_to.as_str()), ("web-2", "web-1"));
    assert!(failed.reason.contains("rolled back to failed, too"), "{}", failed.reason);
    // Whoever wants the old one now has it tried again.
    story.first = Fate::Run;
    story.deploy("web:1");
    let status = story.world.service_status("web");
    assert_eq!((status.primary_deployment.as_str(), status.steady, status.failed_rollout), ("web-1", true, None));
}

#[test]
fn what_was_on_its_way_back_can_be_gone_back_to_again() {
    let mut story = Story::new(2, breaker(true));
    story.steps(5);
    story.second = Fate::FailToStart;
    story.world.edit_service("web", |spec| spec.task_definition = "web:2".into());
    let key = World::key("web");
    while story.world.service_status("web").failed_rollout.is_none() {
        story.step();
    }
    // A third wish, before the first is complete again; it fails as well.
    let before = story.world.wanted("web");
    story.world.edit_service("web", |spec| spec.force_new_deployment = 1);
    for _ in 0..20 {
        story.step();
    }
    assert_eq!(story.world.wanted("web"), before);
    assert_eq!(story.world.view.get(&key).map(|o| o.name()), Some("web"));
    assert_eq!(story.world.service_status("web").primary_deployment, "web-1");
}

#[test]
fn the_old_one_serves_again_after_nothing_was_wanted_for_a_while() {
    let mut story = Story::new(4, breaker(false));
    story.steps(5);
    story.second = Fate::FailToStart;
    story.deploy("web:2");
    for desired in [0, 4] {
        story.world.edit_service("web", |spec| spec.desired_count = Some(desired));
        story.steps(10);
        assert_eq!(story.healthy_of("web-1"), desired as usize);
    }
}

#[test]
fn a_new_wish_is_tried_even_if_it_is_the_one_that_failed() {
    let mut story = Story::new(2, breaker(true));
    story.steps(5);
    story.second = Fate::FailToStart;
    story.deploy("web:2");
    story.second = Fate::Run;
    story.steps(10);
    assert_eq!(story.healthy_of("web-1"), 2, "the same wish is not tried again by itself");
    story.world.edit_service("web", |spec| spec.force_new_deployment = 1);
    story.steps(20);
    let status = story.world.service_status("web");
    assert_eq!((status.primary_deployment.as_str(), status.failed_rollout, status.steady), ("web-4", None, true));
    assert_eq!(story.healthy_of("web-4"), 2);
}

#[test]
fn going_back_while_the_old_tasks_still_run_replaces_none_of_them() {
    let mut story = Story::new(2, breaker(true));
    story.steps(5);
    let before = story.world.wanted("web");
    story.world.edit_service("web", |spec| spec.task_definition = "web:2".into());
    story.step();
    story.deploy("web:1");
    assert_eq!(story.world.wanted("web"), before);
    assert_eq!(story.rollout("web-1").0, Rollout::Completed);
    assert_eq!(story.rollout("web-2"), (Rollout::Failed, "ECS deployment web-2 was replaced by a newer one.".into()));
}

#[test]
fn a_task_that_stays_healthy_sets_the_count_to_zero_unless_all_are_counted() {
    for (resets, state) in [(true, Rollout::InProgress), (false, Rollout::Failed)] {
        let mut breaker = breaker(true);
        breaker.reset_on_healthy_task = Some(resets);
        let mut story = Story::new(1, breaker);
        story.steps(5);
        story.world.edit_service("web", |spec| spec.task_definition = "web:2".into());
        // One that fails and one that runs for a while, in turn.
        for round in 0..8 {
            story.second = if round % 2 == 0 { Fate::FailToStart } else { Fate::Unhealthy };
            story.step();
            if round % 2 == 1 {
                story.world.each_task(
                    |spec, s| spec.task_definition == "web:2" && s.last_status() == Status::Running,
                    |_, s| s.set_health_status(Health::Unspecified),
                );
                // It stays healthy for long enough, and then it is gone.
                let (key, now) = (World::key("web"), Timestamp(story.now));
                story.world.settle(|view| plan(view, &key, now));
                story.world.each_task(
                    |spec, s| spec.task_definition == "web:2" && s.last_status() == Status::Running,
                    |_, s| {
                        s.set_last_status(Status::Stopped);
                        s.set_stop_code(StopCode::UserInitiated);
                        s.stopped_at = Some(now.into());
                    },
                );
            }
        }
        assert_eq!(story.rollout("web-2").0, state, "resets: {resets}");
    }
}
