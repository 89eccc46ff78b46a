//! The etcd under a run, and what it does when nothing of Steady is in the way: the yardstick.
//!
//! The API server that is measured uses this same etcd (`--etcd`), so disk, version and settings are the same.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::try_join_all;
use steady_apiserver::bundled::BundledEtcd;
use steady_apiserver::storage::{Change, Etcd, EtcdSettings, Grouped, Op, Storage, Txn};
use steady_core::Revision;
use tokio::task::JoinSet;

use crate::machine;
use crate::sample::millis;

/// Where Steady keeps its objects.
const OBJECTS: &str = "/steady/v1/";
/// Where the yardstick writes.
const RAW: &str = "/steady-benches/";
/// Clients share connections: more of them only cost the two sides time.
const CONNECTIONS: usize = 8;
/// Keys of one client. Beyond that they are written again, so that a long run does not fill the store.
const KEYS: usize = 2000;

/// An etcd of this run.
pub(crate) struct Store {
    /// Where it answers.
    pub(crate) endpoint: String,
    /// Its process.
    pub(crate) pid: u32,
    etcd: BundledEtcd,
    connections: Vec<Arc<Etcd>>,
}

impl Store {
    /// Starts the bundled etcd on an empty directory. `steady` is the program that ties it to this process.
    pub(crate) async fn start(directory: &Path, steady: &Path) -> anyhow::Result<Self> {
        let guard = [steady.display().to_string(), "__guard".to_owned(), std::process::id().to_string()];
        let (etcd, first) = BundledEtcd::start(directory, &guard).await?;
        let endpoint = etcd.endpoint.clone();
        let settings = EtcdSettings { endpoints: vec![endpoint.clone()], tls: None };
        let more = try_join_all((1..CONNECTIONS).map(|_| Etcd::connect(&settings))).await?;
        let connections = [first].into_iter().chain(more).map(Arc::new).collect();
        let word = format!("--listen-client-urls={endpoint}");
        let pid = machine::process_with(&word).context("etcd runs, but has no process")?;
        Ok(Store { endpoint, pid, etcd, connections })
    }

    /// Stops it.
    pub(crate) async fn stop(self) {
        drop(self.connections);
        self.etcd.stop().await;
    }

    /// One of its connections.
    pub(crate) fn connection(&self, client: usize) -> Arc<Etcd> {
        self.connections[client % self.connections.len()].clone()
    }

    /// The revision now.
    pub(crate) async fn revision(&self) -> anyhow::Result<Revision> {
        Ok(self.connection(0).revision().await?)
    }

    /// Puts per second when this many clients write transactions of this many puts, each as soon as its last one
    /// was acknowledged.
    pub(crate) async fn puts(&self, value: &Bytes, clients: usize, puts: usize, time: Duration) -> anyhow::Result<f64> {
        let began = Instant::now();
        let writing = (0..clients).map(|client| {
            let (store, value) = (self.connection(client), value.clone());
            tokio::spawn(async move {
                let mut written = 0;
                while began.elapsed() < time {
                    let key = |n: usize| format!("{RAW}{puts}/{client}/{}", n % KEYS);
                    let put = |n| Op::Put { key: key(n), value: value.clone(), lease: None };
                    let ops = (written..written + puts).map(put).collect();
                    store.txn(Txn { compares: vec![], ops }).await?;
                    written += puts;
                }
                anyhow::Ok(written)
            })
        });
        let mut written = 0;
        for client in writing.collect::<Vec<_>>() {
            written += client.await??;
        }
        Ok(written as f64 / began.elapsed().as_secs_f64())
    }

