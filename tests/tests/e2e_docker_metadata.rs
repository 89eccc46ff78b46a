//! What containers are told of themselves, and the credentials of their task's role: on real engines, to an AWS SDK that knows
//! nothing of Steady.
#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use steady_tests::containerd::Daemon;
use steady_tests::docker::Engine;
use steady_tests::{Place, Running, eventually, ids, text};

const ROLE: &str = "apiVersion: steady/v1
kind: Secret
metadata: {name: app-role}
spec: {secretString: '{\"AccessKeyId\": \"AKIDSTEADY\", \"SecretAccessKey\": \"canary-7f3a\", \"Token\": \"session\"}'}
";

/// The machine's own Python and AWS SDK, as they are, below the image's root.
fn app(network: &str) -> String {
    let script = "import botocore.session as s; c = s.get_session().get_credentials(); \
                  f = c.get_frozen_credentials(); print('sdk', c.method, f.access_key, f.token, flush=True); \
                  import time; time.sleep(1000)";
    format!(
        "apiVersion: steady/v1
kind: TaskDefinition
metadata: {{name: app}}
spec:
  networkMode: {network}
  taskRoleArn: 'arn:aws:iam::123456789012:role/app-role'
  cpu: '512'
  memory: '256'
  volumes: [{{name: usr, host: {{sourcePath: /usr}}}}]
  containerDefinitions:
    - name: sdk
      image: 'box:1'
      user: '0'
      memory: 200
      stopTimeout: 1
      command: [/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2, --library-path, /usr/lib/x86_64-linux-gnu, /usr/bin/python3, -c, \"{script}\"]
      mountPoints: [{{sourceVolume: usr, containerPath: /usr, readOnly: true}}]
      environment: [{{name: AWS_EC2_METADATA_DISABLED, value: 'true'}}]
    - {{name: side, image: 'box:1', memory: 16, stopTimeout: 1, essential: false, command: [sleep, '1000']}}
---
apiVersion: steady/v1
kind: Service
metadata: {{name: app}}
spec: {{taskDefinition: app, desiredCount: 2}}
"
    )
}

/// What the machine itself is answered, and the status.
fn status(path: &str) -> String {
    let url = format!("http://169.254.170.2{path}");
    text(&Command::new("curl").args(["-s", "-w", " %{http_code}", &url]).output().unwrap())
}

struct Story<'a> {
    place: &'a Place,
}

