//! The kit: real processes of Steady for tests, each with its own port, directory and context.
#![allow(clippy::unwrap_used, missing_docs)]

pub mod chaos;
pub mod containerd;
pub mod docker;
pub mod faulty;
pub mod load;
pub mod runtimes;
pub mod sim;

use std::hash::{BuildHasher as _, RandomState};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// The binary `steady`, built by the same profile as the tests.
pub fn steady_binary() -> PathBuf {
    let mut directory = std::env::current_exe().unwrap();
    directory.pop();
    if directory.ends_with("deps") {
        directory.pop();
    }
    let binary = directory.join("steady");
    assert!(binary.exists(), "{} is not there: run `cargo build -p steady` first", binary.display());
    binary
}

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A port that is free now, and that nobody is given who asks for any: none of the ports of outgoing connections, and
/// none of those for tasks. Another test may choose it, which is why it is drawn.
pub fn free_port() -> u16 {
    let drawn = || 10_000 + u16::try_from(RandomState::new().hash_one(std::process::id()) % 10_000).unwrap();
    std::iter::repeat_with(drawn).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

/// Looks again and again until there is something to see.
pub fn eventually<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < patience, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A process that is killed with the test.
pub struct Running {
    child: Child,
}

impl Running {
    pub fn start(mut command: Command, log: &Path) -> Self {
        let output = std::fs::File::options().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        Running { child: command.spawn().unwrap() }
    }

    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn wait(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A place for one test: a directory, an API address, and the processes that belong to it.
pub struct Place {
    pub directory: TempDir,
    pub address: String,
}

impl Drop for Place {
    /// Ends what outlived its agent, as tasks do, and says the last lines of every log when the test failed.
    fn drop(&mut self) {
        for left in self.shims().into_iter().chain(self.haproxies()) {
            let _ = kill_process(left, Signal::TERM);
        }
        if !std::thread::panicking() {
            return;
        }
        for file in std::fs::read_dir(self.directory.path()).into_iter().flatten().flatten() {
            let path = file.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let log = std::fs::read_to_string(&path).unwrap_or_default();
                let from = log.lines().count().saturating_sub(60);
                eprintln!("--- {}", path.display());
                log.lines().skip(from).for_each(|line| eprintln!("{line}"));
            }
        }
    }
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Place {
    pub fn new() -> Self {
        Place { directory: tempfile::tempdir().unwrap(), address: format!("127.0.0.1:{}", free_port()) }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command of the binary's, pointed at this place.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(steady_binary());
        command.args(args).current_dir(root());
        command.env("STEADY_SERVER", &self.address).env("XDG_CONFIG_HOME", self.path("config"));
        command
    }

    /// `steady up` on this place's data directory.
    pub fn up(&self, args: &[&str]) -> Running {
        let data = self.path("data").display().to_string();
        let mut all = vec!["up", "--data-dir", &data, "--listen", &self.address];
        all.extend(args);
        let running = Running::start(self.command(&all), &self.path("up.log"));
        eventually("the API answers", Duration::from_secs(60), || std::net::TcpStream::connect(&self.address).ok());
        running
    }

    /// The same with so many hollow instances, once all of them are connected: what is placed is spread over them.
    pub fn up_hollow(&self, instances: usize) -> Running {
        let running = self.up(&["--runtime", "hollow", "--instances", &instances.to_string()]);
        eventually("the instances are connected", Duration::from_secs(60), || {
            let listed = self.json(&["get", "containerinstances"]);
            let all = listed["items"].as_array().cloned().unwrap_or_default();
            let connected = all.iter().filter(|instance| instance["status"]["agentConnected"] == true).count();
            (connected == instances).then_some(())
        });
        running
    }

    /// Debian's etcd, a member alone that listens at `scheme://`; and where. `more` are further arguments.
    pub fn etcd(&self, scheme: &str, more: &[&str]) -> (Running, String) {
        let (client, peer) =
            (format!("{scheme}://127.0.0.1:{}", free_port()), format!("http://127.0.0.1:{}", free_port()));
        (self.etcd_at(&client, &peer, more), client)
    }

    /// The same at given places: a second time on the same data.
    pub fn etcd_at(&self, client: &str, peer: &str, more: &[&str]) -> Running {
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(self.path("etcd")).args(more);
        command.args(["--listen-client-urls", client, "--advertise-client-urls", client]);
        command.args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]);
        command.args(["--initial-cluster", &format!("default={peer}")]);
        let etcd = Running::start(command, &self.path("etcd.log"));
        let (_, address) = client.split_once("://").unwrap();
        eventually("etcd listens: is the package etcd-server installed?", Duration::from_secs(60), || {
            std::net::TcpStream::connect(address).ok()
        });
        etcd
    }

    /// An API server over etcd, started again until it answers: one that does not find etcd ready ends.
    pub fn apiserver(&self, etcd: &str) -> Running {
        eventually("the API answers", Duration::from_secs(60), || {
            let args = ["apiserver", "--etcd", etcd, "--listen", &self.address];
            let mut api = Running::start(self.command(&args), &self.path("api.log"));
            for _ in 0..60 {
                if std::net::TcpStream::connect(&self.address).is_ok() {
                    return Some(api);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            api.kill();
            None
        })
    }

    /// An etcd, an API server and controllers, each a process, that end with what is returned.
    pub fn control_plane(&self) -> [Running; 3] {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let client = url(free_port());
        let etcd = self.etcd_at(&client, &url(free_port()), &[]);
        let api = self.apiserver(&client);
        let controllers = Running::start(self.command(&["controller"]), &self.path("controller.log"));
        [controllers, api, etcd]
    }

    /// A service of hollow tasks.
    pub fn declare(&self, service: &str, count: usize) {
        let manifest = format!(
            "apiVersion: steady/v1\nkind: TaskDefinition\nmetadata: {{name: {service}}}\nspec:\n  family: {service}\n  \
             containerDefinitions: [{{name: main, image: \"x:1\", memory: 16, stopTimeout: 2}}]\n---\napiVersion: \
             steady/v1\nkind: Service\nmetadata: {{name: {service}}}\nspec: {{taskDefinition: {service}, \
             desiredCount: {count}}}\n"
        );
        self.apply(service, &manifest);
    }

    /// Applies a manifest, written down under a name.
    pub fn apply(&self, name: &str, manifest: &str) {
        let path = self.path(&format!("{name}.yaml"));
        std::fs::write(&path, manifest).unwrap();
        self.ok(&["apply", "-f", path.to_str().unwrap()]);
    }

    pub fn steady(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// A command that has to succeed; its standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.steady(args);
        assert!(output.status.success(), "steady {args:?}: {}\n{}", text(&output), self.story());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn json(&self, args: &[&str]) -> Value {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        serde_json::from_str(&self.ok(&all)).unwrap()
    }

    pub fn wait_steady(&self, service: &str) {
        self.ok(&["wait", service, "--for", "steady", "--timeout", "60s"]);
    }

    /// Tasks that are RUNNING.
    pub fn running(&self) -> Vec<Value> {
        let listed = self.json(&["get", "tasks"]);
        let items = listed["items"].as_array().cloned().unwrap_or_default();
        items.into_iter().filter(|t| t["status"]["lastStatus"] == "RUNNING").collect()
    }

    /// Processes that hold a task of this place's agents, each.
    pub fn shims(&self) -> Vec<Pid> {
        self.processes(|line| line.contains("__shim"))
    }

    /// `HAProxy`'s processes that this place's load balancers have started.
    pub fn haproxies(&self) -> Vec<Pid> {
        self.processes(|line| line.starts_with("haproxy"))
    }

    /// Processes whose command line names this place's directory, and is as is asked for.
    pub fn processes(&self, is_one: impl Fn(&str) -> bool) -> Vec<Pid> {
        let directory = self.directory.path().display().to_string();
        let holds = |entry: &std::fs::DirEntry| {
            let line = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            line.contains(&directory) && is_one(&line)
        };
        let found = std::fs::read_dir("/proc").unwrap().flatten().filter(holds);
        found.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)).collect()
    }

    /// What happened here, for a test that failed.
    pub fn story(&self) -> String {
        let tasks = text(&self.steady(&["get", "tasks", "--all", "-o", "wide"]));
        let events = text(&self.steady(&["events"]));
        let up = std::fs::read_to_string(self.path("up.log")).unwrap_or_default();
        format!("--- tasks\n{tasks}\n--- events\n{events}\n--- up\n{up}")
    }
}

/// Both outputs of a command.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Ids of tasks, sorted.
pub fn ids(tasks: &[Value]) -> Vec<String> {
    let mut ids: Vec<String> = tasks.iter().map(|t| t["metadata"]["name"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    ids
}

/// Process ids of tasks of the process runtime.
pub fn pids(tasks: &[Value]) -> Vec<i32> {
    let mut pids: Vec<i32> =
        tasks.iter().filter_map(|t| t["status"]["containers"][0]["runtimeId"].as_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// Whether a process is there and not a zombie.
pub fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// A GET of `/`, as text.
pub fn http_get(address: &str) -> Option<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
