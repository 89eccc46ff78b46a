//! Steady's DNS: `web.prod.steady.internal` is answered with the healthy tasks of the service that has the name, from memory. Other names
//! are asked of somebody else, or refused.
//!
//! What is answered is made of one view of the API, purely ([`zone`]). While the API is away the last one is answered.

mod figures;
mod forward;
mod serve;
mod zone;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_server::Server;
use steady_core::Kind;
use steady_runtime::{Client, News, Reflector};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;

use figures::Figures;
use serve::Answers;
use zone::Zone;

/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// Answers of one connection that may wait.
const WAITING: usize = 64;
/// How long changes are gathered.
const GATHER: Duration = Duration::from_millis(5);

/// What it is started with.
#[derive(Debug)]
pub struct Settings {
    /// Where it listens, over UDP and TCP.
    pub listen: SocketAddr,
    /// What its names end with, without a dot at either end.
    pub domain: String,
    /// How long answers are good for, seconds.
    pub ttl: u32,
    /// Who is asked for other names; empty: they are refused.
    pub forward: Vec<SocketAddr>,
    /// Where figures are asked for.
    pub metrics: Option<TcpListener>,
}

/// Why it does not run.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// Its address.
    #[error("cannot listen at {0}: {1}; another address is given by --listen")]
    Listen(SocketAddr, io::Error),
    /// Its domain.
    #[error("`{0}` is no domain: {1}")]
    Domain(String, String),
}

/// Answers until it is to end.
pub async fn run(settings: Settings, client: Client, mut ending: watch::Receiver<bool>) -> Result<(), DnsError> {
    let failed = |error| DnsError::Listen(settings.listen, error);
    let udp = UdpSocket::bind(settings.listen).await.map_err(failed)?;
    let tcp = TcpListener::bind(settings.listen).await.map_err(failed)?;
    let empty =
        Zone::new(&settings.domain, settings.ttl).map_err(|error| DnsError::Domain(settings.domain.clone(), error))?;
    let (told, zones) = watch::channel(Arc::new(empty));
    let figures = Figures::default();
    let mut server = Server::new(Answers::new(zones.clone(), settings.forward, figures.clone()));
    server.register_socket(udp);
    server.register_listener(tcp, IDLE, WAITING);
    tokio::select! {
        () = follow(&client, &told) => {}
        () = figures::serve(settings.metrics.as_ref(), figures, zones) => {}
        _ = ending.wait_for(|ending| *ending) => {}
        ended = server.block_until_done() => if let Err(error) = ended {
            tracing::error!(%error, "the server of names ended");
        }
    }
    Ok(())
}

/// Has the zone be what the API says, for ever.
async fn follow(client: &Client, told: &watch::Sender<Arc<Zone>>) {
    loop {
        let reflector = Reflector::start(client.clone(), &BTreeSet::from([Kind::Service, Kind::Task]));
        reflector.until(|_| true).await;
        let track = async {
            let mut news = reflector.news();
            loop {
                let zone = told.borrow().with(&reflector.view());
                told.send_if_modified(|known| {
                    let is_new = **known != zone;
                    *known = Arc::new(zone);
                    is_new
                });
                // Whatever is missed is in the view.
                let relevant = loop {
                    match news.recv().await {
                        Ok(News::Changed(objects)) if objects.iter().all(|object| !concerns(object)) => {}
                        Err(tokio::sync::broadcast::error::RecvError::Closed) => break false,
                        _ => break true,
                    }
                };
                if !relevant {
                    return;
                }
                tokio::time::sleep(GATHER).await;
            }
        };
        tokio::select! {
            () = track => {}
            () = reflector.replaced() => tracing::warn!("the store is another one; looking at everything anew"),
        }
    }
}

/// Whether a change may be one of who is found.
fn concerns(object: &steady_core::v1::Object) -> bool {
    object.kind() == Kind::Service
        || object.as_task().and_then(|t| t.spec.as_ref()).is_some_and(|s| !s.service.is_empty())
}
