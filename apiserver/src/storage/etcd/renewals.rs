//! Renewals of leases. A few streams carry those of all of them: a stream for each would be as many streams to open anew,
//! all at once, whenever a member of etcd goes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{LeaseKeepAliveStream, LeaseKeeper};
use tokio::sync::{Mutex as AsyncMutex, oneshot};

use super::members::Members;
use crate::storage::{LeaseId, StorageError};

/// How long a renewal may take on a stream that is open.
const RENEWAL: Duration = Duration::from_millis(1500);
/// How long it may take in all.
const PATIENCE: Duration = Duration::from_secs(4);
/// Streams. etcd answers one renewal of a stream after the other, and a member that does not lead asks the leader for each.
const STREAMS: usize = 8;

/// Who waits for the answer about a lease: whether it is still there. `None` once the stream has ended.
type Waiting = Arc<Mutex<Option<HashMap<i64, Vec<oneshot::Sender<bool>>>>>>;

struct Open {
    ask: LeaseKeeper,
    waiting: Waiting,
    /// Number of the member that it is open at.
    member: usize,
}

impl Open {
    /// Asks on it; nothing when it has ended.
    async fn ask(&mut self, lease: LeaseId) -> Option<oneshot::Receiver<bool>> {
        let (tell, answer) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut()?.entry(lease.0).or_default().push(tell);
        self.ask.id = lease.0;
        self.ask.keep_alive().await.ok()?;
        Some(answer)
    }
}

/// What came of a question.
enum Asked {
    /// The answer comes on this stream, from this member.
    Waits(oneshot::Receiver<bool>, Waiting, usize),
    /// It is answered: the lease is renewed.
    Renewed,
}

/// The streams of one store, open or not.
#[derive(Default)]
pub(super) struct Renewals {
    streams: [AsyncMutex<Option<Open>>; STREAMS],
}

impl Renewals {
    /// Renews a lease. A stream that ends or does not answer is opened anew once, elsewhere.
    pub(super) async fn renew(&self, members: &Members, lease: LeaseId) -> Result<(), StorageError> {
        // While no member answers, callers wait for one another to open the same stream: none waits for all of them.
        let renewed = tokio::time::timeout(PATIENCE, self.try_to_renew(members, lease)).await;
        renewed.unwrap_or_else(|_| Err(unanswered()))
    }

    async fn try_to_renew(&self, members: &Members, lease: LeaseId) -> Result<(), StorageError> {
        for _ in 0..2 {
            let (answer, stream, member) = match self.ask(members, lease).await? {
                Asked::Waits(answer, stream, member) => (answer, stream, member),
                Asked::Renewed => return Ok(()),
            };
            match tokio::time::timeout(RENEWAL, answer).await {
                Ok(Ok(true)) => return Ok(()),
                Ok(Ok(false)) => return Err(StorageError::LeaseGone),
                Ok(Err(_)) | Err(_) => {
                    members.rotate(member);
                    self.close(lease, &stream).await;
                }
            }
        }
        Err(unanswered())
    }

    fn stream(&self, lease: LeaseId) -> &AsyncMutex<Option<Open>> {
        &self.streams[usize::try_from(lease.0.unsigned_abs()).unwrap_or(0) % STREAMS]
    }

    async fn ask(&self, members: &Members, lease: LeaseId) -> Result<Asked, StorageError> {
        let mut stream = self.stream(lease).lock().await;
        if let Some(open) = &mut *stream
            && let Some(answer) = open.ask(lease).await
        {
            return Ok(Asked::Waits(answer, Arc::clone(&open.waiting), open.member));
        }
        *stream = None;
        let open = |client: etcd_client::Client| async move { client.lease_client().keep_alive(lease.0).await };
        let ((ask, answers), member) = members.read_from("lease keep-alive", open).await?;
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        tokio::spawn(listen(answers, Arc::clone(&waiting)));
        *stream = Some(Open { ask, waiting, member });
        Ok(Asked::Renewed)
    }

    /// Closes a lease's stream, unless another one was opened meanwhile.
    async fn close(&self, lease: LeaseId, waiting: &Waiting) {
        let mut stream = self.stream(lease).lock().await;
        if stream.as_ref().is_some_and(|open| Arc::ptr_eq(&open.waiting, waiting)) {
            *stream = None;
        }
    }
}

fn unanswered() -> StorageError {
    StorageError::Unavailable(format!("etcd did not renew the lease within {PATIENCE:?}"))
}

/// Hands the answers to those who wait, until the stream ends: then nobody waits any more.
async fn listen(mut answers: LeaseKeepAliveStream, waiting: Waiting) {
    let lock = || waiting.lock().unwrap_or_else(PoisonError::into_inner);
    while let Ok(Some(answer)) = answers.message().await {
        let told = lock().as_mut().and_then(|waiting| waiting.remove(&answer.id()));
        for tell in told.into_iter().flatten() {
            let _ = tell.send(answer.ttl() > 0);
        }
    }
    lock().take();
}
