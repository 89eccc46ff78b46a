//! Runtimes: what actually runs containers.
//!
//! A runtime obeys; it decides nothing. Every container is named by its task and its name in the task, so
//! doing a thing twice does it once, and whatever an agent that died left behind is found by [`Runtime::list`].

mod cgroup;
pub(crate) mod cni;
mod containerd;
mod docker;
mod hollow;
mod image;
mod labels;
mod nft;
mod output;
mod process;
mod usage;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use steady_core::Timestamp;
use steady_core::v1::{ContainerDefinition, Device, Volume, network_mode, transport_protocol};
use tokio::sync::mpsc;

pub use containerd::{Containerd, ContainerdSettings, run_logger};
pub use docker::{Docker, DockerSettings};
pub use hollow::{Hollow, HollowBehaviour};
pub use image::PullBehavior;
pub use process::{Process, run_exec, run_inside, run_shim};

/// An image's repository: without tag and digest.
pub(crate) fn repository(image: &str) -> &str {
    let (bare, _) = image.split_once('@').unwrap_or((image, ""));
    let tag = bare.rfind(':').filter(|at| !bare[*at..].contains('/'));
    &bare[..tag.unwrap_or(bare.len())]
}

/// Names one container for good.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContainerId {
    /// The task's id: 32 hex digits.
    pub task: String,
    /// `containerDefinitions[].name`.
    pub name: String,
}

impl fmt::Display for ContainerId {
    /// `TASK.NAME`: the name that an engine knows it by.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.task, self.name)
    }
}

/// A port of a container and the port of the machine that leads to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// As the definition names it.
    pub container: u16,
    /// Chosen already, also where the definition left it open.
    pub host: u16,
    /// UDP, or else TCP.
    pub udp: bool,
}

impl Port {
    /// As the API names it.
    pub fn protocol(self) -> transport_protocol::Value {
        if self.udp { transport_protocol::Value::Udp } else { transport_protocol::Value::Tcp }
    }
}

/// All that is needed to make a container.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerSpec {
    /// Its name.
    pub id: ContainerId,
    /// Cluster and uid of the instance: they go into the container's labels, and only containers with these
    /// labels are this agent's.
    pub cluster: String,
    /// Uid of the instance.
    pub instance: String,
    /// As in the task definition, with the task's overrides in it.
    pub definition: ContainerDefinition,
    /// The task's volumes.
    pub volumes: Vec<Volume>,
    /// The task's network mode.
    pub network_mode: network_mode::Value,
    /// The task's `pidMode` and `ipcMode`.
    pub modes: Modes,
    /// Host ports for the definition's port mappings, in the same order.
    pub ports: Vec<Port>,
    /// Hard limit of CPU units (1024 a core) of all of the task's containers together; `None`: none.
    pub cpu_limit: Option<i32>,
    /// Hard limit of memory, MiB; `None`: none.
    pub memory_limit: Option<i32>,
    /// GPUs of the machine that are this container's alone; `None`: the instance has none to give.
    pub gpus: Option<Vec<u32>>,
    /// What must not be printed or written down.
    pub sensitive: Sensitive,
}

/// What containers of a task share, or have of the machine: ECS' words, empty for the engine's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Modes {
    /// `host` or `task`.
    pub pid: String,
    /// `host`, `task` or `none`.
    pub ipc: String,
}

/// What a container may do with a device, as cgroups have it: all of it unless it says otherwise.
pub(crate) fn device_access(device: &Device) -> String {
    let may = |what: &str| device.permissions.is_empty() || device.permissions.iter().any(|given| given == what);
    let letters = [("read", 'r'), ("write", 'w'), ("mknod", 'm')];
    letters.into_iter().filter(|(name, _)| may(name)).map(|(_, letter)| letter).collect()
}

/// Name of the container that holds what a task's containers share. No container of a definition can have it.
pub const PAUSE: &str = ".pause";

/// What a container gets that nobody is to see.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Sensitive {
    /// Variables of its environment; the definition's count before them.
    pub variables: Vec<(String, String)>,
    /// Options of its log driver.
    pub log_options: BTreeMap<String, String>,
    /// How the registry of its image is logged in to.
    pub credentials: Option<Credentials>,
}

impl fmt::Debug for Sensitive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sensitive").finish_non_exhaustive()
    }
}

/// User and password of a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User.
    pub username: String,
    /// Password, or a token in its place.
    pub password: String,
}

impl ContainerSpec {
    /// A container without anything of its own yet.
    pub fn new(id: ContainerId, cluster: &str, instance: &str, network_mode: network_mode::Value) -> Self {
        ContainerSpec {
            id,
            cluster: cluster.to_owned(),
            instance: instance.to_owned(),
            definition: ContainerDefinition::default(),
            volumes: Vec::new(),
            network_mode,
            modes: Modes::default(),
            ports: Vec::new(),
            cpu_limit: None,
            memory_limit: None,
            gpus: None,
            sensitive: Sensitive::default(),
        }
    }

