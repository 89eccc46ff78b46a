//! Instances that come and go as tasks need them: agents on this machine, made by `steady pool` or by a program of the user's.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use steady_tests::load::Load;
use steady_tests::{Place, Running, eventually, free_port, http_get, root, steady_binary};

/// Instances of a provider's list in a state.
fn instances(place: &Place, provider: &str, state: &str) -> Vec<String> {
    let found = place.json(&["get", &format!("capacityprovider/{provider}")]);
    let all = found["status"]["instances"].as_array().cloned().unwrap_or_default();
    let of = all.into_iter().filter(|instance| instance["state"] == state);
    of.map(|instance| instance["name"].as_str().unwrap().to_owned()).collect()
}

fn desired(place: &Place, service: &str) -> i64 {
    place.json(&["get", &format!("service/{service}")])["spec"]["desiredCount"].as_i64().unwrap_or(0)
}

/// Ends agents that a pool has left on this machine.
struct Left<'a>(&'a Place);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        for pid in self.0.processes(|line| line.contains("--capacity-provider")) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
}

fn provider(name: &str, max: i32, version: &str) -> String {
    format!(
        "apiVersion: steady/v1
kind: CapacityProvider
metadata: {{name: {name}}}
spec:
  autoScalingGroupProvider: {{managedScaling: {{instanceWarmupPeriod: 20, scaleInEvaluationSeconds: 10}}}}
  pool:
    minSize: 0
    maxSize: {max}
    availabilityZones: [a, b]
    template: {{cpu: 512, memory: 2048, runtime: process, version: \"{version}\"}}
    refresh: {{failureThreshold: 1}}
---
"
    )
}

#[test]
fn load_brings_tasks_and_those_bring_instances_and_both_go_without_a_failed_request() {
    let place = Place::new();
    let _control_plane = place.control_plane();
    let data = place.path("pool").display().to_string();
    let pool = || {
        let args = ["pool", "--data-dir", &data, "--address", "127.0.0.1"];
        Running::start(place.command(&args), &place.path("pool.log"))
    };
    let left = Left(&place);
    let mut first = pool();
    let lb_data = place.path("lb").display().to_string();
    let args = ["lb", "--data-dir", &lb_data, "--listen-address", "127.0.0.1"];
    let _lb = Running::start(place.command(&args), &place.path("lb.log"));
    let port = free_port();
    // A task fills an instance.
    let manifest = provider("edge", 4, "1")
        + &format!(
            "apiVersion: steady/v1
kind: TargetGroup
metadata: {{name: web}}
spec: {{healthCheckIntervalSeconds: 1, healthCheckTimeoutSeconds: 2, deregistrationDelaySeconds: 20}}
---
apiVersion: steady/v1
kind: Listener
metadata: {{name: web}}
spec: {{port: {port}, defaultActions: [{{type: forward, targetGroupArn: web}}]}}
---
apiVersion: steady/v1
kind: TaskDefinition
metadata: {{name: web}}
spec:
  containerDefinitions:
    - {{name: web, image: \"steady:self\", command: [steady, hello], cpu: 400, memory: 256, portMappings: [{{containerPort: 8080}}]}}
---
apiVersion: steady/v1
kind: Service
metadata: {{name: web}}
spec:
  taskDefinition: web
  loadBalancers: [{{targetGroupArn: web, containerName: web, containerPort: 8080}}]
  capacityProviderStrategy: [{{capacityProvider: edge, weight: 1}}]
---
apiVersion: steady/v1
kind: ScalableTarget
metadata: {{name: web}}
spec: {{minCapacity: 2, maxCapacity: 4}}
---
apiVersion: steady/v1
kind: ScalingPolicy
metadata: {{name: web}}
spec:
  resourceId: service/web
  targetTrackingScalingPolicyConfiguration:
    targetValue: 6000
    predefinedMetricSpecification: {{predefinedMetricType: ALBRequestCountPerTarget}}
    scaleOutCooldown: 10
    scaleInCooldown: 10
    scaleInEvaluationSeconds: 30
"
        );
    place.apply("web", &manifest);
    place.wait_steady("service/web");
    assert_eq!(instances(&place, "edge", "IN_SERVICE").len(), 2, "from nothing, as many as tasks need");
    let address = format!("127.0.0.1:{port}");
    eventually("requests are answered", Duration::from_secs(20), || {
        http_get(&address).filter(|answer| answer.starts_with("HTTP/1.1 200"))
    });

    // A client that asks for little, all the time: none of its requests fails, whatever comes and goes.
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let client = std::thread::spawn({
        let (stop, asked, address) = (Arc::clone(&stop), Arc::clone(&asked), address.clone());
        move || {
            while !stop.load(Ordering::Relaxed) {
                let answer = http_get(&address).unwrap_or_default();
                assert!(answer.starts_with("HTTP/1.1 200"), "a request failed: {answer}");
                asked.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(30));
            }
        }
    });
    let load = Load::start(&format!("http://{address}/"));
    eventually("there are twice as many tasks", Duration::from_secs(90), || {
        (desired(&place, "web") == 4).then_some(())
    });
    eventually("they have brought other instances", Duration::from_secs(60), || {
        (instances(&place, "edge", "IN_SERVICE").len() == 4).then_some(())
    });
    place.wait_steady("service/web");
    load.end("no request fails while tasks and instances come");

    // Whoever makes instances may die: they go on, and are found again.
    let before = instances(&place, "edge", "IN_SERVICE");
    first.kill();
    let _second = pool();
    eventually("tasks are as few as before", Duration::from_secs(120), || (desired(&place, "web") == 2).then_some(()));
    let after = eventually("so are instances", Duration::from_secs(120), || {
        let there = instances(&place, "edge", "IN_SERVICE");
        let listed: Value = place.json(&["get", "containerinstances"]);
        let known = listed["items"].as_array().map_or(1, Vec::len);
        (there.len() == 2 && known == 2 && instances(&place, "edge", "TERMINATING").is_empty()).then_some(there)
    });
    assert!(after.iter().all(|name| before.contains(name)), "those that are left were there before");
    place.wait_steady("service/web");
    let said = place.ok(&["describe", "capacityprovider/edge"]);
    for part in ["to 4 instances", "to 2 instances", "2 needed of 2 in service: 100 %"] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    stop.store(true, Ordering::Relaxed);
    client.join().unwrap();
    assert!(asked.load(Ordering::Relaxed) > 500);

    // A provider in use stays; one that is not takes its instances with it.
    assert!(place.steady(&["delete", "capacityprovider/edge"]).status.code() != Some(0));
    place.ok(&["delete", "service/web"]);
    place.ok(&["delete", "capacityprovider/edge", "--timeout", "60s"]);
    let listed = place.json(&["get", "containerinstances"]);
    assert_eq!(listed["items"].as_array().map_or(0, Vec::len), 0);
    drop(left);
}

/// Tasks of each instance that has any.
fn tasks_by_instance(place: &Place) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for task in place.running() {
        *found.entry(task["spec"]["containerInstance"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    found
}

#[test]
fn instances_that_are_replaced_in_halves_have_their_share_of_the_tasks_in_the_end() {
    let place = Place::new();
    let _control_plane = place.control_plane();
    let left = Left(&place);
    let data = place.path("pool").display().to_string();
    let args = ["pool", "--data-dir", &data, "--address", "127.0.0.1"];
    let _pool = Running::start(place.command(&args), &place.path("pool.log"));
    let manifest = |version: &str| {
        format!(
            "apiVersion: steady/v1
kind: CapacityProvider
metadata: {{name: halves}}
spec:
  autoScalingGroupProvider: {{managedScaling: {{status: DISABLED, instanceWarmupPeriod: 20}}}}
  pool:
    minSize: 4
    maxSize: 4
    template: {{cpu: 1024, memory: 2048, runtime: process, version: \"{version}\"}}
    refresh: {{batchSize: 2, minHealthyPercentage: 50}}
---
apiVersion: steady/v1
kind: TaskDefinition
metadata: {{name: worker}}
spec:
  containerDefinitions: [{{name: main, image: none, cpu: 100, memory: 64, command: [sleep, \"1000\"], stopTimeout: 2}}]
---
apiVersion: steady/v1
kind: Service
metadata: {{name: worker}}
spec:
  taskDefinition: worker
  desiredCount: 8
  capacityProviderStrategy: [{{capacityProvider: halves, weight: 1}}]
"
        )
    };
    place.apply("worker", &manifest("1"));
    eventually("there are four instances", Duration::from_secs(60), || {
        (instances(&place, "halves", "IN_SERVICE").len() == 4).then_some(())
    });
    place.wait_steady("service/worker");
    let old = instances(&place, "halves", "IN_SERVICE");

    place.apply("worker", &manifest("2"));
    eventually("every instance is another one", Duration::from_secs(150), || {
        let there = instances(&place, "halves", "IN_SERVICE");
        assert!(there.len() >= 2, "half of them are there all the time: {there:?}");
        assert!(instances(&place, "halves", "DRAINING").len() <= 2, "two at a time");
        let gone = ["PENDING", "DRAINING", "TERMINATING"].iter().all(|s| instances(&place, "halves", s).is_empty());
        (gone && there.len() == 4 && there.iter().all(|name| !old.contains(name))).then_some(())
    });
    // Those that came last came when every task had a place already.
    eventually("each instance has its share", Duration::from_secs(120), || {
        let by = tasks_by_instance(&place);
        (by.len() == 4 && by.values().all(|count| *count == 2)).then_some(())
    });
    place.wait_steady("service/worker");
    place.ok(&["delete", "service/worker"]);
    place.ok(&["delete", "capacityprovider/halves", "--timeout", "60s"]);
    drop(left);
}

#[test]
fn a_program_makes_instances_and_another_template_replaces_them_or_is_gone_back_from() {
    let place = Place::new();
    let _control_plane = place.control_plane();
    let left = Left(&place);
    let maker = place.path("maker");
    std::fs::create_dir(&maker).unwrap();
    // A program, not a script for an interpreter that somebody has to name.
    let program = place.path("maker.sh");
    let script = root().join("tests/src/maker.py").display().to_string();
    std::fs::write(&program, format!("#!/bin/sh\nexec /usr/bin/python3 {script}\n")).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let data = place.path("pool").display().to_string();
    let args = ["pool", "--capacity-provider", "cloud", "--exec", program.to_str().unwrap(), "--data-dir", &data];
    let mut command = place.command(&args);
    command.env("MAKER", &maker).env("STEADY", steady_binary());
    let _pool = Running::start(command, &place.path("pool.log"));
    let manifest = |version: &str| {
        provider("cloud", 4, version)
            + "apiVersion: steady/v1
kind: TaskDefinition
metadata: {name: worker}
spec:
  containerDefinitions: [{name: main, image: none, cpu: 400, memory: 64, command: [sleep, \"1000\"], stopTimeout: 2}]
---
apiVersion: steady/v1
kind: Service
metadata: {name: worker}
spec:
  taskDefinition: worker
  desiredCount: 2
  capacityProviderStrategy: [{capacityProvider: cloud, weight: 1}]
"
    };
    place.apply("worker", &manifest("1"));
    place.wait_steady("service/worker");
    let old = instances(&place, "cloud", "IN_SERVICE");
    assert_eq!(old.len(), 2);
    let zones: Vec<Value> = place.json(&["get", "capacityprovider/cloud"])["status"]["instances"]
        .as_array()
        .unwrap()
        .iter()
        .map(|instance| instance["availabilityZone"].clone())
        .collect();
    assert_eq!(zones, ["a", "b"]);

    place.apply("worker", &manifest("2"));
    eventually("every instance is another one", Duration::from_secs(150), || {
        let there = instances(&place, "cloud", "IN_SERVICE");
        let running = place.running().len();
        assert!(running >= 2, "the service keeps its tasks: {running}");
        let gone = ["PENDING", "DRAINING", "TERMINATING"].iter().all(|s| instances(&place, "cloud", s).is_empty());
        (gone && there.len() == 2 && there.iter().all(|name| !old.contains(name))).then_some(())
    });
    let new = instances(&place, "cloud", "IN_SERVICE");

    // What cannot be made is told, and gone back from.
    place.apply("worker", &manifest("broken"));
    eventually("the template before is gone back to", Duration::from_secs(90), || {
        let found = place.json(&["get", "capacityprovider/cloud"]);
        (!found["status"]["failedTemplate"].as_str().unwrap_or_default().is_empty()).then_some(())
    });
    let said = place.ok(&["describe", "capacityprovider/cloud"]);
    assert!(said.contains("there is no image broken") && said.contains("goes back to the template before"), "{said}");
    assert_eq!(instances(&place, "cloud", "IN_SERVICE"), new);
    place.wait_steady("service/worker");

    place.ok(&["delete", "service/worker"]);
    place.ok(&["delete", "capacityprovider/cloud", "--timeout", "60s"]);
    eventually("the program has ended every instance", Duration::from_secs(20), || {
        (std::fs::read_dir(&maker).unwrap().count() == 0).then_some(())
    });
    drop(left);
}
