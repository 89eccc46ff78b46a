//! `steady.v1.Agent`: one session for each agent.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use steady_core::v1::agent_server::Agent;
use steady_core::v1::session_request::Message as FromAgent;
use steady_core::v1::session_response::Message as ToAgent;
use steady_core::v1::{
    Absent, Assignment, Assignments, HeartbeatSeen, Object, Registered, Report, ReportStored, SessionRequest,
    SessionResponse,
};
use steady_core::{DEFAULT_CLUSTER, Key, Kind, Revision, View, instance_lease, task};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{LogRouter, status};
use crate::registry::{Registration, Registry, RegistryError};

/// Seconds that an instance may be silent before it counts as disconnected, and between heartbeats.
const LEASE_SECONDS: i32 = 10;
const HEARTBEAT_SECONDS: i32 = 3;
/// Messages that may wait for an agent.
const PENDING: usize = 256;
/// Changes read at once.
const MAX_CHANGES: usize = 500;
/// Most tasks whose absence is verified at once.
const MAX_VERIFIED: usize = 100;
/// How long the first message may take.
const FIRST: Duration = Duration::from_secs(10);

/// Serves agents.
pub(crate) struct AgentService {
    pub(crate) registry: Registry,
    pub(crate) logs: LogRouter,
}

#[tonic::async_trait]
impl Agent for AgentService {
    type SessionStream = Pin<Box<dyn futures::Stream<Item = Result<SessionResponse, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (sender, receiver) = mpsc::channel(PENDING);
        let (registry, logs) = (self.registry.clone(), self.logs.clone());
        let mut incoming = request.into_inner();
        tokio::spawn(async move {
            if let Err(status) = open(registry, logs, &mut incoming, &sender).await {
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

type Sender = mpsc::Sender<Result<SessionResponse, Status>>;

async fn open(
    registry: Registry,
    logs: LogRouter,
    incoming: &mut Streaming<SessionRequest>,
    sender: &Sender,
) -> Result<(), Status> {
    let first = tokio::time::timeout(FIRST, incoming.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no registration came"))??;
    let Some(FromAgent::Register(register)) = first.and_then(|m| m.message) else {
        return Err(Status::invalid_argument("the first message of a session is the registration"));
    };
    let Registration { instance, uid, .. } = registry.register(&register).await.map_err(status::of)?;
    let mut session = Session { registry, logs, sender: sender.clone(), instance, uid, at: Revision(0) };
    session.stay_alive().await?;
    let number = session.logs.opened(&session.instance, sender.clone());
    let ended = session.run(incoming).await;
    session.logs.closed(&session.instance, number);
    ended
}

struct Session {
    registry: Registry,
    logs: LogRouter,
    sender: Sender,
    instance: Key,
    uid: String,
    /// Every change up to here was sent.
    at: Revision,
}

impl Session {
    /// Takes or renews the lease that is the instance's sign of life. The uid holds it, so that an agent that
    /// was restarted has it at once.
    async fn stay_alive(&self) -> Result<(), Status> {
        let name = instance_lease(&self.instance.cluster, &self.instance.name);
        if self.registry.keep_alive(&name, &self.uid, None).await.is_ok() {
            return Ok(());
        }
        self.registry.acquire(&name, &self.uid, LEASE_SECONDS).await.map(|_| ()).map_err(status::of)
    }

    async fn run(&mut self, incoming: &mut Streaming<SessionRequest>) -> Result<(), Status> {
        let view = self.registry.fresh_view().await.map_err(status::of)?;
        // An agent belongs to one store for ever: rather no answer than one that is not known.
        let store = view.get(&Key::new(Kind::Cluster, "", DEFAULT_CLUSTER));
        let store = store.ok_or_else(|| Status::unavailable("the store has no default cluster; try again"))?;
        let store_id = store.meta().uid.clone();
        let registered = Registered { uid: self.uid.clone(), store_id, heartbeat_seconds: HEARTBEAT_SECONDS };
        self.send(ToAgent::Registered(registered)).await?;
        self.snapshot(&view).await?;
        let mut progress = self.registry.cache().progress();
        loop {
            let at = self.at;
            tokio::select! {
                biased;
                message = incoming.message() => match message? {
                    Some(message) => self.obey(message).await?,
                    None => return Ok(()),
                },
                moved = async { progress.wait_for(|revision| *revision > at).await.is_ok() } => {
                    if !moved {
                        return Err(Status::unavailable("the API server is ending"));
                    }
                    self.changes().await?;
                }
            }
        }
    }

    async fn send(&self, message: ToAgent) -> Result<(), Status> {
        let message = SessionResponse { message: Some(message) };
        self.sender.send(Ok(message)).await.map_err(|_| Status::cancelled("the agent hung up"))
    }

    async fn snapshot(&mut self, view: &View) -> Result<(), Status> {
        self.at = view.revision();
        let tasks = view.on_instance(&self.instance.cluster, &self.instance.name);
        let assignments = tasks.map(|task| assignment(view, task)).collect();
        self.send(ToAgent::Assignments(Assignments { snapshot: true, assignments })).await
    }

    async fn changes(&mut self) -> Result<(), Status> {
        let Ok((changes, reached)) = self.registry.cache().changes(self.at, MAX_CHANGES) else {
            let view = self.registry.cache().view();
            return self.snapshot(&view).await;
        };
        self.at = reached;
        // Of a task that changed several times only the last is of interest here.
        let mut latest: BTreeMap<&str, &Object> = BTreeMap::new();
        for change in changes.iter().filter(|c| !c.deleted && c.object.cluster() == self.instance.cluster) {
            let here = |t: task::View<'_>| t.spec.container_instance == self.instance.name;
            if task::of(&change.object).is_some_and(here) {
                latest.insert(change.object.name(), &change.object);
            }
        }
        if latest.is_empty() {
            return Ok(());
        }
        let view = self.registry.cache().view();
        let assignments = latest.into_values().map(|task| assignment(&view, task)).collect();
        self.send(ToAgent::Assignments(Assignments { snapshot: false, assignments })).await
    }

    async fn obey(&mut self, message: SessionRequest) -> Result<(), Status> {
        match message.message {
            Some(FromAgent::Heartbeat(_)) => {
                self.stay_alive().await?;
                self.send(ToAgent::HeartbeatSeen(HeartbeatSeen {})).await
            }
            Some(FromAgent::Report(report)) => self.report(report).await,
            Some(FromAgent::VerifyAbsent(asked)) => {
                // Whoever stops a task on this word must not be misled by a cache that missed something.
                let mut tasks = Vec::new();
                for name in asked.tasks.into_iter().take(MAX_VERIFIED) {
                    let key = Key::new(Kind::Task, &self.instance.cluster, &name);
                    let object = match self.registry.stored(&key).await {
                        // It is there, whatever it is.
                        Err(RegistryError::Refused(_)) => continue,
                        object => object.map_err(status::of)?,
                    };
                    let found = object.as_ref().and_then(task::of);
                    if found.is_none_or(|t| t.spec.container_instance != self.instance.name || !t.is_live()) {
                        tasks.push(name);
                    }
                }
                self.send(ToAgent::Absent(Absent { tasks })).await
            }
            Some(FromAgent::LogChunk(chunk)) => {
                self.logs.chunk(&self.instance, chunk);
                Ok(())
            }
            Some(FromAgent::Register(_)) => Err(Status::invalid_argument("a session registers once")),
            None => Ok(()),
        }
    }

    async fn report(&self, report: Report) -> Result<(), Status> {
        let (refused, _) = self.registry.report(&self.instance, &report.tasks).await.map_err(status::of)?;
        self.send(ToAgent::ReportStored(ReportStored { sequence: report.sequence, refused })).await
    }
}

fn assignment(view: &View, task: &Object) -> Assignment {
    let name = task.as_task().and_then(|t| t.spec.as_ref()).map_or("", |s| &s.task_definition);
    let definition = view.get(&Key::new(Kind::TaskDefinition, "", name));
    let definition = definition.and_then(|d| d.as_task_definition()?.spec.clone());
    Assignment { task: Some(task.clone()), definition }
}
