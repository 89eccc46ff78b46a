//! `steady rollout`: how a service's deployments go, and going back.

use std::sync::Arc;

use clap::{Args, Subcommand};
use steady_core::{Key, Kind, service};
use steady_proto::v1::hook_timeout_action::Value as Action;
use steady_proto::v1::rollout_state::Value as Rollout;
use steady_proto::v1::{
    ContinueServiceDeploymentRequest, Deployment, DeploymentSpec, DeploymentStatus, Object, ServiceSpec,
};

use crate::args::Global;
use crate::client::Client;
use crate::columns::state;
use crate::failure::Failure;
use crate::out::Out;
use crate::table::Table;
use crate::{progress, span, target, world};

/// Arguments of `steady rollout`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  steady rollout status service/hello          with progress, until it is over; exit 1 when it failed
  steady rollout history service/hello
  steady rollout undo service/hello            back to the deployment that was completed before
  steady rollout undo service/hello --to hello-3
  steady rollout stop service/hello            give up what is being rolled out, and go back
  steady rollout continue service/hello        a pause of a blue/green deployment is over
  steady rollout restart service/hello         replace every task, though nothing changed

What `undo` and `stop` go back to is written into the service; apply your manifest with it, or it comes again.")]
pub struct RolloutArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What `steady rollout` does.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Follow what is being rolled out until it is over; exit 1 when it failed.
    Status(Of),
    /// List the deployments of a service, newest first.
    History(Of),
    /// Go back to the deployment that was completed before, or to another one.
    Undo(Undo),
    /// Give up what is being rolled out, and go back to the deployment that was completed before.
    Stop(Going),
    /// Have a deployment that pauses go on, or roll back.
    Continue(Continue),
    /// Replace every task of a service by a new one.
    Restart(Going),
}

/// A service.
#[derive(Debug, Args)]
pub struct Of {
    /// The service: service/NAME or NAME.
    pub service: String,
}

/// A service, and whether to wait for it.
#[derive(Debug, Args)]
pub struct Going {
    /// The service: service/NAME or NAME.
    pub service: String,
    /// Wait until it is steady.
    #[arg(long)]
    pub wait: bool,
}

/// Arguments of `steady rollout undo`.
#[derive(Debug, Args)]
pub struct Undo {
    /// The service, and whether to wait for it.
    #[command(flatten)]
    pub going: Going,
    /// The deployment to go back to, as `steady rollout history` names it.
    #[arg(long, value_name = "DEPLOYMENT")]
    pub to: Option<String>,
}

/// Arguments of `steady rollout continue`.
#[derive(Debug, Args)]
pub struct Continue {
    /// The service, and whether to wait for it.
    #[command(flatten)]
    pub going: Going,
    /// Only this hook, as `steady describe service/NAME` names it; else all that wait.
    #[arg(long, value_name = "ID")]
    pub hook: Option<String>,
    /// Roll the deployment back instead.
    #[arg(long)]
    pub rollback: bool,
}

/// `steady rollout`.
pub async fn run(args: RolloutArgs, global: &Global, out: &mut Out) -> Result<(), Failure> {
    match args.verb {
        Verb::Status(of) => {
            let (client, key) = open(&of.service, true, global).await?;
            client.get(&key).await?;
            wait(&client, key, global, out).await
        }
        Verb::History(of) => history(&of.service, global, out).await,
        Verb::Undo(undo) => back(&undo.going, undo.to.as_deref(), false, global, out).await,
        Verb::Stop(going) => back(&going, None, true, global, out).await,
        Verb::Continue(args) => go_on(&args, global, out).await,
        Verb::Restart(going) => restart(&going, global, out).await,
    }
}

async fn open(service: &str, waits: bool, global: &Global) -> Result<(Client, Key), Failure> {
    let name = target::name_of(Kind::Service, service)?;
    let client = if waits { global.connect_to_wait().await? } else { global.connect().await? };
    Ok((client, Key::new(Kind::Service, &global.cluster, &name)))
}

