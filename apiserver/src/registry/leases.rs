//! Leases: who leads, and who is alive. The only objects that go by themselves.
//!
//! A lease is a key attached to a lease of the store. Its epoch is the revision at which the key was created:
//! whoever loses the lease loses the epoch, and no commit under it happens any more.

use std::time::Duration;

use steady_core::v1::{Lease, LeaseSpec, LeaseStatus, Object, object};
use steady_core::{Epoch, Key, Kind, Revision, Timestamp};

use super::{ATTEMPTS, Registry, RegistryError};
use crate::cache::{decode, encode};
use crate::storage::{Compare, LeaseId, Op, Outcome, StorageError, Txn};

/// Shortest and longest time to live, seconds.
const TTL: std::ops::RangeInclusive<i32> = 2..=600;

/// Between tries to take a lease that was just taken or is just going.
const PAUSE: Duration = Duration::from_millis(100);

/// Between two writes of how a holder is doing.
const NEWS: Duration = Duration::from_secs(10);

/// A lease that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// What commits are fenced with.
    pub epoch: Epoch,
    /// The store's revision then, or later.
    pub revision: Revision,
    /// As the store numbers it.
    pub id: LeaseId,
}

/// A lease as it is stored.
#[derive(Default)]
struct Held {
    object: Object,
    spec: LeaseSpec,
    status: Option<LeaseStatus>,
    at: Revision,
    id: Option<LeaseId>,
}

impl Registry {
    /// Takes a lease, or adopts it when this holder has it already (an answer was lost).
    pub async fn acquire(&self, name: &str, holder: &str, ttl: i32) -> Result<Taken, RegistryError> {
        if !TTL.contains(&ttl) || name.is_empty() || holder.is_empty() {
            let (from, to) = (TTL.start(), TTL.end());
            let message = format!("a lease needs a name, a holder and a time to live of {from} to {to} seconds");
            return Err(RegistryError::Refused(message));
        }
        let key = Key::new(Kind::Lease, "", name);
        for _ in 0..ATTEMPTS {
            if let Some(held) = self.lease(&key).await? {
                if held.spec.holder != holder {
                    return Err(RegistryError::Exists(format!("lease `{name}` is held by {}", held.spec.holder)));
                }
                if let Some(id) = held.id
                    && self.store.keep_alive(id).await.is_ok()
                {
                    return Ok(Taken { epoch: Epoch(held.spec.epoch), revision: self.store.revision().await?, id });
                }
            }
            let id = self.store.grant(Duration::from_secs(ttl.unsigned_abs().into())).await?;
            let spec = LeaseSpec {
                holder: holder.to_owned(),
                ttl_seconds: ttl,
                acquired_at: Some(self.clock.now().into()),
                epoch: 0,
            };
            let mut object = Object::new("", name, Lease { spec: Some(spec), status: None });
            object.meta_mut().uid = (self.new_uid)();
            let op = Op::Put { key: key.to_path(), value: encode(&object), lease: Some(id) };
            let txn = Txn { compares: vec![Compare::Created(key.to_path(), Revision(0))], ops: vec![op] };
            match self.store.txn(txn).await {
                Ok(Outcome::Committed(revision)) => return Ok(Taken { epoch: Epoch(revision.0), revision, id }),
                // Taken at the same moment: by another, or by another call of this very holder.
                Ok(Outcome::Conflict { .. }) => {
                    self.drop_lease(id).await;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(RegistryError::Stale(format!("lease `{name}` is being taken and lost all the time; try again")))
    }

    /// Renews a lease that this holder took by its number, without a look at the store whether it is still this holder's:
    /// what the cache knows of it has to do.
    pub async fn renew(&self, name: &str, holder: &str, id: LeaseId) -> Result<(), RegistryError> {
        let key = Key::new(Kind::Lease, "", name);
        let view = self.cache.view();
        let lease = view.get(&key).and_then(|object| object.as_lease()?.spec.as_ref());
        if lease.is_none_or(|lease| lease.holder != holder) {
            return Err(RegistryError::NotFound(key));
        }
        self.store.keep_alive(id).await.map_err(|error| match error {
            StorageError::LeaseGone => RegistryError::NotFound(key),
            error => error.into(),
        })
    }

    /// Renews a lease that this holder has, and notes how it is doing.
    pub async fn keep_alive(
        &self,
        name: &str,
        holder: &str,
        status: Option<LeaseStatus>,
    ) -> Result<i32, RegistryError> {
        let key = Key::new(Kind::Lease, "", name);
        let held = self.lease(&key).await?.filter(|held| held.spec.holder == holder);
        let Some(Held { id: Some(id), .. }) = held else { return Err(RegistryError::NotFound(key)) };
        let held = held.unwrap_or_default();
        match self.store.keep_alive(id).await {
            Ok(()) => {
                let ttl = held.spec.ttl_seconds;
                if let Some(status) = status {
                    // The renewal is what its holder waits for.
                    let registry = self.clone();
                    tokio::spawn(async move { registry.note(&key, held, id, status).await });
                }
                Ok(ttl)
            }
            Err(StorageError::LeaseGone) => Err(RegistryError::NotFound(key)),
            Err(error) => Err(error.into()),
        }
    }

    /// Stores how a holder is doing, if it is news and the last news is old enough. Nobody decides anything on it: what
    /// fails here is told again with the next renewal.
    async fn note(&self, key: &Key, held: Held, id: LeaseId, mut status: LeaseStatus) {
        let now = self.clock.now();
        let old = held.status.unwrap_or_default();
        let told = old.reported_at.as_ref().map(Timestamp::from);
        status.reported_at = old.reported_at;
        if status == old || told.is_some_and(|told| now.since(told) < NEWS) {
            return;
        }
        status.reported_at = Some(now.into());
        let mut object = held.object;
        object.kind = Some(object::Kind::Lease(Lease { spec: Some(held.spec), status: Some(status) }));
        let op = Op::Put { key: key.to_path(), value: encode(&object), lease: Some(id) };
        let txn = Txn { compares: vec![Compare::Modified(key.to_path(), held.at)], ops: vec![op] };
        if let Err(error) = self.store.txn(txn).await {
            tracing::debug!(%error, %key, "how a controller is doing was not stored");
        }
    }

    /// Gives a lease up at once, if this holder has it.
    pub async fn release(&self, name: &str, holder: &str) -> Result<(), RegistryError> {
        let key = Key::new(Kind::Lease, "", name);
        if let Some(held) = self.lease(&key).await?
            && held.spec.holder == holder
            && let Some(id) = held.id
        {
            self.store.revoke(id).await?;
        }
        Ok(())
    }

    async fn lease(&self, key: &Key) -> Result<Option<Held>, RegistryError> {
        let Some(entry) = self.store.get(&key.to_path()).await? else { return Ok(None) };
        let object = decode(&entry).map_err(RegistryError::Refused)?.object;
        let lease = object.as_lease().cloned().unwrap_or_default();
        let (spec, status) = (lease.spec.unwrap_or_default(), lease.status);
        Ok(Some(Held { object, spec, status, at: entry.mod_revision, id: entry.lease }))
    }

    async fn drop_lease(&self, id: LeaseId) {
        if let Err(error) = self.store.revoke(id).await {
            tracing::debug!(%error, "a lease that was not needed goes by itself later");
        }
    }
}