impl Story<'_> {
    /// What a container's own tools get from a path below one of its variables.
    fn fetch(&self, task: &str, variable: &str, path: &str) -> String {
        let script = format!("wget -qO- \"${variable}{path}\" 2>&1");
        text(&self.place.steady(&["exec", task, "--container", "side", "--", "sh", "-c", &script]))
    }

    fn json(&self, task: &str, path: &str) -> Value {
        let answer = self.fetch(task, "ECS_CONTAINER_METADATA_URI_V4", path);
        serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{path}: {e}: {answer}\n{}", self.place.story()))
    }

    /// All of it, on whatever engine.
    fn is_told(&self, args: &[&str], network: &str) -> Running {
        let place = self.place;
        let mut up = place.up(args);
        place.apply("role", ROLE);
        place.apply("app", &app(network));
        place.wait_steady("service/app");
        let tasks = ids(&place.running());
        for task in &tasks {
            // The SDK found its credentials by itself.
            let said = eventually("the SDK has said its say", Duration::from_secs(30), || {
                let said = place.ok(&["logs", &format!("task/{task}"), "--container", "sdk"]);
                said.contains('\n').then_some(said)
            });
            assert!(said.contains("sdk container-role AKIDSTEADY session"), "{said}\n{}", place.story());
        }
        let (first, second) = (&tasks[0], &tasks[1]);
        let own = self.json(first, "");
        assert_eq!(
            (&own["Name"], &own["KnownStatus"], &own["Type"]),
            (&"side".into(), &"RUNNING".into(), &"NORMAL".into())
        );
        assert_eq!(own["Labels"]["com.amazonaws.ecs.task-definition-family"], "app", "{own:#}");
        assert_eq!(own["Networks"][0]["NetworkMode"], network);
        let task = self.json(first, "/task");
        assert!(task["TaskARN"].as_str().unwrap().ends_with(&format!(":task/default/{first}")), "{task:#}");
        assert_eq!(
            (&task["Family"], &task["Revision"], &task["Cluster"]),
            (&"app".into(), &"1".into(), &"default".into())
        );
        assert_eq!((task["Limits"]["CPU"].as_f64(), &task["Limits"]["Memory"]), (Some(0.5), &256.into()));
        assert_eq!((task["Containers"].as_array().unwrap().len(), &task["KnownStatus"]), (2, &"RUNNING".into()));
        assert!(self.json(first, "/stats")["memory_stats"]["usage"].as_u64().unwrap() > 0);
        assert_eq!(self.json(first, "/task/stats").as_object().unwrap().len(), 2);
        assert!(!task.to_string().contains("canary"), "no secret is told where it is not asked for");
        // A task has itself protected.
        let state = self.fetch(first, "ECS_AGENT_URI", "/task-protection/v1/state");
        assert!(state.contains("\"ProtectionEnabled\":false"), "{state}");
        let put = r#"
            body='{"ProtectionEnabled": true, "ExpiresInMinutes": 30}'
            path=${ECS_AGENT_URI#http://169.254.170.2}/task-protection/v1/state
            printf 'PUT %s HTTP/1.0\r\nContent-Length: %s\r\n\r\n%s' "$path" "${#body}" "$body" | nc 169.254.170.2 80"#;
        let answer = text(&place.steady(&["exec", first, "--container", "side", "--", "sh", "-c", put]));
        assert!(answer.contains("ExpirationDate") && answer.contains("\"ProtectionEnabled\":true"), "{answer}");
        assert!(!place.json(&["get", &format!("task/{first}")])["spec"]["protectedUntil"].is_null());
        let state = self.fetch(second, "ECS_AGENT_URI", "/task-protection/v1/state");
        assert!(state.contains("\"ProtectionEnabled\":false"), "each its own: {state}");
        place.ok(&["protect", &format!("task/{first}"), "--off"]);
        let unknown = status(&format!("/v4/{first}-00112233445566778899aabbccddeeff/task"));
        assert!(unknown.ends_with(" 404"), "a token is whole or none: {unknown}");

        // Credentials are the task's own: by an address that nobody can guess, and from its own network only.
        let address = |task: &str| {
            let echo =
                ["exec", task, "--container", "side", "--", "sh", "-c", "echo $AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"];
            place.ok(&echo).trim().to_owned()
        };
        assert_ne!(address(first), address(second));
        let stolen = status(&address(second));
        if network == "awsvpc" {
            assert!(stolen.ends_with(" 403") && !stolen.contains("canary"), "{stolen}");
        }

        // The next agent answers at the same addresses.
        up.kill();
        let up = place.up(args);
        place.wait_steady("service/app");
        assert_eq!(ids(&place.running()), tasks);
        let again = eventually("it is told again", Duration::from_secs(20), || {
            let said = self.fetch(first, "ECS_CONTAINER_METADATA_URI_V4", "/task");
            serde_json::from_str::<Value>(&said).ok()
        });
        assert_eq!((&again["TaskARN"], &again["Family"]), (&task["TaskARN"], &task["Family"]));
        let script = "wget -qO- http://169.254.170.2$AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
        let given = place.ok(&["exec", first, "--container", "side", "--", "sh", "-c", script]);
        assert!(given.contains("canary-7f3a") && given.contains("\"Expiration\":\"20"), "{given}");
        place.ok(&["delete", "service/app"]);
        up
    }
}

#[test]
fn an_unmodified_sdk_finds_its_task_s_credentials_on_docker() {
    let place = Place::new();
    let engine = Engine::start(&place);
    engine.busybox("box:1");
    let args = ["--runtime", "docker", "--docker-socket", &engine.socket];
    let _up = Story { place: &place }.is_told(&args, "bridge");
    eventually("no container is left", Duration::from_secs(20), || engine.containers().is_empty().then_some(()));
}

#[test]
fn an_unmodified_sdk_finds_its_task_s_credentials_on_containerd() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.busybox(&place, "box:1");
    let args = ["--runtime", "containerd", "--containerd-socket", daemon.socket.to_str().unwrap()];
    let _up = Story { place: &place }.is_told(&args, "awsvpc");
    eventually("no container is left", Duration::from_secs(20), || {
        daemon.ctr(&["containers", "list", "-q"]).is_empty().then_some(())
    });
}

#[test]
fn a_role_without_credentials_is_said_and_nothing_starts() {
    let place = Place::new();
    let engine = Engine::start(&place);
    engine.busybox("box:1");
    let _up = place.up(&["--runtime", "docker", "--docker-socket", &engine.socket]);
    place.apply("app", &app("bridge"));
    let story = eventually("it is said", Duration::from_secs(30), || {
        let said = place.ok(&["get", "tasks", "--all", "-o", "json"]);
        said.contains("taskRoleArn app-role: there is no ").then_some(said)
    });
    assert!(story.contains("ResourceInitializationError"), "{story}");
    let wrong = app("bridge").replace("role/app-role", "user/x");
    let path = place.path("wrong.yaml");
    std::fs::write(&path, wrong).unwrap();
    let refused = text(&place.steady(&["apply", "-f", path.to_str().unwrap()]));
    assert!(refused.contains("spec.taskRoleArn") && refused.contains("is no role"), "{refused}");
}
