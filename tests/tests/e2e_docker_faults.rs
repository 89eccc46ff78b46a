//! What a Docker Engine that fails does to tasks: nothing, as far as it can be helped.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use steady_tests::docker::Engine;
use steady_tests::{Place, eventually, ids, text};

const MANIFEST: &str = "
apiVersion: steady/v1
kind: TaskDefinition
metadata: {name: box}
spec:
  containerDefinitions:
    - {name: main, image: 'box:1', memory: 16, stopTimeout: 1, command: [sleep, '1000'],
       healthCheck: {command: [CMD, 'true'], interval: 5, timeout: 2, retries: 1}}
---
apiVersion: steady/v1
kind: Service
metadata: {name: box}
spec: {taskDefinition: box, desiredCount: 2}
";

/// The processes of all containers.
fn pids(engine: &Engine) -> Vec<String> {
    let names = engine.containers();
    let mut pids: Vec<String> =
        names.iter().map(|name| engine.docker(&["inspect", "-f", "{{.State.Pid}}", name]).trim().to_owned()).collect();
    pids.sort();
    pids
}

#[test]
fn an_engine_whose_restart_ends_every_task_is_refused() {
    let place = Place::new();
    let engine = Engine::start(&place);
    let mut agent = place.command(&["agent", "--runtime", "docker", "--docker-socket", &engine.socket]);
    let output = agent.arg("--data-dir").arg(place.path("agent")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("\"live-restore\": true"), "{}", text(&output));
}

#[test]
fn tasks_outlive_an_engine_that_is_killed_and_one_that_hangs() {
    let place = Place::new();
    let live = ["--live-restore"];
    let mut engine = Engine::with(&place, &live);
    engine.busybox("box:1");
    let _up = place.up(&["--runtime", "docker", "--docker-socket", &engine.socket]);
    place.apply("box", MANIFEST);
    place.wait_steady("service/box");
    let healthy = |task: &Value| task["status"]["healthStatus"] == "HEALTHY";
    eventually("both are healthy", Duration::from_secs(30), || place.running().iter().all(healthy).then_some(()));
    let (before, processes) = (ids(&place.running()), pids(&engine));

    // Killed, longer than a health check may fail.
    engine.kill();
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(ids(&place.running()), before, "{}", place.story());
    assert!(place.running().iter().all(healthy), "an engine that is away says nothing of health");
    engine.again(&place, &live);
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!((ids(&place.running()), pids(&engine)), (before.clone(), processes.clone()), "{}", place.story());

    // Frozen: it answers nothing and refuses nothing.
    engine.signal(Signal::STOP);
    place.ok(&["scale", "service/box", "3"]);
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(ids(&place.running()), before, "{}", place.story());
    engine.signal(Signal::CONT);
    place.wait_steady("service/box");
    let now = ids(&place.running());
    assert!(now.len() == 3 && before.iter().all(|id| now.contains(id)), "{}", place.story());

    // What ends while nobody looks is noticed afterwards.
    engine.kill();
    let victim = processes[0].parse().ok().and_then(rustix::process::Pid::from_raw).unwrap();
    rustix::process::kill_process(victim, Signal::KILL).unwrap();
    engine.again(&place, &live);
    eventually("another task instead", Duration::from_secs(40), || {
        let now = place.running();
        (now.len() == 3 && before.iter().filter(|id| ids(&now).contains(id)).count() == 1).then_some(())
    });
}
