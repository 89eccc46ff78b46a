//! The task metadata endpoint of a process: one for all of its agents.

use std::net::SocketAddr;
use std::sync::Arc;

use rustix::process::geteuid;
use steady_agent::metadata::{ADDRESS, Endpoint};
use tokio::sync::OnceCell;

use crate::failure::Failure;

/// Where it is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    Nowhere,
    At(SocketAddr),
    /// At ECS' address, for containers of an engine, if that can be done.
    Auto,
}

/// Opened by the first agent that needs it.
#[derive(Clone)]
pub(super) struct Metadata {
    wanted: Where,
    opened: Arc<OnceCell<Option<Arc<Endpoint>>>>,
}

impl Metadata {
    /// As `--metadata-address` says.
    pub(super) fn of(given: Option<&str>) -> Result<Self, Failure> {
        let wanted = match given {
            None => Where::Auto,
            Some("none") => Where::Nowhere,
            Some(text) => {
                let wrong = || format!("--metadata-address: `{text}` is no address; expected IP:PORT, or none");
                Where::At(text.parse().map_err(|_| Failure::usage(wrong()))?)
            }
        };
        Ok(Metadata { wanted, opened: Arc::default() })
    }

    /// For containers of a runtime.
    pub(super) async fn endpoint(&self, runtime: &str) -> Result<Option<Arc<Endpoint>>, Failure> {
        let of_engine = matches!(runtime, "docker" | "containerd");
        let (address, is_asked_for) = match self.wanted {
            Where::At(address) if runtime != "hollow" => (address, true),
            Where::Auto if of_engine && geteuid().is_root() => (ADDRESS, false),
            _ => return Ok(None),
        };
        let open = || async {
            match Endpoint::open(address).await {
                Ok(endpoint) => Ok(Some(endpoint)),
                Err(error) if is_asked_for => Err(Failure::failed(format!("--metadata-address {address}: {error}"))),
                Err(error) => {
                    tracing::warn!(%address, %error, "containers are told nothing of themselves and get no credentials");
                    Ok(None)
                }
            }
        };
        self.opened.get_or_try_init(open).await.cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_port() {
        let wanted = |given| Metadata::of(given).ok().map(|metadata| metadata.wanted);
        assert_eq!(wanted(None), Some(Where::Auto));
        assert_eq!(wanted(Some("none")), Some(Where::Nowhere));
        assert_eq!(wanted(Some("127.0.0.1:51679")), Some(Where::At("127.0.0.1:51679".parse().expect("an address"))));
        assert_eq!(wanted(Some("127.0.0.1")), None);
    }
}
