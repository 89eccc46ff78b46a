//! P2: services of 50,000 tasks in all, from Apply until a watch has told of the last one bound to one of 10,000 hollow
//! instances; with one scheduler, and with three beside each other. The yardstick is the same etcd, without Steady, taking
//! as many writes of as many bytes in transactions of 100.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use steady_core::v1::watch_response::Phase;
use steady_core::v1::{ListRequest, Object, WatchRequest};
use steady_core::{Kind, task};
use steady_runtime::Client;

use crate::args::Scale;
use crate::machine::{self, Others};
use crate::report::{Report, Target};
use crate::sample::millis;
use crate::store::Store;
use crate::subject::{Child, Subject};
use crate::tasks;
use crate::workspace::Workspace;

/// How long the yardstick writes.
const RAW: Duration = Duration::from_secs(3);
/// Longest wait for all tasks to be bound.
const PATIENCE: Duration = Duration::from_secs(240);
/// Most tasks of a service (ECS).
const SERVICE: u32 = 5000;
/// Schedulers beside each other.
const SCHEDULERS: [usize; 2] = [1, 3];
/// The other controllers.
const OTHERS: &str = "service,deployment,instance,reaper";

/// Measures.
pub(crate) async fn run(workspace: &Workspace, scale: Scale, total: u32) -> anyhow::Result<Report> {
    let mut report = Report::new("bind", "P2", scale);
    report.note(format!("{total} tasks in services of {SERVICE}"));
    for schedulers in SCHEDULERS {
        one(workspace, scale.instances, total, schedulers, &mut report).await?;
    }
    Ok(report)
}

async fn one(
    workspace: &Workspace,
    instances: u32,
    total: u32,
    schedulers: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    let store = Store::start(&workspace.directory(&format!("etcd-{schedulers}"))?, &workspace.steady).await?;
    let directory = workspace.directory(&format!("steady-{schedulers}"))?;
    let mut subject = Subject::spawn(&workspace.steady, &directory, &["apiserver", "--etcd", &store.endpoint])?;
    subject.answers().await?;
    let mut children = Vec::new();
    for number in 0..schedulers {
        let name = format!("scheduler-{schedulers}-{number}");
        children.push(Child::controllers_of(workspace, &subject, "scheduler", &name)?);
    }
    let others = Child::controllers_of(workspace, &subject, OTHERS, &format!("controller-{schedulers}"))?;
    let data = workspace.directory(&format!("agent-data-{schedulers}"))?;
    let agents = Child::agents(workspace, &subject, instances, &data, &format!("agent-{schedulers}"))?;
    subject.instances(instances).await?;
    tasks::define(&subject.client).await?;
    let mut watch = Bound::follow(&subject.client).await?;
    let before = store.revision().await?;
    let pids: Vec<u32> = children.iter().map(|child| child.pid).chain([subject.pid, store.pid, others.pid]).collect();
    let others_did = Others::watch(&pids);
    let began = Instant::now();
    for (number, count) in services(total).enumerate() {
        tasks::service(&subject.client, &format!("service-{number}"), count).await?;
    }
    let took = watch.until(total as usize, began).await?;
    let after = store.revision().await?;
    let bytes = watch.bytes as f64 / f64::from(total);
    let writes: u64 = store.writes(before, after).await?.values().sum();
    // How the schedulers fared is told with their leases, every few seconds.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let (commits, conflicts) = told(&subject.client).await?;
    let what = |text: &str| format!("{schedulers} scheduler{}: {text}", if schedulers == 1 { "" } else { "s" });
    report.figure(&what("apply to all bound"), "ms", millis(took));
    report.figure(&what("tasks bound"), "tasks/s", f64::from(total) / took.as_secs_f64());
    let value = vec![b'x'; bytes as usize].into();
    let raw = store.puts(&value, 8, 100, RAW).await?;
    report.yardstick(&what(&format!("raw etcd, {bytes:.0} B, 100 puts, 8 clients")), "puts/s", raw);
    let ratio = took.as_secs_f64() / (writes as f64 / raw);
    report.figure(&what("keys written by then"), "writes", writes as f64);
    report.goal(&what("time over the same writes, batched"), "x", ratio, Target::AtMost(1.3));
    report.figure(&what("commits of the schedulers"), "commits", commits as f64);
    report.figure(&what("commits that met another one's"), "commits", conflicts as f64);
    let memory = children.iter().map(|child| machine::resident(child.pid)).fold(0.0, f64::max);
    report.figure(&what("memory of the largest scheduler"), "MiB", memory);
    report.figure(&what("memory of the API server"), "MiB", machine::resident(subject.pid));
    report.others(&others_did);
    for child in children.into_iter().chain([others, agents]) {
        child.kill().await?;
    }
    subject.stop().await?;
    store.stop().await;
    Ok(())
}

/// Tasks of each service.
fn services(total: u32) -> impl Iterator<Item = u32> {
    (0..total.div_ceil(SERVICE)).map(move |number| SERVICE.min(total - number * SERVICE))
}

/// Commits and conflicts of all schedulers.
async fn told(client: &Client) -> anyhow::Result<(i64, i64)> {
    let request = ListRequest { kind: Kind::Lease.into(), ..ListRequest::default() };
    let leases = client.objects().list(request).await?.into_inner().items;
    let schedulers = leases.iter().filter(|lease| lease.name().starts_with("controller.scheduler."));
    let told = schedulers.filter_map(|lease| lease.as_lease()?.status.as_ref());
    Ok(told.fold((0, 0), |(commits, conflicts), status| (commits + status.commits, conflicts + status.conflicts)))
}

/// Which tasks are bound, as a watch tells.
struct Bound {
    stream: tonic::Streaming<steady_core::v1::WatchResponse>,
    names: BTreeSet<String>,
    /// Of them together, as they were when they were bound.
    bytes: usize,
}

impl Bound {
    async fn follow(client: &Client) -> anyhow::Result<Self> {
        let request = WatchRequest { kinds: vec![Kind::Task.into()], ..WatchRequest::default() };
        let stream = client.objects().watch(request).await?.into_inner();
        let mut watch = Bound { stream, names: BTreeSet::new(), bytes: 0 };
        while watch.step(Instant::now()).await? != Phase::InitDone {}
        Ok(watch)
    }

    async fn until(&mut self, count: usize, began: Instant) -> anyhow::Result<Duration> {
        while self.names.len() < count {
            self.step(began).await?;
        }
        Ok(began.elapsed())
    }

    async fn step(&mut self, began: Instant) -> anyhow::Result<Phase> {
        let left = PATIENCE.saturating_sub(began.elapsed());
        let message = match tokio::time::timeout(left, self.stream.next()).await {
            Ok(Some(message)) => message.context("the watch failed")?,
            Ok(None) => bail!("the watch ended"),
            Err(_) => bail!("{} tasks are bound after {PATIENCE:?}", self.names.len()),
        };
        let phase = message.phase();
        for object in message.events.into_iter().filter_map(|event| event.object) {
            let is_bound = task::of(&object).is_some_and(|task| !task.spec.container_instance.is_empty());
            if is_bound && self.names.insert(object.name().to_owned()) {
                self.bytes += size(&object);
            }
        }
        Ok(phase)
    }
}

fn size(object: &Object) -> usize {
    use prost::Message as _;
    object.encoded_len()
}
