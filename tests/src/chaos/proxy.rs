//! Between an API server and etcd: passes every call on, counts transactions, and does something to one of them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tower::ServiceExt as _;

use super::runtime;

/// What happens to a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The victim is killed before etcd hears of it.
    KillBefore,
    /// The victim is killed after it happened and before its answer.
    KillAfter,
    /// It happens, and the answer never comes.
    Unanswered,
    /// The answer comes this much later.
    LateAnswer(Duration),
    /// It reaches etcd this much later.
    LateWrite(Duration),
}

/// A way to etcd that knows what is said on it.
pub struct Proxy {
    /// Where it begins.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    etcd: Channel,
    transactions: AtomicU64,
    fated: Mutex<Option<(u64, Fate)>>,
    happened: AtomicU64,
    victim: AtomicI32,
}

impl Proxy {
    /// A way to an etcd.
    pub fn to(etcd: &str) -> Self {
        let _inside = runtime().enter();
        let etcd = Endpoint::from_shared(etcd.to_owned()).unwrap().connect_lazy();
        let shared = Arc::new(Shared {
            etcd,
            transactions: AtomicU64::new(0),
            fated: Mutex::default(),
            happened: AtomicU64::new(0),
            victim: AtomicI32::new(0),
        });
        let listener = runtime().block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let router = axum::Router::new().fallback(pass).with_state(Arc::clone(&shared));
        let serving =
            Server::builder().add_routes(Routes::from(router)).serve_with_incoming(TcpIncoming::from(listener));
        runtime().spawn(serving);
        Proxy { address, shared }
    }

    /// From now on the `nth` transaction, counted from 1, has this fate; the process is killed if that is part of it.
    pub fn doom(&self, nth: u64, fate: Fate, victim: u32) {
        self.shared.victim.store(i32::try_from(victim).unwrap(), Ordering::SeqCst);
        *self.shared.fated.lock().unwrap() = Some((nth, fate));
        self.shared.transactions.store(0, Ordering::SeqCst);
    }

    /// How many fates were met so far.
    pub fn happened(&self) -> u64 {
        self.shared.happened.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn fate(&self, path: &str) -> Option<Fate> {
        if path != "/etcdserverpb.KV/Txn" {
            return None;
        }
        let number = self.transactions.fetch_add(1, Ordering::SeqCst) + 1;
        let mut fated = self.fated.lock().unwrap();
        let fate = fated.filter(|(nth, _)| *nth == number).map(|(_, fate)| fate)?;
        *fated = None;
        self.happened.fetch_add(1, Ordering::SeqCst);
        Some(fate)
    }

    fn kill(&self) {
        if let Some(victim) = Pid::from_raw(self.victim.load(Ordering::SeqCst)) {
            let _ = kill_process(victim, Signal::KILL);
        }
    }
}

async fn pass(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response<Body> {
    let fate = shared.fate(request.uri().path());
    match fate {
        Some(Fate::KillBefore) => {
            shared.kill();
            return std::future::pending().await;
        }
        Some(Fate::LateWrite(by)) => tokio::time::sleep(by).await,
        _ => {}
    }
    // Not of the caller's life: what is late still arrives when nobody waits for it any more.
    let etcd = shared.etcd.clone();
    let answer = tokio::spawn(async move {
        let request = request.map(tonic::body::Body::new);
        etcd.oneshot(request).await
    });
    let answer = answer.await.unwrap();
    match fate {
        Some(Fate::KillAfter) => {
            shared.kill();
            return std::future::pending().await;
        }
        Some(Fate::Unanswered) => return std::future::pending().await,
        Some(Fate::LateAnswer(by)) => tokio::time::sleep(by).await,
        _ => {}
    }
    match answer {
        Ok(answer) => answer.map(Body::new),
        Err(_) => Response::builder().status(StatusCode::BAD_GATEWAY).body(Body::empty()).unwrap(),
    }
}