    /// Variables of the container's environment, `NAME=VALUE`, in a network of its own.
    pub(crate) fn environment(&self) -> Vec<String> {
        let own = [("STEADY_TASK", self.id.task.clone()), ("STEADY_CONTAINER", self.id.name.clone())];
        // A program that listens on PORT works on every runtime.
        let port = self.ports.first().map(|port| ("PORT", port.container.to_string()));
        let given = &self.definition.environment;
        let hides = |name: &str| self.sensitive.variables.iter().any(|(hidden, _)| hidden == name);
        let own = own.into_iter().chain(port);
        let own = own.filter(|(name, _)| !hides(name) && !given.iter().any(|pair| pair.name == *name));
        let own = own.map(|(name, value)| format!("{name}={value}"));
        let given = given.iter().map(|pair| format!("{}={}", pair.name, pair.value));
        let hidden = self.sensitive.variables.iter().map(|(name, value)| format!("{name}={value}"));
        // What NVIDIA's runtime hands over: nobody has those of another by asking for all of them.
        let gpus = self.gpus.as_ref().map(|gpus| format!("{VISIBLE_DEVICES}={}", gpu_list(gpus)));
        let all = own.chain(given).chain(hidden).filter(|pair| gpus.is_none() || !pair.starts_with(VISIBLE_DEVICES));
        all.chain(gpus.clone()).collect()
    }
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 + signal when a signal ended it. `None` when nobody saw it end.
    pub code: Option<i32>,
    /// It went over its memory limit.
    pub out_of_memory: bool,
    /// When.
    pub at: Timestamp,
}

/// What is known of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Made, not started.
    Created,
    /// Runs.
    Running,
    /// Ran, or failed to, and ended.
    Exited(Exit),
}

/// An image that is here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pulled {
    /// Its digest, where the runtime knows one.
    pub digest: Option<String>,
    /// It was not here before.
    pub is_new: bool,
}

/// The variable by which NVIDIA's runtime knows which GPUs are a container's.
const VISIBLE_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";

/// `0,2`, or `void` for none of them.
pub(crate) fn gpu_list(gpus: &[u32]) -> String {
    if gpus.is_empty() {
        return "void".to_owned();
    }
    gpus.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// A container that a runtime has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub id: ContainerId,
    /// The engine's id, or a process id.
    pub runtime_id: String,
    /// What it does.
    pub state: State,
    /// Ports it was made with.
    pub ports: Vec<Port>,
    /// How long it runs, or ran, since its last start.
    pub ran: Duration,
    /// Of a pause container: the task's address.
    pub address: Option<String>,
    /// GPUs that it was given.
    pub gpus: Vec<u32>,
}

impl Found {
    /// One that no engine has: its own name is its number too.
    pub fn simulated(id: &ContainerId, state: &State, ports: &[Port]) -> Self {
        Found {
            id: id.clone(),
            runtime_id: id.to_string(),
            state: state.clone(),
            ports: ports.to_vec(),
            ran: Duration::ZERO,
            address: None,
            gpus: Vec::new(),
        }
    }
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPiece {
    /// Whole lines where the runtime knows them.
    pub data: Bytes,
    /// Standard error, or else standard output.
    pub stderr: bool,
}

/// Which output is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRequest {
    /// Go on until the container ends.
    pub follow: bool,
    /// Only the last lines; 0: all that is kept.
    pub tail: usize,
}

/// What a container takes of its machine. Counters count from its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time of all cores together.
    pub cpu_nanoseconds: u64,
    /// Memory, without what the kernel would give back at once.
    pub memory_bytes: u64,
    /// Its limit.
    pub memory_limit_bytes: Option<u64>,
    /// Received from the network.
    pub received_bytes: u64,
    /// Sent to it.
    pub sent_bytes: u64,
    /// Read from disks.
    pub read_bytes: u64,
    /// Written to them.
    pub written_bytes: u64,
    /// Processes, or threads where the engine counts those.
    pub processes: u64,
}

/// A command to run in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// The program and its arguments.
    pub words: Vec<String>,
    /// It has a standard input.
    pub interactive: bool,
    /// It has a terminal.
    pub terminal: Option<Terminal>,
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminal {
    /// Height.
    pub rows: u16,
    /// Width.
    pub columns: u16,
}

/// What a command that runs is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandInput {
    /// For its standard input.
    Data(Bytes),
    /// Its standard input ends.
    End,
    /// Its terminal has another size.
    Resize(Terminal),
}

/// What comes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandOutput {
    /// Output.
    Piece(LogPiece),
    /// It ended with this exit code; the last one.
    Exit(i32),
}

/// A command that runs in a container. It is killed when its output is dropped.
pub struct Execution {
    /// Its input. When it is dropped, standard input ends.
    pub input: mpsc::Sender<CommandInput>,
    /// Its output.
    pub output: BoxStream<'static, Result<CommandOutput, RuntimeError>>,
}

impl Execution {
    /// One that has ended already.
    pub fn ended(code: i32) -> Self {
        let output = futures::stream::iter([Ok(CommandOutput::Exit(code))]).boxed();
        Execution { input: mpsc::channel(1).0, output }
    }

