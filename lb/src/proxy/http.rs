//! Requests, one by one: which target gets it, what it is sent, and what becomes of its answer.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use steady_core::v1::RedirectConfig;
use tokio::sync::watch;

use super::access::Entry;
use super::body::{Answered, Idle, OfTarget, Outgoing};
use super::head::{cookie_of, for_http1, for_http2, is_idempotent, stick, strip, upgrade_of, wrong};
use super::idle::silence;
use super::serve::Counted;
use super::upstream::{Answer, Failed};
use super::worker::Worker;
use crate::endpoint::{Busy, Endpoint, now};
use crate::group::{Group, Spoken, spoken};
use crate::rule::{Asked, Location, host, location};
use crate::table::{Does, Share};

/// Targets that are tried for one request.
const TRIES: usize = 4;
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");

/// A client's connection.
pub(crate) struct Connection {
    pub(crate) worker: Rc<Worker>,
    pub(crate) listener: Rc<str>,
    pub(crate) peer: SocketAddr,
    /// The same, as headers have it.
    pub(crate) peer_text: HeaderValue,
    pub(crate) tls: bool,
    pub(crate) port: u16,
    /// HTTP/2 is spoken.
    pub(crate) http2: Rc<Cell<bool>>,
    /// When something went on last, as [`now`] has it.
    pub(crate) progress: Arc<AtomicU64>,
    /// It is to end.
    pub(crate) closing: watch::Receiver<bool>,
    /// Whatever it becomes.
    pub(crate) counted: Rc<Counted>,
}

