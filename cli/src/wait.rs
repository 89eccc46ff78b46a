//! `steady wait`: returns when an object has got where it should.

use std::time::Duration;

use clap::{Args, ValueEnum};
use steady_core::{Key, Kind, KindExt, condition, task};
use steady_proto::v1::Object;
use steady_proto::v1::rollout_state::Value as Rollout;
use steady_proto::v1::task_last_status::Value as Status;

use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::out::Out;
use crate::target::{self, Target};
use crate::watch::Watch;
use crate::world::World;
use crate::{columns, progress, span};

/// How long is waited unless --timeout says otherwise.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Goal {
    /// A service: as many tasks as desired, of its newest deployment. A deployment: completed.
    Steady,
    /// A task: STOPPED.
    Stopped,
    /// A task: RUNNING.
    Running,
    /// Gone.
    Deleted,
    /// A container instance: its agent is connected.
    Connected,
}

/// Arguments of `steady wait`.
#[derive(Debug, Args)]
#[command(after_long_help = "Exits with 3 when time runs out, and says what the object still waits for.

Examples:
  steady wait service/hello --for steady --timeout 2m
  steady wait task/3fa8c1 --for stopped
  steady wait containerinstance/node-1 --for connected")]
pub struct Wait {
    /// KIND/NAME….
    #[arg(required = true, value_name = "KIND/NAME")]
    pub what: Vec<String>,
    /// What to wait for.
    #[arg(long = "for", value_enum, value_name = "STATE")]
    pub goal: Goal,
}

/// Where an object is on its way to the goal.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    Reached(String),
    /// It will never get there.
    Lost(String),
    NotYet(String),
}

/// `steady wait`.
pub async fn run(args: Wait, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let targets = target::parse(&args.what)?;
    for target in &targets {
        fits(target, args.goal)?;
    }
    let within = global.timeout.unwrap_or(PATIENCE);
    let deadline = tokio::time::Instant::now() + within;
    let client = global.connect_to_wait().await?;
    for target in targets {
        let name = target.name.unwrap_or_default();
        for key in target::resolve(&client, &global.cluster, target.kind, &name).await? {
            let mut why = String::from("the server has not said");
            if let Ok(reached) = tokio::time::timeout_at(deadline, until(&client, &key, args.goal, &mut why)).await {
                out.line(&format!("{key} {}", reached?))?;
            } else {
                let span = span::short(within);
                return Err(Failure::timed_out(format!("{key} is not {} after {span}: {why}", word(args.goal))));
            }
        }
    }
    Ok(())
}

fn word(goal: Goal) -> &'static str {
    match goal {
        Goal::Steady => "steady",
        Goal::Stopped => "stopped",
        Goal::Running => "running",
        Goal::Deleted => "deleted",
        Goal::Connected => "connected",
    }
}

/// Refuses goals that a kind never reaches.
fn fits(target: &Target, goal: Goal) -> Result<(), Failure> {
    let kind = target.kind.name().to_lowercase();
    if target.name.is_none() {
        return Err(Failure::usage(format!("say which {kind}: {kind}/NAME")));
    }
    let right = match target.kind {
        Kind::Service | Kind::Deployment => "steady or deleted",
        Kind::Task => "running, stopped or deleted",
        Kind::ContainerInstance => "connected or deleted",
        _ => "deleted",
    };
    if right.contains(word(goal)) {
        return Ok(());
    }
    Err(Failure::usage(format!("a {kind} is never {}; wait for it to be {right}", word(goal))))
}

/// Waits without an end; `why` says what is waited for.
pub(crate) async fn until(client: &Client, key: &Key, goal: Goal, why: &mut String) -> Result<String, Failure> {
    let kinds: &[Kind] = match key.kind {
        Kind::Service => &[Kind::Service, Kind::Deployment, Kind::Task],
        _ => &[key.kind],
    };
    let mut watch = Watch::open(client, kinds, target::in_cluster(&key.cluster)).await?;
    let mut world = World::default();
    let mut first = true;
    let mut last = None;
    loop {
        world.follow(&mut watch).await?;
        let object = world.view.get(key).cloned();
        let found = match &object {
            Some(object) => of_object(object, goal, &world),
            None => of_nothing(goal, key, first, last.is_some()),
        };
        match found {
            Found::Reached(text) => return Ok(text),
            Found::Lost(text) => return Err(Failure::failed(format!("{key} {text}"))),
            Found::NotYet(text) => *why = text,
        }
        first = false;
        last = object.or(last);
    }
}

