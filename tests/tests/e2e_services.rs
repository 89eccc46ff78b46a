//! DAEMON services, re-balancing, task protection and draining in batches, on hollow instances.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use steady_tests::{Place, Running, eventually, ids, text};

const DAEMON: &str = "apiVersion: steady/v1\nkind: TaskDefinition\nmetadata: {name: log}\nspec:\n  containerDefinitions: \
                      [{name: main, image: \"x:1\", memory: 16, stopTimeout: 2}]\n---\napiVersion: steady/v1\nkind: \
                      Service\nmetadata: {name: log}\nspec: {taskDefinition: log, schedulingStrategy: DAEMON}\n";

/// How many RUNNING tasks of a service there are on each instance.
fn spread(place: &Place, service: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for task in place.running().iter().filter(|task| task["spec"]["service"] == service) {
        *found.entry(task["spec"]["containerInstance"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    found
}

#[test]
fn daemons_are_everywhere_tasks_move_to_who_joins_and_protected_ones_stay() {
    let place = Place::new();
    let _up = place.up_hollow(2);
    let daemon = place.path("log.yaml").display().to_string();
    std::fs::write(&daemon, DAEMON).unwrap();
    place.ok(&["apply", "-f", &daemon]);
    place.declare("web", 6);
    place.wait_steady("service/log");
    place.wait_steady("service/web");
    assert_eq!(spread(&place, "log").len(), 2, "{}", place.story());
    let scaled = place.steady(&["scale", "service/log", "3"]);
    assert!(text(&scaled).contains("one task on each instance"), "{}", text(&scaled));

    let data = place.path("extra").display().to_string();
    let agent = ["agent", "--name", "extra", "--data-dir", &data, "--runtime", "hollow"];
    let _extra = Running::start(place.command(&agent), &place.path("extra.log"));
    eventually("the daemon is on three instances", Duration::from_secs(30), || {
        (spread(&place, "log").values().copied().collect::<Vec<_>>() == [1, 1, 1]).then_some(())
    });
    eventually("the service is even", Duration::from_secs(90), || {
        (spread(&place, "web").values().copied().collect::<Vec<_>>() == [2, 2, 2]).then_some(())
    });
    place.wait_steady("service/web");

    // What is protected is not chosen.
    let web: Vec<Value> = place.running().into_iter().filter(|task| task["spec"]["service"] == "web").collect();
    let kept = ids(&web)[3].clone();
    let told = place.ok(&["protect", &format!("task/{kept}"), "--for", "30m"]);
    assert!(told.contains("is protected for 30m"), "{told}");
    place.ok(&["scale", "service/web", "1"]);
    place.wait_steady("service/web");
    let left: Vec<Value> = place.running().into_iter().filter(|task| task["spec"]["service"] == "web").collect();
    assert_eq!(ids(&left), std::slice::from_ref(&kept), "{}", place.story());
    let wrong = place.steady(&["protect", &format!("task/{kept}"), "--for", "72h"]);
    assert!(text(&wrong).contains("expected 1 to 2880 minutes"), "{}", text(&wrong));
    place.ok(&["protect", &format!("task/{kept}"), "--off"]);

    // A pool is emptied one after the other, and daemons leave last.
    place.ok(&["scale", "service/web", "6", "--wait"]);
    let instances: Vec<String> = spread(&place, "log").into_keys().collect();
    let drained = place.ok(&["drain", &instances[0], &instances[1], "--batch", "1"]);
    let order: Vec<&str> = drained.lines().filter(|line| line.starts_with("containerinstance/")).collect();
    let about: Vec<bool> = order.iter().map(|line| line.contains("no task of a service")).collect();
    assert_eq!(about, [false, true, false, true], "{drained}");
    place.wait_steady("service/web");
    assert_eq!(spread(&place, "web"), BTreeMap::from([(instances[2].clone(), 6)]));
    assert_eq!(spread(&place, "log"), BTreeMap::from([(instances[2].clone(), 1)]));
}

#[test]
fn task_sets_are_deployed_by_somebody_else() {
    let place = Place::new();
    let _up = place.up_hollow(2);
    place.declare("one", 0);
    place.declare("two", 0);
    let apply = |text: &str| {
        let path = place.path("sets.yaml").display().to_string();
        std::fs::write(&path, text).unwrap();
        place.steady(&["apply", "-f", &path])
    };
    let service = |primary: &str| {
        format!(
            "apiVersion: steady/v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{desiredCount: 4, deploymentController: \
             {{type: EXTERNAL}}, primaryTaskSet: {primary}}}\n---\n"
        )
    };
    let set = |name: &str, definition: &str, percent: u32| {
        format!(
            "apiVersion: steady/v1\nkind: TaskSet\nmetadata: {{name: {name}}}\nspec: {{service: web, taskDefinition: \
             {definition}, scale: {{value: {percent}}}}}\n---\n"
        )
    };
    let wrong = apply(&set("blue", "one", 100));
    assert!(text(&wrong).contains("there is no service `web`"), "{}", text(&wrong));
    let both = apply(&format!("{}{}{}", service("blue"), set("blue", "one", 100), set("green", "two", 25)));
    assert!(both.status.success(), "{}", text(&both));
    place.wait_steady("service/web");
    let running = |definition: &str| {
        place.running().iter().filter(|t| t["spec"]["taskDefinition"].as_str().unwrap().starts_with(definition)).count()
    };
    assert_eq!((running("one:"), running("two:")), (4, 1), "{}", place.story());
    let changed = apply(&set("green", "one", 25));
    assert!(text(&changed).contains("only its scale can change"), "{}", text(&changed));
    assert!(apply(&format!("{}{}", service("green"), set("green", "two", 100))).status.success());
    place.wait_steady("service/web");
    place.ok(&["delete", "taskset/blue"]);
    eventually("the old set's tasks are gone", Duration::from_secs(30), || {
        ((running("one:"), running("two:")) == (0, 4)).then_some(())
    });
    let listed = place.ok(&["get", "tasksets"]);
    assert!(listed.contains("PRIMARY") && listed.contains("STEADY_STATE") && listed.contains("100%"), "{listed}");
    place.ok(&["delete", "service/web"]);
    eventually("everything is gone", Duration::from_secs(60), || {
        (place.running().is_empty() && !place.ok(&["get", "tasksets"]).contains("green")).then_some(())
    });
}
