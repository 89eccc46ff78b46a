//! Health checks: each target is looked at as its group says, from here.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use steady_core::traffic::{is_http, matches_code, reason};
use steady_core::v1::TargetGroupSpec;
use steady_core::v1::protocol_version::Value as Version2;
use steady_core::v1::target_state::Value as State;
use steady_core::v1::traffic_protocol::Value as Protocol;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::connect::connect;
use crate::endpoint::{Endpoint, Identity};
use crate::table::Table;
use crate::tls;

/// A new target is looked at so often until it is found healthy, whatever the interval: others wait for it.
const EAGER: Duration = Duration::from_millis(500);

/// Looks at all targets of a table.
pub(crate) struct Health {
    looking: HashMap<Identity, (TargetGroupSpec, AbortHandle)>,
    news: News,
    tls: [TlsConnector; 2],
}

/// Whom a target's new state is told.
#[derive(Clone)]
pub(crate) struct News {
    /// Who tells the control plane.
    pub(crate) changed: UnboundedSender<Arc<Endpoint>>,
    /// Who has the data plane obey it.
    pub(crate) obey: Arc<Notify>,
}

impl News {
    fn tell(&self, endpoint: &Arc<Endpoint>) {
        let _ = self.changed.send(Arc::clone(endpoint));
        self.obey.notify_one();
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        self.looking.values().for_each(|(_, looking)| looking.abort());
    }
}

impl Health {
    /// Targets whose state is new are told.
    pub(crate) fn new(news: News) -> Self {
        let tls = [tls::to_targets(&[b"http/1.1"]), tls::to_targets(&[b"h2"])];
        Health { looking: HashMap::new(), news, tls }
    }

    /// From now on the targets of this table are looked at, and no others.
    pub(crate) fn obey(&mut self, table: &Table) {
        self.looking.retain(|identity, (_, looking)| {
            let stays = table.endpoints.get(identity).is_some_and(|endpoint| !endpoint.is_draining());
            if !stays {
                looking.abort();
            }
            stays
        });
        for (identity, endpoint) in table.endpoints.iter().filter(|(_, endpoint)| !endpoint.is_draining()) {
            let Some(group) = table.groups.get(&identity.group) else { continue };
            if self.looking.get(identity).is_some_and(|(spec, _)| *spec == group.spec) {
                continue;
            }
            let (endpoint, spec, news) = (Arc::clone(endpoint), group.spec.clone(), self.news.clone());
            let tls = self.tls.clone();
            let looking = tokio::spawn(async move { look(&endpoint, &spec, &tls, &news).await }).abort_handle();
            if let Some((_, before)) = self.looking.insert(identity.clone(), (group.spec.clone(), looking)) {
                before.abort();
            }
        }
    }
}

/// Looks at a target for as long as it is there.
async fn look(endpoint: &Arc<Endpoint>, spec: &TargetGroupSpec, tls: &[TlsConnector; 2], told: &News) {
    let seconds = |value: i32| Duration::from_secs(u64::from(value.unsigned_abs()).max(1));
    let (interval, limit) =
        (seconds(spec.health_check_interval_seconds()), seconds(spec.health_check_timeout_seconds()));
    if !spec.health_check_enabled() {
        endpoint.set_state(State::Healthy, "", "health checks are disabled".into());
        endpoint.set_looked_at();
        told.tell(endpoint);
        return;
    }
    let (mut good, mut bad, mut first) = (0, 0, true);
    // A failure of a new target counts when it has had the time between two checks.
    let mut counted = Instant::now();
    loop {
        let found = match tokio::time::timeout(limit, check(endpoint.identity.address, spec, tls)).await {
            Ok(found) => found,
            Err(_) => Err((reason::TIMEOUT, "Request timed out".to_owned())),
        };
        let before = endpoint.state();
        let mut news = false;
        match found {
            Ok(()) => {
                (good, bad) = (good + 1, 0);
                let enough = before != State::Unhealthy || good >= spec.healthy_threshold_count();
                if enough {
                    news = endpoint.set_state(State::Healthy, "", String::new());
                }
            }
            Err((why, description)) => {
                good = 0;
                if before != State::Initial || counted.elapsed() >= interval {
                    bad += 1;
                    counted = Instant::now();
                }
                if bad >= spec.unhealthy_threshold_count() {
                    news = endpoint.set_state(State::Unhealthy, why, description);
                }
            }
        }
        // What others have found is not told as found here.
        let is_found = good > 0 || endpoint.state() == State::Unhealthy;
        if is_found {
            endpoint.set_looked_at();
        }
        if news || (first && is_found && endpoint.state() != State::Initial) {
            first = false;
            tracing::info!(target = %endpoint.identity.address, task = endpoint.identity.task, state = endpoint.state().as_str_name(), why = endpoint.why().1, "a target");
            told.tell(endpoint);
        }
        let eager = endpoint.state() == State::Initial;
        let pause = if eager { EAGER.min(interval) } else { interval };
        tokio::time::sleep(pause).await;
    }
}

