//! Figures of an API server: calls by method and outcome, how long they take, and what it has.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::future::BoxFuture;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry as Figured;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::registry::Registry;
use crate::service::{Relay, Watches};

/// Upper bounds of how long calls take, seconds.
const BUCKETS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCall {
    /// `Objects/Apply`.
    method: String,
    /// A status of gRPC.
    code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfMethod {
    method: String,
}

type Seconds = Family<OfMethod, Histogram, fn() -> Histogram>;

/// Counts calls.
#[derive(Debug, Clone)]
pub(crate) struct Calls {
    count: Family<OfCall, Counter>,
    seconds: Seconds,
}

impl Default for Calls {
    fn default() -> Self {
        let seconds = Seconds::new_with_constructor(|| Histogram::new(BUCKETS));
        Calls { count: Family::default(), seconds }
    }
}

impl Calls {
    fn take(&self, path: &str, answer: Option<&Response<Body>>, began: Instant) {
        // Of a stream it is how it began.
        let status = answer.map(|answer| Status::from_header_map(answer.headers()).map_or(Code::Ok, |s| s.code()));
        let code = status.unwrap_or(Code::Unknown);
        // Names that are none are whatever a client likes.
        let known = path.strip_prefix("/steady.v1.").filter(|_| code != Code::Unimplemented);
        let method = known.unwrap_or("other").to_owned();
        self.seconds.get_or_create(&OfMethod { method: method.clone() }).observe(began.elapsed().as_secs_f64());
        self.count.get_or_create(&OfCall { method, code: format!("{code:?}") }).inc();
    }
}

impl<S> Layer<S> for Calls {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Counted { calls: self.clone(), inner }
    }
}

/// Services whose calls are counted.
#[derive(Debug, Clone)]
pub(crate) struct Counted<S> {
    calls: Calls,
    inner: S,
}

impl<S, B> Service<Request<B>> for Counted<S>
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
        let (calls, path, began) = (self.calls.clone(), request.uri().path().to_owned(), Instant::now());
        let answering = self.inner.call(request);
        Box::pin(async move {
            let answer = answering.await;
            calls.take(&path, answer.as_ref().ok(), began);
            answer
        })
    }
}

/// What a server tells of itself.
#[derive(Clone)]
pub struct Figures {
    pub(crate) calls: Calls,
    pub(crate) registry: Registry,
    pub(crate) relay: Relay,
    pub(crate) watches: Watches,
}

impl Figures {
    /// All of it as of now, in `OpenMetrics`' words.
    pub fn text(&self) -> String {
        let mut figured = Figured::with_prefix("steady_api");
        let cache = self.registry.cache();
        let mut gauge = |name: &str, help: &str, value: i64| {
            let gauge = Gauge::<i64>::default();
            gauge.set(value);
            figured.register(name, help, gauge);
        };
        gauge("objects", "Objects in the store", i64::try_from(cache.view().len()).unwrap_or(i64::MAX));
        gauge("revision", "Revision of the store that is known here", cache.revision().0);
        gauge("watchers", "Watches that are served here", i64::try_from(self.watches.count()).unwrap_or(i64::MAX));
        gauge(
            "sessions",
            "Agents whose sessions are open here",
            i64::try_from(self.relay.sessions()).unwrap_or(i64::MAX),
        );
        figured.register("calls", "Calls by method and status", self.calls.count.clone());
        figured.register(
            "call_seconds",
            "Seconds until an answer, of a stream until its first",
            self.calls.seconds.clone(),
        );
        let mut text = String::new();
        // Writing to a text does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &figured);
        text
    }
}

/// Told by whoever has the server.
pub(crate) fn of(registry: &Registry, relay: &Relay, watches: &Watches) -> Arc<Figures> {
    let (registry, relay, watches) = (registry.clone(), relay.clone(), watches.clone());
    Arc::new(Figures { calls: Calls::default(), registry, relay, watches })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_method_and_status_and_names_that_are_none_are_one() {
        let calls = Calls::default();
        let refused = Status::invalid_argument("no").into_http::<Body>();
        let unknown = Status::unimplemented("no").into_http::<Body>();
        calls.take("/steady.v1.Objects/Apply", Some(&refused), Instant::now());
        calls.take("/steady.v1.Objects/Apply", Some(&Response::new(Body::default())), Instant::now());
        calls.take("/steady.v1.Objects/Nonsense", Some(&unknown), Instant::now());
        calls.take("/other", Some(&unknown), Instant::now());
        let count = |method: &str, code: &str| {
            calls.count.get_or_create(&OfCall { method: method.into(), code: code.into() }).get()
        };
        assert_eq!((count("Objects/Apply", "InvalidArgument"), count("Objects/Apply", "Ok")), (1, 1));
        assert_eq!(count("other", "Unimplemented"), 2);
    }
}
