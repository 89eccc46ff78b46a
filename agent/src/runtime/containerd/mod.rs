//! The containerd runtime: containers of a containerd, over its gRPC services, without a Docker Engine above it.
//!
//! containerd keeps what a container is (with the instance and the task in its labels) and its shim what it does; a [`logger`] for each
//! start keeps its output. Beside that a container has a directory of the agent's: its output, its `hosts`, whether it was started, and how it
//! ended once that was seen, so that an end is told the same way each time.

mod api;
mod bundle;
mod confinement;
mod content;
mod execution;
mod exits;
mod files;
mod image;
mod logger;
mod making;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use containerd_client::services::v1::snapshots::{MountsRequest, RemoveSnapshotRequest};
use containerd_client::services::v1::{
    Container, CreateNamespaceRequest, CreateTaskRequest, DeleteContainerRequest, DeleteTaskRequest,
    GetContainerRequest, GetRequest, KillRequest, ListContainersRequest, Namespace, PluginsRequest, StartRequest,
    WaitRequest,
};
use containerd_client::types::v1::{Process, Status};
use futures::stream::BoxStream;
use prost_types::Any;
use rustix::process::geteuid;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};
use steady_core::resources::capability;
use steady_core::{Clock, SystemClock, Timestamp};
use tokio::sync::mpsc;

use super::cni::{Cni, DEFAULT_SUBNET};
use super::image::{PullBehavior, Pulls};
use super::nft;
use super::{
    Command, ContainerId, ContainerSpec, Credentials, Execution, Exit, Found, LogPiece, LogRequest, PAUSE, Port,
    Pulled, Runtime, RuntimeError, State, Usage, cgroup, output, usage,
};
use api::{Api, CONNECT, Failed, LOOK, NAMESPACE, START, call, done, optional};
use files::Files;
use image::Store;
pub use logger::run_logger;

/// Where containerd listens.
const SOCKET: &str = "/run/containerd/containerd.sock";
/// What runs containers.
const SHIM: &str = "io.containerd.runc.v2";
/// Of what containers and processes are described by.
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// How long a killed container may take to be gone.
const KILLED: Duration = Duration::from_secs(60);
/// How long the last of a container's output may take.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// Of a container with a network of its own.
const BRIDGE: &str = "bridge";

/// Labels of these containers alone, beside those of every engine's.
mod labels {
    pub(super) use crate::runtime::labels::*;

    pub(super) const STOP_SIGNAL: &str = "steady.stop-signal";
    /// `bridge`: it has a network namespace of its own, and an address in it.
    pub(super) const NETWORK: &str = "steady.network";
    /// Containers that it is linked to, by which names.
    pub(super) const LINKS: &str = "steady.links";
}

/// A containerd. Clones share the connection.
#[derive(Clone)]
pub struct Containerd {
    api: Api,
    settings: Arc<ContainerdSettings>,
    pulls: Pulls,
    store: Store,
    /// Makes networks of tasks, and of containers in bridge mode.
    cni: Option<Cni>,
}

/// Which containerd, and whose containers.
#[derive(Debug, Clone, Default)]
pub struct ContainerdSettings {
    /// Its socket; `None`: `/run/containerd/containerd.sock`.
    pub socket: Option<PathBuf>,
    /// Only containers of this cluster and instance are this runtime's.
    pub cluster: String,
    /// The instance's uid.
    pub instance: String,
    /// Containers' directories and volumes are below it.
    pub base: PathBuf,
    /// The steady program, whose hidden subcommand `__log` calls [`run_logger`].
    pub program: PathBuf,
    /// When images are pulled.
    pub pull_behavior: PullBehavior,
    /// Subnet of tasks' own addresses; `None`: 10.88.0.0/16.
    pub task_subnet: Option<String>,
    /// Subnet of tasks' addresses on all machines; `None`: that of this one.
    pub task_network: Option<String>,
}

/// containerd's name of a container: it has to be short, and of few characters.
fn name(id: &ContainerId) -> String {
    let hash = Sha256::digest(id.name.as_bytes());
    hash.iter().take(6).fold(format!("{}-", id.task), |text, byte| format!("{text}{byte:02x}"))
}

