//! The process runtime: a container is a plain command of the machine, in a process group and, where the machine
//! allows it, a cgroup of its own. For machines without a container engine; it isolates nothing else.
//!
//! Each command has a [`shim`] for a parent, which outlives the agent: it owns the output, reaps the command and writes
//! down how it ended. What there is to know is in the container's [`directory`], so an agent that was killed finds
//! everything again. The image is not used: the command is looked for on the machine, and in the directory of the
//! steady program itself. Having no network of its own, a command listens on the host port: it is told which by
//! `PORT` (the first mapping) and `PORT_<containerPort>`.

mod directory;
mod execution;
mod launch;
mod sensitive;
mod shim;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use rustix::process::Signal;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{
    ContainerId, ContainerSpec, Credentials, Execution, Exit, Found, LogPiece, LogRequest, Pulled, Runtime,
    RuntimeError, State,
};
use super::{Usage, cgroup, output, usage};
use directory::Directory;
use launch::Launch;

pub use execution::run_inside;
pub use shim::{run_exec, run_shim};

/// How often a container is looked at while something is waited for.
const POLL: Duration = Duration::from_millis(100);
/// How often it is looked whether a container's cgroups are empty.
const EMPTIES: usize = 15;
/// How long a start may take.
const START: Duration = Duration::from_secs(10);
/// How long a killed process may take to be gone.
const KILLED: Duration = Duration::from_secs(10);

type Exits = mpsc::UnboundedSender<(ContainerId, Exit)>;

/// Plain commands. Clones share everything.
#[derive(Clone)]
pub struct Process {
    base: PathBuf,
    /// The steady program: shim and launcher.
    program: PathBuf,
    exits: Arc<Mutex<Option<Exits>>>,
}

impl Process {
    /// Keeps containers below `base`; `program` is the steady binary, whose hidden subcommands `__shim` and `__exec`
    /// call [`run_shim`] and [`run_exec`].
    pub fn new(base: PathBuf, program: PathBuf) -> Self {
        Process { base, program, exits: Arc::default() }
    }

    fn directory(&self, id: &ContainerId) -> Directory {
        Directory::new(self.base.join(id.to_string()))
    }

    fn tell(&self, id: ContainerId, exit: Exit) {
        if let Some(exits) = &*self.exits.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = exits.send((id, exit));
        }
    }

    /// Tells when a container of a former agent ends.
    fn follow(&self, id: ContainerId) {
        let this = self.clone();
        tokio::spawn(async move {
            let directory = this.directory(&id);
            loop {
                match directory.state() {
                    State::Exited(exit) => return this.tell(id, exit),
                    State::Created => return,
                    State::Running => tokio::time::sleep(POLL).await,
                }
            }
        });
    }

    fn load(&self, id: &ContainerId) -> Result<(Directory, Launch), RuntimeError> {
        let directory = self.directory(id);
        let launch = directory.launch().map_err(|_| RuntimeError::NotFound(id.clone()))?;
        Ok((directory, launch))
    }

    async fn gone(directory: &Directory, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while directory.state() == State::Running {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    }
}

