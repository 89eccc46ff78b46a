//! The server: a listener, the store, and everything in between.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use steady_core::v1::admin_server::AdminServer;
use steady_core::v1::agent_server::AgentServer;
use steady_core::v1::leases_server::LeasesServer;
use steady_core::v1::metrics_server::MetricsServer;
use steady_core::v1::objects_server::ObjectsServer;
use steady_core::v1::services_server::ServicesServer;
use steady_core::v1::tasks_server::TasksServer;
use steady_core::v1::traffic_server::TrafficServer;
use steady_core::{Clock, Key, Revision, SystemClock, v1};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;

use crate::cache::{self, Cache, FeedError};
use crate::figures::{self, Figures};
use crate::lanes::Lanes;
use crate::meter::Meter;
use crate::registry::{NewUid, Registry, RegistryError};
use crate::seal::Keys;
use crate::service::{
    AdminService, AgentService, LeasesService, MetricsService, ObjectsService, Relay, ServicesService, TasksService,
    TrafficService, Watches,
};
use crate::storage::Storage;
use crate::upkeep;

/// Largest message that is read, bytes: a commit of a hundred large objects.
const MAX_REQUEST: usize = 32 * 1024 * 1024;
/// Largest message that is sent, bytes.
const MAX_RESPONSE: usize = 256 * 1024 * 1024;
/// Streams that one connection may have open.
const MAX_STREAMS: u32 = 4096;

/// Why a server ended or did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be listened on.
    #[error("cannot listen on {0}: {1}; choose another with --listen")]
    Listen(SocketAddr, std::io::Error),
    /// The store did not answer at the start.
    #[error("{0}")]
    Store(#[from] RegistryError),
    /// The store is not what it was.
    #[error("{0}")]
    Feed(#[from] FeedError),
    /// The listener broke.
    #[error("the gRPC server ended: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// A server that runs.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its rules and its store, for those in the same process.
    pub registry: Registry,
    /// What it tells of itself.
    pub figures: Arc<Figures>,
    stop: oneshot::Sender<()>,
    ending: watch::Sender<bool>,
    serving: JoinHandle<Result<(), ServerError>>,
}

impl Server {
    /// Starts serving the store at an address; returns once requests are answered. Without `keys` it takes no secrets.
    pub async fn start(listen: SocketAddr, store: Arc<dyn Storage>, keys: Option<Keys>) -> Result<Self, ServerError> {
        let failed = |e| ServerError::Listen(listen, e);
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let new_uid: NewUid = Arc::new(|| uuid::Uuid::new_v4().simple().to_string());
        let (registry, feed) = open(store, Arc::new(SystemClock), new_uid).await?;
        let registry = registry.with_keys(keys);
        let (stop, stopped) = oneshot::channel();
        let ending = watch::Sender::new(false);
        let figures = figures::of(&registry, &Relay::default(), &Watches::default());
        let meter = Meter::default();
        let served = serve(listener, Arc::clone(&figures), meter.clone(), feed, stopped, ending.subscribe());
        let metering = meter.run(registry.clone());
        let upkeep = upkeep::run(registry.clone());
        let serving = tokio::spawn(async move {
            tokio::select! {
                ended = served => ended,
                () = upkeep => Ok(()),
                () = metering => Ok(()),
            }
        });
        Ok(Server { address, registry, figures, stop, ending, serving })
    }

    /// Waits until it ends by itself, which is always an error.
    pub async fn ended(&mut self) -> ServerError {
        match (&mut self.serving).await {
            Ok(Err(error)) => error,
            Ok(Ok(())) => RegistryError::Unavailable("the server was stopped".into()).into(),
            Err(panic) => RegistryError::Unavailable(format!("the server failed: {panic}")).into(),
        }
    }

    /// Stops it: requests under way are finished, streams are cut off after a second.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        self.ending.send_replace(true);
        let abort = self.serving.abort_handle();
        if tokio::time::timeout(Duration::from_secs(1), self.serving).await.is_err() {
            abort.abort();
        }
    }
}

/// The rules over a store, and what keeps their cache up to date. Returns once the cache holds the store.
pub async fn open(
    store: Arc<dyn Storage>,
    clock: Arc<dyn Clock>,
    new_uid: NewUid,
) -> Result<(Registry, JoinHandle<FeedError>), ServerError> {
    let cache = Cache::default();
    let registry = Registry::new(Arc::clone(&store), cache.clone(), clock, new_uid);
    let feed = tokio::spawn(cache::run(cache.clone(), store));
    if !cache.reach(Revision(1), Duration::from_secs(30)).await {
        feed.abort();
        return Err(RegistryError::Unavailable("the store did not answer for 30 s; is etcd well?".into()).into());
    }
    if cache.view().get(&Key::restoring()).is_some() {
        feed.abort();
        let message = "the store is being restored from a backup, or that has failed half-way; wait until `steady store \
                       restore` has ended, or restore into another, empty store";
        return Err(RegistryError::Refused(message.into()).into());
    }
    registry.bootstrap().await?;
    Ok((registry, feed))
}

/// Steady's own services, as they are reached by a call.
pub fn routes(registry: Registry) -> Routes {
    services(registry, Relay::default(), Watches::default(), Meter::default())
}

fn services(registry: Registry, relay: Relay, watches: Watches, meter: Meter) -> Routes {
    let admin =
        AdminServer::new(AdminService { registry: registry.clone(), watches: watches.clone(), relay: relay.clone() })
            .max_encoding_message_size(MAX_RESPONSE);
    let objects = ObjectsServer::new(ObjectsService { registry: registry.clone(), watches })
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(MAX_RESPONSE);
    let tasks = TasksServer::new(TasksService { registry: registry.clone(), relay: relay.clone() });
    let agent = AgentServer::new(AgentService::new(registry.clone(), relay, meter.clone()))
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(MAX_RESPONSE);
    Routes::new(objects)
        .add_service(tasks)
        .add_service(TrafficServer::new(TrafficService { registry: registry.clone() }))
        .add_service(ServicesServer::new(ServicesService { registry: registry.clone() }))
        .add_service(MetricsServer::new(MetricsService { registry: registry.clone(), meter }))
        .add_service(agent)
        .add_service(admin)
        .add_service(LeasesServer::new(LeasesService { registry }))
}

async fn serve(
    listener: TcpListener,
    figures: Arc<Figures>,
    meter: Meter,
    mut feed: JoinHandle<FeedError>,
    stopped: oneshot::Receiver<()>,
    mut ending: watch::Receiver<bool>,
) -> Result<(), ServerError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    let Figures { registry, relay, watches, calls } = figures.as_ref().clone();
    let mut services = services(registry, relay, watches, meter).add_service(health_service);
    match reflection {
        Ok(service) => services = services.add_service(service),
        Err(error) => tracing::error!(%error, "reflection is off"),
    }
    let router = tonic::transport::Server::builder()
        .layer(calls)
        .layer(Lanes::default())
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_routes(services);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let serving = router.serve_with_incoming_shutdown(incoming, async {
        let _ = stopped.await;
    });
    tokio::select! {
        served = serving => {
            feed.abort();
            served.map_err(ServerError::from)
        }
        broken = &mut feed => match broken {
            Ok(error) => Err(error.into()),
            Err(panic) => Err(RegistryError::Unavailable(format!("the cache failed: {panic}")).into()),
        },
        () = async {
            let _ = ending.wait_for(|ending| *ending).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        } => {
            feed.abort();
            Ok(())
        }
    }
}