fn any(url: &str, value: &Value) -> Any {
    Any { type_url: url.to_owned(), value: value.to_string().into_bytes() }
}

fn process(value: &Value) -> Any {
    any(PROCESS, value)
}

fn id_of(container: &Container) -> Option<ContainerId> {
    let label = |name| container.labels.get(name).cloned();
    Some(ContainerId { task: label(labels::TASK)?, name: label(labels::CONTAINER)? })
}

/// What a label says, in JSON; the default where it says nothing.
fn label<T: DeserializeOwned + Default>(container: &Container, name: &str) -> T {
    container.labels.get(name).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// The network namespace of a process.
fn network_of(task: &Process) -> PathBuf {
    PathBuf::from(format!("/proc/{}/ns/net", task.pid))
}

/// The number of a signal by its name or number.
fn signal(name: &str) -> Option<u32> {
    let bare = name.to_ascii_uppercase();
    let bare = bare.trim_start_matches("SIG");
    let known = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ABRT", 6),
        ("KILL", 9),
        ("USR1", 10),
        ("USR2", 12),
        ("ALRM", 14),
        ("TERM", 15),
        ("WINCH", 28),
        ("PWR", 30),
    ];
    let realtime = || bare.strip_prefix("RTMIN+").and_then(|more| more.parse::<u32>().ok()).map(|more| 34 + more);
    bare.parse().ok().or_else(|| known.iter().find(|(of, _)| *of == bare).map(|(_, number)| *number)).or_else(realtime)
}

impl Containerd {
    /// Connects to a containerd.
    pub async fn connect(settings: ContainerdSettings) -> Result<Self, RuntimeError> {
        if !geteuid().is_root() {
            return Err(RuntimeError::Other("the containerd runtime needs root".into()));
        }
        let socket = settings.socket.clone().unwrap_or_else(|| PathBuf::from(SOCKET));
        let api = Api::connect(&socket).await?;
        let refused = |failed: Failed| failed.or(|text| RuntimeError::Other(format!("containerd: {text}")));
        let namespace = Namespace { name: NAMESPACE.to_owned(), labels: HashMap::new() };
        let request = CreateNamespaceRequest { namespace: Some(namespace) };
        done(call("namespace", CONNECT, api.namespaces().create(request)).await).map_err(refused)?;
        let filters = vec!["type==io.containerd.snapshotter.v1".to_owned()];
        let plugins = call("plugins", CONNECT, api.introspection().plugins(PluginsRequest { filters })).await;
        let plugins = plugins.map_err(refused)?.plugins;
        let works = |name: &&str| plugins.iter().any(|plugin| plugin.id == *name && plugin.init_err.is_none());
        let snapshotter = ["overlayfs", "native"].into_iter().find(works);
        let snapshotter = snapshotter.ok_or_else(|| {
            RuntimeError::Other("this containerd has neither the overlayfs nor the native snapshotter".into())
        })?;
        let subnet = settings.task_subnet.as_deref().unwrap_or(DEFAULT_SUBNET);
        let cni = Cni::find(subnet, settings.task_network.as_deref(), settings.base.join("networks"));
        let pulls = Pulls::new(settings.pull_behavior);
        let store = Store::new(api.clone(), snapshotter.to_owned());
        Ok(Containerd { api, settings: Arc::new(settings), pulls, store, cni })
    }

    fn files(&self, id: &ContainerId) -> Files {
        Files::new(self.settings.base.join(name(id)))
    }

    /// Of a task's volume.
    fn volume(&self, task: &str, volume: &str) -> PathBuf {
        self.settings.base.join("volumes").join(task).join(volume)
    }

    async fn find(&self, id: &ContainerId) -> Result<Option<Container>, RuntimeError> {
        let own = |container: &Container| id_of(container).is_some_and(|of| of == *id);
        Ok(self.get(name(id)).await?.filter(own))
    }

    /// By its name in containerd, whosever it is.
    async fn get(&self, id: String) -> Result<Option<Container>, RuntimeError> {
        let found = call("container", LOOK, self.api.containers().get(GetContainerRequest { id })).await;
        Ok(optional(found).map_err(|e| e.or(RuntimeError::Other))?.and_then(|found| found.container))
    }

