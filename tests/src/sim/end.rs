//! What has to be so in the end: everything that was asked for is there, and nothing else, and nobody writes any more.

use std::collections::BTreeSet;

use steady_core::v1::rollout_state::Value as Rollout;
use steady_core::v1::task_last_status::Value as Status;
use steady_core::{Key, Kind, View, task};

use super::life::lock;
use super::users::Wish;
use super::{World, monitor, pool};

/// What is not as it should be (L1, L2).
pub(crate) fn problems(world: &World) -> Vec<String> {
    let view = lock(&world.judge).view.clone();
    let wishes = lock(&world.wishes);
    let mut found = Vec::new();
    for (name, wish) in &wishes.services {
        match wish {
            Some(wish) if wish.daemon => {
                let instances = view.of_kind(Kind::ContainerInstance).count();
                let everywhere = Wish { desired: instances as i32, ..wish.clone() };
                service(&view, name, &everywhere, &mut found);
            }
            Some(wish) if wish.scaled => {
                let desired = monitor::desired(&view, name, wish, &mut found);
                service(&view, name, &Wish { desired, ..wish.clone() }, &mut found);
            }
            Some(wish) => service(&view, name, wish, &mut found),
            None if view.get(&Key::new(Kind::Service, "default", name)).is_some() => {
                found.push(format!("service {name} is still there"));
            }
            None => {}
        }
    }
    tasks(world, &view, &mut found);
    for (token, count) in &wishes.tasks {
        let started = view.of_kind(Kind::Task).filter_map(|t| task::of(t)).filter(|t| t.spec.started_by == *token);
        let started = started.count() as i32;
        if started != *count {
            found.push(format!("S5: {started} tasks were run with token {token}, of {count} asked for"));
        }
    }
    for number in 0..world.settings.instances {
        let name = format!("node-{number}");
        let instance = view.get(&Key::new(Kind::ContainerInstance, "default", &name));
        let status = instance.and_then(|i| i.as_container_instance()?.status.as_ref());
        if !status.is_some_and(|s| s.agent_connected && !s.lost) {
            found.push(format!("instance {name} is not connected"));
        }
    }
    if let Some(wish) = &wishes.pool {
        pool::problems(world, &view, wish, &mut found);
    }
    found
}

fn service(view: &View, name: &str, wish: &Wish, found: &mut Vec<String>) {
    let key = Key::new(Kind::Service, "default", name);
    let Some(object) = view.get(&key) else {
        found.push(format!("service {name} is not there"));
        return;
    };
    let Some((spec, status)) = object.as_service().and_then(|s| Some((s.spec.as_ref()?, s.status.as_ref()?))) else {
        return;
    };
    if !wish.daemon && spec.desired_count() != wish.desired {
        found.push(format!("S5: service {name} wants {} tasks, its user {}", spec.desired_count(), wish.desired));
    }
    let deployment = |name: &str| view.get(&Key::new(Kind::Deployment, "default", name));
    let wanted = match &status.failed_rollout {
        Some(failed) if !failed.rolled_back_to.is_empty() => {
            deployment(&failed.rolled_back_to).and_then(|d| d.as_deployment()?.spec.as_ref())
        }
        _ => None,
    };
    let wanted = wanted.map_or(&spec.task_definition, |deployment| &deployment.task_definition);
    let running = view
        .of_service(Kind::Task, "default", name)
        .filter_map(|t| task::of(t))
        .filter(|t| t.is_running() && t.spec.task_definition == *wanted);
    let count = running.count() as i32;
    if !status.steady || count != wish.desired {
        let throttle = status.throttle.as_ref().map_or(0, |t| t.failures);
        found.push(format!(
            "service {name} runs {count} of {} tasks of {} (steady: {}, failures {throttle}, conditions {:?})",
            wish.desired, wanted, status.steady, status.conditions
        ));
    }
    let newest = view
        .of_service(Kind::Deployment, "default", name)
        .filter(|d| d.meta().owner.as_ref().is_some_and(|o| o.uid == object.meta().uid))
        .filter_map(|d| d.as_deployment())
        .max_by_key(|d| d.spec.as_ref().map_or(0, |s| s.sequence));
    let state = newest.and_then(|d| d.status.as_ref()).map(steady_core::v1::DeploymentStatus::rollout_state);
    if state != Some(Rollout::Completed) {
        found.push(format!("the deployment of service {name} is {state:?}"));
    }
}

/// Tasks of the store and containers of the machines are the same.
fn tasks(world: &World, view: &View, found: &mut Vec<String>) {
    let mut wanted = BTreeSet::new();
    for object in view.of_kind(Kind::Task) {
        let Some(task) = task::of(object).filter(task::View::is_live) else { continue };
        let name = object.name();
        if task.status.last_status() != Status::Running || !task.is_wanted() {
            let (last, wanted) = (task.status.last_status().as_str_name(), task.is_wanted());
            let conditions = &task.status.conditions;
            found.push(format!(
                "task {name} is {last} (wanted: {wanted}) on `{}` {conditions:?}",
                task.spec.container_instance
            ));
        }
        wanted.insert((task.spec.container_instance.clone(), name.to_owned()));
    }
    for machine in world.machines() {
        let running = machine.running();
        if machine.count() != running.len() {
            found.push(format!("{} containers of {} do not run", machine.count() - running.len(), machine.name));
        }
        for id in running {
            if !wanted.remove(&(machine.name.clone(), id.task.clone())) {
                found.push(format!("L2: {} runs {id}, which is nobody's", machine.name));
            }
        }
    }
    found.extend(wanted.into_iter().map(|(instance, task)| format!("task {task} has no container on `{instance}`")));
}

/// The end state by what matters of it: two histories that ended alike have the same one.
pub(crate) fn digest(world: &World) -> Vec<String> {
    let view = lock(&world.judge).view.clone();
    let mut lines = Vec::new();
    for object in view.of_kind(Kind::Service) {
        let running = |t: &task::View<'_>| t.is_running() && t.spec.service == object.name();
        let tasks = view.of_kind(Kind::Task).filter_map(|t| task::of(t)).filter(running);
        let definitions: Vec<&str> = tasks.map(|t| t.spec.task_definition.as_str()).collect();
        lines.push(format!("{} {definitions:?}", object.name()));
    }
    for object in view.of_kind(Kind::ContainerInstance) {
        let spec = object.as_container_instance().and_then(|i| i.spec.as_ref());
        let state = spec.map_or("", |s| s.status().as_str_name());
        // Those of a pool have whatever name.
        let of_pool = spec.is_some_and(|spec| !spec.capacity_provider.is_empty());
        lines.push(format!("{} {state}", if of_pool { "of the pool" } else { object.name() }));
    }
    lines
}
