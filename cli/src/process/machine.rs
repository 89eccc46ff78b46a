//! This machine as a container instance: what it has, and what runs containers on it.

use std::fs::{self, File};
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use steady_agent::runtime::{
    Containerd, ContainerdSettings, Docker, DockerSettings, Hollow, HollowBehaviour, Process, Runtime, RuntimeError,
};
use steady_agent::{AgentError, Figures, Identity, ImageCleanup, Settings};
use steady_core::SystemClock;
use steady_core::v1::{Attribute, ContainerInstanceSpec, HostPortRange, InstanceResources};
use steady_runtime::{Client, holder};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::metadata::Metadata;
use super::{PullWhen, RuntimeChoice};
use crate::failure::Failure;

/// What a hollow instance pretends to have: 64 cores and 256 GiB.
const HOLLOW: (i32, i32) = (64 * 1024, 256 * 1024);

/// `$XDG_DATA_HOME/steady`, or `~/.local/share/steady`.
pub(crate) fn data_directory(given: Option<PathBuf>) -> Result<PathBuf, Failure> {
    if let Some(given) = given {
        return std::path::absolute(given).map_err(|e| Failure::failed(e.to_string()));
    }
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")));
    base.map(|base| base.join("steady")).ok_or_else(|| Failure::usage("HOME is not set; pass --data-dir DIR"))
}

/// A directory that no other process uses for as long as the file lives.
pub(crate) fn lock(directory: &Path) -> Result<File, Failure> {
    let path = directory.join("lock");
    let failed = |e: std::io::Error| Failure::failed(format!("{}: {e}; choose another --data-dir", path.display()));
    fs::create_dir_all(directory).map_err(failed)?;
    let file = File::options().create(true).truncate(false).read(true).write(true).open(&path).map_err(failed)?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let holder = fs::read_to_string(&path).unwrap_or_default();
        return Err(Failure::failed(format!(
            "{} is in use by another steady (pid {}); end that one, or choose another --data-dir",
            directory.display(),
            holder.trim()
        )));
    }
    fs::write(&path, std::process::id().to_string()).map_err(failed)?;
    Ok(file)
}

/// What an agent is to be on this machine.
pub(super) struct Wanted {
    pub(super) cluster: String,
    pub(super) name: String,
    pub(super) directory: PathBuf,
    pub(super) runtime: RuntimeChoice,
    pub(super) dns: Vec<IpAddr>,
    pub(super) docker_socket: Option<PathBuf>,
    pub(super) containerd_socket: Option<PathBuf>,
    pub(super) metadata: Metadata,
    pub(super) address: String,
    pub(super) cpu: Option<i32>,
    pub(super) memory: Option<i32>,
    pub(super) image_pull_behavior: PullWhen,
    pub(super) task_subnet: Option<String>,
    pub(super) task_network: Option<String>,
    pub(super) image_cleanup: Option<ImageCleanup>,
    /// Docker has to keep containers running while it is restarted.
    pub(super) live_restore: bool,
    pub(super) attributes: Vec<(String, String)>,
    /// Other resources by name.
    pub(super) resources: Vec<(String, i32)>,
    pub(super) capacity_provider: String,
    /// Instances that share the machine.
    pub(super) share: u32,
    pub(super) stop_tasks: bool,
    pub(super) figures: Option<Figures>,
}

/// Where figures are asked for, if anywhere.
pub(super) async fn metrics(address: Option<&str>) -> Result<Option<TcpListener>, Failure> {
    let Some(address) = address else { return Ok(None) };
    let listener = TcpListener::bind(address).await;
    listener.map(Some).map_err(|e| Failure::usage(format!("cannot listen at {address} (--metrics): {e}")))
}

/// Instances that share a connection. Each has a stream open all the time, and a connection has so many and no more.
const SHARED: u32 = 500;

/// Connections of the instances of one process.
pub(super) struct Connections {
    servers: Vec<String>,
    open: Vec<Client>,
}