type Failure = (&'static str, String);

/// One look.
async fn check(target: SocketAddr, spec: &TargetGroupSpec, tls: &[TlsConnector; 2]) -> Result<(), Failure> {
    let address = match spec.health_check_port.parse() {
        Ok(port) => SocketAddr::new(target.ip(), port),
        // `traffic-port`.
        Err(_) => target,
    };
    let protocol = spec.health_check_protocol();
    let version = spec.protocol_version();
    let http2 = is_http(protocol) && matches!(version, Version2::Http2 | Version2::Grpc);
    let tls = (protocol == Protocol::Https).then(|| &tls[usize::from(http2)]);
    let failed = |error: String| (reason::FAILED, format!("Health checks failed: {error}"));
    let stream = connect(address, tls).await.map_err(|error| failed(error.to_string()))?;
    if !is_http(protocol) {
        return Ok(());
    }
    let grpc = version == Version2::Grpc;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let request = Request::builder().method(if grpc { "POST" } else { "GET" });
    let request = if http2 {
        request.version(Version::HTTP_2).uri(format!("{scheme}://{address}{}", spec.health_check_path))
    } else {
        request
            .uri(&spec.health_check_path)
            .header(header::HOST, address.to_string())
            .header(header::CONNECTION, "close")
    };
    let request = request.header(header::USER_AGENT, "ELB-HealthChecker/2.0");
    let request = if grpc {
        request.header(header::CONTENT_TYPE, "application/grpc").header(header::TE, "trailers")
    } else {
        request
    };
    // Of gRPC an empty message.
    let body = Full::new(Bytes::from_static(if grpc { &[0; 5] } else { &[] }));
    let request = request.body(body).map_err(|error| failed(error.to_string()))?;
    let io = TokioIo::new(stream);
    let broken = |error: hyper::Error| failed(error.to_string());
    let response = if http2 {
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.map_err(broken)?;
        let running = tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(broken);
        held(running.abort_handle(), response)?
    } else {
        let (mut sender, connection) = http1::handshake(io).await.map_err(broken)?;
        let running = tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(broken);
        held(running.abort_handle(), response)?
    };
    let (response, _running) = response;
    let matcher = spec.matcher.clone().unwrap_or_default();
    if grpc {
        let head = response.headers().get("grpc-status").cloned();
        let whole = response.into_body().collect().await.map_err(broken)?;
        let status = head.or_else(|| whole.trailers()?.get("grpc-status").cloned());
        let code = status.and_then(|status| status.to_str().ok()?.parse().ok());
        let code: u16 = code.ok_or_else(|| failed("no grpc-status".into()))?;
        return judge(&matcher.grpc_code, code);
    }
    judge(&matcher.http_code, response.status().as_u16())
}

/// Ends a connection when its answer is not looked at any more.
struct Ends(AbortHandle);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An answer, and its connection for as long as it is looked at.
fn held<T>(running: AbortHandle, response: Result<T, Failure>) -> Result<(T, Ends), Failure> {
    let ends = Ends(running);
    response.map(|response| (response, ends))
}

fn judge(matcher: &str, code: u16) -> Result<(), Failure> {
    if matches_code(matcher, code) == Some(true) {
        return Ok(());
    }
    Err((reason::MISMATCH, format!("Health checks failed with these codes: [{code}]")))
}