    async fn task(&self, id: &ContainerId) -> Result<Option<Process>, RuntimeError> {
        let request = GetRequest { container_id: name(id), exec_id: String::new() };
        let found = call("task", LOOK, self.api.tasks().get(request)).await;
        Ok(optional(found).map_err(|e| e.or(RuntimeError::Other))?.and_then(|found| found.process))
    }

    /// What a container does that is there.
    async fn state(&self, id: &ContainerId) -> Result<State, RuntimeError> {
        let files = self.files(id);
        let (started, task) = loop {
            if let Some(exit) = files.exit() {
                return Ok(State::Exited(exit));
            }
            let started = files.started();
            let task = self.task(id).await?;
            // It was started meanwhile: the answer may be of the time before.
            if files.started() == started {
                break (started, task);
            }
        };
        let exit = match task.as_ref().map(Process::status) {
            Some(Status::Created) => return Ok(State::Created),
            Some(Status::Running | Status::Paused | Status::Pausing) => return Ok(State::Running),
            Some(Status::Stopped) => {
                let task = task.unwrap_or_default();
                let at = task.exited_at.map(|at| Timestamp(at.seconds * 1000 + i64::from(at.nanos) / 1_000_000));
                let out_of_memory = cgroup::kills_for_memory(&cgroup::of_container(id)) > 0;
                Exit {
                    code: i32::try_from(task.exit_status).ok(),
                    out_of_memory,
                    at: at.filter(|at| at.0 > 0).unwrap_or_else(|| SystemClock.now()),
                }
            }
            Some(Status::Unknown) => return Err(RuntimeError::Unreachable(format!("{id}: its shim does not answer"))),
            None if started.is_none() => return Ok(State::Created),
            // The machine was restarted, or its shim was killed: nobody saw it end.
            None => Exit { code: None, out_of_memory: false, at: SystemClock.now() },
        };
        // On a full disk it is told all the same.
        if let Err(error) = files.set_exit(&exit) {
            tracing::warn!(container = %id, %error, "its end could not be written down");
        }
        Ok(State::Exited(files.exit().unwrap_or(exit)))
    }

    fn found(&self, id: ContainerId, container: &Container, state: State) -> Found {
        let address = self.cni.as_ref().filter(|_| id.name == PAUSE).and_then(|cni| cni.address(&id.task));
        let ran = self.files(&id).ran(&state);
        Found {
            gpus: label(container, labels::GPUS),
            ports: label(container, labels::PORTS),
            runtime_id: container.id.clone(),
            ran,
            state,
            address,
            id,
        }
    }

    fn is_own(&self, container: &Container) -> bool {
        let is = |label: &str, value: &String| container.labels.get(label) == Some(value);
        is(labels::CLUSTER, &self.settings.cluster) && is(labels::INSTANCE, &self.settings.instance)
    }

    async fn containers(&self) -> Result<Vec<Container>, RuntimeError> {
        let ContainerdSettings { cluster, instance, .. } = &*self.settings;
        let of = |label: &str, value: &str| format!("labels.\"{label}\"==\"{value}\"");
        let filters = vec![format!("{},{}", of(labels::CLUSTER, cluster), of(labels::INSTANCE, instance))];
        let listed = call("list", LOOK, self.api.containers().list(ListContainersRequest { filters })).await;
        Ok(listed.map_err(|e| e.or(RuntimeError::Other))?.containers)
    }

    async fn snapshot_mounts(&self, key: &str) -> Result<Vec<containerd_client::types::Mount>, RuntimeError> {
        let request = MountsRequest { snapshotter: self.store.snapshotter().to_owned(), key: key.to_owned() };
        let mounts = call("mounts", LOOK, self.api.snapshots().mounts(request)).await;
        Ok(mounts.map_err(|e| e.or(RuntimeError::Create))?.mounts)
    }

    /// The address that a container in bridge mode was given.
    fn address_of(&self, id: &ContainerId) -> Option<String> {
        self.cni.as_ref().and_then(|cni| cni.address(&name(id)))
    }

