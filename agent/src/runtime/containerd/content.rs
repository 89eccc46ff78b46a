//! Writing into containerd's content store, and keeping what is written until something refers to it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use containerd_client::services::v1::{
    AbortRequest, AddResourceRequest, CreateRequest, DeleteRequest, Resource, WriteAction, WriteContentRequest,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use steady_core::Timestamp;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::api::{Api, Failed, LOOK, call, failed};
use crate::runtime::image::PULL;

/// Most bytes of one message.
const PIECE: usize = 1024 * 1024;
/// Pieces that may wait to be written.
const PENDING: usize = 4;
/// After this long what an agent that died left of a pull may be dropped.
const LEASE: Duration = Duration::from_secs(4 * 3600);

/// Writes content, which has to have this digest and size.
pub(super) async fn write(
    api: &Api,
    digest: &str,
    size: i64,
    pieces: BoxStream<'static, Result<Bytes, String>>,
    labels: HashMap<String, String>,
) -> Result<(), String> {
    let key = format!("steady-{}-{digest}", unique());
    let commit = WriteContentRequest {
        action: WriteAction::Commit.into(),
        total: size,
        expected: digest.to_owned(),
        offset: size,
        labels,
        ..WriteContentRequest::default()
    };
    let (to, requests) = mpsc::channel(PENDING);
    let feeding = feed(to, key.clone(), pieces, commit);
    let committing = async {
        let mut answers = api.content().write(ReceiverStream::new(requests)).await?.into_inner();
        let mut committed = false;
        while let Some(answer) = answers.message().await? {
            committed |= answer.action() == WriteAction::Commit;
        }
        Ok::<_, Status>(committed)
    };
    let written = tokio::time::timeout(PULL, async { tokio::join!(feeding, committing) }).await;
    let result = match written {
        Err(_) => Err(format!("{digest} was not written within {PULL:?}")),
        Ok((Err(broken), _)) => Err(broken),
        Ok((Ok(()), Ok(true))) => Ok(()),
        Ok((Ok(()), Ok(false))) => Err(format!("{digest} was not committed")),
        Ok((Ok(()), Err(status))) => match failed(&status) {
            Failed::Exists => Ok(()),
            error => Err(error.text()),
        },
    };
    if result.is_err() {
        let _ = call("abort", LOOK, api.content().abort(AbortRequest { r#ref: key })).await;
    }
    result
}

/// Sends all pieces, and the commit when there were no others. That nobody takes them is said by who does not.
async fn feed(
    to: mpsc::Sender<WriteContentRequest>,
    key: String,
    mut pieces: BoxStream<'static, Result<Bytes, String>>,
    commit: WriteContentRequest,
) -> Result<(), String> {
    let _ = to.send(WriteContentRequest { r#ref: key, ..WriteContentRequest::default() }).await;
    let mut offset = 0;
    while let Some(piece) = pieces.next().await {
        let mut piece = piece?;
        while !piece.is_empty() {
            let data = piece.split_to(piece.len().min(PIECE));
            let (action, at) = (WriteAction::Write.into(), offset);
            offset += data.len() as i64;
            let request =
                WriteContentRequest { action, offset: at, data: data.to_vec(), ..WriteContentRequest::default() };
            if to.send(request).await.is_err() {
                return Ok(());
            }
        }
    }
    let _ = to.send(commit).await;
    Ok(())
}

/// A name that nothing else has.
pub(super) fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{}-{}-{next}", now.as_nanos(), std::process::id())
}

/// Keeps what is made until something refers to it.
pub(super) struct Lease {
    /// What is made by it is kept.
    pub(super) api: Api,
    id: String,
}

impl Lease {
    pub(super) async fn take(api: &Api) -> Result<Self, Failed> {
        let id = format!("steady-{}", unique());
        let until = Timestamp::from(SystemTime::now() + LEASE).to_string();
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), until)]);
        call("lease", LOOK, api.leases().create(CreateRequest { id: id.clone(), labels })).await?;
        Ok(Lease { api: api.leased(&id), id })
    }

    /// What is there already stays as long as the lease, too.
    pub(super) async fn hold(&self, kind: &str, id: &str) -> Result<(), Failed> {
        let resource = Resource { id: id.to_owned(), r#type: kind.to_owned() };
        let request = AddResourceRequest { id: self.id.clone(), resource: Some(resource) };
        match call("hold", LOOK, self.api.leases().add_resource(request)).await {
            Err(Failed::Exists) => Ok(()),
            held => held,
        }
    }

    pub(super) async fn end(self) {
        let request = DeleteRequest { id: self.id, sync: false };
        let _ = call("end lease", LOOK, self.api.leases().delete(request)).await;
    }
}
