//! A private containerd: its own data, socket and containers.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::docker::busybox_files;
use crate::{Place, Running, eventually};

/// A containerd that ends with the test.
pub struct Daemon {
    running: Running,
    pub socket: PathBuf,
    state: PathBuf,
    config: PathBuf,
    log: PathBuf,
}

impl Daemon {
    pub fn start(place: &Place) -> Self {
        // Short: sockets below it may have 108 characters.
        let state = PathBuf::from(format!("/tmp/steady-containerd-{}", std::process::id()));
        let (socket, config, root) = (state.join("c.sock"), place.path("containerd.toml"), place.path("containerd"));
        let (root, address) = (root.display(), socket.display());
        let text = format!(
            "version = 2\nroot = \"{root}\"\nstate = \"{}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{address}\"\n",
            state.display()
        );
        std::fs::write(&config, text).unwrap();
        let log = place.path("containerd.log");
        let daemon = Self::daemon(&config, &log);
        let daemon = Daemon { running: daemon, socket, state, config, log };
        daemon.answers();
        daemon
    }

    fn daemon(config: &PathBuf, log: &std::path::Path) -> Running {
        let mut command = Command::new("containerd");
        command.arg("--config").arg(config);
        Running::start(command, log)
    }

    fn answers(&self) {
        eventually("containerd answers (is it installed?)", Duration::from_secs(60), || self.try_ctr(&["version"]));
    }

    /// Makes an image of Debian's `busybox-static`, as `docker save` does.
    pub fn busybox(&self, place: &Place, image: &str) {
        let directory = place.path("image");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("layer.tar"), busybox_files()).unwrap();
        let (reference, at) = (format!("docker.io/library/{image}"), directory.display());
        let made = format!(
            "set -e; cd {at}; sum=$(sha256sum layer.tar | cut -d' ' -f1); printf \
             '{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{{\"User\":\"app\"}},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"sha256:%s\"]}}}}' \
             $sum > config.json; printf '[{{\"Config\":\"config.json\",\"RepoTags\":[\"{reference}\"],\"Layers\":[\"layer.tar\"]}}]' > \
             manifest.json; tar -cf image.tar layer.tar config.json manifest.json"
        );
        let made = Command::new("sh").args(["-c", &made]).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        self.ctr(&["images", "import", &directory.join("image.tar").display().to_string()]);
    }

    /// kill -9 of the daemon; what runs in containers is not its child.
    pub fn kill(&mut self) {
        self.running.kill();
    }

    /// The daemon again, after it was killed.
    pub fn again(&mut self) {
        self.running = Self::daemon(&self.config, &self.log);
        self.answers();
    }

    pub fn try_ctr(&self, args: &[&str]) -> Option<String> {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&self.socket).args(["--namespace", "steady"]).args(args);
        let output = command.output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// containerd's own client, in Steady's namespace.
    pub fn ctr(&self, args: &[&str]) -> String {
        self.try_ctr(args).unwrap_or_else(|| panic!("ctr {args:?} failed"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for id in self.try_ctr(&["tasks", "list", "-q"]).unwrap_or_default().lines() {
            self.try_ctr(&["tasks", "rm", "--force", id]);
        }
        self.running.signal(Signal::TERM);
        self.running.wait();
        let _ = std::fs::remove_dir_all(&self.state);
    }
}
