//! Steady's controllers. Each module says what its controller watches and which keys a change touches; what is to be
//! done is decided in [`steady_plan`], and done by [`steady_runtime`]. No controller module knows another one.

mod autoscaler;
mod capacity;
mod deployment;
mod hook;
mod instance;
mod metrics;
mod prometheus;
mod reaper;
mod registrar;
mod scheduler;
mod service;
mod web;

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::BoxFuture;
use steady_core::v1::{Object, ServiceSpec};
use steady_core::{Clock, Key, Kind, View};
use steady_runtime::{Client, Controller, Reflector, run};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A controller by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// Rollouts.
    Deployment,
    /// Starting and stopping tasks of services.
    Service,
    /// Placement.
    Scheduler,
    /// Silent agents.
    Instance,
    /// Removing what is over.
    Reaper,
    /// Targets of load balancers.
    Registrar,
    /// How many tasks services have.
    Autoscaler,
    /// How many instances pools have.
    Capacity,
}

impl Name {
    /// Every controller.
    pub const ALL: [Name; 8] = [
        Name::Deployment,
        Name::Service,
        Name::Scheduler,
        Name::Instance,
        Name::Reaper,
        Name::Registrar,
        Name::Autoscaler,
        Name::Capacity,
    ];

    /// As `--only` writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Name::Deployment => deployment::Deployments::NAME,
            Name::Service => service::Services::NAME,
            Name::Scheduler => scheduler::Scheduler::NAME,
            Name::Instance => instance::Instances::NAME,
            Name::Reaper => reaper::Reaper::NAME,
            Name::Registrar => registrar::Registrar::NAME,
            Name::Autoscaler => autoscaler::Autoscaler::NAME,
            Name::Capacity => capacity::Capacity::NAME,
        }
    }

    /// The controller of this name; the names there are otherwise.
    pub fn parse(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|n| n.as_str() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|n| n.as_str()).collect();
            format!("there is no controller `{name}`; controllers: {}", names.join(", "))
        })
    }

    fn watches(self) -> &'static [Kind] {
        match self {
            Name::Deployment => deployment::Deployments::watches(),
            Name::Service => service::Services::watches(),
            Name::Scheduler => scheduler::Scheduler::watches(),
            Name::Instance => instance::Instances::watches(),
            Name::Reaper => reaper::Reaper::watches(),
            Name::Registrar => registrar::Registrar::watches(),
            Name::Autoscaler => autoscaler::Autoscaler::watches(),
            Name::Capacity => capacity::Capacity::watches(),
        }
    }
}

/// Runs controllers until `ending` says so. One view serves all of them. `holder` is who leads: unique to a process,
/// or to something that only one process at a time can be. When the store is another one, all of them start anew. `metrics`
/// is where figures are asked for, if they are.
pub async fn run_controllers(
    names: &[Name],
    client: Client,
    clock: Arc<dyn Clock>,
    holder: String,
    ending: watch::Receiver<bool>,
    metrics: Option<TcpListener>,
) {
    loop {
        let mut kinds: BTreeSet<Kind> = names.iter().flat_map(|name| name.watches()).copied().collect();
        // Leases say who leads, sequencers guard commits.
        kinds.extend([Kind::Lease, Kind::Sequencer]);
        if metrics.is_some() {
            kinds.extend(metrics::KINDS);
        }
        let reflector = Reflector::start(client.clone(), &kinds);
        let figures = metrics::serve(metrics.as_ref(), reflector.clone());
        let running = names.iter().map(|name| -> BoxFuture<'static, ()> {
            let (client, reflector, clock) = (client.clone(), reflector.clone(), Arc::clone(&clock));
            let (holder, ending) = (holder.clone(), ending.clone());
            match name {
                Name::Deployment => Box::pin(run(deployment::Deployments, client, reflector, clock, holder, ending)),
                Name::Service => Box::pin(run(service::Services, client, reflector, clock, holder, ending)),
                Name::Scheduler => {
                    Box::pin(run(scheduler::Scheduler::new(&holder), client, reflector, clock, holder, ending))
                }
                Name::Instance => Box::pin(run(instance::Instances, client, reflector, clock, holder, ending)),
                Name::Reaper => Box::pin(run(reaper::Reaper, client, reflector, clock, holder, ending)),
                Name::Registrar => Box::pin(run(registrar::Registrar, client, reflector, clock, holder, ending)),
                Name::Capacity => Box::pin(run(capacity::Capacity, client, reflector, clock, holder, ending)),
                Name::Autoscaler => {
                    let autoscaler = autoscaler::Autoscaler::new(client.clone());
                    Box::pin(run(autoscaler, client, reflector, clock, holder, ending))
                }
            }
        });
        // They end with this future: whoever drops it has stopped them.
        let mut running: JoinSet<()> = running.collect();
        let ended = async {
            while let Some(ended) = running.join_next().await {
                if let Err(error) = ended {
                    tracing::error!(%error, "a controller failed; the others go on");
                }
            }
        };
        tokio::select! {
            biased;
            () = ended => return,
            () = figures => return,
            () = reflector.replaced() => {}
        }
    }
}

/// Services of a cluster of which something holds.
fn services(view: &View, cluster: &str, which: impl Fn(&ServiceSpec) -> bool) -> impl Iterator<Item = Key> {
    let which = move |object: &&Arc<Object>| object.as_service().and_then(|s| s.spec.as_ref()).is_some_and(&which);
    view.in_cluster(Kind::Service, cluster).filter(which).map(|object| Key::of(object))
}

/// The service that a service, a deployment or a task is of.
fn service_of(object: &Object) -> Option<Key> {
    let name = match object.kind() {
        Kind::Service => object.name(),
        Kind::Deployment => &object.as_deployment()?.spec.as_ref()?.service,
        Kind::TaskSet => &object.as_task_set()?.spec.as_ref()?.service,
        Kind::Task => &object.as_task()?.spec.as_ref()?.service,
        _ => return None,
    };
    (!name.is_empty()).then(|| Key::new(Kind::Service, object.cluster(), name))
}
