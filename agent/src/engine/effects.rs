//! What the engine's actions do, outside of it; each comes back as an input.

use std::sync::Arc;
use std::time::Duration;

use steady_core::v1::HealthCheck;
use steady_core::v1::health_status::Value as Health;
use steady_core::v1::network_mode::Value as NetworkMode;
use steady_core::{Clock, resources};
use tokio::sync::RwLock;
use tokio::sync::mpsc::UnboundedSender;

use super::environment::{self, Secrets};
use super::model::{ContainerState, Now, Phase, Probes, TaskState};
use super::{Input, Place};
use crate::runtime::{Command, ContainerId, ContainerSpec, Exit, Modes, PAUSE, Port, Runtime, RuntimeError, Sensitive};

/// Held by whoever needs an image to stay until there is a container of it.
pub(super) static LAUNCHING: RwLock<()> = RwLock::const_new(());

/// Between attempts to change the rules of a network.
const FILTER_AGAIN: Duration = Duration::from_secs(2);

/// How long an engine may take to say that it is there.
const ANSWERS: Duration = Duration::from_secs(3);

/// A container that was started.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) runtime_id: String,
    pub(crate) digest: Option<String>,
    /// Of a pause container: the task's.
    pub(crate) address: Option<String>,
    /// Of a pause container: the rules of its network.
    pub(crate) firewall: Option<String>,
}

/// All that a runtime needs to know of a container.
pub(super) fn spec(place: &Place, task: &TaskState, container: &ContainerState, ports: Vec<Port>) -> ContainerSpec {
    let definition = container.definition.clone();
    // The task's own size is a hard limit of each of its containers; a container's memory is one of its own.
    let cpu_limit = resources::parse_cpu(&task.definition.cpu);
    let memory_limit = match definition.memory {
        0 => resources::parse_memory(&task.definition.memory),
        own => Some(own),
    };
    ContainerSpec {
        id: ContainerId { task: task.name().to_owned(), name: definition.name.clone() },
        cluster: place.cluster.clone(),
        instance: place.uid.clone(),
        volumes: task.definition.volumes.clone(),
        network_mode: task.definition.network_mode(),
        modes: Modes { pid: task.definition.pid_mode.clone(), ipc: task.definition.ipc_mode.clone() },
        definition,
        ports,
        cpu_limit,
        memory_limit,
        gpus: None,
        sensitive: Sensitive::default(),
    }
}

/// The container runs.
pub(super) fn runs(container: &mut ContainerState, now: Now) {
    container.phase = Phase::Running;
    container.started_at.get_or_insert(now.at);
    container.running_since = Some(now.instant);
    if let Some(check) = &container.definition.health_check {
        let due = Some(now.instant + seconds(check.interval.unwrap_or(30)));
        container.probes = Probes { health: Health::Unknown, due, ..Probes::default() };
    }
}

/// The container has ended for good.
pub(super) fn ended(container: &mut ContainerState, exit: Exit) {
    container.phase = Phase::Stopped;
    container.probes.due = None;
    if exit.out_of_memory {
        "OutOfMemoryError: Container killed due to memory usage".clone_into(&mut container.reason);
    }
    container.exit = Some(exit);
}

/// A health check answered (ECS: `retries` failures one after the other are unhealthy, one success is healthy;
/// failures in the start period are not counted).
pub(super) fn probed(container: &mut ContainerState, passed: Option<bool>, now: Now) {
    let Some(check) = container.definition.health_check.clone() else { return };
    let probes = &mut container.probes;
    probes.busy = false;
    if container.phase != Phase::Running || probes.health == Health::Unspecified {
        return;
    }
    probes.due = Some(now.instant + seconds(check.interval.unwrap_or(30)));
    let grace = container
        .running_since
        .is_some_and(|since| now.instant.duration_since(since) < seconds(check.start_period.unwrap_or(0)));
    let Some(passed) = passed else { return };
    if passed {
        probes.health = Health::Healthy;
        probes.failures = 0;
    } else if !(grace && probes.health == Health::Unknown) {
        probes.failures += 1;
        if probes.failures >= check.retries.unwrap_or(3) {
            probes.health = Health::Unhealthy;
        }
    }
}

fn seconds(count: i32) -> Duration {
    Duration::from_secs(u64::from(count.unsigned_abs()))
}

pub(super) fn launch(
    runtime: Arc<dyn Runtime>,
    inputs: UnboundedSender<Input>,
    spec: ContainerSpec,
    secrets: Secrets,
    firewall: Option<String>,
    clock: Arc<dyn Clock>,
) {
    tokio::spawn(async move {
        let (id, task) = (spec.id.clone(), spec.id.task.clone());
        let result = async {
            let spec = environment::complete(spec, &secrets).await?;
            let began = clock.now();
            let launching = LAUNCHING.read().await;
            let image = &spec.definition.image;
            let pulled = runtime.pull(image, spec.sensitive.credentials.as_ref()).await;
            let fetched = pulled.as_ref().is_ok_and(|pulled| pulled.is_new).then(|| image.clone());
            let _ = inputs.send(Input::Pulled { task, image: fetched, began, ended: clock.now() });
            let digest = pulled?.digest;
            runtime.create(&spec).await?;
            drop(launching);
            let runtime_id = runtime.start(&spec.id).await?;
            let attaches = spec.id.name == PAUSE && spec.network_mode == NetworkMode::Awsvpc;
            let address = if attaches { Some(network(&*runtime, &spec.id, firewall.as_deref()).await?) } else { None };
            Ok(Launched { runtime_id, digest, address, firewall })
        }
        .await;
        let _ = inputs.send(Input::Launched { id, result });
    });
}

