//! The watch cache: every object in memory, in revision order; what List and Watch are served from.
//!
//! One feed ([`feed`]) follows the store and is the only writer. Readers take a [`View`] (a snapshot at one
//! revision, at no cost) or read the [`ring`] of the newest changes from a cursor of their own: a watcher
//! that is too slow falls out of the ring and has to list again, and never holds memory.
//!
//! Invariants: the revision never goes back; a view holds everything up to its revision; an object that does
//! not decode is left out and reported ([`Cache::quarantine`]), and hurts nobody else.

mod codec;
mod feed;
mod ring;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use steady_core::{Key, Revision, View};
use tokio::sync::watch;
use tokio::time::Instant;

pub use codec::{decode, encode};
pub use feed::{FeedError, run};
pub use ring::{Changed, Ring, TooOld};

#[derive(Default)]
struct State {
    view: View,
    ring: Ring,
    /// Keys of the store that do not decode, and why.
    quarantine: BTreeMap<String, String>,
    /// Objects with fields that this program does not know: it must not write them.
    newer: BTreeSet<Key>,
}

/// The cache. Clones share it.
#[derive(Clone)]
pub struct Cache {
    state: Arc<RwLock<State>>,
    progress: Arc<watch::Sender<Revision>>,
    /// Since when the store has not answered.
    lost: Arc<watch::Sender<Option<Instant>>>,
}

impl Default for Cache {
    fn default() -> Self {
        Cache {
            state: Arc::default(),
            progress: Arc::new(watch::Sender::new(Revision(0))),
            lost: Arc::new(watch::Sender::new(None)),
        }
    }
}

impl Cache {
    /// Everything, as of one revision.
    pub fn view(&self) -> View {
        self.read(|state| state.view.clone())
    }

    /// Revision that the cache is as of.
    pub fn revision(&self) -> Revision {
        *self.progress.borrow()
    }

    /// Told whenever the cache moves on.
    pub fn progress(&self) -> watch::Receiver<Revision> {
        self.progress.subscribe()
    }

    /// Waits until the cache is at least as new as `revision`. False when that took too long.
    pub async fn reach(&self, revision: Revision, patience: Duration) -> bool {
        let mut progress = self.progress.subscribe();
        let reached = progress.wait_for(|at| *at >= revision);
        matches!(tokio::time::timeout(patience, reached).await, Ok(Ok(_)))
    }

    /// The store answers, or does not.
    fn in_touch(&self, in_touch: bool) {
        self.lost.send_if_modified(|lost| {
            let was = lost.is_none();
            *lost = if in_touch { None } else { lost.or_else(|| Some(Instant::now())) };
            was != in_touch
        });
    }

    /// Returns once the store has not answered for so long: what is here may be old by now, and nobody would notice.
    pub async fn is_lost(&self, patience: Duration) {
        let mut lost = self.lost.subscribe();
        loop {
            let since = *lost.borrow_and_update();
            let over = async {
                match since {
                    Some(since) => tokio::time::sleep_until(since + patience).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = lost.changed() => if changed.is_err() { return },
                () = over => return,
            }
        }
    }

    /// At most `most` changes after a revision, in order, whole revisions only, and the revision that they reach.
    pub fn changes(&self, after: Revision, most: usize) -> Result<(Vec<Arc<Changed>>, Revision), TooOld> {
        self.read(|state| state.ring.after(after, state.view.revision(), most))
    }

    /// Forgets the changes up to a revision, which hold the values of before; whoever is further behind lists again.
    pub fn forget(&self, before: Revision) {
        self.state.write().unwrap_or_else(PoisonError::into_inner).ring.forget(before);
    }

    /// Whether this program may write the object: it knows every field that is stored.
    pub fn may_write(&self, key: &Key) -> bool {
        self.read(|state| !state.newer.contains(key))
    }

    /// Keys of the store that do not decode, and why.
    pub fn quarantine(&self) -> BTreeMap<String, String> {
        self.read(|state| state.quarantine.clone())
    }

    fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, change: impl FnOnce(&mut State)) {
        let revision = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            change(&mut state);
            state.view.revision()
        };
        self.progress.send_if_modified(|at| std::mem::replace(at, revision) != revision);
    }
}