impl Connections {
    pub(super) fn to(servers: &[String]) -> Self {
        Connections { servers: servers.to_vec(), open: Vec::new() }
    }

    /// The connection of an instance, numbered from 1 on and asked for in order.
    pub(super) fn of(&mut self, number: u32) -> Result<Client, Failure> {
        if (number - 1).is_multiple_of(SHARED) {
            self.open.push(Client::new(&self.servers).map_err(|e| Failure::usage(e.to_string()))?);
        }
        self.open.last().cloned().ok_or_else(|| Failure::failed("instances are numbered from 1"))
    }
}

/// An agent that is ready to run.
pub(super) struct Ready {
    pub(super) settings: Settings,
    pub(super) identity: Identity,
    pub(super) runtime: Arc<dyn Runtime>,
}

impl Ready {
    /// Runs it until `ending` says so.
    pub(super) async fn run(self, api: Client, ending: watch::Receiver<bool>) -> Result<(), Failure> {
        let ended =
            steady_agent::run(self.settings, self.identity, api, self.runtime, Arc::new(SystemClock), ending).await;
        ended.map_err(|e: AgentError| Failure::failed(e.to_string()))
    }
}

/// Prepares an agent: its identity, its runtime, what it registers.
pub(super) async fn prepare(wanted: Wanted) -> Result<Ready, Failure> {
    let hollow = wanted.runtime == RuntimeChoice::Hollow;
    let identity = Identity::load(&wanted.directory, &wanted.name).map_err(|e| Failure::failed(e.to_string()))?;
    let runtime = runtime(&wanted, &identity).await?;
    let endpoint = wanted.metadata.endpoint(runtime.name()).await?;
    if runtime.name() == "containerd" && wanted.resources.iter().any(|(name, _)| name == "GPU") {
        return Err(Failure::usage("--resource GPU: GPUs are handed to containers by Docker; use --runtime docker"));
    }
    let (cpu, memory) = if hollow { HOLLOW } else { share(wanted.share) };
    let mut attributes: Vec<Attribute> = [
        ("ecs.os-type", "linux"),
        ("ecs.cpu-architecture", std::env::consts::ARCH),
        ("ecs.instance-type", runtime.name()),
    ]
    .into_iter()
    .map(|(name, value)| Attribute { name: name.into(), value: value.into() })
    .collect();
    let given = wanted.attributes.into_iter().chain(runtime.attributes());
    attributes.extend(given.map(|(name, value)| Attribute { name, value }));
    let spec = ContainerInstanceSpec {
        attributes,
        registered_resources: Some(InstanceResources {
            cpu: wanted.cpu.unwrap_or(cpu),
            memory: wanted.memory.unwrap_or(memory),
            reserved_ports: vec![
                HostPortRange { from: 22, to: 22 },
                HostPortRange { from: 2375, to: 2376 },
                HostPortRange { from: 51678, to: 51680 },
            ],
            named: wanted.resources.into_iter().collect(),
        }),
        capacity_provider: wanted.capacity_provider,
        address: wanted.address,
        runtime: runtime.name().to_owned(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        ..ContainerInstanceSpec::default()
    };
    let settings = Settings {
        cluster: wanted.cluster,
        name: identity.name.clone(),
        spec,
        directory: (!hollow).then_some(wanted.directory),
        holder: holder(),
        endpoint,
        image_cleanup: wanted.image_cleanup,
        dns: wanted.dns.iter().map(ToString::to_string).collect(),
        stop_tasks: wanted.stop_tasks,
        figures: wanted.figures,
    };
    Ok(Ready { settings, identity, runtime })
}

async fn runtime(wanted: &Wanted, identity: &Identity) -> Result<Arc<dyn Runtime>, Failure> {
    match wanted.runtime {
        RuntimeChoice::Hollow => {
            let seed = wanted.name.bytes().fold(7_u64, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
            Ok(Arc::new(Hollow::new(seed, HollowBehaviour::default())))
        }
        RuntimeChoice::Process => process(wanted),
        RuntimeChoice::Docker => {
            let docker = docker(wanted, identity).await.map_err(|error| {
                Failure::failed(format!("{error}; is Docker running? Or pass --docker-socket, or --runtime process"))
            })?;
            restorable(wanted, docker)
        }
        RuntimeChoice::Containerd => containerd(wanted, identity).await.map_err(|error| {
            Failure::failed(format!(
                "{error}; is containerd running? Or pass --containerd-socket, or --runtime process"
            ))
        }),
        // A choice that was made stays made: tasks of the other runtime would be lost.
        RuntimeChoice::Auto if wanted.directory.join("process").exists() => process(wanted),
        RuntimeChoice::Auto => match docker(wanted, identity).await {
            Ok(docker) => restorable(wanted, docker),
            Err(_) => process(wanted),
        },
    }
}

async fn docker(wanted: &Wanted, identity: &Identity) -> Result<Arc<Docker>, RuntimeError> {
    let socket = wanted.docker_socket.as_ref().map(|socket| socket.display().to_string());
    let settings = DockerSettings {
        socket,
        cluster: wanted.cluster.clone(),
        instance: identity.uid.clone(),
        logs: wanted.directory.join("logs"),
        pull_behavior: wanted.image_pull_behavior.into(),
        task_subnet: wanted.task_subnet.clone(),
        task_network: wanted.task_network.clone(),
    };
    Ok(Arc::new(Docker::connect(settings).await?))
}

async fn containerd(wanted: &Wanted, identity: &Identity) -> Result<Arc<dyn Runtime>, RuntimeError> {
    let program = std::env::current_exe().map_err(|e| RuntimeError::Other(format!("where is this program? {e}")))?;
    let settings = ContainerdSettings {
        socket: wanted.containerd_socket.clone(),
        cluster: wanted.cluster.clone(),
        instance: identity.uid.clone(),
        base: wanted.directory.join("containerd"),
        program,
        pull_behavior: wanted.image_pull_behavior.into(),
        task_subnet: wanted.task_subnet.clone(),
        task_network: wanted.task_network.clone(),
    };
    Ok(Arc::new(Containerd::connect(settings).await?))
}

/// An engine whose restart ends every task is no instance for a cluster, unless somebody says that it is.
fn restorable(wanted: &Wanted, docker: Arc<Docker>) -> Result<Arc<dyn Runtime>, Failure> {
    if wanted.live_restore && docker.live_restore() == Some(false) {
        return Err(Failure::failed(
            "this Docker ends every container when it is restarted or upgraded, and every task here with them. Put \
             {\"live-restore\": true} into /etc/docker/daemon.json and reload it (systemctl reload docker), or pass \
             --without-live-restore",
        ));
    }
    Ok(docker)
}

fn process(wanted: &Wanted) -> Result<Arc<dyn Runtime>, Failure> {
    let program = std::env::current_exe().map_err(|e| Failure::failed(format!("where is this program? {e}")))?;
    Ok(Arc::new(Process::new(wanted.directory.join("process"), program)))
}

/// CPU units and MiB of this machine, divided by those who share it.
fn share(by: u32) -> (i32, i32) {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as i32;
    let memory = rustix::system::sysinfo();
    let bytes = (memory.totalram as u64).saturating_mul(u64::from(memory.mem_unit.max(1)));
    let by = i32::try_from(by.max(1)).unwrap_or(1);
    (cores * 1024 / by, (bytes / 1024 / 1024) as i32 / by)
}

/// The host's name, as far as it is a name for an instance.
pub(super) fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String =
        name.trim().chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' }).collect();
    if name.is_empty() || name == "(none)" { "node".to_owned() } else { name }
}

/// Address of this machine on the way to a server.
pub(super) fn address_towards(server: &str) -> String {
    let host = server.split("://").last().unwrap_or(server);
    let found = UdpSocket::bind(("0.0.0.0", 0)).and_then(|socket| {
        socket.connect(host)?;
        socket.local_addr()
    });
    found.map_or_else(|_| IpAddr::from([127, 0, 0, 1]).to_string(), |address| address.ip().to_string())
}
