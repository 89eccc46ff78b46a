//! Steady's load balancer: sends requests to tasks, as listeners and target groups say.
//!
//! It watches the API and makes a [`table`] of what it sees; worker threads obey it from one moment to the next, whole. It looks at
//! targets itself, tells the API how they are, and when the last request of one that drains is over. Without the API it obeys the
//! last table that it knows, also after a restart. Any number of it run beside each other.

mod access;
mod body;
mod endpoint;
mod group;
mod handover;
mod health;
mod http;
mod keep;
mod metrics;
mod pattern;
mod report;
mod serve;
mod table;
mod tcp;
mod tls;
mod upstream;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use steady_core::v1::GetCertificatesRequest;
use steady_core::v1::traffic_protocol::Value as Protocol;
use steady_core::{Kind, View, traffic};
use steady_runtime::{Client, News, Reflector, holder, presence, release};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use access::AccessLog;
use handover::Sockets;
use health::Health;
use keep::Kept;
use metrics::Figures;
use report::Reporter;
use serve::{Open, Orders, work};
use table::Table;
use tls::{Certificate, Certificates};

/// How long the control plane may take before the table of the last time is obeyed.
const FIRST: Duration = Duration::from_millis(500);
/// Between attempts at what did not work: ports that are somebody else's, certificates that are not there.
const AGAIN: Duration = Duration::from_secs(3);
/// Most certificates that are asked for at once.
const MAX_CERTIFICATES: usize = 100;
/// Between writes of the last good table.
const KEEP: Duration = Duration::from_secs(1);
/// How long changes are gathered before a table is made of them, when the last one was made just so.
const GATHER: Duration = Duration::from_millis(2);

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
    /// Threads; 0: as many as the machine has.
    pub threads: usize,
    /// Where figures are asked for.
    pub metrics: Option<String>,
    /// A file, or `-`.
    pub access_log: Option<PathBuf>,
    /// How long requests may take to end when it is to end.
    pub drain: Duration,
}

/// Why a load balancer does not run.
#[derive(Debug, thiserror::Error)]
pub enum LbError {
    /// Its directory, or a file.
    #[error("{0}: {1}")]
    Local(PathBuf, std::io::Error),
}

/// What all of it knows together.
struct Balancer {
    /// What it is known by.
    own: String,
    settings: Settings,
    client: Client,
    kept: Kept,
    certificates: Arc<RwLock<Certificates>>,
    sockets: Arc<Mutex<Sockets>>,
    orders: watch::Sender<Orders>,
    tables: watch::Sender<Arc<Table>>,
    health: Health,
    /// How clients of encrypted listeners are met, and the certificates it was made for.
    tls: BTreeMap<String, (Vec<String>, Arc<rustls::ServerConfig>)>,
    /// Ports that could not be had, and why; told once.
    refused: BTreeMap<u16, String>,
    /// Its sockets are here, and it does not know yet that they are served.
    process_before: Option<UnixStream>,
    /// Tells that another process has the sockets; taken when this one serves.
    hand_over: Option<watch::Sender<bool>>,
}

