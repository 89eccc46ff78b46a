//! Tasks with addresses of their own, and tasks whose containers share more than that, on a real Docker Engine.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use steady_tests::docker::Engine;
use steady_tests::{Place, Running, eventually, free_port, http_get, ids, text};

const WEB: &str = "
apiVersion: steady/v1
kind: TaskDefinition
metadata: {name: web}
spec:
  networkMode: awsvpc
  containerDefinitions:
    - {name: web, image: 'steady:self', memory: 64, stopTimeout: 1, command: [steady, hello],
       portMappings: [{containerPort: 8080}], systemControls: [{namespace: net.core.somaxconn, value: '77'}]}
    - {name: side, image: 'box:1', memory: 16, stopTimeout: 1, essential: false,
       command: [sh, -c, 'wget -qO- http://127.0.0.1:8080; cat /proc/sys/net/core/somaxconn; sleep 1000'],
       dependsOn: [{containerName: web, condition: START}]}
---
apiVersion: steady/v1
kind: Service
metadata: {name: web}
spec: {taskDefinition: web, desiredCount: 2}
";

fn address(task: &Value) -> String {
    let container = &task["status"]["containers"][0];
    container["networkInterfaces"][0]["privateIpv4Address"].as_str().unwrap().to_owned()
}

#[test]
fn each_task_has_an_address_of_its_own_and_keeps_it_over_a_restart_of_the_agent() {
    let place = Place::new();
    let engine = Engine::start(&place);
    engine.busybox("box:1");
    let args = ["--runtime", "docker", "--docker-socket", &engine.socket];
    let mut up = place.up(&args);
    place.apply("web", WEB);
    place.wait_steady("service/web");
    let tasks = place.running();
    let addresses: BTreeSet<String> = tasks.iter().map(address).collect();
    assert_eq!(addresses.len(), 2, "the same port twice on one machine: {tasks:#?}");
    for task in &tasks {
        assert_eq!(task["status"]["containers"].as_array().unwrap().len(), 2, "what is shared is nobody's business");
        let id = task["metadata"]["name"].as_str().unwrap();
        let answer = eventually("it answers the machine", Duration::from_secs(10), || {
            http_get(&format!("{}:8080", address(task)))
        });
        assert!(answer.contains(id), "{answer}");
        // Its containers reach each other at 127.0.0.1, and have the network's parameters in common.
        let side = eventually("the side car has said its say", Duration::from_secs(10), || {
            let said = place.ok(&["logs", &format!("task/{id}"), "--container", "side"]);
            said.ends_with("77\n").then_some(said)
        });
        assert!(side.contains(id), "{side}");
    }
    // And tasks reach each other.
    let (first, second) = (&tasks[0]["metadata"]["name"], address(&tasks[1]));
    let fetch = ["exec", first.as_str().unwrap(), "--container", "side", "--", "wget", "-qO-"];
    let url = format!("http://{second}:8080");
    let answer = place.ok(&[&fetch[..], &[&url]].concat());
    assert!(answer.contains(tasks[1]["metadata"]["name"].as_str().unwrap()), "{answer}");
    let shown = place.ok(&["get", "tasks"]);
    assert!(shown.contains(&format!("{second}:8080")), "{shown}");

    let before = ids(&tasks);
    up.kill();
    let _up = place.up(&args);
    place.wait_steady("service/web");
    std::thread::sleep(Duration::from_secs(2));
    let tasks = place.running();
    assert_eq!((ids(&tasks), tasks.iter().map(address).collect()), (before, addresses.clone()), "{}", place.story());

    // Without its network a task ends, and another takes its place.
    let id = tasks[0]["metadata"]["name"].as_str().unwrap().to_owned();
    engine.docker(&["kill", &format!("steady-{id}-.pause")]);
    eventually("another task", Duration::from_secs(20), || {
        let now = place.running();
        (now.len() == 2 && !ids(&now).contains(&id)).then_some(())
    });
    place.ok(&["delete", "service/web"]);
    eventually("no container is left", Duration::from_secs(20), || engine.containers().is_empty().then_some(()));
    for address in &addresses {
        let rules = Command::new("iptables").args(["-t", "nat", "-S"]).output().unwrap();
        assert!(!text(&rules).contains(&format!("{address}/")), "{}", text(&rules));
        let lease = Path::new("/var/lib/cni/networks/steady").join(address);
        assert!(!lease.exists(), "the address {address} is given back");
        assert!(
            TcpStream::connect_timeout(&format!("{address}:8080").parse().unwrap(), Duration::from_secs(1)).is_err()
        );
    }
}

