//! A task as the engine sees it: what is wanted, and what each container is known to do.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use steady_core::resources::implied_dependencies;
use steady_core::v1::container_condition::Value as Condition;
use steady_core::v1::desired_status::Value as Desired;
use steady_core::v1::health_status::Value as Health;
use steady_core::v1::network_mode::Value as NetworkMode;
use steady_core::v1::stop_code::Value as StopCode;
use steady_core::v1::task_last_status::Value as Status;
use steady_core::v1::{
    Container, ContainerDefinition, ContainerDependency, NetworkBinding, NetworkInterface, Object, TaskDefinitionSpec,
    TaskStatus,
};
use steady_core::{Timestamp, task};
use tokio::time::Instant;

use super::environment::Secrets;
use super::pause;
use crate::runtime::{Exit, PAUSE, Port, repository};

/// What a container does. Moves down this list, but for a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Nothing was done for it.
    New,
    /// Its image is being had, it is being made and started.
    Starting,
    /// Runs.
    Running,
    /// Ran and ended, and is being started again by its restart policy. The only one that goes back: to `Running`.
    Restarting,
    /// Was told to stop.
    Stopping,
    /// Has ended, or will never start.
    Stopped,
}

/// Health of a container that has a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Probes {
    /// As it counts now.
    pub(crate) health: Health,
    /// Failures one after the other.
    pub(crate) failures: i32,
    /// When the next probe is due.
    pub(crate) due: Option<Instant>,
    /// One is under way.
    pub(crate) busy: bool,
}

/// One container.
#[derive(Debug, Clone)]
pub(crate) struct ContainerState {
    pub(crate) definition: ContainerDefinition,
    pub(crate) phase: Phase,
    pub(crate) exit: Option<Exit>,
    /// Why it did not start, or ended in an unusual way.
    pub(crate) reason: String,
    pub(crate) runtime_id: String,
    pub(crate) digest: String,
    pub(crate) ports: Vec<Port>,
    /// Of a pause container: the task's address.
    pub(crate) address: Option<String>,
    /// When it was first started.
    pub(crate) started_at: Option<Timestamp>,
    /// When it was last started.
    pub(crate) running_since: Option<Instant>,
    pub(crate) restarts: Restarts,
    pub(crate) probes: Probes,
}

/// Now: as people know it, and for measuring how long something took, whatever happens to the machine's clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub(crate) at: Timestamp,
    pub(crate) instant: Instant,
}

/// What a container's restart policy did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Restarts {
    /// How often it was started again.
    pub(crate) count: i32,
    /// The end that the last restart answered.
    pub(crate) answered: Option<Exit>,
}

impl Restarts {
    /// Whether this end has been answered already: ends are told more than once.
    pub(crate) fn has_answered(&self, exit: &Exit) -> bool {
        self.answered.as_ref().is_some_and(|answered| answered.at == exit.at)
    }
}

/// ECS' default of `restartAttemptPeriod`.
const RESTART_ATTEMPT_PERIOD: i32 = 300;

impl ContainerState {
    pub(crate) fn new(definition: ContainerDefinition) -> Self {
        let health = if definition.health_check.is_some() { Health::Unknown } else { Health::Unspecified };
        ContainerState {
            definition,
            phase: Phase::New,
            exit: None,
            reason: String::new(),
            runtime_id: String::new(),
            digest: String::new(),
            ports: Vec::new(),
            address: None,
            started_at: None,
            running_since: None,
            restarts: Restarts::default(),
            probes: Probes { health, ..Probes::default() },
        }
    }

    pub(crate) fn is_essential(&self) -> bool {
        self.definition.essential.unwrap_or(true)
    }

    pub(crate) fn exit_code(&self) -> Option<i32> {
        self.exit.as_ref().and_then(|exit| exit.code)
    }

    /// Whether its restart policy has it started again after this end (ECS: it ran for the period, and the exit code is
    /// not ignored).
    pub(crate) fn is_restarted_after(&self, exit: &Exit, ran: Duration) -> bool {
        let policy = self.definition.restart_policy.as_ref().filter(|policy| policy.enabled);
        policy.is_some_and(|policy| {
            let period = policy.restart_attempt_period.unwrap_or(RESTART_ATTEMPT_PERIOD);
            let ignored = exit.code.is_some_and(|code| policy.ignored_exit_codes.contains(&code));
            !ignored && ran.as_secs() >= u64::from(period.unsigned_abs())
        })
    }

    /// It ended, and is being started again.
    pub(crate) fn restarts_after(&mut self, exit: Exit) {
        self.phase = Phase::Restarting;
        self.restarts.count += 1;
        self.restarts.answered = Some(exit);
        self.probes.due = None;
    }

