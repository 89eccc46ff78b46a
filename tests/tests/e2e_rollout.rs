//! Deployments that fail and are rolled back, and `steady rollout`, on plain processes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use steady_tests::{Place, eventually, ids, text};

/// Applies the example with another command, and perhaps with a circuit breaker.
fn apply(place: &Place, command: &str, breaker: bool) -> String {
    let manifest = std::fs::read_to_string(steady_tests::root().join("examples/manifests/hello.yaml")).unwrap();
    let mut manifest = manifest.replace("[steady, hello]", command).replace("Percent: 50", "Percent: 100");
    if breaker {
        let settings = "  deploymentConfiguration:\n    deploymentCircuitBreaker: {enable: true, rollback: true}\n";
        manifest = manifest.replace("  deploymentConfiguration:\n", settings);
    }
    let path = place.path("hello.yaml");
    std::fs::write(&path, manifest).unwrap();
    place.ok(&["apply", "-f", path.to_str().unwrap()])
}

#[test]
fn a_deployment_that_fails_is_rolled_back_and_going_back_and_anew_are_commands() {
    let place = Place::new();
    let _up = place.up(&["--runtime", "process"]);
    apply(&place, "[steady, hello]", true);
    place.ok(&["rollout", "status", "service/hello"]);
    let first = place.running();

    apply(&place, "[steady, no-such-command]", true);
    let failed = place.steady(&["rollout", "status", "service/hello"]);
    let told = text(&failed);
    assert_eq!(failed.status.code(), Some(1), "{told}\n{}", place.story());
    for word in ["hello-2 failed", "tasks failed to start", "exited with 2", "rolled back to hello-1"] {
        assert!(told.contains(word), "{word}: {told}");
    }
    assert_eq!(ids(&place.running()), ids(&first), "what ran goes on\n{}", place.story());
    assert!(apply(&place, "[steady, no-such-command]", true).lines().all(|line| line.ends_with("unchanged")));
    let waited = place.steady(&["wait", "service/hello", "--for", "steady"]);
    assert!(waited.status.code() == Some(1) && text(&waited).contains("rolled back"), "{}", text(&waited));
    let history = place.ok(&["rollout", "history", "service/hello"]);
    let line = |name: &str| history.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    assert!(line("hello-2").contains("FAILED") && line("hello-1").contains("PRIMARY"), "{history}");
    let events = place.ok(&["events"]);
    assert!(events.contains("(service hello) rolling back to (deployment hello-1)."), "{events}");

    // What is mended is rolled out; undo goes back, restart replaces everything.
    apply(&place, "[steady, hello, --version-of-the-test, two]", true);
    let odd = place.steady(&["rollout", "status", "service/hello"]);
    assert_eq!(odd.status.code(), Some(1), "a wrong option fails as well: {}", text(&odd));
    apply(&place, "[steady, hello] # again", true);
    place.ok(&["rollout", "status", "service/hello"]);
    place.ok(&["rollout", "restart", "service/hello", "--wait"]);
    let anew = place.running();
    assert!(ids(&anew).iter().all(|id| !ids(&first).contains(id)), "{}", place.story());
    let nothing = place.steady(&["rollout", "stop", "service/hello"]);
    assert!(nothing.status.code() == Some(1) && text(&nothing).contains("nothing is being rolled out"));

    // Without a breaker it goes on failing, until somebody stops it.
    apply(&place, "[steady, no-such-command-either]", false);
    let late = place.steady(&["rollout", "status", "service/hello", "--timeout", "4s"]);
    assert_eq!(late.status.code(), Some(3), "{}", text(&late));
    let stopped = place.ok(&["rollout", "stop", "service/hello", "--wait"]);
    assert!(stopped.contains("goes back to hello:"), "{stopped}");
    let after = place.running();
    assert_eq!(ids(&after), ids(&anew), "{}", place.story());
}

#[test]
fn tasks_of_services_leave_an_instance_that_drains() {
    let place = Place::new();
    let _up = place.up_hollow(2);
    place.declare("web", 4);
    place.wait_steady("service/web");
    let listed = place.json(&["get", "ci"]);
    let names: Vec<&str> =
        listed["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap()).collect();
    let on = |name: &str| place.running().iter().filter(|task| task["spec"]["containerInstance"] == name).count();
    assert!(on(names[0]) > 0 && on(names[1]) > 0, "{}", place.story());
    let drained = place.ok(&["drain", names[0], "--wait"]);
    assert!(drained.contains("has no task of a service any more"), "{drained}");
    place.wait_steady("service/web");
    assert_eq!((on(names[0]), on(names[1])), (0, 4), "{}", place.story());
    let again = place.ok(&["drain", names[0]]);
    assert!(again.contains("DRAINING already"), "{again}");
    // The other one cannot be emptied: there is no other place.
    let late = place.steady(&["drain", names[1], "--wait", "--timeout", "3s"]);
    assert!(late.status.code() == Some(3) && text(&late).contains("4 tasks of services are left"), "{}", text(&late));
    place.ok(&["drain", names[0], names[1], "--cancel"]);
    eventually("its tasks come back", Duration::from_secs(60), || {
        ((on(names[0]), on(names[1])) == (2, 2)).then_some(())
    });
}
