//! Group commit: writes that arrive while others are under way go to the store together, as one request.
//!
//! A store is bound by requests, not by bytes: a hundred small transactions in one request cost little more than one of
//! them. Each keeps its own comparisons and its own outcome. Only transactions that touch none of each other's keys go
//! together: a store compares all of a group before it writes any of it, so two that read what the other writes
//! would both happen, and neither order of them explains the result.
//!
//! Reads of the revision that wait for one another share an answer too: one that was asked for after all of them came.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use steady_core::Revision;
use tokio::sync::oneshot;

use super::{Changes, Entry, Health, LeaseId, Listing, MAX_TXN_OPS, Op, Outcome, Storage, StorageError, Txn};

/// Most bytes of keys and values of one group: etcd takes 1.5 MiB in a request.
const MAX_BYTES: usize = 1024 * 1024;
/// Most transactions of one group: with it, each may have as many comparisons or operations again.
const MAX_GROUP: usize = MAX_TXN_OPS / 2;

/// A store whose writes are committed in groups. Clones share them.
#[derive(Clone)]
pub struct Grouped {
    inner: Arc<dyn Storage>,
    writes: Arc<Mutex<Writes>>,
    reads: Arc<Mutex<Reads>>,
    nudging: Arc<tokio::sync::Mutex<()>>,
    at_once: usize,
}

#[derive(Default)]
struct Writes {
    waiting: VecDeque<Waiting>,
    /// Groups under way.
    running: usize,
}

#[derive(Default)]
struct Reads {
    waiting: Vec<oneshot::Sender<Result<Revision, StorageError>>>,
    running: bool,
}

struct Waiting {
    txn: Txn,
    answer: oneshot::Sender<Result<Outcome, StorageError>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn only_deletes(txn: &Txn) -> bool {
    txn.ops.iter().all(|op| matches!(op, Op::Delete { .. }))
}

fn unanswered<T>() -> Result<T, StorageError> {
    Err(StorageError::Unavailable("the write was given up".into()))
}

impl Grouped {
    /// Over a store. `at_once` groups may be under way: fewer make larger groups, more let a lone write pass a large one.
    pub fn new(inner: Arc<dyn Storage>, at_once: usize) -> Self {
        Grouped {
            inner,
            writes: Arc::default(),
            reads: Arc::default(),
            nudging: Arc::default(),
            at_once: at_once.max(1),
        }
    }

    /// Commits groups until nothing waits.
    async fn drain(self) {
        loop {
            let group = {
                let mut writes = lock(&self.writes);
                let group = writes.take();
                if group.is_empty() {
                    writes.running -= 1;
                    return;
                }
                group
            };
            let (txns, answers): (Vec<Txn>, Vec<_>) = group.into_iter().map(|w| (w.txn, w.answer)).unzip();
            for (answer, outcome) in answers.into_iter().zip(self.commit(txns).await) {
                let _ = answer.send(outcome);
            }
        }
    }

