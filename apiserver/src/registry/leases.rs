//! Leases: who leads, and who is alive. The only objects that go by themselves.
//!
//! A lease is a key attached to a lease of the store. Its epoch is the revision at which the key was created:
//! whoever loses the lease loses the epoch, and no commit under it happens any more.

use std::time::Duration;

use steady_core::v1::{Lease, LeaseSpec, Object};
use steady_core::{Epoch, Key, Kind, Revision};

use super::{ATTEMPTS, Registry, RegistryError};
use crate::cache::{decode, encode};
use crate::storage::{Compare, Entry, LeaseId, Op, Outcome, StorageError, Txn};

/// Shortest and longest time to live, seconds.
const TTL: std::ops::RangeInclusive<i32> = 2..=600;

/// Between tries to take a lease that was just taken or is just going.
const PAUSE: Duration = Duration::from_millis(100);

impl Registry {
    /// Takes a lease, or adopts it when this holder has it already (an answer was lost).
    pub async fn acquire(&self, name: &str, holder: &str, ttl: i32) -> Result<(Epoch, Revision), RegistryError> {
        if !TTL.contains(&ttl) || name.is_empty() || holder.is_empty() {
            let (from, to) = (TTL.start(), TTL.end());
            let message = format!("a lease needs a name, a holder and a time to live of {from} to {to} seconds");
            return Err(RegistryError::Refused(message));
        }
        let key = Key::new(Kind::Lease, "", name);
        for _ in 0..ATTEMPTS {
            if let Some((entry, lease)) = self.lease(&key).await? {
                if lease.holder != holder {
                    return Err(RegistryError::Exists(format!("lease `{name}` is held by {}", lease.holder)));
                }
                if let Some(id) = entry.lease
                    && self.store.keep_alive(id).await.is_ok()
                {
                    return Ok((Epoch(entry.create_revision.0), self.store.revision().await?));
                }
            }
            let id = self.store.grant(Duration::from_secs(ttl.unsigned_abs().into())).await?;
            let spec = LeaseSpec {
                holder: holder.to_owned(),
                ttl_seconds: ttl,
                acquired_at: Some(self.clock.now().into()),
                epoch: 0,
            };
            let mut object = Object::new("", name, Lease { spec: Some(spec) });
            object.meta_mut().uid = (self.new_uid)();
            let op = Op::Put { key: key.to_path(), value: encode(&object), lease: Some(id) };
            let txn = Txn { compares: vec![Compare::Created(key.to_path(), Revision(0))], ops: vec![op] };
            match self.store.txn(txn).await {
                Ok(Outcome::Committed(revision)) => return Ok((Epoch(revision.0), revision)),
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

    /// Renews a lease that this holder has.
    pub async fn keep_alive(&self, name: &str, holder: &str) -> Result<i32, RegistryError> {
        let key = Key::new(Kind::Lease, "", name);
        let held = self.lease(&key).await?.filter(|(_, lease)| lease.holder == holder);
        let Some((Entry { lease: Some(id), .. }, lease)) = held else { return Err(RegistryError::NotFound(key)) };
        match self.store.keep_alive(id).await {
            Ok(()) => Ok(lease.ttl_seconds),
            Err(StorageError::LeaseGone) => Err(RegistryError::NotFound(key)),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives a lease up at once, if this holder has it.
    pub async fn release(&self, name: &str, holder: &str) -> Result<(), RegistryError> {
        let key = Key::new(Kind::Lease, "", name);
        if let Some((entry, lease)) = self.lease(&key).await?
            && lease.holder == holder
            && let Some(id) = entry.lease
        {
            self.store.revoke(id).await?;
        }
        Ok(())
    }

    async fn lease(&self, key: &Key) -> Result<Option<(Entry, LeaseSpec)>, RegistryError> {
        let Some(entry) = self.store.get(&key.to_path()).await? else { return Ok(None) };
        let decoded = decode(&entry).map_err(RegistryError::Refused)?;
        let spec = decoded.object.as_lease().and_then(|l| l.spec.clone()).unwrap_or_default();
        Ok(Some((entry, spec)))
    }

    async fn drop_lease(&self, id: LeaseId) {
        if let Err(error) = self.store.revoke(id).await {
            tracing::debug!(%error, "a lease that was not needed goes by itself later");
        }
    }
}
