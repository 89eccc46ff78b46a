//! Blue/green and canary deployments with hooks, pauses and alarms, on plain processes.
#![allow(clippy::unwrap_used, clippy::float_cmp, missing_docs)]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;
use steady_tests::{Place, eventually, ids, text};

/// A hook: gives each question to the test, and answers what the test says. A question may be asked again when it was answered
/// already; then it gets the same answer.
struct Hook {
    address: String,
    asked: mpsc::Receiver<Value>,
    answers: mpsc::Sender<&'static str>,
}

impl Hook {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (ask, asked) = mpsc::channel();
        let (answers, answer) = mpsc::channel::<&'static str>();
        std::thread::spawn(move || {
            let mut given: BTreeMap<String, &'static str> = BTreeMap::new();
            for stream in listener.incoming() {
                let mut reader = BufReader::new(stream.unwrap());
                let mut length = 0;
                loop {
                    let mut line = String::new();
                    if reader.read_line(&mut line).unwrap() == 0 || line == "\r\n" {
                        break;
                    }
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                let question: Value = serde_json::from_slice(&body).unwrap();
                let id = question["executionId"].as_str().unwrap().to_owned();
                let said = if let Some(said) = given.get(&id) {
                    said
                } else {
                    let Ok(()) = ask.send(question) else { return };
                    let Ok(said) = answer.recv() else { return };
                    if !said.contains("IN_PROGRESS") {
                        given.insert(id, said);
                    }
                    said
                };
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", said.len());
                let _ = reader.get_mut().write_all(format!("{head}{said}").as_bytes());
            }
        });
        Hook { address, asked, answers }
    }

    /// The next question, which is answered so.
    fn answer(&self, said: &'static str) -> Value {
        let asked = self.asked.recv_timeout(Duration::from_secs(60)).unwrap();
        self.answers.send(said).unwrap();
        asked
    }
}

fn apply(place: &Place, version: u32, settings: &str) {
    let manifest = format!(
        "apiVersion: steady/v1\nkind: TaskDefinition\nmetadata: {{name: web}}\nspec:\n  containerDefinitions: [{{name: \
         main, image: \"x:{version}\", memory: 16, stopTimeout: 2}}]\n---\napiVersion: steady/v1\nkind: \
         Service\nmetadata: {{name: web}}\nspec:\n  taskDefinition: web\n  desiredCount: 3\n  \
         deploymentConfiguration: {settings}\n"
    );
    let path = place.path("web.yaml");
    std::fs::write(&path, manifest).unwrap();
    place.ok(&["apply", "-f", path.to_str().unwrap()]);
}

/// Role, rollout state and share of the production traffic of a deployment.
fn deployment(place: &Place, name: &str) -> (String, String, f64) {
    let found = place.json(&["get", "deployment", name]);
    let word = |field: &str| found["status"][field].as_str().unwrap_or_default().to_owned();
    (word("role"), word("rolloutState"), found["spec"]["productionTrafficWeight"].as_f64().unwrap_or(-1.0))
}

/// Name of the deployment in force.
fn primary(place: &Place) -> String {
    place.json(&["get", "service", "web"])["status"]["primaryDeployment"].as_str().unwrap().to_owned()
}

