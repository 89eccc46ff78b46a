//! The rules of writing: who may write what, under which conditions, kind by kind.
//!
//! Every write of the API goes through here and becomes one store transaction that compares what it was
//! decided on. The registry knows the store and the cache, and nothing of gRPC.

mod apply;
mod bind;
mod capacity;
mod check;
mod commit;
mod definitions;
mod delete;
mod deployments;
mod instances;
mod leases;
mod metrics;
mod network;
mod run;
mod scaling;
mod secrets;
mod traffic;
mod upsert;
mod writes;

use std::sync::Arc;
use std::time::Duration;

use steady_core::validate::Fault;
use steady_core::{Clock, DEFAULT_CLUSTER, Key, Kind, Revision, Timestamp, View, v1};

use crate::cache::{Cache, decode};
use crate::storage::{Health, Listing, Outcome, Storage, StorageError};
use writes::Writes;

use crate::seal::Keys;

pub use check::Checked;
pub use instances::Registration;
pub(crate) use secrets::shown;

/// How long a request waits for the cache to see what it must see.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two questions how far the watch is.
const NUDGE: Duration = Duration::from_millis(250);
/// How often a write that met another one is decided anew.
const ATTEMPTS: usize = 20;

/// Objects that a store holds at most: every API server and controller has all of them in memory.
const MAX_OBJECTS: usize = 1_000_000;
/// Services of a cluster (ECS: services per cluster).
const MAX_SERVICES: usize = 5_000;

/// The cluster that a request names, or the default one.
pub(crate) fn cluster(named: &str) -> &str {
    if named.is_empty() { DEFAULT_CLUSTER } else { named }
}

/// Why a request was not done. Nothing of it was, except after [`RegistryError::Unavailable`] and
/// [`RegistryError::Full`]: then it may have been.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// Objects of the request are wrong: the index of each, and what.
    #[error("{} faults", .0.len())]
    Invalid(Vec<(usize, Fault)>),
    /// There is no such object.
    #[error("there is no {0}")]
    NotFound(Key),
    /// Something else holds the name.
    #[error("{0}")]
    Exists(String),
    /// The request was decided on something that is no longer so: look again.
    #[error("{0}")]
    Stale(String),
    /// The caller's lease is another's, or gone: it leads no more.
    #[error("lease `{0}` is no longer held at epoch {1}")]
    Fenced(String, i64),
    /// It cannot be done as things are; the text says what to do first.
    #[error("{0}")]
    Refused(String),
    /// An instance has no room for a task, or is none for it: ECS' reason, and a sentence.
    #[error("{1} ({0})")]
    NoRoom(&'static str, String),
    /// The store did not answer.
    #[error("{0}")]
    Unavailable(String),
    /// The store has no room.
    #[error(
        "the store is full and takes nothing but deletions: run `steady admin make-room`, or give etcd more room ({0})"
    )]
    Full(String),
}

impl From<StorageError> for RegistryError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::NoSpace(message) => RegistryError::Full(message),
            StorageError::Refused(message) => RegistryError::Refused(message),
            other => RegistryError::Unavailable(other.to_string()),
        }
    }
}

/// Where uids come from: chance, or a simulator's seed.
pub type NewUid = Arc<dyn Fn() -> String + Send + Sync>;

/// The rules, and what they need.
#[derive(Clone)]
pub struct Registry {
    store: Arc<dyn Storage>,
    cache: Cache,
    clock: Arc<dyn Clock>,
    new_uid: NewUid,
    server: i64,
    keys: Option<Arc<Keys>>,
}

impl Registry {
    /// A registry over a store and the cache that follows it.
    pub fn new(store: Arc<dyn Storage>, cache: Cache, clock: Arc<dyn Clock>, new_uid: NewUid) -> Self {
        let server = new_uid().bytes().fold(1, |id: i64, byte| id.wrapping_mul(31).wrapping_add(byte.into()));
        Registry { store, cache, clock, new_uid, server, keys: None }
    }

    /// The same with keys to seal secrets with.
    #[must_use]
    pub fn with_keys(self, keys: Option<Keys>) -> Self {
        Registry { keys: keys.map(Arc::new), ..self }
    }

    /// Names this process among all API servers that ever were.
    pub fn server(&self) -> i64 {
        self.server
    }

    /// Now, by this server's clock.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Greater with each restoration of the store from a backup.
    pub fn epoch(&self) -> i64 {
        self.cache.view().epoch()
    }

    /// How the store is.
    pub async fn health(&self) -> Result<Health, RegistryError> {
        Ok(self.store.health().await?)
    }

    /// Makes room in a store that is full.
    pub async fn make_room(&self) -> Result<(), RegistryError> {
        Ok(self.store.make_room().await?)
    }

    /// Everything that is stored, read or not.
    pub async fn everything(&self) -> Result<Listing, RegistryError> {
        Ok(self.store.list(Key::PREFIX).await?)
    }

