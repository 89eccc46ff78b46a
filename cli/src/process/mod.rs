//! The processes of Steady as subcommands: `up`, `apiserver`, `etcd`, `controller`, `agent`; here their arguments.
// Doc comments of arguments are help texts: no backticks.
#![allow(clippy::doc_markdown)]

mod agent;
mod apiserver;
mod controller;
mod dns;
mod ending;
mod etcd;
mod hidden;
mod lb;
mod log;
mod machine;
mod metadata;
mod pool;
mod up;

pub use agent::agent;
pub use apiserver::apiserver;
pub use controller::controller;
pub use dns::dns;
pub use etcd::etcd;
pub use hidden::hidden;
pub use lb::lb;
pub use pool::pool;
pub use up::up;

pub(crate) use apiserver::Store;
pub(crate) use machine::{data_directory, lock};

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use steady_agent::runtime::PullBehavior;
use steady_apiserver::storage::{EtcdSettings, EtcdTls};

use crate::failure::Failure;

/// What starts an agent's containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum RuntimeChoice {
    /// Docker where it answers, else plain processes.
    #[default]
    Auto,
    /// Docker Engine.
    Docker,
    /// containerd, without Docker.
    Containerd,
    /// Plain processes, for machines without a container engine.
    Process,
    /// Simulated tasks.
    Hollow,
}

/// When images are pulled that are here already (`ECS_IMAGE_PULL_BEHAVIOR`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum PullWhen {
    /// When their tag is `latest`; if that fails, the one that is here does.
    #[default]
    Default,
    /// Always; the task fails if that does.
    Always,
    /// When this agent has not asked for them yet.
    Once,
    /// Never.
    PreferCached,
}

impl From<PullWhen> for PullBehavior {
    fn from(when: PullWhen) -> Self {
        match when {
            PullWhen::Default => PullBehavior::Default,
            PullWhen::Always => PullBehavior::Always,
            PullWhen::Once => PullBehavior::Once,
            PullWhen::PreferCached => PullBehavior::PreferCached,
        }
    }
}

/// Which etcd to use, and how.
#[derive(Debug, Clone, Default, Args)]
pub struct EtcdArgs {
    /// An etcd that is already there, instead of the bundled one: some of its members.
    #[arg(long, value_name = "URL[,URL]", value_delimiter = ',')]
    pub etcd: Vec<String>,
    /// For https: the authority that signed etcd's certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "etcd")]
    pub etcd_cacert: Option<PathBuf>,
    /// The certificate that etcd is to know us by, PEM.
    #[arg(long, value_name = "FILE", requires = "etcd_key")]
    pub etcd_cert: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, value_name = "FILE", requires = "etcd_cert")]
    pub etcd_key: Option<PathBuf>,
}

impl EtcdArgs {
    /// What the storage needs to know of it.
    pub(crate) fn settings(&self) -> Result<EtcdSettings, Failure> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
        };
        if let Some(plain) = self.etcd.iter().find(|url| !url.starts_with("https://") && self.etcd_cacert.is_some()) {
            return Err(Failure::usage(format!(
                "--etcd {plain} is no https:// address, and --etcd-cacert is for those"
            )));
        }
        let identity = match (&self.etcd_cert, &self.etcd_key) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            _ => None,
        };
        let tls = match &self.etcd_cacert {
            Some(path) => Some(EtcdTls { authority: read(path)?, identity }),
            None => None,
        };
        if let Some(url) = self.etcd.iter().find(|url| url.starts_with("https://") && tls.is_none()) {
            return Err(Failure::usage(format!("--etcd {url} needs --etcd-cacert FILE: the authority that signed it")));
        }
        Ok(EtcdSettings { endpoints: self.etcd.clone(), tls })
    }
}

/// Arguments of `steady etcd`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "A cluster of one that may grow, then a member more on each of two machines, and back:

  steady etcd --name a --client-url http://10.0.0.1:2379 --peer-url http://10.0.0.1:2380
  steady etcd --name b --client-url http://10.0.0.2:2379 --peer-url http://10.0.0.2:2380 join http://10.0.0.1:2379
  steady etcd --name c --client-url http://10.0.0.3:2379 --peer-url http://10.0.0.3:2380 join http://10.0.0.1:2379
  steady etcd leave c http://10.0.0.1:2379