    /// As it is told, of an instance with this address, in a task with perhaps one of its own.
    fn as_message(&self, address: &str, own: Option<&str>) -> Container {
        let status = match self.phase {
            Phase::New | Phase::Starting => Status::Pending,
            Phase::Running | Phase::Restarting | Phase::Stopping => Status::Running,
            Phase::Stopped => Status::Stopped,
        };
        let bindings = self.ports.iter().filter(|_| self.phase >= Phase::Running).map(|port| NetworkBinding {
            bind_ip: address.to_owned(),
            container_port: port.container.into(),
            host_port: port.host.into(),
            protocol: port.protocol().into(),
        });
        Container {
            name: self.definition.name.clone(),
            last_status: status.into(),
            exit_code: self.exit_code(),
            reason: self.reason.chars().take(1024).collect(),
            runtime_id: self.runtime_id.clone(),
            image: self.definition.image.clone(),
            image_digest: self.digest.clone(),
            network_bindings: bindings.collect(),
            health_status: self.probes.health.into(),
            restart_count: self.restarts.count,
            network_interfaces: own
                .filter(|_| self.phase >= Phase::Running)
                .map(|own| NetworkInterface { private_ipv4_address: own.to_owned() })
                .into_iter()
                .collect(),
        }
    }
}

/// Why a task is to stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stop {
    pub(crate) code: StopCode,
    pub(crate) reason: String,
    pub(crate) since: Timestamp,
}

/// One task.
#[derive(Debug, Clone)]
pub(crate) struct TaskState {
    pub(crate) object: Object,
    pub(crate) definition: TaskDefinitionSpec,
    pub(crate) containers: Vec<ContainerState>,
    /// Containers may be started: the control plane said so in this session or a former one of this process.
    pub(crate) confirmed: bool,
    pub(crate) stop: Option<Stop>,
    pub(crate) accepted_at: Timestamp,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) stopped_at: Option<Timestamp>,
    /// When its first image was asked for, and its last one was here.
    pub(crate) pulled: Option<(Timestamp, Timestamp)>,
    pub(crate) secrets: Secrets,
    /// Since when it waits for load balancers to be done with it.
    pub(crate) deregisters_since: Option<Instant>,
    /// It is not to be reported: the control plane does not know it.
    pub(crate) forgotten: bool,
}

/// An image by its digest, whatever its tag says by now.
fn pinned(image: &str, digest: &str) -> String {
    format!("{}@{digest}", repository(image))
}

