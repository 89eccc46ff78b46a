//! The docker runtime: containers of a Docker Engine, over its socket.
//!
//! Every call has a deadline: an engine that hangs must not hang the agent. Containers carry the instance and the
//! task in their labels, so an agent that was killed finds its own again, and only its own.

mod execution;
mod image;
mod mapping;
mod output;
mod volume;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bollard::errors::Error;
use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum, SystemInfoCgroupDriverEnum};
use bollard::query_parameters::{
    CreateContainerOptions, EventsOptions, ListContainersOptions, RemoveContainerOptions, RemoveImageOptions,
    RemoveVolumeOptions, StatsOptions, StopContainerOptions,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use rustix::process::geteuid;
use steady_core::resources::capability;
use steady_core::{Clock, SystemClock, Timestamp};
use tokio::sync::mpsc;

use super::cgroup;
use super::cni::{Cni, DEFAULT_SUBNET};
use super::image::{PullBehavior, Pulls};
use super::labels;
use super::nft;
use super::{
    Command, ContainerId, ContainerSpec, Credentials, Execution, Exit, Found, LogPiece, LogRequest, Port, Pulled,
    Runtime, RuntimeError, State,
};
use super::{PAUSE, Usage};
use mapping::{name, volume_name};

/// Deadlines of the engine's calls (ECS' agent has the same for create and start).
const CONNECT: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_secs(30);
const CREATE: Duration = Duration::from_secs(4 * 60);
const START: Duration = Duration::from_secs(3 * 60);
const SLACK: Duration = Duration::from_secs(2 * 60);
/// The engine's name of the runtime that hands GPUs over (as ECS' agent asks for).
const NVIDIA: &str = "nvidia";
/// How often every container is looked at, should an event be lost.
const RELIST: Duration = Duration::from_secs(10);

/// A Docker Engine. Clones share the connection.
#[derive(Clone)]
pub struct Docker {
    engine: bollard::Docker,
    cluster: String,
    instance: String,
    logs: PathBuf,
    facts: Facts,
    pulls: Pulls,
    /// Makes networks of tasks.
    cni: Option<Cni>,
}

/// Which engine, and whose containers.
#[derive(Debug, Clone, Default)]
pub struct DockerSettings {
    /// Its socket; `None`: `/var/run/docker.sock`.
    pub socket: Option<String>,
    /// Only containers of this cluster and instance are this runtime's.
    pub cluster: String,
    /// The instance's uid.
    pub instance: String,
    /// Output of containers that were removed is kept below it.
    pub logs: PathBuf,
    /// When images are pulled.
    pub pull_behavior: PullBehavior,
    /// Subnet of tasks' own addresses; `None`: 10.88.0.0/16.
    pub task_subnet: Option<String>,
    /// Subnet of tasks' addresses on all machines; `None`: that of this one.
    pub task_network: Option<String>,
}

impl Docker {
    /// Connects to an engine.
    pub async fn connect(settings: DockerSettings) -> Result<Self, RuntimeError> {
        let socket = settings.socket.as_deref().unwrap_or("/var/run/docker.sock");
        let refused = |e: Error| RuntimeError::Other(format!("Docker at {socket}: {e}"));
        // The timeout of a single call is ours; the client's own only has to be longer.
        let engine = bollard::Docker::connect_with_unix(socket, 3600, bollard::API_DEFAULT_VERSION).map_err(refused)?;
        let answered = tokio::time::timeout(CONNECT, engine.negotiate_version()).await;
        let engine = answered
            .map_err(|_| RuntimeError::Timeout(format!("Docker at {socket} did not answer within {CONNECT:?}")))?
            .map_err(refused)?;
        // A socket may let through only what containers need.
        let facts = match within("info", CONNECT, engine.info()).await {
            Ok(Ok(info)) => Facts {
                drivers: info.plugins.as_ref().and_then(|plugins| plugins.log.clone()).unwrap_or_default(),
                volumes: info.plugins.and_then(|plugins| plugins.volume).unwrap_or_default(),
                live_restore: info.live_restore_enabled,
                nvidia: info.runtimes.is_some_and(|runtimes| runtimes.contains_key(NVIDIA)),
                cgroupfs: info.cgroup_driver == Some(SystemInfoCgroupDriverEnum::CGROUPFS),
            },
            Ok(Err(error)) => Facts::unknown(&text(&error)),
            Err(error) => Facts::unknown(&error.to_string()),
        };
        let DockerSettings { cluster, instance, logs, pull_behavior, task_subnet, task_network, .. } = settings;
        let subnet = task_subnet.as_deref().unwrap_or(DEFAULT_SUBNET);
        // Only root makes networks.
        let cni =
            Cni::find(subnet, task_network.as_deref(), logs.with_file_name("networks")).filter(|_| geteuid().is_root());
        Ok(Docker { engine, cluster, instance, logs, facts, pulls: Pulls::new(pull_behavior), cni })
    }

    /// Whether containers run on while the engine is restarted; `None`: it does not say.
    pub fn live_restore(&self) -> Option<bool> {
        self.facts.live_restore
    }

    fn filters(&self) -> HashMap<String, Vec<String>> {
        let own =
            vec![format!("{}={}", labels::CLUSTER, self.cluster), format!("{}={}", labels::INSTANCE, self.instance)];
        HashMap::from([("label".to_owned(), own)])
    }

    /// What the engine knows of a container; `None`: it is not there.
    async fn look(&self, id: &ContainerId) -> Result<Option<ContainerInspectResponse>, RuntimeError> {
        match within("inspect", LOOK, self.engine.inspect_container(&name(id), None)).await? {
            Ok(found) => Ok(Some(found)),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(failed(&error, RuntimeError::Other)),
        }
    }

    async fn inspect(&self, id: &ContainerId) -> Result<Option<(String, State, Duration)>, RuntimeError> {
        let Some(found) = self.look(id).await? else { return Ok(None) };
        let state = found.state.unwrap_or_default();
        let known = match state.status {
            Some(ContainerStateStatusEnum::CREATED) => State::Created,
            Some(ContainerStateStatusEnum::EXITED | ContainerStateStatusEnum::DEAD) => State::Exited(Exit {
                code: state.exit_code.and_then(|code| i32::try_from(code).ok()),
                out_of_memory: state.oom_killed.unwrap_or(false),
                at: moment(state.finished_at.as_deref()).unwrap_or_else(|| SystemClock.now()),
            }),
            _ => State::Running,
        };
        let until = match &known {
            State::Exited(exit) => exit.at,
            _ => SystemClock.now(),
        };
        let ran = moment(state.started_at.as_deref()).map_or(Duration::ZERO, |started| until.since(started));
        Ok(Some((found.id.unwrap_or_default(), known, ran)))
    }

    /// Takes a task's address back, from a pause container that runs or not.
    async fn detach_network(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let Some(cni) = &self.cni else { return Ok(()) };
        let namespace = self.namespace(id).await?;
        cni.del(&id.task, namespace.as_deref()).await.map_err(RuntimeError::Other)
    }

    /// The network namespace of a container that runs.
    async fn namespace(&self, id: &ContainerId) -> Result<Option<PathBuf>, RuntimeError> {
        let Some(found) = self.look(id).await? else { return Ok(None) };
        let pid = found.state.and_then(|state| state.pid).filter(|pid| *pid > 0);
        Ok(pid.map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net"))))
    }

    async fn start_if(&self, id: &ContainerId, is_due: impl Fn(&State) -> bool) -> Result<String, RuntimeError> {
        let Some((runtime_id, state, _)) = self.inspect(id).await? else {
            return Err(RuntimeError::NotFound(id.clone()));
        };
        if is_due(&state) {
            let started = within("start", START, self.engine.start_container(&name(id), None)).await?;
            started.map_err(|e| failed(&e, RuntimeError::Start))?;
        }
        Ok(runtime_id)
    }

    /// Tells every container that has ended. Telling it again does no harm.
    async fn tell_ended(&self, exits: &mpsc::UnboundedSender<(ContainerId, Exit)>) -> Result<(), RuntimeError> {
        for found in self.list().await? {
            if let State::Exited(exit) = found.state {
                let _ = exits.send((found.id, exit));
            }
        }
        Ok(())
    }

    async fn follow(self, exits: mpsc::UnboundedSender<(ContainerId, Exit)>) {
        let mut filters = self.filters();
        filters.insert("type".to_owned(), vec!["container".to_owned()]);
        filters.insert("event".to_owned(), vec!["die".to_owned()]);
        while !exits.is_closed() {
            let options = EventsOptions { filters: Some(filters.clone()), ..EventsOptions::default() };
            let mut events = std::pin::pin!(self.engine.events(Some(options)));
            let mut relist = tokio::time::interval(RELIST);
            loop {
                let event = tokio::select! {
                    event = events.next() => match event {
                        Some(Ok(event)) => event,
                        _ => break,
                    },
                    // The first one is at once, after the events are followed: none is missed in between.
                    _ = relist.tick() => {
                        if let Err(error) = self.tell_ended(&exits).await {
                            tracing::warn!(%error, "containers could not be listed");
                        }
                        continue;
                    }
                };
                let attributes = event.actor.and_then(|a| a.attributes).unwrap_or_default();
                let (Some(task), Some(name)) = (attributes.get(labels::TASK), attributes.get(labels::CONTAINER)) else {
                    continue;
                };
                let id = ContainerId { task: task.clone(), name: name.clone() };
                // The event has the exit code; only a look says whether memory was the cause.
                let exit = match self.inspect(&id).await {
                    Ok(Some((_, State::Exited(exit), _))) => exit,
                    // It was restarted, so that its end is known; or the next list tells.
                    Ok(Some(_)) | Err(_) => continue,
                    Ok(None) => Exit {
                        code: attributes.get("exitCode").and_then(|code| code.parse().ok()),
                        out_of_memory: false,
                        at: event.time.map_or_else(|| SystemClock.now(), |seconds| Timestamp(seconds * 1000)),
                    },
                };
                let _ = exits.send((id, exit));
            }
            tracing::warn!("Docker's events ended; following them again");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// What an engine says of itself.
#[derive(Debug, Clone, Default)]
struct Facts {
    /// Log drivers that it has. Without any only tasks that name none, or `json-file`, are placed here.
    drivers: Vec<String>,
    /// Volume drivers that it has.
    volumes: Vec<String>,
    live_restore: Option<bool>,
    /// It knows NVIDIA's runtime, which hands GPUs over.
    nvidia: bool,
    /// It makes cgroups where it is told to.
    cgroupfs: bool,
}

impl Facts {
    fn unknown(why: &str) -> Self {
        tracing::warn!(why, "Docker does not say what it can do");
        Facts::default()
    }
}

/// A call of the engine's with its deadline.
async fn within<T>(
    what: &str,
    limit: Duration,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<Result<T, Error>, RuntimeError> {
    let timeout = |_| RuntimeError::Timeout(format!("Docker did not answer {what} within {limit:?}"));
    tokio::time::timeout(limit, call).await.map_err(timeout)
}

/// A point in time as the engine writes it; `None` where it has none (the year 1).
fn moment(text: Option<&str>) -> Option<Timestamp> {
    Timestamp::parse(text?).filter(|at| at.0 > 0)
}

/// HTTP status of an engine's answer.
fn status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// What an engine refused; what came of an engine that does not answer is not known.
fn failed(error: &Error, refused: impl FnOnce(String) -> RuntimeError) -> RuntimeError {
    match error {
        Error::DockerResponseServerError { .. } => refused(text(error)),
        _ => RuntimeError::Unreachable(format!("Docker does not answer: {}", text(error))),
    }
}

/// What the engine says, on one line.
fn text(error: &Error) -> String {
    let text = match error {
        Error::DockerResponseServerError { message, .. } => message.clone(),
        other => other.to_string(),
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[async_trait]
impl Runtime for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        let drivers = self.facts.drivers.iter().map(|driver| format!("{}{driver}", capability::LOGGING_DRIVER));
        // The engine does not list the one that drops everything.
        let none = format!("{}none", capability::LOGGING_DRIVER);
        let volumes = self.facts.volumes.iter().map(|driver| format!("{}{driver}", capability::DOCKER_PLUGIN));
        let networks = self.cni.iter().flat_map(|_| nft::capabilities());
        let own = [capability::PRIVILEGED, capability::ENGINE].map(str::to_owned);
        let all = own.into_iter().chain(drivers).chain([none]).chain(volumes).chain(networks);
        all.map(|name| (name, String::new())).collect()
    }

    async fn list(&self) -> Result<Vec<Found>, RuntimeError> {
        let options =
            ListContainersOptions { all: true, filters: Some(self.filters()), ..ListContainersOptions::default() };
        let listed = within("list", LOOK, self.engine.list_containers(Some(options))).await?;
        let listed = listed.map_err(|e| RuntimeError::Other(text(&e)))?;
        let mut found = Vec::new();
        for container in listed {
            let labels = container.labels.unwrap_or_default();
            let (Some(task), Some(name)) = (labels.get(labels::TASK), labels.get(labels::CONTAINER)) else { continue };
            let id = ContainerId { task: task.clone(), name: name.clone() };
            let ports: Vec<Port> =
                labels.get(labels::PORTS).and_then(|ports| serde_json::from_str(ports).ok()).unwrap_or_default();
            if let Some((runtime_id, state, ran)) = self.inspect(&id).await? {
                let address = self.cni.as_ref().filter(|_| id.name == PAUSE).and_then(|cni| cni.address(&id.task));
                let gpus =
                    labels.get(labels::GPUS).and_then(|gpus| serde_json::from_str(gpus).ok()).unwrap_or_default();
                found.push(Found { id, runtime_id, state, ports, ran, address, gpus });
            }
        }
        Ok(found)
    }

    async fn pull(&self, image: &str, credentials: Option<&Credentials>) -> Result<Pulled, RuntimeError> {
        self.pulls.pull(&self.engine, image, credentials).await
    }

    async fn remove_image(&self, image: &str) -> Result<bool, RuntimeError> {
        let options = Some(RemoveImageOptions { force: false, noprune: false, ..RemoveImageOptions::default() });
        match within("remove image", SLACK, self.engine.remove_image(image, options, None)).await? {
            // A container has it that is not this agent's.
            Err(error) if status(&error) == Some(409) => Ok(false),
            Err(error) if status(&error) != Some(404) => Err(failed(&error, RuntimeError::Other)),
            _ => Ok(true),
        }
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<String, RuntimeError> {
        let options = CreateContainerOptions { name: Some(name(&spec.id)), platform: String::new() };
        volume::prepare(&self.engine, spec).await?;
        // Without a cgroup of the task's, each container is capped by itself.
        let cap = spec.cpu_limit.filter(|units| *units > 0 && self.facts.cgroupfs);
        let parent = cap.filter(|units| cgroup::cap(&spec.id.task, *units));
        let mut body = mapping::container(spec, parent.map(|_| format!("/{}", cgroup::of_task(&spec.id.task))));
        if self.facts.nvidia && spec.gpus.as_ref().is_some_and(|gpus| !gpus.is_empty()) {
            body.host_config.get_or_insert_default().runtime = Some(NVIDIA.to_owned());
        }
        match within("create", CREATE, self.engine.create_container(Some(options), body)).await? {
            Ok(made) => {
                for warning in made.warnings {
                    tracing::warn!(container = %spec.id, warning, "Docker does not do all that was asked for");
                }
                Ok(made.id)
            }
            // It is there already: of a former life, with the same name.
            Err(error) if status(&error) == Some(409) => match self.inspect(&spec.id).await? {
                Some((id, ..)) => Ok(id),
                None => Err(RuntimeError::Create(text(&error))),
            },
            Err(error) => Err(RuntimeError::Create(text(&error))),
        }
    }

    async fn start(&self, id: &ContainerId) -> Result<String, RuntimeError> {
        // One that ended is not started again.
        self.start_if(id, |state| *state == State::Created).await
    }

    async fn attach_network(&self, id: &ContainerId) -> Result<String, RuntimeError> {
        let Some(cni) = &self.cni else {
            let message = "networkMode awsvpc needs root and CNI's plug-ins (containernetworking-plugins)";
            return Err(RuntimeError::Resource(message.into()));
        };
        let namespace = self.namespace(id).await?.ok_or_else(|| RuntimeError::NotFound(id.clone()))?;
        cni.add(&id.task, &namespace, &[]).await.map_err(RuntimeError::Resource)
    }

    async fn filter_network(&self, id: &ContainerId, rules: &str) -> Result<(), RuntimeError> {
        let path = async || self.namespace(id).await?.ok_or_else(|| RuntimeError::NotFound(id.clone()));
        nft::filter(rules, path).await
    }

    async fn restart(&self, id: &ContainerId) -> Result<String, RuntimeError> {
        // After a restart of the machine the task's cgroup is gone, and its cap with it.
        let found = within("inspect", LOOK, self.engine.inspect_container(&name(id), None)).await?;
        let labels = found.ok().and_then(|found| found.config?.labels).unwrap_or_default();
        if let Some(units) =
            labels.get(labels::CPU).and_then(|units| units.parse().ok()).filter(|_| self.facts.cgroupfs)
        {
            cgroup::cap(&id.task, units);
        }
        self.start_if(id, |state| *state != State::Running).await
    }

    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        // While its namespace is there. What fails now is done when it is removed.
        if id.name == PAUSE
            && let Err(error) = self.detach_network(id).await
        {
            tracing::warn!(container = %id, %error, "the address was not given back yet");
        }
        let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
        let options = StopContainerOptions { signal: None, t: Some(seconds) };
        match within("stop", grace + SLACK, self.engine.stop_container(&name(id), Some(options))).await? {
            Ok(()) => Ok(()),
            Err(error) if matches!(status(&error), Some(304 | 404)) => Ok(()),
            Err(error) => Err(failed(&error, RuntimeError::Other)),
        }
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        if id.name == PAUSE {
            self.detach_network(id).await?;
        } else {
            output::keep(&self.engine, &self.logs, id).await;
        }
        let mut volumes: BTreeSet<String> =
            match within("inspect", LOOK, self.engine.inspect_container(&name(id), None)).await? {
                Ok(found) => found.mounts.unwrap_or_default().into_iter().filter_map(|m| m.name).collect(),
                Err(_) => BTreeSet::new(),
            };
        // Those that were made for a container that could not be.
        volumes.extend(volume::of_task(&self.engine, &id.task).await?);
        let options = RemoveContainerOptions { v: true, force: true, link: false };
        match within("remove", SLACK, self.engine.remove_container(&name(id), Some(options))).await? {
            Ok(()) => {}
            Err(error) if matches!(status(&error), Some(404 | 409)) => {}
            Err(error) => return Err(failed(&error, RuntimeError::Other)),
        }
        cgroup::uncap(&id.task);
        // A task's volume goes with the last container that has it; until then the engine keeps it.
        for volume in volumes.iter().filter(|v| v.starts_with(&volume_name(&id.task, ""))) {
            let _ =
                within("remove volume", LOOK, self.engine.remove_volume(volume, None::<RemoveVolumeOptions>)).await?;
        }
        Ok(())
    }

    async fn execute(&self, id: &ContainerId, command: Command) -> Result<Execution, RuntimeError> {
        execution::start(&self.engine, id, command).await
    }

    async fn usage(&self, id: &ContainerId) -> Result<Usage, RuntimeError> {
        let options = StatsOptions { stream: false, one_shot: true };
        let name = name(id);
        let mut stats = self.engine.stats(&name, Some(options));
        let first = tokio::time::timeout(LOOK, stats.next()).await;
        let first = first.map_err(|_| RuntimeError::Timeout(format!("Docker did not answer stats within {LOOK:?}")))?;
        match first {
            // Of one that does not run there is an answer too, without anything in it.
            Some(Ok(stats)) => mapping::usage(&stats).ok_or_else(|| RuntimeError::NotFound(id.clone())),
            Some(Err(error)) if status(&error) != Some(404) => Err(failed(&error, RuntimeError::Other)),
            _ => Err(RuntimeError::NotFound(id.clone())),
        }
    }

    async fn logs(
        &self,
        id: &ContainerId,
        request: LogRequest,
    ) -> Result<BoxStream<'static, Result<LogPiece, RuntimeError>>, RuntimeError> {
        // What is kept is all that there was: it is kept when the container is removed.
        if let Some(kept) = output::kept(&self.logs, id, request) {
            return Ok(kept);
        }
        if self.inspect(id).await?.is_none() {
            return output::kept(&self.logs, id, request).ok_or_else(|| RuntimeError::NotFound(id.clone()));
        }
        let mut pieces = output::read(&self.engine, id, request);
        if request.follow {
            return Ok(pieces);
        }
        // It may be removed at this very moment.
        match pieces.next().await {
            Some(Err(error)) => output::kept(&self.logs, id, request).ok_or(error),
            first => Ok(futures::stream::iter(first).chain(pieces).boxed()),
        }
    }

    fn exits(&self) -> mpsc::UnboundedReceiver<(ContainerId, Exit)> {
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(self.clone().follow(sender));
        receiver
    }
}
