//! xDS as the data plane: Envoys, and gRPC clients that choose targets themselves, ask for what they are to do.
//!
//! They are told of a table as resources (state of the world, aggregated: ADS), whenever one is another. They do not tell what goes on
//! at targets, so that a task waits for its whole deregistration delay. No certificate of theirs is asked for, as everywhere until there is
//! authentication: private keys of listeners are told to whoever asks.

mod resources;

mod proto {
    #![allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub)]
    tonic::include_proto!("envoy.service.discovery.v3");
}

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::Stream;
use prost_types::Any;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::plane::{Open, Plane};
use crate::table::Table;
use crate::tls::Certificates;
use proto::aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer};
use proto::{DiscoveryRequest, DiscoveryResponse};
use resources::{Kind, Resources};

/// Between looks at what changes by itself: targets that start slowly.
const TICK: Duration = Duration::from_secs(1);
/// Between attempts to listen.
const AGAIN: Duration = Duration::from_secs(1);
/// How long clients know clusters before routes name them, and after.
const AHEAD: Duration = Duration::from_millis(500);
const BEHIND: Duration = Duration::from_secs(10);
/// Answers that may wait for a client that does not take them.
const WAITING: usize = 1;
/// How long a connection may be silent until it is looked at.
const SILENCE: Duration = Duration::from_secs(20);

/// Tells whoever asks.
pub(crate) struct Xds {
    tables: watch::Sender<Arc<Table>>,
    known: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Xds {
    /// Answers at this address; listeners are opened, by those that open any, at the other. `changed` is told when a target is found to be
    /// another than before.
    pub(crate) fn start(
        at: SocketAddr,
        address: IpAddr,
        certificates: Arc<RwLock<Certificates>>,
        open: Open,
        changed: Arc<Notify>,
    ) -> Self {
        let (tables, told) = watch::channel(Arc::new(Table::default()));
        let (resources, _) = watch::channel(None);
        let known = Arc::<AtomicU64>::default();
        let mut tasks = JoinSet::new();
        let service = Service { resources: resources.clone(), open };
        tasks.spawn(follow(told, resources, address, certificates, changed, Arc::clone(&known)));
        tasks.spawn(serve(at, service));
        Xds { tables, known, _tasks: tasks }
    }
}

impl Plane for Xds {
    fn obey(&mut self, table: &Arc<Table>) {
        self.tables.send_replace(Arc::clone(table));
    }

    fn counts(&self) -> bool {
        false
    }

    fn known(&self) -> Vec<Arc<AtomicU64>> {
        vec![Arc::clone(&self.known)]
    }

    fn goes_on(&self) -> bool {
        true
    }

    fn is_pending(&self) -> bool {
        false
    }

    fn close(&mut self, _: bool) {}

    fn has_ended(&self) -> Box<dyn Fn() -> bool + Send + Sync> {
        Box::new(|| true)
    }

