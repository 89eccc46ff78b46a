//! The session with the API server: opened again whenever it ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use futures::StreamExt;
use futures::stream::PollNext;
use rustix::time::{ClockId, clock_gettime};
use steady_core::v1::session_request::Message as Up;
use steady_core::v1::session_response::Message as Down;
use steady_core::v1::{
    ContainerUsage, Heartbeat, LogChunk, LogOpen, LogsResponse, Register, Report, SessionRequest, SessionResponse,
    TaskUsage, UsageAsked, UsageSampled, UsageTold, VerifyAbsent,
};
use steady_runtime::Client;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::{Code, Status, Streaming};

use crate::commands::Commands;
use crate::engine::{Input, Outgoing};
use crate::identity::Identity;
use crate::runtime::{ContainerId, LogRequest, Runtime};
use crate::{AgentError, Settings};

/// Messages that may wait for the API server.
const PENDING: usize = 256;
/// Most statuses of one report.
const MAX_REPORT: usize = 500;
/// Without a word from the API server for this long the session is over.
const SILENCE: Duration = Duration::from_secs(15);
/// Between signs of life, when the API server does not say.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// Between questions about tasks that the control plane did not name.
const VERIFY: Duration = Duration::from_secs(5);
/// Containers that are asked at once what they take.
const USAGES: usize = 8;
/// How long they may take to say so: less than the API server waits.
const USAGE: Duration = Duration::from_secs(4);

/// An agent's side of the session.
pub(crate) struct Session {
    pub(crate) settings: Settings,
    pub(crate) identity: Identity,
    pub(crate) client: Client,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) to_engine: mpsc::UnboundedSender<Input>,
    pub(crate) from_engine: watch::Receiver<Outgoing>,
    /// What tasks take, of every look.
    pub(crate) usage: watch::Receiver<Arc<Vec<TaskUsage>>>,
}

enum Ended {
    Again(Status),
    Finally(AgentError),
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        Ended::Again(status)
    }
}

