//! Calls over HTTP to what users run: lifecycle hooks, a Prometheus.

use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// How long an answer may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer that is read, bytes.
const MAX_ANSWER: usize = 64 * 1024;

static CLIENT: LazyLock<Client<HttpConnector, Full<Bytes>>> =
    LazyLock::new(|| Client::builder(TokioExecutor::new()).build_http());

/// What is answered, with whatever status; or why nothing is, in words.
pub(crate) async fn post(url: &str, content: &str, body: Vec<u8>) -> Result<(http::StatusCode, Bytes), String> {
    let request = Request::post(url).header(header::CONTENT_TYPE, content);
    let request = request.body(Full::new(Bytes::from(body))).map_err(|e| e.to_string())?;
    let answering = async {
        let response = CLIENT
            .request(request)
            .await
            .map_err(|e| std::error::Error::source(&e).map_or(e.to_string(), ToString::to_string))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map(http_body_util::Collected::to_bytes).map_err(|e| e.to_string())?;
        Ok((status, body))
    };
    let silent = |_| format!("gives no answer for {} s", PATIENCE.as_secs());
    tokio::time::timeout(PATIENCE, answering).await.map_err(silent)?
}
