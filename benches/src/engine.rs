//! A private Docker Engine, and an image on it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::process::{Child, Command};

use crate::workspace::Workspace;

/// Debian's `busybox-static`, with `sleep`.
pub(crate) const IMAGE: &str = "bench:1";
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// A private Docker Engine.
pub(crate) struct Engine {
    daemon: Child,
    /// Where it listens.
    pub(crate) socket: String,
    exec_root: PathBuf,
}

impl Engine {
    /// Starts one with an image.
    pub(crate) async fn start(workspace: &Workspace, round: u32) -> anyhow::Result<Self> {
        let directory = workspace.directory(&format!("engine-{round}"))?;
        // Short: containerd's own sockets below it may have 108 characters.
        let exec_root = std::env::temp_dir().join(format!("steady-engine-{}", std::process::id()));
        let socket = exec_root.with_extension("sock").display().to_string();
        let output = std::fs::File::create(directory.join("output"))?;
        let mut command = Command::new("dockerd");
        command.arg("--data-root").arg(directory.join("data")).arg("--exec-root").arg(&exec_root);
        command.arg("--pidfile").arg(directory.join("pid")).args(["-H", &format!("unix://{socket}")]);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).kill_on_drop(true);
        let daemon =
            command.spawn().context("dockerd does not start; are docker.io, containerd and runc installed?")?;
        let engine = Engine { daemon, socket, exec_root };
        let began = Instant::now();
        while engine.docker(&["version"]).await.is_err() {
            if began.elapsed() > Duration::from_secs(60) {
                bail!("dockerd does not answer; see {}", directory.display());
            }
            tokio::time::sleep(LOOK * 5).await;
        }
        engine.image(&directory).await?;
        Ok(engine)
    }

    /// Where its containerd listens.
    pub(crate) fn containerd(&self) -> String {
        self.exec_root.join("containerd/containerd.sock").display().to_string()
    }

    /// Asks its containerd, by that one's command line.
    pub(crate) async fn ctr(&self, args: &[&str]) -> anyhow::Result<String> {
        let socket = self.containerd();
        let output = Command::new("ctr").args(["-a", &socket, "-n", "steady"]).args(args).output().await?;
        if !output.status.success() {
            bail!("ctr {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Gives its containerd the image, too.
    pub(crate) async fn share_image(&self, directory: &Path) -> anyhow::Result<()> {
        let file = directory.join("saved.tar").display().to_string();
        self.docker(&["save", "-o", &file, IMAGE]).await?;
        self.ctr(&["images", "import", &file]).await?;
        Ok(())
    }

    /// Asks it, by its command line.
    pub(crate) async fn docker(&self, args: &[&str]) -> anyhow::Result<String> {
        let host = format!("unix://{}", self.socket);
        let output = Command::new("docker").args(["-H", &host]).args(args).output().await?;
        if !output.status.success() {
            bail!("docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// An image of Debian's `busybox-static`.
    async fn image(&self, directory: &Path) -> anyhow::Result<()> {
        let made = "set -e; mkdir -p image/bin; cp $(command -v busybox) image/bin/busybox; ln -s busybox image/bin/sleep; \
                    tar -C image -cf image.tar .";
        let made = Command::new("sh").args(["-c", made]).current_dir(directory).status().await?;
        if !made.success() {
            bail!("no image could be made; is busybox-static installed?");
        }
        self.docker(&["import", &directory.join("image.tar").display().to_string(), IMAGE]).await?;
        Ok(())
    }

    /// Removes whatever containers are left: they would outlive the engine.
    fn empty(&self) {
        let all = format!("ids=$(docker -H unix://{0} ps -aq) && docker -H unix://{0} rm -f $ids", self.socket);
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &all]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let _ = command.status();
    }

    /// Ends it, and every container of it.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.empty();
        if let Some(pid) = self.daemon.id().and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        tokio::time::timeout(Duration::from_secs(60), self.daemon.wait()).await.context("dockerd did not end")??;
        let _ = std::fs::remove_dir_all(&self.exec_root);
        Ok(())
    }
}

impl Drop for Engine {
    /// Of a run that failed.
    fn drop(&mut self) {
        if self.daemon.id().is_some() {
            self.empty();
        }
    }
}
