//! Several schedulers over one cluster: Steady's own, any number of them, and people's own in Rust and Python, written
//! against `Watch` and `Commit` alone. Together they never give an instance more than it has.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use steady_tests::{Place, Running, eventually, steady_binary, text};

/// Instances, and the tasks that fit on one.
const INSTANCES: usize = 6;
const FIT: usize = 4;

/// etcd, an API server, so many processes of nothing but schedulers, one of the other controllers, and hollow instances with
/// room for a few tasks each.
fn start(schedulers: usize) -> (Place, Vec<Running>) {
    let place = Place::new();
    let (etcd, url) = place.etcd("http", &[]);
    let mut running = vec![etcd, place.apiserver(&url)];
    for number in 0..schedulers {
        let command = place.command(&["controller", "--only", "scheduler"]);
        running.push(Running::start(command, &place.path(&format!("scheduler-{number}.log"))));
    }
    let others = place.command(&["controller", "--only", "service,deployment,instance,reaper"]);
    running.push(Running::start(others, &place.path("controller.log")));
    let (data, count) = (place.path("agents").display().to_string(), INSTANCES.to_string());
    let (cpu, memory) = ((FIT * 100).to_string(), (FIT * 100).to_string());
    let args = ["agent", "--name", "node", "--data-dir", &data, "--runtime", "hollow", "--instances", &count];
    let args = [&args[..], &["--cpu", &cpu, "--memory", &memory, "--resource", "GPU=1"]].concat();
    running.push(Running::start(place.command(&args), &place.path("agents.log")));
    eventually("the instances are connected", Duration::from_secs(60), || {
        let listed = place.json(&["get", "containerinstances"]);
        let all = listed["items"].as_array().cloned().unwrap_or_default();
        (all.iter().filter(|i| i["status"]["agentConnected"] == true).count() == INSTANCES).then_some(())
    });
    (place, running)
}

/// A service of tasks of which [`FIT`] fit on an instance; `more` is more of its spec.
fn declare(place: &Place, name: &str, count: usize, more: &str) {
    let manifest = format!(
        "apiVersion: steady/v1\nkind: TaskDefinition\nmetadata: {{name: {name}}}\nspec:\n  family: {name}\n  \
         containerDefinitions: [{{name: main, image: \"x:1\", cpu: 100, memory: 100, stopTimeout: 2}}]\n---\napiVersion: \
         steady/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{taskDefinition: {name}, desiredCount: {count}, \
         availabilityZoneRebalancing: DISABLED{more}}}\n"
    );
    let path = place.path(&format!("{name}.yaml"));
    std::fs::write(&path, manifest).unwrap();
    place.ok(&["apply", "-f", path.to_str().unwrap()]);
}

/// How many live tasks each instance has.
fn on_each(place: &Place) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for task in place.json(&["get", "tasks"])["items"].as_array().cloned().unwrap_or_default() {
        if let Some(instance) = task["spec"]["containerInstance"].as_str().filter(|name| !name.is_empty()) {
            *found.entry(instance.to_owned()).or_default() += 1;
        }
    }
    found
}