    fn end(self: Box<Self>) {}
}

/// Answers whoever asks, as soon as the address can be had: the process before may have it still.
async fn serve(at: SocketAddr, service: Service) {
    let mut told = String::new();
    let listener = loop {
        match TcpListener::bind(at).await {
            Ok(listener) => break listener,
            Err(error) => {
                if told != error.to_string() {
                    told = error.to_string();
                    tracing::warn!(%at, %error, "cannot listen for those who ask for xDS; trying again");
                }
                tokio::time::sleep(AGAIN).await;
            }
        }
    };
    tracing::info!(%at, "xDS");
    let mut server = tonic::transport::Server::builder().http2_keepalive_interval(Some(SILENCE));
    let server = server.add_service(AggregatedDiscoveryServiceServer::new(service));
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    if let Err(error) = server.serve_with_incoming(incoming).await {
        tracing::error!(%error, "xDS is not served any more");
    }
}

/// What clients are told; nothing before the first table: an empty world would have them stop.
type Told = Option<Arc<Resources>>;

/// Makes resources of every table.
async fn follow(
    mut tables: watch::Receiver<Arc<Table>>,
    resources: watch::Sender<Told>,
    address: IpAddr,
    certificates: Arc<RwLock<Certificates>>,
    changed: Arc<Notify>,
    known: Arc<AtomicU64>,
) {
    let mut refused = BTreeMap::new();
    // Clusters that nobody names any more stay until those who are on their way have heard it.
    let mut before: Option<(Arc<Resources>, Instant)> = None;
    loop {
        let table = Arc::clone(&tables.borrow_and_update());
        // What goes on at a target that leaves is not known: it is never said to be over.
        table.endpoints.values().for_each(|endpoint| endpoint.set_outstanding(1));
        if table.number > 0 {
            let new = {
                let certificates = certificates.read().unwrap_or_else(PoisonError::into_inner);
                Resources::of(&table, address, &certificates)
            };
            if new.refused != refused {
                refused.clone_from(&new.refused);
                for (listener, why) in &refused {
                    tracing::error!(listener, why, "a listener is left out");
                }
            }
            let said = resources.borrow().clone();
            if let Some(said) = said.filter(|said| new.has_more_clusters_than(said)) {
                // Routes name what is known by then.
                resources.send_replace(Some(Arc::new(said.as_ref().clone().with_clusters_of(&new))));
                tokio::time::sleep(AHEAD).await;
                before = Some((said, Instant::now() + BEHIND));
            } else if before.is_none() {
                let said = resources.borrow().clone().filter(|said| said.has_more_clusters_than(&new));
                before = said.map(|said| (said, Instant::now() + BEHIND));
            }
            before = before.filter(|(_, until)| *until > Instant::now());
            let new = match &before {
                Some((before, _)) => new.with_clusters_of(before),
                None => new,
            };
            let is_other = resources.borrow().as_deref() != Some(&new);
            if is_other {
                resources.send_replace(Some(Arc::new(new)));
            }
            known.store(table.number, Ordering::Release);
        }
        let goes_on = before.is_some() || table.groups.values().any(|group| !group.slow_start().is_zero());
        tokio::select! {
            news = tables.changed() => if news.is_err() { return },
            () = changed.notified() => {}
            () = tokio::time::sleep(TICK), if goes_on => {}
        }
    }
}

struct Service {
    resources: watch::Sender<Told>,
    /// Clients.
    open: Open,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = Pin<Box<dyn Stream<Item = Result<DiscoveryResponse, Status>> + Send>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (answers, stream) = mpsc::channel(WAITING);
        let resources = self.resources.subscribe();
        let open = Arc::clone(&self.open);
        tokio::spawn(async move {
            open.fetch_add(1, Ordering::AcqRel);
            let client = Client { answers, subscriptions: BTreeMap::new(), count: 0, name: String::new() };
            client.serve(request.into_inner(), resources).await;
            open.fetch_sub(1, Ordering::AcqRel);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// What a client wants to know of a kind.
#[derive(Default)]
struct Subscription {
    names: BTreeSet<String>,
    /// It has named some: without names it wants none from then on, and not everything.
    was_named: bool,
    /// What it was told last.
    sent: Option<Vec<Arc<Any>>>,
    nonce: String,
}

/// One who asks.
struct Client {
    answers: mpsc::Sender<Result<DiscoveryResponse, Status>>,
    subscriptions: BTreeMap<Kind, Subscription>,
    /// Answers so far.
    count: u64,
    name: String,
}

impl Client {
    async fn serve(mut self, mut requests: Streaming<DiscoveryRequest>, mut resources: watch::Receiver<Told>) {
        loop {
            tokio::select! {
                request = requests.message() => {
                    let Ok(Some(request)) = request else { return };
                    let Some(kind) = self.take(request) else { continue };
                    let all = resources.borrow().clone();
                    if let Some(all) = all && !self.tell(kind, &all).await {
                        return;
                    }
                }
                news = resources.changed() => {
                    if news.is_err() {
                        return;
                    }
                    let Some(all) = resources.borrow_and_update().clone() else { continue };
                    for kind in Kind::ALL {
                        if self.subscriptions.contains_key(&kind) && !self.tell(kind, &all).await {
                            return;
                        }
                    }
                }
            }
        }
    }

    /// The kind that it is to be told of; `None`: what it was told will do.
    fn take(&mut self, request: DiscoveryRequest) -> Option<Kind> {
        if let Some(node) = request.node.filter(|_| self.name.is_empty()) {
            self.name = format!("{} {}", node.user_agent_name, node.id);
            tracing::info!(client = self.name, "asks for xDS");
        }
        let kind = Kind::ALL.into_iter().find(|kind| kind.url() == request.type_url)?;
        let is_known = self.subscriptions.contains_key(&kind);
        let subscription = self.subscriptions.entry(kind).or_default();
        // It has not read the answer that came since.
        if !request.response_nonce.is_empty() && request.response_nonce != subscription.nonce {
            return None;
        }
        if let Some(error) = request.error_detail {
            tracing::error!(client = self.name, kind = kind.url(), why = error.message, "xDS is refused");
        }
        let names: BTreeSet<String> = request.resource_names.into_iter().collect();
        let asks = !is_known || names != subscription.names;
        if asks {
            subscription.was_named |= !names.is_empty();
            subscription.names = names;
            subscription.sent = None;
        }
        asks.then_some(kind)
    }

    /// Tells what is there of a kind, if it is not what was told. Whether the client is there.
    async fn tell(&mut self, kind: Kind, all: &Resources) -> bool {
        let Some(subscription) = self.subscriptions.get_mut(&kind) else { return true };
        let of_all = matches!(kind, Kind::Cluster | Kind::Listener);
        let everything = of_all && (!subscription.was_named || subscription.names.contains("*"));
        let names = (!everything).then(|| subscription.names.iter().map(String::as_str));
        let wanted = all.wanted(kind, names);
        if subscription.sent.as_ref() == Some(&wanted) {
            return true;
        }
        self.count += 1;
        subscription.nonce = self.count.to_string();
        let response = DiscoveryResponse {
            version_info: self.count.to_string(),
            resources: wanted.iter().map(|one| one.as_ref().clone()).collect(),
            type_url: kind.url().to_owned(),
            nonce: subscription.nonce.clone(),
        };
        subscription.sent = Some(wanted);
        // A cluster that changed waits for its targets, though they are the same.
        if kind == Kind::Cluster
            && let Some(endpoints) = self.subscriptions.get_mut(&Kind::Endpoints)
        {
            endpoints.sent = None;
        }
        self.answers.send(Ok(response)).await.is_ok()
    }
}
