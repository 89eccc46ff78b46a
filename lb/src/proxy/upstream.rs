//! Connections to targets, of one worker: kept when they are idle, shared where the protocol lets them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use tokio_rustls::TlsConnector;

use super::body::Outgoing;
use super::worker::Local;
use crate::connect::connect;
use crate::endpoint::now;
use crate::group::Spoken;

/// Idle connections to one target that are kept.
const IDLE: usize = 128;
/// For how long, milliseconds; and for a request that cannot be sent twice.
const AGE: u64 = 30_000;
const YOUNG: u64 = 2_000;

type Http1 = http1::SendRequest<Outgoing>;
type Http2 = http2::SendRequest<Outgoing>;
/// An address, and whether TLS is spoken there.
type Whither = (SocketAddr, bool);

/// Connections of a worker.
#[derive(Default)]
pub(crate) struct Upstreams {
    /// With when they were given back, milliseconds of [`now`].
    idle: RefCell<HashMap<Whither, Vec<(Http1, u64)>>>,
    shared: RefCell<HashMap<Whither, Http2>>,
}

/// Why a request has no answer.
pub(crate) enum Failed {
    /// Nothing of it was sent: it is whole, and may go to anybody.
    Unsent(Box<Request<Outgoing>>, String),
    /// Some or all of it was sent, perhaps over a connection that was kept for long.
    Sent { why: String, reused: bool },
    /// Its client broke off: the target has nothing to do with it.
    Client(String),
}

impl Failed {
    fn of(error: &hyper::Error, reused: bool) -> Self {
        if error.is_user() { Failed::Client(text(error)) } else { Failed::Sent { why: text(error), reused } }
    }
}

/// An answer, and the connection that goes back when its body is over.
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    pub(crate) lent: Option<Lent>,
}

/// A connection that has an answer to deliver.
pub(crate) struct Lent {
    upstreams: Rc<Upstreams>,
    key: Whither,
    sender: Option<Http1>,
}

impl Lent {
    /// The answer is whole.
    pub(crate) fn give_back(&mut self) {
        let Some(sender) = self.sender.take().filter(|sender| !sender.is_closed()) else { return };
        let mut idle = self.upstreams.idle.borrow_mut();
        let there = idle.entry(self.key).or_default();
        if there.len() < IDLE {
            there.push((sender, now()));
        }
    }
}

impl Upstreams {
    /// An idle connection that is still good, and not older than so many milliseconds.
    fn take(&self, key: Whither, age: u64) -> Option<Http1> {
        let youngest = now().saturating_sub(age);
        let mut idle = self.idle.borrow_mut();
        let there = idle.get_mut(&key)?;
        // The newest first: what was just given back may have something left to do.
        let mut busy = Vec::new();
        let found = loop {
            match there.pop() {
                // Those below it are older still: whoever keeps connections for less time is about to close them.
                Some((_, since)) if since < youngest => {
                    if age == AGE {
                        there.clear();
                    }
                    break None;
                }
                Some((sender, _)) if sender.is_ready() => break Some(sender),
                Some((sender, _)) if sender.is_closed() => {}
                Some(busy_one) => busy.push(busy_one),
                None => break None,
            }
        };
        there.append(&mut busy);
        found
    }

    /// Forgets connections to targets that are not there any more.
    pub(crate) fn retain(&self, is_there: impl Fn(&SocketAddr) -> bool) {
        self.idle.borrow_mut().retain(|(address, _), _| is_there(address));
        self.shared.borrow_mut().retain(|(address, _), _| is_there(address));
    }

    /// Sends a request, over a connection that is there or a new one.
    pub(crate) async fn send(
        self: &Rc<Self>,
        address: SocketAddr,
        spoken: Spoken,
        tls: Option<&TlsConnector>,
        request: Request<Outgoing>,
        repeatable: bool,
    ) -> Result<Answer, Failed> {
        if spoken.http2 {
            return self.send2(address, tls, request).await;
        }
        self.send1(address, tls, request, if repeatable { AGE } else { YOUNG }).await
    }

