//! `steady controller`: controllers, all of them or some.

use std::sync::Arc;

use steady_controller::{Name, run_controllers};
use steady_core::SystemClock;
use steady_runtime::{Client, holder};

use super::ending::ending;
use super::machine::metrics;
use super::{Controller, log};
use crate::args::Global;
use crate::failure::Failure;
use crate::out::note;

/// Runs controllers until it is asked to end.
pub async fn controller(args: Controller, global: &Global) -> Result<(), Failure> {
    log::to_stderr();
    let ending = ending()?;
    let names = if args.only.is_empty() {
        Name::ALL.to_vec()
    } else {
        args.only.iter().map(|name| Name::parse(name)).collect::<Result<Vec<_>, _>>().map_err(Failure::usage)?
    };
    let servers = global.servers()?;
    let client = Client::new(&servers).map_err(|e| Failure::usage(e.to_string()))?;
    let listed: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
    note(&format!("steady controller: {} at {}", listed.join(", "), servers.join(", ")));
    let metrics = metrics(args.metrics.as_deref()).await?;
    run_controllers(&names, client, Arc::new(SystemClock), holder(), ending, metrics).await;
    Ok(())
}
