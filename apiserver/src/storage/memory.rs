//! The store in memory: etcd's semantics without etcd, for tests and for the simulator. Never a product's store.
//!
//! Time is a [`Clock`] argument: leases expire when the clock says so and somebody looks (every call looks;
//! [`Memory::expire`] only does that).

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use steady_core::{Clock, Revision, Timestamp};
use tokio::sync::watch;

use super::{
    Batch, Change, Changes, Compare, Entry, Health, LeaseId, Listing, MAX_TXN_OPS, Op, Outcome, Storage, StorageError,
    Txn,
};

struct Lease {
    ttl: Duration,
    expires: Timestamp,
}

#[derive(Default)]
struct State {
    revision: Revision,
    compacted: Revision,
    entries: BTreeMap<String, Entry>,
    /// Every change after `compacted`, in order.
    history: VecDeque<(Revision, Change)>,
    leases: BTreeMap<i64, Lease>,
    last_lease: i64,
}

/// A store in memory. Clones share it.
#[derive(Clone)]
pub struct Memory {
    state: Arc<Mutex<State>>,
    clock: Arc<dyn Clock>,
    news: Arc<watch::Sender<u64>>,
}

impl Memory {
    /// An empty store whose leases live by this clock.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        // etcd begins at revision 1 as well.
        let state = State { revision: Revision(1), ..State::default() };
        Memory { state: Arc::new(Mutex::new(state)), clock, news: Arc::new(watch::Sender::new(0)) }
    }

    /// Ends leases whose time is over.
    pub fn expire(&self) {
        let now = self.clock.now();
        let mut state = self.lock();
        let over: Vec<i64> = state.leases.iter().filter(|(_, l)| l.expires <= now).map(|(id, _)| *id).collect();
        if over.is_empty() {
            return;
        }
        for id in over {
            state.end_lease(LeaseId(id));
        }
        drop(state);
        self.tell();
    }

    /// Changes of a prefix after a revision, as a watch tells them.
    pub fn after(&self, prefix: &str, after: Revision) -> Result<Batch, StorageError> {
        self.lock().after(prefix, after)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.news.send_modify(|n| *n += 1);
    }
}

impl State {
    fn holds(&self, compare: &Compare) -> bool {
        let entry = self.entries.get(compare.key());
        match compare {
            Compare::Modified(_, revision) => entry.map_or(Revision(0), |e| e.mod_revision) == *revision,
            Compare::Created(_, revision) => entry.map_or(Revision(0), |e| e.create_revision) == *revision,
        }
    }

    fn record(&mut self, change: Change) {
        self.history.push_back((self.revision, change));
    }

    fn delete(&mut self, key: &str) {
        if self.entries.remove(key).is_some() {
            let revision = self.revision;
            self.record(Change::Deleted { key: key.to_owned(), revision });
        }
    }

    fn end_lease(&mut self, lease: LeaseId) {
        if self.leases.remove(&lease.0).is_none() {
            return;
        }
        let keys: Vec<String> =
            self.entries.values().filter(|e| e.lease == Some(lease)).map(|e| e.key.clone()).collect();
        if !keys.is_empty() {
            self.revision.0 += 1;
            for key in keys {
                self.delete(&key);
            }
        }
    }

    fn apply(&mut self, txn: Txn) -> Result<Outcome, StorageError> {
        let failed = self.failed(&txn);
        if !failed.is_empty() {
            return Ok(Outcome::Conflict { revision: self.revision, failed });
        }
        if !self.leases_known(&txn) {
            return Err(StorageError::LeaseGone);
        }
        if self.writes(&txn) {
            self.revision.0 += 1;
        }
        self.write(txn);
        Ok(Outcome::Committed(self.revision))
    }

    /// Transactions that touch none of each other's keys, at one revision.
    fn apply_group(&mut self, txns: Vec<Txn>) -> Vec<Outcome> {
        let failed: Vec<Vec<usize>> = txns.iter().map(|txn| self.failed(txn)).collect();
        if txns.iter().zip(&failed).any(|(txn, failed)| failed.is_empty() && self.writes(txn)) {
            self.revision.0 += 1;
        }
        let revision = self.revision;
        let outcome = |(txn, failed): (Txn, Vec<usize>)| {
            if !failed.is_empty() {
                return Outcome::Conflict { revision, failed };
            }
            self.write(txn);
            Outcome::Committed(revision)
        };
        txns.into_iter().zip(failed).map(outcome).collect()
    }

    fn failed(&self, txn: &Txn) -> Vec<usize> {
        txn.compares.iter().enumerate().filter(|(_, c)| !self.holds(c)).map(|(i, _)| i).collect()
    }

    fn leases_known(&self, txn: &Txn) -> bool {
        txn.ops.iter().all(|op| match op {
            Op::Put { lease: Some(lease), .. } => self.leases.contains_key(&lease.0),
            _ => true,
        })
    }

    /// Whether there is anything to write.
    fn writes(&self, txn: &Txn) -> bool {
        txn.ops.iter().any(|op| match op {
            Op::Put { .. } => true,
            Op::Delete { key } => self.entries.contains_key(key),
        })
    }

