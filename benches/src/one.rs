//! P6: one task at a time, from `RunTask` until a watch has told that it runs. The yardstick is a raw etcd watch.

use std::time::Instant;

use steady_core::v1::{RunTaskRequest, Task};

use crate::args::Scale;
use crate::machine::Others;
use crate::peers;
use crate::report::{Report, Target};
use crate::sample::{Sample, millis};
use crate::store::Store;
use crate::subject::Subject;
use crate::tasks::{self, FAMILY, Tasks};
use crate::workspace::Workspace;

/// Calls between two visits to the yardstick.
const TURN: u32 = 10;

/// Measures.
pub(crate) async fn run(workspace: &Workspace, scale: Scale) -> anyhow::Result<Report> {
    let store = Store::start(&workspace.directory("etcd")?, &workspace.steady).await?;
    let subject = Subject::cluster(workspace, &store, scale.instances).await?;
    tasks::define(&subject.client).await?;
    let mut watch = Tasks::follow(&subject.client).await?;
    for n in 0..TURN {
        call(&subject, &mut watch, &format!("warm-{n}")).await?;
    }
    let value = store.task().await?;
    let others = Others::watch(&[subject.pid, store.pid]);
    let (mut raw, mut answered, mut running) = (Sample::default(), Sample::default(), Sample::default());
    let calls = scale.rounds * scale.tasks;
    let before = store.revision().await?;
    for n in 0..calls {
        if n % TURN == 0 {
            for value in store.watch_latency(&value, TURN).await? {
                raw.push(value);
            }
        }
        let (answer, run) = call(&subject, &mut watch, &format!("call-{n}")).await?;
        answered.push(answer);
        running.push(run);
    }
    let after = store.revision().await?;
    let mut report = Report::new("one", "P6", scale);
    report.others(&others);
    let writes = store.writes(before, after).await?;
    subject.stop().await?;
    store.stop().await;
    report.yardstick("raw etcd put to watch event, p50", "ms", raw.quantile(0.5));
    report.yardstick("raw etcd put to watch event, p99", "ms", raw.quantile(0.99));
    report.figure("RunTask answered, p50", "ms", answered.quantile(0.5));
    report.figure("RunTask answered, p99", "ms", answered.quantile(0.99));
    report.goal("RunTask to RUNNING, p50", "ms", running.quantile(0.5), Target::AtMost(3.0));
    report.goal("RunTask to RUNNING, p99", "ms", running.quantile(0.99), Target::AtMost(10.0));
    report.figure("RunTask to RUNNING over raw, p50", "x", running.quantile(0.5) / raw.quantile(0.5));
    report.figure("RunTask to RUNNING, all calls", "ms", running);
    report.peers(&peers::ONE);
    let writes: Vec<String> =
        writes.iter().map(|(kind, count)| format!("{kind} {:.1}", *count as f64 / f64::from(calls))).collect();
    report.note(format!("keys written per call: {}", writes.join(", ")));
    Ok(report)
}

/// Runs one task; milliseconds until the call was answered, and until the task ran.
async fn call(subject: &Subject, watch: &mut Tasks, by: &str) -> anyhow::Result<(f64, f64)> {
    let mut client = subject.client.tasks();
    let request =
        RunTaskRequest { task_definition: FAMILY.into(), started_by: by.into(), count: 1, ..RunTaskRequest::default() };
    let ours = |task: &Task| task.spec.as_ref().is_some_and(|spec| spec.started_by == by);
    let began = Instant::now();
    let asking = async {
        let answer = client.run_task(request).await;
        answer.map(|_| began.elapsed())
    };
    let running = async { watch.running(ours).await.map(|_| began.elapsed()) };
    let (answered, running) = tokio::join!(asking, running);
    Ok((millis(answered?), millis(running?)))
}