async fn wait(client: &Client, key: Key, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let within = global.timeout.unwrap_or(progress::PATIENCE);
    Box::pin(progress::until_steady(client, &[(key.cluster.into(), key.name.into())], within, out)).await
}

/// One deployment of a service.
struct Past {
    object: Arc<Object>,
    spec: DeploymentSpec,
    status: DeploymentStatus,
}

/// Deployments of a service, newest first.
async fn deployments(client: &Client, service: &Object) -> Result<Vec<Past>, Failure> {
    let all = client.list(Kind::Deployment, target::in_cluster(service.cluster())).await?;
    let mut found: Vec<Past> = Vec::new();
    for object in all {
        let owned = object.meta().owner.as_ref().is_some_and(|owner| owner.uid == service.meta().uid);
        if let (true, Some(Deployment { spec: Some(spec), status: Some(status) })) = (owned, object.as_deployment()) {
            let (spec, status) = (spec.clone(), status.clone());
            found.push(Past { object: Arc::new(object), spec, status });
        }
    }
    found.sort_by_key(|past| std::cmp::Reverse(past.spec.sequence));
    Ok(found)
}

async fn history(service: &str, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let (client, key) = open(service, false, global).await?;
    let past = deployments(&client, &client.get(&key).await?).await?;
    let heads = ["DEPLOYMENT", "TASK-DEFINITION", "ROLE", "ROLLOUT", "DESIRED", "RUNNING", "FAILED", "AGE", "REASON"];
    let mut table = Table::new(&heads, out.is_colored());
    for Past { object, spec, status } in &past {
        let age = span::age(object.meta().created.as_ref(), world::now());
        table.push(vec![
            object.name().into(),
            spec.task_definition.clone().into(),
            state(status.role().as_str_name()),
            state(status.rollout_state().as_str_name()),
            spec.target_count.to_string().into(),
            status.running_count().to_string().into(),
            status.failed_tasks.to_string().into(),
            age.into(),
            status.rollout_state_reason.clone().into(),
        ]);
    }
    if table.is_empty() {
        return out.line(&format!("{key} has no deployment yet"));
    }
    out.text(&table.render())
}

/// Writes what an older deployment rolled out into the service.
async fn back(going: &Going, to: Option<&str>, stops: bool, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let (client, key) = open(&going.service, going.wait, global).await?;
    let object = client.get(&key).await?;
    let spec = object.as_service().and_then(|s| s.spec.clone()).unwrap_or_default();
    let past = deployments(&client, &object).await?;
    let refused = progress::rollout_failure(&object).is_some();
    let progressing = past.first().is_some_and(|newest| {
        let begun = refused || newest.spec.revision_digest == service::revision_digest(&spec);
        !begun || newest.status.rollout_state() == Rollout::InProgress
    });
    if stops && !progressing {
        return Err(Failure::failed(format!(
            "{key}: nothing is being rolled out; `steady rollout history {key}` tells more"
        )));
    }
    let chosen = choose(&key, &past, &spec, to)?;
    let definition = Key::new(Kind::TaskDefinition, "", &chosen.spec.task_definition);
    if client.find(&definition).await?.is_none() {
        return Err(Failure::failed(format!(
            "{key}: {definition}, which {} ran, is not there any more",
            chosen.object.name()
        )));
    }
    let edit = |spec: &mut ServiceSpec| {
        spec.task_definition.clone_from(&chosen.spec.task_definition);
        spec.force_new_deployment = chosen.spec.force_new_deployment;
        spec.network_configuration.clone_from(&chosen.spec.network_configuration);
        spec.load_balancers.clone_from(&chosen.spec.load_balancers);
    };
    let (name, definition) = (chosen.object.name(), &chosen.spec.task_definition);
    if client
        .edit_service(&key, &["taskDefinition", "forceNewDeployment", "networkConfiguration", "loadBalancers"], edit)
        .await?
    {
        out.line(&format!("{key} goes back to {definition}, as in {name}"))?;
    } else {
        out.line(&format!(
            "{key} unchanged: it wants {definition}, as in {name}, already; `rollout restart` tries it again"
        ))?;
    }
    if going.wait { wait(&client, key, global, out).await } else { Ok(()) }
}

