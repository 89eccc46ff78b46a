//! The same on a real Docker Engine: a private one, with its own data, socket and containers.
#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use steady_tests::{Place, Running, eventually, http_get, ids};

/// A Docker Engine that ends with the test.
struct Engine {
    daemon: Running,
    socket: String,
    exec_root: String,
}

impl Engine {
    fn start(place: &Place) -> Self {
        let socket = place.path("docker.sock").display().to_string();
        // Short: containerd's own sockets below it may have 108 characters.
        let exec_root = format!("/tmp/steady-docker-{}", std::process::id());
        let mut command = Command::new("dockerd");
        command.arg("--data-root").arg(place.path("docker"));
        command.args(["--exec-root", &exec_root, "-H", &format!("unix://{socket}")]);
        command.arg("--pidfile").arg(place.path("docker.pid"));
        let daemon = Running::start(command, &place.path("docker.log"));
        let engine = Engine { daemon, socket, exec_root };
        eventually("Docker answers (are docker.io, containerd and runc installed?)", Duration::from_secs(60), || {
            engine.try_docker(&["version"])
        });
        engine
    }

    fn try_docker(&self, args: &[&str]) -> Option<String> {
        let host = format!("unix://{}", self.socket);
        let output = Command::new("docker").args(["-H", &host]).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn docker(&self, args: &[&str]) -> String {
        self.try_docker(args).unwrap_or_else(|| panic!("docker {args:?} failed"))
    }

    /// Names of all containers.
    fn containers(&self) -> Vec<String> {
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

fn service(place: &Place, name: &str) {
    eventually("the service is there", Duration::from_secs(60), || {
        place.steady(&["get", name]).status.success().then_some(())
    });
    place.wait_steady(name);
}

#[test]
fn hello_runs_in_containers_survives_its_agent_and_leaves_none() {
    let place = Place::new();
    let engine = Engine::start(&place);
    let args = ["--runtime", "docker", "--docker-socket", &engine.socket];
    let mut up = place.up(&[&args[..], &["examples/manifests/hello.yaml"]].concat());
    service(&place, "service/hello");
    let tasks = place.running();
    assert_eq!((tasks.len(), engine.containers().len()), (2, 2), "{}", place.story());
    for task in &tasks {
        let binding = &task["status"]["containers"][0]["networkBindings"][0];
        let address = format!("127.0.0.1:{}", binding["hostPort"]);
        let answer = eventually("it answers", Duration::from_secs(10), || http_get(&address));
        assert!(answer.contains(task["metadata"]["name"].as_str().unwrap()), "{answer}");
    }
    assert!(place.ok(&["logs", "service/hello"]).contains("listening on"));

    let killed = engine.containers()[0].clone();
    engine.docker(&["kill", &killed]);
    eventually("a new task", Duration::from_secs(20), || {
        let now = place.running();
        (now.len() == 2 && !ids(&now).iter().any(|id| killed.contains(id))).then_some(())
    });
    place.wait_steady("service/hello");
    let before = ids(&place.running());

    up.kill();
    let mut up = place.up(&args);
    eventually("steady again", Duration::from_secs(30), || {
        place.steady(&["wait", "service/hello", "--for", "steady", "--timeout", "20s"]).status.success().then_some(())
    });
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(ids(&place.running()), before, "the containers are adopted\n{}", place.story());

    place.ok(&["delete", "service/hello"]);
    eventually("no container is left", Duration::from_secs(20), || engine.containers().is_empty().then_some(()));
    up.signal(Signal::INT);
    assert_eq!(up.wait(), Some(0), "{}", place.story());
}

#[test]
fn a_task_of_several_containers_starts_in_order_and_is_healthy() {
    let place = Place::new();
    let engine = Engine::start(&place);
    let _up = place.up(&["--runtime", "docker", "--docker-socket", &engine.socket, "examples/manifests/app.yaml"]);
    service(&place, "service/app");
    let task = place.running().remove(0);
    assert_eq!(task["status"]["healthStatus"], "HEALTHY", "{task:#}");
    let state = |name: &str| {
        let containers = task["status"]["containers"].as_array().unwrap();
        containers.iter().find(|c| c["name"] == name).unwrap().clone()
    };
    assert_eq!((&state("prepare")["lastStatus"], &state("prepare")["exitCode"]), (&"STOPPED".into(), &0.into()));
    assert_eq!(state("watch")["lastStatus"], "RUNNING");

    place.ok(&["apply", "-f", "examples/manifests/task.yaml"]);
    place.ok(&["wait", "task/once", "--for", "stopped", "--timeout", "60s"]);
    let once = place.json(&["get", "task/once"]);
    assert_eq!(once["status"]["containers"][0]["exitCode"], 0, "{once:#}");
    assert!(place.ok(&["logs", "task/once"]).contains("steady "));
    let missing = place.steady(&["run", "nothing"]);
    assert!(!missing.status.success());
}
