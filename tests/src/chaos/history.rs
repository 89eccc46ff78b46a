//! Everything that was ever written, from revision 1, judged by the same rules as the simulator's histories.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use steady_apiserver::cache::decode;
use steady_apiserver::storage::{Change, Etcd, EtcdSettings, Storage};
use steady_core::v1::Object;
use steady_core::{Key, Kind, Revision, task};

use super::load::LABEL;
use super::runtime;
use crate::sim::judge_revision;

/// What a history held.
#[derive(Debug, Default)]
pub struct History {
    /// Revisions with changes.
    pub revisions: usize,
    /// Tasks that were ever created.
    pub tasks: usize,
    /// Writes of the load.
    pub counted: usize,
}

/// Reads the history of an etcd that was never compacted and judges it.
pub fn judge(etcd: &str) -> History {
    runtime().block_on(async {
        let settings = EtcdSettings { endpoints: vec![etcd.to_owned()], tls: None };
        let store = Etcd::connect(&settings).await.unwrap();
        let last = store.revision().await.unwrap();
        let mut changes = store.watch(Key::PREFIX, Revision(1)).await.unwrap();
        let mut all: BTreeMap<Revision, Vec<Change>> = BTreeMap::new();
        store.nudge().await;
        loop {
            let batch = tokio::time::timeout(Duration::from_secs(10), changes.next()).await;
            let batch =
                batch.expect("the whole history comes").expect("it does not end").expect("nothing is compacted");
            for change in batch.changes {
                all.entry(revision_of(&change)).or_default().push(change);
            }
            if batch.revision >= last {
                break;
            }
        }
        judged(&all)
    })
}

fn revision_of(change: &Change) -> Revision {
    match change {
        Change::Put(entry) => entry.mod_revision,
        Change::Deleted { revision, .. } => *revision,
    }
}

fn judged(all: &BTreeMap<Revision, Vec<Change>>) -> History {
    let mut history = History { revisions: all.len(), ..History::default() };
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut born: BTreeSet<String> = BTreeSet::new();
    let mut judge = judge_revision();
    for (revision, changes) in all {
        for change in changes {
            let Change::Put(entry) = change else { continue };
            let object = decode(entry).unwrap_or_else(|reason| panic!("{}: {reason}", entry.key)).object;
            if let Some(count) = object.meta().labels.get(LABEL).and_then(|count| count.parse::<u64>().ok()) {
                let before = counts.insert(object.name().to_owned(), count).unwrap_or(0);
                assert_eq!(
                    count,
                    before + 1,
                    "{}: a write was lost, doubled or came late, at {revision}",
                    object.name()
                );
                history.counted += 1;
            }
            if is_new_task(&object) && entry.create_revision == entry.mod_revision {
                assert!(born.insert(object.name().to_owned()), "{} was created twice, at {revision}", object.name());
            }
        }
        if let Some(broken) = judge(*revision, changes) {
            panic!("{broken}");
        }
    }
    history.tasks = born.len();
    assert!(history.revisions > 10 && history.tasks > 0, "this is no history: {history:?}");
    history
}

fn is_new_task(object: &Object) -> bool {
    object.kind() == Kind::Task && task::of(object).is_some()
}
