//! `steady.v1.Agent`: one session for each agent.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use steady_core::secrets::parse_role;
use steady_core::security::{Resolved, groups};
use steady_core::v1::agent_server::Agent;
use steady_core::v1::session_request::Message as FromAgent;
use steady_core::v1::session_response::Message as ToAgent;
use steady_core::v1::task_last_status::Value as LastStatus;
use steady_core::v1::{
    Absent, Assignment, Assignments, HeartbeatSeen, Object, Registered, Report, ReportStored, ResolvedSecurityGroup,
    SecurityGroupsTold, SessionRequest, SessionResponse,
};
use steady_core::{DEFAULT_CLUSTER, Key, Kind, Revision, View, instance_lease, task};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::dispatch::Dispatch;
use super::{Relay, status};
use crate::cache::Changed;
use crate::meter::Meter;
use crate::registry::{Registration, Registry, RegistryError};
use crate::storage::LeaseId;

/// Seconds that an instance may be silent before it counts as disconnected, and between heartbeats.
const LEASE_SECONDS: i32 = 10;
const HEARTBEAT_SECONDS: i32 = 3;
/// Messages that may wait for an agent.
const PENDING: usize = 256;
/// Changes told at once.
const MAX_CHANGES: usize = 500;
/// Most tasks whose absence is verified at once.
const MAX_VERIFIED: usize = 100;
/// How long the first message may take.
const FIRST: Duration = Duration::from_secs(10);

/// Serves agents.
pub(crate) struct AgentService {
    registry: Registry,
    relay: Relay,
    meter: Meter,
    dispatch: Arc<Dispatch>,
}

impl AgentService {
    pub(crate) fn new(registry: Registry, relay: Relay, meter: Meter) -> Self {
        let dispatch = Arc::new(Dispatch::of(registry.cache().clone()));
        AgentService { registry, relay, meter, dispatch }
    }
}

