//! Services that scale: by requests through a real load balancer, by metrics of one's own, by what a real Prometheus says.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use steady_tests::load::Load;
use steady_tests::{Place, Running, eventually, free_port, text};

fn desired(place: &Place, service: &str) -> i64 {
    place.json(&["get", &format!("service/{service}")])["spec"]["desiredCount"].as_i64().unwrap_or(0)
}

/// A service of web servers behind a listener, between so many tasks, with more documents after it.
fn web(port: u16, more: &str) -> String {
    format!(
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
    - {{name: web, image: \"steady:self\", command: [steady, hello], cpu: 64, memory: 256, portMappings: [{{containerPort: 8080}}]}}
---
apiVersion: steady/v1
kind: Service
metadata: {{name: web}}
spec:
  taskDefinition: web
  loadBalancers: [{{targetGroupArn: web, containerName: web, containerPort: 8080}}]
---
apiVersion: steady/v1
kind: ScalableTarget
metadata: {{name: web}}
spec: {{minCapacity: 2, maxCapacity: 4}}
{more}"
    )
}

/// Two API servers over one etcd, agents and load balancers at different ones: what each of them knows has to come together.
#[test]
fn load_doubles_the_tasks_and_its_end_halves_them_and_nothing_is_dropped() {
    let place = Place::new();
    let (_etcd, etcd) = place.etcd("http", &[]);
    let _api = place.apiserver(&etcd);
    let other = format!("127.0.0.1:{}", free_port());
    let command = place.command(&["apiserver", "--etcd", &etcd, "--listen", &other]);
    let _other = Running::start(command, &place.path("other.log"));
    eventually("the other API answers", Duration::from_secs(30), || std::net::TcpStream::connect(&other).ok());
    let controllers = || Running::start(place.command(&["controller"]), &place.path("controller.log"));
    let mut first = controllers();
    let agents: Vec<Running> = [&place.address, &other]
        .into_iter()
        .enumerate()
        .map(|(number, address)| {
            let (name, data) = (format!("m{number}"), place.path(&format!("agent{number}")).display().to_string());
            let args =
                ["agent", "--name", &name, "--runtime", "process", "--data-dir", &data, "--address", "127.0.0.1"];
            let command = place.command(&[&args[..], &["--server", address]].concat());
            Running::start(command, &place.path(&format!("agent{number}.log")))
        })
        .collect();
    let data = place.path("lb").display().to_string();
    let args = ["lb", "--data-dir", &data, "--listen-address", "127.0.0.1", "--server", &other];
    let _lb = Running::start(place.command(&args), &place.path("lb.log"));
    let port = free_port();
    let policy = |name: &str, kind: &str, target: u32| {
        format!(
            "---
apiVersion: steady/v1
kind: ScalingPolicy
metadata: {{name: {name}}}
spec:
  resourceId: service/web
  targetTrackingScalingPolicyConfiguration:
    targetValue: {target}
    predefinedMetricSpecification: {{predefinedMetricType: {kind}}}
    scaleOutCooldown: 10
    scaleInCooldown: 10
    scaleInEvaluationSeconds: 30
"
        )
    };
    let policies =
        policy("requests", "ALBRequestCountPerTarget", 600) + &policy("cpu", "ECSServiceAverageCPUUtilization", 10_000);
    let manifest = web(port, &policies);
    place.apply("web", &manifest);
    place.wait_steady("service/web");
    assert_eq!(desired(&place, "web"), 2, "a new target's bounds hold at once");

    let url = format!("http://127.0.0.1:{port}/");
    eventually("the load balancer answers", Duration::from_secs(20), || {
        std::net::TcpStream::connect(("127.0.0.1", port)).ok()
    });
    eventually("a target is healthy", Duration::from_secs(20), || {
        (place.ok(&["get", "targetgroups"]).contains("2        2")).then_some(())
    });
    let load = Load::start(&url);
    // Who decides may die.
    std::thread::sleep(Duration::from_secs(10));
    let _second = controllers();
    first.kill();
    eventually("there are twice as many tasks", Duration::from_secs(90), || {
        (desired(&place, "web") == 4).then_some(())
    });
    place.wait_steady("service/web");
    place.ok(&["apply", "-f", place.path("web.yaml").to_str().unwrap()]);
    assert_eq!(desired(&place, "web"), 4, "the manifest leaves desiredCount out");

    // What tasks take is known of both agents, each at its own API server.
    let both = format!("{},{other}", place.address);
    eventually("every task is measured", Duration::from_secs(45), || {
        let top = place.ok(&["top", "services", "--once", "--server", &both]);
        let row: Vec<&str> = top.lines().nth(1)?.split_whitespace().collect();
        let silent =
            text(&place.steady(&["top", "services", "--once", "--server", &both])).contains("nothing is known");
        (row[1] == "4" && row[3].ends_with('%') && row[2].parse::<f64>().ok()? > 0.0 && !silent).then_some(())
    });
    let known = eventually("both API servers tell of the service's CPU", Duration::from_secs(45), || {
        let listed = place.json(&["get", "metricdata"]);
        let items = listed["items"].as_array().cloned().unwrap_or_default();
        let cpu = items.into_iter().filter(|item| item["spec"]["metricName"] == "CPUUtilization");
        Some(cpu.count()).filter(|count| *count == 2)
    });
    assert_eq!(known, 2);
    eventually("all four tasks are known together", Duration::from_secs(45), || {
        place.ok(&["get", "metricdata"]).contains("4 of 4").then_some(())
    });

    let requests = load.end("no request fails while tasks come");
    assert!(requests > 1000, "{requests}");
    eventually("the tasks are as few as before", Duration::from_secs(150), || {
        (desired(&place, "web") == 2).then_some(())
    });
    place.wait_steady("service/web");
    let said = place.ok(&["describe", "scalabletarget/web"]);
    for part in
        ["2 to 4: alarm TargetTracking-requests-AlarmHigh in state ALARM triggered policy requests", "4 to 2: alarm"]
    {
        assert!(said.contains(part), "{part}\n{said}");
    }
    assert!(said.contains("requests a minute, 600 for each task"), "{said}");
    assert!(place.ok(&["describe", "service/web"]).contains("Scaling activities"));
    // A policy's alarms go with it.
    place.ok(&["delete", "scalingpolicy/requests"]);
    assert!(!place.ok(&["get", "alarms"]).contains("TargetTracking-requests"));
    place.ok(&["delete", "scalabletarget/web"]);
    assert!(place.steady(&["get", "scalingpolicy/cpu"]).status.code() != Some(0), "policies go with their target");
    drop(agents);
}

const WORKER: &str = "apiVersion: steady/v1
kind: TaskDefinition
metadata: {name: worker}
spec:
  containerDefinitions: [{name: main, image: none, memory: 64, command: [sleep, \"1000\"], stopTimeout: 2}]
---
apiVersion: steady/v1
kind: Service
metadata: {name: worker}
spec: {taskDefinition: worker, desiredCount: 1}
---
apiVersion: steady/v1
kind: ScalableTarget
metadata: {name: worker}
spec: {minCapacity: 1, maxCapacity: 9}
";

#[test]
fn services_scale_by_metrics_of_ones_own_and_by_what_a_prometheus_says() {
    let place = Place::new();
    let (_etcd, etcd) = place.etcd("http", &[]);
    let figures = format!("127.0.0.1:{}", free_port());
    let args = ["apiserver", "--etcd", &etcd, "--listen", &place.address, "--metrics", &figures];
    let _api = Running::start(place.command(&args), &place.path("api.log"));
    let port = place.address.clone();
    eventually("the API answers", Duration::from_secs(20), || std::net::TcpStream::connect(&port).ok());
    let _controllers = Running::start(place.command(&["controller"]), &place.path("controller.log"));
    let data = place.path("agent").display().to_string();
    let args = ["agent", "--name", "m", "--runtime", "process", "--data-dir", &data, "--address", "127.0.0.1"];
    let _agent = Running::start(place.command(&args), &place.path("agent.log"));

    // A Prometheus that knows how many sessions the API server has: one.
    let prometheus = format!("127.0.0.1:{}", free_port());
    let config = place.path("prometheus.yml");
    let scrape = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: steady, static_configs: [{{targets: [\"{figures}\"]}}]}}]\n"
    );
    std::fs::write(&config, scrape).unwrap();
    let mut command = std::process::Command::new("prometheus");
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", place.path("tsdb").display()));
    command.arg(format!("--web.listen-address={prometheus}"));
    let _prometheus = Running::start(command, &place.path("prometheus.log"));

    let query = |text: &str| format!("{{address: \"http://{prometheus}\", query: \"{text}\"}}");
    let alarm = |name: &str, more: &str| {
        format!(
            "---
apiVersion: steady/v1
kind: Alarm
metadata: {{name: {name}}}
spec:
  period: 10
  evaluationPeriods: 1
  comparisonOperator: GreaterThanOrEqualToThreshold
{more}"
        )
    };
    let backlog = "  namespace: Shop
  metricName: Backlog
  dimensions: [{name: Queue, value: orders}]
  threshold: 20
  alarmActions: [backlog]
";
    let step = "---
apiVersion: steady/v1
kind: ScalingPolicy
metadata: {name: backlog}
spec:
  resourceId: service/default/worker
  stepScalingPolicyConfiguration:
    adjustmentType: ChangeInCapacity
    stepAdjustments: [{metricIntervalLowerBound: 0, metricIntervalUpperBound: 10, scalingAdjustment: 1}, {metricIntervalLowerBound: 10, scalingAdjustment: 3}]
    cooldown: 3600
";
    let sessions = format!("  prometheus: {}\n  threshold: 1\n", query("sum(steady_api_sessions)"));
    let nothing = format!("  prometheus: {}\n  threshold: 1\n", query("no_such_metric"));
    let manifest = WORKER.to_owned()
        + &alarm("orders", backlog)
        + step
        + &alarm("sessions", &sessions)
        + &alarm("nothing", &nothing);
    place.apply("worker", &manifest);
    place.wait_steady("service/worker");
    assert_eq!(desired(&place, "worker"), 1);
    let state = |name: &str| place.json(&["get", &format!("alarm/{name}")])["status"]["stateValue"].clone();
    eventually("what Prometheus says raises an alarm", Duration::from_secs(60), || {
        (state("sessions") == "ALARM").then_some(())
    });
    assert_eq!(state("nothing"), "INSUFFICIENT_DATA");

    // Thirty of it are ten more than the threshold.
    eventually("a value of one's own is acted on", Duration::from_secs(60), || {
        place.ok(&["metric", "put", "Shop/Backlog", "30", "--dimension", "Queue=orders"]);
        place.ok(&["metric", "put", "Shop/Backlog", "99", "--dimension", "Queue=others"]);
        std::thread::sleep(Duration::from_secs(2));
        (desired(&place, "worker") == 4).then_some(())
    });
    let said = place.ok(&["describe", "scalabletarget/worker"]);
    assert!(
        said.contains("1 to 4: alarm orders in state ALARM triggered policy backlog (30 and the threshold 20;"),
        "{said}"
    );
    eventually("the alarm is well again, or not known", Duration::from_secs(60), || {
        (state("orders") != "ALARM").then_some(())
    });
    let history = place.json(&["get", "alarm/orders"])["status"]["history"].as_array().cloned().unwrap_or_default();
    assert!(history.iter().any(|item| item["stateValue"] == "ALARM"), "{history:?}");

    // A policy that tracks what a Prometheus says: one session for each task, to be a fifth of one.
    let tracking = format!(
        "apiVersion: steady/v1
kind: ScalingPolicy
metadata: {{name: sessions}}
spec:
  resourceId: service/worker
  targetTrackingScalingPolicyConfiguration:
    targetValue: 0.5
    customizedMetricSpecification: {{prometheus: {}}}
    scaleOutCooldown: 10
",
        query("sum(steady_api_sessions)")
    );
    place.apply("sessions", &tracking);
    // Four tasks, and the metric twice its target.
    eventually("the service follows the query", Duration::from_secs(90), || {
        (desired(&place, "worker") >= 8).then_some(())
    });
}

#[test]
fn a_metric_that_a_new_version_breaks_takes_the_service_back_to_the_old_one() {
    let place = Place::new();
    let _up = place.up_hollow(2);
    let manifest = |image: &str, bake: u32| {
        format!(
            "apiVersion: steady/v1
kind: Alarm
metadata: {{name: errors}}
spec:
  namespace: Shop
  metricName: Errors
  dimensions: [{{name: Service, value: shop}}]
  period: 10
  evaluationPeriods: 1
  threshold: 5
  comparisonOperator: GreaterThanThreshold
  treatMissingData: notBreaching
---
apiVersion: steady/v1
kind: TaskDefinition
metadata: {{name: shop}}
spec:
  containerDefinitions: [{{name: main, image: \"{image}\", memory: 64}}]
---
apiVersion: steady/v1
kind: Service
metadata: {{name: shop}}
spec:
  taskDefinition: shop
  desiredCount: 2
  deploymentConfiguration:
    bakeTimeInMinutes: {bake}
    alarms: {{alarmNames: [errors], enable: true, rollback: true}}
"
        )
    };
    place.apply("shop", &manifest("shop:1", 0));
    place.wait_steady("service/shop");
    let definition = || {
        let tasks = place.running();
        let all = tasks.iter().map(|task| task["spec"]["taskDefinition"].as_str().unwrap_or_default().to_owned());
        all.collect::<std::collections::BTreeSet<String>>().into_iter().collect::<Vec<String>>()
    };
    eventually("the first version runs", Duration::from_secs(30), || (definition() == ["shop:1"]).then_some(()));
    place.apply("shop", &manifest("shop:2", 5));
    eventually("the new version runs", Duration::from_secs(30), || (definition() == ["shop:2"]).then_some(()));
    eventually("the alarm ends the deployment", Duration::from_secs(60), || {
        place.ok(&["metric", "put", "Shop/Errors", "9", "--dimension", "Service=shop"]);
        std::thread::sleep(Duration::from_secs(1));
        let said = place.ok(&["describe", "service/shop"]);
        said.contains("alarm errors was raised: 1 out of the last 1 datapoints [9]").then_some(())
    });
    eventually("the old version runs again", Duration::from_secs(60), || (definition() == ["shop:1"]).then_some(()));
}

#[test]
fn wrong_scaling_is_told_by_field_and_value() {
    let place = Place::new();
    let _up = place.up_hollow(1);
    place.apply("worker", WORKER);
    let refused = |kind: &str, name: &str, spec: &str, parts: &[&str]| {
        let manifest = format!("apiVersion: steady/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n");
        let path = place.path("wrong.yaml");
        std::fs::write(&path, manifest).unwrap();
        let output = place.steady(&["apply", "-f", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(2), "{spec}: {}", text(&output));
        for part in parts {
            assert!(text(&output).contains(part), "{part}: {}", text(&output));
        }
    };
    refused("ScalableTarget", "worker", "{minCapacity: 3}", &["spec.maxCapacity", "is missing; expected 0 to 5000"]);
    refused("ScalableTarget", "worker", "{minCapacity: 3, maxCapacity: 2}", &["2 is less than minCapacity, 3"]);
    refused("ScalableTarget", "wrker", "{minCapacity: 1, maxCapacity: 2}", &["did you mean `worker`?"]);
    refused(
        "ScalableTarget",
        "worker",
        "{minCapacity: 1, maxCapacity: 2, scheduledActions: [{scheduledActionName: a, schedule: cron(0 18 * *), scalableTargetAction: {minCapacity: 1}}]}",
        &["spec.scheduledActions[0].schedule", "it has 4 fields and not 6"],
    );
    let tracking =
        |inner: &str| format!("{{resourceId: service/worker, targetTrackingScalingPolicyConfiguration: {{{inner}}}}}");
    refused(
        "ScalingPolicy",
        "p",
        &tracking(
            "targetValue: 0, predefinedMetricSpecification: {predefinedMetricType: ECSServiceAverageCPUUtilization}",
        ),
        &["targetValue", "0 is out of range; expected more than 0"],
    );
    refused(
        "ScalingPolicy",
        "p",
        &tracking("targetValue: 50"),
        &["predefinedMetricSpecification or customizedMetricSpecification"],
    );
    refused(
        "ScalingPolicy",
        "p",
        "{resourceId: service/other, targetTrackingScalingPolicyConfiguration: {targetValue: 50, predefinedMetricSpecification: {predefinedMetricType: ECSServiceAverageCPUUtilization}}}",
        &["there is no ScalableTarget `other`"],
    );
    refused(
        "ScalingPolicy",
        "p",
        "{resourceId: service/worker, stepScalingPolicyConfiguration: {adjustmentType: ChangeInCapacity, stepAdjustments: [{metricIntervalLowerBound: 0, metricIntervalUpperBound: 5, scalingAdjustment: 1}, {metricIntervalLowerBound: 6, scalingAdjustment: 2}]}}",
        &["there is a gap from 5 to 6"],
    );
    refused(
        "Alarm",
        "a",
        "{metricName: CPUUtilisation, namespace: AWS/ECS, period: 10, evaluationPeriods: 1, threshold: 1, comparisonOperator: GreaterThanThreshold}",
        &["AWS/ECS has no metric `CPUUtilisation`"],
    );
    refused(
        "Alarm",
        "a",
        "{metricName: m, namespace: N, period: 15, evaluationPeriods: 1}",
        &["15 is no period", "spec.threshold", "spec.comparisonOperator"],
    );
    let output = place.steady(&["metric", "put", "AWS/ECS/CPUUtilization", "1"]);
    assert!(text(&output).contains("is Steady's own"), "{}", text(&output));
}
