//! The store in etcd, 3.5 and later (3.4 tolerated).

mod members;
mod wire;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    AlarmAction, AlarmOptions, AlarmType, GetOptions, LeaseKeepAliveStream, LeaseKeeper, SortOrder, SortTarget,
    Txn as EtcdTxn, TxnOp, TxnOpResponse, WatchOptions, WatchRequestSender,
};
use futures::{StreamExt, stream};
use steady_core::Revision;
use tokio::sync::Mutex as AsyncMutex;

use super::{
    Alarm, Changes, Compare, Entry, Health, LeaseId, Listing, MemberHealth, Outcome, Storage, StorageError, Txn,
};
use members::{Members, explain};
use wire::{batch, check, entry, failed, prefix_end, revision_of, to_etcd};

pub use members::{EtcdSettings, EtcdTls};

/// Keys of one page of a listing.
const PAGE: i64 = 2_000;
/// Largest answer that is read, bytes: a page of a listing, or the events of one watch answer.
const MAX_MESSAGE: usize = 512 * 1024 * 1024;
/// Room that an etcd has which does not say so: its default.
const QUOTA: u64 = 2 * 1024 * 1024 * 1024;
/// How long the renewal of a lease may take.
const RENEWAL: Duration = Duration::from_millis(1500);
/// How long a member may take to say how it is.
const STATUS: Duration = Duration::from_secs(2);
/// How long a member may take to rewrite its file.
const DEFRAGMENTATION: Duration = Duration::from_secs(120);

/// One lease's open keep-alive stream.
type KeepAlive = Arc<AsyncMutex<(LeaseKeeper, LeaseKeepAliveStream)>>;

/// A store in etcd.
pub struct Etcd {
    members: Arc<Members>,
    /// Of every open watch, to ask it how far it is.
    watchers: AsyncMutex<Vec<WatchRequestSender>>,
    leases: Mutex<HashMap<i64, KeepAlive>>,
}

impl Etcd {
    /// Connects; fails when no member answers within three seconds.
    pub async fn connect(settings: &EtcdSettings) -> Result<Self, StorageError> {
        let members = Members::open(settings).await?;
        let store = Etcd { members, watchers: AsyncMutex::default(), leases: Mutex::default() };
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
        let open = |client: etcd_client::Client| async move { client.lease_client().keep_alive(lease.0).await };
        let opened = self.members.read("lease keep-alive", open).await?;
        let keeper = Arc::new(AsyncMutex::new(opened));
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).insert(lease.0, keeper.clone());
        Ok(keeper)
    }
}

#[async_trait]
impl Storage for Etcd {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StorageError> {
        let found = self.members.read("get", |client| async move { client.kv_client().get(key, None).await }).await?;
        Ok(found.kvs().first().map(entry))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StorageError> {
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
            let page = self.members.read("list", |client| {
                let (from, options) = (from.clone(), options.clone());
                async move { client.kv_client().max_decoding_message_size(MAX_MESSAGE).get(from, Some(options)).await }
            });
            let page = page.await?;
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
        let found = self.members.read("get", |client| async move {
            client.kv_client().get("/steady", Some(GetOptions::new().with_count_only())).await
        });
        let found = found.await?;
        Ok(revision_of(found.header()))
    }

    async fn txn(&self, txn: Txn) -> Result<Outcome, StorageError> {
        let compares = txn.compares.clone();
        let txn = to_etcd(txn);
        let done = self.members.write("transaction", |client| {
            let txn = txn.clone();
            async move { client.kv_client().txn(txn).await }
        });
        let done = done.await?;
        let revision = revision_of(done.header());
        if done.succeeded() {
            return Ok(Outcome::Committed(revision));
        }
        Ok(Outcome::Conflict { revision, failed: failed(&compares, &done.op_responses()) })
    }

