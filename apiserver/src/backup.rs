//! Backups: everything that is stored, as of one revision, and back again into an empty store.
//!
//! A file is a row of `steady.v1.BackupResponse`, each after its length (prost's length-delimited form): a header, the
//! entries, and an end with their number and their sum. What a backup is restored to begins a new epoch: revisions
//! begin anew there, and whoever knows the old ones must forget them.

use std::io::Read;

use prost::Message;
use sha2::{Digest, Sha256};
use steady_core::v1::backup_response::Part;
use steady_core::v1::{BackupEnd, BackupEntries, BackupEntry, BackupHeader, BackupResponse, Object, Sequencer};
use steady_core::{DEFAULT_CLUSTER, Key, Kind, Timestamp};

use crate::cache::encode;
use crate::registry::{Registry, RegistryError};
use crate::storage::{Compare, Op, Outcome, Storage, StorageError, Txn};

/// Of the format.
const VERSION: i32 = 1;
/// Entries of one message, and of one transaction of a restoration.
const TOGETHER: usize = 100;
/// Bytes of one transaction of a restoration.
const MAX_BYTES: usize = 1024 * 1024;
/// Largest message of a file.
const MAX_MESSAGE: u64 = 64 * 1024 * 1024;

/// Why a backup cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The file is no backup, or not a whole one.
    #[error("it is no whole backup: {0}")]
    Broken(String),
    /// The store holds something already.
    #[error("the store is not empty ({0} keys); restore into a new one, and then point the API servers to that")]
    NotEmpty(usize),
    /// The store did not take it.
    #[error("{0}")]
    Store(#[from] StorageError),
    /// The file cannot be read.
    #[error("{0}")]
    File(#[from] std::io::Error),
}

/// What was restored.
#[derive(Debug, Clone)]
pub struct Restored {
    /// Of the backup.
    pub header: BackupHeader,
    /// How many keys.
    pub entries: usize,
    /// The epoch that begins.
    pub epoch: i64,
}

/// Everything that is stored, part by part.
pub(crate) async fn take(
    registry: &Registry,
) -> Result<impl Iterator<Item = BackupResponse> + Send + use<>, RegistryError> {
    let listing = registry.everything().await?;
    let view = registry.cache().view();
    let store = view.get(&Key::new(Kind::Cluster, "", DEFAULT_CLUSTER));
    let header = BackupHeader {
        version: VERSION,
        store_id: store.map(|cluster| cluster.meta().uid.clone()).unwrap_or_default(),
        epoch: registry.epoch(),
        revision: listing.revision.0,
        taken_at: Some(registry.now().into()),
    };
    let kept = listing.entries.into_iter().filter(|entry| entry.lease.is_none());
    let entries: Vec<BackupEntry> =
        kept.map(|entry| BackupEntry { key: entry.key, value: entry.value.into() }).collect();
    let end = Sum::of(&entries).end();
    let mut chunks = Vec::with_capacity(entries.len() / TOGETHER + 1);
    let mut entries = entries.into_iter().peekable();
    while entries.peek().is_some() {
        chunks.push(Part::Entries(BackupEntries { entries: entries.by_ref().take(TOGETHER).collect() }));
    }
    let parts = std::iter::once(Part::Header(header)).chain(chunks).chain([Part::End(end)]);
    Ok(parts.map(|part| BackupResponse { part: Some(part) }))
}

#[derive(Default)]
struct Sum {
    entries: i64,
    hash: Sha256,
}

impl Sum {
    fn of(entries: &[BackupEntry]) -> Self {
        let mut sum = Sum::default();
        sum.add(entries);
        sum
    }

    fn add(&mut self, entries: &[BackupEntry]) {
        for entry in entries {
            self.entries += 1;
            for bytes in [entry.key.as_bytes(), &entry.value] {
                self.hash.update((bytes.len() as u64).to_le_bytes());
                self.hash.update(bytes);
            }
        }
    }

    fn end(self) -> BackupEnd {
        BackupEnd { entries: self.entries, sha256: self.hash.finalize().to_vec() }
    }
}

/// Reads a whole file and looks whether it is one.
fn read(mut file: impl Read) -> Result<(BackupHeader, Vec<BackupEntry>), RestoreError> {
    let broken = |why: &str| RestoreError::Broken(why.to_owned());
    let (mut header, mut entries, mut sum) = (None, Vec::new(), Sum::default());
    loop {
        let Some(part) = message(&mut file)?.part else { return Err(broken("a part of it is empty")) };
        match part {
            Part::Header(found) if found.version == VERSION => header = Some(found),
            Part::Header(found) => {
                return Err(RestoreError::Broken(format!(
                    "its format is {}, this version reads {VERSION}",
                    found.version
                )));
            }
            Part::Entries(found) => {
                sum.add(&found.entries);
                entries.extend(found.entries);
            }
            Part::End(end) if end == sum.end() => {
                return header.map(|header| (header, entries)).ok_or_else(|| broken("it has no header"));
            }
            Part::End(_) => return Err(broken("its sum is wrong: the file was changed or damaged")),
        }
    }
}

fn message(file: &mut impl Read) -> Result<BackupResponse, RestoreError> {
    let broken = |why: String| RestoreError::Broken(why);
    let mut length: u64 = 0;
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        file.read_exact(&mut byte).map_err(|_| broken("it ends too early".to_owned()))?;
        length |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    if length > MAX_MESSAGE {
        return Err(broken(format!("a part of it claims to have {length} bytes")));
    }
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        return Err(broken("it ends too early".to_owned()));
    }
    BackupResponse::decode(bytes.as_slice()).map_err(|error| broken(error.to_string()))
}

