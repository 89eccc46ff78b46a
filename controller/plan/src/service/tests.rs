use steady_core::v1::rollout_state::Value as Rollout;
use steady_core::v1::stop_code::Value as StopCode;
use steady_core::v1::{TaskSpec, TaskStatus, desired_status};

use super::*;
use crate::builders::World;
use steady_core::v1::health_status::Value as Health;
use steady_core::v1::object;
use steady_core::v1::task_last_status::Value as Status;

/// Both controllers of a service, until nothing is left to do.
fn settle_at(world: &mut World, now: i64) {
    let key = World::key("web");
    for _ in 0..5 {
        world.settle(|view| crate::deployment::plan(view, &key, Timestamp(now)));
        world.settle(|view| plan(view, &key, Timestamp(now)));
    }
}

fn settle(world: &mut World) {
    settle_at(world, 1_000_000);
}

/// Agents: everything wanted runs, everything unwanted stops.
fn agents(world: &mut World) {
    world.each_task(
        |_, s| s.desired_status() == desired_status::Value::Running && s.last_status() < Status::Running,
        |spec, s| {
            "node".clone_into(&mut spec.container_instance);
            s.set_last_status(Status::Running);
            s.started_at = Some(Timestamp(500_000).into());
        },
    );
    world.stop_unwanted(Timestamp(1_000_000));
}

fn converge(world: &mut World) {
    for _ in 0..20 {
        settle(world);
        agents(world);
    }
}

fn running(world: &World) -> (i32, i32, bool) {
    let status = world.service_status("web");
    (status.running_count(), status.pending_count(), status.steady)
}

#[test]
fn a_service_reaches_its_count_and_says_so_once() {
    let mut world = World::new();
    world.service("web", 3);
    settle(&mut world);
    assert_eq!(running(&world), (0, 3, false));
    converge(&mut world);
    assert_eq!(running(&world), (3, 0, true));
    let steady = world.events().iter().filter(|e| *e == "(service web) has reached a steady state.").count();
    assert_eq!(steady, 1);
}

#[test]
fn scaling_out_and_in_reaches_the_new_count() {
    let mut world = World::new();
    world.service("web", 1);
    converge(&mut world);
    for count in [5, 2, 0, 3] {
        world.edit_service("web", |spec| spec.desired_count = Some(count));
        converge(&mut world);
        assert_eq!(running(&world), (count, 0, true));
        assert_eq!(world.wanted("web").len(), count as usize);
    }
}

#[test]
fn a_task_that_died_is_replaced_by_a_new_one() {
    let mut world = World::new();
    world.service("web", 2);
    converge(&mut world);
    let (dead, _) = world.wanted("web")[0].clone();
    let key = Key::new(Kind::Task, "default", &dead);
    let mut object = Object::clone(world.view.get(&key).expect("a task"));
    if let Some(object::Kind::Task(task)) = &mut object.kind {
        let status = task.status.as_mut().expect("a status");
        status.set_last_status(Status::Stopped);
        status.set_stop_code(StopCode::EssentialContainerExited);
        status.stopped_at = Some(Timestamp(900_000).into());
    }
    world.put(object);
    converge(&mut world);
    assert_eq!(running(&world), (2, 0, true));
    assert!(world.wanted("web").iter().all(|(name, _)| *name != dead));
}

#[test]
fn a_new_definition_replaces_every_task_within_floor_and_ceiling() {
    let mut world = World::new();
    world.service("web", 4);
    world.edit_service("web", |spec| {
        spec.deployment_configuration = Some(steady_core::v1::DeploymentConfiguration {
            minimum_healthy_percent: Some(50),
            maximum_percent: Some(125),
            ..Default::default()
        });
    });
    converge(&mut world);
    world.edit_service("web", |spec| spec.task_definition = "web:2".into());
    for _ in 0..30 {
        settle(&mut world);
        let tasks: Vec<_> = world.view.of_kind(Kind::Task).filter_map(|t| task::of(t)).collect();
        assert!(tasks.iter().filter(|t| t.is_live()).count() <= 5, "the ceiling holds");
        assert!(tasks.iter().filter(|t| t.is_healthy()).count() >= 2, "the floor holds");
        agents(&mut world);
    }
    assert_eq!(running(&world), (4, 0, true));
    assert!(world.wanted("web").iter().all(|(_, deployment)| deployment == "web-2"));
}