    async fn group(&self, txns: Vec<Txn>) -> Result<Vec<Outcome>, StorageError> {
        let compares: Vec<Vec<Compare>> = txns.iter().map(|txn| txn.compares.clone()).collect();
        let nested: Vec<TxnOp> = txns.into_iter().map(|txn| TxnOp::txn(to_etcd(txn))).collect();
        let nested = EtcdTxn::new().and_then(nested);
        let done = self.members.write("transaction", |client| {
            let nested = nested.clone();
            async move { client.kv_client().txn(nested).await }
        });
        let done = done.await?;
        let revision = revision_of(done.header());
        let outcomes = done.op_responses().into_iter().zip(compares).filter_map(|(answer, compares)| match answer {
            TxnOpResponse::Txn(txn) if txn.succeeded() => Some(Outcome::Committed(revision)),
            TxnOpResponse::Txn(txn) => {
                Some(Outcome::Conflict { revision, failed: failed(&compares, &txn.op_responses()) })
            }
            _ => None,
        });
        Ok(outcomes.collect())
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Changes, StorageError> {
        // The first answer says that the watch stands, or that its start is compacted.
        let opened = self.members.read("watch", |client| async move {
            let options = WatchOptions::new().with_prefix().with_start_revision(after.0 + 1).with_progress_notify();
            let mut client = client.watch_client().max_decoding_message_size(MAX_MESSAGE);
            let (asking, mut answers) = client.watch(prefix, Some(options)).await?.split();
            let first = answers.message().await?;
            Ok((asking, answers, first))
        });
        let (member, _) = self.members.current();
        let (asking, answers, first) = opened.await?;
        self.watchers.lock().await.push(asking);
        let first = first.ok_or_else(|| StorageError::Unavailable("etcd ended the watch".into()))?;
        check(&first, after)?;
        let members = Arc::clone(&self.members);
        let batches = stream::unfold(Some((answers, after, members)), move |state| async move {
            let (mut answers, at, members) = state?;
            let next = match answers.message().await {
                Ok(Some(answer)) => check(&answer, at).map(|()| batch(&answer, at)),
                Ok(None) => Err(StorageError::Unavailable("etcd ended the watch".into())),
                Err(error) => Err(explain(&error)),
            };
            if matches!(next, Err(StorageError::Unavailable(_))) {
                members.rotate(member);
            }
            let state = next.as_ref().ok().map(|batch| (answers, batch.revision, members));
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
        // One that was granted unheard goes by itself.
        let granted =
            self.members.read("lease grant", |client| async move { client.lease_client().grant(seconds, None).await });
        let granted = granted.await?;
        Ok(LeaseId(granted.id()))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StorageError> {
        let keeper = self.open_keeper(lease).await?;
        let mut stream = keeper.lock().await;
        let (member, _) = self.members.current();
        let renewed = tokio::time::timeout(RENEWAL, async {
            stream.0.keep_alive().await?;
            stream.1.message().await
        });
        let renewed = match renewed.await {
            Ok(renewed) => renewed.map_err(|error| explain(&error)),
            Err(_) => Err(StorageError::Unavailable(format!("etcd did not renew the lease within {RENEWAL:?}"))),
        };
        drop(stream);
        if matches!(renewed, Ok(None) | Err(StorageError::Unavailable(_))) {
            self.members.rotate(member);
        }
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
        let revoked =
            self.members.read("lease revoke", |client| async move { client.lease_client().revoke(lease.0).await });
        match revoked.await {
            Ok(_) | Err(StorageError::LeaseGone) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn compact(&self, before: Revision) -> Result<(), StorageError> {
        let compacted =
            self.members.read("compact", |client| async move { client.kv_client().compact(before.0, None).await });
        match compacted.await {
            Ok(_) | Err(StorageError::Compacted(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn health(&self) -> Result<Health, StorageError> {
        let list = |client: etcd_client::Client| async move { client.cluster_client().member_list().await };
        let listed = self.members.read("member list", list).await?;
        let mut members = Vec::new();
        for known in self.members.all().iter() {
            let mut maintenance = known.client.maintenance_client();
            let status = tokio::time::timeout(STATUS, maintenance.status()).await;
            let mut member = MemberHealth { endpoint: known.endpoint.clone(), ..MemberHealth::default() };
            match status {
                Ok(Ok(status)) => {
                    let id = status.header().map_or(0, etcd_client::ResponseHeader::member_id);
                    let named = listed.members().iter().find(|listed| listed.id() == id);
                    let unsigned = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
                    member.id = id;
                    member.name = named.map(|named| named.name().to_owned()).unwrap_or_default();
                    status.version().clone_into(&mut member.version);
                    member.leads = status.leader() == id;
                    member.learner = status.is_learner();
                    member.size = unsigned(status.db_size());
                    member.in_use = unsigned(status.raft_used_db_size());
                    member.quota = Some(unsigned(status.db_size_quota())).filter(|q| *q > 0).unwrap_or(QUOTA);
                }
                Ok(Err(error)) => member.error = error.to_string(),
                Err(_) => member.error = format!("no answer within {STATUS:?}"),
            }
            members.push(member);
        }
        let alarms = self.members.read("alarm", |client| async move {
            client.maintenance_client().alarm(AlarmAction::Get, AlarmType::None, None).await
        });
        let alarms = alarms.await?;
        let alarms = alarms.alarms().iter().map(|alarm| match alarm.alarm() {
            AlarmType::Nospace => Alarm::NoSpace,
            _ => Alarm::Other,
        });
        Ok(Health { alarms: alarms.collect(), members })
    }

    async fn make_room(&self) -> Result<(), StorageError> {
        self.compact(self.revision().await?).await?;
        for known in self.members.all().iter() {
            let mut maintenance = known.client.maintenance_client();
            match tokio::time::timeout(DEFRAGMENTATION, maintenance.defragment()).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(StorageError::Unavailable(format!("{}: {error}", known.endpoint))),
                Err(_) => {
                    let silent = format!("{} did not defragment within {DEFRAGMENTATION:?}", known.endpoint);
                    return Err(StorageError::Unavailable(silent));
                }
            }
        }
        for member in self.members.all().iter() {
            let id = member.client.maintenance_client().status().await;
            let id = id.map_err(|error| explain(&error))?.header().map_or(0, etcd_client::ResponseHeader::member_id);
            self.members
                .read("alarm", |client| async move {
                    let mut options = AlarmOptions::new();
                    options.with_member(id);
                    client.maintenance_client().alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(options)).await
                })
                .await?;
        }
        Ok(())
    }
}
