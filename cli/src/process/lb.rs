//! `steady lb`: a load balancer.

use std::time::Duration;

use steady_lb::{DataPlane, LbError, Settings, run};
use steady_runtime::Client;

use super::ending::ending;
use super::machine::{data_directory, host_name};
use super::{DataPlaneChoice, Lb, log};
use crate::args::Global;
use crate::failure::Failure;
use crate::out::note;

/// Runs a load balancer until it is asked to end, or another one has taken its sockets.
pub async fn lb(args: Lb, global: &Global) -> Result<(), Failure> {
    log::to_stderr();
    let ending = ending()?;
    let servers = global.servers()?;
    let client = Client::new(&servers).map_err(|e| Failure::usage(e.to_string()))?;
    let name = args.name.unwrap_or_else(host_name);
    let is_name =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    for (option, given) in [("--name", &name), ("--load-balancer", &args.load_balancer)] {
        if !is_name(given) {
            return Err(Failure::usage(format!(
                "{option}: `{given}` is no name; expected letters, digits, `_` and `-`"
            )));
        }
    }
    let data_plane = match args.data_plane {
        DataPlaneChoice::Steady => DataPlane::Own { access_log: args.access_log },
        _ if args.access_log.is_some() => {
            return Err(Failure::usage(
                "--access-log is of --data-plane steady; others write logs of their own".to_owned(),
            ));
        }
        DataPlaneChoice::Xds => DataPlane::Xds { listen: args.xds_listen },
        DataPlaneChoice::Haproxy => DataPlane::HaProxy { program: args.haproxy },
    };
    let directory = data_directory(args.data_dir)?.join("lb").join(format!("{}.{}", args.load_balancer, name));
    note(&format!(
        "steady lb: load balancer {} of cluster {} at {}",
        args.load_balancer,
        global.cluster,
        servers.join(", ")
    ));
    let settings = Settings {
        cluster: global.cluster.clone(),
        load_balancer: args.load_balancer,
        name,
        address: args.listen_address,
        directory,
        data_plane,
        threads: args.threads,
        metrics: args.metrics,
        drain: Duration::from_secs(args.drain_timeout.into()),
    };
    run(settings, client, ending).await.map_err(|error: LbError| Failure::failed(error.to_string()))
}