    /// Makes its processes, and has them begin.
    async fn run(&self, id: &ContainerId, container: &Container) -> Result<(), RuntimeError> {
        let failed = |e: Failed| e.or(RuntimeError::Start);
        let files = self.files(id);
        let terminal = specification(container)["process"]["terminal"] == Value::Bool(true);
        let address = logger::address(&self.settings.program, files.path());
        let mut task = self.task(id).await?;
        if task.is_none() {
            let request = CreateTaskRequest {
                container_id: container.id.clone(),
                rootfs: self.snapshot_mounts(&container.id).await?,
                stdin: Some(files.input())
                    .filter(|path| path.exists())
                    .map(|p| p.display().to_string())
                    .unwrap_or_default(),
                stdout: address.clone(),
                stderr: if terminal { String::new() } else { address },
                terminal,
                ..CreateTaskRequest::default()
            };
            match call("create task", START, self.api.tasks().create(request)).await {
                Ok(_) | Err(Failed::Exists) => {}
                Err(error) => return Err(failed(error)),
            }
            task = self.task(id).await?;
        }
        let task = task.ok_or_else(|| RuntimeError::Start(format!("{id}: its shim has ended")))?;
        if container.labels.get(labels::NETWORK).is_some_and(|network| network == BRIDGE) {
            let cni = self.cni.as_ref().ok_or_else(|| {
                RuntimeError::Resource("networkMode bridge needs CNI's plug-ins (containernetworking-plugins)".into())
            })?;
            let ports: Vec<Port> = label(container, labels::PORTS);
            let address = cni.add(&container.id, &network_of(&task), &ports).await.map_err(RuntimeError::Resource)?;
            let links: Vec<String> = label(container, labels::LINKS);
            let known = |name: &str| self.address_of(&ContainerId { task: id.task.clone(), name: name.to_owned() });
            let joined = files.join(&address, &links, known);
            joined.map_err(|e| RuntimeError::Start(format!("{}: {e}", files.path().display())))?;
        }
        // From here on it may have run.
        files.set_started().map_err(|e| RuntimeError::Start(format!("{}: {e}", files.path().display())))?;
        let request = StartRequest { container_id: container.id.clone(), exec_id: String::new() };
        call("start", START, self.api.tasks().start(request)).await.map(|_| ()).map_err(failed)
    }

    /// The network of a container that runs.
    async fn network(&self, id: &ContainerId) -> Result<PathBuf, RuntimeError> {
        let task = self.task(id).await?.filter(|task| task.status() == Status::Running);
        task.map(|task| network_of(&task)).ok_or_else(|| RuntimeError::NotFound(id.clone()))
    }

    async fn kill(&self, id: &ContainerId, signal: u32) -> Result<(), RuntimeError> {
        let request = KillRequest { container_id: name(id), exec_id: String::new(), signal, all: signal == 9 };
        match call("kill", LOOK, self.api.tasks().kill(request)).await {
            // It has ended by itself.
            Err(Failed::Refused(text)) if text.contains("not running") || text.contains("already finished") => Ok(()),
            killed => done(killed).map_err(|e| e.or(RuntimeError::Other)),
        }
    }

    /// Whether it has ended within this time.
    async fn ended(&self, id: &ContainerId, limit: Duration) -> Result<bool, RuntimeError> {
        let request = WaitRequest { container_id: name(id), exec_id: String::new() };
        match tokio::time::timeout(limit, self.api.tasks().wait(request)).await {
            Err(_) => Ok(false),
            Ok(Ok(_)) => Ok(true),
            Ok(Err(status)) => {
                done(Err::<(), _>(api::failed(&status))).map(|()| true).map_err(|e| e.or(RuntimeError::Other))
            }
        }
    }

