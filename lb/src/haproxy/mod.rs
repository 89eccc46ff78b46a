//! `HAProxy` as the data plane, for those who run one already.
//!
//! What is written into its file, and takes a reload, is listeners, rules and target groups; targets come and go while it runs, by its
//! Runtime API. Neither loses a request. A reload leaves connections to the process that has them, which takes no orders any more: as
//! long as it has clients, no target that it knows is said to have nothing to do. `HAProxy` looks at no target itself: Steady's checks
//! decide, so that all load balancers think alike. It outlives this process when that is killed, and the next one finds it.

mod cli;
mod config;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::endpoint::Endpoint;
use crate::keep::Kept;
use crate::plane::{Open, Plane, tell};
use crate::table::Table;
use crate::tls::Certificates;
use crate::{LbError, Settings};
use cli::{Master, Processes, Row};
use config::{Configuration, Servers, Site};

/// Oldest that has what is needed: servers that come and go without a reload, and `use-server` by name.
const OLDEST: (u32, u32) = (2, 6);
/// Between looks at processes and figures when nothing changes.
const TICK: Duration = Duration::from_secs(1);
/// Between looks at targets that drain.
const DRAINING: Duration = Duration::from_millis(10);
/// Until one that has ended is started again.
const RESTART: Duration = Duration::from_millis(200);
/// Longest path of a socket that it takes, bytes.
const PATH: usize = 97;
/// The file that says which ports it has.
const LISTENING: &str = "listening";
/// Between attempts at what did not work.
const AGAIN: Duration = Duration::from_secs(3);
/// How long a reload, or a start, may take.
const RELOAD: Duration = Duration::from_secs(20);
/// Changes of servers beyond which a reload is less work than as many commands.
const MANY: usize = 1000;

/// What is told to the one who drives it.
#[derive(Clone, Default)]
struct Order {
    table: Arc<Table>,
    closing: Option<Closing>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closing {
    /// Its connections may end.
    Softly,
    /// It is somebody else's by now.
    Leave,
    AtOnce,
}

/// `HAProxy`, and who drives it.
pub(crate) struct HaProxy {
    orders: watch::Sender<Order>,
    known: Arc<AtomicU64>,
    pending: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    driving: JoinHandle<()>,
}

impl HaProxy {
    /// Makes sure that the program is there. It is started with the first table; one that runs already is taken over. `changed` is
    /// told when a target is found to be another than before.
    pub(crate) async fn start(
        program: &Path,
        settings: &Settings,
        certificates: Arc<RwLock<Certificates>>,
        open: Open,
        changed: Arc<Notify>,
    ) -> Result<Self, LbError> {
        let wrong = |why: String| LbError::HaProxy(program.to_owned(), why);
        let output = tokio::process::Command::new(program).arg("-v").stdin(Stdio::null()).output().await;
        let output = output.map_err(|error| wrong(error.to_string()))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = version(&said).ok_or_else(|| wrong("does not say that it is HAProxy".to_owned()))?;
        if version < OLDEST {
            return Err(wrong(format!("is HAProxy {}.{}", version.0, version.1)));
        }
        let directory = std::path::absolute(settings.directory.join("haproxy"));
        let local = |error| LbError::Local(settings.directory.clone(), error);
        let directory = directory.map_err(local)?;
        let files = Kept::open(&directory).map_err(local)?;
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&directory, private).map_err(local)?;
        let master = Master::at(&directory);
        if master.path().as_os_str().len() > PATH {
            let why = format!(
                "takes no socket at {}: more than {PATH} bytes; use a shorter --data-dir",
                master.path().display()
            );
            return Err(LbError::Path(why));
        }
        let (orders, told) = watch::channel(Order::default());
        let (known, pending, ended) = (Arc::default(), Arc::default(), Arc::default());
        let driver = Driver {
            program: program.to_owned(),
            settings: settings.clone(),
            certificates,
            open,
            master,
            directory,
            files,
            changed,
            known: Arc::clone(&known),
            pending: Arc::clone(&pending),
            configuration: Configuration::default(),
            refused: None,
            taken: BTreeMap::new(),
            wrong: BTreeMap::new(),
            processes: BTreeMap::new(),
            newest: 0,
            pid: 0,
            endpoints: (0, HashMap::new()),
            looked: Instant::now(),
        };
        let driving = tokio::spawn(driver.run(told, Arc::clone(&ended)));
        Ok(HaProxy { orders, known, pending, ended, driving })
    }
}

