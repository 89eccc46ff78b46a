//! Follows the store and keeps the cache as it is.
//!
//! A watch can lose a change (etcd 3.4 does after a compaction), and nothing in it shows: every few minutes the cache is
//! compared with the store. What was lost is told to every watcher, late; a cache that is wrong for ever is not.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use steady_core::guard::{self, Guard};
use steady_core::v1::{Object, Sequencer};
use steady_core::{Key, Revision};

use super::codec::{Decoded, decode, encode};
use super::ring::Changed;
use super::{Cache, State};
use crate::storage::{Batch, Change, Entry, Listing, Op, Storage, StorageError, Txn};

/// How often the cache is compared with the store.
const COMPARISON: Duration = Duration::from_secs(180);

/// Why following cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The store lost acknowledged writes, or is another one. Whoever sees it must end: what it knows is wrong.
    #[error(
        "the store's revision went back from {known} to {found}: it was restored from a backup or replaced. \
         Restart every Steady process so that it forgets what it knew"
    )]
    Regressed {
        /// What was known.
        known: Revision,
        /// What the store says now.
        found: Revision,
    },
}

/// Follows the store for as long as it exists, and re-lists when the watch breaks. Only returns with an error.
pub async fn run(cache: Cache, store: Arc<dyn Storage>) -> FeedError {
    let mut delay = Duration::from_millis(50);
    loop {
        match follow(&cache, &*store, &mut delay).await {
            Ok(()) => {}
            Err(Broken::Final(error)) => return error,
            Err(Broken::Store(error)) => {
                cache.in_touch(false);
                tracing::warn!(%error, "following the store failed; listing it again");
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(Duration::from_secs(2));
            }
        }
    }
}

enum Broken {
    Store(StorageError),
    Final(FeedError),
}

impl From<StorageError> for Broken {
    fn from(error: StorageError) -> Self {
        Broken::Store(error)
    }
}

async fn follow(cache: &Cache, store: &dyn Storage, delay: &mut Duration) -> Result<(), Broken> {
    let mut listing = store.list(Key::PREFIX).await?;
    let known = cache.revision();
    if listing.revision < known {
        return Err(Broken::Final(FeedError::Regressed { known, found: listing.revision }));
    }
    let lost = cache.read(|state| state.lost(&listing));
    if let Some(first) = lost.first() {
        let count = lost.len();
        tracing::error!(count, %first, revision = %known, "changes of the store were never told by its watch; telling them now");
        if listing.revision == known {
            // Watchers are told what is newer than what they know: something has to be.
            store.txn(mark(known)).await?;
            listing = store.list(Key::PREFIX).await?;
        }
    }
    let mut changes = store.watch(Key::PREFIX, listing.revision).await?;
    cache.write(|state| state.adopt(listing));
    cache.in_touch(true);
    *delay = Duration::from_millis(50);
    let mut comparison = tokio::time::interval(COMPARISON);
    comparison.tick().await;
    let mut due = Revision(0);
    let mut suspects = BTreeSet::new();
    loop {
        tokio::select! {
            biased;
            batch = changes.next() => {
                let Some(batch) = batch else { return Ok(()) };
                let batch = batch?;
                if batch.revision > cache.revision() {
                    cache.write(|state| state.apply(batch));
                }
            }
            _ = comparison.tick() => {
                store.nudge().await;
                let listing = store.list(Key::PREFIX).await?;
                // What was there at the comparison before this one has to be known by now, or the watch is dead.
                if cache.revision() < std::mem::replace(&mut due, listing.revision) {
                    tracing::error!(revision = %cache.revision(), "the store's watch says nothing; watching anew");
                    return Ok(());
                }
                // What was gone from the store then and is still known, unchanged, was deleted and never told.
                let absent = cache.read(|state| state.absent(&listing));
                let undeleted = !suspects.is_disjoint(&absent);
                suspects = absent;
                let lost = undeleted || !cache.read(|state| state.lost(&listing)).is_empty();
                if lost && guard::stands(Guard::Comparison) {
                    return Ok(());
                }
            }
        }
    }
}

/// Writes an object that nobody reads, so that there is a newer revision.
fn mark(known: Revision) -> Txn {
    let object = Object::new("", "cache", Sequencer { count: known.0 });
    let put = Op::Put { key: Key::of(&object).to_path(), value: encode(&object), lease: None };
    Txn { compares: Vec::new(), ops: vec![put] }
}

impl State {
    /// What is in the cache and not in the listing, and its revision. It may have been deleted since.
    fn absent(&self, listing: &Listing) -> BTreeSet<(Key, i64)> {
        let there: BTreeSet<Key> = listing.entries.iter().filter_map(|e| Key::parse_path(&e.key).ok()).collect();
        let absent = self.view.range(Key::first()..).filter(|(key, _)| !there.contains(*key));
        absent.map(|(key, object)| (key.clone(), object.meta().revision)).collect()
    }

