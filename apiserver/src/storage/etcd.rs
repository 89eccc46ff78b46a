//! The store in etcd, 3.5 and later (3.4 tolerated).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Client, Compare as EtcdCompare, CompareOp, ConnectOptions, Error, EventType, GetOptions, KeyValue,
    LeaseKeepAliveStream, LeaseKeeper, PutOptions, SortOrder, SortTarget, Txn as EtcdTxn, TxnOp, TxnOpResponse,
    WatchOptions, WatchRequestSender, WatchResponse,
};
use futures::{StreamExt, stream};
use steady_core::Revision;
use tokio::sync::Mutex as AsyncMutex;

use super::{Batch, Change, Changes, Compare, Entry, LeaseId, Listing, Op, Outcome, Storage, StorageError, Txn};

/// Keys of one page of a listing.
const PAGE: i64 = 2_000;
/// etcd may keep silent for this long in a unary call before it counts as unavailable.
const DEADLINE: Duration = Duration::from_secs(5);

/// Where etcd is.
#[derive(Debug, Clone)]
pub struct EtcdSettings {
    /// `http://HOST:PORT` of every member.
    pub endpoints: Vec<String>,
}

/// Largest answer that is read, bytes: a page of a listing, or the events of one watch answer.
const MAX_MESSAGE: usize = 512 * 1024 * 1024;

/// One lease's open keep-alive stream.
type KeepAlive = Arc<AsyncMutex<(LeaseKeeper, LeaseKeepAliveStream)>>;

/// A store in etcd.
pub struct Etcd {
    client: Client,
    /// Of every open watch, to ask it how far it is.
    watchers: AsyncMutex<Vec<WatchRequestSender>>,
    leases: Mutex<HashMap<i64, KeepAlive>>,
}

impl Etcd {
    /// Connects; fails when no member answers within five seconds.
    pub async fn connect(settings: &EtcdSettings) -> Result<Self, StorageError> {
        // Without require-leader a watch on a member that lost its peers is silent for ever: it has to fail.
        // etcd ends connections that ask for a sign of life more often than every 5 s.
        let options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_secs(3))
            .with_keep_alive(Duration::from_secs(6), Duration::from_secs(3))
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        let connecting = Client::connect(&settings.endpoints, Some(options));
        let client = within("connect", connecting).await?;
        let store = Etcd { client, watchers: AsyncMutex::default(), leases: Mutex::default() };
        store.revision().await?;
        Ok(store)
    }

    fn keeper(&self, lease: LeaseId) -> Option<KeepAlive> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).get(&lease.0).cloned()
    }

    fn forget(&self, lease: LeaseId) {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).remove(&lease.0);
    }

    async fn open_keeper(&self, lease: LeaseId) -> Result<KeepAlive, StorageError> {
        if let Some(keeper) = self.keeper(lease) {
            return Ok(keeper);
        }
        let mut client = self.client.clone();
        let opened = within("lease keep-alive", client.lease_keep_alive(lease.0)).await?;
        let keeper = Arc::new(AsyncMutex::new(opened));
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).insert(lease.0, keeper.clone());
        Ok(keeper)
    }
}

async fn within<T>(what: &str, call: impl Future<Output = Result<T, Error>>) -> Result<T, StorageError> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(answer) => answer.map_err(|e| explain(&e)),
        Err(_) => Err(StorageError::Unavailable(format!("etcd did not answer {what} within {DEADLINE:?}"))),
    }
}

fn explain(error: &Error) -> StorageError {
    // The client's words for a first answer that says the lease is over.
    if let Error::LeaseKeepAliveError(message) = error
        && message.contains("not found")
    {
        return StorageError::LeaseGone;
    }
    let Error::GRpcStatus(status) = error else { return StorageError::Unavailable(error.to_string()) };
    let message = status.message();
    if message.contains("requested lease not found") {
        StorageError::LeaseGone
    } else if message.contains("database space exceeded") {
        StorageError::NoSpace(message.to_owned())
    } else if message.contains("has been compacted") {
        StorageError::Compacted(Revision(0))
    } else if matches!(status.code(), tonic::Code::InvalidArgument | tonic::Code::OutOfRange) {
        StorageError::Refused(message.to_owned())
    } else {
        StorageError::Unavailable(format!("etcd: {message}"))
    }
}

fn entry(kv: &KeyValue) -> Entry {
    Entry {
        key: String::from_utf8_lossy(kv.key()).into_owned(),
        value: Bytes::copy_from_slice(kv.value()),
        mod_revision: Revision(kv.mod_revision()),
        create_revision: Revision(kv.create_revision()),
        lease: (kv.lease() != 0).then(|| LeaseId(kv.lease())),
    }
}

fn revision_of(header: Option<&etcd_client::ResponseHeader>) -> Revision {
    Revision(header.map_or(0, etcd_client::ResponseHeader::revision))
}