/// Puts a backup into an empty store. Until it is whole a mark is there, and no API server serves it: agents would stop
/// what is not restored yet. `now` is what the epoch is of: the same backup restored twice begins two of them.
pub async fn restore(file: impl Read, store: &dyn Storage, now: Timestamp) -> Result<Restored, RestoreError> {
    let (header, mut entries) = read(file)?;
    let there = store.list(Key::PREFIX).await?.entries.len();
    if there > 0 {
        return Err(RestoreError::NotEmpty(there));
    }
    let epoch = now.0.max(header.epoch + 1);
    let counter = |key: &Key, count: i64| {
        let object = Object::new("", &key.name, Sequencer { count });
        BackupEntry { key: key.to_path(), value: encode(&object).into() }
    };
    entries.retain(|entry| entry.key != Key::epoch().to_path() && entry.key != Key::restoring().to_path());
    let count = entries.len();
    // First of all: a store that holds anything of the backup is known to be another one, and not whole.
    entries.splice(0..0, [counter(&Key::restoring(), epoch), counter(&Key::epoch(), epoch)]);
    let mut entries = entries.into_iter().peekable();
    while entries.peek().is_some() {
        let mut txn = Txn::default();
        let mut bytes = 0;
        while let Some(entry) = entries.next_if(|entry| {
            txn.ops.is_empty() || (txn.ops.len() < TOGETHER && bytes + entry.key.len() + entry.value.len() < MAX_BYTES)
        }) {
            bytes += entry.key.len() + entry.value.len();
            txn.compares.push(Compare::Created(entry.key.clone(), steady_core::Revision(0)));
            txn.ops.push(Op::Put { key: entry.key, value: entry.value.into(), lease: None });
        }
        if let Outcome::Conflict { .. } = store.txn(txn).await? {
            return Err(RestoreError::NotEmpty(1));
        }
    }
    let whole = Op::Delete { key: Key::restoring().to_path() };
    store.txn(Txn { compares: vec![], ops: vec![whole] }).await?;
    Ok(Restored { header, entries: count, epoch })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server;
    use crate::storage::Memory;
    use std::sync::Arc;
    use steady_core::SystemClock;

    async fn backed_up() -> Vec<u8> {
        let clock = Arc::new(SystemClock);
        let store = Arc::new(Memory::new(clock.clone()));
        let (registry, feed) = server::open(store, clock, Arc::new(|| "0".repeat(32))).await.expect("opens");
        registry.acquire("some.lease", "me", 10).await.expect("taken");
        let bytes = take(&registry).await.expect("taken").flat_map(|part| part.encode_length_delimited_to_vec());
        let bytes = bytes.collect();
        feed.abort();
        bytes
    }

    #[tokio::test]
    async fn what_is_restored_is_what_was_stored_but_for_leases_and_in_a_new_epoch() {
        let bytes = backed_up().await;
        let store = Memory::new(Arc::new(SystemClock));
        let restored = restore(bytes.as_slice(), &store, Timestamp(7)).await.expect("restored");
        assert_eq!((restored.entries, restored.epoch), (1, 7));
        let keys: Vec<String> =
            store.list(Key::PREFIX).await.expect("listed").entries.into_iter().map(|e| e.key).collect();
        let cluster = Key::new(Kind::Cluster, "", DEFAULT_CLUSTER);
        assert_eq!(keys, [cluster.to_path(), Key::epoch().to_path()]);
        let again = restore(bytes.as_slice(), &store, Timestamp(7)).await;
        assert!(matches!(again, Err(RestoreError::NotEmpty(2))), "{again:?}");
    }

    #[tokio::test]
    async fn half_a_backup_is_not_served() {
        let clock = Arc::new(SystemClock);
        let store = Arc::new(Memory::new(clock.clone()));
        let object = Object::new("", &Key::restoring().name, Sequencer { count: 7 });
        let put = Op::Put { key: Key::restoring().to_path(), value: encode(&object), lease: None };
        store.txn(Txn { compares: vec![], ops: vec![put] }).await.expect("written");
        let opened = server::open(store, clock, Arc::new(|| "0".repeat(32))).await;
        assert!(opened.is_err_and(|error| error.to_string().contains("restor")));
    }

    #[tokio::test]
    async fn a_backup_that_is_cut_or_changed_is_refused_and_nothing_is_written() {
        let whole = backed_up().await;
        let store = Memory::new(Arc::new(SystemClock));
        for length in 0..whole.len() {
            assert!(restore(&whole[..length], &store, Timestamp(7)).await.is_err(), "cut at {length}");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            // A header that says something else is not covered by the sum; everything that is stored is.
            if let Ok(restored) = restore(changed.as_slice(), &Memory::new(Arc::new(SystemClock)), Timestamp(7)).await {
                assert_eq!(restored.entries, 1, "changed at {at}");
            }
        }
        assert!(store.list(Key::PREFIX).await.expect("listed").entries.is_empty());
    }
}
