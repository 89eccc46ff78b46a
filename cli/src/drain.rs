//! `steady drain`: has services' tasks leave container instances.

use clap::Args;
use steady_core::{Key, Kind, task};
use steady_proto::v1::instance_state::Value as State;
use steady_proto::v1::{Object, object};
use tokio::time::Instant;

use crate::args::Global;
use crate::client::Client;
use crate::columns::short_id;
use crate::failure::Failure;
use crate::out::Out;
use crate::watch::Watch;
use crate::world::World;
use crate::{progress, span, target};

/// Arguments of `steady drain`.
#[derive(Debug, Args)]
#[command(
    after_long_help = "A DRAINING instance gets no new tasks. Tasks of services that do not run yet are stopped, those that run are
replaced elsewhere within their service's minimumHealthyPercent and maximumPercent. Standalone tasks run on.

Examples:
  steady drain containerinstance/node-1 --wait     until no task of a service is left on it
  steady drain ci/node-1 ci/node-2 ci/node-3 --batch 1    one after the other
  steady drain ci/node-1 --cancel                  ACTIVE again"
)]
pub struct Drain {
    /// Container instances: containerinstance/NAME or NAME.
    #[arg(required = true, value_name = "INSTANCE")]
    pub instances: Vec<String>,
    /// Make them ACTIVE again.
    #[arg(long, conflicts_with = "wait")]
    pub cancel: bool,
    /// Wait until no task of a service is left on them.
    #[arg(long)]
    pub wait: bool,
    /// Drain so many at a time, the next ones when the ones before are empty.
    #[arg(long, value_name = "COUNT", conflicts_with = "cancel", value_parser = parse_batch)]
    pub batch: Option<usize>,
}

fn parse_batch(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|count| *count > 0)
        .ok_or_else(|| format!("`{text}` is no number of instances; expected 1 or more"))
}

/// `steady drain`.
pub async fn run(args: Drain, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let waits = args.wait || args.batch.is_some();
    let client = if waits { global.connect_to_wait().await? } else { global.connect().await? };
    let state = if args.cancel { State::Active } else { State::Draining };
    let names = args.instances.iter().map(|word| target::name_of(Kind::ContainerInstance, word));
    let names: Vec<String> = names.collect::<Result<_, _>>()?;
    let keys: Vec<Key> = names.iter().map(|name| Key::new(Kind::ContainerInstance, &global.cluster, name)).collect();
    for key in &keys {
        // A name that is wrong is told before the first one drains.
        client.get(key).await?;
    }
    for batch in keys.chunks(args.batch.unwrap_or(keys.len())) {
        for key in batch {
            let edit = |object: &mut Object| {
                if let Some(object::Kind::ContainerInstance(instance)) = &mut object.kind {
                    instance.spec.get_or_insert_default().set_status(state);
                }
            };
            let changed = client.edit(key, &["status"], edit).await?;
            let already = if changed { "" } else { " already" };
            out.line(&format!("{key} is {}{already}", state.as_str_name()))?;
        }
        if waits {
            until_empty(&client, batch, global, out).await?;
        }
    }
    Ok(())
}

/// Waits until no task of a service is left on these instances.
async fn until_empty(client: &Client, keys: &[Key], global: &Global, out: &mut Out) -> Result<(), Failure> {
    let within = global.timeout.unwrap_or(progress::PATIENCE);
    let deadline = Instant::now() + within;
    let kinds = [Kind::ContainerInstance, Kind::Task];
    let mut watch = Watch::open(client, &kinds, target::in_cluster(&global.cluster)).await?;
    let mut world = World::default();
    let mut told = String::new();
    loop {
        let news = tokio::time::timeout_at(deadline, world.follow(&mut watch)).await;
        news.map_err(|_| {
            let span = span::short(within);
            Failure::timed_out(format!("after {span}, {told}; `steady events` tells what their services wait for"))
        })??;
        let left: usize = keys.iter().map(|key| tasks(&world, key, true).len()).sum();
        let line = format!("{left} tasks of services are left");
        if left == 0 {
            break;
        }
        if line != told {
            out.progress(&line)?;
            told = line;
        }
    }
    out.rest();
    for key in keys {
        let alone = tasks(&world, key, false);
        out.line(&format!("{key} has no task of a service any more"))?;
        if !alone.is_empty() {
            out.line(&format!("  standalone tasks run on, `steady stop` ends them: {}", alone.join(" ")))?;
        }
    }
    Ok(())
}

/// Live tasks on an instance: those of services, or the others.
fn tasks(world: &World, key: &Key, of_services: bool) -> Vec<String> {
    let on = world.view.on_instance(&key.cluster, &key.name);
    let tasks =
        on.filter(|object| task::of(object).is_some_and(|t| t.is_live() && t.spec.service.is_empty() != of_services));
    tasks.map(|object| short_id(object.name()).to_string()).collect()
}