fn of_nothing(goal: Goal, key: &Key, first: bool, was_there: bool) -> Found {
    match goal {
        Goal::Deleted => Found::Reached("deleted".into()),
        // A stopped task is deleted some time after.
        Goal::Stopped if was_there => Found::Reached("stopped".into()),
        // An agent registers its instance when it comes.
        Goal::Connected => Found::NotYet("it has not registered".into()),
        _ if first => Found::Lost(format!("is not there; `steady get {}` lists what is", key.kind.plural())),
        _ => Found::Lost("was deleted".into()),
    }
}

fn of_object(object: &Object, goal: Goal, world: &World) -> Found {
    match (goal, object.kind()) {
        (Goal::Deleted, _) => Found::NotYet(match object.is_deleting() {
            true if object.meta().finalizers.is_empty() => "it is being deleted".into(),
            true => format!("it is being deleted and waits for {}", object.meta().finalizers.join(", ")),
            false => "nobody has asked for its deletion".into(),
        }),
        (Goal::Steady, Kind::Deployment) => rollout(object),
        (Goal::Steady, _) => match progress::rollout_failure(object) {
            Some(reason) => Found::Lost(reason),
            None if progress::is_steady(object) => Found::Reached("has reached a steady state".into()),
            None => Found::NotYet(progress::counts(object, world)),
        },
        (Goal::Connected, _) => {
            let status = object.as_container_instance().and_then(|i| i.status.clone()).unwrap_or_default();
            if status.agent_connected {
                return Found::Reached("is connected".into());
            }
            let waiting = condition::waiting(&status.conditions).map(|c| c.message.clone());
            Found::NotYet(waiting.unwrap_or_else(|| "its agent is not connected".into()))
        }
        (Goal::Running | Goal::Stopped, _) => of_task(object, goal),
    }
}

fn of_task(object: &Object, goal: Goal) -> Found {
    let last = task::of(object).map(|task| task.status.last_status()).unwrap_or_default();
    let reason = columns::task_reason(object);
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    match (goal, last) {
        (Goal::Running, Status::Running) => Found::Reached("is running".into()),
        (Goal::Stopped, Status::Stopped) => Found::Reached(format!("stopped{reason}")),
        (Goal::Running, status) if status > Status::Running => Found::Lost(format!("stopped{reason}")),
        (_, status) => Found::NotYet(format!("it is {}{reason}", columns::status_word(status))),
    }
}

fn rollout(object: &Object) -> Found {
    let status = object.as_deployment().and_then(|d| d.status.clone()).unwrap_or_default();
    match status.rollout_state() {
        Rollout::Completed => Found::Reached("is completed".into()),
        Rollout::Failed => Found::Lost(format!("failed: {}", status.rollout_state_reason)),
        _ => Found::NotYet(format!("{} running, {} pending", status.running_count(), status.pending_count())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_proto::v1::{Task, TaskStatus};

    fn task_that_is(status: Status, reason: &str) -> Object {
        let status = TaskStatus { last_status: status.into(), stopped_reason: reason.into(), ..Default::default() };
        Object::new("default", "a", Task { spec: None, status: Some(status) })
    }

    #[test]
    fn a_task_that_has_stopped_never_runs_again() {
        let found = of_task(&task_that_is(Status::Stopped, "out of memory"), Goal::Running);
        assert_eq!(found, Found::Lost("stopped: out of memory".into()));
        assert_eq!(of_task(&task_that_is(Status::Running, ""), Goal::Running), Found::Reached("is running".into()));
        assert_eq!(of_task(&task_that_is(Status::Pending, ""), Goal::Running), Found::NotYet("it is PENDING".into()));
    }

    #[test]
    fn a_goal_that_a_kind_never_reaches_is_refused_with_the_right_ones() {
        let target = Target { kind: Kind::Task, name: Some("a".into()) };
        let failure = fits(&target, Goal::Steady).unwrap_err();
        assert_eq!(failure.message, "a task is never steady; wait for it to be running, stopped or deleted");
        assert!(fits(&target, Goal::Stopped).is_ok());
    }
}
