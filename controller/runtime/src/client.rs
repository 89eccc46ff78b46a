//! Connections to the API servers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use steady_core::Revision;
use steady_core::v1::RevisionRequest;
use steady_core::v1::admin_client::AdminClient;
use steady_core::v1::agent_client::AgentClient;
use steady_core::v1::leases_client::LeasesClient;
use steady_core::v1::metrics_client::MetricsClient;
use steady_core::v1::objects_client::ObjectsClient;
use steady_core::v1::tasks_client::TasksClient;
use steady_core::v1::traffic_client::TrafficClient;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::transport::Endpoint;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

/// Largest message that is sent or read, bytes.
const MAX_MESSAGE: usize = 256 * 1024 * 1024;

/// How long an answer may take: a server that says nothing must not keep anybody for ever.
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);

/// Not an address of an API server.
#[derive(Debug, thiserror::Error)]
#[error("`{address}` is no address of an API server: {reason}; expected http://HOST:PORT")]
pub struct ClientError {
    address: String,
    reason: String,
}

/// What carries calls to one API server: HTTP/2 over TCP, or, in the simulator, a function call.
pub type Wire = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, Status>;

/// API servers, one of them in use. Clones share which.
#[derive(Clone)]
pub struct Client {
    wires: Arc<[Wire]>,
    current: Arc<AtomicUsize>,
}

impl Client {
    /// Addresses are `http://HOST:PORT` or `HOST:PORT`. Connects when first used, and again whenever it must.
    pub fn new(addresses: &[String]) -> Result<Self, ClientError> {
        let bad = |address: &str, reason: &str| ClientError { address: address.into(), reason: reason.into() };
        if addresses.is_empty() {
            return Err(bad("", "there is none"));
        }
        let wires = addresses
            .iter()
            .map(|address| {
                let url = if address.contains("://") { address.clone() } else { format!("http://{address}") };
                let endpoint = Endpoint::from_shared(url).map_err(|e| bad(address, &e.to_string()))?;
                let channel = endpoint
                    .connect_timeout(Duration::from_secs(3))
                    .http2_keep_alive_interval(Duration::from_secs(5))
                    .keep_alive_timeout(Duration::from_secs(5))
                    .keep_alive_while_idle(true)
                    .tcp_nodelay(true)
                    .initial_connection_window_size(8 * 1024 * 1024)
                    .initial_stream_window_size(4 * 1024 * 1024)
                    .connect_lazy();
                Ok(Wire::new(channel.map_err(|error| Status::from_error(Box::new(error)))))
            })
            .collect::<Result<Vec<_>, ClientError>>()?;
        Ok(Self::over(wires))
    }

    /// Calls over these wires, of which there is at least one. The first one used is left to chance: not every client
    /// should be at the same server.
    pub fn over(wires: Vec<Wire>) -> Self {
        let first = fastrand::usize(..wires.len().max(1));
        Client { wires: wires.into(), current: Arc::new(AtomicUsize::new(first)) }
    }

    fn wire(&self) -> Wire {
        let current = self.current.load(Ordering::Relaxed) % self.wires.len();
        self.wires[current].clone()
    }

    /// Which address is in use: what [`Client::rotate`] is told when that one does not answer.
    pub fn place(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// Uses the next address from now on, because the one at this place does not answer; unless another one is in use
    /// already: calls fail together.
    pub fn rotate(&self, place: usize) {
        let next = place.wrapping_add(1);
        let _ = self.current.compare_exchange(place, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Calls for objects.
    pub fn objects(&self) -> ObjectsClient<Wire> {
        ObjectsClient::new(self.wire()).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
    }

    /// Calls for leases.
    pub fn leases(&self) -> LeasesClient<Wire> {
        LeasesClient::new(self.wire())
    }

    /// Calls for what is measured.
    pub fn metrics(&self) -> MetricsClient<Wire> {
        MetricsClient::new(self.wire()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Calls of those who look after the control plane.
    pub fn admin(&self) -> AdminClient<Wire> {
        AdminClient::new(self.wire()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Calls of load balancers.
    pub fn traffic(&self) -> TrafficClient<Wire> {
        TrafficClient::new(self.wire())
    }

    /// Calls for tasks.
    pub fn tasks(&self) -> TasksClient<Wire> {
        TasksClient::new(self.wire())
    }

    /// Calls of agents.
    pub fn agent(&self) -> AgentClient<Wire> {
        AgentClient::new(self.wire()).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
    }

    /// The store's revision, no older than any write acknowledged before the call.
    pub async fn revision(&self) -> Result<Revision, Status> {
        let mut leases = self.leases();
        let answer = within(DEADLINE, leases.revision(RevisionRequest {})).await?;
        Ok(Revision(answer.into_inner().revision))
    }
}

/// The answer to a call, or `DEADLINE_EXCEEDED`: of what it was to do, anything may have been done.
pub(crate) async fn within<T>(deadline: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let answer = tokio::time::timeout(deadline, call).await;
    answer.unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("no answer for {} s", deadline.as_secs()))))
}