    async fn commit(&self, mut txns: Vec<Txn>) -> Vec<Result<Outcome, StorageError>> {
        if txns.len() == 1 {
            return vec![self.inner.txn(txns.pop().unwrap_or_default()).await];
        }
        match self.inner.group(txns.clone()).await {
            Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
            // Nothing of it happened, and what is wrong with one is not the others' fault.
            Err(StorageError::Refused(_) | StorageError::LeaseGone) => {
                let mut outcomes = Vec::with_capacity(txns.len());
                for txn in txns {
                    outcomes.push(self.inner.txn(txn).await);
                }
                outcomes
            }
            Err(error) => txns.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    /// Answers readers until none waits.
    async fn read(self) {
        loop {
            let readers = {
                let mut reads = lock(&self.reads);
                if reads.waiting.is_empty() {
                    reads.running = false;
                    return;
                }
                std::mem::take(&mut reads.waiting)
            };
            let answer = self.inner.revision().await;
            for reader in readers {
                let _ = reader.send(answer.clone());
            }
        }
    }
}

impl Writes {
    /// The first that waits, and those after it that may go with it.
    fn take(&mut self) -> Vec<Waiting> {
        let mut group: Vec<Waiting> = Vec::new();
        let mut left = VecDeque::new();
        let (mut written, mut compared) = (HashSet::new(), HashSet::new());
        let (mut widest, mut bytes) = (0, 0);
        while let Some(next) = self.waiting.pop_front() {
            if next.answer.is_closed() {
                // Nobody waits for it any more, and it was surely not done.
                continue;
            }
            let width = next.txn.compares.len().max(next.txn.ops.len()).max(widest);
            let size: usize = next.txn.ops.iter().map(Op::size).sum();
            let apart = next.txn.ops.iter().all(|op| !written.contains(op.key()) && !compared.contains(op.key()))
                && next.txn.compares.iter().all(|compare| !written.contains(compare.key()));
            // A full store takes deletions, unless they come with something else.
            let alike = group.first().is_none_or(|first| only_deletes(&first.txn) == only_deletes(&next.txn));
            let fits =
                alike && group.len() < MAX_GROUP && group.len() + 1 + width <= MAX_TXN_OPS && bytes + size <= MAX_BYTES;
            if group.is_empty() || (apart && fits) {
                written.extend(next.txn.ops.iter().map(|op| op.key().to_owned()));
                compared.extend(next.txn.compares.iter().map(|compare| compare.key().to_owned()));
                (widest, bytes) = (width, bytes + size);
                group.push(next);
            } else {
                left.push_back(next);
            }
            if group.len() == MAX_GROUP || left.len() > MAX_GROUP {
                break;
            }
        }
        left.append(&mut self.waiting);
        self.waiting = left;
        group
    }
}

#[async_trait]
impl Storage for Grouped {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StorageError> {
        self.inner.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StorageError> {
        self.inner.list(prefix).await
    }

    async fn revision(&self) -> Result<Revision, StorageError> {
        let (answer, answered) = oneshot::channel();
        let first = {
            let mut reads = lock(&self.reads);
            reads.waiting.push(answer);
            !std::mem::replace(&mut reads.running, true)
        };
        if first {
            tokio::spawn(self.clone().read());
        }
        answered.await.unwrap_or_else(|_| unanswered())
    }

    async fn txn(&self, txn: Txn) -> Result<Outcome, StorageError> {
        // A lease that is gone would have the whole group refused.
        if txn.ops.iter().any(|op| matches!(op, Op::Put { lease: Some(_), .. })) {
            return self.inner.txn(txn).await;
        }
        let (answer, answered) = oneshot::channel();
        let start = {
            let mut writes = lock(&self.writes);
            writes.waiting.push_back(Waiting { txn, answer });
            let start = writes.running < self.at_once;
            writes.running += usize::from(start);
            start
        };
        if start {
            // Not of this caller's life: whoever hangs up must not take the others' answers with them.
            tokio::spawn(self.clone().drain());
        }
        answered.await.unwrap_or_else(|_| unanswered())
    }

    async fn group(&self, txns: Vec<Txn>) -> Result<Vec<Outcome>, StorageError> {
        self.inner.group(txns).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Changes, StorageError> {
        self.inner.watch(prefix, after).await
    }

    async fn nudge(&self) {
        // Whoever asks while somebody asks is told as well, or asks again.
        if let Ok(_asking) = self.nudging.try_lock() {
            self.inner.nudge().await;
        }
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StorageError> {
        self.inner.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StorageError> {
        self.inner.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StorageError> {
        self.inner.revoke(lease).await
    }

    async fn compact(&self, before: Revision) -> Result<(), StorageError> {
        self.inner.compact(before).await
    }

    async fn health(&self) -> Result<Health, StorageError> {
        self.inner.health().await
    }

    async fn make_room(&self) -> Result<(), StorageError> {
        self.inner.make_room().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Compare, Memory};
    use steady_core::SystemClock;

    fn put(key: &str) -> Op {
        Op::Put { key: key.into(), value: "x".into(), lease: None }
    }

    fn swap(compared: &str, at: Revision, key: &str) -> Txn {
        Txn { compares: vec![Compare::Modified(compared.into(), at)], ops: vec![put(key)] }
    }

    fn queue(txns: Vec<Txn>) -> Writes {
        let waiting = txns.into_iter().map(|txn| {
            let (answer, answered) = oneshot::channel();
            // Somebody waits for each.
            std::mem::forget(answered);
            Waiting { txn, answer }
        });
        Writes { waiting: waiting.collect(), running: 1 }
    }

    fn groups(txns: Vec<Txn>) -> Vec<usize> {
        let mut writes = queue(txns);
        std::iter::from_fn(|| Some(writes.take().len()).filter(|n| *n > 0)).collect()
    }

    #[test]
    fn what_reads_or_writes_what_another_writes_waits_for_the_next_group() {
        let none = Revision(0);
        assert_eq!(groups(vec![swap("a", none, "b"), swap("b", none, "a")]), [1, 1], "write skew");
        assert_eq!(groups(vec![swap("a", none, "a"), swap("a", none, "a")]), [1, 1], "the same key");
        assert_eq!(groups(vec![swap("f", none, "a"), swap("f", none, "b")]), [2], "the same fence");
        assert_eq!(groups(vec![swap("a", none, "a"), swap("a", none, "a"), swap("b", none, "b")]), [2, 1]);
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_not_done_and_deletions_go_by_themselves() {
        let mut writes = queue(vec![swap("a", Revision(0), "a")]);
        writes.waiting.push_back(Waiting { txn: swap("b", Revision(0), "b"), answer: oneshot::channel().0 });
        let delete = |key: &str| Txn { compares: vec![], ops: vec![Op::Delete { key: key.into() }] };
        writes.waiting.extend(queue(vec![delete("c"), delete("d")]).waiting);
        let sizes: Vec<usize> = std::iter::from_fn(|| Some(writes.take().len()).filter(|n| *n > 0)).collect();
        assert_eq!(sizes, [1, 2]);
    }

    #[test]
    fn a_group_is_no_more_than_the_store_takes() {
        let wide =
            |n: usize, ops: usize| Txn { compares: vec![], ops: (0..ops).map(|i| put(&format!("{n}/{i}"))).collect() };
        assert_eq!(groups((0..200).map(|n| wide(n, 1)).collect()), [64, 64, 64, 8]);
        assert_eq!(groups((0..50).map(|n| wide(n, 100)).collect()), [28, 22]);
        assert_eq!(groups(vec![wide(0, 128), wide(1, 128)]), [1, 1]);
    }

    #[tokio::test]
    async fn each_of_a_group_has_its_own_outcome() {
        let store = Grouped::new(Arc::new(Memory::new(Arc::new(SystemClock))), 1);
        let writes = (0..500).map(|n| {
            let store = store.clone();
            // Every third one compares what is not so.
            let at = Revision(if n % 3 == 0 { 7 } else { 0 });
            async move { store.txn(swap(&format!("k{n}"), at, &format!("k{n}"))).await }
        });
        let outcomes = futures::future::join_all(writes).await;
        for (n, outcome) in outcomes.iter().enumerate() {
            let committed = matches!(outcome, Ok(Outcome::Committed(_)));
            assert_eq!(committed, n % 3 != 0, "{n}: {outcome:?}");
        }
        assert!(store.revision().await.expect("answers") < Revision(100), "they were grouped");
    }

    #[tokio::test]
    async fn a_caller_that_hangs_up_takes_nobody_with_it() {
        let store = Grouped::new(Arc::new(Memory::new(Arc::new(SystemClock))), 1);
        let first = tokio::time::timeout(Duration::ZERO, store.txn(swap("a", Revision(0), "a")));
        let (_, second) = tokio::join!(first, store.txn(swap("b", Revision(0), "b")));
        assert!(matches!(second, Ok(Outcome::Committed(_))));
    }
}
