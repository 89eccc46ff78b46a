//! The bundled etcd: the official binary, built in, unpacked once, run as a child that ends with its parent.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest, Sha256};
use tokio::sync::{oneshot, watch};

use crate::storage::{Etcd, EtcdSettings};

#[cfg(bundled_etcd)]
static BINARY: &[u8] = include_bytes!(env!("STEADY_BUNDLED_ETCD"));
#[cfg(not(bundled_etcd))]
static BINARY: &[u8] = &[];

/// How long etcd may take until it answers: a large log takes its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often other ports are chosen when one that was free is taken before etcd listens there.
const PORT_TRIES: usize = 5;
/// How etcd names that.
const PORT_TAKEN: &str = "address already in use";

/// Why the bundled etcd does not run.
#[derive(Debug, thiserror::Error)]
pub enum BundledError {
    /// No etcd was built in for this platform.
    #[error("this build of Steady has no etcd in it for this platform; start one and pass --etcd URL")]
    NotBundled,
    /// A file could not be written.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It ended.
    #[error("etcd ended ({status}): {last}; its log is {log}")]
    Ended {
        /// How.
        status: String,
        /// What it logged last.
        last: String,
        /// Where to look.
        log: PathBuf,
    },
    /// It does not answer.
    #[error("etcd did not answer for {PATIENCE:?}: {last}; its log is {log}")]
    Silent {
        /// What it said last.
        last: String,
        /// Where to look.
        log: PathBuf,
    },
}

/// A member of an etcd of several.
#[derive(Debug, Clone)]
pub struct Membership {
    /// As it calls itself.
    pub name: String,
    /// Where API servers reach it.
    pub client_url: String,
    /// Where the other members reach it.
    pub peer_url: String,
    /// Everyone when it starts for the first time, itself included: names and peer URLs.
    pub cluster: Vec<(String, String)>,
    /// The others are there already.
    pub joins: bool,
}

impl Membership {
    /// One that has no others.
    #[must_use]
    pub fn alone(name: &str, client_url: String, peer_url: String) -> Self {
        let cluster = vec![(name.to_owned(), peer_url.clone())];
        Membership { name: name.to_owned(), client_url, peer_url, cluster, joins: false }
    }

    /// Alone, on two ports of the loopback address that are free now.
    fn local(directory: &Path) -> Result<Self, BundledError> {
        let (client, peer) = free_ports().map_err(|error| file(directory, error))?;
        // Another name each time: by it the etcd that answers at these ports is known to be this one.
        let name = format!("steady-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        Ok(Self::alone(&name, format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}")))
    }
}

/// Whether a directory holds the data of a bundled etcd. Without its log a member has never been one: whoever starts it
/// as such founds a cluster.
pub fn has_data(directory: &Path) -> bool {
    let log = fs::read_dir(directory.join("etcd").join("member").join("wal"));
    log.is_ok_and(|mut files| files.any(|file| file.is_ok_and(|f| f.path().extension().is_some_and(|e| e == "wal"))))
}

/// An etcd that runs as this process's child.
pub struct BundledEtcd {
    /// Where it answers.
    pub endpoint: String,
    pid: Pid,
    ended: watch::Receiver<Option<String>>,
    log: PathBuf,
    /// Length of the log when it started.
    logged: u64,
}

impl BundledEtcd {
    /// Starts it on a data directory. `guard` is the program and its first arguments that run a command which ends
    /// with its parent (`steady __guard`).
    pub async fn start(directory: &Path, guard: &[String]) -> Result<(Self, Etcd), BundledError> {
        let mut tries = 1;
        loop {
            match Self::start_alone(directory, guard).await {
                // Another process took one of the ports between our look and etcd's.
                Err(BundledError::Ended { last, .. }) if tries < PORT_TRIES && last.contains(PORT_TAKEN) => tries += 1,
                started => return started,
            }
        }
    }

    async fn start_alone(directory: &Path, guard: &[String]) -> Result<(Self, Etcd), BundledError> {
        let member = Membership::local(directory)?;
        let (etcd, store) = Self::start_member(directory, guard, &member).await?;
        let start = Instant::now();
        loop {
            let last = match store.peers().await {
                Ok(peers) if peers.iter().any(|peer| peer.name == member.name) => return Ok((etcd, store)),
                Ok(_) => format!("another etcd answers at {}", member.client_url),
                Err(error) => error.to_string(),
            };
            etcd.goes_on(start, &last).await?;
        }
    }

    /// Starts a member of several. Returns once it says how it is: it may not vote yet, or wait for the others.
    pub async fn start_member(
        directory: &Path,
        guard: &[String],
        member: &Membership,
    ) -> Result<(Self, Etcd), BundledError> {
        if BINARY.is_empty() {
            return Err(BundledError::NotBundled);
        }
        let program = unpack(&directory.join("bin"))?;
        let log = directory.join("etcd.log");
        fs::create_dir_all(directory).map_err(|e| file(directory, e))?;
        let endpoint = member.client_url.clone();
        let mut command = command(guard, &program, directory, member);
        let output = fs::OpenOptions::new().create(true).append(true).open(&log).map_err(|e| file(&log, e))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        let logged = fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let (pid, ended) = spawn(command).await.map_err(|error| file(&program, error))?;
        let etcd = BundledEtcd { endpoint, pid, ended, log, logged };
        let settings = EtcdSettings { endpoints: vec![etcd.endpoint.clone()], tls: None };
        let start = Instant::now();
        let store = loop {
            let last = match Etcd::open(&settings).await {
                Ok(store) => match store.awake().await {
                    Ok(()) => break store,
                    Err(error) => error.to_string(),
                },
                Err(error) => error.to_string(),
            };
            etcd.goes_on(start, &last).await?;
        };
        Ok((etcd, store))
    }