#[test]
fn a_task_that_fails_its_health_check_goes_once_its_replacement_is_healthy() {
    let mut world = World::new();
    world.service("web", 1);
    converge(&mut world);
    let (sick, _) = world.wanted("web")[0].clone();
    world.each_task(|_, _| true, |_, s| s.set_health_status(Health::Unhealthy));
    settle(&mut world);
    assert_eq!(world.wanted("web").len(), 2, "the replacement comes first");
    assert!(world.wanted("web").iter().any(|(name, _)| *name == sick));
    world.each_task(
        |_, s| s.last_status() < Status::Running,
        |_, s| {
            s.set_last_status(Status::Running);
            s.set_health_status(Health::Healthy);
        },
    );
    converge(&mut world);
    assert_eq!(world.wanted("web").len(), 1);
    assert_eq!(world.task_status(&sick).stopped_reason, "Task failed container health checks");
}

#[test]
fn failing_checks_are_not_counted_in_the_grace_period() {
    let mut world = World::new();
    world.service("web", 1);
    world.edit_service("web", |spec| spec.health_check_grace_period_seconds = Some(600));
    converge(&mut world);
    world.each_task(|_, _| true, |_, s| s.set_health_status(Health::Unhealthy));
    settle_at(&mut world, 1_099_000);
    assert_eq!(world.wanted("web").len(), 1, "it started at 500 s, and 600 s are not over");
    settle_at(&mut world, 1_100_000);
    assert_eq!(world.wanted("web").len(), 2, "now its replacement comes");
}

#[test]
fn tasks_that_fail_at_once_are_started_less_and_less_often() {
    let mut world = World::new();
    world.service("web", 1);
    let mut starts = 0;
    for second in 1_000..1_060 {
        settle_at(&mut world, second * 1000);
        let wanted = world.wanted("web").len();
        starts += wanted;
        world.each_task(
            |_, s| s.last_status() < Status::Stopped,
            |_, s| {
                s.set_last_status(Status::Stopped);
                s.set_stop_code(StopCode::TaskFailedToStart);
                s.stopped_reason = "CannotPullContainerError: no such image".into();
                s.stopped_at = Some(Timestamp(second * 1000 + 1).into());
            },
        );
    }
    assert!((5..=9).contains(&starts), "{starts} starts in a minute");
    let condition = world.service_status("web").conditions[0].clone();
    assert!(condition.message.contains("unable to consistently start tasks"), "{condition:?}");
    assert!(condition.message.contains("no such image"), "{condition:?}");
}

#[test]
fn a_failure_that_is_over_is_forgotten_once_and_for_all() {
    let mut world = World::new();
    world.service("web", 1);
    settle_at(&mut world, 1_000_000);
    world.each_task(
        |_, _| true,
        |_, s| {
            s.set_last_status(Status::Stopped);
            s.set_stop_code(StopCode::TaskFailedToStart);
            s.stopped_at = Some(Timestamp(1_000_500).into());
        },
    );
    settle_at(&mut world, 1_001_000);
    world.each_task(
        |_, s| s.last_status() < Status::Stopped,
        |spec, s| {
            "node".clone_into(&mut spec.container_instance);
            s.set_last_status(Status::Running);
            s.started_at = Some(Timestamp(1_001_000).into());
        },
    );
    // Settling panics when a plan is never satisfied; the failed task is still there to be seen.
    settle_at(&mut world, 1_020_000);
    assert_eq!(world.service_status("web").throttle.map(|t| t.failures), Some(0));
    assert_eq!(running(&world), (1, 0, true));
}

#[test]
fn a_task_that_cannot_be_placed_makes_its_service_say_why() {
    let mut world = World::new();
    world.service("web", 1);
    settle(&mut world);
    world.each_task(
        |_, _| true,
        |_, s| {
            let message = "1 instance: insufficient memory";
            steady_core::condition::set_waiting(
                &mut s.conditions,
                "scheduler",
                "RESOURCE:MEMORY",
                message,
                Timestamp(0),
            );
        },
    );
    settle(&mut world);
    let waiting = world.service_status("web").conditions[0].clone();
    assert!(waiting.message.ends_with("Reason: 1 instance: insufficient memory"), "{waiting:?}");
}

#[test]
fn what_one_controller_says_of_a_service_is_not_taken_back_by_another() {
    let mut world = World::new();
    world.service("web", 1);
    settle(&mut world);
    world.each_task(
        |_, _| true,
        |_, s| {
            steady_core::condition::set_waiting(&mut s.conditions, "scheduler", "X", "no room", Timestamp(0));
        },
    );
    let key = World::key("web");
    let publish = |view: &View, plan: Plan, source| plan.publish(view, Some(&key), source, Timestamp(0));
    for group in publish(&world.view, plan(&world.view, &key, Timestamp(0)), "service") {
        world.carry_out_all(group);
    }
    assert_eq!(world.service_status("web").conditions.len(), 1);
    let other = publish(&world.view, crate::deployment::plan(&world.view, &key, Timestamp(0)), "deployment");
    assert_eq!(other, Vec::<Vec<Change>>::new());
    let own = publish(&world.view, plan(&world.view, &key, Timestamp(0)), "service");
    assert_eq!(own, Vec::<Vec<Change>>::new(), "and it is said once");
}

