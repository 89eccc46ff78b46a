//! Workers: threads that accept connections, each with a runtime of its own, and what they are to accept.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use http::HeaderValue;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use steady_core::traffic::is_http;
use steady_core::v1::traffic_protocol::Value as Protocol;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, LocalSet};
use tokio_rustls::TlsAcceptor;

use super::access::AccessLog;
use super::http::Connection;
use super::idle::silence;
use super::tcp;
use super::worker::{Local, Worker};
use crate::endpoint::now;
use crate::handover::Sockets;
use crate::plane::Open;
use crate::table::Table;

/// How long a client may take for TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Largest head of a request, bytes.
const HEAD: usize = 64 * 1024;
/// Requests of a client at once over one connection (HTTP/2).
const STREAMS: u32 = 250;
/// How long a connection of HTTP/1 that is to end may be idle: a request may be on its way.
const LAST: Duration = Duration::from_secs(5);
/// Connections of all workers at once.
const CONNECTIONS: i64 = 50_000;

/// What workers are to do.
#[derive(Clone, Default)]
pub(crate) struct Orders {
    pub(crate) table: Arc<Table>,
    pub(crate) sockets: Sockets,
    /// How clients of encrypted listeners are met, by listener.
    pub(crate) tls: Arc<BTreeMap<String, Arc<ServerConfig>>>,
    /// No more connections are accepted, those that are there come to their end.
    pub(crate) closing: bool,
}

/// A listener as a worker accepts for it: another one is accepted for anew.
#[derive(Clone, PartialEq, Eq)]
struct Accepted {
    name: String,
    protocol: Protocol,
    idle: Duration,
    port: u16,
    tls: Option<usize>,
    socket: usize,
}

/// Runs a worker until it is to close and its connections are over. `closed` counts those that accept nothing any more.
pub(crate) fn work(
    mut orders: watch::Receiver<Orders>,
    at: Arc<AtomicU64>,
    open: Open,
    closed: Arc<AtomicUsize>,
    log: Option<AccessLog>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "a worker has no runtime"),
    };
    let local = LocalSet::new();
    local.block_on(&runtime, async move {
        let first = orders.borrow_and_update().clone();
        let worker = Rc::new(Worker::new(Arc::clone(&first.table), at, log));
        let (close, closing) = watch::channel(false);
        let mut accepting: Vec<(Accepted, AbortHandle)> = Vec::new();
        follow(&worker, &first, &mut accepting, &open, &closing);
        while orders.changed().await.is_ok() {
            let now = orders.borrow_and_update().clone();
            worker.obey(Arc::clone(&now.table));
            follow(&worker, &now, &mut accepting, &open, &closing);
            if now.closing && !close.send_replace(true) {
                closed.fetch_add(1, Ordering::AcqRel);
            }
        }
        // Whoever gives orders has waited for connections to end, as long as it wants to.
    });
}

/// Accepts for the listeners of a table, and for no others.
fn follow(
    worker: &Rc<Worker>,
    orders: &Orders,
    accepting: &mut Vec<(Accepted, AbortHandle)>,
    open: &Open,
    closing: &watch::Receiver<bool>,
) {
    let mut wanted = Vec::new();
    for listener in orders.table.listeners.values().filter(|_| !orders.closing) {
        let Some(socket) = orders.sockets.get(&listener.port) else { continue };
        let tls = orders.tls.get(&listener.name);
        if listener.is_encrypted() && tls.is_none() {
            continue;
        }
        let accepted = Accepted {
            name: listener.name.clone(),
            protocol: listener.protocol,
            idle: listener.idle,
            port: listener.port,
            tls: tls.map(|config| Arc::as_ptr(config) as usize),
            socket: Arc::as_ptr(socket) as usize,
        };
        wanted.push((accepted, Arc::clone(socket), tls.cloned()));
    }
    accepting.retain(|(accepted, running)| {
        let stays = wanted.iter().any(|(other, ..)| other == accepted);
        if !stays {
            running.abort();
        }
        stays
    });
    for (accepted, socket, tls) in wanted {
        if accepting.iter().any(|(other, _)| *other == accepted) {
            continue;
        }
        let listener = socket.try_clone().and_then(|socket| {
            socket.set_nonblocking(true)?;
            TcpListener::from_std(socket)
        });
        match listener {
            Ok(listener) => {
                let door = Door {
                    worker: Rc::clone(worker),
                    name: accepted.name.as_str().into(),
                    accepted: accepted.clone(),
                    tls: tls.map(TlsAcceptor::from),
                    open: Arc::clone(open),
                    closing: closing.clone(),
                };
                let running = tokio::task::spawn_local(Rc::new(door).accept(listener)).abort_handle();
                accepting.push((accepted, running));
            }
            Err(error) => tracing::error!(listener = accepted.name, %error, "nothing is accepted for a listener"),
        }
    }
}

