//! The network between processes: each call is a function call, with delays, losses and crashes in between.

use std::collections::VecDeque;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use prost::Message;
use steady_core::v1::session_request::Message as FromAgent;
use steady_core::v1::{CommitRequest, Fence, SessionRequest};
use steady_runtime::{Client, Wire};
use tokio::sync::oneshot;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};

use super::World;
use super::life::{Life, Moment};

/// Length of a gRPC message's prefix.
const PREFIX: usize = 5;

/// Who asked for a write, as the judge sees it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origin {
    /// Name of the process.
    pub(crate) name: String,
    /// Last part of the call's path.
    pub(crate) call: String,
    /// The commit's fence.
    pub(crate) fence: Option<Fence>,
}

tokio::task_local! {
    /// Of the call that is being answered.
    pub(crate) static ORIGIN: Origin;
}

/// What becomes of a message and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Fate {
    /// Both arrive.
    Arrives,
    /// The message is lost.
    Lost,
    /// The answer is lost.
    Unanswered,
    /// The message arrives long after its sender gave it up.
    Late(Duration),
}

/// What becomes of a message of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum FrameFate {
    Arrives,
    Delayed(Duration),
    Twice,
    Dropped,
    /// The stream ends here.
    Breaks,
}

/// A line from a process to an API server.
#[derive(Clone)]
struct Line {
    world: Arc<World>,
    life: Arc<Life>,
    api: usize,
}

/// A client of a process, to every API server.
pub(crate) fn client(world: &Arc<World>, life: &Arc<Life>) -> Client {
    let count = world.settings.apis;
    let wires = (0..count).map(|i| {
        let api = (life.process % count + i) % count;
        Wire::new(Line { world: Arc::clone(world), life: Arc::clone(life), api })
    });
    Client::over(wires.collect())
}

impl Service<Request<Body>> for Line {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().carry(request))
    }
}

fn unreachable() -> Status {
    Status::unavailable("simulated: the connection is broken")
}

impl Line {
    async fn carry(self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let call = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let (world, life) = (&self.world, &self.life);
        let changes = matches!(call.as_str(), "Commit" | "Acquire" | "Release");
        let moment = if changes { world.write(life) } else { None };
        if life.is_dead() || moment == Some(Moment::Before) {
            world.crash(life, "before a write");
            return pending().await;
        }
        let streams = matches!(call.as_str(), "Watch" | "KeepAlive" | "Session");
        if streams {
            world.note("opens", &format!("{} {call} to api-{}", life.name, self.api));
        }
        let fate = if streams { Fate::Arrives } else { world.fate(life, &call) };
        let (request, origin) = inspect(request, &life.name, call.clone(), &self).await;
        if fate == Fate::Arrives && moment.is_none() {
            let (answer, api) = self.deliver(request, origin).await?;
            let direction = if call == "Watch" { Direction::Watch } else { Direction::Down };
            return Ok(if streams { answer.map(|body| self.wrap(body, direction, Some(&api))) } else { answer });
        }
        let (tell, told) = oneshot::channel();
        let sent = self.clone();
        // What was sent arrives, also when its sender is gone.
        tokio::spawn(async move {
            match fate {
                Fate::Lost => return,
                Fate::Late(by) => tokio::time::sleep(by).await,
                Fate::Arrives | Fate::Unanswered => {}
            }
            let answer = sent.deliver(request, origin).await.map(|(answer, _)| answer);
            if moment == Some(Moment::After) {
                sent.world.crash(&sent.life, "after a write, before its answer");
                return;
            }
            if fate == Fate::Arrives {
                let _ = tell.send(answer);
                tokio::task::yield_now().await;
                if moment.is_some() {
                    sent.world.crash(&sent.life, "after a write and its answer");
                }
            }
        });
        if let Ok(answer) = told.await {
            return answer;
        }
        if life.is_dead() {
            return pending().await;
        }
        // Half of those who get no answer learn that the connection broke; the others wait in vain.
        if world.flip() { Err(unreachable()) } else { pending().await }
    }