fn to_etcd(txn: Txn) -> EtcdTxn {
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
fn failed(compares: &[Compare], found: &[TxnOpResponse]) -> Vec<usize> {
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
fn check(answer: &WatchResponse, after: Revision) -> Result<(), StorageError> {
    if answer.compact_revision() > 0 {
        return Err(StorageError::Compacted(after));
    }
    if answer.canceled() {
        return Err(StorageError::Unavailable(format!("etcd ended the watch: {}", answer.cancel_reason())));
    }
    Ok(())
}

/// What an answer tells. Events at or before `at` were told already (etcd 3.4 repeats some).
fn batch(answer: &WatchResponse, at: Revision) -> Batch {
    let changes: Vec<Change> = answer
        .events()
        .iter()
        .filter_map(|event| Some((event.event_type(), event.kv()?)))
        .filter(|(_, kv)| kv.mod_revision() > at.0)
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
    let told = if answer.created() { at } else { last.unwrap_or_else(|| revision_of(answer.header())) };
    Batch { revision: told.max(at), changes }
}

/// The end of the range of keys with this prefix.
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            break;
        }
    }
    end
}

#[async_trait]
impl Storage for Etcd {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StorageError> {
        let found = within("get", self.client.kv_client().get(key, None)).await?;
        Ok(found.kvs().first().map(entry))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StorageError> {
        let mut kv = self.client.kv_client().max_decoding_message_size(MAX_MESSAGE);
        let mut entries: Vec<Entry> = Vec::new();
        let mut revision = Revision(0);
        let end = prefix_end(prefix);
        loop {
            let from = entries.last().map_or_else(|| prefix.to_owned(), |e| format!("{}\0", e.key));
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(PAGE)
                .with_sort(SortTarget::Key, SortOrder::Ascend)
                .with_revision(revision.0);
            let page = within("list", kv.get(from, Some(options))).await?;
            if revision == Revision(0) {
                revision = revision_of(page.header());
            }
            entries.extend(page.kvs().iter().map(entry));
            if !page.more() {
                return Ok(Listing { revision, entries });
            }
        }
    }

    async fn revision(&self) -> Result<Revision, StorageError> {
        let options = GetOptions::new().with_count_only();
        let found = within("get", self.client.kv_client().get("/steady", Some(options))).await?;
        Ok(revision_of(found.header()))
    }

    async fn txn(&self, txn: Txn) -> Result<Outcome, StorageError> {
        let compares = txn.compares.clone();
        let done = within("transaction", self.client.kv_client().txn(to_etcd(txn))).await?;
        let revision = revision_of(done.header());
        if done.succeeded() {
            return Ok(Outcome::Committed(revision));
        }
        Ok(Outcome::Conflict { revision, failed: failed(&compares, &done.op_responses()) })
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Changes, StorageError> {
        let options = WatchOptions::new().with_prefix().with_start_revision(after.0 + 1).with_progress_notify();
        let mut client = self.client.watch_client().max_decoding_message_size(MAX_MESSAGE);
        let opened = within("watch", client.watch(prefix, Some(options))).await?;
        let (asking, mut answers) = opened.split();
        self.watchers.lock().await.push(asking);
        // The first answer says that the watch stands, or that its start is compacted.
        let first = within("watch", answers.message()).await?;
        let first = first.ok_or_else(|| StorageError::Unavailable("etcd ended the watch".into()))?;
        check(&first, after)?;
        let batches = stream::unfold(Some((answers, after)), |state| async move {
            let (mut answers, at) = state?;
            let next = match answers.message().await {
                Ok(Some(answer)) => check(&answer, at).map(|()| batch(&answer, at)),
                Ok(None) => Err(StorageError::Unavailable("etcd ended the watch".into())),
                Err(error) => Err(explain(&error)),
            };
            let state = next.as_ref().ok().map(|batch| (answers, batch.revision));
            Some((next, state))
        });
        Ok(batches.boxed())
    }

    async fn nudge(&self) {
        let mut asking = self.watchers.lock().await;
        let mut open = Vec::with_capacity(asking.len());
        for mut watcher in asking.drain(..) {
            // A watch that ended takes no more requests.
            if watcher.request_progress().await.is_ok() {
                open.push(watcher);
            }
        }
        *asking = open;
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StorageError> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).max(1);
        let granted = within("lease grant", self.client.lease_client().grant(seconds, None)).await?;
        Ok(LeaseId(granted.id()))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StorageError> {
        let keeper = self.open_keeper(lease).await?;
        let mut stream = keeper.lock().await;
        let renewed = within("lease keep-alive", async {
            stream.0.keep_alive().await?;
            stream.1.message().await
        })
        .await;
        drop(stream);
        match renewed {
            Ok(Some(answer)) if answer.ttl() > 0 => Ok(()),
            Ok(Some(_)) => {
                self.forget(lease);
                Err(StorageError::LeaseGone)
            }
            Ok(None) => {
                self.forget(lease);
                Err(StorageError::Unavailable("etcd ended the lease's stream".into()))
            }
            Err(error) => {
                self.forget(lease);
                Err(error)
            }
        }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StorageError> {
        self.forget(lease);
        match within("lease revoke", self.client.lease_client().revoke(lease.0)).await {
            Ok(_) | Err(StorageError::LeaseGone) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn compact(&self, before: Revision) -> Result<(), StorageError> {
        match within("compact", self.client.kv_client().compact(before.0, None)).await {
            Ok(_) | Err(StorageError::Compacted(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