    async fn send1(
        self: &Rc<Self>,
        address: SocketAddr,
        tls: Option<&TlsConnector>,
        mut request: Request<Outgoing>,
        age: u64,
    ) -> Result<Answer, Failed> {
        let key = (address, tls.is_some());
        loop {
            let (mut sender, is_new) = match self.take(key, age) {
                Some(sender) => (sender, false),
                None => match self.open1(address, tls).await {
                    Ok(sender) => (sender, true),
                    Err(error) => return Err(Failed::Unsent(Box::new(request), error.to_string())),
                },
            };
            match sender.try_send_request(request).await {
                Ok(response) => {
                    let lent = Lent { upstreams: Rc::clone(self), key, sender: Some(sender) };
                    return Ok(Answer { response, lent: Some(lent) });
                }
                Err(mut failed) => match failed.take_message() {
                    // It was closed in the moment in which it was taken.
                    Some(back) if !is_new => request = back,
                    Some(back) => return Err(Failed::Unsent(Box::new(back), text(failed.error()))),
                    None => return Err(Failed::of(failed.error(), !is_new)),
                },
            }
        }
    }

    async fn open1(&self, address: SocketAddr, tls: Option<&TlsConnector>) -> io::Result<Http1> {
        let stream = connect(address, tls).await?;
        let opened = http1::Builder::new().max_buf_size(MAX_BUFFER).handshake(TokioIo::new(stream)).await;
        let (sender, connection) = opened.map_err(io::Error::other)?;
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }

    async fn send2(
        self: &Rc<Self>,
        address: SocketAddr,
        tls: Option<&TlsConnector>,
        mut request: Request<Outgoing>,
    ) -> Result<Answer, Failed> {
        let key = (address, tls.is_some());
        loop {
            let known = self.shared.borrow().get(&key).filter(|sender| !sender.is_closed()).cloned();
            let (mut sender, is_new) = match known {
                Some(sender) => (sender, false),
                None => match self.open2(address, tls).await {
                    Ok(sender) => {
                        self.shared.borrow_mut().insert(key, sender.clone());
                        (sender, true)
                    }
                    Err(error) => return Err(Failed::Unsent(Box::new(request), error.to_string())),
                },
            };
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(Answer { response, lent: None }),
                Err(mut failed) => match failed.take_message() {
                    Some(back) if !is_new => request = back,
                    Some(back) => return Err(Failed::Unsent(Box::new(back), text(failed.error()))),
                    None => return Err(Failed::of(failed.error(), !is_new)),
                },
            }
        }
    }

    async fn open2(&self, address: SocketAddr, tls: Option<&TlsConnector>) -> io::Result<Http2> {
        let stream = connect(address, tls).await?;
        let opened = http2::Builder::new(Local)
            .timer(hyper_util::rt::TokioTimer::new())
            .adaptive_window(true)
            // A host that is gone says nothing.
            .keep_alive_interval(Some(Duration::from_secs(10)))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await;
        let (sender, connection) = opened.map_err(io::Error::other)?;
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }

    /// A connection of its own for a request that is to become something else than HTTP.
    pub(crate) async fn upgrade(
        &self,
        address: SocketAddr,
        tls: Option<&TlsConnector>,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, Failed> {
        let stream = match connect(address, tls).await {
            Ok(stream) => stream,
            Err(error) => return Err(Failed::Unsent(Box::new(request), error.to_string())),
        };
        let opened = http1::Builder::new().handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = opened.map_err(|error| Failed::of(&error, false))?;
        tokio::task::spawn_local(async move {
            let _ = connection.with_upgrades().await;
        });
        sender.send_request(request).await.map_err(|error| Failed::of(&error, false))
    }
}

/// Largest head of an answer, bytes.
const MAX_BUFFER: usize = 256 * 1024;

/// With what is behind it.
fn text(error: &hyper::Error) -> String {
    let mut all = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(why) = cause {
        all = format!("{all}: {why}");
        cause = why.source();
    }
    all
}