    /// Forgets the past before a revision.
    pub async fn compact(&self, before: Revision) -> Result<(), RegistryError> {
        Ok(self.store.compact(before).await?)
    }

    /// The store's revision, no older than any write acknowledged before the call.
    pub async fn revision(&self) -> Result<Revision, RegistryError> {
        Ok(self.store.revision().await?)
    }

    /// A view that holds every write acknowledged before the call.
    pub async fn fresh_view(&self) -> Result<View, RegistryError> {
        let revision = self.revision().await?;
        self.see(revision).await?;
        Ok(self.cache.view())
    }

    /// One object as the store has it, not as the cache does. [`RegistryError::Refused`]: it cannot be read.
    pub async fn stored(&self, key: &Key) -> Result<Option<v1::Object>, RegistryError> {
        let Some(entry) = self.store.get(&key.to_path()).await? else { return Ok(None) };
        decode(&entry).map(|decoded| Some(decoded.object)).map_err(RegistryError::Refused)
    }

    /// Waits until the cache has seen a revision.
    async fn see(&self, revision: Revision) -> Result<(), RegistryError> {
        if self.cache.revision() >= revision || self.cache.reach(revision, Duration::from_millis(20)).await {
            return Ok(());
        }
        // The revision may be a write outside of what is watched: ask how far the watch is.
        let nudged = async {
            loop {
                self.store.nudge().await;
                if self.cache.reach(revision, NUDGE).await {
                    return;
                }
            }
        };
        if tokio::time::timeout(PATIENCE, nudged).await.is_ok() {
            return Ok(());
        }
        let at = self.cache.revision();
        Err(RegistryError::Unavailable(format!("the API server is behind the store ({at} of {revision}); try again")))
    }

    /// Decides on the newest view and writes, again when something else was written in between.
    async fn write<T>(
        &self,
        decide: impl Fn(&mut Writes) -> Result<T, RegistryError>,
    ) -> Result<(T, Revision), RegistryError> {
        let mut is_fresh = false;
        for _ in 0..ATTEMPTS {
            let mut writes = self.writes();
            let decided = match decide(&mut writes) {
                Ok(decided) => decided,
                // What was written just now may not be in the view yet: nobody is refused for that.
                Err(_) if !is_fresh => {
                    self.fresh_view().await?;
                    is_fresh = true;
                    continue;
                }
                Err(refused) => return Err(refused),
            };
            match self.execute(writes).await? {
                Ok(revision) => return Ok((decided, revision)),
                Err((revision, _)) => self.see(revision).await?,
            }
        }
        Err(RegistryError::Stale("the object is being written all the time; try again".into()))
    }

    fn writes(&self) -> Writes {
        Writes::new(self.cache.view(), self.clock.now(), self.new_uid.clone())
    }

    /// Runs a transaction: the revision it happened at, or the revision of the conflict and what was in conflict.
    async fn execute(&self, mut writes: Writes) -> Result<Result<Revision, (Revision, Vec<String>)>, RegistryError> {
        writes.tell_losses();
        let more = writes.more();
        if more > 0 && writes.view().len() + more > MAX_OBJECTS {
            return Err(RegistryError::Refused(format!(
                "the store holds as many objects as it takes ({MAX_OBJECTS}); delete some first"
            )));
        }
        for key in writes.written() {
            if !self.cache.may_write(key) {
                return Err(RegistryError::Unavailable(format!(
                    "{key} was written by a newer version of Steady; this API server must be upgraded to change it"
                )));
            }
        }
        let at = writes.view().revision();
        let txn = writes.into_txn();
        if txn.ops.is_empty() {
            return Ok(Ok(at));
        }
        let compared: Vec<String> = txn.compares.iter().map(|c| c.key().to_owned()).collect();
        match self.store.txn(txn).await? {
            Outcome::Committed(revision) => Ok(Ok(revision)),
            Outcome::Conflict { revision, failed } => {
                let failed = failed.into_iter().filter_map(|i| compared.get(i).cloned()).collect();
                Ok(Err((revision, failed)))
            }
        }
    }

    /// Creates what every store has: the default cluster.
    pub async fn bootstrap(&self) -> Result<(), RegistryError> {
        self.write(|writes| {
            let key = Key::new(Kind::Cluster, "", steady_core::DEFAULT_CLUSTER);
            if writes.get(&key).is_none() {
                let cluster = v1::Cluster { spec: Some(v1::ClusterSpec {}), status: None };
                writes.create(v1::Object::new("", steady_core::DEFAULT_CLUSTER, cluster));
            }
            Ok(())
        })
        .await
        .map(|_| ())
    }
}

/// One fault of a single object.
fn fault(path: &str, message: impl Into<String>) -> Fault {
    Fault { path: path.to_owned(), message: message.into() }
}