    /// Forgets the processes of a container that has ended, and takes its network back.
    async fn clear(&self, id: &ContainerId, container: &Container) -> Result<(), RuntimeError> {
        let files = self.files(id);
        let began = tokio::time::Instant::now();
        while logger::is_busy(files.path()) && began.elapsed() < LAST_OUTPUT {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let task = self.task(id).await?;
        if let Some(cni) = &self.cni {
            // Of a process that has ended the number may be another's by now.
            let runs = task.as_ref().filter(|task| matches!(task.status(), Status::Created | Status::Running));
            let namespace = runs.map(network_of);
            let key = if id.name == PAUSE { id.task.clone() } else { name(id) };
            if id.name == PAUSE || container.labels.contains_key(labels::NETWORK) {
                cni.del(&key, namespace.as_deref()).await.map_err(RuntimeError::Other)?;
            }
        }
        let request = DeleteTaskRequest { container_id: name(id) };
        done(call("delete task", START, self.api.tasks().delete(request)).await).map_err(|e| e.or(RuntimeError::Other))
    }
}

/// What containerd was told to run.
fn specification(container: &Container) -> Value {
    container.spec.as_ref().and_then(|spec| serde_json::from_slice(&spec.value).ok()).unwrap_or_default()
}

#[async_trait]
impl Runtime for Containerd {
    fn name(&self) -> &'static str {
        "containerd"
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        let driver = |name: &str| format!("{}{name}", capability::LOGGING_DRIVER);
        let own = [capability::PRIVILEGED.to_owned(), capability::ENGINE.to_owned(), driver("json-file")];
        let networks = self.cni.iter().flat_map(|_| nft::capabilities());
        own.into_iter().chain(networks).map(|name| (name, String::new())).collect()
    }

    async fn list(&self) -> Result<Vec<Found>, RuntimeError> {
        let mut found = Vec::new();
        for container in self.containers().await? {
            if let Some(id) = id_of(&container) {
                let state = match self.state(&id).await {
                    // Its shim does not answer: that is no end.
                    Err(RuntimeError::Unreachable(why)) => {
                        tracing::warn!(container = %id, why, "taken to be running");
                        State::Running
                    }
                    state => state?,
                };
                found.push(self.found(id, &container, state));
            }
        }
        Ok(found)
    }

    async fn pull(&self, image: &str, credentials: Option<&Credentials>) -> Result<Pulled, RuntimeError> {
        self.pulls.pull(&self.store, image, credentials).await
    }

    async fn remove_image(&self, image: &str) -> Result<bool, RuntimeError> {
        self.store.remove(image).await.map(|()| true).map_err(|e| e.or(RuntimeError::Other))
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<String, RuntimeError> {
        match self.find(&spec.id).await? {
            Some(known) => Ok(known.id),
            None => self.make(spec).await,
        }
    }

    async fn start(&self, id: &ContainerId) -> Result<String, RuntimeError> {
        let container = self.find(id).await?.ok_or_else(|| RuntimeError::NotFound(id.clone()))?;
        // One that ended is not started again.
        if self.state(id).await? == State::Created {
            self.run(id, &container).await?;
        }
        Ok(container.id)
    }

    async fn attach_network(&self, id: &ContainerId) -> Result<String, RuntimeError> {
        let cni = self.cni.as_ref().ok_or_else(|| {
            RuntimeError::Resource("networkMode awsvpc needs CNI's plug-ins (containernetworking-plugins)".into())
        })?;
        let address = cni.add(&id.task, &self.network(id).await?, &[]).await.map_err(RuntimeError::Resource)?;
        self.files(id).join(&address, &[], |_| None).map_err(|e| RuntimeError::Resource(e.to_string()))?;
        Ok(address)
    }

    async fn filter_network(&self, id: &ContainerId, rules: &str) -> Result<(), RuntimeError> {
        nft::filter(rules, async || self.network(id).await).await
    }

    async fn restart(&self, id: &ContainerId) -> Result<String, RuntimeError> {
        let container = self.find(id).await?.ok_or_else(|| RuntimeError::NotFound(id.clone()))?;
        if let State::Exited(_) = self.state(id).await? {
            // After a restart of the machine the task's cgroup is gone, and its cap with it.
            if let Some(units) = container.labels.get(labels::CPU).and_then(|units| units.parse().ok()) {
                cgroup::cap(&id.task, units);
            }
            self.clear(id, &container).await?;
            self.files(id).forget_exit().map_err(|e| RuntimeError::Start(e.to_string()))?;
        }
        if self.state(id).await? == State::Created {
            self.run(id, &container).await?;
        }
        Ok(container.id)
    }

    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        let Some(container) = self.find(id).await? else { return Ok(()) };
        // One whose shim does not answer is signalled all the same.
        if self.state(id).await.is_ok_and(|state| state != State::Running) {
            return Ok(());
        }
        let own = container.labels.get(labels::STOP_SIGNAL).and_then(|name| signal(name));
        if !grace.is_zero() {
            self.kill(id, own.unwrap_or(15)).await?;
            if self.ended(id, grace).await? {
                return self.state(id).await.map(|_| ());
            }
        }
        self.kill(id, 9).await?;
        if self.ended(id, KILLED).await? {
            return self.state(id).await.map(|_| ());
        }
        Err(RuntimeError::Other(format!("{id} is still there {KILLED:?} after SIGKILL")))
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let key = name(id);
        let failed = |e: Failed| e.or(RuntimeError::Other);
        let files = self.files(id);
        if let Some(container) = self.find(id).await? {
            self.stop(id, Duration::ZERO).await?;
            self.clear(id, &container).await?;
            if id.name != PAUSE {
                output::keep(&self.settings.base, id, files.path());
            }
            let request = DeleteContainerRequest { id: key.clone() };
            done(call("delete", LOOK, self.api.containers().delete(request)).await).map_err(failed)?;
        }
        let request = RemoveSnapshotRequest { snapshotter: self.store.snapshotter().to_owned(), key };
        done(call("remove snapshot", LOOK, self.api.snapshots().remove(request)).await).map_err(failed)?;
        files.remove().map_err(|e| RuntimeError::Other(format!("{}: {e}", files.path().display())))?;
        cgroup::uncap(&id.task);
        // What is the task's goes with its last container.
        if !files::any_of(&self.settings.base, &id.task) {
            files::remove_all(&self.settings.base.join("volumes").join(&id.task));
            files::remove_all(&files::shared_memory_path(&id.task));
        }
        Ok(())
    }

