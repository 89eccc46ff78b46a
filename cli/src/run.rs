//! `steady run`: standalone tasks, and waiting for how they end.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use steady_core::{Key, Kind, derived_id, task};
use steady_proto::v1::{
    AwsVpcConfiguration, CapacityProviderStrategyItem, ContainerOverride, KeyValuePair, NetworkConfiguration, Object,
    RunTaskRequest, TaskDefinitionSpec, TaskOverride,
};

use crate::args::Global;
use crate::client::Client;
use crate::columns::short_id;
use crate::failure::{FAILED, Failure};
use crate::out::{self, Out};
use crate::wait::{self, Goal};
use crate::{columns, target};

/// Arguments of `steady run`.
#[derive(Debug, Args)]
#[command(after_long_help = "With --wait the exit code is that of the task's essential container.

Examples:
  steady run hello                              the newest revision of the family
  steady run migrate:4 --wait                   one revision; wait for its end
  steady run tools --env LEVEL=3 -- ls -l /     another environment and command")]
pub struct Run {
    /// Task definition: FAMILY or FAMILY:REVISION.
    #[arg(value_name = "TASKDEF")]
    pub task_definition: String,
    /// Tasks to run, 1..10.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=10))]
    pub count: i32,
    /// Wait until they have stopped.
    #[arg(long)]
    pub wait: bool,
    /// Set in the container's environment; may be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub env: Vec<(String, String)>,
    /// Container that --env and COMMAND are for [default: the first essential one].
    #[arg(long, value_name = "NAME")]
    pub container: Option<String>,
    /// Shown as the task's startedBy.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub started_by: String,
    /// Placed before tasks of a lower priority, -100..100.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub priority: i32,
    /// May be stopped to make room for a task of a higher priority.
    #[arg(long)]
    pub preemptible: bool,
    /// Only on instances of this capacity provider.
    #[arg(long, value_name = "NAME")]
    pub capacity_provider: Option<String>,
    /// Placed by this scheduler, not by Steady's own.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub scheduler: String,
    /// Security group of its network (networkMode awsvpc); may be given several times.
    #[arg(long, value_name = "NAME")]
    pub security_group: Vec<String>,
    /// Run this instead of the container's own command.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` sets nothing; write KEY=VALUE")),
    }
}

/// `steady run`.
pub async fn run(args: Run, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let name = target::name_of(Kind::TaskDefinition, &args.task_definition)?;
    let client = if args.wait { global.connect_to_wait().await? } else { global.connect().await? };
    let overrides = overrides(&client, &args, &name).await?;
    let request = RunTaskRequest {
        cluster: global.cluster.clone(),
        task_definition: name,
        count: args.count,
        started_by: args.started_by,
        overrides,
        priority: args.priority,
        preemptible: args.preemptible,
        capacity_provider_strategy: args
            .capacity_provider
            .into_iter()
            .map(|name| CapacityProviderStrategyItem { capacity_provider: name, weight: 1, base: 0 })
            .collect(),
        scheduler_name: args.scheduler,
        network_configuration: (!args.security_group.is_empty()).then_some(NetworkConfiguration {
            awsvpc_configuration: Some(AwsVpcConfiguration { security_groups: args.security_group }),
        }),
        client_token: token(),
        ..RunTaskRequest::default()
    };
    let tasks = client.run_task(request).await?;
    for task in &tasks {
        out.line(&format!("{} created", Key::of(task)))?;
    }
    if !args.wait {
        return Ok(());
    }
    let ended = ends(&client, &tasks);
    let ended = match global.timeout {
        Some(within) => tokio::time::timeout(within, ended)
            .await
            .map_err(|_| Failure::timed_out("the task has not stopped in time; it goes on running"))??,
        None => ended.await?,
    };
    conclude(&client, &ended, out).await
}

/// A token that no other request has: the same request sent again by the transport starts nothing twice.
fn token() -> String {
    use std::hash::{BuildHasher, RandomState};
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_nanos().to_string();
    let random = RandomState::new().hash_one(&now).to_string();
    derived_id(&["run", &std::process::id().to_string(), &now, &random])
}