/// Where connections of one listener come in.
struct Door {
    worker: Rc<Worker>,
    name: Rc<str>,
    accepted: Accepted,
    tls: Option<TlsAcceptor>,
    open: Open,
    closing: watch::Receiver<bool>,
}

/// A connection is counted until it is over.
pub(crate) struct Counted(Open);

impl Counted {
    fn of(open: &Open) -> Self {
        open.fetch_add(1, Ordering::AcqRel);
        Counted(Arc::clone(open))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Door {
    async fn accept(self: Rc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    if self.open.load(Ordering::Relaxed) >= CONNECTIONS {
                        continue;
                    }
                    let counted = Rc::new(Counted::of(&self.open));
                    tokio::task::spawn_local(Rc::clone(&self).meet(stream, peer, counted));
                }
                Err(error) => {
                    // Too many open files, most likely: what is open has to end first.
                    tracing::warn!(listener = &*self.name, %error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn meet(self: Rc<Self>, stream: TcpStream, peer: SocketAddr, counted: Rc<Counted>) {
        let _ = stream.set_nodelay(true);
        match &self.tls {
            None => self.serve(stream, peer, counted).await,
            Some(tls) => {
                if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                    self.serve(stream, peer, counted).await;
                }
            }
        }
    }

    async fn serve<S>(&self, stream: S, peer: SocketAddr, counted: Rc<Counted>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if !is_http(self.accepted.protocol) {
            return tcp::serve(Rc::clone(&self.worker), &self.name, stream, peer).await;
        }
        let ip = peer.ip().to_canonical().to_string();
        let connection = Rc::new(Connection {
            worker: Rc::clone(&self.worker),
            listener: Rc::clone(&self.name),
            peer,
            peer_text: HeaderValue::try_from(ip).unwrap_or(HeaderValue::from_static("unknown")),
            tls: self.tls.is_some(),
            port: self.accepted.port,
            http2: Rc::default(),
            progress: Arc::new(AtomicU64::new(now())),
            closing: self.closing.clone(),
            counted,
        });
        let (http2, progress) = (Rc::clone(&connection.http2), Arc::clone(&connection.progress));
        let service = service_fn(move |request| Rc::clone(&connection).serve(request));
        let mut builder = auto::Builder::new(Local);
        // What is silent is ended by the worker's own clock: one for all connections, not one for each request.
        builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEAD);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(HEAD as u32)
            .keep_alive_interval(Some(self.accepted.idle))
            .adaptive_window(true);
        let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut serving = std::pin::pin!(serving);
        // Who is told that an answer takes too long is told by then.
        let idle = self.accepted.idle + Duration::from_secs(1);
        let mut closing = self.closing.clone();
        tokio::select! {
            _ = serving.as_mut() => return,
            _ = closing.wait_for(|closing| *closing) => {}
            () = silence(&progress, idle) => return,
        }
        // A request may be on its way. It is answered, and with it a client of HTTP/1 hears that the connection ends; one of
        // HTTP/2 can be told at once.
        if !http2.get() {
            tokio::select! {
                _ = serving.as_mut() => return,
                () = tokio::time::sleep(LAST) => {}
            }
        }
        serving.as_mut().graceful_shutdown();
        tokio::select! {
            _ = serving => {}
            () = silence(&progress, idle) => {}
        }
    }
}