impl Session {
    /// Keeps a session open. Ends only when another one would be of no use.
    pub(crate) async fn run(mut self) -> AgentError {
        let retries = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(5))
            .with_jitter()
            .without_max_times();
        let mut delays = retries.build();
        loop {
            let (opened, place) = (tokio::time::Instant::now(), self.client.place());
            match self.open().await {
                Ended::Finally(error) => return error,
                Ended::Again(status) => {
                    let refused = matches!(status.code(), Code::AlreadyExists | Code::InvalidArgument);
                    if refused || status.code() == Code::FailedPrecondition {
                        return AgentError::Refused(status.message().to_owned());
                    }
                    tracing::debug!(instance = self.settings.name, %status, "the session ended; opening another");
                }
            }
            if opened.elapsed() > Duration::from_secs(10) {
                delays = retries.build();
            }
            self.client.rotate(place);
            tokio::time::sleep(delays.next().unwrap_or_default()).await;
        }
    }

    async fn open(&mut self) -> Ended {
        let (sender, receiver) = mpsc::channel(PENDING);
        let (control, controls) = mpsc::unbounded_channel();
        let register = Register {
            cluster: self.settings.cluster.clone(),
            name: self.settings.name.clone(),
            uid: self.identity.uid.clone(),
            spec: Some(self.settings.spec.clone()),
            holder: self.settings.holder.clone(),
        };
        let first = SessionRequest { message: Some(Up::Register(register)) };
        let _ = control.send(first);
        // Signs of life and statuses never wait behind output, and whoever sends them never waits for room: it reads, too, and
        // two sides that wait for each other's room would do so for ever.
        let (controls, bulk) = (UnboundedReceiverStream::new(controls), ReceiverStream::new(receiver));
        let outgoing = futures::stream::select_with_strategy(controls, bulk, |(): &mut ()| PollNext::Left);
        let mut agent = self.client.agent();
        match tokio::time::timeout(SILENCE, agent.session(outgoing)).await {
            Ok(Ok(answer)) => match self.talk(answer.into_inner(), sender, control).await {
                Ok(never) => match never {},
                Err(ended) => ended,
            },
            Ok(Err(status)) => status.into(),
            Err(_) => Status::deadline_exceeded("no answer to the registration").into(),
        }
    }

    async fn talk(
        &mut self,
        mut incoming: Streaming<SessionResponse>,
        sender: mpsc::Sender<SessionRequest>,
        control: mpsc::UnboundedSender<SessionRequest>,
    ) -> Result<std::convert::Infallible, Ended> {
        let mut open = Open {
            sender,
            control,
            sequence: 0,
            in_flight: None,
            verifying: false,
            logs: BTreeMap::new(),
            commands: Commands::default(),
        };
        let mut beat = tokio::time::interval(HEARTBEAT);
        let mut verify = tokio::time::interval(VERIFY);
        let mut registered = false;
        let mut heard = tokio::time::Instant::now();
        verify.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let verifies = registered && !open.verifying && !self.from_engine.borrow().unverified.is_empty();
            tokio::select! {
                biased;
                message = tokio::time::timeout_at(heard + SILENCE, incoming.message()) => {
                    heard = tokio::time::Instant::now();
                    let message = message.map_err(|_| Status::deadline_exceeded("the API server is silent"))?;
                    let message = message?.ok_or_else(|| Status::unavailable("the API server ended the session"))?;
                    match message.message {
                        Some(Down::Registered(answer)) => {
                            self.belongs(&answer.store_id)?;
                            registered = true;
                            beat = self.heartbeats(answer.heartbeat_seconds);
                            self.from_engine.mark_changed();
                        }
                        Some(message) => self.obey(&mut open, message)?,
                        None => {}
                    }
                }
                changed = self.from_engine.changed(), if registered && open.in_flight.is_none() => {
                    changed.map_err(|_| Status::cancelled("the engine ended"))?;
                    let outgoing = self.from_engine.borrow_and_update().clone();
                    open.report(outgoing)?;
                }
                Ok(()) = self.usage.changed(), if registered => {
                    let tasks = self.usage.borrow_and_update().to_vec();
                    open.send(Up::UsageSampled(UsageSampled { tasks }))?;
                }
                _ = beat.tick(), if registered => open.send(Up::Heartbeat(Heartbeat {}))?,
                _ = verify.tick(), if verifies => {
                    let tasks = self.from_engine.borrow().unverified.clone();
                    open.verifying = true;
                    open.send(Up::VerifyAbsent(VerifyAbsent { tasks }))?;
                }
            }
        }
    }

    /// Ticks as often as the API server wants a sign of life. Agents that registered in the same moment, as all do when
    /// their API server goes, have theirs at different times.
    fn heartbeats(&self, seconds: i32) -> tokio::time::Interval {
        let period = u64::try_from(seconds).ok().filter(|s| *s > 0).map_or(HEARTBEAT, Duration::from_secs);
        let digits = self.identity.uid.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let phase = period.mul_f64(f64::from(digits.unwrap_or_default()) / f64::from(u32::MAX));
        tokio::time::interval_at(tokio::time::Instant::now() + phase, period)
    }

    /// An agent obeys one store for ever.
    fn belongs(&mut self, store: &str) -> Result<(), Ended> {
        if self.identity.store.is_empty() {
            let joined = self.identity.join(store);
            return joined.map_err(|e| Ended::Finally(AgentError::Local(e.to_string())));
        }
        if self.identity.store == store {
            return Ok(());
        }
        Err(Ended::Finally(AgentError::OtherStore { known: self.identity.store.clone(), found: store.to_owned() }))
    }

    fn obey(&mut self, open: &mut Open, message: Down) -> Result<(), Ended> {
        let input = match message {
            Down::Assignments(new) if new.snapshot => Input::Snapshot(new.assignments),
            Down::Assignments(new) => Input::Changed(new.assignments),
            Down::SecurityGroups(told) => Input::SecurityGroups(told.groups),
            Down::Absent(absent) => {
                open.verifying = false;
                Input::Absent(absent.tasks)
            }
            Down::ReportStored(stored) => {
                let Some((sequence, versions)) = open.in_flight.take() else { return Ok(()) };
                if sequence != stored.sequence {
                    open.in_flight = Some((sequence, versions));
                    return Ok(());
                }
                self.from_engine.mark_changed();
                Input::Stored { versions, refused: stored.refused }
            }
            Down::LogOpen(request) => {
                let (runtime, sender) = (Arc::clone(&self.runtime), open.sender.clone());
                open.logs.retain(|_, reading| !reading.is_finished());
                open.logs.insert(request.id, tokio::spawn(read_logs(runtime, sender, request)));
                return Ok(());
            }
            Down::LogClose(closed) => {
                if let Some(reading) = open.logs.remove(&closed.id) {
                    reading.abort();
                }
                return Ok(());
            }
            Down::UsageAsked(asked) => {
                tokio::spawn(tell_usage(Arc::clone(&self.runtime), open.sender.clone(), asked));
                return Ok(());
            }
            Down::ExecMessage(message) => {
                open.commands.obey(message, &self.runtime, &open.sender);
                return Ok(());
            }
            Down::HeartbeatSeen(_) | Down::Registered(_) => return Ok(()),
        };
        self.to_engine.send(input).map_err(|_| Ended::Finally(AgentError::Local("the task engine ended".into())))
    }
}

