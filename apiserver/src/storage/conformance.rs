//! What every store has to do: one suite, run on each implementation.
#![allow(clippy::unwrap_used, missing_docs, clippy::missing_panics_doc)]

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use steady_core::Revision;

use super::{Batch, Change, Compare, Op, Outcome, Storage, StorageError, Txn};

fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.into(), value: value.to_owned().into(), lease: None }
}

fn delete(key: &str) -> Op {
    Op::Delete { key: key.into() }
}

async fn write(store: &dyn Storage, ops: Vec<Op>) -> Revision {
    match store.txn(Txn { compares: vec![], ops }).await.unwrap() {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict { .. } => panic!("nothing was compared"),
    }
}

/// Changes up to a revision, as `key=value` and `key deleted`.
async fn told(changes: &mut super::Changes, up_to: Revision) -> Vec<String> {
    let mut told = Vec::new();
    loop {
        let Batch { revision, changes } =
            tokio::time::timeout(Duration::from_secs(10), changes.next()).await.unwrap().unwrap().unwrap();
        for change in changes {
            told.push(match change {
                Change::Put(e) => format!("{}={}", e.key, String::from_utf8_lossy(&e.value)),
                Change::Deleted { key, .. } => format!("{key} deleted"),
            });
        }
        if revision >= up_to {
            return told;
        }
    }
}

/// Runs the suite; `fresh` gives an empty store (or an unused one: keys are below `/steady/`).
pub async fn run<S: Storage + 'static>(fresh: impl Fn() -> Arc<S>) {
    reads_and_revisions(&*fresh()).await;
    transactions(&*fresh()).await;
    groups(&*fresh()).await;
    watches(&*fresh()).await;
    compaction(&*fresh()).await;
    leases(&*fresh()).await;
    refusals(&*fresh()).await;
}

async fn reads_and_revisions(store: &dyn Storage) {
    assert_eq!(store.get("/steady/r/none").await.unwrap(), None);
    let first = write(store, vec![put("/steady/r/a", "1"), put("/steady/r/b", "1")]).await;
    let second = write(store, vec![put("/steady/r/a", "2")]).await;
    assert_eq!(second.0, first.0 + 1, "a transaction is one revision");
    let a = store.get("/steady/r/a").await.unwrap().unwrap();
    assert_eq!((a.create_revision, a.mod_revision, &a.value[..]), (first, second, &b"2"[..]));
    let listing = store.list("/steady/r/").await.unwrap();
    let keys: Vec<&str> = listing.entries.iter().map(|e| e.key.as_str()).collect();
    assert_eq!(keys, ["/steady/r/a", "/steady/r/b"]);
    assert_eq!(listing.revision, second);
    assert_eq!(store.revision().await.unwrap(), second);
    write(store, vec![delete("/steady/r/a")]).await;
    let again = write(store, vec![put("/steady/r/a", "3")]).await;
    let a = store.get("/steady/r/a").await.unwrap().unwrap();
    assert_eq!(a.create_revision, again, "a key that was deleted is created anew");
    let unchanged = write(store, vec![delete("/steady/r/none")]).await;
    assert_eq!(unchanged, again, "deleting what is absent is no write");
}

async fn transactions(store: &dyn Storage) {
    let at = write(store, vec![put("/steady/t/a", "1")]).await;
    let compares = vec![
        Compare::Modified("/steady/t/a".into(), at),
        Compare::Modified("/steady/t/new".into(), Revision(0)),
        Compare::Created("/steady/t/a".into(), at),
    ];
    let txn = Txn { compares: compares.clone(), ops: vec![put("/steady/t/a", "2"), put("/steady/t/new", "1")] };
    let Outcome::Committed(next) = store.txn(txn.clone()).await.unwrap() else { panic!("it holds") };
    let Outcome::Conflict { revision, failed } = store.txn(txn).await.unwrap() else { panic!("it does not hold") };
    assert_eq!((revision, failed), (next, vec![0, 1]), "which comparisons failed, and when");
    assert_eq!(&store.get("/steady/t/a").await.unwrap().unwrap().value[..], b"2", "nothing was written");
    let only_compared = Txn { compares: vec![Compare::Modified("/steady/t/a".into(), next)], ops: vec![] };
    assert_eq!(store.txn(only_compared).await.unwrap(), Outcome::Committed(next));
}

