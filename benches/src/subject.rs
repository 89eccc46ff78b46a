//! The Steady that is measured, as a process of its own.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use steady_core::Kind;
use steady_core::v1::{ListRequest, StatusRequest};
use steady_runtime::Client;
use tokio::process::Command;

use crate::store::Store;
use crate::workspace::Workspace;

/// Longest wait for a process to answer, or to end.
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks at something that is about to be there.
const LOOK: Duration = Duration::from_millis(2);

/// A running `steady`. Killed when dropped.
pub(crate) struct Subject {
    /// Asks its API.
    pub(crate) client: Client,
    /// Where its API listens.
    pub(crate) address: String,
    /// Its process.
    pub(crate) pid: u32,
    /// When it was started.
    pub(crate) began: Instant,
    child: tokio::process::Child,
    directory: PathBuf,
}

impl Subject {
    /// Starts `steady up` on a store, with hollow instances, and waits until they are connected.
    pub(crate) async fn cluster(workspace: &Workspace, store: &Store, instances: u32) -> anyhow::Result<Self> {
        let count = instances.to_string();
        let directory = workspace.directory(&format!("steady-{instances}"))?;
        let data = directory.join("data").display().to_string();
        let args = ["up", "--data-dir", &data, "--runtime", "hollow", "--instances", &count, "--etcd", &store.endpoint];
        let mut subject = Subject::spawn(&workspace.steady, &directory, &args)?;
        subject.answers().await?;
        subject.instances(instances).await?;
        Ok(subject)
    }

    /// Starts an API server on a store, and waits until it answers.
    pub(crate) async fn apiserver(workspace: &Workspace, store: &Store) -> anyhow::Result<Self> {
        let args = ["apiserver", "--etcd", &store.endpoint];
        let mut subject = Subject::spawn(&workspace.steady, &workspace.directory("steady")?, &args)?;
        subject.answers().await?;
        Ok(subject)
    }

    /// Kills an API server and starts it again where it was, until it answers.
    pub(crate) async fn restarted(
        mut self,
        workspace: &Workspace,
        store: &Store,
        listen: &str,
        round: u32,
    ) -> anyhow::Result<Self> {
        self.child.kill().await?;
        let directory = workspace.directory(&format!("steady-{round}"))?;
        let args = ["apiserver", "--etcd", &store.endpoint];
        let mut subject = Self::spawn_at(&workspace.steady, &directory, &args, listen)?;
        subject.answers().await?;
        Ok(subject)
    }

    /// Waits until this many agents have their sessions open at this API server: it answers a session's first heartbeat with
    /// its lease, and renews that from then on.
    pub(crate) async fn sessions(&self, count: u32) -> anyhow::Result<()> {
        self.until_sessions(|open| open >= i64::from(count)).await
    }

    /// Waits until no agent's session is open.
    pub(crate) async fn no_session(&self) -> anyhow::Result<()> {
        self.until_sessions(|open| open == 0).await
    }