/// The deployment that is named, or the newest of something else than what is wanted now that was completed.
fn choose<'a>(key: &Key, past: &'a [Past], spec: &ServiceSpec, to: Option<&str>) -> Result<&'a Past, Failure> {
    let digest = service::revision_digest(spec);
    if let Some(to) = to {
        let name = target::name_of(Kind::Deployment, to)?;
        let named = past.iter().find(|past| past.object.name() == name);
        return named.ok_or_else(|| {
            let all: Vec<&str> = past.iter().map(|past| past.object.name()).collect();
            Failure::usage(format!("{key} has no deployment `{name}`; deployments: {}", all.join(", ")))
        });
    }
    let completed = |past: &&Past| past.spec.revision_digest != digest && past.status.completed_at.is_some();
    past.iter().find(completed).ok_or_else(|| {
        Failure::failed(format!(
            "{key}: there is no completed deployment to go back to; `steady rollout history {key}` lists all, --to names one"
        ))
    })
}

async fn go_on(args: &Continue, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let (client, key) = open(&args.going.service, args.going.wait, global).await?;
    let past = deployments(&client, &client.get(&key).await?).await?;
    let on_its_way = past.first().filter(|past| past.status.rollout_state() == Rollout::InProgress);
    let Some(newest) = on_its_way else {
        return Err(Failure::failed(format!(
            "{key}: nothing is being rolled out; `steady rollout history {key}` tells more"
        )));
    };
    let name = newest.object.name();
    let action = if args.rollback { Action::Rollback } else { Action::Continue };
    let request = ContinueServiceDeploymentRequest {
        cluster: key.cluster.to_string(),
        service_deployment: name.to_owned(),
        hook_id: args.hook.clone().unwrap_or_default(),
        action: action.into(),
    };
    client.continue_deployment(request).await?;
    out.line(&format!("{key}: {name} {}", if args.rollback { "is rolled back" } else { "goes on" }))?;
    if args.going.wait { wait(&client, key, global, out).await } else { Ok(()) }
}

async fn restart(going: &Going, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let (client, key) = open(&going.service, going.wait, global).await?;
    let number = world::now().0;
    client.edit_service(&key, &["forceNewDeployment"], |spec| spec.force_new_deployment = number).await?;
    out.line(&format!("{key} is deployed anew"))?;
    if going.wait { wait(&client, key, global, out).await } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(name: &str, sequence: i64, definition: &str, completed: bool) -> Past {
        let spec = ServiceSpec { task_definition: definition.into(), ..ServiceSpec::default() };
        Past {
            object: Arc::new(Object::new("default", name, Deployment::default())),
            spec: DeploymentSpec {
                sequence,
                task_definition: definition.into(),
                revision_digest: service::revision_digest(&spec),
                ..DeploymentSpec::default()
            },
            status: DeploymentStatus { completed_at: completed.then(Default::default), ..DeploymentStatus::default() },
        }
    }

    #[test]
    fn undo_goes_to_the_newest_completed_deployment_of_something_else() {
        let all = [past("w-4", 4, "w:3", false), past("w-3", 3, "w:2", false), past("w-1", 1, "w:1", true)];
        let key = Key::new(Kind::Service, "default", "w");
        let spec = ServiceSpec { task_definition: "w:3".into(), ..ServiceSpec::default() };
        assert_eq!(choose(&key, &all, &spec, None).expect("one").object.name(), "w-1");
        assert_eq!(choose(&key, &all, &spec, Some("deployment/w-3")).expect("one").object.name(), "w-3");
        let unknown = choose(&key, &all, &spec, Some("w-9")).err().expect("none").to_string();
        assert!(unknown.contains("w-4, w-3, w-1"), "{unknown}");
        let first = choose(&key, &all[..1], &spec, None).err().expect("none").to_string();
        assert!(first.contains("no completed deployment"), "{first}");
    }
}