fn leases(place: &Place) -> Vec<Value> {
    let all = place.json(&["get", "leases"])["items"].as_array().cloned().unwrap_or_default();
    let name = |lease: &Value| lease["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    all.into_iter().filter(|lease| name(lease).starts_with("controller.scheduler.")).collect()
}

#[test]
fn three_schedulers_fill_a_cluster_to_the_brim_and_never_beyond() {
    let (place, mut running) = start(3);
    eventually("three schedulers are there", Duration::from_secs(30), || (leases(&place).len() == 3).then_some(()));
    for service in 0..8 {
        declare(&place, &format!("s{service}"), 4, "");
    }
    eventually("every instance is full", Duration::from_secs(60), || {
        let on_each = on_each(&place);
        assert!(on_each.values().all(|count| *count <= FIT), "{on_each:?}\n{}", place.story());
        (on_each.values().sum::<usize>() == INSTANCES * FIT).then_some(())
    });
    let explained = eventually("a task that waits is told why", Duration::from_secs(30), || {
        let listed = place.json(&["get", "tasks"]);
        let waits =
            listed["items"].as_array()?.iter().find(|task| task["spec"]["containerInstance"].is_null())?.clone();
        let message = waits["status"]["conditions"][0]["message"].as_str()?;
        assert!(message.starts_with("6 instances: insufficient memory"), "{message}");
        Some(place.ok(&["explain", waits["metadata"]["name"].as_str()?]))
    });
    assert!(explained.contains("0 instances take it"), "{explained}");
    assert!(explained.contains("needs 100 MiB, 0 are free"), "{explained}");
    // One of the schedulers goes; what it would have placed others place.
    running[2].kill();
    for service in 4..8 {
        place.ok(&["delete", &format!("service/s{service}")]);
    }
    for service in 0..4 {
        place.wait_steady(&format!("service/s{service}"));
    }
    let wide = place.ok(&["get", "clusters", "-o", "wide"]);
    assert!(wide.contains("s0:1=8"), "24 fit, 16 run: {wide}");
}

#[test]
fn a_task_of_a_higher_priority_takes_the_room_of_those_that_may_be_stopped() {
    let (place, _running) = start(1);
    declare(&place, "batch", INSTANCES * FIT, ", preemptible: true, priority: -10");
    place.wait_steady("service/batch");
    declare(&place, "web", 5, "");
    place.wait_steady("service/web");
    let listed = place.json(&["get", "tasks", "--all"]);
    let stopped: Vec<String> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|task| task["status"]["stopCode"] == "SpotInterruption")
        .map(|task| task["status"]["stoppedReason"].as_str().unwrap().to_owned())
        .collect();
    let reason = "Task preempted: service:web of priority 0 needs its room (its own priority is -10)";
    assert_eq!(stopped, vec![reason; 5], "{}", place.story());
    let on_each = on_each(&place);
    assert!(on_each.values().all(|count| *count <= FIT), "{on_each:?}");
}

/// The example in Rust, built with the product.
fn first_fit() -> Command {
    let binary = steady_binary().with_file_name("first-fit");
    assert!(binary.exists(), "{} is not there: run `cargo build -p steady-example-scheduler` first", binary.display());
    Command::new(binary)
}

/// The example in Python, by a Python that has what it needs.
fn most_memory() -> Command {
    let can = |python: &&str| {
        let imports = Command::new(python).args(["-c", "import grpc, google.protobuf"]).output();
        imports.is_ok_and(|output| output.status.success())
    };
    let python = ["python3", "/usr/bin/python3"].into_iter().find(can);
    let python = python.expect("Python has no grpc: are python3-grpcio and python3-protobuf installed?");
    let protoc =
        Command::new("protoc").arg("--version").output().expect("are protobuf-compiler and libprotobuf-dev installed?");
    assert!(protoc.status.success(), "{}", text(&protoc));
    let mut command = Command::new(python);
    command.arg(steady_tests::root().join("examples/scheduler-python/scheduler.py"));
    command
}

#[test]
fn people_s_own_schedulers_place_beside_ours() {
    let (place, mut running) = start(2);
    let mut rust = first_fit();
    rust.arg(format!("http://{}", place.address));
    running.push(Running::start(rust, &place.path("first-fit.log")));
    let mut python = most_memory();
    python.arg(&place.address);
    running.push(Running::start(python, &place.path("most-memory.log")));
    declare(&place, "ours", 8, "");
    declare(&place, "rust", 7, ", schedulerName: first-fit");
    declare(&place, "python", 7, ", schedulerName: most-memory");
    for service in ["ours", "rust", "python"] {
        place.wait_steady(&format!("service/{service}"));
    }
    let on_each = on_each(&place);
    assert!(on_each.values().all(|count| *count <= FIT), "{on_each:?}\n{}", place.story());
    for log in ["first-fit.log", "most-memory.log"] {
        let said = std::fs::read_to_string(place.path(log)).unwrap();
        assert!(said.contains("placed on node-"), "{log}: {said}");
    }
    // Nobody places what names a scheduler that is not there, and it is said whose it is.
    declare(&place, "nobody", 1, ", schedulerName: elsewhere");
    let task = eventually("a task waits", Duration::from_secs(30), || {
        let listed = place.json(&["get", "tasks"]);
        let waits = listed["items"].as_array()?.iter().find(|task| task["spec"]["service"] == "nobody")?.clone();
        Some(waits["metadata"]["name"].as_str()?.to_owned())
    });
    let explained = place.ok(&["explain", &task]);
    assert!(explained.contains("the scheduler `elsewhere` places it"), "{explained}");
    eventually("it is said why it waits", Duration::from_secs(30), || {
        place.ok(&["describe", &format!("task/{task}")]).contains("waits for the scheduler `elsewhere`").then_some(())
    });
}