#[test]
fn a_deleted_service_goes_once_its_tasks_are_gone() {
    let mut world = World::new();
    world.service("web", 2);
    converge(&mut world);
    let mut object = Object::clone(world.view.get(&World::key("web")).expect("a service"));
    object.meta_mut().deleting = Some(Timestamp(1).into());
    world.put(object);
    settle(&mut world);
    assert_eq!(world.wanted("web").len(), 0);
    assert!(world.view.get(&World::key("web")).is_some());
    agents(&mut world);
    settle(&mut world);
    assert!(world.view.get(&World::key("web")).is_none());
    assert_eq!(world.view.of_kind(Kind::Deployment).count(), 0);
}

#[test]
fn a_task_id_never_comes_twice() {
    let mut world = World::new();
    world.service("web", 1);
    let mut seen = std::collections::BTreeSet::new();
    for second in 0..50 {
        settle_at(&mut world, 10_000_000 * (second + 1));
        for (name, _) in world.wanted("web") {
            assert!(seen.insert(name), "each time another");
        }
        // The stopped task is forgotten at once, as if retention were over.
        let keys: Vec<Key> = world.view.of_kind(Kind::Task).map(|t| Key::of(t)).collect();
        for key in &keys {
            world.drop(key);
        }
    }
    assert_eq!(seen.len(), 50);
}

#[test]
fn tasks_of_a_deployment_have_the_image_that_the_first_one_found() {
    let mut world = World::new();
    world.service("web", 1);
    settle(&mut world);
    let found = |digest: &'static str| {
        move |_: &mut TaskSpec, s: &mut TaskStatus| {
            s.set_last_status(steady_core::v1::task_last_status::Value::Running);
            s.started_at = Some(Timestamp(1).into());
            let container =
                steady_core::v1::Container { name: "main".into(), image_digest: digest.into(), ..<_>::default() };
            s.containers = vec![container];
        }
    };
    world.each_task(|_, s| s.started_at.is_none(), found("sha256:1"));
    world.edit_service("web", |spec| spec.desired_count = Some(2));
    settle(&mut world);
    world.each_task(|_, s| s.started_at.is_none(), found("sha256:2"));
    settle(&mut world);
    assert_eq!(world.deployment("web-1").status.image_digests["main"], "sha256:1");
    let digests = world.view.of_kind(Kind::Task).filter_map(|t| task::of(t)).map(|t| t.spec.image_digests.len());
    assert_eq!(digests.collect::<Vec<_>>().iter().sum::<usize>(), 1, "the second one was told");
}

#[test]
fn an_older_deployment_whose_tasks_fail_is_throttled_too() {
    use steady_core::v1::{DeploymentConfiguration, deployment_strategy, task_last_status};
    let mut world = World::new();
    world.service("web", 2);
    world.edit_service("web", |spec| {
        spec.deployment_configuration = Some(DeploymentConfiguration {
            strategy: deployment_strategy::Value::BlueGreen.into(),
            ..DeploymentConfiguration::default()
        });
    });
    let key = World::key("web");
    let round = |world: &mut World, now: i64, fails: &dyn Fn(&TaskSpec) -> bool| {
        let now = Timestamp(now);
        for _ in 0..4 {
            for group in crate::deployment::plan(&world.view, &key, now).groups {
                world.carry_out_all(group);
            }
            world.settle(|view| plan(view, &key, now));
        }
        world.each_task(
            |_, s| s.last_status() < task_last_status::Value::Running,
            |spec, s| {
                s.started_at = Some(now.into());
                s.set_last_status(task_last_status::Value::Running);
                if fails(spec) {
                    s.set_last_status(task_last_status::Value::Stopped);
                    s.set_stop_code(StopCode::EssentialContainerExited);
                    s.stopped_at = Some(now.into());
                }
            },
        );
    };
    for minute in 0..20 {
        round(&mut world, minute * 60_000, &|_| false);
    }
    assert_eq!(world.deployment("web-1").status.rollout_state(), Rollout::Completed);
    // The tasks of the old version end, and do not start any more; the new ones never run.
    world.edit_service("web", |spec| spec.task_definition = "web:2".into());
    world.each_task(|_, _| true, |_, s| s.set_last_status(task_last_status::Value::Stopped));
    let before = world.view.of_kind(Kind::Task).count();
    for second in 0..120 {
        round(&mut world, 1_300_000 + second * 1000, &|_| true);
    }
    let started = world.view.of_kind(Kind::Task).count() - before;
    assert!((8..60).contains(&started), "{started} tasks in two minutes");
}