async fn overrides(client: &Client, args: &Run, definition: &str) -> Result<Option<TaskOverride>, Failure> {
    if args.env.is_empty() && args.command.is_empty() {
        return Ok(None);
    }
    let name = if let Some(name) = &args.container {
        name.clone()
    } else {
        let spec = definition_of(client, definition).await?;
        essential(&spec).into_iter().next().unwrap_or_default()
    };
    let environment =
        args.env.iter().map(|(name, value)| KeyValuePair { name: name.clone(), value: value.clone() }).collect();
    let container = ContainerOverride { name, command: args.command.clone(), environment };
    Ok(Some(TaskOverride { container_overrides: vec![container] }))
}

/// A task definition; of a family, its newest revision.
async fn definition_of(client: &Client, name: &str) -> Result<TaskDefinitionSpec, Failure> {
    let keys = target::resolve(client, "", Kind::TaskDefinition, name).await?;
    let newest = keys.last().cloned().unwrap_or_else(|| Key::new(Kind::TaskDefinition, "", name));
    let object = client.get(&newest).await?;
    Ok(object.as_task_definition().and_then(|d| d.spec.clone()).unwrap_or_default())
}

/// Names of the essential containers.
fn essential(spec: &TaskDefinitionSpec) -> Vec<String> {
    let containers = spec.container_definitions.iter().filter(|c| c.essential.unwrap_or(true));
    containers.map(|c| c.name.clone()).collect()
}

/// The tasks once all of them have stopped.
async fn ends(client: &Client, tasks: &[Object]) -> Result<Vec<Object>, Failure> {
    let mut ended = Vec::new();
    for task in tasks {
        let key = Key::of(task);
        wait::until(client, &key, Goal::Stopped, &mut String::new()).await?;
        ended.push(client.find(&key).await?.unwrap_or_else(|| task.clone()));
    }
    Ok(ended)
}

/// Says how each task ended, and ends the same way as the worst of them.
async fn conclude(client: &Client, tasks: &[Object], out: &mut Out) -> Result<(), Failure> {
    let mut worst = 0;
    for object in tasks {
        let Some(task) = task::of(object) else { continue };
        let spec = definition_of(client, &task.spec.task_definition).await.unwrap_or_default();
        let code = exit_code(object, &essential(&spec));
        let reason = columns::task_reason(object);
        match code {
            Some(code) => out.line(&format!("task/{} exited with {code}", short_id(object.name())))?,
            None => {
                out::note(&format!("steady: task/{} stopped without an exit code: {reason}", short_id(object.name())));
            }
        }
        worst = worst.max(code.map_or(FAILED, |code| u8::try_from(code).unwrap_or(FAILED)));
    }
    if worst == 0 { Ok(()) } else { Err(Failure::quiet(worst)) }
}

/// Exit code of a task: of the essential container that failed, else of any that ended.
fn exit_code(object: &Object, essential: &[String]) -> Option<i32> {
    let containers = &task::of(object)?.status.containers;
    let codes: Vec<i32> = containers
        .iter()
        .filter(|c| essential.is_empty() || essential.contains(&c.name))
        .filter_map(|c| c.exit_code)
        .collect();
    codes.iter().copied().find(|code| *code != 0).or_else(|| codes.first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_proto::v1::{Container, Task, TaskStatus};

    fn ended(codes: &[(&str, Option<i32>)]) -> Object {
        let containers = codes
            .iter()
            .map(|(name, exit_code)| Container { name: (*name).into(), exit_code: *exit_code, ..Default::default() })
            .collect();
        let status = TaskStatus { containers, ..Default::default() };
        Object::new("default", "a", Task { spec: None, status: Some(status) })
    }

    #[test]
    fn a_task_ends_as_its_essential_container_did() {
        let essential = ["app".to_owned()];
        assert_eq!(exit_code(&ended(&[("sidecar", Some(9)), ("app", Some(0))]), &essential), Some(0));
        assert_eq!(exit_code(&ended(&[("app", Some(3))]), &essential), Some(3));
        assert_eq!(exit_code(&ended(&[("app", None)]), &essential), None);
    }

    #[test]
    fn no_two_runs_share_a_token() {
        assert_ne!(token(), token());
        assert_eq!(token().len(), 32);
    }
}
