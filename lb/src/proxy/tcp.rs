//! Connections as they are: of listeners that look at no requests, and of requests that became something else.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::access::Entry;
use super::idle::silence;
use super::worker::Worker;
use crate::connect::connect;
use crate::endpoint::now;
use crate::group::spoken;

/// Targets that are tried for one connection.
const TRIES: usize = 4;
/// Bytes that are read at once.
const BUFFER: usize = 32 * 1024;

/// Passes bytes on, both ways, until both sides have ended, one breaks off, or nothing comes for so long.
pub(crate) async fn pass<A, B>(client: &mut A, target: &mut B, idle: Duration) -> u64
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let last = AtomicU64::new(now());
    let (from_client, to_client) = tokio::io::split(client);
    let (from_target, to_target) = tokio::io::split(target);
    let both = async { tokio::join!(one_way(from_client, to_target, &last), one_way(from_target, to_client, &last)) };
    tokio::select! {
        (_, answered) = both => answered,
        () = silence(&last, idle) => 0,
    }
}

async fn one_way(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, last: &AtomicU64) -> u64 {
    let (mut buffer, mut total) = (vec![0; BUFFER], 0);
    while let Ok(count) = from.read(&mut buffer).await {
        if count == 0 || to.write_all(&buffer[..count]).await.is_err() || to.flush().await.is_err() {
            break;
        }
        total += count as u64;
        last.store(now(), Ordering::Relaxed);
    }
    let _ = to.shutdown().await;
    total
}

/// Brings a connection to a target.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    worker: Rc<Worker>,
    name: &str,
    mut client: S,
    peer: SocketAddr,
) {
    let began = Instant::now();
    let table = worker.table();
    let Some(listener) = table.listeners.get(name) else { return };
    let Some(share) = listener.forward().and_then(|forward| forward.choose()) else { return };
    let group = &share.group;
    let mut tried = Vec::new();
    while tried.len() < TRIES {
        let Some(endpoint) = group.choose(&share.pools, &tried) else { break };
        let busy = endpoint.begin();
        let tls = spoken(&group.spec, false).tls.then(|| &worker.tls[0]);
        endpoint.figures.requests.fetch_add(1, Ordering::Relaxed);
        match connect(endpoint.identity.address, tls).await {
            Ok(mut target) => {
                endpoint.answered();
                let (address, task, idle) = (endpoint.identity.address, endpoint.identity.task.clone(), listener.idle);
                let (counters, listener) = (std::sync::Arc::clone(&group.counters), listener.name.clone());
                let attempts = tried.len() + 1;
                // What goes on for long does not keep an old table.
                drop(table);
                let bytes = pass(&mut client, &mut target, idle).await;
                drop(busy);
                counters.requests.fetch_add(1, Ordering::Relaxed);
                if let Some(log) = &worker.log {
                    drop(Entry {
                        log: log.clone(),
                        began,
                        listener,
                        client: peer,
                        method: String::new(),
                        host: String::new(),
                        uri: String::new(),
                        status: 0,
                        target: Some(address),
                        task,
                        tries: attempts,
                        bytes,
                        error: String::new(),
                    });
                }
                return;
            }
            Err(error) => {
                tracing::debug!(target = %endpoint.identity.address, %error, "a target could not be reached");
                endpoint.refused();
                tried.push(endpoint.cookie);
                group.counters.retries.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    group.counters.rejected.fetch_add(1, Ordering::Relaxed);
}
