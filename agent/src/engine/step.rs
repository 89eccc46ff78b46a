//! One step of a task: what to do now, given what is known. Pure.

use std::time::Duration;

use steady_core::task;
use steady_core::v1::desired_status::Value as Desired;
use steady_core::v1::stop_code::Value as StopCode;

use super::model::{Met, Now, Phase, Stop, TaskState, met};

/// ECS' default of `stopTimeout`.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// What the engine does next for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Have its image, make it, start it.
    Launch(String),
    /// Stop it.
    Stop(String, Duration),
    /// It will never start: count it as ended.
    Skip(String),
    /// Run its health check.
    Probe(String),
}

/// What a step found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// The task is to stop, for a reason that is new.
    pub(crate) stop: Option<Stop>,
    /// In order.
    pub(crate) actions: Vec<Action>,
}

/// The next step of a task.
pub(crate) fn step(task: &TaskState, now: Now) -> Step {
    if let Some(stop) = reason_to_stop(task, now) {
        let actions = stopping(task, now);
        return Step { stop: Some(stop), actions };
    }
    if task.stop.is_some() || task.is_stopped() {
        return Step { stop: None, actions: stopping(task, now) };
    }
    let mut actions = Vec::new();
    for container in &task.containers {
        let name = &container.definition.name;
        match container.phase {
            Phase::New if task.confirmed && ready(task, name, now) => actions.push(Action::Launch(name.clone())),
            Phase::Running if container.probes.due.is_some_and(|due| due <= now.instant) && !container.probes.busy => {
                actions.push(Action::Probe(name.clone()));
            }
            _ => {}
        }
    }
    Step { stop: None, actions }
}

fn dependencies<'a>(task: &'a TaskState, name: &str, now: Now) -> impl Iterator<Item = Met> + 'a {
    let needs = task.container(name).map(|c| c.definition.depends_on.as_slice()).unwrap_or_default();
    needs.iter().filter_map(move |need| Some(met(task.container(&need.container_name)?, need.condition(), now.instant)))
}

fn ready(task: &TaskState, name: &str, now: Now) -> bool {
    dependencies(task, name, now).all(|met| met == Met::Yes)
}

/// Why a task that is to run cannot go on, or was asked to stop.
fn reason_to_stop(task: &TaskState, now: Now) -> Option<Stop> {
    if task.stop.is_some() {
        return None;
    }
    let told = task::of(&task.object)?;
    if told.status.desired_status() == Desired::Stopped || !told.is_live() {
        // The reason is the control plane's, and known there.
        let reason = told.status.stopped_reason.clone();
        return Some(Stop { code: told.status.stop_code(), reason, since: now.at });
    }
    for container in task.containers.iter().filter(|c| c.phase == Phase::Stopped) {
        if container.started_at.is_none() && container.is_essential() {
            return Some(Stop { code: StopCode::TaskFailedToStart, reason: container.reason.clone(), since: now.at });
        }
        if container.is_essential() {
            let reason = "Essential container in task exited".to_owned();
            return Some(Stop { code: StopCode::EssentialContainerExited, reason, since: now.at });
        }
    }
    task.containers.iter().filter(|c| c.phase == Phase::New).find_map(|container| {
        dependencies(task, &container.definition.name, now).find_map(|met| match met {
            Met::Never(reason) => Some(Stop { code: StopCode::TaskFailedToStart, reason, since: now.at }),
            Met::Yes | Met::NotYet => None,
        })
    })
}