#[async_trait]
impl Runtime for Process {
    fn name(&self) -> &'static str {
        "process"
    }

    async fn list(&self) -> Result<Vec<Found>, RuntimeError> {
        let mut found = Vec::new();
        for (id, directory) in directory::all(&self.base).map_err(|e| RuntimeError::Other(e.to_string()))? {
            let Ok(launch) = directory.launch() else {
                tracing::warn!(container = %id, "a container's directory has no launch.json; removing it");
                let _ = directory.remove();
                continue;
            };
            let state = directory.state();
            if state == State::Running {
                self.follow(id.clone());
            }
            let runtime_id = directory.pid().map(|pid| pid.pid.to_string()).unwrap_or_default();
            let ran = directory.ran(&state);
            found.push(Found { id, runtime_id, state, ports: launch.ports, ran, address: None, gpus: launch.gpus });
        }
        let there: Vec<ContainerId> = found.iter().map(|found| found.id.clone()).collect();
        sensitive::sweep(&self.base, &there);
        Ok(found)
    }

    async fn pull(&self, _: &str, _: Option<&Credentials>) -> Result<Pulled, RuntimeError> {
        Ok(Pulled::default())
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<String, RuntimeError> {
        let directory = self.directory(&spec.id);
        if directory.launch().is_ok() {
            return Ok(spec.id.to_string());
        }
        let mut launch = Launch::of(spec, &self.program, directory.work())?;
        launch.sensitive = sensitive::keep(&self.base, &spec.id, &spec.sensitive.variables)
            .map_err(|e| RuntimeError::Create(format!("its secrets cannot be kept in memory: {e}")))?;
        launch.cgroups = cgroup::create(&spec.id, spec.cpu_limit, spec.memory_limit);
        if let Err(error) = directory.create(&launch) {
            sensitive::forget(launch.sensitive.as_deref());
            return Err(RuntimeError::Create(error.to_string()));
        }
        Ok(spec.id.to_string())
    }

    async fn start(&self, id: &ContainerId) -> Result<String, RuntimeError> {
        let (directory, _) = self.load(id)?;
        if directory.state() == State::Created {
            let mut shim = Command::new(&self.program);
            shim.arg("__shim").arg(directory.path()).process_group(0);
            shim.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = shim.spawn().map_err(|e| RuntimeError::Start(format!("the shim did not start: {e}")))?;
            let (this, id) = (self.clone(), id.clone());
            tokio::spawn(async move {
                let _ = child.wait().await;
                if let State::Exited(exit) = this.directory(&id).state() {
                    this.tell(id, exit);
                }
            });
        }
        let deadline = Instant::now() + START;
        loop {
            if let Some(reason) = directory.failure() {
                return Err(RuntimeError::Start(reason));
            }
            if let Some(pid) = directory.pid() {
                return Ok(pid.pid.to_string());
            }
            if Instant::now() >= deadline {
                return Err(RuntimeError::Start(format!("{id} did not start within {START:?}")));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn restart(&self, id: &ContainerId) -> Result<String, RuntimeError> {
        let (directory, launch) = self.load(id)?;
        if matches!(directory.state(), State::Exited(_)) {
            // After a restart of the machine they are gone.
            cgroup::create(id, launch.cpu, launch.memory);
            directory.forget_exit().map_err(|e| RuntimeError::Start(e.to_string()))?;
        }
        self.start(id).await
    }

    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        let directory = self.directory(id);
        if directory.state() != State::Running {
            return Ok(());
        }
        directory.signal(Signal::TERM);
        if Self::gone(&directory, grace).await {
            return Ok(());
        }
        directory.signal(Signal::KILL);
        if Self::gone(&directory, KILLED).await {
            return Ok(());
        }
        Err(RuntimeError::Other(format!("{id} is still there {KILLED:?} after SIGKILL")))
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let directory = self.directory(id);
        if let Ok(launch) = directory.launch() {
            if directory.state() == State::Running {
                self.stop(id, Duration::ZERO).await?;
            }
            output::keep(&self.base, id, directory.path());
            // Commands that were run beside it end a moment after it.
            for _ in 0..EMPTIES {
                if !cgroup::is_occupied(&launch.cgroups) {
                    break;
                }
                tokio::time::sleep(POLL).await;
            }
            cgroup::remove(&launch.cgroups);
            cgroup::uncap(&id.task);
            sensitive::forget(launch.sensitive.as_deref());
        }
        directory.remove().map_err(|e| RuntimeError::Other(format!("{}: {e}", directory.path().display())))
    }

    async fn execute(&self, id: &ContainerId, command: super::Command) -> Result<Execution, RuntimeError> {
        let (directory, launch) = self.load(id)?;
        if directory.state() != State::Running {
            return Err(RuntimeError::NotFound(id.clone()));
        }
        execution::start(&self.program, &directory, &launch, &command)
    }

    async fn usage(&self, id: &ContainerId) -> Result<Usage, RuntimeError> {
        let (directory, launch) = self.load(id)?;
        match directory.pid().filter(|_| directory.state() == State::Running) {
            Some(started) => Ok(usage::of(&launch.cgroups, started.pid)),
            None => Err(RuntimeError::NotFound(id.clone())),
        }
    }

    async fn logs(
        &self,
        id: &ContainerId,
        request: LogRequest,
    ) -> Result<BoxStream<'static, Result<LogPiece, RuntimeError>>, RuntimeError> {
        let directory = self.directory(id);
        let here = directory.launch().is_ok();
        let path = directory.path().to_owned();
        let over: output::IsOver = Arc::new(move || directory.state() != State::Running);
        output::read(&self.base, id, here.then_some(&(path, over)), request)
    }

    fn exits(&self) -> mpsc::UnboundedReceiver<(ContainerId, Exit)> {
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.exits.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        let limits = if cgroup::is_usable() { "cgroup" } else { "none" };
        BTreeMap::from([("steady.process.limits".to_owned(), limits.to_owned())])
    }
}
