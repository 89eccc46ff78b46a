//! Steady's agent: a controller whose world is one machine.
//!
//! The [`session`] brings assignments and takes statuses; the [`engine`] brings each task one step further per call,
//! purely; a [`runtime`] obeys. Nothing that runs depends on the control plane being there: without a session
//! everything stays as it is, and what happened meanwhile is told afterwards.

mod commands;
mod engine;
mod figures;
mod identity;
pub mod metadata;
mod ports;
mod record;
pub mod runtime;
mod session;
mod usage;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use steady_core::Clock;
use steady_core::v1::ContainerInstanceSpec;
use steady_runtime::Client;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use engine::Engine;
pub use engine::ImageCleanup;
pub use figures::Figures;
pub use identity::{Identity, IdentityError};
use record::Records;
use runtime::Runtime;

/// What an agent is.
pub struct Settings {
    /// Cluster of its instance.
    pub cluster: String,
    /// Name of its instance.
    pub name: String,
    /// What it registers.
    pub spec: ContainerInstanceSpec,
    /// Where it keeps what it must not forget; `None`: nothing survives it (hollow instances).
    pub directory: Option<PathBuf>,
    /// Who this very process is, among all that ever were this agent.
    pub holder: String,
    /// What containers are told of themselves, if they are.
    pub endpoint: Option<Arc<metadata::Endpoint>>,
    /// When images are removed that no task uses any more; `None`: never.
    pub image_cleanup: Option<ImageCleanup>,
    /// Where it says what its tasks are and take, if anybody wants to know.
    pub figures: Option<Figures>,
    /// Servers of names that containers ask whose definition names none.
    pub dns: Vec<String>,
    /// Its tasks stop when it ends; else they go on, and are adopted by the next agent.
    pub stop_tasks: bool,
}

/// How long tasks may take to stop when the agent ends: longer than ECS' default of `stopTimeout`.
const LAST_STOP: Duration = Duration::from_secs(35);

/// Why an agent ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The registration was refused for good.
    #[error("the API server refused the registration: {0}")]
    Refused(String),
    /// It was led to another store than before.
    #[error(
        "the API server belongs to another Steady (store {found}, this agent's is {known}); nothing was stopped. \
         Point --server to the right one, or start the agent with a fresh --data-dir"
    )]
    OtherStore {
        /// The one that it belongs to.
        known: String,
        /// The one that answered.
        found: String,
    },
    /// Its directory or its runtime does not work.
    #[error("{0}")]
    Local(String),
}

/// Where an instance is (ECS `ecs.availability-zone`).
fn zone(spec: &ContainerInstanceSpec) -> &str {
    let found = spec.attributes.iter().find(|attribute| attribute.name == "ecs.availability-zone");
    found.map_or("", |attribute| &attribute.value)
}

/// Runs an agent until `ending` says so.
pub async fn run(
    settings: Settings,
    identity: Identity,
    client: Client,
    runtime: Arc<dyn Runtime>,
    clock: Arc<dyn Clock>,
    mut ending: watch::Receiver<bool>,
) -> Result<(), AgentError> {
    let records = Records::open(settings.directory.as_deref()).map_err(|e| AgentError::Local(e.to_string()))?;
    let (to_engine, inputs) = mpsc::unbounded_channel();
    let (outgoing, to_session) = watch::channel(engine::Outgoing::default());
    let mut seated = None;
    let mut addresses = None;
    if let (Some(endpoint), Some(directory)) = (&settings.endpoint, &settings.directory) {
        let opened = metadata::Addresses::open(endpoint.address(), directory);
        addresses = Some(opened.map_err(|e| AgentError::Local(format!("{}: {e}", directory.display())))?);
        let protector = metadata::Protector { client: client.clone(), cluster: settings.cluster.clone() };
        seated = Some(endpoint.join(&identity.uid, to_engine.clone(), Arc::clone(&runtime), protector));
    }
    if let Some(figures) = &settings.figures {
        figures.join(settings.cluster.clone(), settings.name.clone(), to_engine.clone(), Arc::clone(&runtime));
    }
    let place = engine::Place {
        cluster: settings.cluster.clone(),
        uid: identity.uid.clone(),
        address: settings.spec.address.clone(),
        zone: zone(&settings.spec).to_owned(),
        metadata: addresses,
        resources: settings.spec.registered_resources.iter().flat_map(|r| r.named.clone()).collect(),
        image_cleanup: settings.image_cleanup,
        dns: settings.dns.clone(),
    };
    let engine = Engine::adopt(place, Arc::clone(&runtime), records, clock, to_engine.clone(), outgoing)
        .await
        .map_err(|e| AgentError::Local(e.to_string()))?;
    // The engine ends with this future: whoever drops it has stopped the agent.
    let mut running = JoinSet::new();
    running.spawn(async move {
        let _seated = seated;
        engine.run(inputs).await;
    });
    let (told, usage) = watch::channel(Arc::default());
    if runtime.measures() {
        let sampler = usage::Sampler { engine: to_engine.clone(), runtime: Arc::clone(&runtime) };
        running.spawn(async move {
            sampler.run(told).await;
            // It ends with the engine, and is not waited for.
            std::future::pending::<()>().await;
        });
    }
    let (stop_tasks, stop, mut left) = (settings.stop_tasks, to_engine.clone(), to_session.clone());
    let session = session::Session { settings, identity, client, runtime, to_engine, from_engine: to_session, usage };
    let mut session = std::pin::pin!(session.run());
    let ended = tokio::select! {
        biased;
        error = &mut session => Err(error),
        _ = running.join_next() => Err(AgentError::Local("the task engine failed".into())),
        _ = ending.wait_for(|ending| *ending) => Ok(()),
    };
    if ended.is_ok() && stop_tasks {
        let _ = stop.send(engine::Input::StopAll);
        // The session goes on meanwhile: what stops is told.
        tokio::select! {
            biased;
            _ = &mut session => {}
            _ = tokio::time::timeout(LAST_STOP, left.wait_for(|outgoing| outgoing.stopping && outgoing.tasks == 0)) => {}
        }
    }
    ended
}
