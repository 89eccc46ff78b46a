//! The API's promises to controllers: one stream in revision order, all or nothing, fences that hold.
#![allow(clippy::unwrap_used, missing_docs)]

use std::net::SocketAddr;
use std::sync::Arc;

use steady_apiserver::server::Server;
use steady_apiserver::storage::Memory;
use steady_core::v1::change::Change as Wire;
use steady_core::v1::watch_response::Phase;
use steady_core::v1::{
    AcquireRequest, ApplyRequest, Bind, BoundTask, Change, Check, CommitRequest, ContainerInstance,
    ContainerInstanceSpec, ContainerInstanceStatus, Event, EventSpec, Expect, Fence, GetRequest, InstanceResources,
    Object, ObjectRef, PutStatus, RunTaskRequest, SequencerExpect, WatchRequest, object, task_last_status,
};
use steady_core::{Key, Kind, SystemClock, manifest};
use steady_runtime::Client;
use tonic::Code;

async fn server() -> (Server, Client) {
    let listen: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let server = Server::start(listen, Arc::new(Memory::new(Arc::new(SystemClock))), None).await.unwrap();
    let client = Client::new(&[format!("http://{}", server.address)]).unwrap();
    (server, client)
}

async fn apply(client: &Client, text: &str) {
    let objects = manifest::parse("t", text.as_bytes(), None).documents.into_iter().map(|d| d.object).collect();
    client.objects().apply(ApplyRequest { objects, dry_run: false }).await.unwrap();
}

const WEB: &str = "apiVersion: steady/v1\nkind: TaskDefinition\nmetadata: {name: web}\nspec:\n  containerDefinitions:\n  \
    - {name: a, image: x, memory: 10}\n---\napiVersion: steady/v1\nkind: Service\nmetadata: {name: web}\nspec:\n  \
    {taskDefinition: web}\n";

fn event(name: &str) -> Change {
    let spec = EventSpec { reason: "X".into(), ..EventSpec::default() };
    Change { change: Some(Wire::Create(Object::new("default", name, Event { spec: Some(spec) }))) }
}