/// `HAProxy version 2.6.12-1+deb12u4 …`.
fn version(said: &str) -> Option<(u32, u32)> {
    let number = said.strip_prefix("HAProxy version ").or_else(|| said.strip_prefix("HA-Proxy version "))?;
    let mut parts = number.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

impl Plane for HaProxy {
    fn obey(&mut self, table: &Arc<Table>) {
        self.orders.send_modify(|order| order.table = Arc::clone(table));
    }

    fn known(&self) -> Vec<Arc<AtomicU64>> {
        vec![Arc::clone(&self.known)]
    }

    fn goes_on(&self) -> bool {
        true
    }

    fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    fn close(&mut self, handed_over: bool) {
        let how = if handed_over { Closing::Leave } else { Closing::Softly };
        self.orders.send_modify(|order| order.closing = Some(how));
    }

    fn has_ended(&self) -> Box<dyn Fn() -> bool + Send + Sync> {
        let ended = Arc::clone(&self.ended);
        Box::new(move || ended.load(Ordering::Acquire))
    }

    fn end(self: Box<Self>) {
        self.orders.send_modify(|order| {
            if order.closing == Some(Closing::Softly) {
                order.closing = Some(Closing::AtOnce);
            }
        });
        let until = std::time::Instant::now() + TICK;
        while !self.ended.load(Ordering::Acquire) && std::time::Instant::now() < until {
            std::thread::sleep(DRAINING);
        }
        self.driving.abort();
    }
}

/// Servers of a process: weight, and whether they get requests.
type Known = BTreeMap<(String, String), (u16, bool)>;

/// One process of `HAProxy`.
#[derive(Default)]
struct Process {
    servers: Known,
    /// What was counted of it.
    counted: BTreeMap<(String, String), Row>,
}

struct Driver {
    program: PathBuf,
    settings: Settings,
    certificates: Arc<RwLock<Certificates>>,
    open: Open,
    master: Master,
    directory: PathBuf,
    files: Kept,
    changed: Arc<Notify>,
    /// The table that all processes obey.
    known: Arc<AtomicU64>,
    pending: Arc<AtomicBool>,
    /// What runs; empty: nothing that is known.
    configuration: Configuration,
    /// What could not be loaded, and when that was tried.
    refused: Option<(String, Instant, Failure)>,
    /// Ports that could not be had, and why.
    taken: BTreeMap<u16, String>,
    /// Listeners that `HAProxy` does not take, and what they are.
    wrong: BTreeMap<String, String>,
    processes: BTreeMap<u32, Process>,
    /// The process that accepts connections; 0: none.
    newest: u32,
    /// The master; 0: none.
    pid: u32,
    /// Who servers are, by target group and name; and the table that said so.
    endpoints: (u64, HashMap<(String, String), Arc<Endpoint>>),
    /// When figures were taken last, and servers deleted.
    looked: Instant,
}

type Failure = String;

impl Driver {
    async fn run(mut self, mut orders: watch::Receiver<Order>, ended: Arc<AtomicBool>) {
        let mut told = String::new();
        let mut pause = DRAINING;
        // Something may be otherwise than it is done.
        let mut fresh = true;
        loop {
            let Order { table, closing } = orders.borrow_and_update().clone();
            if closing == Some(Closing::Leave) {
                ended.store(true, Ordering::Release);
                return std::future::pending().await;
            }
            if let Some(how) = closing {
                self.stop(how == Closing::AtOnce).await;
            }
            let done = match closing {
                None if fresh => self.settle(&table).await,
                None => self.look(&table).await,
                Some(_) => self.wind_down(&table).await,
            };
            let fails_anew = done.is_err() && told.is_empty();
            match &done {
                Err(why) if closing.is_none() && *why != told => {
                    tracing::error!(why, "HAProxy does not do as it is told; trying again");
                    told.clone_from(why);
                }
                Err(_) => {}
                Ok(()) => told.clear(),
            }
            let is_pending = done.is_err() || !self.taken.is_empty() || !self.wrong.is_empty();
            self.pending.store(is_pending, Ordering::Relaxed);
            if closing.is_some() && !self.is_there() {
                ended.store(true, Ordering::Release);
            }
            let drains = table.endpoints.values().any(|endpoint| endpoint.is_draining() && endpoint.outstanding() > 0);
            pause = match &done {
                _ if closing.is_some() => DRAINING,
                // It has ended: the next one is started.
                Err(_) if !self.is_there() => RESTART,
                _ if drains && fresh => DRAINING,
                _ if drains => (pause * 2).min(TICK / 4),
                Err(_) if fails_anew => RESTART,
                Err(_) => AGAIN,
                Ok(()) => TICK,
            };
            fresh = tokio::select! {
                news = orders.changed() => {
                    if news.is_err() {
                        return;
                    }
                    true
                }
                () = self.changed.notified() => true,
                () = tokio::time::sleep(pause) => !drains || self.looked.elapsed() >= TICK,
            };
        }
    }

    /// Has all processes do as a table says.
    async fn settle(&mut self, table: &Arc<Table>) -> Result<(), Failure> {
        if table.number == 0 {
            return Ok(());
        }
        if self.processes.is_empty() {
            self.find().await?;
        }
        let mut wanted = self.configuration(table);
        let mut loaded = Ok(());
        if self.newest == 0 || wanted.shape != self.configuration.shape {
            loaded = match &self.refused {
                Some((shape, at, why)) if *shape == wanted.shape && at.elapsed() < AGAIN => Err(why.clone()),
                _ => {
                    let (mut tried, left_out) = (self.load(table, &wanted).await, self.wrong.len());
                    let others = self.configuration(table);
                    if tried.is_err() && left_out > 0 && others.shape != wanted.shape {
                        wanted = others;
                        tried = self.load(table, &wanted).await;
                    }
                    let failed = tried.as_ref().err();
                    self.refused = failed.map(|why| (wanted.shape.clone(), Instant::now(), why.clone()));
                    tried
                }
            };
        }
        if loaded.is_err() && self.newest == 0 {
            return loaded;
        }
        if wanted.shape == self.configuration.shape {
            self.configuration = wanted;
        } else {
            // What runs is told of targets as ever.
            self.configuration.servers = wanted.servers;
        }
        let done = self.follow(table, loaded.is_ok()).await;
        if done.is_err() {
            self.processes.clear();
        }
        done.and(loaded)
    }

    /// Has what runs obey a table.
    async fn follow(&mut self, table: &Arc<Table>, is_whole: bool) -> Result<(), Failure> {
        let is_news = self.known.load(Ordering::Relaxed) != table.number;
        if !self.tell(is_whole).await? {
            let wanted = self.configuration(table);
            self.load(table, &wanted).await?;
            self.tell(true).await?;
        }
        let drains = table.endpoints.values().any(|endpoint| endpoint.is_draining());
        if drains || self.looked.elapsed() >= TICK {
            self.look(table).await?;
            if drains && is_news {
                // One that was chosen in the moment in which it was taken out is seen by now.
                tokio::time::sleep(DRAINING).await;
                self.look(table).await?;
            }
        }
        self.known.store(table.number, Ordering::Release);
        if is_news {
            tracing::debug!(table = table.number, revision = table.revision.0, "obeyed");
        }
        Ok(())
    }

    /// What a table makes of it. Ports that are not its own are tried first: one that cannot be had would spoil all.
    fn configuration(&mut self, table: &Table) -> Configuration {
        let ports: BTreeSet<u16> = table.listeners.values().map(|listener| listener.port).collect();
        self.taken.retain(|port, _| ports.contains(port));
        for port in ports.into_iter().filter(|port| !self.configuration.ports.contains(port)) {
            match TcpListener::bind((self.settings.address, port)) {
                Ok(_) => drop(self.taken.remove(&port)),
                Err(error) => tell(&mut self.taken, port, &error),
            }
        }
        // One that is another by now may be to its liking.
        let alone = |name: &String| table.listeners.contains_key(name).then(|| self.alone(table, name).shape);
        let others = self.wrong.iter().filter(|(name, shape)| alone(name).as_ref() != Some(*shape));
        for name in others.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.wrong.remove(&name);
        }
        let of_ports = table.listeners.values().filter(|listener| self.taken.contains_key(&listener.port));
        let left_out = of_ports.map(|listener| listener.name.clone()).chain(self.wrong.keys().cloned()).collect();
        self.made(table, &left_out)
    }

    /// One listener of a table.
    fn alone(&self, table: &Table, name: &String) -> Configuration {
        self.made(table, &table.listeners.keys().filter(|other| *other != name).cloned().collect())
    }

    /// A table without some of its listeners.
    fn made(&self, table: &Table, left_out: &BTreeSet<String>) -> Configuration {
        let certificates = self.certificates.read().unwrap_or_else(PoisonError::into_inner);
        let site = Site {
            directory: &self.directory,
            address: self.settings.address,
            threads: self.settings.threads,
            left_out,
            certificates: &certificates,
        };
        Configuration::of(table, site)
    }

    /// Looks for one that runs already. Unless it is known its configuration is not, but its ports are its own.
    async fn find(&mut self) -> Result<(), Failure> {
        let Some(processes) = self.master.there().await.map_err(|error| error.to_string())? else {
            (self.newest, self.pid, self.configuration) = (0, 0, Configuration::default());
            return Ok(());
        };
        if self.newest == 0 || processes.worker != Some(self.newest) {
            let written = fs::read_to_string(self.directory.join(LISTENING)).unwrap_or_default();
            let address = self.settings.address.to_string();
            let own = written.lines().filter_map(|line| line.strip_prefix(&address)?.trim().parse().ok());
            self.configuration = Configuration::default();
            self.configuration.ports = own.collect();
        }
        self.pid = processes.master;
        self.newest = processes.worker.unwrap_or(0);
        self.reconcile(&processes).await
    }

    /// Knows the processes that there are, and no others.
    async fn reconcile(&mut self, processes: &Processes) -> Result<(), Failure> {
        let there = || processes.former.iter().copied().chain(processes.worker);
        self.processes.retain(|pid, _| there().any(|other| other == *pid));
        for pid in there().collect::<Vec<_>>() {
            if !self.processes.contains_key(&pid) {
                self.meet(pid).await?;
            }
        }
        Ok(())
    }

    /// Starts it, or has it load another configuration. Listeners that it does not take are left out, the others are not.
    async fn load(&mut self, table: &Table, wanted: &Configuration) -> Result<(), Failure> {
        let (path, next) = (self.directory.join("haproxy.cfg"), self.directory.join("haproxy.cfg.next"));
        if let Err(why) = self.check(wanted, &next).await? {
            self.find_wrong(table, &next).await?;
            return Err(format!("its configuration is refused: {why}"));
        }
        fs::rename(&next, &path).map_err(|error| format!("{}: {error}", path.display()))?;
        let before = self.master.there().await.map_err(|error| error.to_string())?;
        if before.is_some() {
            match self.master.ask("reload").await {
                // Newer ones answer when it is done.
                Err(error) if error.kind() != std::io::ErrorKind::TimedOut => return Err(error.to_string()),
                _ => {}
            }
        } else {
            self.spawn(&path)?;
        }
        let until = Instant::now() + RELOAD;
        let processes = loop {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let (worker, failures) = before.as_ref().map_or((None, 0), |before| (before.worker, before.failed));
            match self.master.there().await {
                Ok(Some(now)) if now.worker.is_some() && now.worker != worker => break now,
                Ok(Some(now)) if now.failed > failures => {
                    return Err("it could not load its configuration; what it said stands above".to_owned());
                }
                _ if !self.is_there() => return Err("it has ended; what it said stands above".to_owned()),
                _ if Instant::now() > until => {
                    return Err(format!("it has not loaded its configuration within {RELOAD:?}"));
                }
                _ => {}
            }
        };
        (self.pid, self.newest) = (processes.master, processes.worker.unwrap_or_default());
        let all: Vec<String> = wanted.ports.iter().map(|port| format!("{} {port}", self.settings.address)).collect();
        self.files.write(LISTENING, all.join("\n").as_bytes()).map_err(|error| error.to_string())?;
        self.sweep(wanted);
        self.configuration = wanted.clone();
        self.reconcile(&processes).await?;
        tracing::info!(pid = self.newest, former = ?processes.former, "HAProxy obeys");
        Ok(())
    }

    /// Writes a configuration, and what it names. Inside: what is wrong with it.
    async fn check(&self, wanted: &Configuration, path: &Path) -> Result<Result<(), Failure>, Failure> {
        let failed = |what: &Path| {
            let what = what.display().to_string();
            move |error: std::io::Error| format!("{what}: {error}")
        };
        for (name, content) in &wanted.files {
            self.files.write(name, content.as_bytes()).map_err(failed(&self.directory.join(name)))?;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.files.write(&name, wanted.text().as_bytes()).map_err(failed(path))?;
        let mut check = tokio::process::Command::new(&self.program);
        let check = check.arg("-c").arg("-f").arg(path).stdin(Stdio::null()).output().await;
        let check = check.map_err(failed(&self.program))?;
        Ok(if check.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&check.stderr).trim().to_owned()) })
    }

    /// Looks at listeners one by one.
    async fn find_wrong(&mut self, table: &Table, path: &Path) -> Result<(), Failure> {
        for name in table.listeners.keys() {
            let alone = self.alone(table, name);
            if let Err(why) = self.check(&alone, path).await? {
                tracing::error!(listener = name, why, "HAProxy does not take a listener; it is left out");
                self.wrong.insert(name.clone(), alone.shape);
            }
        }
        Ok(())
    }

    /// Files that no configuration names any more: keys, for one.
    fn sweep(&self, wanted: &Configuration) {
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let kinds = ["pem", "body", "list", "part"];
            let is_file = Path::new(&name).extension().is_some_and(|kind| kinds.iter().any(|one| kind == *one));
            if is_file && !wanted.files.contains_key(&name) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn spawn(&mut self, path: &Path) -> Result<(), Failure> {
        let _ = fs::remove_file(self.master.path());
        let socket = format!("{},mode,600", self.master.path().display());
        let mut command = Command::new(&self.program);
        command.arg("-W").arg("-S").arg(socket).arg("-f").arg(path);
        // What ends this process by a signal of the terminal does not end it.
        command.stdin(Stdio::null()).process_group(0);
        let mut child = command.spawn().map_err(|error| format!("{}: {error}", self.program.display()))?;
        self.pid = child.id();
        let changed = Arc::clone(&self.changed);
        std::thread::spawn(move || {
            let _ = child.wait();
            changed.notify_one();
        });
        Ok(())
    }

    /// What a process does now; what it has counted before is nobody's to count again.
    async fn meet(&mut self, pid: u32) -> Result<(), Failure> {
        let rows = self.master.look(pid).await.map_err(|error| error.to_string())?;
        let process = self.processes.entry(pid).or_default();
        process.servers.clear();
        for row in rows.into_iter().filter(|row| row.name != "FRONTEND") {
            let key = (row.proxy.clone(), row.name.clone());
            process.servers.insert(key.clone(), (row.weight, row.on));
            process.counted.entry(key).or_insert(row);
        }
        Ok(())
    }

    /// Tells the newest process what is otherwise than it is to be; those before it take no orders any more. Whether it was told:
    /// with very many changes a reload is less work.
    async fn tell(&mut self, is_whole: bool) -> Result<bool, Failure> {
        let Some(process) = self.processes.get_mut(&self.newest) else { return Ok(true) };
        let mut servers = process.servers.clone();
        let commands = changes(&mut servers, &self.configuration.servers, is_whole);
        if is_whole && commands.len() > MANY {
            return Ok(false);
        }
        let complaints = self.master.tell(self.newest, &commands).await.map_err(|error| error.to_string())?;
        process.servers = servers;
        if complaints.is_empty() { Ok(true) } else { Err(complaints.join("; ")) }
    }

    /// Looks at all processes: what goes on at targets, and what they did.
    async fn look(&mut self, table: &Table) -> Result<(), Failure> {
        let processes = self.master.there().await.map_err(|error| error.to_string())?.ok_or("it has ended")?;
        if processes.worker != Some(self.newest) && self.newest != 0 {
            self.processes.clear();
            return Err("another process is there than the one that was started".to_owned());
        }
        self.reconcile(&processes).await?;
        if self.looked.elapsed() >= TICK {
            self.looked = Instant::now();
            self.delete().await?;
        }
        if self.endpoints.0 != table.number {
            let of = |endpoint: &Arc<Endpoint>| {
                let names = config::names(endpoint).map(|name| (endpoint.identity.group.clone(), name));
                names.map(|name| (name, Arc::clone(endpoint)))
            };
            self.endpoints = (table.number, table.endpoints.values().flat_map(of).collect());
        }
        let mut going_on: HashMap<u64, u64> = HashMap::new();
        let mut connections = 0;
        for pid in self.processes.keys().copied().collect::<Vec<_>>() {
            let rows = self.master.look(pid).await.map_err(|error| error.to_string())?;
            let Some(process) = self.processes.get_mut(&pid) else { continue };
            let clients: u64 = rows.iter().filter(|row| row.name == "FRONTEND").map(|row| row.sessions).sum();
            connections += clients;
            // A client of one that takes no orders may ask once more, and whoever it knew may be asked.
            let may_ask = pid != self.newest && clients > 0;
            for row in rows.into_iter().filter(|row| row.name != "FRONTEND") {
                let group = row.proxy.rsplit(':').next().unwrap_or_default().to_owned();
                let Some(endpoint) = self.endpoints.1.get(&(group, row.name.clone())) else { continue };
                let own = row.sessions.max(u64::from(may_ask && row.on));
                *going_on.entry(endpoint.cookie).or_default() += own;
                let key = (row.proxy.clone(), row.name.clone());
                count(table, endpoint, process.counted.get(&key), &row);
                process.counted.insert(key, row);
            }
        }
        for endpoint in table.endpoints.values() {
            endpoint.set_outstanding(going_on.get(&endpoint.cookie).copied().unwrap_or(0) as u32);
        }
        self.open.store(connections as i64, Ordering::Release);
        Ok(())
    }

    /// Servers that nobody wants, and that nothing goes on at, are forgotten.
    async fn delete(&mut self) -> Result<(), Failure> {
        let wanted = &self.configuration.servers;
        let Some(process) = self.processes.get_mut(&self.newest) else { return Ok(()) };
        let left: Vec<&(String, String)> = process.servers.keys().filter(|key| !wanted.contains_key(*key)).collect();
        if left.is_empty() {
            return Ok(());
        }
        let commands: Vec<String> = left.iter().map(|(backend, name)| format!("del server {backend}/{name}")).collect();
        // One that has a connection still is for the next time.
        self.master.tell(self.newest, &commands).await.map_err(|error| error.to_string())?;
        self.meet(self.newest).await?;
        if let Some(process) = self.processes.get_mut(&self.newest) {
            process.counted.retain(|key, _| process.servers.contains_key(key));
        }
        Ok(())
    }

    /// Looks on while it ends: none of its processes takes orders any more.
    async fn wind_down(&mut self, table: &Arc<Table>) -> Result<(), Failure> {
        self.look(table).await?;
        self.known.store(table.number, Ordering::Release);
        Ok(())
    }

    fn is_there(&self) -> bool {
        master(self.pid).is_some_and(|pid| test_kill_process(pid).is_ok())
    }

    /// Asks it to end, once softly: with its connections.
    async fn stop(&mut self, at_once: bool) {
        if !at_once && self.newest == 0 && self.pid != 0 {
            return;
        }
        self.pid = self.master.there().await.ok().flatten().map_or(0, |processes| processes.master);
        self.newest = 0;
        let signal = if at_once { Signal::TERM } else { Signal::USR1 };
        if let Some(pid) = master(self.pid) {
            let _ = kill_process(pid, signal);
        }
    }
}

