//! Lanes: when more is asked than can be answered, signs of life pass, then what controllers decide, then people.
//!
//! Each lane has so many calls under way and so many that wait for their turn; what comes beyond that is refused at once
//! with `RESOURCE_EXHAUSTED`, which costs next to nothing. Leases and sessions have no limit: a heartbeat that waits behind
//! a flood of questions makes an instance look dead.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tower::{Layer, Service};

/// One lane.
#[derive(Debug)]
struct Lane {
    name: &'static str,
    under_way: Semaphore,
    /// Calls that are under way or wait.
    inside: AtomicUsize,
    most: usize,
}

impl Lane {
    fn new(name: &'static str, under_way: usize, waiting: usize) -> Self {
        let inside = AtomicUsize::new(0);
        Lane { name, under_way: Semaphore::new(under_way), inside, most: under_way + waiting }
    }

    fn enter(self: &Arc<Self>) -> Option<Inside> {
        let before = self.inside.fetch_add(1, Ordering::Relaxed);
        let inside = Inside(Arc::clone(self));
        (before < self.most).then_some(inside)
    }

    fn full(&self) -> Status {
        let message = format!(
            "the API server has more calls of {} than it can answer; try again in a while, or use another one",
            self.name
        );
        let details = ErrorDetails::with_error_info("OVERLOADED", "steady", HashMap::new());
        Status::with_error_details(Code::ResourceExhausted, message, details)
    }
}

/// A call in a lane.
struct Inside(Arc<Lane>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Puts every call into its lane.
#[derive(Debug, Clone)]
pub(crate) struct Lanes {
    controllers: Arc<Lane>,
    people: Arc<Lane>,
}

impl Default for Lanes {
    fn default() -> Self {
        Lanes::of((256, 4096), (64, 1024))
    }
}

impl Lanes {
    /// Calls under way, and calls that wait, of controllers and of people.
    fn of(controllers: (usize, usize), people: (usize, usize)) -> Self {
        Lanes {
            controllers: Arc::new(Lane::new("controllers", controllers.0, controllers.1)),
            people: Arc::new(Lane::new("people", people.0, people.1)),
        }
    }

    /// The lane of a call; `None`: it passes.
    fn of_path(&self, path: &str) -> Option<&Arc<Lane>> {
        match path {
            "/steady.v1.Objects/Commit" => Some(&self.controllers),
            // Streams are short calls that last long: what they cost is limited elsewhere.
            "/steady.v1.Objects/Watch"
            | "/steady.v1.Agent/Session"
            | "/steady.v1.Tasks/Logs"
            | "/steady.v1.Tasks/Exec" => None,
            path if path.starts_with("/steady.v1.Objects/") || path.starts_with("/steady.v1.Tasks/") => {
                Some(&self.people)
            }
            _ => None,
        }
    }
}

impl<S> Layer<S> for Lanes {
    type Service = InLanes<S>;

    fn layer(&self, inner: S) -> Self::Service {
        InLanes { lanes: self.clone(), inner }
    }
}

/// Services behind lanes.
#[derive(Debug, Clone)]
pub(crate) struct InLanes<S> {
    lanes: Lanes,
    inner: S,
}

impl<S, B> Service<Request<B>> for InLanes<S>
where
    S: Service<Request<B>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The one that is ready goes, its clone stays.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let Some(lane) = self.lanes.of_path(request.uri().path()).cloned() else {
            return Box::pin(inner.call(request));
        };
        let Some(inside) = lane.enter() else {
            return Box::pin(async move { Ok(lane.full().into_http()) });
        };
        Box::pin(async move {
            let turn = lane.under_way.acquire().await;
            let answer = inner.call(request).await;
            drop((turn, inside));
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower::{ServiceBuilder, ServiceExt, service_fn};

    async fn call<S>(service: &S, path: &str) -> Response<Body>
    where
        S: Service<Request<()>, Response = Response<Body>, Error = std::convert::Infallible> + Clone,
    {
        let request = Request::builder().uri(path).body(()).expect("a request");
        service.clone().oneshot(request).await.expect("infallible")
    }

    fn code(answer: &Response<Body>) -> tonic::Code {
        Status::from_header_map(answer.headers()).map_or(tonic::Code::Ok, |status| status.code())
    }

    #[tokio::test]
    async fn a_flood_of_questions_is_refused_at_once_and_signs_of_life_pass() {
        let gate = Arc::new(Semaphore::new(0));
        let held = Arc::clone(&gate);
        let slow = service_fn(move |request: Request<()>| {
            let held = Arc::clone(&held);
            async move {
                if request.uri().path().ends_with("/List") {
                    drop(held.acquire().await);
                }
                Ok::<_, std::convert::Infallible>(Response::new(Body::default()))
            }
        });
        let service = ServiceBuilder::new().layer(Lanes::of((1, 1), (2, 3))).service(slow);
        let flood: Vec<_> = (0..20)
            .map(|_| {
                let service = service.clone();
                tokio::spawn(async move { code(&call(&service, "/steady.v1.Objects/List").await) })
            })
            .collect();
        tokio::task::yield_now().await;
        for path in ["/steady.v1.Leases/KeepAlive", "/steady.v1.Agent/Session", "/steady.v1.Objects/Commit"] {
            assert_eq!(code(&call(&service, path).await), tonic::Code::Ok, "{path}");
        }
        gate.add_permits(20);
        let mut refused = 0;
        for answer in flood {
            refused += u32::from(answer.await.expect("answered") == tonic::Code::ResourceExhausted);
        }
        assert_eq!(refused, 15, "two at once and three that wait are answered");
        assert_eq!(code(&call(&service, "/steady.v1.Objects/List").await), tonic::Code::Ok, "and it is over");
    }
}
