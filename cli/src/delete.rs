//! `steady delete`: deletes objects and waits until they are gone.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use steady_core::{Key, Kind, task};
use steady_proto::v1::Object;
use tokio::time::Instant;
use tonic::Code;

use crate::args::Global;
use crate::client::Client;
use crate::columns::short_id;
use crate::failure::{FAILED, Failure};
use crate::manifests::{Documents, rank};
use crate::out::{self, Out};
use crate::watch::Watch;
use crate::world::World;
use crate::{progress, span, target};

/// Arguments of `steady delete`.
#[derive(Debug, Args)]
#[command(
    after_long_help = "A service is drained: its tasks are stopped first. A task definition named by its family goes with
all its revisions. From manifests, services go before what they need.

Examples:
  steady delete service/hello
  steady delete -f hello.yaml
  steady delete service/hello --no-wait
  steady delete taskdefinition/hello:3        one revision"
)]
pub struct Delete {
    /// KIND/NAME…, or KIND NAME….
    #[arg(value_name = "KIND/NAME", required_unless_present = "filenames", conflicts_with = "filenames")]
    pub what: Vec<String>,
    /// What these manifests declare.
    #[arg(short = 'f', long = "filename", value_name = "PATH")]
    pub filenames: Vec<PathBuf>,
    /// Do not wait until they are gone.
    #[arg(long)]
    pub no_wait: bool,
}

/// `steady delete`.
pub async fn run(args: Delete, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let client = global.connect_to_wait().await?;
    let from_manifests = !args.filenames.is_empty();
    let keys = if from_manifests {
        declared(&client, &args.filenames, global).await?
    } else {
        named(&client, &args, global).await?
    };
    let deadline = Instant::now() + global.timeout.unwrap_or(progress::PATIENCE);
    let mut failed = 0;
    for key in keys {
        match one(&client, &key, !args.no_wait, deadline, out).await {
            Ok(()) => {}
            Err(failure) if failure.is(Code::NotFound) && from_manifests => out.line(&format!("{key} not found"))?,
            // What else can be deleted is deleted; the sum of it is told at the end.
            Err(failure) if failure.exit == FAILED => {
                out::note(&format!("steady: {failure}"));
                failed += 1;
            }
            Err(failure) => return Err(failure),
        }
    }
    if failed > 0 { Err(Failure::quiet(FAILED)) } else { Ok(()) }
}

async fn named(client: &Client, args: &Delete, global: &Global) -> Result<Vec<Key>, Failure> {
    let mut keys = Vec::new();
    for found in target::parse(&args.what)? {
        let Some(name) = found.name else {
            let kind = &args.what[0];
            return Err(Failure::usage(format!("say which of {kind}: KIND/NAME, for example {kind}/NAME")));
        };
        keys.extend(target::resolve(client, &global.cluster, found.kind, &name).await?);
    }
    Ok(keys)
}

/// What manifests declare, in the opposite order of its creation.
async fn declared(client: &Client, paths: &[PathBuf], global: &Global) -> Result<Vec<Key>, Failure> {
    let documents = Documents::read(paths, &global.cluster)?;
    documents.check()?;
    let mut named: Vec<Key> = documents.objects().iter().map(declared_key).collect();
    named.sort_by_key(|key| std::cmp::Reverse(rank(key.kind)));
    let mut keys = Vec::new();
    for key in named {
        match target::resolve(client, &key.cluster, key.kind, &key.name).await {
            Ok(found) => keys.extend(found),
            // Nothing of that family: the deletion itself says so.
            Err(failure) if failure.exit == FAILED && failure.status.is_none() => keys.push(key),
            Err(failure) => return Err(failure),
        }
    }
    Ok(keys)
}

fn declared_key(object: &Object) -> Key {
    let mut object = object.clone();
    steady_core::defaults::fill(&mut object);
    Key::of(&object)
}

async fn one(client: &Client, key: &Key, wait: bool, deadline: Instant, out: &mut Out) -> Result<(), Failure> {
    let Some(left) = client.delete(key).await? else {
        return out.line(&format!("{key} deleted"));
    };
    if !wait {
        return out.line(&format!("{key} is being deleted"));
    }
    let mut told = String::new();
    match tokio::time::timeout_at(deadline, gone(client, key, &left, &mut told, out)).await {
        Ok(result) => result?,
        Err(_) => {
            return Err(Failure::timed_out(format!(
                "{key} is still being deleted: {told}; `steady describe {key}` tells why"
            )));
        }
    }
    out.line(&format!("{key} deleted"))
}

/// Waits until this very object is gone; another one of the same name does not count.
async fn gone(client: &Client, key: &Key, left: &Object, told: &mut String, out: &mut Out) -> Result<(), Failure> {
    let kinds: &[Kind] = if key.kind == Kind::Service { &[Kind::Service, Kind::Task] } else { &[key.kind] };
    let mut watch = Watch::open(client, kinds, target::in_cluster(&key.cluster)).await?;
    let mut world = World::default();
    let since = Instant::now();
    loop {
        world.follow(&mut watch).await?;
        let there = world.view.get(key).filter(|object| object.meta().uid == left.meta().uid);
        let Some(object) = there else { return Ok(()) };
        let line = format!("{key}  {}", what_is_left(object, &world));
        if line != *told {
            // A deletion that is over at once needs no progress.
            if since.elapsed() > Duration::from_millis(100) || out.is_terminal() {
                out.progress(&line)?;
            }
            *told = line;
        }
    }
}

fn what_is_left(object: &Object, world: &World) -> String {
    let age = span::age(object.meta().deleting.as_ref(), crate::world::now());
    match object.kind() {
        Kind::Service => {
            let tasks = world.view.of_service(Kind::Task, object.cluster(), object.name());
            let live = tasks.filter(|o| task::of(o).is_some_and(|task| task.is_live())).count();
            format!("draining: {live} tasks left")
        }
        Kind::Task => format!("stopping {}", short_id(object.name())),
        _ if object.meta().finalizers.is_empty() => format!("deleting for {age}"),
        _ => format!("waits for {}", object.meta().finalizers.join(", ")),
    }
}