fn master(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

/// Ends one that a process with another data plane has left, softly: its ports are free at once.
pub(crate) async fn dismiss(directory: &Path) {
    let Ok(Some(processes)) = Master::at(&directory.join("haproxy")).there().await else { return };
    tracing::info!("ending HAProxy, which was the data plane before");
    if let Some(pid) = master(processes.master) {
        let _ = kill_process(pid, Signal::USR1);
    }
}

/// Commands that make a process do as is wanted; `known` is what it does, and from now on the other. `is_whole`: it has all
/// backends, and gets servers that are new.
fn changes(known: &mut Known, wanted: &Servers, is_whole: bool) -> Vec<String> {
    // Whoever comes is there before anybody goes.
    let (mut commands, mut leaving) = (Vec::new(), Vec::new());
    for (key, server) in wanted {
        let (backend, name) = key;
        let now = (server.weight, server.on);
        match known.get(key) {
            None if is_whole => {
                commands.push(format!("add server {backend}/{name} {}", server.line()));
                if server.on {
                    commands.push(format!("set server {backend}/{name} state ready"));
                }
            }
            None => continue,
            Some((weight, on)) => {
                if *weight != server.weight {
                    commands.push(format!("set server {backend}/{name} weight {}", server.weight));
                }
                match (*on, server.on) {
                    (false, true) => commands.push(format!("set server {backend}/{name} state ready")),
                    (true, false) => leaving.push(format!("set server {backend}/{name} state maint")),
                    _ => {}
                }
            }
        }
        known.insert(key.clone(), now);
    }
    for ((backend, name), (_, on)) in known.iter_mut().filter(|(key, (_, on))| *on && !wanted.contains_key(*key)) {
        leaving.push(format!("set server {backend}/{name} state maint"));
        *on = false;
    }
    commands.extend(leaving);
    commands
}

/// Takes in what a process has counted since it was looked at last.
fn count(table: &Table, endpoint: &Endpoint, before: Option<&Row>, now: &Row) {
    let none = Row::default();
    let before = before.unwrap_or(&none);
    let add = |counter: &AtomicU64, now: u64, before: u64| {
        counter.fetch_add(now.saturating_sub(before), Ordering::Relaxed);
    };
    add(&endpoint.figures.requests, now.total, before.total);
    add(&endpoint.figures.errors, now.answers[5], before.answers[5]);
    add(&endpoint.figures.failures, now.failures, before.failures);
    let Some(group) = table.groups.get(&endpoint.identity.group) else { return };
    add(&group.counters.requests, now.total, before.total);
    add(&group.counters.retries, now.retries, before.retries);
    for (class, counter) in group.counters.answers.iter().enumerate() {
        add(counter, now.answers[class], before.answers[class]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Identity;
    use config::Server;

    fn server(port: u16, weight: u16, on: bool) -> Server {
        let address = ([127, 0, 0, 1], port).into();
        let identity = Identity { task: "t".into(), group: "g".into(), container_port: 80, address };
        Server { endpoint: Arc::new(Endpoint::new(identity)), weight, on, options: "" }
    }

    #[test]
    fn whoever_comes_is_there_before_anybody_goes() {
        let key = |name: &str| ("b".to_owned(), name.to_owned());
        let mut known = Known::from([(key("gone"), (1, true)), (key("leaves"), (1, true)), (key("same"), (1, true))]);
        let wanted = Servers::from([
            (key("cold"), server(4, 1, false)),
            (key("leaves"), server(1, 1, false)),
            (key("new"), server(2, 256, true)),
            (key("same"), server(3, 7, true)),
        ]);
        let mut former = known.clone();
        let commands = [
            "add server b/cold 127.0.0.1:4 weight 1",
            "add server b/new 127.0.0.1:2 weight 256",
            "set server b/new state ready",
            "set server b/same weight 7",
            "set server b/leaves state maint",
            "set server b/gone state maint",
        ];
        assert_eq!(changes(&mut known, &wanted, true), commands);
        assert_eq!(changes(&mut known, &wanted, true), Vec::<String>::new(), "once is enough");
        assert_eq!(
            changes(&mut former, &wanted, false),
            commands[3..],
            "one that has not all backends gets nobody new"
        );
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(version("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/"), Some((2, 6)));
        assert_eq!(version("HA-Proxy version 1.8.4"), Some((1, 8)));
        assert_eq!(version("nginx version: nginx/1.22"), None);
    }
}