    /// Waits until it ends: its exit code. After the time limit it is killed.
    pub async fn wait(mut self, limit: Duration) -> Result<i32, RuntimeError> {
        let ended = async {
            while let Some(output) = self.output.next().await {
                if let CommandOutput::Exit(code) = output? {
                    return Ok(code);
                }
            }
            Err(RuntimeError::Other("the command was lost".into()))
        };
        let late = |_| RuntimeError::Timeout(format!("the command took longer than {limit:?}"));
        tokio::time::timeout(limit, ended).await.map_err(late)?
    }
}

/// Why a runtime could not do what it was told. The texts begin with ECS's error names.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RuntimeError {
    /// The image cannot be had.
    #[error("CannotPullContainerError: {0}")]
    Pull(String),
    /// What it needs cannot be had.
    #[error("ResourceInitializationError: {0}")]
    Resource(String),
    /// A volume of the engine's cannot be had.
    #[error("CannotCreateVolumeError: {0}")]
    Volume(String),
    /// The container cannot be made.
    #[error("CannotCreateContainerError: {0}")]
    Create(String),
    /// The container cannot be started.
    #[error("CannotStartContainerError: {0}")]
    Start(String),
    /// The container cannot be stopped, inspected or removed.
    #[error("ContainerRuntimeError: {0}")]
    Other(String),
    /// The engine did not answer in time.
    #[error("DockerTimeoutError: {0}")]
    Timeout(String),
    /// The engine cannot be reached: what it would say is not known.
    #[error("DockerTimeoutError: {0}")]
    Unreachable(String),
    /// There is no such container.
    #[error("ContainerRuntimeError: there is no container {0}")]
    NotFound(ContainerId),
}

/// Runs containers. Every call ends within a deadline of the runtime's own.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// `docker`, `containerd`, `process` or `hollow`.
    fn name(&self) -> &'static str;

    /// Containers of this agent, running or not, whoever started them.
    async fn list(&self) -> Result<Vec<Found>, RuntimeError>;

    /// Makes sure that the image is here.
    async fn pull(&self, image: &str, credentials: Option<&Credentials>) -> Result<Pulled, RuntimeError>;

    /// Removes an image. Whether it is gone: one that is in use stays, and is no error.
    async fn remove_image(&self, _: &str) -> Result<bool, RuntimeError> {
        Ok(true)
    }

    /// Makes the container; one of the same name that is there already is left as it is. Returns the runtime's id.
    async fn create(&self, spec: &ContainerSpec) -> Result<String, RuntimeError>;

    /// Starts it. One that runs already is left alone. Returns the runtime's id.
    async fn start(&self, id: &ContainerId) -> Result<String, RuntimeError>;

    /// Gives the task of a pause container that runs an address of its own, or says which one it has.
    async fn attach_network(&self, id: &ContainerId) -> Result<String, RuntimeError> {
        Err(RuntimeError::Resource(format!("{id}: networkMode awsvpc needs a container engine and CNI plug-ins")))
    }

    /// Has the network of a pause container that runs let through what a table of nftables says, and nothing else.
    async fn filter_network(&self, id: &ContainerId, _: &str) -> Result<(), RuntimeError> {
        Err(RuntimeError::Resource(format!("{id}: security groups need networkMode awsvpc, nftables and nsenter")))
    }

    /// Starts one that has ended once more, as it was made. One that runs already is left alone. Returns the runtime's
    /// id.
    async fn restart(&self, id: &ContainerId) -> Result<String, RuntimeError>;

    /// Sends its stop signal, and SIGKILL after `grace`. Returns when it has ended. One that has ended already, or
    /// is not there, is no error.
    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError>;

    /// Removes it and all that goes with it, but for output that was kept. One that is not there is no error.
    async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError>;

    /// Runs a command in it.
    async fn execute(&self, id: &ContainerId, command: Command) -> Result<Execution, RuntimeError>;

    /// Whether what its containers take is worth looking at.
    fn measures(&self) -> bool {
        true
    }

    /// What it takes now. [`RuntimeError::NotFound`]: it does not run.
    async fn usage(&self, id: &ContainerId) -> Result<Usage, RuntimeError>;

    /// Its output, also after it was removed, for as long as that is kept.
    async fn logs(
        &self,
        id: &ContainerId,
        request: LogRequest,
    ) -> Result<BoxStream<'static, Result<LogPiece, RuntimeError>>, RuntimeError>;

    /// Where exits are told from now on. Called once, before anything else is asked. An exit is told at least
    /// once, within a second; it may be told again, then with the same time, until the container is restarted.
    fn exits(&self) -> mpsc::UnboundedReceiver<(ContainerId, Exit)>;

    /// Whether a container of this runtime can have this port of the machine: nobody listens on it.
    fn is_port_free(&self, port: u16, udp: bool) -> bool {
        let address = (Ipv4Addr::UNSPECIFIED, port);
        if udp { UdpSocket::bind(address).is_ok() } else { TcpListener::bind(address).is_ok() }
    }

    /// What the machine offers to tasks of this runtime beyond cpu and memory, and what it can do that others cannot, as
    /// instance attributes.
    fn attributes(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
}