/// Runs until it is to end, and its requests are over.
pub async fn run(settings: Settings, client: Client, ending: watch::Receiver<bool>) -> Result<(), LbError> {
    let local = |path: &std::path::Path| {
        let path = path.to_owned();
        move |error| LbError::Local(path, error)
    };
    let kept = Kept::open(&settings.directory).map_err(local(&settings.directory))?;
    let log = match &settings.access_log {
        Some(path) => Some(AccessLog::open(path).map_err(local(path))?),
        None => None,
    };
    let path = kept.handover();
    let (sockets, process_before) = handover::take(&path).map_err(local(&path))?;
    if !sockets.is_empty() {
        tracing::info!(ports = ?sockets.keys().collect::<Vec<_>>(), "has the sockets of the process before");
    }
    let sockets = Arc::new(Mutex::new(sockets));
    let (orders, _) = watch::channel(Orders::default());
    let (tables, _) = watch::channel(Arc::new(Table::default()));
    let (open, closed) = (Open::default(), Arc::new(AtomicUsize::new(0)));
    let count = if settings.threads == 0 {
        std::thread::available_parallelism().map_or(1, usize::from)
    } else {
        settings.threads
    };
    let mut threads = Vec::new();
    let mut at = Vec::new();
    for number in 0..count {
        let (orders, known) = (orders.subscribe(), Arc::new(AtomicU64::new(0)));
        let (mine, open, closed, log) = (Arc::clone(&known), Arc::clone(&open), Arc::clone(&closed), log.clone());
        let thread = std::thread::Builder::new().name(format!("lb-{number}"));
        let thread = thread.spawn(move || work(orders, mine, open, closed, log));
        threads.push(thread.map_err(local(&settings.directory))?);
        at.push(known);
    }
    let (found, states) = mpsc::unbounded_channel();
    let name = format!("{}-{}", settings.name, std::process::id());
    let reporter = Reporter {
        client: client.clone(),
        cluster: settings.cluster.clone(),
        name: format!("{}.{name}", settings.load_balancer),
        workers: at,
    };
    let lease = traffic::lease(&settings.cluster, &settings.load_balancer, &name);
    // They end with this future.
    let mut beside = tokio::task::JoinSet::new();
    beside.spawn(reporter.run(states, tables.subscribe()));
    let holder = holder();
    beside.spawn(presence(client.clone(), lease.clone(), holder.clone()));
    if let Some(address) = settings.metrics.clone() {
        let figures = Figures { tables: tables.subscribe(), open: Arc::clone(&open), log: log.clone() };
        beside.spawn(figures.serve(address));
    }
    let (hand_over, mut handed_over) = watch::channel(false);
    let drain = settings.drain;
    let mut balancer = Balancer {
        own: format!("{}.{name}", settings.load_balancer),
        settings,
        client: client.clone(),
        kept,
        certificates: Arc::default(),
        sockets,
        orders,
        tables,
        health: Health::new(found),
        tls: BTreeMap::new(),
        refused: BTreeMap::new(),
        process_before,
        hand_over: Some(hand_over),
    };
    let mut ending = ending;
    tokio::select! {
        () = balancer.follow() => {}
        _ = ending.wait_for(|ending| *ending) => {}
        Ok(_) = handed_over.wait_for(|handed| *handed) => tracing::info!("another process has the sockets; ending with the last request"),
    }
    let was_handed_over = *handed_over.borrow();
    if !was_handed_over {
        let _ = std::fs::remove_file(balancer.kept.handover());
    }
    balancer.orders.send_modify(|orders| {
        orders.closing = true;
        orders.sockets.clear();
    });
    balancer.sockets.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let until = Instant::now() + drain;
    // What goes on obeys what changes, and tells when targets have drained.
    let drained = async {
        // Until then a connection may come in.
        while closed.load(Ordering::Acquire) < count && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        while open.load(Ordering::Acquire) > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = balancer.follow() => {}
        () = drained => {}
    }
    beside.shutdown().await;
    drop(balancer);
    release(&client, lease, holder).await;
    let _ = tokio::task::spawn_blocking(move || threads.into_iter().for_each(|thread| drop(thread.join()))).await;
    Ok(())
}

impl Balancer {
    /// Obeys what the control plane says, for ever.
    async fn follow(&mut self) {
        loop {
            let kinds = [Kind::Listener, Kind::TargetGroup, Kind::Task, Kind::Deployment, Kind::Secret];
            let reflector = Reflector::start(self.client.clone(), &BTreeSet::from(kinds));
            if self.tables.borrow().number == 0 {
                let there = tokio::time::timeout(FIRST, reflector.until(|_| true)).await;
                if let (Err(_), Some(view)) = (there, self.kept.load()) {
                    tracing::warn!("the control plane is away; obeying the last table that is known");
                    self.load_certificates();
                    self.obey(&view);
                }
            }
            reflector.until(|_| true).await;
            tokio::select! {
                () = self.track(&reflector) => {}
                () = reflector.replaced() => tracing::warn!("the store is another one; looking at everything anew"),
            }
        }
    }

