//! Security groups between real tasks, on a real Docker Engine and on containerd.
#![allow(clippy::unwrap_used, missing_docs)]

use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;
use steady_tests::containerd::Daemon;
use steady_tests::docker::Engine;
use steady_tests::{Place, eventually, text};

const TASKS: &str = "
apiVersion: steady/v1
kind: TaskDefinition
metadata: {name: web}
spec:
  networkMode: awsvpc
  containerDefinitions:
    - {name: web, image: 'steady:self', memory: 64, stopTimeout: 1, command: [steady, hello], portMappings: [{containerPort: 8080}]}
---
apiVersion: steady/v1
kind: TaskDefinition
metadata: {name: shell}
spec:
  networkMode: awsvpc
  containerDefinitions: [{name: shell, image: 'box:1', memory: 16, stopTimeout: 1, command: [sleep, '1000']}]
---
apiVersion: steady/v1
kind: Service
metadata: {name: web}
spec: {taskDefinition: web, networkConfiguration: {awsvpcConfiguration: {securityGroups: [web]}}}
---
apiVersion: steady/v1
kind: Service
metadata: {name: client}
spec: {taskDefinition: shell, networkConfiguration: {awsvpcConfiguration: {securityGroups: [client]}}}
---
apiVersion: steady/v1
kind: Service
metadata: {name: stranger}
spec: {taskDefinition: shell}
";

/// The groups of web and of its clients, with these rules.
fn groups(ingress: &str, egress: &str) -> String {
    format!(
        "apiVersion: steady/v1\nkind: SecurityGroup\nmetadata: {{name: web}}\nspec: {{ingress: [{ingress}]}}\n---\napiVersion: \
         steady/v1\nkind: SecurityGroup\nmetadata: {{name: client}}\nspec: {{egress: [{egress}]}}\n---\n"
    )
}

const FROM_CLIENTS: &str = "{ipProtocol: tcp, fromPort: 8080, referencedGroup: client}";

fn of(place: &Place, service: &str) -> Vec<Value> {
    place.running().into_iter().filter(|task| task["spec"]["service"] == service).collect()
}

fn id(task: &Value) -> &str {
    task["metadata"]["name"].as_str().unwrap()
}

fn address(task: &Value) -> String {
    let container = &task["status"]["containers"][0];
    container["networkInterfaces"][0]["privateIpv4Address"].as_str().unwrap().to_owned()
}

/// Whether a task gets through to a port.
fn reaches(place: &Place, from: &Value, to: &str) -> bool {
    let fetch = format!("echo | nc -w 1 {to} 8080");
    place.steady(&["exec", id(from), "--", "sh", "-c", &fetch]).status.success()
}

/// Whether this machine does.
fn this_machine_reaches(to: &str) -> bool {
    TcpStream::connect_timeout(&format!("{to}:8080").parse().unwrap(), Duration::from_secs(1)).is_ok()
}

fn until(place: &Place, what: &str, mut holds: impl FnMut() -> bool) {
    let story = || place.story();
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually(what, Duration::from_secs(20), || holds().then_some(()));
    }));
    assert!(found.is_ok(), "{what}: {}", story());
}