    async fn until_sessions(&self, enough: impl Fn(i64) -> bool) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut admin = self.client.admin();
        loop {
            let open = admin.status(StatusRequest {}).await?.into_inner().sessions;
            if enough(open) {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                bail!("{open} sessions are open after {PATIENCE:?}");
            }
            tokio::time::sleep(LOOK * 10).await;
        }
    }

    /// Starts it with these arguments; what it prints goes under the directory.
    pub(crate) fn spawn(steady: &Path, directory: &Path, args: &[&str]) -> anyhow::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        Self::spawn_at(steady, directory, args, &format!("127.0.0.1:{port}"))
    }

    fn spawn_at(steady: &Path, directory: &Path, args: &[&str], listen: &str) -> anyhow::Result<Self> {
        let output = File::create(directory.join("output"))?;
        let mut command = Command::new(steady);
        command.args(args).args(["--listen", listen]);
        command.env("XDG_CONFIG_HOME", directory.join("config")).env_remove("STEADY_SERVER");
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).kill_on_drop(true);
        // In its own group: Ctrl-C ends this program, and what it measures with it.
        command.process_group(0);
        let address = format!("http://{listen}");
        let client = Client::new(std::slice::from_ref(&address))?;
        let began = Instant::now();
        let child = command.spawn().with_context(|| steady.display().to_string())?;
        let pid = child.id().context("steady ended at once")?;
        Ok(Subject { client, address, pid, began, child, directory: directory.to_owned() })
    }

    /// Waits until its API answers; how long that took since its start.
    pub(crate) async fn answers(&mut self) -> anyhow::Result<Duration> {
        loop {
            let request = ListRequest { kind: Kind::Cluster.into(), limit: 1, ..ListRequest::default() };
            if self.client.objects().list(request).await.is_ok() {
                return Ok(self.began.elapsed());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("steady ended ({status}): {}", self.last_words());
            }
            if self.began.elapsed() > PATIENCE {
                bail!("steady's API did not answer for {PATIENCE:?}: {}", self.last_words());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until this many container instances are connected.
    pub(crate) async fn instances(&self, count: u32) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let found = self.all_instances().await?;
            let connected = |object: &&steady_core::v1::Object| {
                let status = object.as_container_instance().and_then(|instance| instance.status.as_ref());
                status.is_some_and(|status| status.agent_connected)
            };
            let connected = found.iter().filter(connected).count();
            if connected >= count as usize {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                bail!("{connected} of {count} container instances are connected after {PATIENCE:?}");
            }
            tokio::time::sleep(LOOK * 50).await;
        }
    }

    async fn all_instances(&self) -> anyhow::Result<Vec<steady_core::v1::Object>> {
        let (mut found, mut after) = (Vec::new(), String::new());
        loop {
            let kind = Kind::ContainerInstance.into();
            let request = ListRequest { kind, after: std::mem::take(&mut after), ..ListRequest::default() };
            let page = self.client.objects().list(request).await?.into_inner();
            found.extend(page.items);
            after = page.next;
            if after.is_empty() {
                return Ok(found);
            }
        }
    }

    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(self.directory.join("output")).unwrap_or_default();
        text.lines().rev().take(3).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join(" / ")
    }

    /// Ends it as Ctrl-C would, and waits until it has ended; how long that took.
    pub(crate) async fn stop(mut self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(pid, Signal::TERM)?;
        match tokio::time::timeout(PATIENCE, self.child.wait()).await {
            Ok(status) => status.map(|_| began.elapsed()).context("steady's end was not seen"),
            Err(_) => bail!("steady did not end within {PATIENCE:?}: {}", self.last_words()),
        }
    }
}

/// Another process of `steady`. Killed when dropped.
pub(crate) struct Child {
    /// Its process.
    pub(crate) pid: u32,
    child: tokio::process::Child,
}

impl Child {
    /// Starts it with these arguments; what it prints goes under the directory.
    pub(crate) fn spawn(steady: &Path, directory: &Path, args: &[&str]) -> anyhow::Result<Self> {
        let output = File::create(directory.join("output"))?;
        let mut command = Command::new(steady);
        command.args(args).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        command.kill_on_drop(true).process_group(0);
        let child = command.spawn().with_context(|| steady.display().to_string())?;
        Ok(Child { pid: child.id().context("it ended at once")?, child })
    }

    /// Starts a process of that many hollow instances of a subject's on their data; `name` tells it from others. It gets
    /// what the other processes leave of this machine: in earnest, every agent has a machine of its own.
    pub(crate) fn agents(
        workspace: &Workspace,
        subject: &Subject,
        count: u32,
        data: &Path,
        name: &str,
    ) -> anyhow::Result<Self> {
        let data = data.display().to_string();
        let (steady, count) = (workspace.steady.display().to_string(), count.to_string());
        let args = ["-n", "10", &steady, "agent", "--name", "node", "--data-dir", &data, "--runtime", "hollow"];
        let args = [&args[..], &["--instances", &count, "--server", &subject.address]].concat();
        Self::spawn(Path::new("nice"), &workspace.directory(name)?, &args)
    }

    /// Starts a process of all controllers of a subject's.
    pub(crate) fn controllers(workspace: &Workspace, subject: &Subject) -> anyhow::Result<Self> {
        let name = format!("controller-{}", subject.pid);
        Self::spawn(&workspace.steady, &workspace.directory(&name)?, &["controller", "--server", &subject.address])
    }

    /// Starts a process of some controllers of a subject's; `name` tells it from others.
    pub(crate) fn controllers_of(
        workspace: &Workspace,
        subject: &Subject,
        only: &str,
        name: &str,
    ) -> anyhow::Result<Self> {
        let args = ["controller", "--server", &subject.address, "--only", only];
        Self::spawn(&workspace.steady, &workspace.directory(name)?, &args)
    }

    /// Asks it to end, and waits until it has.
    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(pid, Signal::TERM)?;
        self.child.wait().await?;
        Ok(())
    }

    /// Kills it, as a machine that loses power would.
    pub(crate) async fn kill(mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }
}
