//! Where objects are kept: etcd's model, and only as much of it as Steady needs.
//!
//! Keys are paths, values are bytes. One counter, the revision, counts transactions; every key knows the
//! revision of its last write (`mod_revision`) and of its creation (`create_revision`). What is read at a
//! revision is everything up to it and nothing after it. Two implementations, [`Etcd`] and [`Memory`], obey one
//! conformance suite.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod etcd;
mod grouped;
mod memory;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use steady_core::Revision;

pub use etcd::{Etcd, EtcdSettings, EtcdTls, Peer};
pub use grouped::Grouped;
pub use memory::Memory;

/// Most comparisons, and most operations, of one transaction (etcd's `--max-txn-ops`).
pub const MAX_TXN_OPS: usize = 128;

/// Names a lease. Keys attached to it go when it expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId(pub i64);

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: Bytes,
    /// Revision of its last write.
    pub mod_revision: Revision,
    /// Revision of its creation.
    pub create_revision: Revision,
    /// Lease that it goes with.
    pub lease: Option<LeaseId>,
}

/// Keys of a prefix, as of one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The store's revision when this was read.
    pub revision: Revision,
    /// In key order.
    pub entries: Vec<Entry>,
}

/// What has to hold for a transaction to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// Last written at this revision; 0: absent.
    Modified(String, Revision),
    /// Created at this revision; 0: absent.
    Created(String, Revision),
}

impl Compare {
    /// The key that is compared.
    pub fn key(&self) -> &str {
        match self {
            Compare::Modified(key, _) | Compare::Created(key, _) => key,
        }
    }
}

/// One write of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets a key, and its lease: a put without one detaches it.
    Put {
        /// Its key.
        key: String,
        /// Its value.
        value: Bytes,
        /// Lease that it goes with.
        lease: Option<LeaseId>,
    },
    /// Removes a key; one that is absent is no error.
    Delete {
        /// Its key.
        key: String,
    },
}

impl Op {
    /// The key that is written.
    pub fn key(&self) -> &str {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }

    /// Bytes of its key and value.
    pub fn size(&self) -> usize {
        match self {
            Op::Put { key, value, .. } => key.len() + value.len(),
            Op::Delete { key } => key.len(),
        }
    }
}

/// Writes that all happen if every comparison holds, and none otherwise. A key is written at most once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub compares: Vec<Compare>,
    /// All happen, at one revision.
    pub ops: Vec<Op>,
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It happened, at this revision. One without operations happens at the revision it was read at.
    Committed(Revision),
    /// These comparisons (their places in the transaction) did not hold, as of this revision.
    Conflict {
        /// The store's revision when it was compared.
        revision: Revision,
        /// Places of the comparisons that failed, in order.
        failed: Vec<usize>,
    },
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Written.
    Put(Entry),
    /// Removed, by a transaction or because its lease expired.
    Deleted {
        /// Its key.
        key: String,
        /// Revision of the removal.
        revision: Revision,
    },
}

/// All changes of one or several whole revisions, in order. Without changes it only says how far the watch is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Every change up to here has been told.
    pub revision: Revision,
    /// In revision order.
    pub changes: Vec<Change>,
}

/// A watch's stream; it ends after its first error.
pub type Changes = BoxStream<'static, Result<Batch, StorageError>>;

/// Why the store did not answer as asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// The revision asked for is compacted away: list again.
    #[error("revision {0} is compacted")]
    Compacted(Revision),
    /// No answer, or none that can be trusted. Of a write: **it may have happened**.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The store refused the request as it is; sending it again is of no use.
    #[error("the store refused the request: {0}")]
    Refused(String),
    /// The lease is not there (any more).
    #[error("the lease is gone")]
    LeaseGone,
    /// The store has no room left. Of a write: **it may have happened** all the same.
    #[error("the store is full: {0}")]
    NoSpace(String),
}

/// How a store is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Every member that is known.
    pub members: Vec<MemberHealth>,
    /// What stands in the way of writing.
    pub alarms: Vec<Alarm>,
}

/// How a member of the store is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberHealth {
    /// Where it answers.
    pub endpoint: String,
    /// As the store numbers it.
    pub id: u64,
    /// As it calls itself.
    pub name: String,
    /// Of its program.
    pub version: String,
    /// It leads.
    pub leads: bool,
    /// It does not vote yet.
    pub learner: bool,
    /// Bytes of its file.
    pub size: u64,
    /// Bytes of the file that hold something.
    pub in_use: u64,
    /// Bytes that the file may grow to; then nothing is written any more.
    pub quota: u64,
    /// Why it did not answer; empty when it did.
    pub error: String,
}

/// What stands in the way of writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alarm {
    /// The store's file is as large as it may be.
    NoSpace,
    /// Something else: a member's file is broken.
    Other,
}

/// A store of keys. All reads are linearizable.
#[async_trait]
pub trait Storage: Send + Sync {
    /// One key.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StorageError>;
    /// Every key of a prefix, as of one revision, however many there are.
    async fn list(&self, prefix: &str) -> Result<Listing, StorageError>;
    /// The store's revision now: at least that of every write acknowledged before the call.
    async fn revision(&self) -> Result<Revision, StorageError>;
    /// Writes all or nothing. An [`StorageError::Unavailable`] leaves open whether it happened.
    async fn txn(&self, txn: Txn) -> Result<Outcome, StorageError>;
    /// Several transactions in one request, each with its own outcome. None writes what another compares or writes. An
    /// error is of all of them; after a [`StorageError::Refused`] or [`StorageError::LeaseGone`] none happened.
    async fn group(&self, txns: Vec<Txn>) -> Result<Vec<Outcome>, StorageError>;
    /// Every change of a prefix after a revision, in order, without gap; [`StorageError::Compacted`] when there would
    /// be one.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Changes, StorageError>;
    /// Asks every open watch to tell how far it is.
    async fn nudge(&self);
    /// A new lease of this many seconds, counted anew with every [`Storage::keep_alive`].
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StorageError>;
    /// Renews it.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StorageError>;
    /// Ends it and removes its keys. One that is gone is no error.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StorageError>;
    /// Forgets the history before a revision.
    async fn compact(&self, before: Revision) -> Result<(), StorageError>;
    /// How it is.
    async fn health(&self) -> Result<Health, StorageError>;
    /// Forgets every past, shrinks its files, and takes back the alarm that it is full.
    async fn make_room(&self) -> Result<(), StorageError>;
}
