//! The same on containerd alone, without Docker: a private one, with its own data, socket and containers.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use steady_tests::containerd::Daemon;
use steady_tests::{Place, eventually, http_get, ids, text};

fn args(daemon: &Daemon) -> [&str; 4] {
    ["--runtime", "containerd", "--containerd-socket", daemon.socket.to_str().unwrap()]
}

fn rules() -> String {
    text(&Command::new("iptables").args(["-t", "nat", "-S"]).output().unwrap())
}

fn containers(daemon: &Daemon) -> Vec<String> {
    daemon.ctr(&["containers", "list", "-q"]).lines().map(str::to_owned).collect()
}

#[test]
fn hello_answers_at_host_ports_and_outlives_its_agent_and_containerd() {
    let place = Place::new();
    let mut daemon = Daemon::start(&place);
    let mut up = place.up(&args(&daemon));
    place.ok(&["apply", "-f", "examples/manifests/hello.yaml"]);
    place.wait_steady("service/hello");
    let answers = || {
        for task in &place.running() {
            let id = task["metadata"]["name"].as_str().unwrap();
            let port = &task["status"]["containers"][0]["networkBindings"][0]["hostPort"];
            let answer = eventually("it answers", Duration::from_secs(10), || http_get(&format!("127.0.0.1:{port}")));
            assert!(answer.contains(id), "{answer}");
            assert!(rules().contains(&format!("--dport {port} ")), "led in by a rule: {}", rules());
        }
    };
    answers();
    let before = ids(&place.running());
    assert_eq!(before.len(), 2);
    assert!(place.ok(&["logs", "service/hello"]).contains("listening on"));

    // Without containerd and without an agent everything goes on; and is known again by the next ones.
    daemon.kill();
    answers();
    up.kill();
    daemon.again();
    let mut up = place.up(&args(&daemon));
    place.wait_steady("service/hello");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(ids(&place.running()), before, "{}", place.story());
    answers();

    let first = before.first().unwrap();
    let killed = containers(&daemon).into_iter().find(|name| name.starts_with(first.as_str())).unwrap();
    daemon.ctr(&["tasks", "kill", "--signal", "SIGKILL", &killed]);
    eventually("a new task", Duration::from_secs(20), || {
        let now = ids(&place.running());
        (now.len() == 2 && !now.contains(first)).then_some(())
    });
    let stopped = place.json(&["get", &format!("task/{first}")]);
    assert_eq!(stopped["status"]["containers"][0]["exitCode"], 137, "{stopped:#}");

    place.ok(&["delete", "service/hello"]);
    eventually("no container is left", Duration::from_secs(20), || containers(&daemon).is_empty().then_some(()));
    let left = rules();
    assert!(before.iter().all(|task| !left.contains(task.as_str())), "no port is led anywhere: {left}");
    up.signal(Signal::INT);
    assert_eq!(up.wait(), Some(0), "{}", place.story());
}

const WEB: &str = "
apiVersion: steady/v1
kind: TaskDefinition
metadata: {name: web}
spec:
  networkMode: awsvpc
  pidMode: task
  volumes: [{name: shared}]
  containerDefinitions:
    - {name: web, image: 'steady:self', memory: 64, stopTimeout: 1, command: [steady, hello],
       portMappings: [{containerPort: 8080}], systemControls: [{namespace: net.core.somaxconn, value: '77'}],
       mountPoints: [{sourceVolume: shared, containerPath: /shared}]}
    - {name: side, image: 'box:1', memory: 16, stopTimeout: 1, essential: false, readonlyRootFilesystem: true,
       command: [sh, -c, 'id; wget -qO- http://127.0.0.1:8080; cat /proc/sys/net/core/somaxconn; sleep 1000'],
       dependsOn: [{containerName: web, condition: START}], mountPoints: [{sourceVolume: shared, containerPath: /there}],
       linuxParameters: {tmpfs: [{containerPath: /scratch, size: 3}], initProcessEnabled: false, capabilities: {drop: [ALL]}},
       ulimits: [{name: nofile, softLimit: 123, hardLimit: 456}]}
---
apiVersion: steady/v1
kind: Service
metadata: {name: web}
spec: {taskDefinition: web, desiredCount: 2}
";

#[test]
fn tasks_have_addresses_of_their_own_and_what_their_definition_says() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.busybox(&place, "box:1");
    let mut up = place.up(&args(&daemon));
    place.apply("web", WEB);
    place.wait_steady("service/web");
    let tasks = place.running();
    let address = |task: &Value| {
        task["status"]["containers"][0]["networkInterfaces"][0]["privateIpv4Address"].as_str().unwrap().to_owned()
    };
    let addresses: BTreeSet<String> = tasks.iter().map(address).collect();
    assert_eq!(addresses.len(), 2, "{tasks:#?}");
    for task in &tasks {
        let id = task["metadata"]["name"].as_str().unwrap();
        let side = eventually("the side car has said its say", Duration::from_secs(10), || {
            let said = place.ok(&["logs", &format!("task/{id}"), "--container", "side"]);
            said.ends_with("77\n").then_some(said)
        });
        assert!(side.starts_with("uid=1000(app) gid=1001") && side.contains(id), "the image's user: {side}");
    }
    let id = tasks[0]["metadata"]["name"].as_str().unwrap();
    let side = |script: &str| text(&place.steady(&["exec", id, "--container", "side", "--", "sh", "-c", script]));
    assert!(side("echo x > /file").contains("Read-only"), "{}", side("echo x > /file"));
    assert!(side("grep CapEff /proc/self/status").contains("0000000000000000"));
    assert!(side("df -k /scratch | grep 3072").contains("/scratch"), "{}", side("df -k"));
    assert!(side("ulimit -n; ulimit -Hn").contains("123\n456"), "{}", side("ulimit -n"));
    assert!(side("ps").contains("steady hello"), "one task's containers see each other's processes: {}", side("ps"));
    let hosts = place.ok(&["exec", id, "--container", "side", "--", "cat", "/etc/hosts"]);
    assert!(hosts.contains(&address(&tasks[0])), "{hosts}");
    let url = format!("wget -qO- http://{}:8080", address(&tasks[1]));
    assert!(side(&url).contains(tasks[1]["metadata"]["name"].as_str().unwrap()), "tasks reach each other");

    up.kill();
    let _up = place.up(&args(&daemon));
    place.wait_steady("service/web");
    assert_eq!(ids(&place.running()), ids(&tasks), "{}", place.story());
    let volumes = || {
        let found = Command::new("find").arg(place.path("")).args(["-path", "*/volumes/*/shared"]).output().unwrap();
        text(&found).lines().count()
    };
    assert_eq!(volumes(), 2);
    place.ok(&["delete", "service/web"]);
    eventually("no container is left", Duration::from_secs(20), || containers(&daemon).is_empty().then_some(()));
    eventually("a task's volumes go with it", Duration::from_secs(5), || (volumes() == 0).then_some(()));
}
