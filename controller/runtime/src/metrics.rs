//! Figures of a process, as `OpenMetrics` over HTTP.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

/// Longest that a head may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Until a connection is accepted after one could not be: too many open files, most likely, and what is open has to end first.
const AGAIN: Duration = Duration::from_millis(100);

/// Answers `GET /metrics` with what is to be told then, until the future is dropped; nobody, without a listener. An empty text says that
/// it could not be worked out.
pub async fn serve<F, T>(listener: Option<&TcpListener>, tell: F)
where
    F: Fn() -> T + Clone + Send + 'static,
    T: Future<Output = String> + Send,
{
    let Some(listener) = listener else { return std::future::pending().await };
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        let tell = tell.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, tell.clone()));
            let mut connection = http1::Builder::new();
            connection.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            let _ = connection.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer<F, T>(request: Request<Incoming>, tell: F) -> Result<Response<Full<Bytes>>, Infallible>
where
    F: Fn() -> T,
    T: Future<Output = String>,
{
    let is_known = request.method() == Method::GET && request.uri().path() == "/metrics";
    let text = if is_known { tell().await } else { String::new() };
    let (status, kind, text) = match (is_known, text.is_empty()) {
        (true, false) => (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text),
        (true, true) => (StatusCode::INTERNAL_SERVER_ERROR, "text/plain", "the figures cannot be told\n".to_owned()),
        (false, _) => (StatusCode::NOT_FOUND, "text/plain", "there is nothing here; GET /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

/// All that is registered, as it is told.
pub fn written(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a text does not fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, registry);
    text
}
