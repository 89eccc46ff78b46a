//! Bodies on their way through: of requests to targets, and of answers to clients.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::access::Entry;
use super::upstream::Lent;
use crate::endpoint::{Busy, now};

/// What a target is sent.
pub(crate) enum Outgoing {
    Empty,
    /// And when something of it came last, as [`now`] has it.
    Client(Incoming, Arc<AtomicU64>),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Outgoing::Empty => Poll::Ready(None),
            Outgoing::Client(body, came) => {
                let polled = Pin::new(body).poll_frame(cx);
                if polled.is_ready() {
                    came.store(now(), Ordering::Relaxed);
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Outgoing::Empty => true,
            Outgoing::Client(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Outgoing::Empty => SizeHint::with_exact(0),
            Outgoing::Client(body, _) => body.size_hint(),
        }
    }
}

/// What a client is sent.
pub(crate) enum Answered {
    Own(Full<Bytes>),
    Target(Box<OfTarget>),
}

/// The body of a target's answer, and what is over with it.
pub(crate) struct OfTarget {
    pub(crate) body: Incoming,
    pub(crate) lent: Option<Lent>,
    pub(crate) entry: Option<Entry>,
    pub(crate) idle: Idle,
    /// When the client took something last.
    pub(crate) progress: Arc<AtomicU64>,
    pub(crate) _busy: Busy,
}

/// The longest that nothing may come. One clock for a whole body, set again now and then: not for every piece.
pub(crate) struct Idle {
    limit: Duration,
    last: Instant,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Idle {
    pub(crate) fn new(limit: Duration) -> Self {
        Idle { limit, last: Instant::now(), sleep: None }
    }

    /// Something came.
    fn touch(&mut self) {
        if self.sleep.is_some() {
            self.last = Instant::now();
        }
    }

    /// Nothing came for too long.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let sleep = self.sleep.get_or_insert_with(|| {
                self.last = Instant::now();
                Box::pin(tokio::time::sleep(self.limit))
            });
            match sleep.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) if self.last.elapsed() >= self.limit => return Poll::Ready(()),
                Poll::Ready(()) => {
                    let until = tokio::time::Instant::from_std(self.last) + self.limit;
                    sleep.as_mut().reset(until);
                }
            }
        }
    }
}

/// A body that did not come to its end.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

impl Body for Answered {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let of = match self.get_mut() {
            Answered::Own(body) => return Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Answered::Target(of) => of,
        };
        match Pin::new(&mut of.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                of.idle.touch();
                of.progress.store(now(), Ordering::Relaxed);
                if let (Some(entry), Some(data)) = (&mut of.entry, frame.data_ref()) {
                    entry.bytes += data.len() as u64;
                }
                if of.body.is_end_stream() {
                    of.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                of.end();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                if let Some(entry) = &mut of.entry {
                    "the target broke off".clone_into(&mut entry.error);
                }
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Pending if of.idle.poll(cx).is_ready() => {
                if let Some(entry) = &mut of.entry {
                    "the target was silent for too long".clone_into(&mut entry.error);
                }
                Poll::Ready(Some(Err("the target was silent for too long".into())))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Answered::Own(body) => body.is_end_stream(),
            Answered::Target(of) => of.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answered::Own(body) => body.size_hint(),
            Answered::Target(of) => of.body.size_hint(),
        }
    }
}

impl OfTarget {
    /// All of it was read: the connection may carry another.
    pub(crate) fn end(&mut self) {
        if let Some(mut lent) = self.lent.take() {
            lent.give_back();
        }
        // Written down when dropped.
        self.entry = None;
    }
}
