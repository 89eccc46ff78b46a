//! `steady up`: everything in one process.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use steady_agent::Identity;
use steady_apiserver::server::Server;
use steady_controller::{Name, run_controllers};
use steady_core::SystemClock;
use steady_runtime::Client as Api;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::apiserver::{Store, listen_address, own_keys};
use super::ending::ending;
use super::machine::{Connections, Wanted, data_directory, host_name, lock, prepare};
use super::metadata::Metadata;
use super::{PullWhen, RuntimeChoice, Up, log};
use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::out::{Out, note};
use crate::{apply, context, progress};

/// Everything that `up` started, in the order in which it ends.
struct Running {
    stop_controllers: watch::Sender<bool>,
    controllers: JoinHandle<()>,
    stop_balancer: watch::Sender<bool>,
    balancer: JoinHandle<()>,
    stop_agents: watch::Sender<bool>,
    agents: JoinSet<Result<(), Failure>>,
    server: Server,
    store: Store,
}

/// Runs everything until it is asked to end.
pub async fn up(args: Up, global: &Global) -> Result<(), Failure> {
    let mut out = Out::stdout(global.color);
    let mut ending = ending()?;
    let directory = data_directory(args.data_dir.clone())?;
    let _lock = lock(&directory)?;
    log::to_file(log_file(&directory)?);
    let mut running = start(&args, global, &directory, &mut out).await?;
    let address = format!("http://{}", running.server.address);
    if let Err(error) = context::save("dev", &address) {
        note(&format!("steady: the context was not saved ({error}); pass --server {address} to other commands"));
    }
    let ended = tokio::select! {
        _ = ending.wait_for(|ending| *ending) => Ok(()),
        error = running.server.ended() => Err(Failure::failed(error.to_string())),
        failure = running.store.ended() => Err(failure),
        Some(Ok(Err(error))) = running.agents.join_next() => Err(error),
        worked = work(&args, global, &address, &mut out) => match worked {
            Ok(never) => match never {},
            Err(failure) => Err(failure),
        },
    };
    stop(running, &args, &mut out).await;
    ended
}

fn log_file(directory: &Path) -> Result<File, Failure> {
    let path = directory.join("steady.log");
    let file = File::options().create(true).append(true).open(&path);
    file.map_err(|e| Failure::failed(format!("{}: {e}", path.display())))
}

async fn start(args: &Up, global: &Global, directory: &Path, out: &mut Out) -> Result<Running, Failure> {
    let listen = listen_address(&args.listen)?;
    let began = Instant::now();
    let store = Store::open(&args.etcd, directory).await?;
    let kind = if store.bundled.is_some() { "etcd (bundled)" } else { "etcd" };
    tick(out, "store", kind, began)?;
    let began = Instant::now();
    let keys = own_keys(directory)?;
    let server = match Server::start(listen, store.storage.clone(), Some(keys)).await {
        Ok(server) => server,
        Err(error) => {
            store.close().await;
            return Err(Failure::failed(error.to_string()));
        }
    };
    let address = format!("http://{}", server.address);
    tick(out, "api", &address, began)?;
    let api = Api::new(std::slice::from_ref(&address)).map_err(|e| Failure::failed(e.to_string()))?;
    let (stop_controllers, controllers_end) = watch::channel(false);
    // Only one `up` at a time has the directory: what one before it led, this one leads at once.
    let leader = Identity::load(directory, "up").map_err(|e| Failure::failed(e.to_string()))?.uid;
    let controllers = tokio::spawn({
        let api = api.clone();
        async move { run_controllers(&Name::ALL, api, Arc::new(SystemClock), leader, controllers_end, None).await }
    });
    let (stop_agents, agents_end) = watch::channel(false);
    let (stop_balancer, balancer_end) = watch::channel(false);
    let settings = steady_lb::Settings {
        cluster: global.cluster.clone(),
        load_balancer: steady_core::traffic::DEFAULT_LOAD_BALANCER.to_owned(),
        name: "up".to_owned(),
        address: Ipv4Addr::LOCALHOST.into(),
        directory: directory.join("lb"),
        threads: 1,
        metrics: None,
        data_plane: steady_lb::DataPlane::Own { access_log: None },
        drain: Duration::from_secs(1),
    };
    let balancing = steady_lb::run(settings, api.clone(), balancer_end);
    let balancer = tokio::spawn(async move {
        if let Err(error) = balancing.await {
            note(&format!("steady: no load balancer: {error}"));
        }
    });
    let agents_of = JoinSet::new();
    let mut running = Running {
        stop_controllers,
        controllers,
        stop_balancer,
        balancer,
        stop_agents,
        agents: agents_of,
        server,
        store,
    };
    match agents(args, global, directory, &address, &agents_end, &mut running.agents, out).await {
        Ok(()) => Ok(running),
        Err(failure) => {
            stop(running, args, out).await;
            Err(failure)
        }
    }
}