#[test]
fn a_blue_green_deployment_asks_its_hook_pauses_and_is_given_up_by_an_alarm_or_completed() {
    let place = Place::new();
    let _up = place.up_hollow(2);
    let hook = Hook::new();
    let alarm = place.path("alarm.yaml").display().to_string();
    std::fs::write(&alarm, "{apiVersion: steady/v1, kind: Alarm, metadata: {name: errors}}").unwrap();
    place.ok(&["apply", "-f", &alarm]);
    apply(&place, 1, "{strategy: BLUE_GREEN, bakeTimeInMinutes: 0}");
    place.wait_steady("service/web");
    let blue = ids(&place.running());
    let hooks = format!(
        "[{{type: HTTP, hookTarget: \"http://{}/ask\", lifecycleStages: [PRE_SCALE_UP], hookDetails: {{team: a}}}}, \
         {{type: PAUSE, lifecycleStages: [POST_PRODUCTION_TRAFFIC_SHIFT]}}]",
        hook.address
    );
    let settings = format!(
        "{{strategy: BLUE_GREEN, bakeTimeInMinutes: 0, alarms: {{alarmNames: [errors], enable: true, rollback: true}}, \
         lifecycleHooks: {hooks}}}"
    );
    apply(&place, 2, &settings);
    let later = hook.answer("{\"hookStatus\": \"IN_PROGRESS\", \"callBackDelay\": 1}");
    assert_eq!(later["lifecycleStage"], "PRE_SCALE_UP");
    assert_eq!((&later["resourceArn"], &later["hookDetails"]["team"]), (&"web-2".into(), &"a".into()));
    assert_eq!(place.running().len(), 3, "nothing new before the hook agrees");
    let again = hook.answer("{\"hookStatus\": \"SUCCEEDED\"}");
    assert_eq!(again["executionId"], later["executionId"]);

    // It pauses with all of the traffic, and both of full size; an alarm ends it.
    let pauses = || text(&place.steady(&["describe", "service/web"]));
    eventually("it pauses", Duration::from_secs(60), || {
        pauses().contains("rollout continue service/web").then_some(())
    });
    assert_eq!(place.running().len(), 6, "{}", place.story());
    assert_eq!((deployment(&place, "web-1").2, deployment(&place, "web-2").2), (0.0, 100.0));
    place.ok(&["alarm", "errors", "alarm", "--reason", "too many"]);
    let failed = place.steady(&["rollout", "status", "service/web"]);
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed));
    assert!(text(&failed).contains("alarm errors was raised: too many."), "{}", text(&failed));
    eventually("the old ones serve", Duration::from_secs(60), || {
        (deployment(&place, "web-1") == ("PRIMARY".into(), "COMPLETED".into(), 100.0)).then_some(())
    });
    assert_eq!(ids(&place.running()), blue, "never touched\n{}", place.story());
    let nothing = place.steady(&["rollout", "continue", "service/web"]);
    assert!(text(&nothing).contains("nothing is being rolled out"), "{}", text(&nothing));

    // The alarm is still raised, so it is not heeded; this time it goes on.
    apply(&place, 3, &settings);
    hook.answer("{\"hookStatus\": \"SUCCEEDED\"}");
    eventually("it pauses again", Duration::from_secs(60), || {
        pauses().contains("rollout continue service/web").then_some(())
    });
    let told = place.ok(&["rollout", "continue", "service/web", "--wait"]);
    assert!(told.contains("goes on"), "{told}");
    assert_eq!(deployment(&place, &primary(&place)), ("PRIMARY".into(), "COMPLETED".into(), 100.0));
    assert!(ids(&place.running()).iter().all(|id| !blue.contains(id)), "{}", place.story());

    // A hook that fails has it rolled back; a typo is told with what would be right.
    apply(&place, 4, &settings);
    hook.answer("no");
    let failed = place.steady(&["rollout", "status", "service/web"]);
    assert!(text(&failed).contains("expected {\"hookStatus\": \"SUCCEEDED\"}"), "{}", text(&failed));
    std::fs::write(
        place.path("web.yaml"),
        std::fs::read_to_string(place.path("web.yaml")).unwrap().replace("[errors]", "[erorrs]"),
    )
    .unwrap();
    let typo = place.steady(&["apply", "-f", place.path("web.yaml").to_str().unwrap()]);
    assert!(text(&typo).contains("there is no alarm `erorrs`; did you mean `errors`?"), "{}", text(&typo));
}

#[test]
fn a_canary_gets_its_share_and_a_linear_deployment_its_steps() {
    let place = Place::new();
    let _up = place.up_hollow(2);
    apply(&place, 1, "{strategy: ROLLING}");
    place.wait_steady("service/web");
    let canary = "{strategy: CANARY, canaryConfiguration: {canaryPercent: 12.5, canaryBakeTimeInMinutes: 1}}";
    apply(&place, 2, canary);
    eventually("a share of the traffic", Duration::from_secs(60), || {
        let is_there = place.steady(&["get", "deployment", "web-2"]).status.success();
        (is_there && deployment(&place, "web-2").2 > 0.0).then_some(())
    });
    assert_eq!((deployment(&place, "web-1").2, deployment(&place, "web-2").2), (87.5, 12.5));
    // Stopping gives it back.
    place.ok(&["rollout", "stop", "service/web", "--wait"]);
    assert_eq!(deployment(&place, "web-1").2, 100.0);
    apply(
        &place,
        3,
        "{strategy: LINEAR, linearConfiguration: {stepPercent: 50, stepBakeTimeInMinutes: 0}, deploymentCircuitBreaker: \
         {enable: true}}",
    );
    place.ok(&["rollout", "status", "service/web"]);
    assert_eq!(deployment(&place, &primary(&place)).2, 100.0);
    assert_eq!(place.running().len(), 3);
}

#[test]
fn the_example_pauses_goes_on_and_pauses_again_for_what_its_comment_suggests() {
    let place = Place::new();
    let _up = place.up_hollow(2);
    let example = std::fs::read_to_string(steady_tests::root().join("examples/manifests/blue-green.yaml")).unwrap();
    let apply = |text: &str| {
        let path = place.path("example.yaml");
        std::fs::write(&path, text).unwrap();
        place.ok(&["apply", "-f", path.to_str().unwrap()]);
    };
    let pauses = || {
        let told = text(&place.steady(&["describe", "service/shop"]));
        told.contains("`steady rollout continue service/shop` ends it").then_some(())
    };
    apply(&example);
    eventually("it pauses", Duration::from_secs(60), pauses);
    place.ok(&["rollout", "continue", "service/shop", "--wait"]);
    place.wait_steady("service/everywhere");
    apply(&example.replace("stopTimeout: 5", "stopTimeout: 6"));
    eventually("it pauses again", Duration::from_secs(60), pauses);
    place.ok(&["rollout", "continue", "service/shop", "--rollback"]);
    let failed = place.steady(&["rollout", "status", "service/shop"]);
    assert!(text(&failed).contains("was told to roll back"), "{}", text(&failed));
}
