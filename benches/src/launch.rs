//! A container's start, from `RunTask` until a watch has told that the task runs; beside the engine's own command line with the same
//! image (`docker run`, `ctr run`), in alternation: one at a time, and eight.

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
    engine.share_image(&workspace.directory("image")?).await?;
    let mut report = Report::new("launch", "P4", scale);
    for peer in [Peer::Docker, Peer::Containerd] {
        beside(workspace, scale, &engine, peer, &mut report).await?;
    }
    report.note("docker run and ctr run are the command lines', from their start until they have ended".into());
    engine.stop().await?;
    Ok(report)
}

/// The engine, by its own command line.
#[derive(Clone, Copy)]
enum Peer {
    Docker,
    Containerd,
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Peer::Docker => "docker",
            Peer::Containerd => "containerd",
        }
    }

    fn command(self) -> &'static str {
        match self {
            Peer::Docker => "docker run -d",
            Peer::Containerd => "ctr run -d",
        }
    }

    /// Until the last one of them has started.
    async fn launch(self, engine: &Engine, count: usize) -> anyhow::Result<Duration> {
        let took = match self {
            Peer::Docker => docker_run(engine, count).await?,
            Peer::Containerd => ctr_run(engine, count).await?,
        };
        tokio::time::sleep(REST).await;
        Ok(took)
    }
}

async fn beside(
    workspace: &Workspace,
    scale: Scale,
    engine: &Engine,
    peer: Peer,
    report: &mut Report,
) -> anyhow::Result<()> {
    let name = peer.name();
    let store = Store::start(&workspace.directory(&format!("etcd-{name}"))?, &workspace.steady).await?;
    let directory = workspace.directory(&format!("steady-{name}"))?;
    let (data, socket, containerd) =
        (directory.join("data").display().to_string(), engine.socket.clone(), engine.containerd());
    let socket = match peer {
        Peer::Docker => ["--docker-socket", &socket],
        Peer::Containerd => ["--containerd-socket", &containerd],
    };
    let args = ["up", "--data-dir", &data, "--etcd", &store.endpoint, "--runtime", name, socket[0], socket[1]];
    let mut subject = Subject::spawn(&workspace.steady, &directory, &args)?;
    subject.answers().await?;
    subject.instances(1).await?;
    tasks::define(&subject.client).await?;
    let mut watch = Tasks::follow(&subject.client).await?;
    let others = Others::watch(&[]);
    for (what, count) in [("one", 1), ("eight at a time", TOGETHER)] {
        let (mut theirs, mut steady) = (Sample::default(), Sample::default());
        // The first one of each is for the caches.
        for round in 0..=scale.rounds {
            let (by_peer, by_steady) =
                (peer.launch(engine, count).await?, run_task(&subject, &mut watch, round, count).await?);
            if round > 0 {
                theirs.push(millis(by_peer));
                steady.push(millis(by_steady));
            }
        }
        let (ratio, command) = (steady.median() / theirs.median(), peer.command());
        report.goal(&format!("RunTask to RUNNING over {command}, {what}"), "x", ratio, Target::AtMost(1.15));
        report.yardstick(&format!("{command}, {what}"), "ms", theirs);
        report.figure(&format!("RunTask to RUNNING on {name}, {what}"), "ms", steady);
    }
    report.others(&others);
    subject.stop().await?;
    store.stop().await;
    Ok(())
}

/// Until the last one of them has started.
async fn ctr_run(engine: &Engine, count: usize) -> anyhow::Result<Duration> {
    let image = format!("docker.io/library/{IMAGE}");
    let ids: Vec<String> = (0..count).map(|at| format!("peer-{at}")).collect();
    let commands: Vec<Vec<&str>> =
        ids.iter().map(|id| vec!["run", "-d", "--memory-limit", "16777216", &image, id, "sleep", "100000"]).collect();
    let began = Instant::now();
    try_join_all(commands.iter().map(|command| engine.ctr(command))).await?;
    let took = began.elapsed();
    for id in &ids {
        engine.ctr(&["tasks", "rm", "--force", id]).await?;
        engine.ctr(&["containers", "rm", id]).await?;
    }
    Ok(took)
}

/// Until the last one of them has started.
async fn docker_run(engine: &Engine, count: usize) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let command = ["run", "-d", "--memory", "16m", IMAGE, "sleep", "100000"];
    let ids = try_join_all((0..count).map(|_| engine.docker(&command))).await?;
    let took = began.elapsed();
    let ids: Vec<&str> = ids.iter().map(|id| id.trim()).collect();
    engine.docker(&[&["rm", "-f"][..], &ids].concat()).await?;
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