async fn agents(
    args: &Up,
    global: &Global,
    directory: &Path,
    address: &str,
    ending: &watch::Receiver<bool>,
    running: &mut JoinSet<Result<(), Failure>>,
    out: &mut Out,
) -> Result<(), Failure> {
    let began = Instant::now();
    let mut connections = Connections::to(&[address.to_owned()]);
    let metadata = Metadata::of(args.metadata_address.as_deref())?;
    for number in 1..=args.instances {
        let name = if args.instances == 1 { host_name() } else { format!("node-{number}") };
        let ready = prepare(Wanted {
            cluster: global.cluster.clone(),
            directory: directory.join("agents").join(number.to_string()),
            name,
            runtime: args.runtime,
            dns: Vec::new(),
            docker_socket: args.docker_socket.clone(),
            containerd_socket: args.containerd_socket.clone(),
            metadata: metadata.clone(),
            image_pull_behavior: PullWhen::Default,
            task_subnet: None,
            task_network: None,
            // What is built while things are tried out stays.
            image_cleanup: None,
            // To try things, a restart of Docker may end them.
            live_restore: false,
            address: "127.0.0.1".to_owned(),
            cpu: None,
            memory: None,
            attributes: Vec::new(),
            resources: Vec::new(),
            capacity_provider: String::new(),
            share: args.instances,
            stop_tasks: !args.keep || args.runtime == RuntimeChoice::Hollow,
            figures: None,
        })
        .await?;
        if number == 1 {
            let resources = ready.settings.spec.registered_resources.clone().unwrap_or_default();
            let count = if args.instances > 1 { format!("{} instances · ", args.instances) } else { String::new() };
            let what = format!(
                "{count}{} · {} · {:.1} cpu · {} MiB",
                ready.settings.name,
                ready.runtime.name(),
                f64::from(resources.cpu) / 1024.0,
                resources.memory
            );
            tick(out, "agent", &what, began)?;
        }
        running.spawn(ready.run(connections.of(number)?, ending.clone()));
    }
    Ok(())
}

fn tick(out: &mut Out, what: &str, text: &str, began: Instant) -> Result<(), Failure> {
    out.line(&format!("  ✓ {what:<7} {text:<44} {:.1}s", began.elapsed().as_secs_f64()))
}

/// Applies the manifests, tells how they come along, and stays.
async fn work(args: &Up, global: &Global, address: &str, out: &mut Out) -> Result<std::convert::Infallible, Failure> {
    let client = Client::connect(&[address.to_owned()], Duration::from_secs(30)).await?;
    if args.manifests.is_empty() {
        out.line("  context \"dev\" saved. Next: steady apply -f examples/manifests/hello.yaml")?;
    } else {
        let objects = apply::apply_paths(&client, &args.manifests, &global.cluster, out).await?;
        let services = apply::services(&objects);
        if let Err(failure) = progress::until_steady(&client, &services, progress::PATIENCE, out).await {
            // What is wrong can be mended while everything runs.
            note(&format!("steady: {failure}"));
        }
    }
    out.line("  Ctrl-C stops everything; another terminal takes: steady get services")?;
    std::future::pending().await
}

/// Ends what runs: nobody replaces what stops, tasks stop while their end can still be stored, the store is last.
async fn stop(running: Running, args: &Up, out: &mut Out) {
    out.rest();
    let keep = if args.keep { "; tasks go on" } else { "" };
    let _ = out.line(&format!("  stopping{keep} (again Ctrl-C: at once)"));
    let Running { stop_controllers, controllers, stop_balancer, balancer, stop_agents, mut agents, server, store } =
        running;
    stop_controllers.send_replace(true);
    stop_balancer.send_replace(true);
    let _ = tokio::time::timeout(Duration::from_secs(2), balancer).await;
    let _ = tokio::time::timeout(Duration::from_secs(3), controllers).await;
    stop_agents.send_replace(true);
    while agents.join_next().await.is_some() {}
    server.stop().await;
    store.close().await;
    let _ = out.line("  stopped");
}
