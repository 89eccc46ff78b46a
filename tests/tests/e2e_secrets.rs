//! Secrets reach the containers that name them, and nobody else.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use steady_tests::docker::{Engine, registry};
use steady_tests::{Place, Running, eventually, text};

const CANARY: &str = "CANARY-7f3a9";

/// `steady secret put` with a value on standard input.
fn put(place: &Place, name: &str, value: &str) -> String {
    let mut command = place.command(&["secret", "put", name]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(format!("{value}\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

/// Runs a task to its end and returns it.
fn run(place: &Place, name: &str, containers: &str) -> Value {
    let manifest = format!(
        "apiVersion: steady/v1\nkind: TaskDefinition\nmetadata: {{name: {name}}}\nspec:\n  containerDefinitions: \
         [{containers}]\n---\napiVersion: steady/v1\nkind: Task\nmetadata: {{name: {name}}}\nspec: {{taskDefinition: \
         {name}}}\n"
    );
    place.apply(name, &manifest);
    place.ok(&["wait", &format!("task/{name}"), "--for", "stopped", "--timeout", "60s"]);
    place.json(&["get", &format!("task/{name}")])
}

/// Files below a directory that hold some bytes.
fn holding(directory: &Path, bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(holding(&path, bytes));
        } else if std::fs::read(&path).is_ok_and(|text| text.windows(bytes.len()).any(|window| window == bytes)) {
            found.push(path.display().to_string());
        }
    }
    found
}

fn ready(place: &Place) -> Running {
    let up = place.up(&["--runtime", "process"]);
    eventually("the instance is connected", Duration::from_secs(60), || {
        let listed = place.json(&["get", "containerinstances"]);
        (listed["items"][0]["status"]["agentConnected"] == true).then_some(())
    });
    up
}

#[test]
fn a_secret_is_in_its_container_and_nowhere_else() {
    let place = Place::new();
    let mut up = ready(&place);
    assert!(put(&place, "db", &format!("{{\"password\": \"{CANARY}\", \"port\": 5432}}")).contains("created"));
    assert!(put(&place, "more", &format!("FROM_FILE={CANARY}\nGIVEN=no")).contains("created"));
    let file = place.path("plain.env");
    std::fs::write(&file, "# of the instance\nPLAIN=plain\nFROM_FILE=first\n").unwrap();
    let script =
        "case $PASSWORD in CANARY-*9) echo password;; esac; echo $PORT_OF_DB $GIVEN $PLAIN $FROM_FILE; sleep 2";
    let container = format!(
        "{{name: main, image: any, memory: 16, command: [sh, -c, \"{script}\"], environment: [{{name: GIVEN, value: \
         given}}], secrets: [{{name: PASSWORD, valueFrom: \"db:password\"}}, {{name: PORT_OF_DB, valueFrom: \
         \"db:port\"}}], environmentFiles: [{{type: file, value: \"{}\"}}, {{type: secret, value: more}}]}}",
        file.display()
    );
    let task = run(&place, "reader", &container);
    assert_eq!(place.ok(&["logs", "task/reader"]), "password\n5432 given plain first\n", "{task:#}");

    for shown in
        [&["get", "secrets", "-o", "json"][..], &["get", "secret/db", "-o", "yaml"], &["describe", "secret/db"]]
    {
        let shown = place.ok(shown);
        assert!(shown.contains("db") && !shown.contains(CANARY) && !shown.contains("sealed"), "{shown}");
    }
    // Stored again the same it stays the same, after a restart too: the key is beside the store.
    up.signal(Signal::INT);
    up.wait();
    assert_eq!(holding(&place.path("data"), CANARY.as_bytes()), Vec::<String>::new());
    let _up = ready(&place);
    assert!(put(&place, "more", &format!("FROM_FILE={CANARY}\nGIVEN=no")).contains("unchanged"));
    assert!(put(&place, "more", "FROM_FILE=other").contains("changed; tasks that run keep"));
    // The description is applied without the value, and the value stays.
    let manifest = place.path("secret.yaml");
    let document = "apiVersion: steady/v1\nkind: Secret\nmetadata: {name: db}\nspec: {description: of the database}\n";
    std::fs::write(&manifest, document).unwrap();
    place.ok(&["apply", "-f", manifest.to_str().unwrap()]);
    let container = "{name: main, image: any, memory: 16, command: [sh, -c, 'echo ${#PASSWORD}'], secrets: [{name: \
                     PASSWORD, valueFrom: \"db:password\"}]}";
    run(&place, "again", container);
    assert_eq!(place.ok(&["logs", "task/again"]), "12\n");
}

#[test]
fn a_secret_that_cannot_be_had_ends_the_task_with_the_reason() {
    let place = Place::new();
    let _up = ready(&place);
    put(&place, "text", "no json");
    let container = |from: &str| {
        format!(
            "{{name: main, image: any, memory: 16, command: [\"true\"], secrets: [{{name: A, valueFrom: \"{from}\"}}]}}"
        )
    };
    for (name, from, expected) in [
        ("missing", "nothing", "unable to retrieve secret nothing: there is no secret/nothing; apply it"),
        ("member", "text:key", "unable to retrieve secret text:key: secret/text is no JSON object and has no `key`"),
    ] {
        let task = run(&place, name, &container(from));
        let reason = task["status"]["stoppedReason"].as_str().unwrap();
        assert!(reason.starts_with("ResourceInitializationError: ") && reason.contains(expected), "{task:#}");
        assert_eq!(task["status"]["stopCode"], "TaskFailedToStart");
    }
    let refused = place.path("refused.yaml");
    let document = "apiVersion: steady/v1\nkind: Secret\nmetadata: {name: new}\nspec: {}\n";
    std::fs::write(&refused, document).unwrap();
    let refused = place.steady(&["apply", "-f", refused.to_str().unwrap()]);
    assert!(text(&refused).contains("spec.secretString: is missing"), "{}", text(&refused));
}

#[test]
fn an_api_server_takes_secrets_once_it_has_a_key() {
    let place = Place::new();
    let (_etcd, etcd) = place.etcd("http", &[]);
    let mut api = place.apiserver(&etcd);
    let mut command = place.command(&["secret", "put", "db", "--file", "README.md"]);
    let refused = text(&command.output().unwrap());
    assert!(refused.contains("start it with --secrets-key FILE"), "{refused}");
    api.kill();
    let key = place.path("secrets.key").display().to_string();
    let args = ["apiserver", "--etcd", &etcd, "--listen", &place.address, "--secrets-key", &key];
    std::fs::write(&key, "too short").unwrap();
    let refused = text(&place.steady(&args));
    assert!(refused.contains("expected a key of 64 hexadecimal digits"), "{refused}");
    std::fs::write(&key, format!("{:0>64}", 7)).unwrap();
    let start = || {
        let api = Running::start(place.command(&args), &place.path("api.log"));
        eventually("the API answers", Duration::from_secs(60), || std::net::TcpStream::connect(&place.address).ok());
        api
    };
    let mut api = start();
    assert!(put(&place, "db", CANARY).contains("created"));
    // The key is changed: the new one first, the values again, the old one away.
    api.kill();
    std::fs::write(&key, format!("{:0>64}\n{:0>64}", 8, 7)).unwrap();
    let mut api = start();
    assert!(put(&place, "db", CANARY).contains("changed"));
    api.kill();
    std::fs::write(&key, format!("{:0>64}", 8)).unwrap();
    let _api = start();
    assert!(put(&place, "db", CANARY).contains("unchanged"));
}

#[test]
fn a_private_registry_is_logged_in_to_and_what_it_refuses_is_said() {
    let place = Place::new();
    let engine = Engine::start(&place);
    engine.busybox("box:1");
    // The password is the canary, by bcrypt.
    let users = "me:$2b$05$abcdefghijklmnopqrstuulB4LnJ9pDy3nzZmaBuXPkN2aIGjZUee\n";
    let (_registry, address) = registry(&place, Some(users));
    let image = format!("{address}/box:v1");
    engine.docker(&["login", "-u", "me", "-p", CANARY, &address]);
    engine.docker(&["tag", "box:1", &image]);
    engine.docker(&["push", &image]);
    engine.docker(&["logout", &address]);
    engine.docker(&["rmi", &image]);
    let _up = place.up(&["--runtime", "docker", "--docker-socket", &engine.socket]);
    put(&place, "login", &format!("{{\"username\": \"me\", \"password\": \"{CANARY}\"}}"));
    put(&place, "wrong", "{\"username\": \"me\", \"password\": \"guess\"}");
    let container = |image: &str, credentials: &str| {
        format!(
            "{{name: main, image: \"{image}\", memory: 16, command: [echo, hello], repositoryCredentials: \
             {{credentialsParameter: {credentials}}}}}"
        )
    };
    let zeros = "0".repeat(64);
    for (name, image, credentials, expected) in [
        ("wrong-password", image.clone(), "wrong", vec!["unauthorized", "no basic auth"]),
        ("no-such-tag", format!("{address}/box:v9"), "login", vec!["manifest unknown", "not found"]),
        ("wrong-digest", format!("{address}/box@sha256:{zeros}"), "login", vec!["manifest unknown", "not found"]),
    ] {
        let task = run(&place, name, &container(&image, credentials));
        let reason = task["status"]["stoppedReason"].as_str().unwrap();
        assert!(reason.starts_with(&format!("CannotPullContainerError: {image}: ")), "{task:#}");
        assert!(expected.iter().any(|text| reason.contains(text)), "{reason}");
    }
    let task = run(&place, "pulled", &container(&image, "login"));
    assert_eq!(place.ok(&["logs", "task/pulled"]), "hello\n", "{task:#}");
    assert!(task["status"]["pullStartedAt"].as_str() <= task["status"]["pullStoppedAt"].as_str(), "{task:#}");
    assert!(task["status"]["pullStartedAt"].is_string());
}
