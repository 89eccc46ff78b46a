//! Services with task sets.

use steady_core::v1::deployment_controller_type::Value as ControllerType;
use steady_core::v1::stability_status::Value as Stability;
use steady_core::v1::task_last_status::Value as Status;
use steady_core::v1::{DeploymentController, Scale, TaskSet, TaskSetSpec, TaskSetStatus};

use super::*;
use crate::builders::World;

const NOW: Timestamp = Timestamp(1_000_000);

fn world() -> World {
    let mut world = World::new();
    world.service("web", 5);
    world.edit_service("web", |spec| {
        spec.task_definition.clear();
        spec.deployment_controller = Some(DeploymentController { r#type: ControllerType::External.into() });
        "blue".clone_into(&mut spec.primary_task_set);
    });
    world
}

fn set(world: &mut World, name: &str, revision: i32, percent: f64) {
    let key = Key::new(Kind::TaskSet, "default", name);
    let status = world.view.get(&key).and_then(|o| o.as_task_set()?.status);
    let spec = TaskSetSpec {
        service: "web".into(),
        task_definition: format!("web:{revision}"),
        scale: Some(Scale { value: percent, ..Scale::default() }),
        ..TaskSetSpec::default()
    };
    let mut object = Object::new("default", name, TaskSet { spec: Some(spec), status });
    object.meta_mut().owner = world.view.get(&World::key("web")).map(|service| service.reference());
    world.put(object);
}

fn rounds(world: &mut World) {
    let key = World::key("web");
    for _ in 0..8 {
        world.settle(|view| plan(view, &key, NOW));
        world.settle(|view| crate::service::plan(view, &key, NOW));
        world.each_task(
            |_, s| s.last_status() < Status::Running,
            |_, s| {
                s.set_last_status(Status::Running);
                s.started_at = Some(Timestamp(0).into());
            },
        );
        world.stop_unwanted(NOW);
    }
}

fn status(world: &World, name: &str) -> TaskSetStatus {
    let object = world.view.get(&Key::new(Kind::TaskSet, "default", name)).expect("a set");
    object.as_task_set().and_then(|set| set.status).expect("a status")
}

fn counts(world: &World) -> (usize, usize) {
    let tasks = || world.view.of_kind(Kind::Task).filter_map(|t| task::of(t)).filter(task::View::is_wanted);
    let of = |definition: &str| tasks().filter(|t| t.spec.task_definition == definition).count();
    (of("web:1"), of("web:2"))
}

#[test]
fn each_task_set_has_its_share_of_the_tasks_rounded_up() {
    let mut world = world();
    rounds(&mut world);
    assert_eq!(counts(&world), (0, 0), "no set, no task");
    set(&mut world, "blue", 1, 100.0);
    set(&mut world, "green", 2, 10.0);
    rounds(&mut world);
    assert_eq!(counts(&world), (5, 1));
    let (blue, green) = (status(&world, "blue"), status(&world, "green"));
    assert_eq!((blue.status(), green.status()), (Role::Primary, Role::Active));
    assert_eq!((green.computed_desired_count(), green.running_count()), (1, 1));
    assert_eq!((blue.stability_status(), green.stability_status()), (Stability::SteadyState, Stability::SteadyState));
    assert!(world.service_status("web").steady);
    assert_eq!(world.service_status("web").desired_count(), 6);
}

#[test]
fn traffic_of_another_set_is_another_primary_and_a_set_that_goes_takes_its_tasks_along() {
    let mut world = world();
    set(&mut world, "blue", 1, 100.0);
    rounds(&mut world);
    set(&mut world, "green", 2, 100.0);
    world.edit_service("web", |spec| "green".clone_into(&mut spec.primary_task_set));
    rounds(&mut world);
    assert_eq!(counts(&world), (5, 5));
    assert!(world.service_status("web").primary_deployment.starts_with("web-uidgreen"));
    world.drop(&Key::new(Kind::TaskSet, "default", "blue"));
    rounds(&mut world);
    assert_eq!(counts(&world), (0, 5));
    assert_eq!(world.view.of_kind(Kind::Deployment).count(), 1);
    assert!(world.service_status("web").steady);
}
