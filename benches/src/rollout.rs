//! A service's tasks rolled from one version to the next, from the change until the old ones are gone and the rollout says it
//! is complete; beside Docker Swarm, which does the same with containers on a private Docker Engine of this machine. Steady
//! does it with hollow tasks, and with containers on the same engine.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use steady_core::v1::{
    ApplyRequest, ContainerDefinition, GetRequest, KeyValuePair, Object, Service, ServiceSpec, TaskDefinition,
    TaskDefinitionSpec,
};
use steady_core::{DEFAULT_CLUSTER, Key, Kind};
use steady_runtime::Client;

use crate::args::Scale;
use crate::engine::{Engine, IMAGE};
use crate::machine::Others;
use crate::report::Report;
use crate::sample::Sample;
use crate::store::Store;
use crate::subject::Subject;
use crate::workspace::Workspace;

const NAME: &str = "rollout";
/// Longest wait for a rollout.
const PATIENCE: Duration = Duration::from_secs(600);
/// Until the first version's tasks count.
const SETTLED: Duration = Duration::from_secs(12);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Measures.
pub(crate) async fn run(workspace: &Workspace, scale: Scale) -> anyhow::Result<Report> {
    let mut report = Report::new("rollout", "rolling update", scale);
    let others = Others::watch(&[]);
    let (mut swarm, mut hollow, mut docker) = (Sample::default(), Sample::default(), Sample::default());
    for round in 1..=scale.rounds {
        let engine = Engine::start(workspace, round).await?;
        swarm.push(self::swarm(&engine, scale.tasks).await?.as_secs_f64());
        docker.push(steady(workspace, Some(&engine), &format!("docker-{round}"), scale.tasks).await?.as_secs_f64());
        engine.stop().await?;
        hollow.push(steady(workspace, None, &format!("hollow-{round}"), scale.tasks).await?.as_secs_f64());
    }
    report.others(&others);
    report.figure("hollow over Docker Swarm", "x", hollow.median() / swarm.median());
    report.figure("containers over Docker Swarm", "x", docker.median() / swarm.median());
    report.yardstick("Docker Swarm, containers", "s", swarm);
    report.figure("Steady, hollow tasks", "s", hollow);
    report.figure("Steady, containers on the same engine", "s", docker);
    report.note(
        "Swarm: --update-parallelism 0 --update-order start-first, its monitor of 5 s a task left as it is; Steady: 100 % to \
         200 %, a task without health check counts after 10 s"
            .into(),
    );
    Ok(report)
}

/// Rolls a service of a new Steady: of containers on an engine, or of hollow tasks.
async fn steady(workspace: &Workspace, engine: Option<&Engine>, name: &str, tasks: u32) -> anyhow::Result<Duration> {
    let store = Store::start(&workspace.directory(&format!("etcd-{name}"))?, &workspace.steady).await?;
    let directory = workspace.directory(name)?;
    let data = directory.join("data").display().to_string();
    let mut args = vec!["up", "--data-dir", &data, "--etcd", &store.endpoint];
    match engine {
        Some(engine) => args.extend(["--runtime", "docker", "--docker-socket", &engine.socket]),
        None => args.extend(["--runtime", "hollow", "--instances", "4"]),
    }
    let mut subject = Subject::spawn(&workspace.steady, &directory, &args)?;
    subject.answers().await?;
    subject.instances(1).await?;
    declare(&subject.client, 1, tasks).await?;
    until_steady(&subject.client, 1).await?;
    // Tasks that have not run for ten seconds make room for nobody, and nobody waits for them.
    tokio::time::sleep(SETTLED).await;
    let began = Instant::now();
    declare(&subject.client, 2, tasks).await?;
    until_steady(&subject.client, 2).await?;
    let took = began.elapsed();
    declare(&subject.client, 2, 0).await?;
    until_steady(&subject.client, 2).await?;
    subject.stop().await?;
    store.stop().await;
    Ok(took)
}

async fn declare(client: &Client, version: u32, tasks: u32) -> anyhow::Result<()> {
    let container = ContainerDefinition {
        name: "main".into(),
        image: IMAGE.into(),
        command: vec!["sleep".into(), "100000".into()],
        memory: 16,
        stop_timeout: Some(1),
        environment: vec![KeyValuePair { name: "VERSION".into(), value: version.to_string() }],
        ..ContainerDefinition::default()
    };
    let definition = TaskDefinitionSpec {
        family: NAME.into(),
        container_definitions: vec![container],
        ..TaskDefinitionSpec::default()
    };
    let service = ServiceSpec {
        task_definition: NAME.into(),
        desired_count: Some(i32::try_from(tasks)?),
        ..ServiceSpec::default()
    };
    let objects = vec![
        Object::new("", NAME, TaskDefinition { spec: Some(definition), status: None }),
        Object::new(DEFAULT_CLUSTER, NAME, Service { spec: Some(service), status: None }),
    ];
    client.objects().apply(ApplyRequest { objects, dry_run: false }).await.context("the service was not applied")?;
    Ok(())
}

/// Waits until the service is steady as it was last declared.
async fn until_steady(client: &Client, version: u32) -> anyhow::Result<()> {
    let began = Instant::now();
    let reference = Key::new(Kind::Service, DEFAULT_CLUSTER, NAME).reference();
    loop {
        let request = GetRequest { r#ref: Some(reference.clone()) };
        let object = client.objects().get(request).await?.into_inner().object.context("no service")?;
        let (generation, service) = (object.meta().generation, object.as_service().cloned().unwrap_or_default());
        let (spec, status) = (service.spec.unwrap_or_default(), service.status.unwrap_or_default());
        let newest = spec.task_definition == format!("{NAME}:{version}");
        if newest && status.steady && status.observed_generation == generation {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            bail!("the service is not steady after {PATIENCE:?}: {status:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// How long Docker Swarm takes for the same.
async fn swarm(engine: &Engine, tasks: u32) -> anyhow::Result<Duration> {
    engine.docker(&["swarm", "init", "--advertise-addr", "127.0.0.1"]).await?;
    let count = tasks.to_string();
    let create = ["service", "create", "--detach=false", "--quiet", "--no-resolve-image", "--name", NAME];
    let how = ["--replicas", &count, "--update-parallelism", "0", "--update-order", "start-first"];
    let what = ["--stop-grace-period", "1s", "--env", "VERSION=1", IMAGE, "sleep", "100000"];
    engine.docker(&[&create[..], &how, &what].concat()).await?;
    let began = Instant::now();
    let update =
        ["service", "update", "--detach=false", "--quiet", "--no-resolve-image", "--env-add", "VERSION=2", NAME];
    engine.docker(&update).await?;
    while engine.docker(&["ps", "-q"]).await?.lines().count() != tasks as usize {
        tokio::time::sleep(LOOK).await;
    }
    let took = began.elapsed();
    engine.docker(&["service", "rm", NAME]).await?;
    engine.docker(&["swarm", "leave", "--force"]).await?;
    while !engine.docker(&["ps", "-q"]).await?.is_empty() {
        tokio::time::sleep(LOOK * 5).await;
    }
    Ok(took)
}