async fn get(client: &Client, kind: Kind, name: &str) -> Option<Object> {
    let reference = Key::new(kind, "default", name).reference();
    let found = client.objects().get(GetRequest { r#ref: Some(reference) }).await;
    found.ok().and_then(|f| f.into_inner().object)
}

#[tokio::test]
async fn a_watch_is_a_snapshot_and_then_every_change_of_all_its_kinds_in_order() {
    let (_server, client) = server().await;
    apply(&client, WEB).await;
    let kinds = vec![Kind::Service.into(), Kind::TaskDefinition.into(), Kind::Event.into()];
    let mut stream =
        client.objects().watch(WatchRequest { kinds, ..WatchRequest::default() }).await.unwrap().into_inner();
    let mut snapshot = 0;
    loop {
        let response = stream.message().await.unwrap().unwrap();
        snapshot += response.events.len();
        if response.phase() == Phase::InitDone {
            break;
        }
    }
    assert_eq!(snapshot, 2);
    for i in 0..20 {
        let changes = vec![event(&format!("e{i}")), event(&format!("f{i}"))];
        client.objects().commit(CommitRequest { changes, ..CommitRequest::default() }).await.unwrap();
    }
    let (mut seen, mut last) = (0, 0);
    while seen < 40 {
        let response = stream.message().await.unwrap().unwrap();
        assert!(response.revision > last, "in order");
        assert_eq!(response.events.len() % 2, 0, "a transaction is never cut in two");
        last = response.revision;
        seen += response.events.len();
    }
}

#[tokio::test]
async fn a_commit_happens_as_a_whole_or_not_at_all() {
    let (_server, client) = server().await;
    apply(&client, WEB).await;
    let service = get(&client, Kind::Service, "web").await.unwrap();
    let stale =
        Check { r#ref: Some(service.reference()), expect: Some(Expect { revision: service.meta().revision - 1 }) };
    let changes = vec![event("a"), Change { change: Some(Wire::Check(stale)) }];
    let refused = client.objects().commit(CommitRequest { changes, ..CommitRequest::default() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    assert_eq!(get(&client, Kind::Event, "a").await, None);
}

#[tokio::test]
async fn fences_and_sequencers_refuse_what_comes_late() {
    let (_server, client) = server().await;
    let lease = |holder: &str| AcquireRequest { name: "controller.x".into(), holder: holder.into(), ttl_seconds: 60 };
    let taken = client.leases().acquire(lease("a")).await.unwrap().into_inner();
    let adopted = client.leases().acquire(lease("a")).await.unwrap().into_inner();
    assert_eq!(taken.epoch, adopted.epoch, "a lost answer is adopted");
    assert_eq!(client.leases().acquire(lease("b")).await.unwrap_err().code(), Code::AlreadyExists);

    let commit = |name: &str, epoch: i64, sequence: i64| CommitRequest {
        changes: vec![event(name)],
        fence: Some(Fence { lease: "controller.x".into(), epoch }),
        sequencer: Some(SequencerExpect { name: "x/default/web".into(), revision: sequence }),
    };
    let first = client.objects().commit(commit("a", taken.epoch, 0)).await.unwrap().into_inner();
    let late = client.objects().commit(commit("b", taken.epoch, 0)).await.unwrap_err();
    assert_eq!(late.code(), Code::Aborted, "the sequencer moved on");
    let old = client.objects().commit(commit("c", taken.epoch - 1, first.sequencer_revision)).await.unwrap_err();
    assert_eq!(old.code(), Code::Aborted);
    assert!(old.message().contains("no longer held"), "{old}");
    client.objects().commit(commit("d", taken.epoch, first.sequencer_revision)).await.unwrap();
    assert_eq!(get(&client, Kind::Event, "b").await, None);
}

#[tokio::test]
async fn a_task_never_goes_back_and_a_client_token_starts_none_twice() {
    let (_server, client) = server().await;
    apply(&client, WEB).await;
    let run = RunTaskRequest { task_definition: "web".into(), client_token: "t".into(), ..RunTaskRequest::default() };
    let first = client.tasks().run_task(run.clone()).await.unwrap().into_inner().tasks;
    let again = client.tasks().run_task(run).await.unwrap().into_inner().tasks;
    assert_eq!(first[0].name(), again[0].name());
    let put = |status: task_last_status::Value| {
        let mut task = first[0].clone();
        if let Some(object::Kind::Task(task)) = &mut task.kind {
            task.status.as_mut().unwrap().set_last_status(status);
        }
        let put = PutStatus { object: Some(task), expect: None };
        CommitRequest { changes: vec![Change { change: Some(Wire::PutStatus(put)) }], ..CommitRequest::default() }
    };
    client.objects().commit(put(task_last_status::Value::Running)).await.unwrap();
    let back = client.objects().commit(put(task_last_status::Value::Pending)).await.unwrap_err();
    assert_eq!(back.code(), Code::FailedPrecondition, "{back}");
}

#[tokio::test]
async fn two_schedulers_bind_to_one_instance_as_long_as_it_has_room() {
    let (_server, client) = server().await;
    apply(&client, WEB).await;
    let resources = InstanceResources { cpu: 1000, memory: 25, ..InstanceResources::default() };
    let spec = ContainerInstanceSpec { registered_resources: Some(resources), ..ContainerInstanceSpec::default() };
    let status = ContainerInstanceStatus { agent_connected: true, ..ContainerInstanceStatus::default() };
    let node = Object::new("default", "node", ContainerInstance { spec: Some(spec), status: Some(status) });
    let create = vec![Change { change: Some(Wire::Create(node)) }];
    client.objects().commit(CommitRequest { changes: create, ..CommitRequest::default() }).await.unwrap();
    let run = RunTaskRequest { task_definition: "web".into(), count: 4, ..RunTaskRequest::default() };
    let tasks = client.tasks().run_task(run).await.unwrap().into_inner().tasks;
    // Each has seen the instance when it was empty.
    let bind = async |task: &Object, reservation: Option<Expect>| {
        let expect = Some(Expect { revision: task.meta().revision });
        let bind = Bind {
            cluster: "default".into(),
            container_instance: "node".into(),
            reservation,
            scheduler: "mine".into(),
            tasks: vec![BoundTask { name: task.name().into(), expect }],
        };
        let changes = vec![Change { change: Some(Wire::Bind(bind)) }];
        client.objects().commit(CommitRequest { changes, ..CommitRequest::default() }).await
    };
    let empty = Some(Expect { revision: 0 });
    bind(&tasks[0], empty).await.unwrap();
    let stale = bind(&tasks[1], empty).await.unwrap_err();
    assert_eq!(stale.code(), Code::Aborted, "one that heeds what is there looks again: {stale}");
    bind(&tasks[2], None).await.unwrap();
    let full = bind(&tasks[3], None).await.unwrap_err();
    assert_eq!(full.code(), Code::FailedPrecondition, "{full}");
    assert!(full.message().contains("no room"), "{full}");
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let (_server, client) = server().await;
    let reference =
        ObjectRef { kind: Kind::Service.into(), cluster: "default".into(), name: "x".into(), ..<_>::default() };
    let missing = client.objects().get(GetRequest { r#ref: Some(reference) }).await.unwrap_err();
    assert_eq!((missing.code(), missing.message()), (Code::NotFound, "there is no service/x"));
}
