//! Leadership: at most one process acts as a controller, and every commit carries the epoch that proves it.
//!
//! Leadership is for efficiency, the epoch for safety: a leader that was paused believes what it likes, its
//! commits are refused.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use steady_core::v1::{AcquireRequest, Fence, KeepAliveRequest, LeaseStatus, ReleaseRequest};
use steady_core::{Key, Kind, Revision};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::client::{DEADLINE, within};
use crate::{Client, Reflector};

/// Seconds after which a leader that is gone is replaced, at the earliest.
const TTL: Duration = Duration::from_secs(5);
/// Between renewals.
const RENEWAL: Duration = Duration::from_millis(1500);

/// An id for this process that no other has.
pub fn holder() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}-{}", host.trim(), std::process::id(), &uuid::Uuid::new_v4().simple().to_string()[..8])
}

/// A lease that this process holds, until [`Leadership::lost`].
pub(crate) struct Leadership {
    /// Goes with every commit.
    pub(crate) fence: Fence,
    /// A leader looks at a view no older than this.
    pub(crate) since: Revision,
    holder: String,
    /// How this leader is doing; told with each renewal.
    pub(crate) doing: Arc<watch::Sender<LeaseStatus>>,
    lost: watch::Receiver<bool>,
    renewing: tokio::task::JoinHandle<()>,
}

impl Leadership {
    /// Waits until the lease is free, and takes it.
    pub(crate) async fn take(client: &Client, reflector: &Reflector, controller: &str, holder: &str) -> Self {
        let name = format!("controller.{controller}");
        Self::hold_when_free(client, reflector, name, controller, holder).await
    }

    /// Takes a lease of one's own: there may be any number of this controller.
    pub(crate) async fn join(client: &Client, reflector: &Reflector, controller: &str, holder: &str) -> Self {
        let name = format!("controller.{controller}.{holder}");
        Self::hold_when_free(client, reflector, name, controller, holder).await
    }

    async fn hold_when_free(
        client: &Client,
        reflector: &Reflector,
        name: String,
        controller: &str,
        holder: &str,
    ) -> Self {
        let key = Key::new(Kind::Lease, "", &name);
        loop {
            let ours = |view: &steady_core::View| {
                let held_by = view.get(&key).and_then(|o| o.as_lease()?.spec.as_ref().map(|s| s.holder.clone()));
                held_by.is_none_or(|by| by == holder)
            };
            // The view may be late with the news that the lease is free, never for ever.
            let _ = tokio::time::timeout(TTL, reflector.until(ours)).await;
            let request =
                AcquireRequest { name: name.clone(), holder: holder.into(), ttl_seconds: TTL.as_secs() as i32 };
            let (mut leases, place) = (client.leases(), client.place());
            match within(DEADLINE, leases.acquire(request)).await {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    tracing::info!(controller, epoch = answer.epoch, "leading");
                    return Self::hold(client.clone(), name, holder, answer.epoch, Revision(answer.revision));
                }
                Err(status) if status.code() == Code::AlreadyExists => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(status) => {
                    tracing::debug!(controller, %status, "the lease could not be taken; trying again");
                    client.rotate(place);
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        }
    }

    fn hold(client: Client, name: String, holder: &str, epoch: i64, since: Revision) -> Self {
        let (tell, lost) = watch::channel(false);
        let request = KeepAliveRequest { name: name.clone(), holder: holder.into(), status: None };
        let doing = Arc::new(watch::Sender::new(LeaseStatus::default()));
        let told = doing.subscribe();
        let renewing = tokio::spawn(async move {
            renew(&client, request, told).await;
            tell.send_replace(true);
        });
        Leadership { fence: Fence { lease: name, epoch }, since, holder: holder.into(), doing, lost, renewing }
    }

    /// Returns when the lease is lost, or may be.
    pub(crate) async fn lost(&mut self) {
        let _ = self.lost.wait_for(|lost| *lost).await;
    }

    /// Gives the lease up, so that another leads at once.
    pub(crate) async fn release(&self, client: &Client) {
        self.renewing.abort();
        release(client, self.fence.lease.clone(), self.holder.clone()).await;
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

/// Holds a lease for as long as this is polled: others see that somebody is there. One that is lost is taken again.
pub async fn presence(client: Client, name: String, holder: String) {
    loop {
        let request = AcquireRequest { name: name.clone(), holder: holder.clone(), ttl_seconds: TTL.as_secs() as i32 };
        let (mut leases, place) = (client.leases(), client.place());
        match within(DEADLINE, leases.acquire(request)).await {
            Ok(_) => {
                let request = KeepAliveRequest { name: name.clone(), holder: holder.clone(), status: None };
                renew(&client, request, watch::channel(LeaseStatus::default()).1).await;
            }
            Err(status) => {
                tracing::debug!(name, %status, "the lease could not be taken; trying again");
                client.rotate(place);
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

/// Gives a lease up: others see at once that nobody is there.
pub async fn release(client: &Client, name: String, holder: String) {
    let request = ReleaseRequest { name, holder };
    let _ = tokio::time::timeout(Duration::from_secs(1), client.leases().release(request)).await;
}

/// Renews until the lease is lost or its time is over without a renewal.
async fn renew(client: &Client, request: KeepAliveRequest, doing: watch::Receiver<LeaseStatus>) {
    let request = || KeepAliveRequest { status: Some(doing.borrow().clone()), ..request.clone() };
    let mut renewed = Instant::now();
    while renewed.elapsed() < TTL {
        let (beats, stream) = mpsc::channel(1);
        let place = client.place();
        let opened = async {
            beats.send(request()).await.ok()?;
            client.leases().keep_alive(ReceiverStream::new(stream)).await.ok()
        };
        let Ok(Some(answers)) = tokio::time::timeout(RENEWAL, opened).await else {
            client.rotate(place);
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        let mut answers = answers.into_inner();
        loop {
            let sent = Instant::now();
            match tokio::time::timeout(RENEWAL, answers.next()).await {
                Ok(Some(Ok(_))) => renewed = sent,
                Ok(Some(Err(status))) if status.code() == Code::NotFound => return,
                _ => break,
            }
            tokio::time::sleep(RENEWAL).await;
            if beats.send(request()).await.is_err() {
                break;
            }
        }
        client.rotate(place);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
