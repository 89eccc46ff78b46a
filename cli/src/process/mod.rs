//! The processes of Steady as subcommands: `up`, `apiserver`, `controller`, `agent`; here their arguments.
// Doc comments of arguments are help texts: no backticks.
#![allow(clippy::doc_markdown)]

mod agent;
mod apiserver;
mod controller;
mod ending;
mod hidden;
mod log;
mod machine;
mod up;

pub use agent::agent;
pub use apiserver::apiserver;
pub use controller::controller;
pub use hidden::hidden;
pub use up::up;

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// What starts an agent's containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum RuntimeChoice {
    /// Docker where it answers, else plain processes.
    #[default]
    Auto,
    /// Docker Engine.
    Docker,
    /// Plain processes, for machines without a container engine.
    Process,
    /// Simulated tasks.
    Hollow,
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
    /// An etcd that is already there, instead of the bundled one.
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub etcd: Vec<String>,
    /// Docker's socket.
    #[arg(long, value_name = "PATH")]
    pub docker_socket: Option<PathBuf>,
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
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub etcd: Vec<String>,
    /// Instead of --etcd: a directory for a bundled etcd.
    #[arg(long, value_name = "DIR", conflicts_with = "etcd")]
    pub data_dir: Option<PathBuf>,
}

/// Arguments of `steady controller`; the API server is the global `--server`.
#[derive(Debug, Clone, Args)]
pub struct Controller {
    /// Only these controllers.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub only: Vec<String>,
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
    /// What starts containers.
    #[arg(long, value_enum, default_value_t)]
    pub runtime: RuntimeChoice,
    /// Container instances that this process plays.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub instances: u32,
    /// Address where tasks' host ports answer.
    #[arg(long)]
    pub address: Option<String>,
    /// Docker's socket.
    #[arg(long, value_name = "PATH")]
    pub docker_socket: Option<PathBuf>,
    /// CPU units to offer, 1024 a core [default: all].
    #[arg(long, value_name = "UNITS")]
    pub cpu: Option<i32>,
    /// MiB to offer [default: all].
    #[arg(long, value_name = "MIB")]
    pub memory: Option<i32>,
    /// An attribute for placement; may be given several times.
    #[arg(long = "attribute", value_name = "KEY=VALUE", value_parser = attribute)]
    pub attributes: Vec<(String, String)>,
}

fn attribute(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is no attribute; write KEY=VALUE")),
    }
}
