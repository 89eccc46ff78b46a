//! `HAProxy` as the data plane, for those who run one already.
//!
//! What is written into its file, and takes a reload, is listeners, rules and target groups; targets come and go while it runs, by its
//! Runtime API. Neither loses a request: a reload leaves connections to the process that has them, and that process is told of targets
//! as long as it is there. `HAProxy` looks at no target itself: Steady's checks decide, so that all load balancers think alike. It
//! outlives this process when that is killed, and the next one finds it.

mod cli;
mod config;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::net::TcpListener;
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
use crate::plane::{Open, Plane};
use crate::table::Table;
use crate::tls::Certificates;
use crate::{LbError, Settings};
use cli::{Master, Row};
use config::{Configuration, Servers, Site};

/// Oldest that has what is needed: servers that come and go without a reload, and `use-server` by name.
const OLDEST: (u32, u32) = (2, 6);
/// Between looks at processes and figures when nothing changes.
const TICK: Duration = Duration::from_secs(1);
/// Between looks at targets that drain.
const DRAINING: Duration = Duration::from_millis(10);
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
        let (orders, told) = watch::channel(Order::default());
        let (known, pending, ended) = (Arc::default(), Arc::default(), Arc::default());
        let driver = Driver {
            program: program.to_owned(),
            settings: settings.clone(),
            certificates,
            open,
            master: Master::at(&directory),
            directory,
            files,
            changed,
            known: Arc::clone(&known),
            pending: Arc::clone(&pending),
            configuration: Configuration::default(),
            refused: BTreeMap::new(),
            processes: BTreeMap::new(),
            newest: 0,
            pid: 0,
            endpoints: HashMap::new(),
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
    /// Ports that could not be had, and why.
    refused: BTreeMap<u16, String>,
    processes: BTreeMap<u32, Process>,
    /// The process that accepts connections.
    newest: u32,
    /// The master; 0: none.
    pid: u32,
    /// Who servers are.
    endpoints: HashMap<(String, String), Arc<Endpoint>>,
    /// When all processes were looked at last.
    looked: Instant,
}

type Failure = String;