#[tonic::async_trait]
impl Agent for AgentService {
    type SessionStream = Pin<Box<dyn futures::Stream<Item = Result<SessionResponse, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (sender, receiver) = mpsc::channel(PENDING);
        let (registry, relay, dispatch) = (self.registry.clone(), self.relay.clone(), Arc::clone(&self.dispatch));
        let meter = self.meter.clone();
        let mut incoming = request.into_inner();
        tokio::spawn(async move {
            if let Err(status) = open(registry, relay, meter, &dispatch, &mut incoming, &sender).await {
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

type Sender = mpsc::Sender<Result<SessionResponse, Status>>;

async fn open(
    registry: Registry,
    relay: Relay,
    meter: Meter,
    dispatch: &Dispatch,
    incoming: &mut Streaming<SessionRequest>,
    sender: &Sender,
) -> Result<(), Status> {
    let first = tokio::time::timeout(FIRST, incoming.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no registration came"))??;
    let Some(FromAgent::Register(register)) = first.and_then(|m| m.message) else {
        return Err(Status::invalid_argument("the first message of a session is the registration"));
    };
    let Registration { instance, uid, .. } = registry.register(&register).await.map_err(status::of)?;
    let (groups, told) = (dispatch.security_groups(), None);
    let sender = sender.clone();
    let mut session =
        Session { registry, relay, meter, sender, instance, uid, at: Revision(0), lease: None, groups, told };
    session.stay_alive().await?;
    let number = session.relay.opened(&session.instance, session.sender.clone());
    let ended = session.run(incoming, dispatch).await;
    if session.relay.closed(&session.instance, number) {
        session.meter.gone(&session.instance);
    }
    ended
}

struct Session {
    registry: Registry,
    relay: Relay,
    meter: Meter,
    sender: Sender,
    instance: Key,
    uid: String,
    /// Of the last snapshot: every change up to here was sent.
    at: Revision,
    /// The number of its lease.
    lease: Option<LeaseId>,
    /// Every security group, and those that the agent was told.
    groups: watch::Receiver<Arc<Resolved>>,
    told: Option<Vec<ResolvedSecurityGroup>>,
}

impl Session {
    /// Takes or renews the lease that is the instance's sign of life. The uid holds it, so that an agent that
    /// was restarted has it at once.
    async fn stay_alive(&mut self) -> Result<(), Status> {
        let name = instance_lease(&self.instance.cluster, &self.instance.name);
        if let Some(id) = self.lease
            && self.registry.renew(&name, &self.uid, id).await.is_ok()
        {
            return Ok(());
        }
        let taken = self.registry.acquire(&name, &self.uid, LEASE_SECONDS).await.map_err(status::of)?;
        self.lease = Some(taken.id);
        Ok(())
    }

    async fn run(&mut self, incoming: &mut Streaming<SessionRequest>, dispatch: &Dispatch) -> Result<(), Status> {
        // Before the view: what is not in the view yet is told.
        let mut changes = dispatch.follow(&self.instance);
        let view = self.registry.fresh_view().await.map_err(status::of)?;
        // An agent belongs to one store for ever: rather no answer than one that is not known.
        let store = view.get(&Key::new(Kind::Cluster, "", DEFAULT_CLUSTER));
        let store = store.ok_or_else(|| Status::unavailable("the store has no default cluster; try again"))?;
        let store_id = store.meta().uid.clone();
        let registered = Registered { uid: self.uid.clone(), store_id, heartbeat_seconds: HEARTBEAT_SECONDS };
        self.send(ToAgent::Registered(registered)).await?;
        self.snapshot(&view).await?;
        drop(view);
        loop {
            tokio::select! {
                biased;
                message = incoming.message() => match message? {
                    Some(message) => self.obey(message).await?,
                    None => return Ok(()),
                },
                first = changes.recv() => if let Some(first) = first {
                    self.tell(first, &mut changes).await?;
                } else {
                    changes = dispatch.follow(&self.instance);
                    let view = self.registry.cache().view();
                    self.snapshot(&view).await?;
                },
                Ok(()) = self.groups.changed() => {
                    let view = self.registry.cache().view();
                    self.tell_groups(&view).await?;
                }
            }
        }
    }

    async fn send(&self, message: ToAgent) -> Result<(), Status> {
        let message = SessionResponse { message: Some(message) };
        self.sender.send(Ok(message)).await.map_err(|_| Status::cancelled("the agent hung up"))
    }

    /// Tells the agent the security groups of its tasks, if they are not what it was told last.
    async fn tell_groups(&mut self, view: &View) -> Result<(), Status> {
        let known = Arc::clone(&self.groups.borrow_and_update());
        if known.is_empty() && self.told.as_ref().is_some_and(Vec::is_empty) {
            return Ok(());
        }
        let cluster = &self.instance.cluster;
        let tasks = view.on_instance(cluster, &self.instance.name).filter_map(|object| task::of(object));
        let names: BTreeSet<&str> =
            tasks.flat_map(|task| groups(task.spec.network_configuration.as_ref())).map(String::as_str).collect();
        let groups = names.into_iter().filter_map(|name| known.get(&(cluster.clone(), name.into())).cloned());
        let groups: Vec<ResolvedSecurityGroup> = groups.collect();
        if self.told.as_ref() != Some(&groups) {
            self.told = Some(groups.clone());
            self.send(ToAgent::SecurityGroups(SecurityGroupsTold { groups })).await?;
        }
        Ok(())
    }

    async fn snapshot(&mut self, view: &View) -> Result<(), Status> {
        self.at = view.revision();
        self.tell_groups(view).await?;
        let tasks = view.on_instance(&self.instance.cluster, &self.instance.name);
        let assignments = tasks.map(|task| self.assignment(view, task)).collect();
        self.send(ToAgent::Assignments(Assignments { snapshot: true, assignments })).await
    }

    /// Tells the agent of a change, and of all that wait behind it.
    async fn tell(&mut self, first: Arc<Changed>, more: &mut mpsc::Receiver<Arc<Changed>>) -> Result<(), Status> {
        let waiting = std::iter::once(first).chain(std::iter::from_fn(|| more.try_recv().ok())).take(MAX_CHANGES);
        // Of a task that changed several times only the last is of interest here.
        let news = waiting.filter(|change| change.revision > self.at);
        let latest: BTreeMap<String, Arc<Changed>> = news.map(|c| (c.object.name().to_owned(), c)).collect();
        if latest.is_empty() {
            return Ok(());
        }
        let view = self.registry.cache().view();
        self.tell_groups(&view).await?;
        let assignments = latest.into_values().map(|change| self.assignment(&view, &change.object)).collect();
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
                self.relay.chunk(&self.instance, chunk);
                Ok(())
            }
            Some(FromAgent::UsageTold(told)) => {
                self.relay.told(&self.instance, told);
                Ok(())
            }
            Some(FromAgent::UsageSampled(sampled)) => {
                self.meter.sampled(&self.instance, sampled.tasks, self.registry.now());
                Ok(())
            }
            Some(FromAgent::ExecChunk(chunk)) => {
                self.relay.of_command(&self.instance, chunk);
                Ok(())
            }
            Some(FromAgent::Register(_)) => Err(Status::invalid_argument("a session registers once")),
            None => Ok(()),
        }
    }

    fn assignment(&self, view: &View, task: &Object) -> Assignment {
        let told = task::of(task);
        let name = told.as_ref().map_or("", |t| &t.spec.task_definition);
        let definition = view.get(&Key::new(Kind::TaskDefinition, "", name));
        let definition = definition.and_then(|d| d.as_task_definition()?.spec.clone());
        // Containers that run have theirs.
        let starts = told.as_ref().is_some_and(|t| t.status.last_status() < LastStatus::Running && t.is_live());
        let (secrets, missing_secrets) = match definition.as_ref().filter(|_| starts) {
            Some(definition) => self.registry.open_secrets(view, task.cluster(), definition),
            None => <_>::default(),
        };
        // These are asked for as long as the task is there.
        let role = definition.as_ref().filter(|_| told.is_some_and(|t| t.is_live()));
        let role = role.and_then(|definition| parse_role(&definition.task_role_arn));
        let role = role.and_then(|role| self.registry.open_secret(view, task.cluster(), role).ok());
        let task_role_credentials = role.unwrap_or_default();
        Assignment { task: Some(task.clone()), definition, secrets, missing_secrets, task_role_credentials }
    }

    async fn report(&self, report: Report) -> Result<(), Status> {
        let (refused, _) = self.registry.report(&self.instance, &report.tasks).await.map_err(status::of)?;
        self.send(ToAgent::ReportStored(ReportStored { sequence: report.sequence, refused })).await
    }
}
