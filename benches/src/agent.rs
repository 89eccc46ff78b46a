//! What an agent costs while nothing happens, with containers of a real engine and as many hollow instances; and how long it takes
//! until a container's end is known to whoever watches.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

use crate::args::Scale;
use crate::engine::Engine;
use crate::machine::{self, Others};
use crate::report::{Report, Target};
use crate::sample::{Sample, millis};
use crate::store::Store;
use crate::subject::{Child, Subject};
use crate::tasks::{self, Tasks};
use crate::workspace::Workspace;

/// Until what follows a start has been told.
const SETTLE: Duration = Duration::from_secs(15);
/// How long it is looked at.
const LOOK: Duration = Duration::from_secs(30);
/// Ends of containers.
const ENDS: usize = 50;
/// Hollow instances of one process.
const HOLLOW: u32 = 1000;

/// Measures.
pub(crate) async fn run(workspace: &Workspace, scale: Scale) -> anyhow::Result<Report> {
    let mut report = Report::new("agent", "P10", scale);
    let others = Others::watch(&[]);
    containers(workspace, scale, &mut report).await?;
    hollow(workspace, &mut report).await?;
    report.others(&others);
    Ok(report)
}

async fn containers(workspace: &Workspace, scale: Scale, report: &mut Report) -> anyhow::Result<()> {
    let engine = Engine::start(workspace, 1).await?;
    let store = Store::start(&workspace.directory("etcd")?, &workspace.steady).await?;
    let subject = Subject::apiserver(workspace, &store).await?;
    let controllers = Child::controllers(workspace, &subject)?;
    let directory = workspace.directory("agent")?;
    let data = directory.join("data").display().to_string();
    let args =
        ["agent", "--name", "real", "--data-dir", &data, "--runtime", "docker", "--docker-socket", &engine.socket];
    let more = ["--without-live-restore", "--metadata-address", "none", "--cpu", "16384", "--server", &subject.address];
    let agent = Child::spawn(&workspace.steady, &directory, &[&args[..], &more].concat())?;
    subject.instances(1).await?;
    tasks::define(&subject.client).await?;
    let mut watch = Tasks::follow(&subject.client).await?;
    let course = watch.up(&subject.client, "idle", scale.tasks).await?;
    let count = scale.tasks;
    report.figure(&format!("until {count} containers ran"), "ms", millis(course.done));
    tokio::time::sleep(SETTLE).await;
    let share = rest(agent.pid).await?;
    report.goal(
        &format!("processor time of an agent, {count} containers at rest"),
        "% core",
        share,
        Target::AtMost(1.0),
    );
    report.goal(
        &format!("memory of an agent with {count} containers"),
        "MiB",
        machine::resident(agent.pid),
        Target::AtMost(20.0),
    );
    let mut ends = Sample::default();
    for _ in 0..ENDS {
        let task = watch.running(|_| true).await?.name().to_owned();
        let pid = engine.docker(&["inspect", "-f", "{{.State.Pid}}", &format!("steady-{task}-main")]).await?;
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw).context("no process number")?;
        let began = Instant::now();
        kill_process(pid, Signal::KILL)?;
        watch.stopped(&task).await?;
        ends.push(millis(began.elapsed()));
    }
    report.figure("a container's end until a watch tells it, p50", "ms", ends.quantile(0.5));
    report.goal("a container's end until a watch tells it, p99", "ms", ends.quantile(0.99), Target::AtMost(1000.0));
    drop((agent, controllers));
    subject.stop().await?;
    store.stop().await;
    engine.stop().await
}

async fn hollow(workspace: &Workspace, report: &mut Report) -> anyhow::Result<()> {
    let store = Store::start(&workspace.directory("etcd-hollow")?, &workspace.steady).await?;
    let directory = workspace.directory("steady-hollow")?;
    let subject = Subject::spawn(&workspace.steady, &directory, &["apiserver", "--etcd", &store.endpoint]);
    let mut subject = subject?;
    subject.answers().await?;
    let agents = Child::agents(workspace, &subject, HOLLOW, &directory.join("data"), "hollow")?;
    subject.sessions(HOLLOW).await?;
    tokio::time::sleep(SETTLE).await;
    let share = rest(agents.pid).await?;
    report.figure(&format!("processor time of {HOLLOW} hollow instances at rest, one process"), "% core", share);
    report.figure(&format!("memory of {HOLLOW} hollow instances, one process"), "MiB", machine::resident(agents.pid));
    drop(agents);
    subject.stop().await?;
    store.stop().await;
    Ok(())
}

/// Percent of a core that a process takes.
async fn rest(pid: u32) -> anyhow::Result<f64> {
    let (before, began) = (machine::used(pid)?.own, Instant::now());
    tokio::time::sleep(LOOK).await;
    Ok((machine::used(pid)?.own - before) / began.elapsed().as_secs_f64() * 100.0)
}