    async fn deliver(&self, request: Request<Body>, origin: Origin) -> Result<(Response<Body>, Arc<Life>), Status> {
        self.life.awake().await;
        tokio::time::sleep(self.world.latency()).await;
        if self.life.is_cut() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            return Err(unreachable());
        }
        let Some(api) = self.world.api(self.api) else { return Err(unreachable()) };
        api.life.awake().await;
        let mut routes = api.routes.clone();
        let answering = ORIGIN.scope(origin, routes.call(request));
        let answer = tokio::select! {
            biased;
            () = api.life.gone() => return Err(unreachable()),
            answer = answering => answer,
        };
        tokio::time::sleep(self.world.latency()).await;
        self.life.awake().await;
        let answer = answer.unwrap_or_else(|never| match never {});
        Ok((answer, Arc::clone(&api.life)))
    }

    fn wrap(&self, body: Body, direction: Direction, api: Option<&Arc<Life>>) -> Body {
        let (ours, theirs) = (self.life.gone(), api.map(|life| life.gone()));
        let gone = Box::pin(async move {
            let Some(theirs) = theirs else { return };
            tokio::select! {
                biased;
                () = ours => {}
                () = theirs => {}
            }
        });
        let line = self.clone();
        Body::new(Carried { inner: body, line, direction, gone, hold: None, ready: VecDeque::new(), broken: false })
    }
}

/// Reads what the judge wants to know of a request; wraps the stream of one that has a stream.
async fn inspect(request: Request<Body>, name: &str, call: String, line: &Line) -> (Request<Body>, Origin) {
    let mut origin = Origin { name: name.to_owned(), call, fence: None };
    match origin.call.as_str() {
        "Commit" => {
            let (parts, body) = request.into_parts();
            let bytes = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            let commit = bytes.get(PREFIX..).and_then(|bytes| CommitRequest::decode(bytes).ok());
            origin.fence = commit.and_then(|commit| commit.fence);
            (Request::from_parts(parts, Body::new(Full::new(bytes))), origin)
        }
        "KeepAlive" | "Session" => {
            let api = line.world.api(line.api);
            (request.map(|body| line.wrap(body, Direction::Up, api.as_ref().map(|api| &api.life))), origin)
        }
        _ => (request, origin),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    /// From the process to the API server.
    Up,
    /// To the process.
    Down,
    /// To the process that watches.
    Watch,
}

/// A stream of messages on its way.
struct Carried {
    inner: Body,
    line: Line,
    direction: Direction,
    gone: BoxFuture<'static, ()>,
    hold: Option<BoxFuture<'static, ()>>,
    ready: VecDeque<Frame<Bytes>>,
    broken: bool,
}

impl Carried {
    /// Whether a message is one that counts as a write of an agent.
    fn is_write(&self, data: &Bytes) -> bool {
        self.direction == Direction::Up
            && data.get(PREFIX..).and_then(|bytes| SessionRequest::decode(bytes).ok()).is_some_and(|request| {
                matches!(
                    request.message,
                    Some(FromAgent::Report(_) | FromAgent::Register(_) | FromAgent::VerifyAbsent(_))
                )
            })
    }

    fn take(&mut self, frame: Frame<Bytes>) {
        let (world, life) = (Arc::clone(&self.line.world), Arc::clone(&self.line.life));
        let Some(data) = frame.data_ref() else {
            self.ready.push_back(frame);
            return;
        };
        if life.name.starts_with("agent") && self.is_write(data) {
            match world.write(&life) {
                Some(Moment::Before) => {
                    world.crash(&life, "before a message");
                    self.broken = true;
                    return;
                }
                Some(_) => {
                    let crashing = Arc::clone(&world);
                    let life = Arc::clone(&life);
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        crashing.crash(&life, "after a message");
                    });
                }
                None => {}
            }
        }
        let copy = data.clone();
        match world.frame_fate(&life, self.direction == Direction::Watch) {
            FrameFate::Arrives => self.ready.push_back(frame),
            FrameFate::Delayed(by) => {
                self.hold = Some(Box::pin(tokio::time::sleep(by)));
                self.ready.push_back(frame);
            }
            FrameFate::Twice => self.ready.extend([frame, Frame::data(copy)]),
            FrameFate::Dropped => {}
            FrameFate::Breaks => self.broken = true,
        }
        if life.is_paused() {
            let before = self.hold.take();
            self.hold = Some(Box::pin(async move {
                if let Some(before) = before {
                    before.await;
                }
                life.awake().await;
            }));
        }
    }
}

impl http_body::Body for Carried {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if self.broken || self.gone.as_mut().poll(context).is_ready() {
                self.broken = true;
                return Poll::Ready(Some(Err(unreachable())));
            }
            if let Some(hold) = &mut self.hold {
                ready!(hold.as_mut().poll(context));
                self.hold = None;
                if self.line.life.is_cut() {
                    self.broken = true;
                    continue;
                }
            }
            if let Some(frame) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(frame)));
            }
            match ready!(Pin::new(&mut self.inner).poll_frame(context)) {
                Some(Ok(frame)) => self.take(frame),
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None => return Poll::Ready(None),
            }
        }
    }
}
