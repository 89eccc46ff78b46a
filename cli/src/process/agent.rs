//! `steady agent`: this machine as a container instance.

use std::time::Duration;

use futures::future::try_join_all;
use steady_agent::{Figures, ImageCleanup};

use super::ending::ending;
use super::machine::{Connections, Wanted, address_towards, data_directory, host_name, lock, metrics, prepare};
use super::metadata::Metadata;
use super::{Agent, RuntimeChoice, log};
use crate::args::Global;
use crate::failure::Failure;
use crate::out::note;

/// Runs an agent, or several, until it is asked to end. Tasks go on; the next agent adopts them.
pub async fn agent(args: Agent, global: &Global) -> Result<(), Failure> {
    log::to_stderr();
    let ending = ending()?;
    let servers = global.servers()?;
    let mut connections = Connections::to(&servers);
    let base = args.name.clone().unwrap_or_else(host_name);
    let directory = data_directory(args.data_dir.clone())?.join("agent");
    let _lock = lock(&directory)?;
    let address =
        args.address.clone().unwrap_or_else(|| address_towards(servers.first().map_or("127.0.0.1:7443", |s| s)));
    if args.instances > 1
        && args.runtime != RuntimeChoice::Hollow
        && args.resources.iter().any(|(name, _)| name == "GPU")
    {
        let message = "--resource GPU: several instances of one machine cannot share its GPUs; leave out --instances";
        return Err(Failure::usage(message));
    }
    let metadata = Metadata::of(args.metadata_address.as_deref())?;
    let figures = Figures::default();
    let asked = figures.clone();
    let tell = move || {
        let figures = asked.clone();
        async move { figures.text().await }
    };
    let metrics = metrics(args.metrics.as_deref()).await?;
    let mut running = Vec::new();
    for number in 1..=args.instances {
        let name = if args.instances == 1 { base.clone() } else { format!("{base}-{number}") };
        let ready = prepare(Wanted {
            cluster: global.cluster.clone(),
            directory: directory.join(&name),
            name,
            runtime: args.runtime,
            dns: args.dns.clone(),
            docker_socket: args.docker_socket.clone(),
            containerd_socket: args.containerd_socket.clone(),
            metadata: metadata.clone(),
            image_pull_behavior: args.image_pull_behavior,
            task_subnet: args.task_subnet.clone(),
            task_network: args.task_network.clone(),
            image_cleanup: (args.image_cleanup_interval > 0).then(|| ImageCleanup {
                interval: Duration::from_secs(args.image_cleanup_interval.into()),
                minimum_age: Duration::from_secs(args.image_minimum_cleanup_age.into()),
            }),
            live_restore: !args.without_live_restore,
            address: address.clone(),
            cpu: args.cpu,
            memory: args.memory,
            attributes: args.attributes.clone(),
            resources: args.resources.clone(),
            capacity_provider: args.capacity_provider.clone(),
            share: args.instances,
            stop_tasks: args.stop_tasks,
            figures: Some(figures.clone()),
        })
        .await?;
        if number == 1 {
            note(&format!(
                "steady agent: {} ({}) at {}",
                ready.settings.name,
                ready.runtime.name(),
                servers.join(", ")
            ));
        }
        running.push(ready.run(connections.of(number)?, ending.clone()));
    }
    let telling = steady_runtime::metrics::serve(metrics.as_ref(), tell);
    tokio::select! {
        ended = try_join_all(running) => ended.map(|_| ()),
        () = telling => Ok(()),
    }
}
