//! Requests without end, through everything that goes on behind load balancers, Steady's own and `HAProxy`: real containers, processes that
//! are killed. None of them fails.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use steady_tests::docker::Engine;
use steady_tests::load::Load;
use steady_tests::{Place, Running, eventually, free_port, ids};

/// Requests below which nothing is proved.
const REQUESTS: u64 = 200_000;
const DEPLOYMENTS: usize = 20;

struct Cluster {
    place: Place,
    apis: Vec<(String, Option<Running>)>,
    parts: BTreeMap<&'static str, Running>,
    etcd: String,
    _etcd: Running,
    engine: Engine,
}

impl Cluster {
    fn start() -> Self {
        let place = Place::new();
        let engine = Engine::start(&place);
        let (running, etcd) = place.etcd("http", &[]);
        let apis = vec![(place.address.clone(), None), (format!("127.0.0.1:{}", free_port()), None)];
        let mut cluster = Cluster { place, apis, parts: BTreeMap::new(), etcd, _etcd: running, engine };
        cluster.api(0);
        cluster.api(1);
        cluster.part("controllers", &["controller", "--only", "deployment,service,scheduler,instance,reaper"]);
        cluster.part("registrar", &["controller", "--only", "registrar"]);
        for name in ["a1", "a2"] {
            let data = cluster.place.path(name).display().to_string();
            let socket = cluster.engine.socket.clone();
            let args =
                ["agent", "--name", name, "--runtime", "docker", "--docker-socket", &socket, "--data-dir", &data];
            let more = ["--address", "127.0.0.1", "--metadata-address", "none", "--without-live-restore"];
            cluster.part(name, &[&args[..], &more].concat());
        }
        cluster.lb("lb1", "127.0.0.1", "steady");
        cluster.lb("lb2", "127.0.0.2", "haproxy");
        cluster
    }

    fn api(&mut self, number: usize) {
        let address = self.apis[number].0.clone();
        let command = self.place.command(&["apiserver", "--etcd", &self.etcd, "--listen", &address]);
        let log = self.place.path(&format!("api{number}.log"));
        self.apis[number].1 = Some(Running::start(command, &log));
        eventually("the API answers", Duration::from_secs(30), || std::net::TcpStream::connect(&address).ok());
    }

    /// A process that knows both API servers.
    fn part(&mut self, name: &'static str, args: &[&str]) {
        let both = format!("{},{}", self.apis[0].0, self.apis[1].0);
        let mut command = self.place.command(args);
        command.env("STEADY_SERVER", both);
        self.parts.insert(name, Running::start(command, &self.place.path(&format!("{name}.log"))));
    }

    fn lb(&mut self, name: &'static str, address: &str, plane: &str) {
        let data = self.place.path("lb").display().to_string();
        let args = ["lb", "--name", name, "--data-dir", &data, "--listen-address", address, "--data-plane", plane];
        self.part(name, &args);
    }

    fn deploy(&self) {
        self.place.ok(&["rollout", "restart", "service/web", "--wait"]);
    }
}

const HOOKS: &str = "[{type: PAUSE, lifecycleStages: [PRE_PRODUCTION_TRAFFIC_SHIFT]}]";

fn manifest(port: u16, test: u16, version: u32, deployment: &str) -> String {
    let listener = |name: &str, port: u16| {
        format!(
            "apiVersion: steady/v1\nkind: Listener\nmetadata: {{name: {name}}}\nspec: {{port: {port}, defaultActions: [{{type: forward, \
             targetGroupArn: web}}]}}\n---\n"
        )
    };
    let listeners = listener("http", port) + &listener("test", test);
    format!(
        "{listeners}apiVersion: steady/v1
kind: TargetGroup
metadata: {{name: web}}
spec: {{healthCheckPath: /health, healthCheckIntervalSeconds: 2, healthCheckTimeoutSeconds: 1, deregistrationDelaySeconds: 20}}
---
apiVersion: steady/v1
kind: TaskDefinition
metadata: {{name: web}}
spec:
  containerDefinitions:
    - name: web
      image: 'steady:self'
      memory: 64
      stopTimeout: 2
      command: [steady, hello]
      environment: [{{name: VERSION, value: '{version}'}}]
      portMappings: [{{containerPort: 8080}}]
---
apiVersion: steady/v1
kind: Service
metadata: {{name: web}}
spec:
  taskDefinition: web
  desiredCount: 3
  deploymentConfiguration: {deployment}
  loadBalancers: [{{targetGroupArn: web, containerName: web, containerPort: 8080, advancedConfiguration: {{testListenerRule: test}}}}]
"
    )
}

/// Tasks that answer.
fn answering(url: &str, count: usize) -> std::collections::BTreeSet<String> {
    let ask = |_| {
        let output = Command::new("curl").args(["-s", "-m", "5", url]).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        said.split_whitespace().nth(4).unwrap_or_default().to_owned()
    };
    (0..count).map(ask).collect()
}

