//! A container's start, from `RunTask` until a watch has told that the task runs; beside `docker run` of the same image on the
//! same engine, in alternation: one at a time, and eight.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::future::try_join_all;
use steady_core::v1::{RunTaskRequest, StopTaskRequest, Task};

use crate::args::Scale;
use crate::engine::{Engine, IMAGE};
use crate::machine::Others;
use crate::report::{Report, Target};
use crate::sample::{Sample, millis};
use crate::store::Store;
use crate::subject::Subject;
use crate::tasks::{self, FAMILY, Tasks};
use crate::workspace::Workspace;

/// Containers started together.
const TOGETHER: usize = 8;
/// Between two rounds: what was started is gone by then.
const REST: Duration = Duration::from_secs(3);

/// Measures.
pub(crate) async fn run(workspace: &Workspace, scale: Scale) -> anyhow::Result<Report> {
    let engine = Engine::start(workspace, 1).await?;
    let store = Store::start(&workspace.directory("etcd")?, &workspace.steady).await?;
    let directory = workspace.directory("steady")?;
    let data = directory.join("data").display().to_string();
    let args = [
        "up",
        "--data-dir",
        &data,
        "--etcd",
        &store.endpoint,
        "--runtime",
        "docker",
        "--docker-socket",
        &engine.socket,
    ];
    let mut subject = Subject::spawn(&workspace.steady, &directory, &args)?;
    subject.answers().await?;
    subject.instances(1).await?;
    tasks::define(&subject.client).await?;
    let mut watch = Tasks::follow(&subject.client).await?;
    let others = Others::watch(&[]);
    let mut report = Report::new("launch", "P4", scale);
    for (what, count) in [("one", 1), ("eight at a time", TOGETHER)] {
        let (mut docker, mut steady) = (Sample::default(), Sample::default());
        // The first one of each is for the caches.
        for round in 0..=scale.rounds {
            let (by_docker, by_steady) =
                (docker_run(&engine, count).await?, run_task(&subject, &mut watch, round, count).await?);
            if round > 0 {
                docker.push(millis(by_docker));
                steady.push(millis(by_steady));
            }
        }
        let ratio = steady.median() / docker.median();
        report.goal(&format!("RunTask to RUNNING over docker run, {what}"), "x", ratio, Target::AtMost(1.15));
        report.yardstick(&format!("docker run -d, {what}"), "ms", docker);
        report.figure(&format!("RunTask to RUNNING, {what}"), "ms", steady);
    }
    report.others(&others);
    report.note("docker run is the command line's, from its start until it has printed the container's id".into());
    subject.stop().await?;
    store.stop().await;
    engine.stop().await?;
    Ok(report)
}

/// Until the last one of them has started.
async fn docker_run(engine: &Engine, count: usize) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let command = ["run", "-d", "--memory", "16m", IMAGE, "sleep", "100000"];
    let ids = try_join_all((0..count).map(|_| engine.docker(&command))).await?;
    let took = began.elapsed();
    let ids: Vec<&str> = ids.iter().map(|id| id.trim()).collect();
    engine.docker(&[&["rm", "-f"][..], &ids].concat()).await?;
    tokio::time::sleep(REST).await;
    Ok(took)
}

/// Until a watch has told that the last one of them runs.
async fn run_task(subject: &Subject, watch: &mut Tasks, round: u32, count: usize) -> anyhow::Result<Duration> {
    let by = format!("{count}-{round}");
    let began = Instant::now();
    let request = RunTaskRequest {
        task_definition: FAMILY.into(),
        started_by: by.clone(),
        count: i32::try_from(count)?,
        ..RunTaskRequest::default()
    };
    let answer = subject.client.tasks().run_task(request).await.context("RunTask")?.into_inner();
    let names: Vec<String> = answer.tasks.iter().map(|task| task.name().to_owned()).collect();
    watch.all_running(count, |task: &Task| task.spec.as_ref().is_some_and(|spec| spec.started_by == by)).await?;
    let took = began.elapsed();
    for task in names {
        let request = StopTaskRequest { task, ..StopTaskRequest::default() };
        subject.client.tasks().stop_task(request).await.context("StopTask")?;
    }
    tokio::time::sleep(REST).await;
    Ok(took)
}