/// The address of a task's own: what must not reach it is kept away before it has one.
async fn network(runtime: &dyn Runtime, id: &ContainerId, rules: Option<&str>) -> Result<String, RuntimeError> {
    if let Some(rules) = rules {
        runtime.filter_network(id, rules).await?;
    }
    runtime.attach_network(id).await
}

/// Gives the network of a task other rules.
pub(super) fn filter(runtime: Arc<dyn Runtime>, inputs: UnboundedSender<Input>, id: ContainerId, rules: String) {
    tokio::spawn(async move {
        let result = runtime.filter_network(&id, &rules).await.map(|()| rules);
        if result.is_err() {
            tokio::time::sleep(FILTER_AGAIN).await;
        }
        let _ = inputs.send(Input::Filtered { task: id.task, result });
    });
}

/// Asks again while the engine does not answer: it has refused nothing.
async fn until_answered<T, F: Future<Output = Result<T, RuntimeError>>>(
    id: &ContainerId,
    ask: impl Fn() -> F,
) -> Result<T, RuntimeError> {
    let mut pause = Duration::from_millis(500);
    loop {
        match ask().await {
            Err(error @ (RuntimeError::Timeout(_) | RuntimeError::Unreachable(_))) => {
                tracing::warn!(container = %id, %error, "not done yet; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(10));
            }
            result => return result,
        }
    }
}

/// Gives a task its address whose pause container an agent before started.
pub(super) fn attach(
    runtime: Arc<dyn Runtime>,
    inputs: UnboundedSender<Input>,
    id: ContainerId,
    runtime_id: String,
    firewall: Option<String>,
) {
    tokio::spawn(async move {
        let result = until_answered(&id, || network(&*runtime, &id, firewall.as_deref())).await;
        let result = result.map(|address| Launched { runtime_id, digest: None, address: Some(address), firewall });
        let _ = inputs.send(Input::Launched { id, result });
    });
}

pub(super) fn restart(runtime: Arc<dyn Runtime>, inputs: UnboundedSender<Input>, id: ContainerId) {
    tokio::spawn(async move {
        let result = until_answered(&id, || runtime.restart(&id)).await;
        let _ = inputs.send(Input::Restarted { id, result });
    });
}

pub(super) fn stop(
    runtime: Arc<dyn Runtime>,
    inputs: UnboundedSender<Input>,
    id: ContainerId,
    grace: Duration,
    clock: Arc<dyn Clock>,
) {
    tokio::spawn(async move {
        match runtime.stop(&id, grace).await {
            Ok(()) => {
                // How it ended is told by the runtime; should that be lost, that it ended is known here.
                tokio::time::sleep(Duration::from_secs(1)).await;
                let exit = Exit { code: None, out_of_memory: false, at: clock.now() };
                let _ = inputs.send(Input::Exited(id, exit));
            }
            Err(error) => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let _ = inputs.send(Input::NotStopped(id, error));
            }
        }
    });
}

pub(super) fn probe(runtime: Arc<dyn Runtime>, inputs: UnboundedSender<Input>, id: ContainerId, check: HealthCheck) {
    tokio::spawn(async move {
        let timeout = seconds(check.timeout.unwrap_or(5));
        let words = match check.command.split_first() {
            Some((kind, words)) if kind == "CMD" => words.to_vec(),
            Some((kind, words)) if kind == "CMD-SHELL" => {
                ["/bin/sh", "-c"].into_iter().map(str::to_owned).chain(words.iter().cloned()).collect()
            }
            _ => check.command,
        };
        let passed = match runtime.execute(&id, Command { words, ..Command::default() }).await {
            Ok(running) => match running.wait(timeout).await {
                // That the engine does not answer says nothing of the container.
                Err(RuntimeError::Unreachable(_)) => None,
                Err(RuntimeError::Timeout(_)) => {
                    let answers = tokio::time::timeout(ANSWERS, runtime.usage(&id)).await;
                    let silent =
                        matches!(answers, Err(_) | Ok(Err(RuntimeError::Unreachable(_) | RuntimeError::Timeout(_))));
                    (!silent).then_some(false)
                }
                ended => Some(matches!(ended, Ok(0))),
            },
            Err(RuntimeError::Timeout(_) | RuntimeError::Unreachable(_)) => None,
            Err(_) => Some(false),
        };
        let _ = inputs.send(Input::Probed(id, passed));
    });
}

pub(super) fn remove(
    runtime: Arc<dyn Runtime>,
    inputs: UnboundedSender<Input>,
    task: String,
    containers: Vec<ContainerId>,
) {
    tokio::spawn(async move {
        for id in containers {
            let mut pause = Duration::from_millis(200);
            loop {
                let removed: Result<(), RuntimeError> = runtime.remove(&id).await;
                let Err(error) = removed else { break };
                tracing::warn!(container = %id, %error, "a container could not be removed; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(60));
            }
        }
        let _ = inputs.send(Input::Removed(task));
    });
}