#[test]
fn no_request_fails_whatever_happens_behind_the_load_balancer() {
    let mut cluster = Cluster::start();
    let (port, test) = (free_port(), free_port());
    cluster.place.apply("web", &manifest(port, test, 1, "{strategy: ROLLING}"));
    cluster.place.wait_steady("service/web");
    let url = |address: &str| format!("http://{address}:{port}/");
    for address in ["127.0.0.1", "127.0.0.2"] {
        eventually("both answer", Duration::from_secs(10), || (answering(&url(address), 6).len() == 3).then_some(()));
    }
    let (load, beside) = (Load::start(&url("127.0.0.1")), Load::start(&url("127.0.0.2")));

    for _ in 0..DEPLOYMENTS {
        cluster.deploy();
    }

    // Blue and green: test traffic first, then all of it.
    let paused = |what: &str| {
        eventually(what, Duration::from_secs(60), || {
            let all = cluster.place.json(&["get", "deployments"]);
            let newest = all["items"]
                .as_array()
                .unwrap()
                .iter()
                .max_by_key(|d| d["spec"]["sequence"].as_str().map(|s| s.parse::<i64>().unwrap()))?;
            let hooks = newest["status"]["hooks"].as_array()?;
            hooks.iter().any(|hook| hook["status"] == "AWAITING_ACTION").then_some(())
        });
    };
    let blue = ids(&cluster.place.running());
    let strategy = format!("{{strategy: BLUE_GREEN, bakeTimeInMinutes: 0, lifecycleHooks: {HOOKS}}}");
    cluster.place.apply("web", &manifest(port, test, 2, &strategy));
    paused("green has come");
    let testing = answering(&format!("http://127.0.0.1:{test}/"), 9);
    assert!(testing.len() == 3 && testing.iter().all(|id| !blue.contains(id)), "{testing:?} {blue:?}");
    assert!(answering(&url("127.0.0.1"), 9).iter().all(|id| blue.contains(id)), "production stays");
    cluster.place.ok(&["rollout", "continue", "service/web", "--wait"]);
    assert!(answering(&url("127.0.0.1"), 9).iter().all(|id| !blue.contains(id)));

    // A canary gets some, and is taken back.
    let stable = ids(&cluster.place.running());
    let canary = "canaryConfiguration: {canaryPercent: 40, canaryBakeTimeInMinutes: 0}";
    let strategy = format!("{{strategy: CANARY, bakeTimeInMinutes: 0, {canary}, lifecycleHooks: {HOOKS}}}");
    cluster.place.apply("web", &manifest(port, test, 3, &strategy));
    paused("the canary has come");
    cluster.place.ok(&["rollout", "continue", "service/web"]);
    eventually("the canary gets its share", Duration::from_secs(30), || {
        let all = answering(&url("127.0.0.1"), 30);
        (all.iter().any(|id| stable.contains(id)) && all.iter().any(|id| !stable.contains(id))).then_some(())
    });
    paused("before the rest");
    cluster.place.ok(&["rollout", "continue", "service/web", "--rollback"]);
    eventually("the canary has none any more", Duration::from_secs(60), || {
        (answering(&url("127.0.0.1"), 12) == stable.iter().cloned().collect()).then_some(())
    });
    cluster.place.apply("web", &manifest(port, test, 2, "{strategy: ROLLING}"));
    cluster.place.wait_steady("service/web");

    cluster.place.ok(&["drain", "a1", "--wait"]);
    cluster.place.ok(&["drain", "a1", "--cancel"]);
    cluster.place.wait_steady("service/web");

    for _ in 0..3 {
        let id = ids(&cluster.place.running())[0].clone();
        cluster.engine.docker(&["kill", "-s", "KILL", &format!("steady-{id}-web")]);
        eventually("another task takes its place", Duration::from_secs(60), || {
            let now = cluster.place.running();
            (now.len() == 3 && !ids(&now).contains(&id)).then_some(())
        });
        cluster.place.wait_steady("service/web");
    }

    cluster.parts.get_mut("registrar").unwrap().kill();
    cluster.place.ok(&["rollout", "restart", "service/web"]);
    std::thread::sleep(Duration::from_secs(4));
    cluster.part("registrar", &["controller", "--only", "registrar"]);
    cluster.place.wait_steady("service/web");

    cluster.apis[1].1.as_mut().unwrap().kill();
    cluster.deploy();
    cluster.api(1);
    cluster.deploy();

    let second = beside.end("the second load balancer");
    cluster.parts.get_mut("lb2").unwrap().kill();
    cluster.deploy();
    cluster.lb("lb2", "127.0.0.2", "haproxy");
    cluster.deploy();
    assert_eq!(answering(&url("127.0.0.2"), 12), answering(&url("127.0.0.1"), 12), "it has learned what it has missed");

    let mut all = second + load.end("the first load balancer");
    // On a slow machine it takes some more.
    while all < REQUESTS {
        let load = Load::start(&url("127.0.0.1"));
        (0..5).for_each(|_| cluster.deploy());
        all += load.end("the first load balancer");
    }
    println!("{all} requests, none failed");
}