API servers find new members by themselves. The same command starts a member again after it ended. The data of
`steady up` may be grown too: --data-dir its directory.")]
pub struct Etcd {
    /// Name of this member [default: the host's name].
    #[arg(long)]
    pub name: Option<String>,
    /// Where its data is kept [default: $XDG_DATA_HOME/steady or ~/.local/share/steady].
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where API servers reach it.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:2379")]
    pub client_url: String,
    /// Where the other members reach it.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:2380")]
    pub peer_url: String,
    /// What else to do.
    #[command(subcommand)]
    pub verb: Option<EtcdVerb>,
}

/// What `steady etcd` does beside starting a member.
#[derive(Debug, Clone, Subcommand)]
pub enum EtcdVerb {
    /// Start this member as one more of an etcd that is there.
    Join {
        /// A member that is there.
        #[arg(value_name = "URL")]
        member: String,
    },
    /// Take a member out. Its process ends by itself, its data is of no use any more.
    Leave {
        /// The member's name.
        #[arg(value_name = "NAME")]
        leaver: String,
        /// A member that stays.
        #[arg(value_name = "URL")]
        member: String,
    },
    /// List the members.
    Members {
        /// A member.
        #[arg(value_name = "URL")]
        member: String,
    },
}

/// Arguments of `steady up`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "Examples:
  steady up                                  everything in one process, on 127.0.0.1:7443
  steady up examples/manifests/hello.yaml    the same, and applies a manifest
  steady up --runtime process --instances 3  three container instances without Docker")]
pub struct Up {
    /// Manifests to apply once it is up: files or directories.
    #[arg(value_name = "MANIFEST")]
    pub manifests: Vec<PathBuf>,
    /// Where everything is kept [default: $XDG_DATA_HOME/steady or ~/.local/share/steady].
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where the API listens.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7443")]
    pub listen: String,
    /// What starts containers.
    #[arg(long, value_enum, default_value_t)]
    pub runtime: RuntimeChoice,
    /// Container instances on this machine.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub instances: u32,
    /// The etcd to keep everything in.
    #[command(flatten)]
    pub etcd: EtcdArgs,
    /// Docker's socket.
    #[arg(long, value_name = "PATH")]
    pub docker_socket: Option<PathBuf>,
    /// containerd's socket [default: /run/containerd/containerd.sock].
    #[arg(long, value_name = "PATH")]
    pub containerd_socket: Option<PathBuf>,
    /// Where containers are told of themselves and of their credentials (`ECS_CONTAINER_METADATA_URI_V4`); `none`: nowhere
    /// [default: 169.254.170.2:80 with docker and containerd, else none].
    #[arg(long, value_name = "IP:PORT")]
    pub metadata_address: Option<String>,
    /// Leave the tasks running at the end; the next `up` adopts them.
    #[arg(long)]
    pub keep: bool,
}

/// Arguments of `steady apiserver`.
#[derive(Debug, Clone, Args)]
pub struct Apiserver {
    /// Where the API listens.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7443")]
    pub listen: String,
    /// The etcd to keep everything in.
    #[command(flatten)]
    pub etcd: EtcdArgs,
    /// Instead of --etcd: a directory for a bundled etcd.
    #[arg(long, value_name = "DIR", conflicts_with = "etcd")]
    pub data_dir: Option<PathBuf>,
    /// Keys that secrets are sealed with: 64 hexadecimal digits a line; the first seals, all open. Every API server of a
    /// store needs the same [default: with --data-dir, a key of its own in there; else no secrets are taken].
    #[arg(long, value_name = "FILE")]
    pub secrets_key: Option<PathBuf>,
    /// Where figures are served as OpenMetrics, at /metrics [default: nowhere].
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics: Option<String>,
}

/// Arguments of `steady controller`; the API server is the global `--server`.
#[derive(Debug, Clone, Args)]
pub struct Controller {
    /// Only these controllers.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Where figures of the clusters and the controllers are served as OpenMetrics, at /metrics [default: nowhere].
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics: Option<String>,
}

/// Arguments of `steady pool`; the API server is the global `--server`.
#[derive(Debug, Clone, Args)]
#[command(
    after_long_help = "A CapacityProvider says how many instances there are to be; this makes them. Without --exec they are agents on this machine, which
