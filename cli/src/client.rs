//! The API as the verbs use it: one connection to the first server that answers, errors as [`Failure`]s.

use std::future::Future;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use steady_core::{Key, Kind};
use steady_proto::v1::admin_client::AdminClient;
use steady_proto::v1::metrics_client::MetricsClient;
use steady_proto::v1::objects_client::ObjectsClient;
use steady_proto::v1::services_client::ServicesClient;
use steady_proto::v1::tasks_client::TasksClient;
use steady_proto::v1::{
    ApplyRequest, ApplyResponse, BackupRequest, BackupResponse, Change, CheckRequest, CheckResponse, CommitRequest,
    ContinueServiceDeploymentRequest, DeleteRequest, ExecRequest, ExecResponse, Expect, GetRequest, InstanceUsage,
    ListRequest, ListUsageRequest, LogsRequest, LogsResponse, MakeRoomRequest, MakeRoomResponse, Object,
    PutMetricDataRequest, PutSpec, RunTaskRequest, Selector, ServiceSpec, SetAlarmStateRequest, StatsRequest,
    StatsResponse, StatusRequest, StatusResponse, StopTaskRequest, UpdateTaskProtectionRequest, WatchRequest,
    WatchResponse, change, object,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status, Streaming};

use crate::failure::{Failure, unreachable};

/// How often a change is tried again when someone else wrote the object in between.
const TRIES: usize = 10;
/// Longest that a connection may take to come up.
const CONNECT: Duration = Duration::from_secs(3);
/// Largest answer that is read: a page of a thousand large objects.
const MAX_MESSAGE: usize = 256 * 1024 * 1024;

/// A connection to one of several servers.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
    address: String,
    addresses: Vec<String>,
    timeout: Duration,
}

impl Client {
    /// Connects to the first of `addresses` that answers a question: one that cannot reach its store is passed over.
    /// `timeout` bounds each request.
    pub async fn connect(addresses: &[String], timeout: Duration) -> Result<Self, Failure> {
        let client = |address: &str, channel| Client {
            channel,
            address: address.to_owned(),
            addresses: addresses.to_vec(),
            timeout,
        };
        if let [address] = addresses {
            return Ok(client(address, open(address, timeout).await?));
        }
        let mut asking: FuturesUnordered<_> = addresses
            .iter()
            .map(|address| async {
                let found = client(address, open(address, timeout).await?);
                found.find(&Key::new(Kind::Cluster, "", steady_core::DEFAULT_CLUSTER)).await.map(|_| found)
            })
            .collect();
        while let Some(answer) = asking.next().await {
            if let Ok(client) = answer {
                return Ok(client);
            }
        }
        Err(Failure::failed(unreachable(&addresses.join(", "), "")))
    }

    /// Connects anew, perhaps to another of the servers.
    pub async fn reconnect(&mut self) -> Result<(), Failure> {
        *self = Client::connect(&self.addresses, self.timeout).await?;
        Ok(())
    }

    /// The server it talks to.
    pub fn address(&self) -> &str {
        &self.address
    }

