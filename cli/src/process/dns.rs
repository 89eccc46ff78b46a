//! `steady dns`: names of services.

use steady_dns::{Settings, run};
use steady_runtime::Client;

use super::ending::ending;
use super::machine::metrics;
use super::{Dns, log};
use crate::args::Global;
use crate::failure::Failure;
use crate::out::note;

/// Answers until it is asked to end.
pub async fn dns(args: Dns, global: &Global) -> Result<(), Failure> {
    log::to_stderr();
    let ending = ending()?;
    let servers = global.servers()?;
    let client = Client::new(&servers).map_err(|e| Failure::usage(e.to_string()))?;
    note(&format!("steady dns: *.CLUSTER.{} at {}, as {} says", args.domain, args.listen, servers.join(", ")));
    let metrics = metrics(args.metrics.as_deref()).await?;
    let settings = Settings { listen: args.listen, domain: args.domain, ttl: args.ttl, forward: args.forward, metrics };
    run(settings, client, ending).await.map_err(|error| Failure::failed(error.to_string()))
}
