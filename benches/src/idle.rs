//! P14: what a cluster costs in which nothing happens: writes to etcd, and processor time.

use std::time::{Duration, Instant};

use crate::args::Scale;
use crate::machine::{self, Others};
use crate::report::{Report, Target};
use crate::sample::{Sample, millis};
use crate::store::Store;
use crate::subject::Subject;
use crate::tasks::{self, Tasks};
use crate::workspace::Workspace;

/// After the last task runs: the service is told steady, events are written, leaders say that nothing waits any more.
const SETTLE: Duration = Duration::from_secs(25);
/// Until the changes of the start are forgotten.
const FORGOTTEN: Duration = Duration::from_secs(100);
/// How long each round looks.
const LOOK: Duration = Duration::from_secs(20);

/// Measures.
pub(crate) async fn run(workspace: &Workspace, scale: Scale) -> anyhow::Result<Report> {
    let store = Store::start(&workspace.directory("etcd")?, &workspace.steady).await?;
    let subject = Subject::cluster(workspace, &store, scale.instances).await?;
    tasks::define(&subject.client).await?;
    let mut watch = Tasks::follow(&subject.client).await?;
    let course = watch.up(&subject.client, "idle", scale.tasks).await?;
    drop(watch);
    tokio::time::sleep(SETTLE).await;
    let others = Others::watch(&[subject.pid, store.pid]);
    let (mut revisions, mut steady, mut etcd) = (Sample::default(), Sample::default(), Sample::default());
    let mut report = Report::new("idle", "P14", scale);
    for _ in 0..scale.rounds {
        let before = (store.revision().await?, machine::used(subject.pid)?.own, machine::used(store.pid)?.own);
        let began = Instant::now();
        tokio::time::sleep(LOOK).await;
        let seconds = began.elapsed().as_secs_f64();
        let after = (store.revision().await?, machine::used(subject.pid)?.own, machine::used(store.pid)?.own);
        revisions.push((after.0.0 - before.0.0) as f64);
        steady.push((after.1 - before.1) / seconds * 100.0);
        etcd.push((after.2 - before.2) / seconds * 100.0);
        let writes = store.writes(before.0, after.0).await?;
        if !writes.is_empty() {
            report.note(format!("written though nothing happened: {writes:?}"));
        }
    }
    report.others(&others);
    report.goal(&format!("etcd writes in {} s", LOOK.as_secs()), "revisions", revisions, Target::AtMost(0.0));
    report.goal("processor time of steady (all in one)", "% core", steady, Target::AtMost(2.0));
    report.figure("processor time of its etcd", "% core", etcd);
    // By then an API server has forgotten what its objects were before.
    tokio::time::sleep(FORGOTTEN).await;
    report.figure("memory of steady", "MiB", machine::resident(subject.pid));
    report.figure("memory of its etcd", "MiB", machine::resident(store.pid));
    report.figure("until they all ran", "ms", millis(course.done));
    report.figure("until steady had ended", "ms", millis(subject.stop().await?));
    store.stop().await;
    Ok(report)
}
