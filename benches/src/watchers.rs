//! P9: one writer and many watchers: how many events a second reach them. The yardstick is etcd with as many watchers of
//! its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::try_join_all;
use steady_core::Kind;
use steady_core::v1::WatchRequest;
use steady_core::v1::change::Change as Wire;
use steady_runtime::Client;
use tokio::task::JoinSet;

use crate::args::Scale;
use crate::machine::{self, Others};
use crate::report::{Report, Target};
use crate::sample::Sample;
use crate::store::Store;
use crate::subject::Subject;
use crate::workspace::Workspace;
use crate::write::{SIZE, clients, commit, object};

/// How long each side writes in a round.
const TIME: Duration = Duration::from_secs(4);
/// Puts of one transaction, and changes of one commit.
const BATCH: usize = 10;

/// Measures with 1, 100 and 1,000 watchers.
pub(crate) async fn run(workspace: &Workspace, scale: Scale) -> anyhow::Result<Report> {
    let store = Store::start(&workspace.directory("etcd")?, &workspace.steady).await?;
    let subject = Subject::apiserver(workspace, &store).await?;
    let clients = clients(&subject)?;
    let create = (0..BATCH).map(|n| Wire::Create(object(&format!("bench-{n}"), 0)));
    commit(&clients[0], create.collect()).await?;
    let mut report = Report::new("watchers", "P9", scale);
    let others = Others::watch(&[subject.pid, store.pid]);
    for watchers in [1, 100, 1000] {
        let (mut raw, mut ours, mut ratio) = (Sample::default(), Sample::default(), Sample::default());
        for _ in 0..scale.rounds {
            let etcd = store.fan_out(&Bytes::from(vec![b'x'; SIZE]), watchers, BATCH, TIME).await?;
            let steady = fan_out(&clients, watchers).await?;
            raw.push(etcd);
            ours.push(steady);
            ratio.push(steady / etcd);
        }
        report.yardstick(&format!("raw etcd, {watchers} watchers"), "events/s", raw);
        report.figure(&format!("Watch, {watchers} watchers"), "events/s", ours);
        match watchers {
            1000 => report.goal("Watch over raw, 1000 watchers", "x", ratio, Target::AtLeast(5.0)),
            _ => report.figure(&format!("Watch over raw, {watchers} watchers"), "x", ratio),
        }
    }
    report.others(&others);
    report.figure("memory of the API server", "MiB", machine::resident(subject.pid));
    subject.stop().await?;
    store.stop().await;
    Ok(report)
}

/// Events that reach all watchers together, per second.
async fn fan_out(clients: &[Client], count: usize) -> anyhow::Result<f64> {
    let seen = Arc::new(AtomicU64::new(0));
    let streams = try_join_all((0..count).map(|n| {
        let mut objects = clients[n % clients.len()].objects();
        async move {
            let request = WatchRequest { kinds: vec![Kind::Reservation.into()], ..WatchRequest::default() };
            objects.watch(request).await
        }
    }))
    .await?;
    let mut watching = JoinSet::new();
    for stream in streams {
        let (mut stream, seen) = (stream.into_inner(), Arc::clone(&seen));
        watching.spawn(async move {
            while let Some(Ok(message)) = stream.next().await {
                seen.fetch_add(message.events.len() as u64, Ordering::Relaxed);
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (began, before) = (Instant::now(), seen.load(Ordering::Relaxed));
    let mut bound = i64::try_from(before)?;
    while began.elapsed() < TIME {
        bound += 1;
        let puts = (0..BATCH).map(|n| {
            let object = Some(object(&format!("bench-{n}"), bound));
            Wire::PutSpec(steady_core::v1::PutSpec { object, ..Default::default() })
        });
        commit(&clients[0], puts.collect()).await?;
    }
    Ok((seen.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64())
}