fn groups_are_kept(place: &Place, args: &[&str]) {
    let mut up = place.up(args);
    place.apply("app", &(groups(FROM_CLIENTS, "") + TASKS));
    for service in ["web", "client", "stranger"] {
        place.wait_steady(&format!("service/{service}"));
    }
    let (web, client, stranger) = (of(place, "web"), of(place, "client"), of(place, "stranger"));
    let (to, client, stranger) = (address(&web[0]), &client[0], &stranger[0]);
    until(place, "who has the group that is named gets through", || reaches(place, client, &to));
    assert!(!reaches(place, stranger, &to), "nobody else does");
    assert!(!this_machine_reaches(&to), "nor this machine");
    // A group without rules keeps everybody out, and lets everything out.
    assert!(!reaches(place, stranger, &address(client)));

    // Tasks that run obey what changes: rules, and who has the groups that they name.
    let machine = format!("{FROM_CLIENTS}, {{ipProtocol: tcp, fromPort: 8000, toPort: 8100, cidrIpv4: 10.88.0.1/32}}");
    place.apply("groups", &groups(&machine, ""));
    until(place, "this machine gets through", || this_machine_reaches(&to));
    assert!(!reaches(place, stranger, &to));
    place.ok(&["scale", "service/client", "2", "--wait"]);
    for task in of(place, "client") {
        until(place, "the new one gets through", || reaches(place, &task, &to));
    }

    // The rules outlive the agent, and the next one changes them.
    up.kill();
    assert!(!this_machine_reaches(&address(client)));
    let _up = place.up(args);
    place.wait_steady("service/web");
    assert_eq!(of(place, "web")[0]["metadata"]["name"], web[0]["metadata"]["name"], "{}", place.story());
    assert!(this_machine_reaches(&to) && !reaches(place, stranger, &to));
    place.apply("groups", &groups(FROM_CLIENTS, "{ipProtocol: '-1', cidrIpv4: 203.0.113.0/24}"));
    until(place, "this machine does not get through any more", || !this_machine_reaches(&to));
    until(place, "clients are not let out", || !reaches(place, client, &to));
    let metadata = "wget -qO- $ECS_CONTAINER_METADATA_URI_V4";
    let told = place.ok(&["exec", id(client), "--", "sh", "-c", metadata]);
    assert!(told.contains("DockerId"), "the metadata endpoint is always there: {told}");

    // A change of a service's groups is a deployment.
    let moved = TASKS.replace("securityGroups: [web]", "securityGroups: [client]");
    place.apply("app", &(groups(FROM_CLIENTS, "") + &moved));
    place.wait_steady("service/web");
    assert_ne!(of(place, "web")[0]["metadata"]["name"], web[0]["metadata"]["name"]);
    place.ok(&["rollout", "undo", "service/web", "--wait"]);
    let shown = place.ok(&["get", "service/web", "-o", "yaml"]);
    assert!(shown.contains("- web"), "{shown}");

    for service in ["web", "client", "stranger"] {
        place.ok(&["delete", &format!("service/{service}")]);
    }
    for group in ["securitygroup/web", "securitygroup/client"] {
        eventually("nobody has the group", Duration::from_secs(20), || {
            place.steady(&["delete", group]).status.success().then_some(())
        });
    }
}

#[test]
fn security_groups_let_through_what_their_rules_say_on_docker() {
    let place = Place::new();
    let engine = Engine::start(&place);
    engine.busybox("box:1");
    groups_are_kept(&place, &["--runtime", "docker", "--docker-socket", &engine.socket]);
}

#[test]
fn security_groups_let_through_what_their_rules_say_on_containerd() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.busybox(&place, "box:1");
    let socket = daemon.socket.display().to_string();
    groups_are_kept(&place, &["--runtime", "containerd", "--containerd-socket", &socket]);
}

#[test]
fn groups_that_are_not_there_or_are_in_use_are_named() {
    let place = Place::new();
    let _up = place.up_hollow(1);
    let refused = |text_of: &str| {
        let path = place.path("wrong.yaml");
        std::fs::write(&path, text_of).unwrap();
        text(&place.steady(&["apply", "-f", path.to_str().unwrap()]))
    };
    let said = refused(TASKS);
    assert!(said.contains("there is no security group `web`; apply it first, or in the same manifest"), "{said}");
    place.apply("app", &(groups(FROM_CLIENTS, "") + TASKS));
    let said = refused(&TASKS.replace("[client]", "[clint]"));
    assert!(said.contains("securityGroups[0]: there is no security group `clint`; did you mean `client`?"), "{said}");
    let said = refused(&TASKS.replace("  networkMode: awsvpc\n", ""));
    assert!(
        said.contains("spec.networkConfiguration: is not valid for networkMode bridge of task definition"),
        "{said}"
    );
    let said = text(&place.steady(&["delete", "securitygroup/client"]));
    assert!(said.contains("in use by service/client, ") && said.contains("securitygroup/web"), "{said}");
    let said = text(&place.steady(&["run", "shell", "--security-group", "nobody"]));
    assert!(said.contains("there is no security group `nobody`"), "{said}");
    let shown = place.ok(&["get", "sg"]);
    assert!(shown.contains("tcp:8080 client") && shown.contains("everything"), "{shown}");
}