async fn groups(store: &dyn Storage) {
    let at = write(store, vec![put("/steady/g/a", "1"), put("/steady/g/b", "1"), put("/steady/g/fence", "1")]).await;
    let txn = |compares: &[(&str, Revision)], ops: Vec<Op>| Txn {
        compares: compares.iter().map(|(key, at)| Compare::Modified((*key).into(), *at)).collect(),
        ops,
    };
    let fence = ("/steady/g/fence", at);
    let group = vec![
        txn(&[fence, ("/steady/g/a", at)], vec![put("/steady/g/a", "2")]),
        txn(&[fence, ("/steady/g/b", Revision(1))], vec![put("/steady/g/b", "2")]),
        txn(&[fence, ("/steady/g/c", Revision(0))], vec![put("/steady/g/c", "1"), delete("/steady/g/none")]),
    ];
    let outcomes = store.group(group).await.unwrap();
    let next = Revision(at.0 + 1);
    let conflict = Outcome::Conflict { revision: next, failed: vec![1] };
    assert_eq!(outcomes, [Outcome::Committed(next), conflict, Outcome::Committed(next)], "each its own outcome");
    let listing = store.list("/steady/g/").await.unwrap();
    let values: Vec<&[u8]> = listing.entries.iter().map(|e| &e.value[..]).collect();
    assert_eq!(values, [b"2", b"1", b"1", b"1"], "a, b, c, fence");
    let twice = vec![txn(&[], vec![put("/steady/g/a", "3")]), txn(&[], vec![put("/steady/g/a", "4")])];
    assert!(matches!(store.group(twice).await, Err(StorageError::Refused(_))), "a key is written once in a group");
    let wide = (0..70).map(|n| txn(&[], (0..70).map(|i| put(&format!("/steady/g/{n}/{i}"), "")).collect())).collect();
    assert!(matches!(store.group(wide).await, Err(StorageError::Refused(_))), "more than the store takes");
    assert_eq!(store.revision().await.unwrap(), next, "nothing of it happened");
}

async fn watches(store: &dyn Storage) {
    let start = write(store, vec![put("/steady/w/a", "0")]).await;
    write(store, vec![put("/steady/w/a", "1"), put("/steady/w/b", "1")]).await;
    let mut early = store.watch("/steady/w/", start).await.unwrap();
    write(store, vec![put("/steady/x/other", "1")]).await;
    let end = write(store, vec![put("/steady/w/c", "1"), delete("/steady/w/a")]).await;
    let mut seen = told(&mut early, end).await;
    seen[..2].sort_unstable();
    seen[2..].sort_unstable();
    assert_eq!(seen, ["/steady/w/a=1", "/steady/w/b=1", "/steady/w/a deleted", "/steady/w/c=1"]);
    // Later than its own last change a watch only knows when it is asked.
    let later = write(store, vec![put("/steady/x/other", "2")]).await;
    store.nudge().await;
    assert_eq!(told(&mut early, later).await, Vec::<String>::new());
}

async fn compaction(store: &dyn Storage) {
    let old = write(store, vec![put("/steady/c/a", "1")]).await;
    write(store, vec![put("/steady/c/a", "2")]).await;
    let new = write(store, vec![put("/steady/c/a", "3")]).await;
    store.compact(new).await.unwrap();
    let gone = match store.watch("/steady/c/", Revision(old.0 - 1)).await {
        Err(error) => error,
        Ok(mut changes) => changes.next().await.unwrap().unwrap_err(),
    };
    assert!(matches!(gone, StorageError::Compacted(_)), "{gone}");
    assert_eq!(&store.get("/steady/c/a").await.unwrap().unwrap().value[..], b"3");
    let mut fresh = store.watch("/steady/c/", new).await.unwrap();
    let end = write(store, vec![put("/steady/c/a", "4")]).await;
    assert_eq!(told(&mut fresh, end).await, ["/steady/c/a=4"]);
}

async fn leases(store: &dyn Storage) {
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    let op = Op::Put { key: "/steady/l/a".into(), value: "1".into(), lease: Some(lease) };
    let at = write(store, vec![op]).await;
    assert_eq!(store.get("/steady/l/a").await.unwrap().unwrap().lease, Some(lease));
    store.keep_alive(lease).await.unwrap();
    store.keep_alive(lease).await.unwrap();
    let mut changes = store.watch("/steady/l/", at).await.unwrap();
    store.revoke(lease).await.unwrap();
    assert_eq!(store.get("/steady/l/a").await.unwrap(), None, "its keys go with it");
    assert_eq!(told(&mut changes, Revision(at.0 + 1)).await, ["/steady/l/a deleted"]);
    assert!(matches!(store.keep_alive(lease).await, Err(StorageError::LeaseGone)));
    store.revoke(lease).await.unwrap();
    let orphan = Op::Put { key: "/steady/l/b".into(), value: "1".into(), lease: Some(lease) };
    let refused = store.txn(Txn { compares: vec![], ops: vec![orphan] }).await;
    assert!(matches!(refused, Err(StorageError::LeaseGone)), "{refused:?}");
    let short = store.grant(Duration::from_secs(1)).await.unwrap();
    write(store, vec![Op::Put { key: "/steady/l/c".into(), value: "1".into(), lease: Some(short) }]).await;
    for _ in 0..100 {
        if store.get("/steady/l/c").await.unwrap().is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("a lease that nobody renews goes");
}

async fn refusals(store: &dyn Storage) {
    let twice = Txn { compares: vec![], ops: vec![put("/steady/e/a", "1"), put("/steady/e/a", "2")] };
    assert!(matches!(store.txn(twice).await, Err(StorageError::Refused(_))));
    let many = (0..129).map(|i| put(&format!("/steady/e/{i}"), "1")).collect();
    assert!(matches!(store.txn(Txn { compares: vec![], ops: many }).await, Err(StorageError::Refused(_))));
    assert_eq!(store.list("/steady/e/").await.unwrap().entries, vec![]);
}
