//! The way from an API server to the store: delays, lost answers, writes that land late, watches that break.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream;
use steady_apiserver::storage::{
    Batch, Changes, Compare, Entry, Health, LeaseId, Listing, Outcome, Storage, StorageError, Txn,
};
use steady_core::Revision;

use super::World;
use super::life::{Life, lock};
use super::net::{Fate, FrameFate, ORIGIN, Origin};

/// The store as one API server sees it.
pub(crate) struct StoreLink {
    pub(crate) world: Arc<World>,
    pub(crate) life: Arc<Life>,
}

/// Under this prefix nothing is: a comparison with it always holds, and says whose a transaction is.
const MARK: &str = "/mark/";

/// Marks each transaction with whose it is, for what lies between here and the store forgets it.
pub(crate) struct Marked<S> {
    pub(crate) world: Arc<World>,
    pub(crate) store: S,
}

impl World {
    fn mark(&self, txn: &mut Txn) {
        let origin = ORIGIN.try_with(Origin::clone).unwrap_or_default();
        let number = self.uids.fetch_add(1, Ordering::Relaxed);
        lock(&self.marks).insert(number, origin);
        txn.compares.push(Compare::Modified(format!("{MARK}{number}"), Revision(0)));
    }

    /// Whose a transaction is.
    fn unmark(&self, txn: &mut Txn) -> Origin {
        let mark = txn.compares.last().and_then(|compare| compare.key().strip_prefix(MARK)?.parse().ok());
        let Some(number) = mark else { return ORIGIN.try_with(Origin::clone).unwrap_or_default() };
        txn.compares.pop();
        lock(&self.marks).get(&number).cloned().unwrap_or_default()
    }
}

#[async_trait]
impl<S: Storage> Storage for Marked<S> {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StorageError> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StorageError> {
        self.store.list(prefix).await
    }

    async fn revision(&self) -> Result<Revision, StorageError> {
        self.store.revision().await
    }

    async fn txn(&self, mut txn: Txn) -> Result<Outcome, StorageError> {
        self.world.mark(&mut txn);
        self.store.txn(txn).await
    }

    async fn group(&self, txns: Vec<Txn>) -> Result<Vec<Outcome>, StorageError> {
        self.store.group(txns).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Changes, StorageError> {
        self.store.watch(prefix, after).await
    }

    async fn nudge(&self) {
        self.store.nudge().await;
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StorageError> {
        self.store.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StorageError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StorageError> {
        self.store.revoke(lease).await
    }

    async fn compact(&self, before: Revision) -> Result<(), StorageError> {
        self.store.compact(before).await
    }

    async fn health(&self) -> Result<Health, StorageError> {
        self.store.health().await
    }

    async fn make_room(&self) -> Result<(), StorageError> {
        self.store.make_room().await
    }
}

fn unavailable() -> StorageError {
    StorageError::Unavailable("simulated: no answer".into())
}

impl StoreLink {
    /// The way there and back of a call that changes nothing that anybody compares.
    async fn reach(&self) -> Result<(), StorageError> {
        self.life.awake().await;
        tokio::time::sleep(self.world.latency()).await;
        match self.world.store_fate(&self.life) {
            Fate::Arrives => Ok(()),
            Fate::Lost | Fate::Unanswered | Fate::Late(_) => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Err(unavailable())
            }
        }
    }

    /// The way there and back of a write.
    async fn write<T, Writing>(&self, write: impl FnOnce(Arc<World>) -> Writing) -> Result<T, StorageError>
    where
        T: Send + 'static,
        Writing: Future<Output = Result<T, StorageError>> + Send + 'static,
    {
        self.life.awake().await;
        tokio::time::sleep(self.world.latency()).await;
        if self.life.is_dead() {
            return Err(unavailable());
        }
        let fate = self.world.store_fate(&self.life);
        let writing = write(Arc::clone(&self.world));
        match fate {
            Fate::Arrives => {
                let outcome = writing.await;
                tokio::time::sleep(self.world.latency()).await;
                return outcome;
            }
            Fate::Lost => {}
            Fate::Unanswered => drop(writing.await),
            Fate::Late(by) => {
                tokio::spawn(async move {
                    tokio::time::sleep(by).await;
                    drop(writing.await);
                });
            }
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        Err(unavailable())
    }
}

#[async_trait]
impl Storage for StoreLink {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StorageError> {
        self.reach().await?;
        self.world.memory.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StorageError> {
        self.reach().await?;
        self.world.memory.list(prefix).await
    }

    async fn revision(&self) -> Result<Revision, StorageError> {
        self.reach().await?;
        self.world.memory.revision().await
    }

    async fn txn(&self, mut txn: Txn) -> Result<Outcome, StorageError> {
        let origin = self.world.unmark(&mut txn);
        self.write(move |world| async move { world.commit(txn, &origin).await }).await
    }

    async fn group(&self, mut txns: Vec<Txn>) -> Result<Vec<Outcome>, StorageError> {
        let origins: Vec<Origin> = txns.iter_mut().map(|txn| self.world.unmark(txn)).collect();
        let marked = txns.into_iter().zip(origins).collect();
        self.write(move |world| async move { world.commit_group(marked).await }).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Changes, StorageError> {
        self.reach().await?;
        let changes = self.world.memory.watch(prefix, after).await?;
        let (world, life) = (Arc::clone(&self.world), Arc::clone(&self.life));
        let fated = changes.then(move |batch| {
            let (world, life) = (Arc::clone(&world), Arc::clone(&life));
            async move {
                life.awake().await;
                let fate = world.store_frame_fate(&life);
                let batch = match (batch, fate) {
                    (Ok(Batch { revision, changes }), FrameFate::Dropped) if !changes.is_empty() => {
                        // One change of the batch is never told.
                        changes.first().iter().for_each(|change| lock(&world.judge).untold(change));
                        world.note("lost", &format!("{} {:?}", life.name, changes.first().map(super::path_of)));
                        let lost = changes.into_iter().skip(1).collect();
                        Ok(Batch { revision, changes: lost })
                    }
                    (_, FrameFate::Breaks) => Err(unavailable()),
                    (batch, FrameFate::Delayed(by)) => {
                        tokio::time::sleep(by).await;
                        batch
                    }
                    (batch, _) => batch,
                };
                let again = (fate == FrameFate::Twice).then(|| batch.clone());
                stream::iter([Some(batch), again].into_iter().flatten())
            }
        });
        Ok(fated.flatten().boxed())
    }

    async fn nudge(&self) {
        self.world.memory.nudge().await;
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StorageError> {
        self.reach().await?;
        self.world.memory.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StorageError> {
        self.reach().await?;
        self.world.memory.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StorageError> {
        self.reach().await?;
        self.world.memory.revoke(lease).await?;
        self.world.observe(None, &Origin::default());
        Ok(())
    }

    async fn compact(&self, before: Revision) -> Result<(), StorageError> {
        self.world.memory.compact(before).await
    }

    async fn health(&self) -> Result<Health, StorageError> {
        self.world.memory.health().await
    }

    async fn make_room(&self) -> Result<(), StorageError> {
        self.world.memory.make_room().await
    }
}