/// An answer of the load balancer's own.
fn own(status: StatusCode, text: &str) -> Response<Answered> {
    let body = Answered::Own(Full::new(Bytes::from(format!("{} {text}\n", status.as_u16()))));
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

impl Connection {
    /// Answers a request.
    pub(crate) async fn serve(self: Rc<Self>, request: Request<Incoming>) -> Result<Response<Answered>, Infallible> {
        let http2 = request.version() == Version::HTTP_2;
        self.http2.set(http2);
        self.progress.store(now(), Ordering::Relaxed);
        let mut response = self.answer(request).await?;
        let goes_on = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if !http2 && !goes_on && *self.closing.borrow() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Answered>, Infallible> {
        let began = Instant::now();
        let table = self.worker.table();
        let Some(listener) = table.listeners.get(&*self.listener) else {
            return Ok(own(StatusCode::SERVICE_UNAVAILABLE, "the listener is gone"));
        };
        if let Some(wrong) = wrong(&request) {
            let mut response = own(StatusCode::BAD_REQUEST, wrong);
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            return Ok(response);
        }
        let uri = request.uri();
        let asked = Asked {
            host: host(request.headers(), uri),
            path: uri.path(),
            query: uri.query().unwrap_or_default(),
            method: request.method(),
            headers: request.headers(),
            peer: self.peer.ip(),
        };
        let mut entry = self.worker.log.as_ref().map(|log| Entry {
            log: log.clone(),
            began,
            listener: listener.name.clone(),
            client: self.peer,
            method: request.method().to_string(),
            host: asked.host.to_owned(),
            uri: uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
            status: 0,
            target: None,
            task: String::new(),
            tries: 0,
            bytes: 0,
            error: String::new(),
        });
        let response = match listener.does(asked) {
            Does::Respond { status, kind, body } => {
                let mut response = Response::new(Answered::Own(Full::new(Bytes::from(body.clone()))));
                *response.status_mut() = StatusCode::from_u16(*status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
                if let Ok(kind) = kind.parse() {
                    response.headers_mut().insert(header::CONTENT_TYPE, kind);
                }
                response
            }
            Does::Redirect(config) => self.redirect(config, asked),
            Does::Forward(forward) => match forward.choose() {
                Some(share) => return Ok(self.forward(share, request, listener.idle, began, entry).await),
                None => own(StatusCode::SERVICE_UNAVAILABLE, "no target group has a weight"),
            },
        };
        if let Some(entry) = &mut entry {
            entry.status = response.status().as_u16();
        }
        Ok(response)
    }

    fn redirect(&self, config: &RedirectConfig, asked: Asked<'_>) -> Response<Answered> {
        let scheme = if self.tls { "https" } else { "http" };
        let port = self.port.to_string();
        let path = asked.path.trim_start_matches('/');
        let Location { at, query } = location(config, |template| {
            let template = template.replace("#{protocol}", scheme).replace("#{host}", asked.host);
            template.replace("#{port}", &port).replace("#{path}", path).replace("#{query}", asked.query)
        });
        let query = if query.is_empty() { String::new() } else { format!("?{query}") };
        let location = HeaderValue::try_from(format!("{at}{query}"));
        let Ok(location) = location else { return own(StatusCode::BAD_REQUEST, "the request's host is none") };
        let permanent = config.status_code == "HTTP_301";
        let status = if permanent { StatusCode::MOVED_PERMANENTLY } else { StatusCode::FOUND };
        let mut response = own(status, "it is somewhere else");
        response.headers_mut().insert(header::LOCATION, location);
        response
    }

    async fn forward(
        &self,
        share: &Share,
        request: Request<Incoming>,
        idle: Duration,
        began: Instant,
        mut entry: Option<Entry>,
    ) -> Response<Answered> {
        let group = &share.group;
        self.worker.count();
        let stuck = if group.is_sticky() { cookie_of(request.headers()) } else { None };
        let upgrade = upgrade_of(&request);
        let mut tried: Vec<u64> = Vec::new();
        let (parts, body) = request.into_parts();
        let mut parts = parts;
        let on_upgrade = upgrade.is_some().then(|| parts.extensions.remove::<hyper::upgrade::OnUpgrade>()).flatten();
        self.prepare(&mut parts, upgrade.as_ref());
        let empty = body.is_end_stream();
        let repeatable = empty && is_idempotent(&parts.method);
        let came = (!empty).then_some(&*self.progress);
        let mut body = Some(if empty { Outgoing::Empty } else { Outgoing::Client(body, Arc::clone(&self.progress)) });
        let mut parts = Some(parts);
        let mut response = loop {
            let first = if tried.is_empty() { stuck.and_then(|cookie| group.stuck_to(cookie)) } else { None };
            let chosen = first.or_else(|| group.choose(&share.pools, &tried));
            let Some(endpoint) = chosen.filter(|_| tried.len() < TRIES) else {
                group.counters.rejected.fetch_add(1, Ordering::Relaxed);
                break if tried.is_empty() {
                    own(StatusCode::SERVICE_UNAVAILABLE, "no target is registered")
                } else {
                    own(StatusCode::BAD_GATEWAY, "no target could be reached")
                };
            };
            let busy = endpoint.begin();
            let (Some(mut head), Some(sent)) = (parts.take(), body.take()) else {
                break own(StatusCode::BAD_GATEWAY, "the target gave no answer");
            };
            if let Some(entry) = &mut entry {
                entry.target = Some(endpoint.identity.address);
                entry.task.clone_from(&endpoint.identity.task);
                entry.tries += 1;
            }
            // What becomes something else than HTTP begins as HTTP/1.
            let spoken = spoken(&group.spec, true);
            let spoken = Spoken { http2: spoken.http2 && upgrade.is_none(), ..spoken };
            if !head.headers.contains_key(header::HOST)
                && head.uri.authority().is_none()
                && let Ok(address) = HeaderValue::try_from(endpoint.identity.address.to_string())
            {
                head.headers.insert(header::HOST, address);
            }
            let kept = repeatable.then(|| head.clone());
            if spoken.http2 {
                for_http2(&mut head, spoken.tls);
            } else {
                for_http1(&mut head);
            }
            endpoint.figures.requests.fetch_add(1, Ordering::Relaxed);
            let request = Request::from_parts(head, sent);
            self.progress.store(now(), Ordering::Relaxed);
            let sending = self.send(endpoint, spoken, request, upgrade.is_some(), repeatable);
            let Some(result) = within(idle, came, sending).await else {
                endpoint.figures.failures.fetch_add(1, Ordering::Relaxed);
                break own(StatusCode::GATEWAY_TIMEOUT, "the target gave no answer in time");
            };
            match result {
                Ok(answer) => {
                    endpoint.answered();
                    let status = answer.response.status();
                    if status.is_server_error() {
                        endpoint.figures.errors.fetch_add(1, Ordering::Relaxed);
                    }
                    let took = began.elapsed();
                    endpoint.figures.microseconds.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
                    group.counters.answered(status.as_u16(), took);
                    if let Some(entry) = &mut entry {
                        entry.status = status.as_u16();
                    }
                    if status == StatusCode::SWITCHING_PROTOCOLS {
                        let goes_on = (busy, Rc::clone(&self.counted), entry);
                        return switch(answer.response, on_upgrade, idle, goes_on);
                    }
                    return self.pass_on(answer, group, endpoint, busy, idle, entry);
                }
                Err(Failed::Unsent(request, why)) => {
                    endpoint.refused();
                    tracing::debug!(target = %endpoint.identity.address, why, "a target could not be reached");
                    let (mut head, back) = request.into_parts();
                    if let Some(kept) = kept {
                        head = kept;
                    }
                    (parts, body) = (Some(head), Some(back));
                }
                Err(Failed::Client(why)) => {
                    tracing::debug!(why, "a client broke off");
                    break own(StatusCode::BAD_REQUEST, "the request broke off");
                }
                Err(Failed::Sent { why, reused }) => {
                    // One that was kept may have been closed in this very moment: nobody's fault.
                    if !reused {
                        endpoint.refused();
                    }
                    tracing::debug!(target = %endpoint.identity.address, why, "a target broke off");
                    if let Some(entry) = &mut entry {
                        entry.error = why;
                    }
                    match kept.filter(|_| self.worker.may_retry()) {
                        Some(kept) => (parts, body) = (Some(kept), Some(Outgoing::Empty)),
                        None => break own(StatusCode::BAD_GATEWAY, "the target broke off"),
                    }
                }
            }
            tried.push(endpoint.cookie);
            group.counters.retries.fetch_add(1, Ordering::Relaxed);
        };
        let status = response.status().as_u16();
        group.counters.answered(status, began.elapsed());
        if let Some(entry) = &mut entry {
            entry.status = status;
        }
        // What is left of its body is not read.
        if !empty {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    async fn send(
        &self,
        endpoint: &Arc<Endpoint>,
        spoken: Spoken,
        request: Request<Outgoing>,
        upgrades: bool,
        repeatable: bool,
    ) -> Result<Answer, Failed> {
        let worker = &self.worker;
        let tls = spoken.tls.then(|| &worker.tls[usize::from(spoken.http2)]);
        let address = endpoint.identity.address;
        if upgrades {
            let response = worker.upstreams.upgrade(address, tls, request).await?;
            return Ok(Answer { response, lent: None });
        }
        worker.upstreams.send(address, spoken, tls, request, repeatable).await
    }

    /// Takes away what is between the client and this, and says for whom it is asked.
    fn prepare(&self, parts: &mut http::request::Parts, upgrade: Option<&HeaderValue>) {
        strip(&mut parts.headers);
        let headers = &mut parts.headers;
        let trailers = headers.contains_key(header::TE)
            && headers.get(header::TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
        if !trailers {
            headers.remove(header::TE);
        }
        if let Some(upgrade) = upgrade {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, upgrade.clone());
        }
        let mut chain = Vec::new();
        for known in headers.get_all(FORWARDED_FOR) {
            chain.extend_from_slice(known.as_bytes());
            chain.extend_from_slice(b", ");
        }
        let chain = if chain.is_empty() {
            self.peer_text.clone()
        } else {
            chain.extend_from_slice(self.peer_text.as_bytes());
            HeaderValue::from_bytes(&chain).unwrap_or_else(|_| self.peer_text.clone())
        };
        headers.insert(FORWARDED_FOR, chain);
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(if self.tls { "https" } else { "http" }));
        headers.insert(FORWARDED_PORT, HeaderValue::from(self.port));
        // What rules have looked at is what the target sees (RFC 9112, 3.2.2).
        if let Some(authority) = parts.uri.authority() {
            let bare = authority.as_str().rsplit('@').next().unwrap_or_default();
            if let Ok(host) = HeaderValue::from_str(bare) {
                headers.insert(header::HOST, host);
            }
        }
    }

    fn pass_on(
        &self,
        answer: Answer,
        group: &Group,
        endpoint: &Arc<Endpoint>,
        busy: Busy,
        idle: Duration,
        entry: Option<Entry>,
    ) -> Response<Answered> {
        let (mut parts, body) = answer.response.into_parts();
        strip(&mut parts.headers);
        parts.version = Version::HTTP_11;
        if group.is_sticky() {
            stick(&mut parts.headers, group, endpoint);
        }
        let idle = Idle::new(idle);
        let progress = Arc::clone(&self.progress);
        progress.store(now(), Ordering::Relaxed);
        let mut of = Box::new(OfTarget { body, lent: answer.lent, entry, idle, progress, _busy: busy });
        if of.body.is_end_stream() {
            of.end();
        }
        Response::from_parts(parts, Answered::Target(of))
    }
}

/// The answer of a future, unless nothing came of the client's body, nor the answer, for so long.
async fn within<T>(idle: Duration, came: Option<&AtomicU64>, future: impl Future<Output = T>) -> Option<T> {
    let Some(came) = came else { return tokio::time::timeout(idle, future).await.ok() };
    tokio::select! {
        answer = future => Some(answer),
        () = silence(came, idle) => None,
    }
}

/// From now on it is no HTTP any more: bytes go to and fro until one side ends.
fn switch(
    response: Response<Incoming>,
    client: Option<hyper::upgrade::OnUpgrade>,
    idle: Duration,
    held: (Busy, Rc<Counted>, Option<Entry>),
) -> Response<Answered> {
    let Some(client) = client else {
        return own(StatusCode::BAD_GATEWAY, "the target changes the protocol, and nobody asked for it");
    };
    let (parts, body) = response.into_parts();
    let target = hyper::upgrade::on(Response::from_parts(parts.clone(), body));
    tokio::task::spawn_local(async move {
        let _held = held;
        if let (Ok(client), Ok(target)) = (client.await, target.await) {
            super::tcp::pass(&mut TokioIo::new(client), &mut TokioIo::new(target), idle).await;
        }
    });
    Response::from_parts(parts, Answered::Own(Full::default()))
}