impl Driver {
    async fn run(mut self, mut orders: watch::Receiver<Order>, ended: Arc<AtomicBool>) {
        let mut told = String::new();
        loop {
            let Order { table, closing } = orders.borrow_and_update().clone();
            if closing == Some(Closing::Leave) {
                ended.store(true, Ordering::Release);
                return std::future::pending().await;
            }
            if closing.is_some() {
                self.stop(closing == Some(Closing::AtOnce));
            }
            let done = if closing.is_some() { self.wind_down(&table).await } else { self.settle(&table).await };
            if let Err(why) = &done {
                if closing.is_none() && *why != told {
                    tracing::error!(why, "HAProxy does not do as it is told; trying again");
                }
                told.clone_from(why);
            } else {
                told.clear();
            }
            self.pending.store(done.is_err() || !self.refused.is_empty(), Ordering::Relaxed);
            if closing.is_some() && !self.is_there() {
                ended.store(true, Ordering::Release);
            }
            let drains = table.endpoints.values().any(|endpoint| endpoint.is_draining() && endpoint.outstanding() > 0);
            let pause = match done {
                Err(_) if closing.is_none() => AGAIN,
                _ if drains || closing.is_some() => DRAINING,
                _ => TICK,
            };
            tokio::select! {
                news = orders.changed() => if news.is_err() { return },
                () = self.changed.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Has all processes do as a table says.
    async fn settle(&mut self, table: &Arc<Table>) -> Result<(), Failure> {
        if table.number == 0 {
            return Ok(());
        }
        if self.processes.is_empty() {
            self.find().await;
        }
        let wanted = self.configuration(table);
        let is_other = self.newest == 0 || wanted.shape != self.configuration.shape;
        let loaded = if is_other { self.load(&wanted).await } else { Ok(()) };
        match loaded {
            Ok(()) => self.configuration = wanted,
            Err(_) if self.newest == 0 => return loaded,
            // What runs is told of targets as ever.
            Err(_) => self.configuration.servers = wanted.servers,
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
        if self.tell(is_whole).await? == Told::TooMuch {
            let wanted = self.configuration(table);
            self.load(&wanted).await?;
            self.configuration = wanted;
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
        self.refused.retain(|port, _| ports.contains(port));
        for port in ports.into_iter().filter(|port| !self.configuration.ports.contains(port)) {
            match TcpListener::bind((self.settings.address, port)) {
                Ok(_) => drop(self.refused.remove(&port)),
                Err(error) => crate::proxy::tell(&mut self.refused, port, &error),
            }
        }
        let certificates = self.certificates.read().unwrap_or_else(PoisonError::into_inner);
        let site = Site {
            directory: &self.directory,
            address: self.settings.address,
            threads: self.settings.threads,
            refused: &self.refused.keys().copied().collect(),
            certificates: &certificates,
        };
        Configuration::of(table, site)
    }

    /// Looks for one that runs already. Its configuration is not known, but its ports are its own.
    async fn find(&mut self) {
        (self.newest, self.pid) = (0, 0);
        self.configuration = Configuration::default();
        if let Ok(processes) = self.master.processes().await {
            self.pid = processes.master;
            let written = fs::read_to_string(self.directory.join("haproxy.cfg")).unwrap_or_default();
            let bound = written.lines().filter_map(|line| line.trim().strip_prefix("bind "));
            let ports = bound.filter_map(|rest| rest.split(' ').next()?.rsplit(':').next()?.parse().ok());
            self.configuration.ports = ports.collect();
            for pid in processes.former.into_iter().chain(processes.worker) {
                let _ = self.meet(pid).await;
            }
            self.newest = processes.worker.filter(|pid| self.processes.contains_key(pid)).unwrap_or(0);
        }
    }

    /// Starts it, or has it load another configuration.
    async fn load(&mut self, wanted: &Configuration) -> Result<(), Failure> {
        let failed = |what: &Path| {
            let what = what.display().to_string();
            move |error: std::io::Error| format!("{what}: {error}")
        };
        for (name, content) in &wanted.files {
            self.files.write(name, content.as_bytes()).map_err(failed(&self.directory.join(name)))?;
        }
        let (path, next) = (self.directory.join("haproxy.cfg"), self.directory.join("haproxy.cfg.next"));
        self.files.write("haproxy.cfg.next", wanted.text().as_bytes()).map_err(failed(&next))?;
        let mut check = tokio::process::Command::new(&self.program);
        let check = check.arg("-c").arg("-f").arg(&next).stdin(Stdio::null()).output().await;
        let check = check.map_err(failed(&self.program))?;
        if !check.status.success() {
            return Err(format!("its configuration is refused: {}", String::from_utf8_lossy(&check.stderr).trim()));
        }
        fs::rename(&next, &path).map_err(failed(&path))?;
        let before = self.master.processes().await.ok();
        match &before {
            Some(_) => drop(self.master.ask("reload").await.map_err(|error| error.to_string())?),
            None => self.spawn(&path)?,
        }
        let until = Instant::now() + RELOAD;
        let processes = loop {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let now = self.master.processes().await.unwrap_or_default();
            let (worker, failures) = before.as_ref().map_or((None, 0), |before| (before.worker, before.failed));
            if now.worker.is_some() && now.worker != worker {
                break now;
            }
            if now.failed > failures {
                return Err("it could not load its configuration; what it said stands above".to_owned());
            }
            if Instant::now() > until {
                return Err(format!("it has not loaded its configuration within {RELOAD:?}"));
            }
        };
        self.pid = processes.master;
        self.newest = processes.worker.unwrap_or_default();
        self.endpoints.extend(wanted.servers.iter().map(|(key, server)| (key.clone(), Arc::clone(&server.endpoint))));
        self.sweep(wanted);
        // Those before it are told, too, from now on.
        self.processes.retain(|pid, _| processes.former.contains(pid));
        for pid in processes.former.iter().copied().chain([self.newest]) {
            if !self.processes.contains_key(&pid) {
                self.meet(pid).await?;
            }
        }
        tracing::info!(pid = self.newest, former = ?processes.former, "HAProxy obeys");
        Ok(())
    }

    /// Files that no configuration names any more: keys, for one.
    fn sweep(&self, wanted: &Configuration) {
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_file = Path::new(&name).extension().is_some_and(|kind| kind == "pem" || kind == "body");
            if is_file && !wanted.files.contains_key(&name) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn spawn(&mut self, path: &Path) -> Result<(), Failure> {
        let _ = fs::remove_file(self.master.path());
        let mut command = Command::new(&self.program);
        command.arg("-W").arg("-S").arg(self.master.path()).arg("-f").arg(path);
        // What ends this process by a signal of the terminal does not end it.
        command.stdin(Stdio::null()).process_group(0);
        let mut child = command.spawn().map_err(|error| format!("{}: {error}", self.program.display()))?;
        self.pid = child.id();
        // Whoever has it is told when it ends.
        std::thread::spawn(move || drop(child.wait()));
        Ok(())
    }

    /// What a process does now.
    async fn meet(&mut self, pid: u32) -> Result<(), Failure> {
        let rows = self.master.look(pid).await.map_err(|error| error.to_string())?;
        let process = self.processes.entry(pid).or_default();
        let servers = rows.iter().filter(|row| row.name != "FRONTEND");
        process.servers = servers.map(|row| ((row.proxy.clone(), row.name.clone()), (row.weight, row.on))).collect();
        Ok(())
    }

    /// Tells processes what is otherwise than it is to be.
    async fn tell(&mut self, is_whole: bool) -> Result<Told, Failure> {
        let pids: Vec<u32> = self.processes.keys().copied().collect();
        for pid in pids {
            let is_newest = pid == self.newest && is_whole;
            let Some(process) = self.processes.get_mut(&pid) else { continue };
            let commands = changes(&mut process.servers, &self.configuration.servers, is_newest);
            if commands.is_empty() {
                continue;
            }
            if is_newest && commands.len() > MANY {
                return Ok(Told::TooMuch);
            }
            let servers = &self.configuration.servers;
            self.endpoints.extend(servers.iter().map(|(key, server)| (key.clone(), Arc::clone(&server.endpoint))));
            match self.master.tell(pid, &commands).await {
                Ok(complaints) if is_newest && !complaints.is_empty() => return Err(complaints.join("; ")),
                Err(error) if is_newest => return Err(error.to_string()),
                // It has ended meanwhile.
                Err(_) => drop(self.processes.remove(&pid)),
                Ok(_) => {}
            }
        }
        Ok(Told::All)
    }

    /// Looks at all processes: what goes on at targets, and what they did.
    async fn look(&mut self, table: &Table) -> Result<(), Failure> {
        if self.looked.elapsed() >= TICK {
            self.looked = Instant::now();
            let processes = self.master.processes().await.map_err(|error| error.to_string())?;
            if processes.worker != Some(self.newest) && self.newest != 0 {
                return Err("another process is there than the one that was started".to_owned());
            }
            self.processes.retain(|pid, _| processes.worker == Some(*pid) || processes.former.contains(pid));
            self.delete().await?;
        }
        let mut going_on: HashMap<u64, u64> = HashMap::new();
        let mut connections = 0;
        for pid in self.processes.keys().copied().collect::<Vec<_>>() {
            let rows = match self.master.look(pid).await {
                Ok(rows) => rows,
                Err(error) if pid == self.newest => return Err(error.to_string()),
                Err(_) => {
                    self.processes.remove(&pid);
                    continue;
                }
            };
            let Some(process) = self.processes.get_mut(&pid) else { continue };
            for row in rows {
                if row.name == "FRONTEND" {
                    connections += row.sessions;
                    continue;
                }
                let key = (row.proxy.clone(), row.name.clone());
                let Some(endpoint) = self.endpoints.get(&key) else { continue };
                *going_on.entry(endpoint.cookie).or_default() += row.sessions;
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
        let left: Vec<(String, String)> =
            process.servers.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
        if left.is_empty() {
            return Ok(());
        }
        let commands: Vec<String> = left.iter().map(|(backend, name)| format!("del server {backend}/{name}")).collect();
        // One that has a connection still is for the next time.
        self.master.tell(self.newest, &commands).await.map_err(|error| error.to_string())?;
        self.meet(self.newest).await?;
        let processes = &self.processes;
        self.endpoints.retain(|key, _| processes.values().any(|process| process.servers.contains_key(key)));
        if let Some(process) = self.processes.get_mut(&self.newest) {
            process.counted.retain(|key, _| process.servers.contains_key(key));
        }
        Ok(())
    }

    /// Obeys while it ends: its processes are those before another that does not come.
    async fn wind_down(&mut self, table: &Arc<Table>) -> Result<(), Failure> {
        self.configuration = self.configuration(table);
        let pids: Vec<u32> = self.processes.keys().copied().collect();
        for pid in pids {
            let Some(process) = self.processes.get_mut(&pid) else { continue };
            let commands = changes(&mut process.servers, &self.configuration.servers, false);
            let told = self.master.tell(pid, &commands).await;
            if told.is_err() {
                self.processes.remove(&pid);
            }
        }
        self.look(table).await?;
        self.known.store(table.number, Ordering::Release);
        Ok(())
    }

    fn master_pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.pid).ok()?)
    }

    fn is_there(&self) -> bool {
        self.master_pid().is_some_and(|pid| test_kill_process(pid).is_ok())
    }

    /// Asks it to end, once softly: with its connections.
    fn stop(&mut self, at_once: bool) {
        let signal = if at_once { Signal::TERM } else { Signal::USR1 };
        let Some(pid) = self.master_pid() else { return };
        if at_once || self.newest != 0 {
            let _ = kill_process(pid, signal);
        }
        self.newest = 0;
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Told {
    All,
    /// A reload is less work.
    TooMuch,
}

/// Commands that make a process do as is wanted; `known` is what it does, and from now on the other. The newest gets servers that are
/// new, and all lose those that nobody wants any more.
fn changes(known: &mut Known, wanted: &Servers, is_newest: bool) -> Vec<String> {
    // Whoever comes is there before anybody goes.
    let (mut commands, mut leaving) = (Vec::new(), Vec::new());
    for (key, server) in wanted {
        let (backend, name) = key;
        let now = (server.weight, server.on);
        match known.get(key) {
            None if is_newest => {
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
        assert_eq!(changes(&mut former, &wanted, false), commands[3..], "one that ends gets nobody new");
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(version("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/"), Some((2, 6)));
        assert_eq!(version("HA-Proxy version 1.8.4"), Some((1, 8)));
        assert_eq!(version("nginx version: nginx/1.22"), None);
    }
}