/// Containers stop in the reverse of the order in which they wait for each other.
fn stopping(task: &TaskState, now: Now) -> Vec<Action> {
    let mut actions = Vec::new();
    if task.is_deregistering(now.instant) {
        return actions;
    }
    for container in &task.containers {
        let name = &container.definition.name;
        match container.phase {
            Phase::New => actions.push(Action::Skip(name.clone())),
            Phase::Running if task.dependents(name).all(|c| matches!(c.phase, Phase::New | Phase::Stopped)) => {
                let seconds = container.definition.stop_timeout.map(|s| u64::from(s.unsigned_abs()));
                let grace = seconds.map_or(STOP_TIMEOUT, Duration::from_secs);
                actions.push(Action::Stop(name.clone(), grace));
            }
            _ => {}
        }
    }
    actions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Exit;
    use std::sync::LazyLock;
    use steady_core::Timestamp;
    use steady_core::v1::container_condition::Value as Condition;
    use steady_core::v1::{
        ContainerDefinition, ContainerDependency, Object, Target, Task, TaskDefinitionSpec, TaskSpec, TaskStatus,
    };
    use tokio::time::Instant;

    const AT: Timestamp = Timestamp(1_000_000);

    fn now() -> Now {
        static NOW: LazyLock<Instant> = LazyLock::new(Instant::now);
        Now { at: AT, instant: *NOW }
    }

    fn after(seconds: u64) -> Now {
        Now { instant: now().instant + Duration::from_secs(seconds), ..now() }
    }

    type Container<'a> = (&'a str, bool, &'a [(&'a str, Condition)]);

    fn task(containers: &[Container<'_>]) -> TaskState {
        let definition = TaskDefinitionSpec {
            container_definitions: containers
                .iter()
                .map(|(name, essential, needs)| ContainerDefinition {
                    name: (*name).into(),
                    essential: Some(*essential),
                    start_timeout: Some(10),
                    depends_on: needs
                        .iter()
                        .map(|(on, c)| ContainerDependency { container_name: (*on).into(), condition: (*c).into() })
                        .collect(),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        };
        let status = TaskStatus { desired_status: Desired::Running.into(), ..Default::default() };
        let object = Object::new("default", "t", Task { spec: Some(TaskSpec::default()), status: Some(status) });
        let mut task = TaskState::new(object, definition, AT);
        task.confirmed = true;
        task
    }

    fn set(task: &mut TaskState, name: &str, phase: Phase, code: Option<i32>) {
        let container = task.container_mut(name).expect("a container");
        container.phase = phase;
        if phase >= Phase::Running {
            container.started_at = Some(AT);
            container.running_since = Some(now().instant);
        }
        container.exit = code.map(|code| Exit { code: Some(code), out_of_memory: false, at: AT });
    }

    fn launched(task: &TaskState, now: Now) -> Vec<String> {
        let names = step(task, now).actions.into_iter().filter_map(|a| match a {
            Action::Launch(name) => Some(name),
            _ => None,
        });
        names.collect()
    }

    #[test]
    fn containers_start_in_the_order_in_which_they_wait_for_each_other() {
        let mut t = task(&[
            ("web", true, &[("migrate", Condition::Success), ("cache", Condition::Start)]),
            ("migrate", false, &[]),
            ("cache", true, &[]),
        ]);
        assert_eq!(launched(&t, now()), ["migrate", "cache"]);
        set(&mut t, "cache", Phase::Running, None);
        set(&mut t, "migrate", Phase::Running, None);
        assert_eq!(launched(&t, now()), Vec::<String>::new());
        set(&mut t, "migrate", Phase::Stopped, Some(0));
        assert_eq!(launched(&t, now()), ["web"]);
    }

    #[test]
    fn nothing_starts_before_the_control_plane_confirmed_the_task() {
        let mut t = task(&[("web", true, &[])]);
        t.confirmed = false;
        assert_eq!(step(&t, now()), Step::default());
    }

    #[test]
    fn a_dependency_that_failed_stops_the_task() {
        let mut t = task(&[("web", true, &[("migrate", Condition::Success)]), ("migrate", false, &[])]);
        set(&mut t, "migrate", Phase::Stopped, Some(3));
        let stop = step(&t, now()).stop.expect("stops");
        assert_eq!(stop.code, StopCode::TaskFailedToStart);
        assert!(stop.reason.contains("migrate exited with 3"), "{stop:?}");
    }

    #[test]
    fn a_dependency_that_takes_too_long_stops_the_task() {
        let mut t = task(&[("web", true, &[("migrate", Condition::Complete)]), ("migrate", false, &[])]);
        set(&mut t, "migrate", Phase::Running, None);
        assert_eq!(step(&t, after(9)).stop, None);
        assert!(step(&t, after(10)).stop.is_some());
    }

    #[test]
    fn the_end_of_an_essential_container_stops_the_others_in_reverse_order() {
        let mut t = task(&[
            ("db", true, &[]),
            ("web", true, &[("db", Condition::Start)]),
            ("side", true, &[("web", Condition::Start)]),
        ]);
        for name in ["db", "web"] {
            set(&mut t, name, Phase::Running, None);
        }
        set(&mut t, "side", Phase::Stopped, Some(1));
        let found = step(&t, now());
        assert_eq!(found.stop.map(|s| s.code), Some(StopCode::EssentialContainerExited));
        assert_eq!(found.actions, [Action::Stop("web".into(), STOP_TIMEOUT)]);
        set(&mut t, "web", Phase::Stopped, Some(143));
        t.stop = Some(Stop { code: StopCode::EssentialContainerExited, reason: String::new(), since: AT });
        assert_eq!(step(&t, now()).actions, [Action::Stop("db".into(), STOP_TIMEOUT)]);
    }

    #[test]
    fn a_task_that_load_balancers_send_requests_to_stops_when_they_are_done() {
        let mut t = task(&[("web", true, &[])]);
        set(&mut t, "web", Phase::Running, None);
        let told = |t: &mut TaskState, targets: Vec<Target>| {
            let status = TaskStatus { desired_status: Desired::Stopped.into(), targets, ..TaskStatus::default() };
            t.object = Object::new("default", "t", Task { spec: Some(TaskSpec::default()), status: Some(status) });
        };
        told(&mut t, vec![Target { deregistration_delay_seconds: 30, ..Target::default() }]);
        let found = step(&t, now());
        assert!(found.stop.is_some() && found.actions.is_empty(), "{found:?}");
        (t.stop, t.deregisters_since) = (found.stop, Some(now().instant));
        assert_eq!(step(&t, after(29)).actions, []);
        let stops = [Action::Stop("web".into(), STOP_TIMEOUT)];
        assert_eq!(step(&t, after(30)).actions, stops, "it does not wait for ever");
        told(&mut t, vec![]);
        assert_eq!(step(&t, now()).actions, stops);
        // What ended by itself has nothing to wait for.
        set(&mut t, "web", Phase::Stopped, Some(1));
        told(&mut t, vec![Target::default()]);
        assert_eq!(step(&t, now()).actions, []);
    }

    #[test]
    fn the_end_of_the_only_container_is_told_with_its_reason() {
        let mut t = task(&[("web", true, &[])]);
        set(&mut t, "web", Phase::Stopped, Some(137));
        let found = step(&t, now());
        assert_eq!(found.stop.map(|s| s.reason).as_deref(), Some("Essential container in task exited"));
        assert_eq!(found.actions, []);
    }

    #[test]
    fn the_end_of_a_container_that_is_not_essential_changes_nothing() {
        let mut t = task(&[("web", true, &[]), ("init", false, &[])]);
        set(&mut t, "web", Phase::Running, None);
        set(&mut t, "init", Phase::Stopped, Some(1));
        assert_eq!(step(&t, now()), Step::default());
    }

    #[test]
    fn a_container_that_cannot_start_fails_the_task_with_its_reason() {
        let mut t = task(&[("web", true, &[])]);
        let container = t.container_mut("web").expect("a container");
        container.phase = Phase::Stopped;
        container.reason = "CannotPullContainerError: no such image".into();
        t.containers.push(t.containers[0].clone());
        t.containers[1].phase = Phase::New;
        let stop = step(&t, now()).stop.expect("stops");
        assert_eq!(
            (stop.code, stop.reason.as_str()),
            (StopCode::TaskFailedToStart, "CannotPullContainerError: no such image")
        );
    }
}
