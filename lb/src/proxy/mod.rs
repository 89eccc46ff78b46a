//! Steady's own data plane: threads that accept connections, and each of which does all of a request.

mod access;
mod body;
mod head;
mod http;
mod idle;
mod serve;
mod tcp;
mod upstream;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, TcpListener};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;

use steady_core::v1::traffic_protocol::Value as Protocol;
use tokio::sync::watch;

pub(crate) use access::AccessLog;
use serve::{Orders, work};

use crate::handover::Sockets;
use crate::plane::{Open, Plane, tell};
use crate::table::Table;
use crate::tls::{self, Certificates};

/// Threads, and what they are told.
pub(crate) struct Proxy {
    address: IpAddr,
    certificates: Arc<RwLock<Certificates>>,
    orders: watch::Sender<Orders>,
    threads: Vec<JoinHandle<()>>,
    known: Vec<Arc<AtomicU64>>,
    open: Open,
    /// Threads that accept nothing any more.
    closed: Arc<AtomicUsize>,
    /// How clients of encrypted listeners are met, and the certificates it was made for.
    tls: BTreeMap<String, (Vec<String>, Arc<rustls::ServerConfig>)>,
    /// Ports that could not be had, and why; told once.
    refused: BTreeMap<u16, String>,
}

impl Proxy {
    /// So many threads, 0: as many as the machine has; with the sockets of the process before.
    pub(crate) fn start(
        address: IpAddr,
        threads: usize,
        sockets: Sockets,
        certificates: Arc<RwLock<Certificates>>,
        open: Open,
        log: Option<&AccessLog>,
    ) -> io::Result<Self> {
        let count = if threads == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { threads };
        let (orders, _) = watch::channel(Orders { sockets, ..Orders::default() });
        let closed = Arc::new(AtomicUsize::new(0));
        let (mut threads, mut known) = (Vec::new(), Vec::new());
        for number in 0..count {
            let (orders, at) = (orders.subscribe(), Arc::new(AtomicU64::new(0)));
            let (mine, open, closed, log) = (Arc::clone(&at), Arc::clone(&open), Arc::clone(&closed), log.cloned());
            let thread = std::thread::Builder::new().name(format!("lb-{number}"));
            threads.push(thread.spawn(move || work(orders, mine, open, closed, log))?);
            known.push(at);
        }
        let (tls, refused) = (BTreeMap::new(), BTreeMap::new());
        Ok(Proxy { address, certificates, orders, threads, known, open, closed, tls, refused })
    }

    /// How clients of encrypted listeners are met: the same for as long as their certificates are.
    fn encrypted(&mut self, table: &Table) -> BTreeMap<String, Arc<rustls::ServerConfig>> {
        self.tls.retain(|name, (certificates, _)| {
            table.listeners.get(name).is_some_and(|listener| listener.certificates == *certificates)
        });
        for listener in table.listeners.values().filter(|listener| listener.is_encrypted()) {
            self.tls.entry(listener.name.clone()).or_insert_with(|| {
                let alpn: &[&[u8]] = if listener.protocol == Protocol::Https { &[b"h2", b"http/1.1"] } else { &[] };
                let names = listener.certificates.clone();
                let config = tls::of_listener(names.clone(), Arc::clone(&self.certificates), alpn);
                (names, config)
            });
        }
        self.tls.iter().map(|(name, (_, config))| (name.clone(), Arc::clone(config))).collect()
    }

    /// The sockets of a table's ports: those that are there, and new ones.
    fn listen(&mut self, table: &Table, mut sockets: Sockets) -> Sockets {
        let ports: BTreeSet<u16> = table.listeners.values().map(|listener| listener.port).collect();
        sockets.retain(|port, _| ports.contains(port));
        self.refused.retain(|port, _| ports.contains(port) && !sockets.contains_key(port));
        for port in ports {
            if sockets.contains_key(&port) {
                continue;
            }
            match TcpListener::bind((self.address, port)) {
                Ok(socket) => {
                    tracing::info!(port, "listening");
                    sockets.insert(port, Arc::new(socket));
                    self.refused.remove(&port);
                }
                Err(error) => tell(&mut self.refused, port, &error),
            }
        }
        sockets
    }
}

impl Plane for Proxy {
    fn obey(&mut self, table: &Arc<Table>) {
        let (sockets, closing) = {
            let orders = self.orders.borrow();
            (orders.sockets.clone(), orders.closing)
        };
        let sockets = if closing { sockets } else { self.listen(table, sockets) };
        let tls = Arc::new(self.encrypted(table));
        self.orders.send_replace(Orders { table: Arc::clone(table), sockets, tls, closing });
    }

    fn known(&self) -> Vec<Arc<AtomicU64>> {
        self.known.clone()
    }

    fn is_pending(&self) -> bool {
        !self.refused.is_empty()
    }

    fn sockets(&self) -> Box<dyn Fn() -> Sockets + Send> {
        let orders = self.orders.subscribe();
        Box::new(move || orders.borrow().sockets.clone())
    }

    fn close(&mut self, _: bool) {
        self.orders.send_modify(|orders| {
            orders.closing = true;
            orders.sockets.clear();
        });
    }

    fn has_ended(&self) -> Box<dyn Fn() -> bool + Send + Sync> {
        let (closed, open, threads) = (Arc::clone(&self.closed), Arc::clone(&self.open), self.threads.len());
        // Until all have closed a connection may come in.
        Box::new(move || closed.load(Ordering::Acquire) == threads && open.load(Ordering::Acquire) <= 0)
    }

    fn end(self: Box<Self>) {
        drop(self.orders);
        self.threads.into_iter().for_each(|thread| drop(thread.join()));
    }
}