    async fn track(&mut self, reflector: &Reflector) {
        let mut news = reflector.news();
        let mut view = reflector.view();
        let (mut dirty, mut kept_at) = (false, Instant::now());
        self.learn_certificates(&view).await;
        self.obey(&view);
        self.keep(&view);
        loop {
            let pending = !self.refused.is_empty() || self.lacks_certificates(&view);
            tokio::select! {
                told = news.recv() => {
                    let mut told = Some(told);
                    let (mut relevant, mut secrets) = (false, false);
                    while let Some(one) = told {
                        match one {
                            Ok(News::Changed(objects)) => {
                                for object in objects.iter().filter(|object| object.cluster() == self.settings.cluster) {
                                    secrets |= matches!(object.kind(), Kind::Secret | Kind::Listener);
                                    relevant |= steady_core::task::of(object).is_none_or(|task| traffic::is_behind(task.spec));
                                }
                            }
                            // Whatever was missed is in the view.
                            Ok(News::Relisted) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => (relevant, secrets) = (true, true),
                            Err(_) => return,
                        }
                        told = match news.try_recv() {
                            Err(tokio::sync::broadcast::error::TryRecvError::Empty) => None,
                            Ok(more) => Some(Ok(more)),
                            Err(_) => Some(Err(tokio::sync::broadcast::error::RecvError::Lagged(0))),
                        };
                    }
                    if !relevant {
                        continue;
                    }
                    view = reflector.view();
                    if secrets {
                        self.learn_certificates(&view).await;
                    }
                    self.obey(&view);
                    dirty = true;
                    tokio::time::sleep(GATHER).await;
                }
                () = tokio::time::sleep(AGAIN), if pending => {
                    self.learn_certificates(&view).await;
                    self.obey(&view);
                }
                () = tokio::time::sleep_until(kept_at + KEEP), if dirty => {
                    self.keep(&view);
                    (dirty, kept_at) = (false, Instant::now());
                }
            }
        }
    }

    fn keep(&self, view: &View) {
        if let Err(error) = self.kept.keep(view, &self.settings.cluster) {
            tracing::warn!(%error, "the table could not be kept for a restart");
        }
    }

    /// Has everybody obey what a view says.
    fn obey(&mut self, view: &View) {
        let before = Arc::clone(&self.tables.borrow());
        let table = Arc::new(Table::of(view, &self.settings.cluster, &self.settings.load_balancer, &self.own, &before));
        let closing = self.orders.borrow().closing;
        let sockets = Arc::clone(&self.sockets);
        let mut sockets = sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let ports: BTreeSet<u16> = table.listeners.values().map(|listener| listener.port).collect();
        sockets.retain(|port, _| ports.contains(port));
        self.refused.retain(|port, _| ports.contains(port));
        for port in ports.into_iter().filter(|_| !closing) {
            if sockets.contains_key(&port) {
                self.refused.remove(&port);
                continue;
            }
            match TcpListener::bind((self.settings.address, port)) {
                Ok(socket) => {
                    tracing::info!(port, "listening");
                    sockets.insert(port, Arc::new(socket));
                    self.refused.remove(&port);
                }
                Err(error) => {
                    let why = error.to_string();
                    if self.refused.insert(port, why.clone()).as_ref() != Some(&why) {
                        tracing::error!(port, error = why, "cannot listen at a listener's port; trying again");
                    }
                }
            }
        }
        let sockets = sockets.clone();
        let tls = self.encrypted(&table);
        self.orders.send_modify(|orders| {
            *orders = Orders { table: Arc::clone(&table), sockets, tls: Arc::new(tls), closing };
        });
        self.health.obey(&table);
        self.tables.send_replace(table);
        self.settle();
    }

    /// From the first table on the process before is not needed, and the next one may come.
    fn settle(&mut self) {
        let Some(hand_over) = self.hand_over.take() else { return };
        if let Some(before) = self.process_before.take() {
            handover::confirm(&before);
        }
        let path = self.kept.handover();
        let _ = std::fs::remove_file(&path);
        let door = match UnixListener::bind(&path) {
            Ok(door) => door,
            Err(error) => {
                return tracing::error!(path = %path.display(), %error, "no next process can take the sockets over");
            }
        };
        let sockets = Arc::clone(&self.sockets);
        std::thread::spawn(move || {
            handover::give(&door, || sockets.lock().unwrap_or_else(PoisonError::into_inner).clone());
            hand_over.send_replace(true);
        });
    }

