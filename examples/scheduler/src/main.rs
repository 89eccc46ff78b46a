//! A scheduler of one's own: puts each task on the first instance, by name, that has CPU and memory for it.
//!
//! It knows the API and nothing else of Steady: `Watch` tells it what there is, `Commit` with `Bind` places. It places the
//! tasks whose `schedulerName` is `first-fit`, and runs beside Steady's own scheduler and any number of others: it gives the
//! revision of the instance's Reservation, so that it is refused, and looks again, when another one was there before it.
//!
//! ```sh
//! cargo run -p steady-example-scheduler -- http://127.0.0.1:7443
//! ```

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use steady_proto::Kind;
use steady_proto::v1::change::Change as Wire;
use steady_proto::v1::objects_client::ObjectsClient;
use steady_proto::v1::watch_response::Phase;
use steady_proto::v1::{
    Bind, BoundTask, Change, CommitRequest, Expect, Object, WatchRequest, desired_status, instance_state, object,
    task_last_status,
};
use tonic::Code;
use tonic::transport::Channel;

/// What tasks name to be placed by this scheduler.
const NAME: &str = "first-fit";
/// Tasks that are bound to one instance at once: a commit takes 100 changes, and a Bind counts two more than its tasks.
const AT_ONCE: usize = 50;

/// Everything of the watched kinds, by kind, cluster and name.
type World = BTreeMap<(i32, String, String), Object>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let server = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:7443".to_owned());
    let mut objects = ObjectsClient::connect(server.clone()).await.with_context(|| server)?;
    println!("{NAME}: watching");
    let kinds = [Kind::Task, Kind::ContainerInstance, Kind::Reservation].map(i32::from);
    let request = WatchRequest { kinds: kinds.into(), ..WatchRequest::default() };
    let mut watch = objects.watch(request).await?.into_inner();
    let (mut world, mut whole) = (World::new(), false);
    while let Some(news) = watch.message().await? {
        for event in news.events {
            let Some(object) = event.object else { continue };
            let meta = object.meta.clone().unwrap_or_default();
            let key = (object.kind().into(), meta.cluster, meta.name);
            if event.deleted {
                world.remove(&key);
            } else {
                world.insert(key, object);
            }
        }
        whole |= news.phase == i32::from(Phase::InitDone);
        // Half a snapshot, or half a revision, is nothing to decide on.
        if whole && !news.more {
            place(&mut objects, &world).await?;
        }
    }
    bail!("the watch ended")
}

/// Places what waits, as far as there is room.
async fn place(objects: &mut ObjectsClient<Channel>, world: &World) -> anyhow::Result<()> {
    let mut free = free(world);
    let mut bound: BTreeMap<(String, String), Vec<BoundTask>> = BTreeMap::new();
    for object in world.values() {
        let Some(object::Kind::Task(task)) = &object.kind else { continue };
        let (Some(spec), Some(status), Some(meta)) = (&task.spec, &task.status, &object.meta) else { continue };
        let waits = spec.container_instance.is_empty()
            && status.desired_status() == desired_status::Value::Running
            && status.last_status() != task_last_status::Value::Stopped;
        let demand = spec.demand.clone().unwrap_or_default();
        // Ports, other resources, attributes and constraints are more than this scheduler knows of: such tasks are left alone.
        let plain = demand.ports.is_empty()
            && demand.named.is_empty()
            && spec.requires_attributes.is_empty()
            && spec.placement_constraints.is_empty()
            && spec.target_instance.is_empty()
            && spec.capacity_provider.is_empty();
        if !waits || !plain || spec.scheduler_name != NAME {
            continue;
        }
        let (cpu, memory) = spec.demand.as_ref().map_or((0, 0), |demand| (demand.cpu, demand.memory));
        let fits = free.iter_mut().find(|((cluster, _), left)| {
            *cluster == meta.cluster && left.0 >= i64::from(cpu) && left.1 >= i64::from(memory)
        });
        let Some((instance, left)) = fits else { continue };
        *left = (left.0 - i64::from(cpu), left.1 - i64::from(memory));
        let expect = Some(Expect { revision: meta.revision });
        let tasks = bound.entry(instance.clone()).or_default();
        if tasks.len() < AT_ONCE {
            tasks.push(BoundTask { name: meta.name.clone(), expect });
        }
    }
    for ((cluster, container_instance), tasks) in bound {
        let key = (i32::from(Kind::Reservation), cluster.clone(), container_instance.clone());
        let reservation = world.get(&key).and_then(|object| object.meta.as_ref()).map_or(0, |meta| meta.revision);
        let (count, reservation) = (tasks.len(), Some(Expect { revision: reservation }));
        let bind = Bind {
            cluster,
            container_instance: container_instance.clone(),
            reservation,
            scheduler: NAME.into(),
            tasks,
        };
        let changes = vec![Change { change: Some(Wire::Bind(bind)) }];
        match objects.commit(CommitRequest { changes, ..CommitRequest::default() }).await {
            Ok(_) => println!("{NAME}: {count} placed on {container_instance}"),
            // Somebody else was faster, or the instance is not what it was: the watch tells of it.
            Err(status) if matches!(status.code(), Code::Aborted | Code::FailedPrecondition) => {
                println!("{NAME}: {container_instance}: {}", status.message());
            }
            Err(status) => return Err(status.into()),
        }
    }
    Ok(())
}

/// CPU units and MiB that each instance has left, of those that take tasks.
fn free(world: &World) -> BTreeMap<(String, String), (i64, i64)> {
    let mut free = BTreeMap::new();
    for object in world.values() {
        let Some(object::Kind::ContainerInstance(instance)) = &object.kind else { continue };
        let (Some(spec), Some(meta)) = (&instance.spec, &object.meta) else { continue };
        let connected = instance.status.as_ref().is_some_and(|status| status.agent_connected);
        let active = !matches!(spec.status(), instance_state::Value::Draining | instance_state::Value::Inactive);
        if connected && active && meta.deleting.is_none() {
            let has = spec.registered_resources.clone().unwrap_or_default();
            free.insert((meta.cluster.clone(), meta.name.clone()), (i64::from(has.cpu), i64::from(has.memory)));
        }
    }
    for object in world.values() {
        let Some(object::Kind::Task(task)) = &object.kind else { continue };
        let (Some(spec), Some(status), Some(meta)) = (&task.spec, &task.status, &object.meta) else { continue };
        if status.last_status() == task_last_status::Value::Stopped {
            continue;
        }
        if let Some(left) = free.get_mut(&(meta.cluster.clone(), spec.container_instance.clone())) {
            let (cpu, memory) = spec.demand.as_ref().map_or((0, 0), |demand| (demand.cpu, demand.memory));
            *left = (left.0 - i64::from(cpu), left.1 - i64::from(memory));
        }
    }
    free
}