    /// Writes, as of the revision that is.
    fn write(&mut self, txn: Txn) {
        for op in txn.ops {
            match op {
                Op::Put { key, value, lease } => {
                    let mod_revision = self.revision;
                    let create_revision = self.entries.get(&key).map_or(mod_revision, |e| e.create_revision);
                    let entry = Entry { key: key.clone(), value, mod_revision, create_revision, lease };
                    self.entries.insert(key, entry.clone());
                    self.record(Change::Put(entry));
                }
                Op::Delete { key } => self.delete(&key),
            }
        }
    }

    /// Changes of a prefix after a revision, whole revisions only.
    fn after(&self, prefix: &str, after: Revision) -> Result<Batch, StorageError> {
        if after < self.compacted {
            return Err(StorageError::Compacted(after));
        }
        let from = self.history.partition_point(|(revision, _)| *revision <= after);
        let key = |change: &Change| match change {
            Change::Put(entry) => entry.key.starts_with(prefix),
            Change::Deleted { key, .. } => key.starts_with(prefix),
        };
        let changes = self.history.range(from..).map(|(_, c)| c).filter(|c| key(c)).cloned().collect();
        Ok(Batch { revision: self.revision, changes })
    }
}

fn check_size(txn: &Txn) -> Result<(), StorageError> {
    if txn.ops.len() > MAX_TXN_OPS || txn.compares.len() > MAX_TXN_OPS {
        return Err(StorageError::Refused("too many operations in one transaction".into()));
    }
    check_keys(&txn.ops)
}

fn check_keys<'a>(ops: impl IntoIterator<Item = &'a Op>) -> Result<(), StorageError> {
    let mut keys: Vec<&str> = ops.into_iter().map(Op::key).collect();
    keys.sort_unstable();
    if keys.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(StorageError::Refused("a key is written twice in one transaction".into()));
    }
    Ok(())
}

#[async_trait]
impl Storage for Memory {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StorageError> {
        self.expire();
        Ok(self.lock().entries.get(key).cloned())
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StorageError> {
        self.expire();
        let state = self.lock();
        let entries = state
            .entries
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, entry)| entry.clone())
            .collect();
        Ok(Listing { revision: state.revision, entries })
    }

    async fn revision(&self) -> Result<Revision, StorageError> {
        self.expire();
        Ok(self.lock().revision)
    }

    async fn txn(&self, txn: Txn) -> Result<Outcome, StorageError> {
        self.expire();
        check_size(&txn)?;
        let outcome = self.lock().apply(txn);
        self.tell();
        outcome
    }

    async fn group(&self, txns: Vec<Txn>) -> Result<Vec<Outcome>, StorageError> {
        self.expire();
        let width = txns.iter().map(|txn| txn.compares.len().max(txn.ops.len())).max().unwrap_or(0);
        if txns.len() + width > MAX_TXN_OPS {
            return Err(StorageError::Refused("too many operations in one transaction".into()));
        }
        // As one: no key is written twice.
        check_keys(txns.iter().flat_map(|txn| &txn.ops))?;
        let mut state = self.lock();
        if !txns.iter().all(|txn| state.leases_known(txn)) {
            return Err(StorageError::LeaseGone);
        }
        let outcomes = state.apply_group(txns);
        drop(state);
        self.tell();
        Ok(outcomes)
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Changes, StorageError> {
        self.expire();
        self.lock().after(prefix, after)?;
        let (store, prefix) = (self.clone(), prefix.to_owned());
        let mut news = self.news.subscribe();
        news.mark_changed();
        let start = (store, prefix, news, after, false);
        let batches = stream::unfold(start, |(store, prefix, mut news, after, over)| async move {
            if over || news.changed().await.is_err() {
                return None;
            }
            let next = store.lock().after(&prefix, after);
            let (at, over) = next.as_ref().map_or((after, true), |batch| (batch.revision, false));
            Some((next, (store, prefix, news, at, over)))
        });
        Ok(batches.boxed())
    }

    async fn nudge(&self) {
        self.tell();
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StorageError> {
        let expires = self.clock.now() + ttl;
        let mut state = self.lock();
        state.last_lease += 1;
        let id = state.last_lease;
        state.leases.insert(id, Lease { ttl, expires });
        Ok(LeaseId(id))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StorageError> {
        self.expire();
        let now = self.clock.now();
        match self.lock().leases.get_mut(&lease.0) {
            Some(lease) => {
                lease.expires = now + lease.ttl;
                Ok(())
            }
            None => Err(StorageError::LeaseGone),
        }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StorageError> {
        self.lock().end_lease(lease);
        self.tell();
        Ok(())
    }

    async fn compact(&self, before: Revision) -> Result<(), StorageError> {
        let mut state = self.lock();
        if before > state.revision {
            return Err(StorageError::Refused(format!("revision {before} is in the future")));
        }
        state.compacted = state.compacted.max(before);
        let kept = state.history.partition_point(|(revision, _)| *revision <= before);
        state.history.drain(..kept);
        Ok(())
    }

    async fn health(&self) -> Result<Health, StorageError> {
        Ok(Health::default())
    }

    async fn make_room(&self) -> Result<(), StorageError> {
        let now = self.revision().await?;
        self.compact(now).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_core::SystemClock;

    #[tokio::test]
    async fn memory_conforms() {
        super::super::conformance::run(|| Arc::new(Memory::new(Arc::new(SystemClock)))).await;
    }
}
