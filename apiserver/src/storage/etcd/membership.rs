//! Growing and shrinking an etcd, one member at a time.

use std::time::Duration;

use etcd_client::{Client, Error, Member as Listed, MemberAddOptions};
use tokio::time::Instant;

use super::members::explain;
use crate::storage::{Etcd, StorageError};

/// How long a new member may take until it has all the data.
const CATCH_UP: Duration = Duration::from_secs(600);
/// How long the members may take until enough of them were connected for some seconds: before that etcd lets none go.
const SETTLE: Duration = Duration::from_secs(30);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);

/// A member, as the others know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// As the store numbers it.
    pub id: u64,
    /// As it calls itself; empty until it has started.
    pub name: String,
    /// Where the other members reach it.
    pub peer_urls: Vec<String>,
    /// Where API servers reach it.
    pub client_urls: Vec<String>,
    /// It does not vote yet.
    pub learner: bool,
}

impl From<&Listed> for Peer {
    fn from(member: &Listed) -> Self {
        Peer {
            id: member.id(),
            name: member.name().to_owned(),
            peer_urls: member.peer_urls().to_vec(),
            client_urls: member.client_urls().to_vec(),
            learner: member.is_learner(),
        }
    }
}

/// Tries again while etcd refuses for now: it changes its members one at a time, and only while they are connected to each
/// other for some seconds.
async fn patiently<T, Call>(what: &str, patience: Duration, call: impl Fn() -> Call) -> Result<T, StorageError>
where
    Call: Future<Output = Result<T, StorageError>>,
{
    let deadline = Instant::now() + patience;
    let mut told = String::new();
    loop {
        match call().await {
            Err(StorageError::Unavailable(error))
                if Instant::now() < deadline && !error.contains("member not found") =>
            {
                if told != error {
                    tracing::info!(error, "{what}");
                    told = error;
                }
                tokio::time::sleep(PAUSE).await;
            }
            done => return done,
        }
    }
}

impl Etcd {
    /// Every member.
    pub async fn peers(&self) -> Result<Vec<Peer>, StorageError> {
        let list = |client: Client| async move { client.cluster_client().member_list().await };
        Ok(self.members.read("member list", list).await?.members().iter().map(Peer::from).collect())
    }

    /// Announces a member that does not vote yet, once. Returns all of them, and the new one's number.
    pub async fn announce(&self, peer_url: &str) -> Result<(Vec<Peer>, u64), StorageError> {
        let announced = patiently("the members do not take another one yet", CATCH_UP, || async move {
            // Announced before: its answer may have been lost.
            let peers = self.peers().await?;
            if let Some(own) = peers.iter().find(|peer| peer.peer_urls.iter().any(|url| url == peer_url)) {
                let id = own.id;
                return Ok((peers, id));
            }
            let added = self.members.write("member add", |client| async move {
                let options = MemberAddOptions::new().with_is_learner();
                client.cluster_client().member_add(vec![peer_url.to_owned()], Some(options)).await
            });
            let added = added.await?;
            let id = added.member().map_or(0, Listed::id);
            Ok((added.member_list().iter().map(Peer::from).collect(), id))
        });
        announced.await
    }

    /// Lets a member vote as soon as it has all the data.
    pub async fn promote(&self, id: u64) -> Result<(), StorageError> {
        let promoted = patiently("the member does not vote yet", CATCH_UP, || {
            self.members.read("member promote", |client| async move {
                match client.cluster_client().member_promote(id).await {
                    // It votes already. («… which is in sync with leader»: not yet.)
                    Err(Error::GRpcStatus(status))
                        if status.message().ends_with("can only promote a learner member") =>
                    {
                        Ok(())
                    }
                    promoted => promoted.map(|_| ()),
                }
            })
        });
        promoted.await
    }

    /// Tells the others where a member is reached from now on.
    pub async fn move_to(&self, id: u64, peer_url: &str) -> Result<(), StorageError> {
        let update =
            |client: Client| async move { client.cluster_client().member_update(id, vec![peer_url.to_owned()]).await };
        self.members.read("member update", update).await.map(|_| ())
    }

    /// Takes a member out; its process ends by itself.
    pub async fn dismiss(&self, id: u64) -> Result<(), StorageError> {
        let removed = patiently("the members do not let one go yet", SETTLE, || {
            self.members.read("member remove", |client| async move {
                match client.cluster_client().member_remove(id).await {
                    Err(Error::GRpcStatus(status)) if status.message().contains("member not found") => Ok(()),
                    removed => removed.map(|_| ()),
                }
            })
        });
        removed.await
    }

    /// Waits until this member itself answers, though it may not vote yet.
    pub async fn awake(&self) -> Result<(), StorageError> {
        let (_, client) = self.members.current();
        client.maintenance_client().status().await.map(|_| ()).map_err(|error| explain(&error))
    }
}
