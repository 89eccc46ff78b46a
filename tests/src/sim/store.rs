//! The way from an API server to the store: delays, lost answers, writes that land late, watches that break.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream;
use steady_apiserver::storage::{Batch, Changes, Entry, LeaseId, Listing, Outcome, Storage, StorageError, Txn};
use steady_core::Revision;

use super::World;
use super::life::Life;
use super::net::{Fate, FrameFate, ORIGIN, Origin};

/// The store as one API server sees it.
pub(crate) struct StoreLink {
    pub(crate) world: Arc<World>,
    pub(crate) life: Arc<Life>,
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

    async fn txn(&self, txn: Txn) -> Result<Outcome, StorageError> {
        let origin = ORIGIN.try_with(Origin::clone).unwrap_or_default();
        self.life.awake().await;
        tokio::time::sleep(self.world.latency()).await;
        if self.life.is_dead() {
            return Err(unavailable());
        }
        let fate = self.world.store_fate(&self.life);
        match fate {
            Fate::Arrives => {
                let outcome = self.world.commit(txn, &origin).await;
                tokio::time::sleep(self.world.latency()).await;
                return outcome;
            }
            Fate::Lost => {}
            Fate::Unanswered => drop(self.world.commit(txn, &origin).await),
            Fate::Late(by) => {
                let world = Arc::clone(&self.world);
                tokio::spawn(async move {
                    tokio::time::sleep(by).await;
                    drop(world.commit(txn, &origin).await);
                });
            }
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        Err(unavailable())
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
}
