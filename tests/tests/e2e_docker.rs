//! The same on a real Docker Engine: a private one, with its own data, socket and containers.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::process::Signal;
use steady_tests::docker::{Engine, registry};
use steady_tests::{Place, eventually, http_get, ids};

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

#[test]
fn a_tag_that_moves_changes_no_deployment_until_the_next_one() {
    let place = Place::new();
    let engine = Engine::start(&place);
    let (_registry, address) = registry(&place, None);
    let image = format!("{address}/box:v1");
    let push = |from: &str| {
        engine.docker(&["tag", from, &image]);
        engine.docker(&["push", &image]);
        engine.docker(&["rmi", &image]);
    };
    engine.busybox("first:1");
    let made = engine.docker(&["create", "first:1", "true"]).trim().to_owned();
    engine.docker(&["commit", "--change", "ENV SECOND=yes", &made, "second:1"]);
    engine.docker(&["rm", &made]);
    push("first:1");
    let _up = place.up(&["--runtime", "docker", "--docker-socket", &engine.socket]);
    let apply = |count: u32, version: u32| {
        let manifest = format!(
            "apiVersion: steady/v1\nkind: TaskDefinition\nmetadata: {{name: box}}\nspec:\n  containerDefinitions: [{{name: \
             main, image: \"{image}\", memory: 16, stopTimeout: 1, command: [sleep, \"1000\"], environment: [{{name: V, \
             value: \"{version}\"}}]}}]\n---\napiVersion: steady/v1\nkind: Service\nmetadata: {{name: box}}\nspec: \
             {{taskDefinition: box, desiredCount: {count}}}\n"
        );
        let path = place.path("box.yaml");
        std::fs::write(&path, manifest).unwrap();
        place.ok(&["apply", "-f", path.to_str().unwrap()]);
        place.wait_steady("service/box");
    };
    let digests = || {
        let digest =
            |task: &serde_json::Value| task["status"]["containers"][0]["imageDigest"].as_str().unwrap().to_owned();
        place.running().iter().map(digest).collect::<BTreeSet<String>>()
    };
    apply(1, 1);
    let first = digests();
    assert!(first.iter().all(|digest| digest.starts_with("sha256:")), "{first:?}");
    push("second:1");
    apply(2, 1);
    assert_eq!((place.running().len(), digests()), (2, first.clone()), "{}", place.story());
    apply(2, 2);
    let second = digests();
    assert!(second.len() == 1 && second != first, "{first:?} {second:?}");
}

#[test]
fn volumes_go_with_their_task_or_stay_for_the_next_one() {
    let place = Place::new();
    let engine = Engine::start(&place);
    engine.busybox("box:1");
    let _up = place.up(&["--runtime", "docker", "--docker-socket", &engine.socket]);
    let run = |name: &str, kept: &str, script: &str| {
        let manifest = format!(
            "apiVersion: steady/v1\nkind: TaskDefinition\nmetadata: {{name: {name}}}\nspec:\n  volumes:\n    - {{name: own, dockerVolumeConfiguration: \
             {{driverOpts: {{type: tmpfs, device: tmpfs, o: size=1m}}, labels: {{team: a}}}}}}\n    - {{name: kept, \
             dockerVolumeConfiguration: {kept}}}\n  containerDefinitions: [{{name: main, image: 'box:1', memory: 16, \
             command: [sh, -c, '{script}'], mountPoints: [{{sourceVolume: kept, containerPath: /kept}}, {{sourceVolume: own, \
             containerPath: /own}}]}}]\n---\napiVersion: steady/v1\nkind: Task\nmetadata: {{name: {name}}}\nspec: \
             {{taskDefinition: {name}}}\n"
        );
        place.apply(name, &manifest);
        place.ok(&["wait", &format!("task/{name}"), "--for", "stopped", "--timeout", "60s"]);
        place.json(&["get", &format!("task/{name}")])["status"]["stoppedReason"].as_str().unwrap().to_owned()
    };
    let missing = run("missing", "{scope: shared}", "true");
    assert!(missing.starts_with("CannotCreateVolumeError: there is no volume `kept`"), "{missing}");
    let made = "{scope: shared, autoprovision: true}";
    run("first", made, "echo left > /kept/it; cat /proc/mounts");
    assert!(place.ok(&["logs", "task/first"]).contains("/own tmpfs"), "{}", place.story());
    run("second", made, "cat /kept/it");
    assert_eq!(place.ok(&["logs", "task/second"]), "left\n");
    eventually("only what is shared is left", Duration::from_secs(20), || {
        (engine.docker(&["volume", "ls", "-q"]).trim() == "kept").then_some(())
    });
}

#[test]
fn settings_of_a_container_reach_the_engine() {
    let place = Place::new();
    let engine = Engine::start(&place);
    engine.busybox("box:1");
    let manifest = place.path("settings.yaml").display().to_string();
    let text = r#"
apiVersion: steady/v1
kind: TaskDefinition
metadata: {name: settings}
spec:
  volumes: [{name: shared}]
  containerDefinitions:
    - name: web
      image: "box:1"
      memory: 16
      stopTimeout: 1
      command: [sh, -c, "cat /proc/sys/net/core/somaxconn /etc/hosts /etc/resolv.conf /proc/mounts /proc/self/status;
        touch /data/x || echo is read only; echo done; sleep 1000"]
      links: ["store:db"]
      volumesFrom: [{sourceContainer: store, readOnly: true}]
      systemControls: [{namespace: net.core.somaxconn, value: "77"}]
      dnsSearchDomains: [prod.local]
      dockerSecurityOptions: [no-new-privileges]
      logConfiguration: {logDriver: local, options: {max-size: 1m}}
      linuxParameters:
        capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}
        tmpfs: [{containerPath: /scratch, size: 8, mountOptions: [noexec]}]
        sharedMemorySize: 16
    - name: store
      image: "box:1"
      memory: 16
      stopTimeout: 1
      command: [sleep, "1000"]
      mountPoints: [{sourceVolume: shared, containerPath: /data}]
---
apiVersion: steady/v1
kind: Service
metadata: {name: settings}
spec: {taskDefinition: settings}
---
apiVersion: steady/v1
kind: TaskDefinition
metadata: {name: odd}
spec:
  containerDefinitions: [{name: a, image: "box:1", memory: 16, logConfiguration: {logDriver: nosuch}}]
---
apiVersion: steady/v1
kind: Service
metadata: {name: odd}
spec: {taskDefinition: odd}
"#;
    std::fs::write(&manifest, text).unwrap();
    let _up = place.up(&["--runtime", "docker", "--docker-socket", &engine.socket, &manifest]);
    service(&place, "service/settings");
    let output = eventually("all is said", Duration::from_secs(20), || {
        let said = place.ok(&["logs", "service/settings"]);
        said.contains("done").then_some(said)
    });
    // CapEff of NET_BIND_SERVICE alone.
    for expected in
        ["77", "db", "search prod.local", "/scratch tmpfs", "NoNewPrivs:\t1", "CapEff:\t0000000000000400", "read only"]
    {
        assert!(output.contains(expected), "{expected}: {output}");
    }
    assert!(output.contains("size=16384k"), "/dev/shm: {output}");
    eventually("nobody has the driver", Duration::from_secs(20), || {
        let events = place.ok(&["events", "service/odd"]);
        events.contains("com.amazonaws.ecs.capability.logging-driver.nosuch").then_some(())
    });
}
