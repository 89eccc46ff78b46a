//! P13: from the write that makes a task RUNNING, or has it stop, until every thread of every load balancer obeys it; and what 10,000
//! targets cost: the time of a table and memory, beside `HAProxy` that is driven with the same ones.
//!
//! Writes are seen in the store itself, as it tells them; load balancers say in their logs which revision they obey.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use prost::Message as _;
use rustix::process::{Pid, Signal, kill_process};
use steady_apiserver::storage::{Change, Storage as _};
use steady_core::v1::{ApplyRequest, ListRequest, Object};
use steady_core::{Kind, manifest, task};
use tokio::task::JoinHandle;

use crate::args::Scale;
use crate::machine::{self, Others};
use crate::report::{Report, Target};
use crate::sample::{Sample, millis};
use crate::store::Store;
use crate::subject::{Child, Subject};
use crate::workspace::Workspace;

/// Tasks of the service whose changes are timed, and how often all of them are replaced.
const FEW: u32 = 10;
/// Most tasks of one service here; it may have 5,000.
const MOST: u32 = 4000;
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_millis(50);
/// A load balancer has heard of what was written by then.
const SETTLED: Duration = Duration::from_secs(2);

/// Measures.
pub(crate) async fn run(workspace: &Workspace, scale: Scale) -> anyhow::Result<Report> {
    let mut report = Report::new("targets", "P13", scale);
    let others = Others::watch(&[]);
    let store = Store::start(&workspace.directory("etcd")?, &workspace.steady).await?;
    let subject = Subject::cluster(workspace, &store, scale.instances).await?;
    let own = [balancer(workspace, &subject, "one", "steady")?, balancer(workspace, &subject, "two", "steady")?];
    declare(&subject, FEW, 1).await?;
    until(&subject, FEW).await?;
    tokio::time::sleep(SETTLED).await;
    let written = Written::watch(&store).await?;
    for version in 2..=scale.rounds * 5 {
        declare(&subject, FEW, version).await?;
        tokio::time::sleep(SETTLED).await;
        until(&subject, FEW).await?;
    }
    tokio::time::sleep(SETTLED).await;
    let written = written.end().await?;
    for (what, revisions) in [("RUNNING", &written.running), ("told to stop", &written.stopping)] {
        let mut took = Sample::default();
        for (revision, at) in revisions {
            let obeyed: Option<Vec<Micros>> = own.iter().map(|lb| lb.obeyed(*revision)).collect();
            let last = obeyed.and_then(|all| all.into_iter().max()).context("a load balancer does not obey")?;
            took.push(last.saturating_sub(*at) as f64 / 1000.0);
        }
        report.figure(&format!("{what} until both obey, p50 of {}", took.values().len()), "ms", took.quantile(0.5));
        report.goal(
            &format!("{what} until both obey, p99"),
            "ms",
            Sample::from(took.quantile(0.99)),
            Target::AtMost(5.0),
        );
    }
    let (small, last) = (machine::resident(own[0].child.pid), scale.rounds * 5);
    // Many targets.
    declare(&subject, scale.tasks, last).await?;
    until(&subject, scale.tasks).await?;
    tokio::time::sleep(SETTLED).await;
    let haproxy = balancer(workspace, &subject, "three", "haproxy")?;
    let began = Instant::now();
    while haproxy.said("obeyed").is_empty() {
        if began.elapsed() > PATIENCE {
            bail!("HAProxy does not obey within {PATIENCE:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
    report.yardstick("HAProxy: start of driver and HAProxy with all targets", "ms", millis(began.elapsed()));
    // A few changes, so that there are tables.
    declare(&subject, scale.tasks + FEW, last).await?;
    until(&subject, scale.tasks + FEW).await?;
    tokio::time::sleep(SETTLED * 2).await;
    let mut tables = Sample::default();
    let all = own[0].said("a table");
    let large = all.iter().filter(|line| field(line, "targets").is_some_and(|count| count >= u64::from(scale.tasks)));
    large.filter_map(|line| field(line, "micros")).for_each(|micros| tables.push(micros as f64 / 1000.0));
    let targets = format!("{} targets", scale.tasks);
    report.figure(&format!("a table of {targets}, p50"), "ms", tables.quantile(0.5));
    report.figure(&format!("a table of {targets}, p99"), "ms", tables.quantile(0.99));
    let resident = machine::resident(own[0].child.pid);
    report.figure(&format!("memory of a load balancer with {targets}"), "MiB", resident);
    report.figure("memory for a target", "KiB", (resident - small) * 1024.0 / f64::from(scale.tasks));
    report.yardstick(&format!("memory of HAProxy with {targets}"), "MiB", haproxy.memory());
    report.others(&others);
    report.note(
        "hollow tasks without health checks; threads of a load balancer: as many as the machine has cores".into(),
    );
    drop((own, haproxy));
    subject.stop().await?;
    store.stop().await;
    Ok(report)
}

/// A load balancer and its log.
struct Balancer {
    child: Child,
    directory: PathBuf,
}

impl Drop for Balancer {
    /// `HAProxy` outlives who has started it.
    fn drop(&mut self) {
        for pid in self.haproxies().filter_map(|pid| Pid::from_raw(pid.cast_signed())) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

fn balancer(workspace: &Workspace, subject: &Subject, name: &str, plane: &str) -> anyhow::Result<Balancer> {
    let directory = workspace.directory(&format!("lb-{name}"))?;
    let address = format!(
        "127.0.0.{}",
        match name {
            "one" => 2,
            "two" => 3,
            _ => 4,
        }
    );
    let data = directory.display().to_string();
    let args = ["lb", "--name", name, "--data-plane", plane, "--listen-address", &address, "--data-dir", &data];
    let all = [&args[..], &["--server", &subject.address]].concat();
    let steady = workspace.steady.display().to_string();
    let all = [&["STEADY_LOG=steady_lb=debug", "NO_COLOR=1", &steady], &all[..]].concat();
    let child = Child::spawn(Path::new("env"), &directory, &all)?;
    Ok(Balancer { child, directory })
}

impl Balancer {
    /// Lines of its log that say this.
    fn said(&self, what: &str) -> Vec<String> {
        let log = std::fs::read_to_string(self.directory.join("output")).unwrap_or_default();
        log.lines().filter(|line| line.contains(&format!(": {what} "))).map(str::to_owned).collect()
    }

    /// Processes of `HAProxy` that it has started.
    fn haproxies(&self) -> impl Iterator<Item = u32> {
        let directory = self.directory.display().to_string();
        let name = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm"));
        let all = machine::processes(move |word| word.starts_with(&directory));
        all.filter(move |pid| name(*pid).is_ok_and(|name| name.trim() == "haproxy"))
    }

    /// Of the process of `HAProxy` that serves: the largest. MiB.
    fn memory(&self) -> f64 {
        self.haproxies().map(machine::resident).fold(0.0, f64::max)
    }

    /// When the last of its threads obeyed a table of this revision, or a newer one.
    fn obeyed(&self, revision: i64) -> Option<Micros> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let lines = self.said("obeyed");
        // All threads tell of each table, in any order: the first table that is new enough is the smallest number.
        let enough = |line: &&String| field(line, "revision").is_some_and(|of| of as i64 >= revision);
        let number = lines.iter().filter(enough).filter_map(|line| field(line, "table")).min()?;
        let of_table = lines.iter().filter(|line| field(line, "table").is_some_and(|of| of >= number));
        let times = of_table.take(threads).filter_map(|line| time(line.split_whitespace().next()?));
        times.max()
    }
}

fn field(line: &str, name: &str) -> Option<u64> {
    line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

/// Of the day, UTC: what a line of a log begins with, `2026-11-22T14:04:25.564566Z`.
type Micros = u64;

fn time(text: &str) -> Option<Micros> {
    let (hours, rest) = text.split_once('T')?.1.trim_end_matches('Z').split_once(':')?;
    let (minutes, seconds) = rest.split_once(':')?;
    let seconds =
        seconds.parse::<f64>().ok()? + 60.0 * (minutes.parse::<f64>().ok()? + 60.0 * hours.parse::<f64>().ok()?);
    Some((seconds * 1e6).round() as Micros)
}

fn now() -> Micros {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (since.as_micros() % 86_400_000_000) as Micros
}

/// When tasks became RUNNING, and were told to stop, as the store told it, by revision.
#[derive(Default)]
struct Written {
    running: BTreeMap<i64, Micros>,
    stopping: BTreeMap<i64, Micros>,
}

struct Watching {
    end: tokio::sync::oneshot::Sender<()>,
    task: JoinHandle<Written>,
}

impl Watching {
    async fn end(self) -> anyhow::Result<Written> {
        let _ = self.end.send(());
        Ok(self.task.await?)
    }
}

impl Written {
    async fn watch(store: &Store) -> anyhow::Result<Watching> {
        let after = store.revision().await?;
        let mut changes = store.connection(0).watch("/steady/v1/", after).await?;
        let (end, mut ended) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let mut written = Written::default();
            // Whether a task has targets, and whether they drain.
            let mut known: BTreeMap<String, (bool, bool)> = BTreeMap::new();
            loop {
                let batch = tokio::select! {
                    batch = changes.next() => batch,
                    _ = &mut ended => return written,
                };
                let now = now();
                let Some(Ok(batch)) = batch else { return written };
                for change in batch.changes {
                    let Change::Put(entry) = change else { continue };
                    let Ok(object) = Object::decode(entry.value.clone()) else { continue };
                    let Some(task) = task::of(&object) else { continue };
                    let (has, leaves) = (!task.status.targets.is_empty(), !task.is_wanted());
                    let before = known.insert(object.name().to_owned(), (has, leaves)).unwrap_or_default();
                    if has && !before.0 {
                        written.running.insert(entry.mod_revision.0, now);
                    }
                    if leaves && !before.1 && has {
                        written.stopping.insert(entry.mod_revision.0, now);
                    }
                }
            }
        });
        Ok(Watching { end, task })
    }
}

async fn declare(subject: &Subject, tasks: u32, version: u32) -> anyhow::Result<()> {
    let text = format!(
        "apiVersion: steady/v1
kind: TargetGroup
metadata: {{name: web}}
spec: {{healthCheckEnabled: false}}
---
apiVersion: steady/v1
kind: Listener
metadata: {{name: http}}
spec: {{port: 18088, defaultActions: [{{type: forward, targetGroupArn: web}}]}}
---
apiVersion: steady/v1
kind: TaskDefinition
metadata: {{name: web}}
spec:
  containerDefinitions: [{{name: web, image: none, memory: 16, portMappings: [{{containerPort: 80}}], environment: [{{name: VERSION, value: '{version}'}}]}}]
"
    );
    let service = |(number, count): (usize, u32)| {
        format!(
            "---
apiVersion: steady/v1
kind: Service
metadata: {{name: web-{number}}}
spec: {{taskDefinition: web, desiredCount: {count}, loadBalancers: [{{targetGroupArn: web, containerName: web, containerPort: 80}}]}}
"
        )
    };
    let full = std::iter::repeat_n(MOST, (tasks / MOST) as usize);
    let services: String = full.chain([tasks % MOST]).enumerate().map(service).collect();
    let text = text + &services;
    let parsed = manifest::parse("targets.yaml", text.as_bytes(), None);
    if let Some(fault) = parsed.faults.first() {
        bail!("{fault}");
    }
    let objects = parsed.documents.into_iter().map(|document| document.object).collect();
    subject.client.objects().apply(ApplyRequest { objects, dry_run: false }).await.context("nothing was applied")?;
    Ok(())
}

/// Waits until so many tasks run, and no more.
async fn until(subject: &Subject, tasks: u32) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let request = ListRequest { kind: Kind::Service.into(), ..ListRequest::default() };
        let listed = subject.client.objects().list(request).await?.into_inner().items;
        let statuses = listed.iter().filter_map(|object| object.as_service()?.status.as_ref());
        let running: i32 = statuses.clone().filter_map(|status| status.running_count).sum();
        if statuses.clone().all(|status| status.steady) && running == i32::try_from(tasks)? {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            bail!("{running} of {tasks} tasks run after {PATIENCE:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
}
