//! A private Docker Engine: its own data, socket and containers.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::{Place, Running, eventually, free_port};

/// A Docker Engine that ends with the test.
pub struct Engine {
    daemon: Running,
    pub socket: String,
    exec_root: String,
}

impl Engine {
    pub fn start(place: &Place) -> Self {
        Self::with(place, &[])
    }

    /// One with further arguments.
    pub fn with(place: &Place, args: &[&str]) -> Self {
        let socket = place.path("docker.sock").display().to_string();
        // Short: containerd's own sockets below it may have 108 characters.
        let exec_root = format!("/tmp/steady-docker-{}", std::process::id());
        let daemon = Self::daemon(place, args, &exec_root, &socket);
        let engine = Engine { daemon, socket, exec_root };
        engine.answers();
        engine
    }

    fn daemon(place: &Place, args: &[&str], exec_root: &str, socket: &str) -> Running {
        let mut command = Command::new("dockerd");
        command.arg("--data-root").arg(place.path("docker")).args(args);
        command.args(["--exec-root", exec_root, "-H", &format!("unix://{socket}")]);
        command.arg("--pidfile").arg(place.path("docker.pid"));
        Running::start(command, &place.path("docker.log"))
    }

    /// kill -9 of the daemon and of its containerd; what runs in containers is neither's child.
    pub fn kill(&mut self) {
        self.daemon.kill();
        let file = format!("{}/containerd/containerd.pid", self.exec_root);
        let pid = std::fs::read_to_string(file).ok().and_then(|text| Pid::from_raw(text.trim().parse().ok()?));
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// The daemon again, after it was killed.
    pub fn again(&mut self, place: &Place, args: &[&str]) {
        // A number that nobody took note of yet looks like a process that runs.
        for file in [place.path("docker.pid"), Path::new(&self.exec_root).join("containerd/containerd.pid")] {
            let _ = std::fs::remove_file(file);
        }
        self.daemon = Self::daemon(place, args, &self.exec_root, &self.socket);
        self.answers();
    }

    pub fn signal(&self, signal: Signal) {
        self.daemon.signal(signal);
    }

    fn answers(&self) {
        eventually("Docker answers (are docker.io, containerd and runc installed?)", Duration::from_secs(60), || {
            self.try_docker(&["version"])
        });
    }

    pub fn try_docker(&self, args: &[&str]) -> Option<String> {
        let host = format!("unix://{}", self.socket);
        let output = Command::new("docker").args(["-H", &host]).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub fn docker(&self, args: &[&str]) -> String {
        self.try_docker(args).unwrap_or_else(|| panic!("docker {args:?} failed"))
    }

    /// Makes an image of Debian's `busybox-static`, with a shell that finds its commands.
    pub fn busybox(&self, image: &str) {
        let archive = busybox_files();
        let host = format!("unix://{}", self.socket);
        let mut import = Command::new("docker");
        import.args(["-H", &host, "import", "-", image]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut import = import.spawn().unwrap();
        import.stdin.take().unwrap().write_all(&archive).unwrap();
        assert!(import.wait().unwrap().success());
    }

    /// Names of all containers.
    pub fn containers(&self) -> Vec<String> {
        self.docker(&["ps", "-a", "--format", "{{.Names}}"]).lines().map(str::to_owned).collect()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(ids) = self.try_docker(&["ps", "-aq"]) {
            for id in ids.lines() {
                self.try_docker(&["rm", "-f", id]);
            }
        }
        self.daemon.signal(Signal::TERM);
        self.daemon.wait();
        let _ = std::fs::remove_dir_all(&self.exec_root);
    }
}

/// Archive of the files of an image of Debian's `busybox-static`.
pub(crate) fn busybox_files() -> Vec<u8> {
    let made = "set -e; d=$(mktemp -d); mkdir -p $d/bin $d/tmp $d/etc; cp $(command -v busybox) $d/bin/busybox; \
                for c in sh sleep date touch test cat true echo grep stty wget ps ls tr id df mkdir; do ln -s busybox $d/bin/$c; done; \
                printf 'root:x:0:0::/root:/bin/sh\\napp:x:1000:1001::/:/bin/sh\\n' > $d/etc/passwd; tar -C $d -c .; rm -rf $d";
    let archive = Command::new("sh").args(["-c", made]).output().unwrap();
    assert!(archive.status.success(), "is busybox-static installed? {archive:?}");
    archive.stdout
}

/// A registry on loopback, and where; `users`: only for those of a file of htpasswd's.
pub fn registry(place: &Place, users: Option<&str>) -> (Running, String) {
    let address = format!("127.0.0.1:{}", free_port());
    let (config, data) = (place.path("registry.yml"), place.path("registry").display().to_string());
    let mut text = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {data}}}}}\nhttp: {{addr: \"{address}\"}}\nlog: {{level: warn}}\n"
    );
    if let Some(users) = users {
        let file = place.path("htpasswd");
        std::fs::write(&file, users).unwrap();
        let _ = writeln!(text, "auth: {{htpasswd: {{realm: steady, path: \"{}\"}}}}", file.display());
    }
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&config);
    let registry = Running::start(command, &place.path("registry.log"));
    eventually("the registry listens: is docker-registry installed?", Duration::from_secs(30), || {
        std::net::TcpStream::connect(&address).ok()
    });
    (registry, address)
}