impl TaskState {
    /// A task that was just assigned, its overrides applied.
    pub(crate) fn new(object: Object, definition: TaskDefinitionSpec, now: Timestamp) -> Self {
        let spec = task::of(&object).map(|t| t.spec.clone()).unwrap_or_default();
        let overrides = spec.overrides.unwrap_or_default();
        let (pauses, network) = (pause::is_needed(&definition), definition.network_mode());
        let containers = definition.container_definitions.iter().map(|original| {
            let mut definition = original.clone();
            for change in overrides.container_overrides.iter().filter(|o| o.name == definition.name) {
                if !change.command.is_empty() {
                    definition.command.clone_from(&change.command);
                }
                definition.environment.retain(|kept| !change.environment.iter().any(|new| new.name == kept.name));
                definition.environment.extend(change.environment.iter().cloned());
            }
            for name in implied_dependencies(original) {
                if !definition.depends_on.iter().any(|known| known.container_name == name) {
                    let condition = Condition::Start.into();
                    definition.depends_on.push(ContainerDependency { container_name: name.to_owned(), condition });
                }
            }
            if let Some(digest) = spec.image_digests.get(&definition.name) {
                definition.image = pinned(&definition.image, digest);
            }
            if pauses {
                pause::depend(&mut definition, network);
            }
            ContainerState::new(definition)
        });
        let pause = pauses.then(|| ContainerState::new(pause::of(&definition)));
        TaskState {
            containers: pause.into_iter().chain(containers).collect(),
            object,
            definition,
            confirmed: false,
            stop: None,
            accepted_at: now,
            started_at: None,
            stopped_at: None,
            pulled: None,
            secrets: Secrets::default(),
            deregisters_since: None,
            forgotten: false,
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.object.name()
    }

    pub(crate) fn wants_to_run(&self) -> bool {
        self.stop.is_none()
            && task::of(&self.object).is_some_and(|t| t.status.desired_status() != Desired::Stopped && t.is_live())
    }

    /// It was told to stop, and load balancers are not done with it: its requests come to their end first. Whatever becomes of
    /// them, not for ever.
    pub(crate) fn is_deregistering(&self, now: Instant) -> bool {
        let Some(told) = task::of(&self.object) else { return false };
        let delays = told.status.targets.iter().map(|target| target.deregistration_delay_seconds.unsigned_abs());
        let Some(longest) = delays.max().filter(|_| told.status.desired_status() == Desired::Stopped) else {
            return false;
        };
        let limit = Duration::from_secs(u64::from(longest));
        self.deregisters_since.is_none_or(|since| now.duration_since(since) < limit)
    }

    /// Ports of the instance that it has.
    pub(crate) fn host_ports(&self) -> impl Iterator<Item = &Port> {
        let own = self.definition.network_mode() == NetworkMode::Awsvpc;
        self.containers.iter().filter(move |_| !own).flat_map(|c| &c.ports)
    }

    pub(crate) fn container(&self, name: &str) -> Option<&ContainerState> {
        self.containers.iter().find(|c| c.definition.name == name)
    }

    pub(crate) fn container_mut(&mut self, name: &str) -> Option<&mut ContainerState> {
        self.containers.iter_mut().find(|c| c.definition.name == name)
    }

    /// Containers that wait for this one: they stop before it.
    pub(crate) fn dependents<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a ContainerState> {
        self.containers.iter().filter(move |c| c.definition.depends_on.iter().any(|d| d.container_name == name))
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.containers.iter().all(|c| c.phase == Phase::Stopped)
    }

    /// Every container runs, or ran and ended as it may.
    fn is_running(&self) -> bool {
        self.containers.iter().all(|c| c.phase >= Phase::Running) && self.started_at.is_some()
    }

    /// What is told to the control plane.
    pub(crate) fn status(&self, address: &str, now: Timestamp) -> TaskStatus {
        let own = self.container(PAUSE).and_then(|pause| pause.address.as_deref());
        let told = self.containers.iter().filter(|c| c.definition.name != PAUSE);
        let long = |since: Timestamp| now.since(since).as_millis() >= 1000;
        let last = if self.is_stopped() {
            Status::Stopped
        } else if self.stop.is_some() && self.is_deregistering(Instant::now()) {
            Status::Deactivating
        } else if self.stop.as_ref().is_some_and(|stop| long(stop.since)) {
            Status::Stopping
        } else if self.is_running() {
            Status::Running
        } else if self.containers.iter().any(|c| c.phase > Phase::New) && long(self.accepted_at) {
            Status::Activating
        } else {
            Status::Pending
        };
        TaskStatus {
            last_status: last.into(),
            containers: told.map(|c| c.as_message(own.unwrap_or(address), own)).collect(),
            health_status: self.health().into(),
            stopped_reason: self.stop.as_ref().map(|s| s.reason.clone()).unwrap_or_default(),
            stop_code: self.stop.as_ref().map_or(0, |s| s.code.into()),
            pull_started_at: self.pulled.map(|(began, _)| began.into()),
            pull_stopped_at: self.pulled.map(|(_, ended)| ended.into()),
            started_at: self.started_at.map(Into::into),
            stopping_at: self.stop.as_ref().map(|s| s.since.into()),
            stopped_at: self.stopped_at.map(Into::into),
            ..TaskStatus::default()
        }
    }

    /// Health over the essential containers that have a check (ECS).
    fn health(&self) -> Health {
        let checked: Vec<Health> = self
            .containers
            .iter()
            .filter(|c| c.is_essential() && c.definition.health_check.is_some())
            .map(|c| c.probes.health)
            .collect();
        if checked.is_empty() {
            Health::Unspecified
        } else if checked.contains(&Health::Unhealthy) {
            Health::Unhealthy
        } else if checked.iter().all(|health| *health == Health::Healthy) {
            Health::Healthy
        } else {
            Health::Unknown
        }
    }
}

/// Whether a dependency is met, can still be met, or never will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Met {
    Yes,
    NotYet,
    Never(String),
}

/// How a dependency on a container stands.
pub(crate) fn met(on: &ContainerState, condition: Condition, now: Instant) -> Met {
    let name = &on.definition.name;
    let ran = on.started_at.is_some();
    let yes = match condition {
        Condition::Start | Condition::Unspecified => ran,
        // Of one that nobody saw end it is not known whether it ever ran.
        Condition::Complete => on.phase == Phase::Stopped && ran && on.exit_code().is_some(),
        Condition::Success => on.phase == Phase::Stopped && on.exit_code() == Some(0),
        Condition::Healthy => on.phase == Phase::Running && on.probes.health == Health::Healthy,
    };
    if yes {
        return Met::Yes;
    }
    if on.phase == Phase::Stopped {
        let how = on
            .exit_code()
            .map_or_else(|| "did not start, or was not seen to end".into(), |code| format!("exited with {code}"));
        return Met::Never(format!("container {name} {how}, and another waits for it ({})", condition.as_str_name()));
    }
    let patience = on.definition.start_timeout.filter(|_| condition != Condition::Start);
    if let (Some(seconds), Some(started)) = (patience, on.running_since)
        && now.duration_since(started).as_secs() >= u64::from(seconds.unsigned_abs())
    {
        return Met::Never(format!(
            "container {name} was not {} within its startTimeout of {seconds} s",
            condition.as_str_name()
        ));
    }
    Met::NotYet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_pinned_to_its_digest_instead_of_its_tag() {
        assert_eq!(pinned("nginx", "sha256:1"), "nginx@sha256:1");
        assert_eq!(pinned("nginx:1.27", "sha256:1"), "nginx@sha256:1");
        assert_eq!(pinned("localhost:5000/team/web", "sha256:1"), "localhost:5000/team/web@sha256:1");
        assert_eq!(pinned("localhost:5000/team/web:v1", "sha256:1"), "localhost:5000/team/web@sha256:1");
        assert_eq!(pinned("nginx@sha256:0", "sha256:1"), "nginx@sha256:1");
    }
}
