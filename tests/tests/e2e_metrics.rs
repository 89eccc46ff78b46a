//! Every process tells what there is to know of it, as `OpenMetrics`.
#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Command;
use std::time::Duration;

use steady_tests::{Place, Running, eventually, free_port, text};

/// What a process says when it is asked.
struct Asked {
    address: String,
    _process: Running,
}

impl Asked {
    fn start(place: &Place, args: &[&str]) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let command = place.command(&[args, &["--metrics", &address]].concat());
        let process = Running::start(command, &place.path(&format!("{}.log", args[0])));
        Asked { address, _process: process }
    }

    fn get(&self, path: &str) -> Option<String> {
        let url = format!("http://{}{path}", self.address);
        let output = Command::new("curl").args(["-s", "-f", "-m", "5", &url]).output().unwrap();
        output.status.success().then(|| text(&output))
    }

    /// The value of a line that begins so, once there is one that is as is wanted.
    fn value(&self, line: &str, wanted: impl Fn(f64) -> bool) -> f64 {
        eventually(line, Duration::from_secs(20), || {
            let text = self.get("/metrics")?;
            assert!(text.ends_with("# EOF\n"), "{text}");
            let found = text.lines().find(|found| found.starts_with(line))?;
            let value = found.rsplit(' ').next()?.parse().ok()?;
            wanted(value).then_some(value)
        })
    }
}

#[test]
fn every_process_tells_its_figures() {
    let place = Place::new();
    let (_etcd, etcd) = place.etcd("http", &[]);
    let api = Asked::start(&place, &["apiserver", "--etcd", &etcd, "--listen", &place.address]);
    let port = place.address.clone();
    eventually("the API answers", Duration::from_secs(20), || std::net::TcpStream::connect(&port).ok());
    let controller = Asked::start(&place, &["controller"]);
    let data = place.path("agent").display().to_string();
    let args = ["agent", "--name", "m", "--runtime", "process", "--data-dir", &data, "--address", "127.0.0.1"];
    let agent = Asked::start(&place, &args);
    let data = place.path("lb").display().to_string();
    let lb = Asked::start(&place, &["lb", "--data-dir", &data, "--listen-address", "127.0.0.1"]);
    let dns = Asked::start(&place, &["dns", "--listen", &format!("127.0.0.1:{}", free_port())]);
    let data = place.path("pool").display().to_string();
    let pool = Asked::start(&place, &["pool", "--data-dir", &data]);
    let script = "while :; do :; done & sleep 1000";
    place.apply(
        "busy",
        &format!(
            "apiVersion: steady/v1
kind: TaskDefinition
metadata: {{name: busy}}
spec:
  containerDefinitions: [{{name: main, image: none, memory: 64, command: [sh, -c, '{script}'], portMappings: [{{containerPort: 80}}], stopTimeout: 2}}]
---
apiVersion: steady/v1
kind: Service
metadata: {{name: busy}}
spec: {{taskDefinition: busy, desiredCount: 1, serviceRegistries: [{{registryArn: busy, containerName: main, containerPort: 80}}]}}
"
        ),
    );
    place.wait_steady("service/busy");
    assert!(api.value("steady_api_calls_total{method=\"Objects/Apply\",code=\"Ok\"}", |count| count >= 1.0) >= 1.0);
    api.value("steady_api_sessions", |sessions| sessions as i64 == 1);
    api.value("steady_api_objects", |objects| objects > 3.0);
    controller.value("steady_waiting_tasks{cluster=\"default\"}", |waiting| waiting as i64 == 0);
    agent.value("steady_agent_tasks{cluster=\"default\",instance=\"m\",status=\"RUNNING\"}", |tasks| tasks as i64 == 1);
    // What a container takes is told by its service and task, and is what it takes.
    let of = "{cluster=\"default\",instance=\"m\",service=\"busy\",";
    let before = agent.value(&format!("steady_container_cpu_seconds_total{of}"), |seconds| seconds > 0.0);
    agent.value(&format!("steady_container_cpu_seconds_total{of}"), |seconds| seconds > before + 0.2);
    assert!(agent.value(&format!("steady_container_memory_bytes{of}"), |bytes| bytes > 0.0) < 64.0 * 1024.0 * 1024.0);
    agent.value(&format!("steady_container_processes{of}"), |processes| processes >= 2.0);
    lb.value("steady_lb_table", |number| number >= 1.0);
    dns.value("steady_dns_names", |names| names >= 1.0);
    place.apply(
        "idle",
        "apiVersion: steady/v1
kind: CapacityProvider
metadata: {name: idle}
spec: {pool: {minSize: 0, maxSize: 1, template: {cpu: 512, memory: 512, runtime: process}}}
",
    );
    pool.value("steady_pool_instances{capacity_provider=\"idle\"}", |there| there < 1.0);
    assert_eq!(api.get("/else"), None);
    // What is busy in the background is nobody's child any more when its agent is killed.
    place.ok(&["delete", "service/busy"]);
}
