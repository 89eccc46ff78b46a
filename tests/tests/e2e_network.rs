//! Tasks with addresses of their own, and tasks whose containers share more than that, on a real Docker Engine.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use steady_tests::docker::Engine;
use steady_tests::{Place, eventually, http_get, ids, text};

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
