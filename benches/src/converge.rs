//! P3: a service of many hollow tasks, from Apply until a watch has told of the last RUNNING task; then scaled to 0
//! until the last one is STOPPED. The yardstick is the same etcd without Steady, in alternation.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::args::Scale;
use crate::machine::Others;
use crate::peers;
use crate::report::{Report, Target};
use crate::sample::{Sample, millis};
use crate::store::Store;
use crate::subject::Subject;
use crate::tasks::{self, Course, Tasks};
use crate::workspace::Workspace;

/// How long each yardstick writes per round.
const RAW: Duration = Duration::from_millis(1500);
/// Between a yardstick and what is measured beside it: neither pays for the other's last writes.
const REST: Duration = Duration::from_secs(1);
/// What swarmkit reached at best times five: the scorecard's target, tasks/s.
const TARGET: f64 = 4400.0;

#[derive(Default)]
struct Found {
    single: Sample,
    batched: Sample,
    up: Way,
    down: Way,
    delete: Sample,
}

/// One way: up or down.
#[derive(Default)]
struct Way {
    rate: Sample,
    answered: Sample,
    first: Sample,
    decided: Sample,
    placed: Sample,
    done: Sample,
    revisions: Sample,
    writes: Sample,
    to_single: Sample,
    to_batched: Sample,
    overhead: Sample,
    kinds: BTreeMap<String, u64>,
}

/// A run's parts.
struct Run {
    store: Store,
    subject: Subject,
    watch: Tasks,
    value: Bytes,
    scale: Scale,
}

/// Measures.
pub(crate) async fn run(workspace: &Workspace, scale: Scale) -> anyhow::Result<Report> {
    let mut run = Run::start(workspace, scale).await?;
    let others = Others::watch(&[run.subject.pid, run.store.pid]);
    let mut found = Found::default();
    for round in 1..=scale.rounds {
        run.round(round, &mut found).await?;
    }
    let mut report = Report::new("converge", "P3", scale);
    report.others(&others);
    let memory = crate::machine::resident(run.subject.pid);
    run.subject.stop().await?;
    run.store.stop().await;
    found.tell(run.value.len(), &mut report);
    report.figure("memory of steady at the end", "MiB", memory);
    Ok(report)
}

impl Run {
    async fn start(workspace: &Workspace, scale: Scale) -> anyhow::Result<Self> {
        let store = Store::start(&workspace.directory("etcd")?, &workspace.steady).await?;
        let subject = Subject::cluster(workspace, &store, scale.instances).await?;
        tasks::define(&subject.client).await?;
        let mut watch = Tasks::follow(&subject.client).await?;
        // Not measured: it warms everything up, and leaves a task whose size is the yardstick's.
        watch.up(&subject.client, "warm", 20).await?;
        let value = store.task().await?;
        watch.down(&subject.client, "warm").await?;
        tasks::delete(&subject.client, "warm").await?;
        Ok(Run { store, subject, watch, value, scale })
    }

    async fn round(&mut self, round: u32, found: &mut Found) -> anyhow::Result<()> {
        let name = format!("round-{round}");
        let single = self.store.puts(&self.value, 64, 1, RAW).await?;
        let batched = self.store.puts(&self.value, 8, 100, RAW).await?;
        found.single.push(single);
        found.batched.push(batched);
        tokio::time::sleep(REST).await;
        let before = self.store.revision().await?;
        let course = self.watch.up(&self.subject.client, &name, self.scale.tasks).await?;
        self.add(&mut found.up, before, course, (single, batched)).await?;
        tokio::time::sleep(REST).await;
        let before = self.store.revision().await?;
        let course = self.watch.down(&self.subject.client, &name).await?;
        self.add(&mut found.down, before, course, (single, batched)).await?;
        found.delete.push(millis(tasks::delete(&self.subject.client, &name).await?));
        Ok(())
    }

    async fn add(
        &self,
        way: &mut Way,
        before: steady_core::Revision,
        course: Course,
        (single, batched): (f64, f64),
    ) -> anyhow::Result<()> {
        let after = self.store.revision().await?;
        let kinds = self.store.writes(before, after).await?;
        let rate = f64::from(self.scale.tasks) / course.done.as_secs_f64();
        let writes = kinds.values().sum::<u64>() as f64;
        way.rate.push(rate);
        way.answered.push(millis(course.answered));
        way.first.push(millis(course.first));
        way.decided.push(millis(course.decided));
        way.placed.push(millis(course.placed));
        way.done.push(millis(course.done));
        way.revisions.push((after.0 - before.0) as f64);
        way.writes.push(writes);
        way.to_single.push(rate / single);
        way.to_batched.push(rate / batched);
        way.overhead.push(course.done.as_secs_f64() / (writes / batched));
        way.kinds = kinds;
        Ok(())
    }
}

impl Found {
    fn tell(self, size: usize, report: &mut Report) {
        report.yardstick(&format!("raw etcd, {size} B, 1 put, 64 clients"), "puts/s", self.single);
        report.yardstick(&format!("raw etcd, {size} B, 100 puts, 8 clients"), "puts/s", self.batched);
        report.goal("up: apply to all RUNNING", "tasks/s", self.up.rate.clone(), Target::AtLeast(TARGET));
        report.figure("down: scale 0 to all STOPPED", "tasks/s", self.down.rate.clone());
        self.up.tell("up", "created", report);
        self.down.tell("down", "told to stop", report);
        report.figure("delete of the empty service", "ms", self.delete);
        report.peers(&peers::CONVERGE);
    }
}

impl Way {
    fn tell(self, way: &str, decided: &str, report: &mut Report) {
        report.figure(&format!("{way}: tasks/s over single puts/s"), "x", self.to_single);
        report.figure(&format!("{way}: tasks/s over batched puts/s"), "x", self.to_batched);
        report.figure(&format!("{way}: time over the same writes, batched"), "x", self.overhead);
        report.figure(&format!("{way}: request answered"), "ms", self.answered);
        report.figure(&format!("{way}: first task {decided}"), "ms", self.first);
        report.figure(&format!("{way}: all {decided}"), "ms", self.decided);
        if self.placed.quantile(1.0) > 0.0 {
            report.figure(&format!("{way}: all placed"), "ms", self.placed);
        }
        report.figure(&format!("{way}: all there"), "ms", self.done);
        report.figure(&format!("{way}: etcd transactions"), "revisions", self.revisions);
        report.figure(&format!("{way}: keys written"), "writes", self.writes);
        let kinds: Vec<String> = self.kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        report.note(format!("keys written {way} in the last round: {}", kinds.join(", ")));
    }
}
