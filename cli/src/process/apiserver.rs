//! `steady apiserver`: one API server over an etcd.

use std::future::ready;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;

use steady_apiserver::bundled::BundledEtcd;
use steady_apiserver::seal::Keys;
use steady_apiserver::server::Server;
use steady_apiserver::storage::{Etcd, Grouped, Storage};

use super::ending::ending;
use super::hidden::guard_words;
use super::machine::{data_directory, lock, metrics};
use super::{Apiserver, EtcdArgs, log};
use crate::args::Global;
use crate::failure::Failure;
use crate::out::note;

/// Groups of writes that may be under way: with one, every write waits for the group before it.
const GROUPS: usize = 2;

fn grouped(etcd: Etcd) -> Arc<dyn Storage> {
    Arc::new(Grouped::new(Arc::new(etcd), GROUPS))
}

/// The store, and the etcd that was started for it.
pub(crate) struct Store {
    pub(crate) storage: Arc<dyn Storage>,
    pub(super) bundled: Option<BundledEtcd>,
}

impl Store {
    /// Connects to an etcd that is there, or starts the bundled one on a directory.
    pub(crate) async fn open(etcd: &EtcdArgs, directory: &Path) -> Result<Self, Failure> {
        if !etcd.etcd.is_empty() {
            let store = Etcd::connect(&etcd.settings()?).await.map_err(|e| {
                Failure::failed(format!("etcd at {} does not answer: {e}; check --etcd", etcd.etcd.join(",")))
            })?;
            return Ok(Store { storage: grouped(store), bundled: None });
        }
        let guard = guard_words().map_err(|e| Failure::failed(e.to_string()))?;
        let (bundled, store) =
            BundledEtcd::start(directory, &guard).await.map_err(|e| Failure::failed(e.to_string()))?;
        Ok(Store { storage: grouped(store), bundled: Some(bundled) })
    }

    /// Waits until the etcd that was started ends by itself, which is always an error.
    pub(super) async fn ended(&mut self) -> Failure {
        match &mut self.bundled {
            Some(bundled) => Failure::failed(bundled.ended().await.to_string()),
            None => std::future::pending().await,
        }
    }

    /// Ends what was started.
    pub(crate) async fn close(self) {
        drop(self.storage);
        if let Some(bundled) = self.bundled {
            bundled.stop().await;
        }
    }
}

/// The address of `--listen`.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, Failure> {
    let found = text.to_socket_addrs().ok().and_then(|mut found| found.next());
    found.ok_or_else(|| Failure::usage(format!("--listen {text} is no address; write HOST:PORT, as 127.0.0.1:7443")))
}

/// Keys of a store that is in a directory: they are beside it, and made with it.
pub(super) fn own_keys(directory: &Path) -> Result<Keys, Failure> {
    Keys::load_or_make(&directory.join("secrets.key")).map_err(|e| Failure::failed(e.to_string()))
}

/// Runs one API server until it is asked to end.
pub async fn apiserver(args: Apiserver, _: &Global) -> Result<(), Failure> {
    log::to_stderr();
    let mut ending = ending()?;
    let listen = listen_address(&args.listen)?;
    let directory = data_directory(args.data_dir)?;
    let _lock = if args.etcd.etcd.is_empty() { Some(lock(&directory)?) } else { None };
    let metrics = metrics(args.metrics.as_deref()).await?;
    let mut store = Store::open(&args.etcd, &directory).await?;
    let keys = match &args.secrets_key {
        Some(file) => Some(Keys::load(file).map_err(|e| Failure::usage(format!("--secrets-key {e}")))?),
        None if args.etcd.etcd.is_empty() => Some(own_keys(&directory)?),
        None => None,
    };
    let started = Server::start(listen, Arc::clone(&store.storage), keys).await;
    let mut server = started.map_err(|e| Failure::failed(e.to_string()))?;
    note(&format!("steady apiserver: http://{}", server.address));
    let figures = Arc::clone(&server.figures);
    let telling = steady_runtime::metrics::serve(metrics.as_ref(), move || ready(figures.text()));
    let ended = tokio::select! {
        () = telling => Ok(()),
        error = server.ended() => Err(Failure::failed(error.to_string())),
        failure = store.ended() => Err(failure),
        _ = ending.wait_for(|ending| *ending) => Ok(()),
    };
    if ended.is_ok() {
        server.stop().await;
    }
    store.close().await;
    ended
}