    /// Waits a little, unless it has ended or was waited for long enough.
    async fn goes_on(&self, start: Instant, last: &str) -> Result<(), BundledError> {
        if let Some(status) = self.ended.borrow().clone() {
            return Err(self.end(status));
        }
        if start.elapsed() > PATIENCE {
            return Err(BundledError::Silent { last: last.to_owned(), log: self.log.clone() });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok(())
    }

    /// Waits until it ends.
    pub async fn ended(&mut self) -> BundledError {
        let status = match self.ended.wait_for(Option::is_some).await {
            Ok(status) => status.clone().unwrap_or_default(),
            Err(_) => "unknown".into(),
        };
        self.end(status)
    }

    fn end(&self, status: String) -> BundledError {
        let last = last_line(&self.log, self.logged).unwrap_or_else(|| "it logged nothing".into());
        BundledError::Ended { status, last, log: self.log.clone() }
    }

    /// Stops it and waits until it has ended. What was acknowledged is on disk, so it is not waited for long: etcd would
    /// wait for clients that still watch.
    pub async fn stop(mut self) {
        let _ = kill_process(self.pid, Signal::TERM);
        if tokio::time::timeout(Duration::from_secs(1), self.ended()).await.is_err() {
            let _ = kill_process(self.pid, Signal::KILL);
            self.ended().await;
        }
    }
}

/// What etcd logged last since its log was that long, without its stack.
fn last_line(log: &Path, logged: u64) -> Option<String> {
    let mut file = fs::File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    // It may be long: its end is all that is read.
    file.seek(SeekFrom::Start(logged.max(length.saturating_sub(8192)))).ok()?;
    let mut end = Vec::new();
    file.read_to_end(&mut end).ok()?;
    let end = String::from_utf8_lossy(&end);
    let line = end.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.split(",\"stacktrace\"").next().unwrap_or(line).to_owned())
}

fn file(path: &Path, error: std::io::Error) -> BundledError {
    BundledError::File { path: path.to_owned(), error }
}

/// Puts the binary into a directory, unless it is there already and is the same.
fn unpack(directory: &Path) -> Result<PathBuf, BundledError> {
    let sum = Sha256::digest(BINARY);
    let name = sum.iter().take(8).fold(String::from("etcd-"), |name, byte| format!("{name}{byte:02x}"));
    let path = directory.join(name);
    if fs::read(&path).is_ok_and(|found| Sha256::digest(&found) == sum) {
        return Ok(path);
    }
    fs::create_dir_all(directory).map_err(|e| file(directory, e))?;
    // Beside it and then renamed: what is there under the name is always whole.
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let written = fs::File::create(&part).and_then(|mut f| {
        f.write_all(BINARY)?;
        f.set_permissions(fs::Permissions::from_mode(0o700))?;
        f.sync_all()
    });
    written.and_then(|()| fs::rename(&part, &path)).map_err(|e| file(&path, e))?;
    Ok(path)
}

/// Two ports of the loopback address that are free now.
fn free_ports() -> std::io::Result<(u16, u16)> {
    let (first, second) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    Ok((first.local_addr()?.port(), second.local_addr()?.port()))
}

fn command(guard: &[String], program: &Path, directory: &Path, member: &Membership) -> Command {
    let cluster: Vec<String> = member.cluster.iter().map(|(name, url)| format!("{name}={url}")).collect();
    let mut words = guard.iter();
    let mut command = Command::new(words.next().map_or("", String::as_str));
    command.args(words).arg(program);
    command.arg(format!("--name={}", member.name)).arg(format!("--data-dir={}", directory.join("etcd").display()));
    let (client, peer) = (&member.client_url, &member.peer_url);
    command.arg(format!("--listen-client-urls={client}")).arg(format!("--advertise-client-urls={client}"));
    command.arg(format!("--listen-peer-urls={peer}")).arg(format!("--initial-advertise-peer-urls={peer}"));
    command.arg(format!("--initial-cluster={}", cluster.join(",")));
    command.arg(format!("--initial-cluster-state={}", if member.joins { "existing" } else { "new" }));
    command.args(["--auto-compaction-mode=periodic", "--auto-compaction-retention=10m"]);
    command.args(["--quota-backend-bytes=8589934592", "--log-level=warn"]);
    // In its own group, so that Ctrl-C on a terminal does not reach it before those who need it have ended.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command
}

/// Starts a child from a thread that lives as long as the child: the signal that ends it with its parent is
/// tied to the thread that started it.
async fn spawn(mut command: Command) -> std::io::Result<(Pid, watch::Receiver<Option<String>>)> {
    let (started, start) = oneshot::channel();
    let (tell, ended) = watch::channel(None);
    std::thread::Builder::new().name("etcd".into()).spawn(move || match command.spawn() {
        Ok(child) => {
            let _ = started.send(Ok(Pid::from_child(&child)));
            let _ = tell.send(Some(wait(child)));
        }
        Err(error) => {
            let _ = started.send(Err(error));
        }
    })?;
    let pid = start.await.map_err(std::io::Error::other)??;
    Ok((pid, ended))
}

fn wait(mut child: Child) -> String {
    child.wait().map_or_else(|e| e.to_string(), |status: ExitStatus| status.to_string())
}
