//! `steady up` as a new user meets it, on plain processes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use steady_tests::{Place, eventually, http_get, ids, is_alive, pids, text};

const HELLO: &str = "examples/manifests/hello.yaml";

#[test]
fn hello_answers_is_replaced_when_it_dies_scales_and_is_deleted() {
    let place = Place::new();
    let mut up = place.up(&["--runtime", "process", HELLO]);
    eventually("the service is there", Duration::from_secs(30), || {
        place.steady(&["get", "service/hello"]).status.success().then_some(())
    });
    place.wait_steady("service/hello");
    let tasks = place.running();
    assert_eq!(tasks.len(), 2, "{}", place.story());
    for task in &tasks {
        let binding = &task["status"]["containers"][0]["networkBindings"][0];
        let address = format!("{}:{}", binding["bindIp"].as_str().unwrap(), binding["hostPort"]);
        // It runs, which is a moment before it listens.
        let answer = eventually("it answers", Duration::from_secs(10), || http_get(&address));
        assert!(answer.contains(task["metadata"]["name"].as_str().unwrap()), "{answer}");
    }
    assert!(place.ok(&["apply", "-f", HELLO]).lines().all(|line| line.ends_with("unchanged")));

    let killed = pids(&tasks)[0];
    kill_process(Pid::from_raw(killed).unwrap(), Signal::KILL).unwrap();
    eventually("a new task", Duration::from_secs(20), || {
        let now = place.running();
        (now.len() == 2 && !pids(&now).contains(&killed)).then_some(())
    });
    place.wait_steady("service/hello");

    for count in ["5", "1"] {
        place.ok(&["scale", "service/hello", count]);
        place.wait_steady("service/hello");
        assert_eq!(place.running().len().to_string(), count, "{}", place.story());
    }
    let last = pids(&place.running());
    place.ok(&["delete", "service/hello"]);
    assert_eq!(place.json(&["get", "tasks"])["items"], serde_json::json!([]));
    eventually("no process is left", Duration::from_secs(5), || (!is_alive(last[0])).then_some(()));
    up.signal(Signal::INT);
    assert_eq!(up.wait(), Some(0), "{}", place.story());
}

#[test]
fn after_kill_9_the_next_up_adopts_the_tasks_and_ctrl_c_ends_them() {
    let place = Place::new();
    let mut up = place.up(&["--runtime", "process", HELLO]);
    eventually("the service is there", Duration::from_secs(30), || {
        place.steady(&["get", "service/hello"]).status.success().then_some(())
    });
    place.wait_steady("service/hello");
    let before = place.running();
    let etcd = etcd_of(up.pid());
    assert_eq!(etcd.len(), 1);
    up.kill();
    eventually("etcd ends with its parent", Duration::from_secs(10), || {
        etcd.iter().all(|pid| !is_alive(*pid)).then_some(())
    });
    assert!(pids(&before).iter().all(|pid| is_alive(*pid)), "tasks go on without the control plane");

    let mut up = place.up(&["--runtime", "process"]);
    eventually("the instance is connected", Duration::from_secs(30), || {
        place.steady(&["wait", "service/hello", "--for", "steady", "--timeout", "20s"]).status.success().then_some(())
    });
    std::thread::sleep(Duration::from_secs(2));
    let after = place.running();
    assert_eq!((ids(&before), pids(&before)), (ids(&after), pids(&after)), "{}", place.story());

    up.signal(Signal::INT);
    assert_eq!(up.wait(), Some(0), "{}", place.story());
    assert!(pids(&after).iter().all(|pid| !is_alive(*pid)), "Ctrl-C leaves nothing behind");

    let mut up = place.up(&["--runtime", "process"]);
    eventually("it carries on", Duration::from_secs(60), || (place.running().len() == 2).then_some(()));
    assert!(ids(&place.running()).iter().all(|id| !ids(&after).contains(id)), "a task never starts again");
    up.signal(Signal::INT);
    up.wait();
}

#[test]
fn many_hollow_tasks_converge_and_go() {
    let place = Place::new();
    let _up = place.up(&["--runtime", "hollow", "--instances", "20"]);
    let manifest = std::fs::read_to_string(steady_tests::root().join(HELLO)).unwrap();
    let many = place.path("many.yaml");
    std::fs::write(&many, manifest.replace("desiredCount: 2", "desiredCount: 1000")).unwrap();
    place.ok(&["apply", "-f", many.to_str().unwrap()]);
    place.wait_steady("service/hello");
    assert_eq!(place.running().len(), 1000);
    place.ok(&["scale", "service/hello", "0"]);
    place.wait_steady("service/hello");
    assert_eq!(place.running().len(), 0);
}

#[test]
fn a_service_that_does_not_fit_says_how_much_is_missing_and_each_transition_is_shown_once() {
    let place = Place::new();
    let _up = place.up(&["--runtime", "hollow"]);
    let manifest = std::fs::read_to_string(steady_tests::root().join(HELLO)).unwrap();
    let huge = place.path("huge.yaml");
    std::fs::write(&huge, manifest.replace("memory: 64", "memory: 9000000")).unwrap();
    place.ok(&["apply", "-f", huge.to_str().unwrap()]);
    let why = eventually("it says why", Duration::from_secs(20), || {
        let said = place.ok(&["describe", "service/hello"]);
        said.contains("insufficient memory").then_some(said)
    });
    assert!(why.contains("MiB missing"), "{why}");
    std::thread::sleep(Duration::from_secs(3));
    let told = place.ok(&["events"]).matches("unable to place").count();
    assert_eq!(told, 1, "it is said once: {}", place.story());
    let late = place.steady(&["wait", "service/hello", "--for", "steady", "--timeout", "1s"]);
    assert_eq!(late.status.code(), Some(3), "{}", text(&late));
}

/// The etcd that is a child of a process.
fn etcd_of(parent: u32) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after = stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned()).unwrap_or_default();
        stat.contains("(etcd-") && after.split(' ').nth(1).is_some_and(|ppid| ppid == parent.to_string())
    })
    .collect()
}