    /// How clients of encrypted listeners are met: the same for as long as their certificates are.
    fn encrypted(&mut self, table: &Table) -> BTreeMap<String, Arc<rustls::ServerConfig>> {
        let is_encrypted = |protocol| matches!(protocol, Protocol::Https | Protocol::Tls);
        self.tls.retain(|name, (certificates, _)| {
            table.listeners.get(name).is_some_and(|listener| listener.certificates == *certificates)
        });
        for listener in table.listeners.values().filter(|listener| is_encrypted(listener.protocol)) {
            self.tls.entry(listener.name.clone()).or_insert_with(|| {
                let alpn: &[&[u8]] = if listener.protocol == Protocol::Https { &[b"h2", b"http/1.1"] } else { &[] };
                let names = listener.certificates.clone();
                let config = tls::of_listener(names.clone(), Arc::clone(&self.certificates), alpn);
                (names, config)
            });
        }
        self.tls.iter().map(|(name, (_, config))| (name.clone(), Arc::clone(config))).collect()
    }

    fn named_certificates(&self, view: &View) -> BTreeSet<String> {
        let listeners = view.in_cluster(Kind::Listener, &self.settings.cluster);
        let specs = listeners.filter_map(|listener| listener.as_listener()?.spec.as_ref());
        let own = specs.filter(|spec| spec.load_balancer == self.settings.load_balancer);
        own.flat_map(|spec| &spec.certificates).map(|certificate| certificate.certificate_arn.clone()).collect()
    }

    fn lacks_certificates(&self, view: &View) -> bool {
        let known = self.certificates.read().unwrap_or_else(PoisonError::into_inner);
        self.named_certificates(view).iter().any(|name| !known.contains_key(name))
    }

    /// Asks for the certificates of listeners. What is not told stays as it is known.
    async fn learn_certificates(&self, view: &View) {
        let named = self.named_certificates(view);
        let before: Vec<String> = self.known_certificates();
        for part in named.iter().cloned().collect::<Vec<_>>().chunks(MAX_CERTIFICATES) {
            let request =
                GetCertificatesRequest { cluster: self.settings.cluster.clone(), certificates: part.to_vec() };
            let mut traffic = self.client.traffic();
            let answer = match tokio::time::timeout(AGAIN, traffic.get_certificates(request)).await {
                Ok(Ok(answer)) => answer.into_inner(),
                Ok(Err(status)) => {
                    return tracing::warn!(%status, "certificates are not told; those stay that are known");
                }
                Err(_) => return,
            };
            for (name, why) in answer.missing {
                tracing::error!(certificate = name, why, "a certificate of a listener cannot be had");
            }
            self.take_certificates(answer.certificates);
        }
        // Keys that nobody names are nobody's to have.
        self.certificates.write().unwrap_or_else(PoisonError::into_inner).retain(|name, _| named.contains(name));
        if self.known_certificates() == before {
            return;
        }
        let known = self.certificates.read().unwrap_or_else(PoisonError::into_inner);
        let all: serde_json::Map<String, serde_json::Value> =
            known.iter().map(|(name, certificate)| (name.clone(), certificate.value.clone().into())).collect();
        if let Err(error) = self.kept.keep_certificates(&all.into()) {
            tracing::warn!(%error, "certificates could not be kept for a restart");
        }
    }

    /// What is known, to see whether it is something else.
    fn known_certificates(&self) -> Vec<String> {
        let known = self.certificates.read().unwrap_or_else(PoisonError::into_inner);
        known.iter().map(|(name, certificate)| format!("{name}={}", certificate.value)).collect()
    }

    fn load_certificates(&self) {
        let kept = self.kept.load_certificates();
        let all = kept.as_ref().and_then(|all| all.as_object()).into_iter().flatten();
        self.take_certificates(
            all.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect(),
        );
    }

    fn take_certificates(&self, told: BTreeMap<String, String>) {
        for (name, value) in told {
            let mut known = self.certificates.write().unwrap_or_else(PoisonError::into_inner);
            if known.get(&name).is_some_and(|certificate| certificate.value == value) {
                continue;
            }
            match Certificate::parse(&value) {
                Ok(certificate) => drop(known.insert(name, certificate)),
                Err(why) => {
                    tracing::error!(certificate = name, why, "a certificate of a listener is wrong: its secret");
                }
            }
        }
    }
}
