//! Follows the store and keeps the cache as it is.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use steady_core::{Key, Revision};

use super::codec::{Decoded, decode};
use super::ring::Changed;
use super::{Cache, State};
use crate::storage::{Batch, Change, Entry, Listing, Storage, StorageError};

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
    let listing = store.list(Key::PREFIX).await?;
    let known = cache.revision();
    if listing.revision < known {
        return Err(Broken::Final(FeedError::Regressed { known, found: listing.revision }));
    }
    let mut changes = store.watch(Key::PREFIX, listing.revision).await?;
    cache.write(|state| state.adopt(listing));
    *delay = Duration::from_millis(50);
    while let Some(batch) = changes.next().await {
        let batch = batch?;
        if batch.revision > cache.revision() {
            cache.write(|state| state.apply(batch));
        }
    }
    Ok(())
}

impl State {
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
        changed.sort_by_key(|entry| entry.mod_revision);
        if first {
            self.ring.restart(listing.revision);
        }
        for entry in changed {
            self.put(&entry, !first);
        }
        let all = Key { kind: steady_core::Kind::Unspecified, cluster: String::new(), name: String::new() };
        let gone: Vec<Key> = gone.range(all..).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.delete(&key, listing.revision);
        }
        self.view.set_revision(listing.revision);
    }

    fn apply(&mut self, batch: Batch) {
        for change in batch.changes {
            match change {
                Change::Put(entry) => self.put(&entry, true),
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

    fn put(&mut self, entry: &Entry, tell: bool) {
        let Decoded { key, object, newer } = match decode(entry) {
            Ok(decoded) => decoded,
            Err(reason) => {
                tracing::error!(key = entry.key, reason, "an object cannot be read; it is left out");
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
        if tell {
            let previous = self.view.get(&key).cloned();
            let (revision, object) = (entry.mod_revision, Arc::clone(&object));
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
