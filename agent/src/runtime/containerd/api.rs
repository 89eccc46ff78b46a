//! containerd's services, in Steady's namespace, each call with a deadline.

use std::path::Path;
use std::time::Duration;

use containerd_client::connect;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::runtime::RuntimeError;

/// Where all of it is: other clients of the same containerd have namespaces of their own.
pub(super) const NAMESPACE: &str = "steady";

/// Deadlines.
pub(super) const CONNECT: Duration = Duration::from_secs(2);
pub(super) const LOOK: Duration = Duration::from_secs(30);
pub(super) const START: Duration = Duration::from_secs(3 * 60);
/// Of one step of an image: a layer that is unpacked.
pub(super) const STEP: Duration = Duration::from_secs(30 * 60);

/// Most bytes of an answer: a list of containers has all that they are made of.
const LARGEST: usize = 64 << 20;

/// Marks a request.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    lease: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Scope {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert("containerd-namespace", MetadataValue::from_static(NAMESPACE));
        if let Some(lease) = &self.lease {
            metadata.insert("containerd-lease", lease.clone());
        }
        Ok(request)
    }
}

type Service = InterceptedService<Channel, Scope>;

/// A connection. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Api {
    channel: Channel,
    scope: Scope,
}

macro_rules! services {
    ($($name:ident: $client:ident),+ $(,)?) => {
        $(pub(super) fn $name(&self) -> $client<Service> {
            $client::with_interceptor(self.channel.clone(), self.scope.clone()).max_decoding_message_size(LARGEST)
        })+
    };
}

impl Api {
    /// Connects; the connection is made again by itself when it is lost.
    pub(super) async fn connect(socket: &Path) -> Result<Self, RuntimeError> {
        let at = || format!("containerd at {}", socket.display());
        let connected = tokio::time::timeout(CONNECT, connect(socket)).await;
        let channel = connected
            .map_err(|_| RuntimeError::Timeout(format!("{} did not answer within {CONNECT:?}", at())))?
            .map_err(|e| RuntimeError::Other(format!("{}: {}", at(), causes(&e))))?;
        Ok(Api { channel, scope: Scope { lease: None } })
    }

    /// What is made by it is kept until the lease ends, also when nothing refers to it yet.
    pub(super) fn leased(&self, lease: &str) -> Self {
        Api { channel: self.channel.clone(), scope: Scope { lease: lease.parse().ok() } }
    }

    services! {
        containers: ContainersClient,
        content: ContentClient,
        diff: DiffClient,
        events: EventsClient,
        images: ImagesClient,
        introspection: IntrospectionClient,
        leases: LeasesClient,
        namespaces: NamespacesClient,
        snapshots: SnapshotsClient,
        tasks: TasksClient,
    }
}

/// An error and what it comes from.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// What a call failed of.
#[derive(Debug)]
pub(super) enum Failed {
    NotFound(String),
    Exists,
    Refused(String),
    /// What it would say is not known.
    Silent(RuntimeError),
}

impl Failed {
    /// The engine's own words, for what it refused.
    pub(super) fn or(self, refused: impl FnOnce(String) -> RuntimeError) -> RuntimeError {
        match self {
            Failed::NotFound(text) | Failed::Refused(text) => refused(text),
            Failed::Exists => refused("it is there already".to_owned()),
            Failed::Silent(error) => error,
        }
    }

    pub(super) fn text(self) -> String {
        self.or(RuntimeError::Other).to_string()
    }
}

/// One call with its deadline.
pub(super) async fn call<T>(
    what: &str,
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Failed> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(failed(&status)),
        Err(_) => {
            Err(Failed::Silent(RuntimeError::Timeout(format!("containerd did not answer {what} within {limit:?}"))))
        }
    }
}

pub(super) fn failed(status: &Status) -> Failed {
    let text = status.message().split_whitespace().collect::<Vec<_>>().join(" ");
    // What the connection says of itself has no code of its own; what containerd says has no source.
    let is_broken = std::error::Error::source(status).is_some()
        || ["transport error", "h2 protocol error", "error reading", "connection"]
            .iter()
            .any(|said| text.starts_with(said));
    if is_broken {
        return Failed::Silent(RuntimeError::Unreachable(format!("containerd does not answer: {text}")));
    }
    match status.code() {
        Code::NotFound => Failed::NotFound(text),
        Code::AlreadyExists => Failed::Exists,
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded => {
            Failed::Silent(RuntimeError::Unreachable(format!("containerd does not answer: {text}")))
        }
        _ => Failed::Refused(text),
    }
}

/// `None` for what is not there.
pub(super) fn optional<T>(answer: Result<T, Failed>) -> Result<Option<T>, Failed> {
    match answer {
        Err(Failed::NotFound(_)) => Ok(None),
        Err(failed) => Err(failed),
        Ok(found) => Ok(Some(found)),
    }
}

/// For what may be done already.
pub(super) fn done<T>(answer: Result<T, Failed>) -> Result<(), Failed> {
    match answer {
        Err(Failed::NotFound(_) | Failed::Exists) | Ok(_) => Ok(()),
        Err(failed) => Err(failed),
    }
}