go on when this ends, and are found again. With --exec a program makes them: it gets one question (list, grow or shrink) as JSON on its
standard input and answers with JSON; docs/operations.md has the contract.

Examples:
  steady apply -f examples/manifests/capacity.yaml
  steady pool                                        in another terminal
  steady describe capacityprovider/workshop
  steady pool --capacity-provider spot --exec ./my-cloud"
)]
pub struct Pool {
    /// The capacity provider [default: every one of the cluster].
    #[arg(long, value_name = "NAME")]
    pub capacity_provider: Option<String>,
    /// A program that makes instances.
    #[arg(long, value_name = "PROGRAM", conflicts_with = "address")]
    pub exec: Option<PathBuf>,
    /// Where its data is kept [default: $XDG_DATA_HOME/steady or ~/.local/share/steady].
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address where ports of its instances' tasks answer [default: that on the way to the API server].
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<String>,
    /// Where figures are served as OpenMetrics, at /metrics [default: nowhere].
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics: Option<String>,
}

/// Arguments of `steady dns`; the API server is the global `--server`.
#[derive(Debug, Clone, Args)]
#[command(
    after_long_help = "A service with serviceRegistries is found as NAME.CLUSTER.DOMAIN: A and AAAA are the addresses of its healthy tasks, SRV their
ports too. Start as many as you like; agents give tasks these servers with --dns.

Examples:
  steady dns --forward 192.168.1.1
  dig @127.0.0.1 -p 5353 web.default.steady.internal SRV"
)]
pub struct Dns {
    /// Where it listens, over UDP and TCP.
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:53")]
    pub listen: SocketAddr,
    /// What names of services end with.
    #[arg(long, value_name = "NAME", default_value = "steady.internal")]
    pub domain: String,
    /// Seconds that an answer is good for.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub ttl: u32,
    /// Who is asked for other names, IP or IP:PORT; may be given several times [default: other names are refused].
    #[arg(long, value_name = "IP", value_parser = name_server)]
    pub forward: Vec<SocketAddr>,
    /// Where figures are served as OpenMetrics, at /metrics [default: nowhere].
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics: Option<String>,
}

fn name_server(text: &str) -> Result<SocketAddr, String> {
    let bare = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
    bare.or_else(|_| text.parse()).map_err(|_| format!("`{text}` is no address; expected IP or IP:PORT"))
}

/// Arguments of `steady lb`; the API server and the cluster are the global `--server` and `--cluster`.
#[derive(Debug, Clone, Args)]
#[command(
    after_long_help = "It serves the Listeners of its cluster whose loadBalancer is --load-balancer. Start as many as you like, on as many
machines. A second one with the same --data-dir and --name takes the sockets of the first one over, which ends with its last
request: that is how it is restarted and updated without a connection lost.

Examples:
  steady lb
  steady lb --load-balancer edge --access-log /var/log/steady-lb.log --metrics 127.0.0.1:9464"
)]
pub struct Lb {
    /// Listeners with this `loadBalancer` are served.
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub load_balancer: String,
    /// Name among the load balancers of that name [default: the host's name].
    #[arg(long)]
    pub name: Option<String>,
    /// Address that listeners' ports are opened at.
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    pub listen_address: IpAddr,
    /// Where it keeps the last table for a restart [default: $XDG_DATA_HOME/steady or ~/.local/share/steady].
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// What requests go through: this process; HAProxy, which is started and told of every change while it runs; or Envoys and gRPC
    /// clients, which ask by xDS.
    #[arg(long, value_enum, default_value_t)]
    pub data_plane: DataPlaneChoice,
    /// HAProxy, 2.6 or newer: a path, or a name to look for.
    #[arg(long, value_name = "PROGRAM", default_value = "haproxy")]
    pub haproxy: PathBuf,
    /// Where Envoys and gRPC clients ask (ADS).
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:18000")]
    pub xds_listen: SocketAddr,
    /// Threads that serve requests; 0: as many as the machine has cores.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Where figures are served as OpenMetrics [default: nowhere].
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics: Option<String>,
    /// A line of JSON for each request is appended to this file; `-`: standard output [default: none].
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<PathBuf>,
    /// Seconds that requests may take to end when it is asked to end.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub drain_timeout: u32,
}