#[test]
fn containers_of_a_task_share_processes_and_memory_where_they_are_told_to() {
    let place = Place::new();
    let engine = Engine::start(&place);
    engine.busybox("box:1");
    let _up = place.up(&["--runtime", "docker", "--docker-socket", &engine.socket]);
    let manifest = |name: &str, modes: &str| {
        format!(
            "apiVersion: steady/v1\nkind: TaskDefinition\nmetadata: {{name: {name}}}\nspec:\n{modes}  containerDefinitions:\n    \
             - {{name: main, image: 'box:1', memory: 16, stopTimeout: 1, command: [sleep, '1234']}}\n---\napiVersion: \
             steady/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{taskDefinition: {name}, desiredCount: 1}}\n"
        )
    };
    place.apply("shared", &manifest("shared", "  pidMode: task\n  ipcMode: task\n"));
    place.apply("host", &manifest("host", "  pidMode: host\n  ipcMode: none\n"));
    place.wait_steady("service/shared");
    place.wait_steady("service/host");
    let ps = place.ok(&["exec", "service/shared", "--", "ps"]);
    assert!(ps.contains("__pause") && ps.contains("sleep 1234"), "{ps}");
    assert!(place.ok(&["exec", "service/host", "--", "ps"]).contains("dockerd"));
    let id = ids(&place.running());
    let ipc = |format: &str| {
        let modes: BTreeSet<String> = id
            .iter()
            .map(|id| engine.docker(&["inspect", "-f", format, &format!("steady-{id}-main")]).trim().to_owned())
            .collect();
        modes
    };
    let modes = ipc("{{.HostConfig.IpcMode}}");
    assert!(modes.contains("none") && modes.iter().any(|mode| mode.starts_with("container:")), "{modes:?}");

    let path = place.path("wrong.yaml");
    std::fs::write(&path, manifest("wrong", "  pidMode: mine\n")).unwrap();
    let refused = text(&place.steady(&["apply", "-f", path.to_str().unwrap()]));
    assert!(refused.contains("spec.pidMode: `mine` is not known; expected host or task"), "{refused}");
}

/// A machine of its own, as far as the network goes: a link to this one, and one to the other.
struct Machine {
    name: String,
}

fn ip(args: &str) {
    let done = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {args}: {}", text(&done));
}