    /// Changes up to the cache's revision that are in the listing and not in the cache.
    fn lost(&self, listing: &Listing) -> Vec<Key> {
        let known = self.view.revision();
        let mut lost = Vec::new();
        if known == Revision(0) {
            return lost;
        }
        for entry in &listing.entries {
            let Ok(key) = Key::parse_path(&entry.key) else { continue };
            let is_lost = entry.mod_revision <= known && self.view.revision_of(&key) < entry.mod_revision;
            if is_lost && !self.quarantine.contains_key(&entry.key) {
                lost.push(key);
            }
        }
        if listing.revision == known {
            // Of an older cache, what is gone may have gone since.
            lost.extend(self.absent(listing).into_iter().map(|(key, _)| key));
        }
        lost
    }

    /// Takes a whole listing: what differs from what was known becomes changes, deletions too.
    fn adopt(&mut self, listing: Listing) {
        let first = self.view.revision() == Revision(0);
        let mut gone = self.view.clone();
        let mut changed: Vec<Entry> = Vec::new();
        for entry in listing.entries {
            let known = Key::parse_path(&entry.key).ok().and_then(|key| gone.remove(&key));
            if known.is_none_or(|object| object.meta().revision != entry.mod_revision.0) {
                changed.push(entry);
            }
        }
        if first {
            self.ring.restart(listing.revision);
        }
        // All of it is one step to the listing's revision: nobody has seen what was in between.
        for entry in changed {
            self.put(&entry, (!first && guard::stands(Guard::RelistTells)).then_some(listing.revision));
        }
        let gone: Vec<Key> = gone.range(Key::first()..).map(|(key, _)| key.clone()).collect();
        for key in gone.into_iter().filter(|_| guard::stands(Guard::RelistDeletes)) {
            self.delete(&key, listing.revision);
        }
        self.view.set_revision(listing.revision);
    }

    fn apply(&mut self, batch: Batch) {
        for change in batch.changes {
            match change {
                Change::Put(entry) => self.put(&entry, Some(entry.mod_revision)),
                Change::Deleted { key, revision } => {
                    self.quarantine.remove(&key);
                    if let Ok(key) = Key::parse_path(&key) {
                        self.delete(&key, revision);
                    }
                }
            }
        }
        self.view.set_revision(batch.revision);
    }

    /// Takes an entry, and tells watchers at a revision.
    fn put(&mut self, entry: &Entry, tell: Option<Revision>) {
        let Decoded { key, object, newer } = match decode(entry) {
            Ok(decoded) => decoded,
            Err(reason) => {
                tracing::error!(key = entry.key, reason, "an object cannot be read; it is left out");
                assert!(guard::stands(Guard::Quarantine), "{reason}");
                self.quarantine.insert(entry.key.clone(), reason);
                return;
            }
        };
        self.quarantine.remove(&entry.key);
        if newer {
            self.newer.insert(key.clone());
        } else {
            self.newer.remove(&key);
        }
        let object = Arc::new(object);
        if let Some(revision) = tell {
            let previous = self.view.get(&key).cloned();
            let object = Arc::clone(&object);
            self.ring.push(Changed { revision, object, previous, deleted: false });
        }
        self.view.put(object);
    }

    fn delete(&mut self, key: &Key, revision: Revision) {
        self.newer.remove(key);
        if let Some(object) = self.view.remove(key) {
            let previous = Some(Arc::clone(&object));
            self.ring.push(Changed { revision, object, previous, deleted: true });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Memory;
    use steady_core::SystemClock;
    use steady_core::v1::Cluster;

    fn put(name: &str) -> Txn {
        let object = Object::new("", name, Cluster::default());
        let put = Op::Put { key: Key::of(&object).to_path(), value: encode(&object), lease: None };
        Txn { compares: Vec::new(), ops: vec![put] }
    }

    #[tokio::test]
    async fn what_the_watch_lost_is_told_to_every_watcher() {
        let store = Memory::new(Arc::new(SystemClock));
        let cache = Cache::default();
        store.txn(put("a")).await.expect("written");
        let listing = store.list(Key::PREFIX).await.expect("listed");
        cache.write(|state| state.adopt(listing));
        store.txn(put("b")).await.expect("written");
        // The watch says how far it is, and not what happened on the way.
        let known = store.revision().await.expect("a revision");
        cache.write(|state| state.apply(Batch { revision: known, changes: vec![] }));
        let listing = store.list(Key::PREFIX).await.expect("listed");
        assert_eq!(cache.read(|state| state.lost(&listing)).len(), 1);
        let mut delay = Duration::ZERO;
        let following = follow(&cache, &store, &mut delay);
        let told = async {
            assert!(cache.reach(Revision(known.0 + 1), Duration::from_secs(5)).await, "there is something newer");
            cache.changes(known, 10).expect("kept").0
        };
        let told = tokio::select! {
            _ = following => panic!("it goes on for ever"),
            told = told => told,
        };
        assert!(told.iter().any(|change| change.object.name() == "b"), "{told:?}");
    }
}