/// What belongs to one open session.
struct Open {
    /// For output: it waits until there is room.
    sender: mpsc::Sender<SessionRequest>,
    /// For everything else.
    control: mpsc::UnboundedSender<SessionRequest>,
    sequence: i64,
    /// The report that is not answered yet: the versions it told of each task.
    in_flight: Option<(i64, BTreeMap<String, u64>)>,
    verifying: bool,
    logs: BTreeMap<i64, JoinHandle<()>>,
    commands: Commands,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.logs.values().for_each(JoinHandle::abort);
    }
}

impl Open {
    fn send(&self, message: Up) -> Result<(), Ended> {
        let message = SessionRequest { message: Some(message) };
        self.control.send(message).map_err(|_| Status::unavailable("the session ended").into())
    }

    /// Tells what is not stored yet; one report at a time, so that they are stored in order.
    fn report(&mut self, outgoing: Outgoing) -> Result<(), Ended> {
        if outgoing.reports.is_empty() {
            return Ok(());
        }
        self.sequence += 1;
        let mut versions = BTreeMap::new();
        let mut tasks = Vec::new();
        for (version, report) in outgoing.reports.into_iter().take(MAX_REPORT) {
            versions.insert(report.task.clone(), version);
            tasks.push(report);
        }
        self.in_flight = Some((self.sequence, versions));
        self.send(Up::Report(Report { sequence: self.sequence, tasks }))
    }
}

/// A clock that only goes forward, of the whole machine.
fn since_boot() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    (now.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as u64)
}

/// Says what containers take, those of them that run.
async fn tell_usage(runtime: Arc<dyn Runtime>, sender: mpsc::Sender<SessionRequest>, asked: UsageAsked) {
    let usages = futures::stream::iter(asked.containers).map(|name| {
        let runtime = Arc::clone(&runtime);
        async move {
            let id = ContainerId { task: name.task, name: name.container };
            let usage = runtime.usage(&id).await.ok()?;
            Some(ContainerUsage {
                task: id.task,
                container: id.name,
                container_instance: String::new(),
                at_nanoseconds: since_boot(),
                cpu_nanoseconds: usage.cpu_nanoseconds,
                memory_bytes: usage.memory_bytes,
                memory_limit_bytes: usage.memory_limit_bytes.unwrap_or(0),
                received_bytes: usage.received_bytes,
                sent_bytes: usage.sent_bytes,
                read_bytes: usage.read_bytes,
                written_bytes: usage.written_bytes,
                processes: usage.processes,
            })
        }
    });
    // What is not told in time is not told: the question is given up by then.
    let told = usages.buffer_unordered(USAGES).take_until(tokio::time::sleep(USAGE));
    let containers = told.filter_map(|usage| async move { usage }).collect().await;
    let told = UsageTold { id: asked.id, containers };
    let _ = sender.send(SessionRequest { message: Some(Up::UsageTold(told)) }).await;
}

/// Sends the output of a task's containers, one after the other, or all at once when it goes on.
async fn read_logs(runtime: Arc<dyn Runtime>, sender: mpsc::Sender<SessionRequest>, open: LogOpen) {
    let asked = open.request.unwrap_or_default();
    let request = LogRequest { follow: asked.follow, tail: usize::try_from(asked.tail).unwrap_or(0) };
    let send = |chunk: LogChunk| {
        let sender = sender.clone();
        async move { sender.send(SessionRequest { message: Some(Up::LogChunk(chunk)) }).await.is_ok() }
    };
    let mut error = String::new();
    let mut streams = Vec::new();
    for name in open.containers {
        let id = ContainerId { task: asked.task.clone(), name: name.clone() };
        match runtime.logs(&id, request).await {
            Ok(stream) => streams.push(stream.map(move |piece| (name.clone(), piece)).boxed()),
            Err(failed) => error = failed.to_string(),
        }
    }
    if streams.is_empty() {
        let error = if error.is_empty() { "the task has no containers".to_owned() } else { error };
        send(LogChunk { id: open.id, chunk: None, end: true, error }).await;
        return;
    }
    // Followed output comes as it comes; what is there already, container by container.
    let mut pieces = if request.follow {
        futures::stream::select_all(streams).boxed()
    } else {
        futures::stream::iter(streams).flatten().boxed()
    };
    while let Some((container, piece)) = pieces.next().await {
        let Ok(piece) = piece else { break };
        let chunk = LogsResponse { container, data: piece.data.to_vec(), stderr: piece.stderr };
        if !send(LogChunk { id: open.id, chunk: Some(chunk), end: false, error: String::new() }).await {
            return;
        }
    }
    send(LogChunk { id: open.id, chunk: None, end: true, error: String::new() }).await;
}