impl Machine {
    fn new(number: usize) -> Self {
        let machine = Machine { name: format!("st{}-{number}", std::process::id()) };
        let name = &machine.name;
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("link add {name} type veth peer name control netns {name}"));
        ip(&format!("address add 10.77.{number}.1/30 dev {name}"));
        ip(&format!("link set {name} up"));
        ip(&format!("-n {name} address add 10.77.{number}.2/30 dev control"));
        ip(&format!("-n {name} link set control up"));
        machine
    }

    /// What whoever runs the machines' network sees to: a link, and a route to each other's tasks.
    fn connect(pair: &[Machine; 2]) {
        ip(&format!("-n {} link add peer type veth peer name peer netns {}", pair[0].name, pair[1].name));
        for (number, machine) in (1..).zip(pair) {
            let (name, other) = (&machine.name, 3 - number);
            ip(&format!("-n {name} address add 10.78.0.{number}/24 dev peer"));
            ip(&format!("-n {name} link set peer up"));
            ip(&format!("-n {name} route add 10.90.{other}.0/24 via 10.78.0.{other}"));
        }
    }

    /// A command on it.
    fn command(&self, of: &Command) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/var/run/netns/{}", self.name)).arg(of.get_program()).args(of.get_args());
        command.envs(of.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

#[test]
fn tasks_on_several_machines_reach_each_other_by_their_own_addresses() {
    let place = Place::new();
    let daemon = steady_tests::containerd::Daemon::start(&place);
    daemon.busybox(&place, "box:1");
    let machines = [1, 2].map(Machine::new);
    Machine::connect(&machines);
    let (url, peer) = (format!("http://127.0.0.1:{}", free_port()), format!("http://127.0.0.1:{}", free_port()));
    let _etcd = place.etcd_at(&url, &peer, &[]);
    let port = free_port();
    let listen = format!("0.0.0.0:{port}");
    let server = place.command(&["apiserver", "--etcd", &url, "--listen", &listen]);
    let _api = Running::start(server, &place.path("api.log"));
    let at =
        |host: &str, args: &[&str]| place.command(&[&["--server", &format!("http://{host}:{port}")], args].concat());
    let steady = |args: &[&str]| at("127.0.0.1", args);
    let _controllers = Running::start(steady(&["controller"]), &place.path("controller.log"));
    let mut agents = Vec::new();
    for (number, machine) in (1..).zip(&machines) {
        let (name, subnet) = (format!("m{number}"), format!("10.90.{number}.0/24"));
        let directory = place.path(&name).display().to_string();
        let socket = daemon.socket.display().to_string();
        let args = [
            "agent",
            "--name",
            &name,
            "--data-dir",
            &directory,
            "--runtime",
            "containerd",
            "--containerd-socket",
            &socket,
        ];
        let more = ["--task-subnet", &subnet, "--task-network", "10.90.0.0/16"];
        let agent = machine.command(&at(&format!("10.77.{number}.1"), &[&args[..], &more].concat()));
        agents.push(Running::start(agent, &place.path(&format!("{name}.log"))));
    }
    std::fs::write(place.path("web.yaml"), WEB).unwrap();
    let ok = |args: &[&str]| {
        let output = steady(args).output().unwrap();
        output.status.success().then(|| text(&output))
    };
    eventually("both are there", Duration::from_secs(30), || {
        ok(&["get", "instances"]).filter(|all| all.contains("m1") && all.contains("m2"))
    });
    let file = place.path("web.yaml").display().to_string();
    eventually("applied", Duration::from_secs(30), || ok(&["apply", "-f", &file]));
    eventually("steady", Duration::from_secs(60), || {
        ok(&["wait", "service/web", "--for", "steady", "--timeout", "30s"])
    });
    let all: Value = serde_json::from_str(&ok(&["get", "tasks", "-o", "json"]).unwrap()).unwrap();
    let tasks = all["items"].as_array().unwrap();
    assert_eq!(tasks.len(), 2);
    for (one, other) in [(0, 1), (1, 0)] {
        let instance = tasks[one]["spec"]["containerInstance"].as_str().unwrap();
        let own = address(&tasks[one]);
        assert!(own.starts_with(&format!("10.90.{}.", &instance[1..])), "{instance} {own}");
        let url = format!("http://{}:8080", address(&tasks[other]));
        let id = tasks[one]["metadata"]["name"].as_str().unwrap();
        let fetch = steady(&["exec", id, "--container", "side", "--", "wget", "-qO-", &url]).output();
        let answer = text(&fetch.unwrap());
        assert!(answer.contains(tasks[other]["metadata"]["name"].as_str().unwrap()), "{own} → {url}: {answer}");
    }
    let mut rules = Command::new("iptables");
    rules.args(["-t", "nat", "-S", "POSTROUTING"]);
    let rules = text(&machines[0].command(&rules).output().unwrap());
    assert!(rules.contains("! -d 10.90.0.0/16"), "tasks keep their addresses among each other: {rules}");
    ok(&["delete", "service/web"]).unwrap();
    eventually("nothing is left", Duration::from_secs(20), || {
        daemon.ctr(&["containers", "list", "-q"]).is_empty().then_some(())
    });
}
