//! What goes to etcd and comes from it, in this module's terms.

use bytes::Bytes;
use etcd_client::{
    Compare as EtcdCompare, CompareOp, EventType, GetOptions, KeyValue, PutOptions, Txn as EtcdTxn, TxnOp,
    TxnOpResponse, WatchResponse,
};
use steady_core::Revision;

use crate::storage::{Batch, Change, Compare, Entry, LeaseId, Op, StorageError, Txn};

pub(super) fn entry(kv: &KeyValue) -> Entry {
    Entry {
        key: String::from_utf8_lossy(kv.key()).into_owned(),
        value: Bytes::copy_from_slice(kv.value()),
        mod_revision: Revision(kv.mod_revision()),
        create_revision: Revision(kv.create_revision()),
        lease: (kv.lease() != 0).then(|| LeaseId(kv.lease())),
    }
}

pub(super) fn revision_of(header: Option<&etcd_client::ResponseHeader>) -> Revision {
    Revision(header.map_or(0, etcd_client::ResponseHeader::revision))
}

pub(super) fn to_etcd(txn: Txn) -> EtcdTxn {
    // When a comparison fails, the other branch reads what each key is now.
    let reads: Vec<TxnOp> =
        txn.compares.iter().map(|c| TxnOp::get(c.key(), Some(GetOptions::new().with_keys_only()))).collect();
    let compares: Vec<EtcdCompare> = txn
        .compares
        .into_iter()
        .map(|compare| match compare {
            Compare::Modified(key, revision) => EtcdCompare::mod_revision(key, CompareOp::Equal, revision.0),
            Compare::Created(key, revision) => EtcdCompare::create_revision(key, CompareOp::Equal, revision.0),
        })
        .collect();
    let ops: Vec<TxnOp> = txn
        .ops
        .into_iter()
        .map(|op| match op {
            Op::Put { key, value, lease } => TxnOp::put(key, value, lease.map(|l| PutOptions::new().with_lease(l.0))),
            Op::Delete { key } => TxnOp::delete(key, None),
        })
        .collect();
    EtcdTxn::new().when(compares).and_then(ops).or_else(reads)
}

/// Which comparisons failed, by what the keys were in the branch that ran instead.
pub(super) fn failed(compares: &[Compare], found: &[TxnOpResponse]) -> Vec<usize> {
    let holds = |compare: &Compare, kv: Option<&KeyValue>| match compare {
        Compare::Modified(_, revision) => kv.map_or(0, KeyValue::mod_revision) == revision.0,
        Compare::Created(_, revision) => kv.map_or(0, KeyValue::create_revision) == revision.0,
    };
    compares
        .iter()
        .zip(found)
        .enumerate()
        .filter(|(_, (compare, found))| match found {
            TxnOpResponse::Get(found) => !holds(compare, found.kvs().first()),
            _ => false,
        })
        .map(|(i, _)| i)
        .collect()
}

/// Whether a watch still stands after this answer.
pub(super) fn check(answer: &WatchResponse, after: Revision) -> Result<(), StorageError> {
    if answer.compact_revision() > 0 {
        return Err(StorageError::Compacted(after));
    }
    if answer.canceled() {
        return Err(StorageError::Unavailable(format!("etcd ended the watch: {}", answer.cancel_reason())));
    }
    Ok(())
}

/// What is told of a watch's answers.
#[derive(Clone)]
pub(super) struct Told {
    /// The keys of interest.
    pub(super) prefix: String,
    /// An answer without events is true.
    pub(super) honest: bool,
}

/// What an answer tells. Events at or before `at` were told already (etcd 3.4 repeats some).
pub(super) fn batch(answer: &WatchResponse, at: Revision, told: &Told) -> Batch {
    let changes: Vec<Change> = answer
        .events()
        .iter()
        .filter_map(|event| Some((event.event_type(), event.kv()?)))
        .filter(|(_, kv)| kv.mod_revision() > at.0 && kv.key().starts_with(told.prefix.as_bytes()))
        .map(|(kind, kv)| match kind {
            EventType::Put => Change::Put(entry(kv)),
            EventType::Delete => Change::Deleted {
                key: String::from_utf8_lossy(kv.key()).into_owned(),
                revision: Revision(kv.mod_revision()),
            },
        })
        .collect();
    // With events, the header may be ahead of them: only their own revision has surely been told.
    let last = answer.events().last().and_then(|e| e.kv()).map(|kv| Revision(kv.mod_revision()));
    let silent = if answer.created() || !told.honest { at } else { revision_of(answer.header()) };
    Batch { revision: last.unwrap_or(silent).max(at), changes }
}

/// The end of the range of keys with this prefix.
pub(super) fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            break;
        }
    }
    end
}