/// What a load balancer's requests go through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum DataPlaneChoice {
    /// Threads of this process.
    #[default]
    Steady,
    /// `HAProxy`.
    Haproxy,
    /// Whoever asks by xDS.
    Xds,
}

/// Arguments of `steady agent`; the API server and the cluster are the global `--server` and `--cluster`.
#[derive(Debug, Clone, Args)]
pub struct Agent {
    /// Name of this container instance [default: the host's name].
    #[arg(long)]
    pub name: Option<String>,
    /// Where the agent keeps its state [default: $XDG_DATA_HOME/steady or ~/.local/share/steady].
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Stop its tasks when it ends in order (SIGTERM, Ctrl-C) [default: they go on, and the next agent adopts them].
    #[arg(long)]
    pub stop_tasks: bool,
    /// What starts containers.
    #[arg(long, value_enum, default_value_t)]
    pub runtime: RuntimeChoice,
    /// Container instances that this process plays.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub instances: u32,
    /// Address where tasks' host ports answer.
    #[arg(long)]
    pub address: Option<String>,
    /// Server of names that containers ask whose definition names none; may be given several times (`steady dns`).
    #[arg(long, value_name = "IP")]
    pub dns: Vec<IpAddr>,
    /// Docker's socket.
    #[arg(long, value_name = "PATH")]
    pub docker_socket: Option<PathBuf>,
    /// containerd's socket [default: /run/containerd/containerd.sock].
    #[arg(long, value_name = "PATH")]
    pub containerd_socket: Option<PathBuf>,
    /// Where containers are told of themselves and of their credentials (`ECS_CONTAINER_METADATA_URI_V4`); `none`: nowhere
    /// [default: 169.254.170.2:80 with docker and containerd, else none].
    #[arg(long, value_name = "IP:PORT")]
    pub metadata_address: Option<String>,
    /// CPU units to offer, 1024 a core [default: all].
    #[arg(long, value_name = "UNITS")]
    pub cpu: Option<i32>,
    /// MiB to offer [default: all].
    #[arg(long, value_name = "MIB")]
    pub memory: Option<i32>,
    /// An attribute for placement; may be given several times.
    #[arg(long = "attribute", value_name = "KEY=VALUE", value_parser = attribute)]
    pub attributes: Vec<(String, String)>,
    /// Something else that tasks ask for with resourceRequirements, such as GPU=2; may be given several times.
    #[arg(long = "resource", value_name = "NAME=COUNT", value_parser = resource)]
    pub resources: Vec<(String, i32)>,
    /// Register although Docker ends every container when it is restarted (its live-restore is off).
    #[arg(long)]
    pub without_live_restore: bool,
    /// Where addresses of this machine's tasks come from (networkMode awsvpc) [default: 10.88.0.0/16].
    #[arg(long, value_name = "CIDR")]
    pub task_subnet: Option<String>,
    /// Where addresses of tasks on all machines come from: among each other they keep their addresses, for which the
    /// machines need routes to each other's subnets [default: the task subnet].
    #[arg(long, value_name = "CIDR")]
    pub task_network: Option<String>,
    /// When images are asked for at their registry, though they are here.
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    pub image_pull_behavior: PullWhen,
    /// How often it is looked for images that no task uses any more; 0: never (ECS_IMAGE_CLEANUP_INTERVAL).
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    pub image_cleanup_interval: u32,
    /// How long an image was not used that is removed (ECS_IMAGE_MINIMUM_CLEANUP_AGE).
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub image_minimum_cleanup_age: u32,
    /// The capacity provider that this instance belongs to.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub capacity_provider: String,
    /// Where figures are served as OpenMetrics, at /metrics [default: nowhere].
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics: Option<String>,
}

fn resource(text: &str) -> Result<(String, i32), String> {
    let parsed = text.split_once('=').and_then(|(name, count)| Some((name, count.parse().ok()?)));
    match parsed {
        Some((name, count)) if !name.is_empty() && count >= 0 => Ok((name.to_owned(), count)),
        _ => Err(format!("`{text}` is no resource; write NAME=COUNT, such as GPU=2")),
    }
}

fn attribute(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is no attribute; write KEY=VALUE")),
    }
}