    async fn execute(&self, id: &ContainerId, command: Command) -> Result<Execution, RuntimeError> {
        let container = self.find(id).await?.ok_or_else(|| RuntimeError::NotFound(id.clone()))?;
        if self.state(id).await? != State::Running {
            return Err(RuntimeError::NotFound(id.clone()));
        }
        let exec = format!("exec-{}", content::unique());
        let pipes = self.files(id).path().join(exec);
        let base = specification(&container)["process"].take();
        execution::start(&self.api, id, &container.id, &base, pipes, command).await
    }

    async fn usage(&self, id: &ContainerId) -> Result<Usage, RuntimeError> {
        let task = self.task(id).await?.filter(|task| task.status() == Status::Running);
        let task = task.ok_or_else(|| RuntimeError::NotFound(id.clone()))?;
        let pid = i32::try_from(task.pid).unwrap_or(0);
        Ok(usage::of_container(&cgroup::of_container(id), pid))
    }

    async fn logs(
        &self,
        id: &ContainerId,
        request: LogRequest,
    ) -> Result<BoxStream<'static, Result<LogPiece, RuntimeError>>, RuntimeError> {
        let files = self.files(id);
        let path = files.path().to_owned();
        let here = path.exists();
        let over: output::IsOver =
            Arc::new(move || !files.path().exists() || files::is_over(files.path()) && !logger::is_busy(files.path()));
        output::read(&self.settings.base, id, here.then_some(&(path, over)), request)
    }

    fn exits(&self) -> mpsc::UnboundedReceiver<(ContainerId, Exit)> {
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(self.clone().follow(sender));
        receiver
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_of_few_characters_whatever_a_container_is_called() {
        let id = |name: &str| ContainerId { task: "0".repeat(32), name: name.into() };
        for of in [".pause", "a__b-", &"x".repeat(255)] {
            let made = name(&id(of));
            assert!(made.len() <= 76 && made.chars().all(|c| c.is_ascii_hexdigit() || c == '-'), "{made}");
        }
        assert_ne!(name(&id("a")), name(&id("b")));
    }

    #[test]
    fn signals_are_known_by_name_and_number() {
        assert_eq!(
            ["SIGTERM", "term", "9", "SIGRTMIN+3", "none"].map(signal),
            [Some(15), Some(15), Some(9), Some(37), None]
        );
    }
}
