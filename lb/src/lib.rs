//! Steady's load balancer: sends requests to tasks, as listeners and target groups say.
//!
//! It watches the API and makes a [`table`] of what it sees; a data [`plane`] obeys it from one moment to the next, whole: Steady's own
//! threads, `HAProxy`, or whoever asks by xDS. It looks at targets itself, tells the API how they are, and when the last request of one
//! that drains is over. Without the API it obeys the last table that it knows, also after a restart. Any number of it run beside each
//! other.

mod balancer;
mod certificates;
mod connect;
mod count;
mod endpoint;
mod group;
mod handover;
mod haproxy;
mod health;
mod keep;
mod metrics;
mod pattern;
mod plane;
mod proxy;
mod report;
mod rule;
mod table;
mod tls;
mod xds;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use steady_core::traffic;
use steady_runtime::{Client, holder, presence, release};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use balancer::Balancer;
use certificates::Keys;
use haproxy::HaProxy;
use health::{Health, News};
use keep::Kept;
use metrics::Figures;
use plane::{Open, Plane};
use proxy::{AccessLog, Proxy};
use report::Reporter;
use table::Table;
use xds::Xds;

/// What a load balancer is started with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its cluster.
    pub cluster: String,
    /// Which listeners are its own: those whose `loadBalancer` is this.
    pub load_balancer: String,
    /// Its name among others of the same; its process is part of what it is known by.
    pub name: String,
    /// Where it listens.
    pub address: IpAddr,
    /// Where it keeps its last table.
    pub directory: PathBuf,
    /// What requests go through.
    pub data_plane: DataPlane,
    /// Threads; 0: as many as the machine has.
    pub threads: usize,
    /// Where figures are asked for.
    pub metrics: Option<String>,
    /// How long requests may take to end when it is to end.
    pub drain: Duration,
}

/// What requests go through.
#[derive(Debug, Clone)]
pub enum DataPlane {
    /// Threads of this process.
    Own {
        /// A file, or `-`, that gets a line for each request.
        access_log: Option<PathBuf>,
    },
    /// `HAProxy`, which is started, told of every change while it runs, and outlives this process when that is killed.
    HaProxy {
        /// The program: a path, or a name that is looked for.
        program: PathBuf,
    },
    /// Envoys and gRPC clients, which ask here for what they are to do.
    Xds {
        /// Where they ask.
        listen: SocketAddr,
    },
}

/// Why a load balancer does not run.
#[derive(Debug, thiserror::Error)]
pub enum LbError {
    /// Its directory, or a file.
    #[error("{0}: {1}")]
    Local(PathBuf, std::io::Error),
    /// Where a socket cannot be.
    #[error("HAProxy {0}")]
    Path(String),
    /// `HAProxy` does not run, or is too old.
    #[error("{0}: {1}; install haproxy 2.6 or newer, or name it with --haproxy")]
    HaProxy(PathBuf, String),
}

/// Runs until it is to end, and its requests are over.
pub async fn run(settings: Settings, client: Client, mut ending: watch::Receiver<bool>) -> Result<(), LbError> {
    let local = |path: &Path| {
        let path = path.to_owned();
        move |error| LbError::Local(path, error)
    };
    raise_limit();
    let kept = Kept::open(&settings.directory).map_err(local(&settings.directory))?;
    let path = kept.handover();
    let (sockets, mut process_before) = handover::take(&path).map_err(local(&path))?;
    if !sockets.is_empty() {
        tracing::info!(ports = ?sockets.keys().collect::<Vec<_>>(), "has the sockets of the process before");
    }
    let keys = Keys { client: client.clone(), cluster: settings.cluster.clone(), kept, all: Arc::default() };
    let (open, certificates, found) = (Open::default(), Arc::clone(&keys.all), Arc::<Notify>::default());
    let mut log = None;
    let is_own = matches!(settings.data_plane, DataPlane::Own { .. });
    if is_own {
        haproxy::dismiss(&settings.directory).await;
    } else if !sockets.is_empty()
        && let Some(before) = process_before.take()
    {
        // Another data plane has no use for sockets, but for their ports.
        handover::confirm(&before);
    }
    let plane: Box<dyn Plane> = match &settings.data_plane {
        DataPlane::Own { access_log } => {
            log = access_log.as_deref().map(|path| AccessLog::open(path).map_err(local(path))).transpose()?;
            let (address, threads) = (settings.address, settings.threads);
            let proxy = Proxy::start(address, threads, sockets, certificates, Arc::clone(&open), log.as_ref());
            Box::new(proxy.map_err(local(&settings.directory))?)
        }
        DataPlane::HaProxy { program } => {
            drop(sockets);
            Box::new(HaProxy::start(program, &settings, certificates, Arc::clone(&open), Arc::clone(&found)).await?)
        }
        DataPlane::Xds { listen } => {
            drop(sockets);
            Box::new(Xds::start(*listen, settings.address, certificates, Arc::clone(&open), Arc::clone(&found)))
        }
    };
    let (changed, states) = mpsc::unbounded_channel();
    let (tables, _) = watch::channel(Arc::new(Table::default()));
    let name = format!("{}-{}", settings.name, std::process::id());
    let own = format!("{}.{name}", settings.load_balancer);
    let reporter = Reporter {
        client: client.clone(),
        cluster: settings.cluster.clone(),
        name: own.clone(),
        workers: plane.known(),
        goes_on: plane.goes_on(),
    };
    let lease = traffic::lease(&settings.cluster, &settings.load_balancer, &name);
    // They end with this future.
    let mut beside = tokio::task::JoinSet::new();
    beside.spawn(reporter.run(states, tables.subscribe()));
    if plane.counts() {
        let (client, cluster) = (client.clone(), settings.cluster.clone());
        beside.spawn(count::Counter { client, cluster, name: own.clone(), tables: tables.subscribe() }.run());
    }
    let holder = holder();
    beside.spawn(presence(client.clone(), lease.clone(), holder.clone()));
    if let Some(address) = settings.metrics {
        let figures = Figures { tables: tables.subscribe(), open, log };
        beside.spawn(figures.serve(address));
    }
    let (hand_over, mut handed_over) = watch::channel(false);
    let mut balancer = Balancer {
        own,
        cluster: settings.cluster,
        group: settings.load_balancer,
        client: client.clone(),
        keys,
        tables,
        health: Health::new(News { changed, obey: found }),
        plane,
        process_before,
        hand_over: Some(hand_over),
    };
    tokio::select! {
        () = balancer.follow() => {}
        _ = ending.wait_for(|ending| *ending) => {}
        Ok(_) = handed_over.wait_for(|handed| *handed) => tracing::info!("another process has taken over; ending with the last request"),
    }
    let was_handed_over = *handed_over.borrow();
    if !was_handed_over {
        let _ = std::fs::remove_file(&path);
    }
    balancer.plane.close(was_handed_over);
    let until = Instant::now() + settings.drain;
    let has_ended = balancer.plane.has_ended();
    let ended = async {
        while !has_ended() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // What goes on obeys what changes, and tells when targets have drained.
    tokio::select! {
        () = balancer.follow() => {}
        () = ended => {}
    }
    beside.shutdown().await;
    release(&client, lease, holder).await;
    let _ = tokio::task::spawn_blocking(move || balancer.plane.end()).await;
    Ok(())
}

/// As many open files as may be: every connection is one, every check of a target, too.
fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the number of open files stays as it is");
    }
}
