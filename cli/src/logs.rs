//! `steady logs`: output of a task's containers, or of every task of a service.

use std::collections::BTreeSet;
use std::sync::Arc;

use clap::Args;
use steady_core::{Key, Kind, task};
use steady_proto::v1::task_last_status::Value as Status;
use steady_proto::v1::{LogsRequest, LogsResponse, Object};
use tokio::sync::mpsc;

use crate::args::Global;
use crate::client::Client;
use crate::columns::{self, short_id};
use crate::failure::Failure;
use crate::out::{self, Out, Style};
use crate::target;
use crate::watch::Watch;
use crate::world::World;

/// Arguments of `steady logs`.
#[derive(Debug, Args)]
#[command(after_long_help = "Of a service, each line begins with its task and container.

Examples:
  steady logs task/3fa8c1 --tail 50
  steady logs service/hello -f            of all its tasks, new ones too
  steady logs task/3fa8c1 --container app")]
pub struct Logs {
    /// task/ID, service/NAME, or the id of a task.
    #[arg(value_name = "TASK|SERVICE")]
    pub what: String,
    /// Go on until it stops.
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last N lines of each container.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..))]
    pub tail: i32,
    /// Only this container.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub container: String,
}

/// `steady logs`.
pub async fn run(args: Logs, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let service = args.what.contains('/').then(|| target::parse_one(&args.what)).transpose()?;
    let client = global.connect().await?;
    match service {
        Some(found) if found.kind == Kind::Service => {
            let service = Key::new(Kind::Service, &global.cluster, &found.name.unwrap_or_default());
            client.get(&service).await?;
            if args.follow {
                Box::pin(follow(&client, &args, &service, out)).await
            } else {
                of_service(&client, &args, &service, out).await
            }
        }
        _ => {
            let name = target::name_of(Kind::Task, &args.what)?;
            let key = target::task(&client, &global.cluster, &name).await?;
            of_task(&client, &args, &key, out).await
        }
    }
}

impl Logs {
    fn request(&self, key: &Key) -> LogsRequest {
        LogsRequest {
            cluster: key.cluster.to_string(),
            task: key.name.to_string(),
            container: self.container.clone(),
            follow: self.follow,
            tail: self.tail,
        }
    }
}

async fn of_task(client: &Client, args: &Logs, key: &Key, out: &mut Out) -> Result<(), Failure> {
    let object = client.get(key).await?;
    let several = task::of(&object).is_some_and(|task| task.status.containers.len() > 1) && args.container.is_empty();
    let mut stream = client.logs(args.request(key)).await?;
    while let Some(chunk) = client.next_chunk(&mut stream).await? {
        if several {
            out.bytes(&prefixed(&format!("{} | ", chunk.container), &chunk.data))?;
        } else {
            out.bytes(&chunk.data)?;
        }
    }
    Ok(())
}

/// What the tasks of a service have written: of those that are there, else of those that stopped.
async fn of_service(client: &Client, args: &Logs, service: &Key, out: &mut Out) -> Result<(), Failure> {
    let mut world = World::default();
    world.add(client.list(Kind::Task, target::in_cluster(&service.cluster)).await?);
    let placed = |object: &&Arc<Object>| task::of(object).is_some_and(|task| !task.spec.container_instance.is_empty());
    let mut tasks: Vec<Arc<Object>> =
        world.view.of_service(Kind::Task, &service.cluster, &service.name).filter(placed).cloned().collect();
    if tasks.iter().any(|object| is_live(object)) {
        tasks.retain(|object| is_live(object));
    }
    columns::sort(Kind::Task, &mut tasks);
    if tasks.is_empty() {
        out::note(&format!("{service} has no task with output; `steady describe {service}` tells why"));
    }
    for task in tasks {
        let key = Key::of(&task);
        match client.logs(args.request(&key)).await {
            Ok(mut stream) => {
                while let Some(chunk) = client.next_chunk(&mut stream).await? {
                    show(&key.name, &chunk, out)?;
                }
            }
            // One task whose output is lost does not hide the others'.
            Err(failure) => out::note(&format!("{}: {failure}", columns::short_reference(&key.reference()))),
        }
    }
    Ok(())
}

fn is_live(object: &Object) -> bool {
    task::of(object).is_some_and(|task| task.is_live())
}

/// What the tasks of a service write from now on; tasks that it starts later are joined.
async fn follow(client: &Client, args: &Logs, service: &Key, out: &mut Out) -> Result<(), Failure> {
    let (sender, mut chunks) = mpsc::channel::<(String, Result<LogsResponse, Failure>)>(256);
    let mut watch = Watch::open(client, &[Kind::Task, Kind::Service], target::in_cluster(&service.cluster)).await?;
    let mut world = World::default();
    let mut joined = BTreeSet::new();
    loop {
        tokio::select! {
            // Not cancelled half-way: following only waits for the stream's next message.
            news = world.follow(&mut watch) => {
                news?;
                if world.view.get(service).is_none() {
                    return Err(Failure::failed(format!("{service} was deleted")));
                }
                for object in world.view.of_service(Kind::Task, &service.cluster, &service.name) {
                    let key = Key::of(object);
                    if writes(object) && joined.insert(key.name.clone()) {
                        tokio::spawn(forward(client.clone(), args.request(&key), sender.clone()));
                    }
                }
            }
            Some((task, chunk)) = chunks.recv() => match chunk {
                Ok(chunk) => show(&task, &chunk, out)?,
                Err(failure) => out::note(&format!("task/{}: {failure}", short_id(&task))),
            },
        }
    }
}

/// Whether a task's containers run, so that there is output to follow.
fn writes(object: &Object) -> bool {
    let status = task::of(object).map(|task| task.status.last_status()).unwrap_or_default();
    (Status::Activating..Status::Stopped).contains(&status)
}

async fn forward(client: Client, request: LogsRequest, to: mpsc::Sender<(String, Result<LogsResponse, Failure>)>) {
    let task = request.task.clone();
    let mut stream = match client.logs(request).await {
        Ok(stream) => stream,
        Err(failure) => {
            let _ = to.send((task, Err(failure))).await;
            return;
        }
    };
    loop {
        let chunk = match client.next_chunk(&mut stream).await {
            Ok(Some(chunk)) => Ok(chunk),
            Ok(None) => return,
            Err(failure) => Err(failure),
        };
        let over = chunk.is_err();
        if to.send((task.clone(), chunk)).await.is_err() || over {
            return;
        }
    }
}

fn show(task: &str, chunk: &LogsResponse, out: &mut Out) -> Result<(), Failure> {
    let prefix = format!("{}/{} | ", task.get(..8).unwrap_or(task), chunk.container);
    let prefix = out.styled(Style::Told(color(task)), &prefix);
    out.bytes(&prefixed(&prefix, &chunk.data))
}

/// A task's lines are told from the others' by their colour, the same one each time.
fn color(task: &str) -> u8 {
    task.bytes().fold(0_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte))
}

/// Each line of `data` after `prefix`; the last one ends its line too.
fn prefixed(prefix: &str, data: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(data.len() + prefix.len() * 8);
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        text.extend_from_slice(prefix.as_bytes());
        text.extend_from_slice(line);
    }
    if text.last().is_some_and(|byte| *byte != b'\n') {
        text.push(b'\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_carries_its_prefix_and_ends() {
        assert_eq!(prefixed("a | ", b"one\ntwo\n"), b"a | one\na | two\n");
        assert_eq!(prefixed("a | ", b"one\ntwo"), b"a | one\na | two\n");
        assert_eq!(prefixed("a | ", b""), b"");
    }
}
