//! The store in etcd, 3.5 and later (3.4 tolerated).

mod members;
mod membership;
mod renewals;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    AlarmAction, AlarmOptions, AlarmType, GetOptions, SortOrder, SortTarget, Txn as EtcdTxn, TxnOp, TxnOpResponse,
    WatchOptions, WatchRequestSender,
};
use futures::{StreamExt, stream};
use steady_core::Revision;
use tokio::sync::Mutex as AsyncMutex;

use super::{
    Alarm, Changes, Compare, Entry, Health, LeaseId, Listing, MemberHealth, Op, Outcome, Storage, StorageError, Txn,
};
use members::{Members, explain};
use renewals::Renewals;
use wire::{Told, batch, check, entry, failed, prefix_end, revision_of, to_etcd};

pub use members::{EtcdSettings, EtcdTls};
pub use membership::Peer;

/// Keys of one page of a listing.
const PAGE: i64 = 2_000;
/// Largest answer that is read, bytes: a page of a listing, or the events of one watch answer.
const MAX_MESSAGE: usize = 512 * 1024 * 1024;
/// Room that an etcd has which does not say so: its default.
const QUOTA: u64 = 2 * 1024 * 1024 * 1024;
/// How long a member may take to say how it is.
const STATUS: Duration = Duration::from_secs(2);
/// How long a member may take to rewrite its file.
const DEFRAGMENTATION: Duration = Duration::from_secs(120);

/// What every key begins with.
const ROOT: &str = "/steady/";

/// Whether an etcd that is asked how far a watch is says so after all that the watch has to tell until then. Before 3.4.25
/// and 3.5.8 it says so at once.
fn is_honest(version: &str) -> bool {
    let mut numbers = version.split(['.', '-', '+']).map(|number| number.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    match (next(), next(), next()) {
        (3, 4, patch) => patch >= 25,
        (3, 5, patch) => patch >= 8,
        (major, minor, _) => (major, minor) > (3, 5),
    }
}

/// A store in etcd.
pub struct Etcd {
    members: Arc<Members>,
    /// Of every open watch, to ask it how far it is.
    watchers: AsyncMutex<Vec<WatchRequestSender>>,
    /// A watch is on a member whose word on how far it is cannot be trusted.
    lied: AtomicBool,
    renewals: Renewals,
}

impl Etcd {
    /// Connects; fails when no member answers within three seconds.
    pub async fn connect(settings: &EtcdSettings) -> Result<Self, StorageError> {
        let store = Self::open(settings).await?;
        store.revision().await?;
        Ok(store)
    }

    /// Connects when first used.
    pub async fn open(settings: &EtcdSettings) -> Result<Self, StorageError> {
        let members = Members::open(settings).await?;
        Ok(Etcd {
            members,
            watchers: AsyncMutex::default(),
            lied: AtomicBool::default(),
            renewals: Renewals::default(),
        })
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
        let opened = self.members.read_from("watch", |client| async move {
            let version = client.maintenance_client().status().await?.version().to_owned();
            let honest = is_honest(&version);
            let options = WatchOptions::new().with_prefix().with_start_revision(after.0 + 1).with_progress_notify();
            let mut client = client.watch_client().max_decoding_message_size(MAX_MESSAGE);
            let from = if honest { prefix } else { ROOT };
            let (asking, mut answers) = client.watch(from, Some(options)).await?.split();
            let first = answers.message().await?;
            Ok((asking, answers, first, honest))
        });
        let ((asking, answers, first, honest), member) = opened.await?;
        if honest {
            self.watchers.lock().await.push(asking);
        } else {
            self.lied.store(true, Ordering::Relaxed);
        }
        let told = Told { prefix: prefix.to_owned(), honest };
        let first = first.ok_or_else(|| StorageError::Unavailable("etcd ended the watch".into()))?;
        check(&first, after)?;
        let members = Arc::clone(&self.members);
        let batches = stream::unfold(Some((answers, after, members, told)), move |state| async move {
            let (mut answers, at, members, told) = state?;
            let next = match answers.message().await {
                Ok(Some(answer)) => check(&answer, at).map(|()| batch(&answer, at, &told)),
                Ok(None) => Err(StorageError::Unavailable("etcd ended the watch".into())),
                Err(error) => Err(explain(&error)),
            };
            if matches!(next, Err(StorageError::Unavailable(_))) {
                members.rotate(member);
            }
            let state = next.as_ref().ok().map(|batch| (answers, batch.revision, members, told));
            Some((next, state))
        });
        Ok(batches.boxed())
    }

    async fn nudge(&self) {
        if self.lied.load(Ordering::Relaxed) {
            // What is written is told in its turn.
            let put = Op::Put { key: format!("{ROOT}nudge"), value: bytes::Bytes::new(), lease: None };
            if let Err(error) = self.txn(Txn { compares: vec![], ops: vec![put] }).await {
                tracing::debug!(%error, "the watches were not nudged");
            }
        }
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
        self.renewals.renew(&self.members, lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StorageError> {
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
        // One that is down must not keep the others from having room again.
        let mut failed = Vec::new();
        for known in self.members.all().iter() {
            if let Err(error) = shrink(&known.client).await {
                failed.push(format!("{}: {error}", known.endpoint));
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(StorageError::Unavailable(failed.join("; "))) }
    }
}

/// Has a member rewrite its file, and takes back its alarm that it is full.
async fn shrink(client: &etcd_client::Client) -> Result<(), StorageError> {
    let mut maintenance = client.maintenance_client();
    let work = async {
        let id = maintenance.status().await?.header().map_or(0, etcd_client::ResponseHeader::member_id);
        maintenance.defragment().await?;
        let mut options = AlarmOptions::new();
        options.with_member(id);
        maintenance.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(options)).await
    };
    match tokio::time::timeout(DEFRAGMENTATION, work).await {
        Ok(done) => done.map(|_| ()).map_err(|error| explain(&error)),
        Err(_) => Err(StorageError::Unavailable(format!("no end of its defragmentation within {DEFRAGMENTATION:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_newer_members_are_asked_how_far_a_watch_is() {
        for honest in ["3.4.25", "3.5.8", "3.5.21", "3.6.0", "3.7.0-rc.1", "4.0.0"] {
            assert!(is_honest(honest), "{honest}");
        }
        for liar in ["3.4.23", "3.5.0", "3.5.7", "3.3.99", ""] {
            assert!(!is_honest(liar), "{liar}");
        }
    }
}