    /// Events that reach this many watchers together, per second, while one client writes.
    pub(crate) async fn fan_out(
        &self,
        value: &Bytes,
        watchers: usize,
        puts: usize,
        time: Duration,
    ) -> anyhow::Result<f64> {
        let seen = Arc::new(AtomicU64::new(0));
        let after = self.revision().await?;
        let mut watching = JoinSet::new();
        for n in 0..watchers {
            let mut changes = self.connection(n).watch(RAW, after).await?;
            let seen = Arc::clone(&seen);
            watching.spawn(async move {
                while let Some(Ok(batch)) = changes.next().await {
                    seen.fetch_add(batch.changes.len() as u64, Ordering::Relaxed);
                }
            });
        }
        let began = Instant::now();
        let store = self.connection(0);
        while began.elapsed() < time {
            let put = |n| Op::Put { key: format!("{RAW}fan/{n}"), value: value.clone(), lease: None };
            store.txn(Txn { compares: vec![], ops: (0..puts).map(put).collect() }).await?;
        }
        Ok(seen.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
    }

    /// Puts per second of clients that each write a transaction of one put, when those that come together are
    /// committed together.
    pub(crate) async fn grouped(&self, value: &Bytes, clients: usize, time: Duration) -> anyhow::Result<f64> {
        let store = Grouped::new(self.connection(0), 2);
        let began = Instant::now();
        let writing = (0..clients).map(|client| {
            let (store, value) = (store.clone(), value.clone());
            tokio::spawn(async move {
                let mut written = 0;
                while began.elapsed() < time {
                    let key = format!("{RAW}grouped/{client}/{}", written % KEYS);
                    let op = Op::Put { key, value: value.clone(), lease: None };
                    store.txn(Txn { compares: vec![], ops: vec![op] }).await?;
                    written += 1;
                }
                anyhow::Ok(written)
            })
        });
        let mut written = 0;
        for client in writing.collect::<Vec<_>>() {
            written += client.await??;
        }
        Ok(written as f64 / began.elapsed().as_secs_f64())
    }

    /// Milliseconds from a put to its event on a watch, this many times.
    pub(crate) async fn watch_latency(&self, value: &Bytes, times: u32) -> anyhow::Result<Vec<f64>> {
        let store = self.connection(0);
        let mut changes = store.watch(RAW, store.revision().await?).await?;
        let mut found = Vec::new();
        for _ in 0..times {
            let began = Instant::now();
            let put = Op::Put { key: format!("{RAW}watched"), value: value.clone(), lease: None };
            let write = store.txn(Txn { compares: vec![], ops: vec![put] });
            let told = async {
                loop {
                    match changes.next().await {
                        Some(Ok(batch)) if batch.changes.is_empty() => {}
                        Some(Ok(_)) => return anyhow::Ok(began.elapsed()),
                        Some(Err(error)) => return Err(error.into()),
                        None => bail!("etcd's watch ended"),
                    }
                }
            };
            let (written, told) = tokio::join!(write, told);
            written?;
            found.push(millis(told?));
        }
        Ok(found)
    }

    /// How often objects of each kind were written (a deletion is a write) after one revision, up to another.
    pub(crate) async fn writes(&self, after: Revision, until: Revision) -> anyhow::Result<BTreeMap<String, u64>> {
        let mut writes = BTreeMap::new();
        if until <= after {
            return Ok(writes);
        }
        let store = self.connection(0);
        let mut changes = store.watch(OBJECTS, after).await?;
        // The last revision may be of a key elsewhere: a while without news is the end as well.
        while let Ok(Some(batch)) = tokio::time::timeout(Duration::from_secs(5), changes.next()).await {
            let batch = batch?;
            let within = |change: &&Change| match change {
                Change::Put(entry) => entry.mod_revision <= until,
                Change::Deleted { revision, .. } => *revision <= until,
            };
            for change in batch.changes.iter().filter(within) {
                let (Change::Put(steady_apiserver::storage::Entry { key, .. }) | Change::Deleted { key, .. }) = change;
                let kind = key.trim_start_matches(OBJECTS).split('/').next().unwrap_or_default();
                *writes.entry(kind.to_owned()).or_default() += 1;
            }
            if batch.revision >= until {
                break;
            }
        }
        Ok(writes)
    }

    /// A task as it is stored: what the yardstick writes as well.
    pub(crate) async fn task(&self) -> anyhow::Result<Bytes> {
        let tasks = self.connection(0).list(&format!("{OBJECTS}tasks/")).await?.entries;
        tasks.into_iter().map(|entry| entry.value).max_by_key(Bytes::len).context("no task is stored")
    }
}
