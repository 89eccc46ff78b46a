//! P8: small writes from many clients at once, over the API. The yardstick is raw etcd under the same clients.

use std::time::{Duration, Instant};

use bytes::Bytes;
use steady_core::Revision;
use steady_core::v1::change::Change as Wire;
use steady_core::v1::{Expect, PutSpec};
use steady_runtime::Client;

use crate::args::Scale;
use crate::machine::{self, Others};
use crate::report::{Report, Target};
use crate::sample::{Sample, millis};
use crate::store::Store;
use crate::subject::Subject;
use crate::workspace::Workspace;
use crate::write::{CONNECTIONS, SIZE, clients, commit, object};

/// How long each side writes in a round.
const TIME: Duration = Duration::from_secs(4);
/// Clients that write at once.
const CLIENTS: usize = 64;

/// Measures.
pub(crate) async fn run(workspace: &Workspace, scale: Scale) -> anyhow::Result<Report> {
    let store = Store::start(&workspace.directory("etcd")?, &workspace.steady).await?;
    let subject = Subject::apiserver(workspace, &store).await?;
    let clients = clients(&subject)?;
    let mut last = Vec::new();
    for client in 0..CLIENTS {
        let create = Wire::Create(object(&own(client), 0));
        last.push(commit(&clients[client % CONNECTIONS], vec![create]).await?.0);
    }
    let value = Bytes::from(vec![b'x'; SIZE]);
    let others = Others::watch(&[subject.pid, store.pid]);
    let mut samples: [Sample; 11] = Default::default();
    for _ in 0..scale.rounds {
        let [raw, one, together, gain, commits, latency50, latency99, grouped, ratio, alone, single] = &mut samples;
        let raws = store.puts(&value, CLIENTS, 1, TIME).await?;
        let raw_one = store.puts(&value, 1, 1, TIME / 4).await?;
        let many = store.grouped(&value, CLIENTS, TIME).await?;
        let before = store.revision().await?;
        let (rate, latencies) = write(&clients, &mut last).await?;
        let after = store.revision().await?;
        let (rate_one, _) = write(&clients, &mut last[..1]).await?;
        raw.push(raws);
        one.push(raw_one);
        together.push(many);
        gain.push(many / raws);
        commits.push(rate);
        latency50.push(latencies.quantile(0.5));
        latency99.push(latencies.quantile(0.99));
        grouped.push(per_group(latencies.values().len(), before, after));
        ratio.push(rate / raws);
        alone.push(rate_one);
        single.push(rate_one / raw_one);
    }
    let mut report = Report::new("commits", "P8", scale);
    report.others(&others);
    let [raw, one, together, gain, commits, latency50, latency99, grouped, ratio, alone, single] = samples;
    report.yardstick(&format!("raw etcd, {SIZE} B puts, {CLIENTS} clients"), "puts/s", raw);
    report.yardstick(&format!("raw etcd, {SIZE} B puts, 1 client"), "puts/s", one);
    report.figure(&format!("group commit alone, {SIZE} B puts, {CLIENTS} writers"), "puts/s", together);
    report.goal("group commit alone over raw, 64 writers", "x", gain, Target::AtLeast(5.0));
    report.figure(&format!("Commit, {SIZE} B objects, {CLIENTS} clients"), "commits/s", commits);
    report.goal("Commit over raw, 64 clients", "x", ratio, Target::AtLeast(0.8));
    report.figure("commits in one transaction of etcd", "commits", grouped);
    report.figure("one Commit of 64 clients, p50", "ms", latency50);
    report.figure("one Commit of 64 clients, p99", "ms", latency99);
    report.figure("Commit, 1 client", "commits/s", alone);
    report.goal("Commit over raw, 1 client", "x", single, Target::AtLeast(0.8));
    report.figure("memory of the API server", "MiB", machine::resident(subject.pid));
    subject.stop().await?;
    store.stop().await;
    Ok(report)
}

fn per_group(commits: usize, before: Revision, after: Revision) -> f64 {
    commits as f64 / (after.0 - before.0).max(1) as f64
}

/// Commits per second, and the milliseconds of each. `last` is the revision of each client's object: a commit expects the
/// one before it, as controllers do.
async fn write(clients: &[Client], last: &mut [i64]) -> anyhow::Result<(f64, Sample)> {
    let began = Instant::now();
    let writing: Vec<_> = last
        .iter()
        .copied()
        .enumerate()
        .map(|(client, mut revision)| {
            let api = clients[client % clients.len()].clone();
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while began.elapsed() < TIME {
                    let (object, expect) = (Some(object(&own(client), revision)), Some(Expect { revision }));
                    let put = Wire::PutSpec(PutSpec { object, fields: vec![], expect });
                    let start = Instant::now();
                    revision = commit(&api, vec![put]).await?.0;
                    latencies.push(millis(start.elapsed()));
                }
                anyhow::Ok((revision, latencies))
            })
        })
        .collect();
    let mut all = Sample::default();
    for (last, client) in last.iter_mut().zip(writing) {
        let (revision, latencies) = client.await??;
        *last = revision;
        for latency in latencies {
            all.push(latency);
        }
    }
    Ok((all.values().len() as f64 / began.elapsed().as_secs_f64(), all))
}

/// The name of a client's own object.
fn own(client: usize) -> String {
    format!("bench-{client}")
}
