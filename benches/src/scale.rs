//! How soon there are enough tasks: from the first of many requests until a service that tracks requests per target has its tasks.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use steady_core::v1::{ApplyRequest, DeleteRequest, ListRequest, Object, ObjectRef};
use steady_core::{Kind, manifest};
use tokio::process::Command;

use crate::args::Scale;
use crate::machine::Others;
use crate::peers;
use crate::report::Report;
use crate::sample::Sample;
use crate::store::Store;
use crate::subject::Subject;
use crate::workspace::Workspace;

/// Tasks before the load, and with it.
const FEW: i32 = 2;
const MANY: i32 = 8;
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(240);
const LOOK: Duration = Duration::from_millis(50);
/// What is measured has its periods: each round begins somewhere else in one.
const PHASE: Duration = Duration::from_millis(3700);
/// Until a load balancer has counted nothing for a period or two.
const QUIET: Duration = Duration::from_secs(25);

/// Measures.
pub(crate) async fn run(workspace: &Workspace, scale: Scale) -> anyhow::Result<Report> {
    let mut report = Report::new("scale", "issue: auto scaling", scale);
    report.peers(&peers::SCALE);
    let others = Others::watch(&[]);
    let store = Store::start(&workspace.directory("etcd")?, &workspace.steady).await?;
    let directory = workspace.directory("steady")?;
    let data = directory.join("data").display().to_string();
    let args = ["up", "--data-dir", &data, "--runtime", "process", "--etcd", &store.endpoint];
    let mut subject = Subject::spawn(&workspace.steady, &directory, &args)?;
    subject.answers().await?;
    subject.instances(1).await?;
    let (mut decided, mut enough) = (Sample::default(), Sample::default());
    for round in 0..scale.rounds {
        let port = declare(&subject, round).await?;
        until(&subject, round, FEW).await?;
        tokio::time::sleep(QUIET + PHASE * round).await;
        let load = load(port)?;
        let began = Instant::now();
        until_desired(&subject, round).await?;
        decided.push(began.elapsed().as_secs_f64());
        until(&subject, round, MANY).await?;
        enough.push(began.elapsed().as_secs_f64());
        drop(load);
        let r#ref =
            ObjectRef { kind: Kind::Service.into(), name: name(round), cluster: "default".into(), ..<_>::default() };
        subject.client.objects().delete(DeleteRequest { r#ref: Some(r#ref) }).await?;
    }
    report.figure("load begins until desiredCount is written", "s", decided);
    report.figure(&format!("load begins until {MANY} tasks run and are healthy, {FEW} before"), "s", enough);
    report.others(&others);
    report.note(
        "target tracking of requests per target with its defaults: three periods of ten seconds above the target"
            .into(),
    );
    subject.stop().await?;
    store.stop().await;
    Ok(report)
}

fn name(round: u32) -> String {
    format!("web-{round}")
}

/// A service of its own for each round, and the port where it answers.
async fn declare(subject: &Subject, round: u32) -> anyhow::Result<u16> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let name = name(round);
    let text = format!(
        "apiVersion: steady/v1
kind: TargetGroup
metadata: {{name: {name}}}
spec: {{healthCheckIntervalSeconds: 1, healthCheckTimeoutSeconds: 2, deregistrationDelaySeconds: 5}}
---
apiVersion: steady/v1
kind: Listener
metadata: {{name: {name}}}
spec: {{port: {port}, defaultActions: [{{type: forward, targetGroupArn: {name}}}]}}
---
apiVersion: steady/v1
kind: TaskDefinition
metadata: {{name: {name}}}
spec:
  containerDefinitions: [{{name: web, image: 'steady:self', command: [steady, hello], memory: 64, portMappings: [{{containerPort: 8080}}]}}]
---
apiVersion: steady/v1
kind: Service
metadata: {{name: {name}}}
spec: {{taskDefinition: {name}, loadBalancers: [{{targetGroupArn: {name}, containerName: web, containerPort: 8080}}]}}
---
apiVersion: steady/v1
kind: ScalableTarget
metadata: {{name: {name}}}
spec: {{minCapacity: {FEW}, maxCapacity: {MANY}}}
---
apiVersion: steady/v1
kind: ScalingPolicy
metadata: {{name: {name}}}
spec:
  resourceId: service/{name}
  targetTrackingScalingPolicyConfiguration:
    targetValue: 6000
    predefinedMetricSpecification: {{predefinedMetricType: ALBRequestCountPerTarget}}
"
    );
    let parsed = manifest::parse("scale.yaml", text.as_bytes(), None);
    if let Some(fault) = parsed.faults.first() {
        bail!("{fault}");
    }
    let objects = parsed.documents.into_iter().map(|document| document.object).collect();
    subject.client.objects().apply(ApplyRequest { objects, dry_run: false }).await.context("nothing was applied")?;
    Ok(port)
}

/// Requests without end, until it is dropped.
fn load(port: u16) -> anyhow::Result<tokio::process::Child> {
    let url = format!("http://127.0.0.1:{port}/");
    let mut command = Command::new(Path::new("wrk"));
    command.args(["-t1", "-c4", "-d", "600s", &url]).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command.spawn().context("wrk (install the package wrk)")
}

async fn service(subject: &Subject, round: u32) -> anyhow::Result<Option<Object>> {
    let request = ListRequest { kind: Kind::Service.into(), ..ListRequest::default() };
    let listed = subject.client.objects().list(request).await?.into_inner().items;
    Ok(listed.into_iter().find(|object| object.name() == name(round)))
}

async fn until_desired(subject: &Subject, round: u32) -> anyhow::Result<()> {
    wait(subject, round, "it is not scaled", |object| {
        object.as_service().and_then(|service| service.spec.as_ref()).is_some_and(|spec| spec.desired_count() == MANY)
    })
    .await
}

/// Waits until so many tasks run, healthy for the load balancer.
async fn until(subject: &Subject, round: u32, tasks: i32) -> anyhow::Result<()> {
    wait(subject, round, "its tasks do not run", |object| {
        let status = object.as_service().and_then(|service| service.status.as_ref());
        status.is_some_and(|status| status.steady && status.running_count() == tasks)
    })
    .await
}

async fn wait(subject: &Subject, round: u32, what: &str, is_so: impl Fn(&Object) -> bool) -> anyhow::Result<()> {
    let began = Instant::now();
    while !service(subject, round).await?.as_ref().is_some_and(&is_so) {
        if began.elapsed() > PATIENCE {
            bail!("{what} after {PATIENCE:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
