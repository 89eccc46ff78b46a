//! Chaos on real processes: load that knows what was acknowledged, links that can be cut, a proxy that loses answers,
//! and a recorder that judges the whole history afterwards.

pub mod cluster;
pub mod history;
pub mod link;
pub mod load;
pub mod proxy;

use std::sync::OnceLock;

use tokio::runtime::Runtime;

/// Where the kit's own tasks run.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap())
}