    fn objects(&self) -> ObjectsClient<Channel> {
        ObjectsClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    fn metrics(&self) -> MetricsClient<Channel> {
        MetricsClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    fn services(&self) -> ServicesClient<Channel> {
        ServicesClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// A request that must be answered in time.
    async fn ask<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Failure> {
        let answer = tokio::time::timeout(self.timeout, call)
            .await
            .unwrap_or_else(|_| Err(Status::new(Code::DeadlineExceeded, "no answer")));
        answer.map(Response::into_inner).map_err(|status| self.fail(&status))
    }

    fn fail(&self, status: &Status) -> Failure {
        Failure::of_status(status, &self.address)
    }

    /// One object; a failure where there is none.
    pub async fn get(&self, key: &Key) -> Result<Object, Failure> {
        let request = GetRequest { r#ref: Some(key.reference()) };
        let found = self.ask(self.objects().get(request)).await?;
        found.object.ok_or_else(|| Failure::failed(format!("{key} came without its content")))
    }

    /// One object; `None` where there is none.
    pub async fn find(&self, key: &Key) -> Result<Option<Object>, Failure> {
        match self.get(key).await {
            Ok(object) => Ok(Some(object)),
            Err(failure) if failure.is(Code::NotFound) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Every object of a kind that a selector takes, page by page. The selector's cluster is left out
    /// for kinds that belong to none.
    pub async fn list(&self, kind: Kind, selector: Selector) -> Result<Vec<Object>, Failure> {
        let selector = scoped(&[kind], selector);
        let mut items = Vec::new();
        let mut after = String::new();
        loop {
            let request =
                ListRequest { kind: kind.into(), selector: Some(selector.clone()), limit: 0, after: after.clone() };
            let page = self.ask(self.objects().list(request)).await?;
            items.extend(page.items);
            if page.next.is_empty() || page.next == after {
                return Ok(items);
            }
            after = page.next;
        }
    }

    /// Applies objects, all or none.
    pub async fn apply(&self, objects: Vec<Object>, dry_run: bool) -> Result<ApplyResponse, Failure> {
        self.ask(self.objects().apply(ApplyRequest { objects, dry_run })).await
    }

    /// Deletes an object. What is left of it, until its finalizers are gone.
    pub async fn delete(&self, key: &Key) -> Result<Option<Object>, Failure> {
        let request = DeleteRequest { r#ref: Some(key.reference()) };
        Ok(self.ask(self.objects().delete(request)).await?.object)
    }

    /// Makes changes, all or none.
    pub async fn commit(&self, changes: Vec<Change>) -> Result<(), Failure> {
        let request = CommitRequest { changes, fence: None, sequencer: None };
        self.ask(self.objects().commit(request)).await.map(|_| ())
    }

    /// Changes some fields of a service's spec; see [`Client::edit`].
    pub async fn edit_service(
        &self,
        key: &Key,
        fields: &[&str],
        mut edit: impl FnMut(&mut ServiceSpec),
    ) -> Result<bool, Failure> {
        let edit = |object: &mut Object| {
            if let Some(object::Kind::Service(service)) = &mut object.kind {
                edit(service.spec.get_or_insert_default());
            }
        };
        self.edit(key, fields, edit).await
    }

    /// Changes some fields of an object's spec, whatever others do to it meanwhile. What changes nothing is not written;
    /// whether something was.
    pub async fn edit(&self, key: &Key, fields: &[&str], mut edit: impl FnMut(&mut Object)) -> Result<bool, Failure> {
        let mut tries = 0;
        loop {
            let mut object = self.get(key).await?;
            let (revision, before) = (object.meta().revision, object.clone());
            edit(&mut object);
            if object == before {
                return Ok(false);
            }
            let fields = fields.iter().map(ToString::to_string).collect();
            let put = PutSpec { object: Some(object), fields, expect: Some(Expect { revision }) };
            match self.commit(vec![Change { change: Some(change::Change::PutSpec(put)) }]).await {
                Err(failure) if failure.is(Code::Aborted) && tries < TRIES => tries += 1,
                done => return done.map(|()| true),
            }
        }
    }

    /// Starts standalone tasks.
    pub async fn run_task(&self, request: RunTaskRequest) -> Result<Vec<Object>, Failure> {
        Ok(self.ask(self.tasks().run_task(request)).await?.tasks)
    }

    /// Asks a task to stop.
    pub async fn stop_task(&self, request: StopTaskRequest) -> Result<(), Failure> {
        self.ask(self.tasks().stop_task(request)).await.map(|_| ())
    }

    /// Has tasks of services not be chosen to stop, or ends that.
    pub async fn protect(&self, request: UpdateTaskProtectionRequest) -> Result<Vec<Object>, Failure> {
        self.ask(self.tasks().update_task_protection(request)).await.map(|answer| answer.protected_tasks)
    }

    /// Has hooks of a deployment that wait go on, or roll back.
    pub async fn continue_deployment(&self, request: ContinueServiceDeploymentRequest) -> Result<(), Failure> {
        self.ask(self.services().continue_service_deployment(request)).await.map(|_| ())
    }

    /// Says how an alarm is.
    pub async fn set_alarm_state(&self, request: SetAlarmStateRequest) -> Result<(), Failure> {
        self.ask(self.services().set_alarm_state(request)).await.map(|_| ())
    }

    /// Tells values of metrics.
    pub async fn put_metric_data(&self, request: PutMetricDataRequest) -> Result<(), Failure> {
        self.ask(self.metrics().put_metric_data(request)).await.map(|_| ())
    }

    /// What the tasks of a cluster take, as every API server of the address list knows it.
    pub async fn usage(&self, cluster: &str) -> Result<Vec<InstanceUsage>, Failure> {
        let request = ListUsageRequest { cluster: cluster.to_owned() };
        let mut usage = self.ask(self.metrics().list_usage(request.clone())).await?.instances;
        for address in self.addresses.iter().filter(|address| **address != self.address) {
            // One that is down has no agents either.
            let Ok(channel) = open(address, self.timeout).await else { continue };
            let other = Client { channel, address: address.clone(), ..self.clone() };
            if let Ok(more) = other.ask(other.metrics().list_usage(request.clone())).await {
                usage.extend(more.instances);
            }
        }
        Ok(usage)
    }

    /// Opens the stream of a task's output.
    pub async fn logs(&self, request: LogsRequest) -> Result<Streaming<LogsResponse>, Failure> {
        self.ask(self.tasks().logs(request)).await
    }

    /// What containers take.
    pub async fn stats(&self, request: StatsRequest) -> Result<StatsResponse, Failure> {
        self.ask(self.tasks().stats(request)).await
    }

    /// Runs a command in a container, and talks to it.
    pub async fn exec(&self, asked: mpsc::Receiver<ExecRequest>) -> Result<Streaming<ExecResponse>, Failure> {
        self.ask(self.tasks().exec(ReceiverStream::new(asked))).await
    }

    /// What a command says next.
    pub async fn next_answer(&self, stream: &mut Streaming<ExecResponse>) -> Result<Option<ExecResponse>, Failure> {
        stream.message().await.map_err(|status| self.fail(&status))
    }

    /// The next piece of a task's output; `None` at its end.
    pub async fn next_chunk(&self, stream: &mut Streaming<LogsResponse>) -> Result<Option<LogsResponse>, Failure> {
        stream.message().await.map_err(|status| self.fail(&status))
    }

    /// How the control plane is.
    pub async fn status(&self) -> Result<StatusResponse, Failure> {
        self.ask(self.admin().status(StatusRequest {})).await
    }

    /// Makes room in a store that is full. Takes as long as it takes.
    pub async fn make_room(&self) -> Result<MakeRoomResponse, Failure> {
        let made = self.admin().make_room(MakeRoomRequest {}).await;
        made.map(Response::into_inner).map_err(|status| self.fail(&status))
    }

    /// What should not be stored.
    pub async fn check(&self) -> Result<CheckResponse, Failure> {
        self.ask(self.admin().check(CheckRequest {})).await
    }

    /// Opens the stream of a backup.
    pub async fn backup(&self) -> Result<Streaming<BackupResponse>, Failure> {
        self.ask(self.admin().backup(BackupRequest {})).await
    }

    /// The next part of a backup; `None` at its end.
    pub async fn next_part(&self, stream: &mut Streaming<BackupResponse>) -> Result<Option<BackupResponse>, Failure> {
        stream.message().await.map_err(|status| self.fail(&status))
    }

    /// Opens a watch; [`crate::watch::Watch`] is what verbs use.
    pub(crate) async fn open_watch(&self, request: WatchRequest) -> Result<Streaming<WatchResponse>, Failure> {
        self.ask(self.objects().watch(request)).await
    }

    /// What the end of a stream means.
    pub(crate) fn stream_failure(&self, status: &Status) -> Failure {
        self.fail(status)
    }
}

/// The selector without its cluster when a kind is asked for that belongs to none.
pub(crate) fn scoped(kinds: &[Kind], mut selector: Selector) -> Selector {
    use steady_core::KindExt;
    if kinds.iter().any(|kind| !kind.in_cluster()) {
        selector.cluster.clear();
    }
    selector
}

async fn open(address: &str, timeout: Duration) -> Result<Channel, Failure> {
    let endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(|_| Failure::usage(format!("`{address}` is no address; write HOST:PORT or http://HOST:PORT")))?
        .connect_timeout(CONNECT.min(timeout))
        // A server that died without a word must not hold a watch for ever.
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true);
    if address.starts_with("https://") {
        return Err(Failure::usage(format!("{address}: this `steady` speaks no TLS yet; write http://HOST:PORT")));
    }
    endpoint.connect().await.map_err(|_| Failure::failed(unreachable(address, "")))
}
