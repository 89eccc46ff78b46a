//! A machine: containers that outlive the agents that made them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use steady_agent::runtime::{
    Command, ContainerId, ContainerSpec, Credentials, Execution, Exit, Found, LogPiece, LogRequest, Port, Pulled,
    Runtime, RuntimeError, State, Usage,
};
use steady_core::Clock;
use steady_core::placement::ZONE;
use steady_core::v1::{Attribute, ContainerInstanceSpec, InstanceResources};
use tokio::sync::mpsc;

use super::World;
use super::life::{Life, Moment, lock};

/// Images, by how their containers behave.
pub(crate) const IMAGES: [&str; 4] = ["good", "exits", "never-starts", "missing"];

/// Containers of the image `flaps` are well for so many milliseconds, and unwell for as many.
const FLAP: i64 = 15_000;
/// Those of `slow` take so long to start.
const SLOW: Duration = Duration::from_secs(20);

struct Container {
    state: State,
    image: String,
    ports: Vec<Port>,
    /// It does not end before its grace is over.
    hangs: bool,
}

/// A machine.
pub(crate) struct Machine {
    /// Name of its instance.
    pub(crate) name: String,
    /// What its agent registers.
    pub(crate) spec: ContainerInstanceSpec,
    /// There is no such machine any more.
    gone: AtomicBool,
    containers: Mutex<BTreeMap<ContainerId, Container>>,
    exits: Mutex<Option<mpsc::UnboundedSender<(ContainerId, Exit)>>>,
}

impl Machine {
    /// The machine of a number, of so many CPU units and MiB.
    pub(crate) fn new(name: &str, number: usize, size: i32) -> Self {
        let spec = ContainerInstanceSpec {
            registered_resources: Some(InstanceResources { cpu: size, memory: size, ..InstanceResources::default() }),
            attributes: vec![Attribute { name: ZONE.into(), value: format!("z{}", number % 2) }],
            address: format!("10.0.0.{number}"),
            runtime: "hollow".into(),
            ..ContainerInstanceSpec::default()
        };
        let name = name.to_owned();
        Machine { name, spec, gone: AtomicBool::new(false), containers: Mutex::default(), exits: Mutex::default() }
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// It is taken away, with everything on it.
    pub(crate) fn take_away(&self, clock: &dyn Clock) {
        self.gone.store(true, Ordering::Relaxed);
        self.power_off(clock, true);
    }

    /// Containers that run.
    pub(crate) fn running(&self) -> Vec<ContainerId> {
        let containers = lock(&self.containers);
        containers.iter().filter(|(_, c)| c.state == State::Running).map(|(id, _)| id.clone()).collect()
    }

    /// Whether a container of a task runs.
    pub(crate) fn runs(&self, task: &str) -> bool {
        lock(&self.containers).iter().any(|(id, c)| id.task == task && c.state == State::Running)
    }

    /// Containers, running or not.
    pub(crate) fn count(&self) -> usize {
        lock(&self.containers).len()
    }

    /// A container ends.
    pub(crate) fn end(&self, id: &ContainerId, code: i32, clock: &dyn Clock) {
        let mut containers = lock(&self.containers);
        let Some(container) = containers.get_mut(id).filter(|c| c.state == State::Running) else { return };
        let exit = Exit { code: Some(code), out_of_memory: false, at: clock.now() };
        container.state = State::Exited(exit.clone());
        if let Some(exits) = &*lock(&self.exits) {
            let _ = exits.send((id.clone(), exit));
        }
    }

    /// The machine lost power: nothing on it runs any more, and nobody was told; perhaps nothing is even left of it.
    pub(crate) fn power_off(&self, clock: &dyn Clock, wiped: bool) {
        let at = clock.now();
        if wiped {
            lock(&self.containers).clear();
        }
        for container in lock(&self.containers).values_mut().filter(|c| c.state == State::Running) {
            container.state = State::Exited(Exit { code: Some(137), out_of_memory: false, at });
        }
    }
}

/// A machine as one life of its agent reaches it.
pub(crate) struct MachineLink {
    pub(crate) world: Arc<World>,
    pub(crate) machine: Arc<Machine>,
    pub(crate) life: Arc<Life>,
}

impl MachineLink {
    async fn begin(&self) -> Option<Moment> {
        self.world.begin(&self.life).await
    }

    async fn finish(&self, moment: Option<Moment>) {
        self.world.finish(&self.life, moment).await;
    }
}

#[async_trait]
impl Runtime for MachineLink {
    fn name(&self) -> &'static str {
        "hollow"
    }

    async fn list(&self) -> Result<Vec<Found>, RuntimeError> {
        let found =
            |(id, container): (&ContainerId, &Container)| Found::simulated(id, &container.state, &container.ports);
        Ok(lock(&self.machine.containers).iter().map(found).collect())
    }

    async fn pull(&self, image: &str, _: Option<&Credentials>) -> Result<Pulled, RuntimeError> {
        tokio::time::sleep(self.world.latency()).await;
        if image == "missing" { Err(RuntimeError::Pull("simulated: not found".into())) } else { Ok(Pulled::default()) }
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<String, RuntimeError> {
        let moment = self.begin().await;
        let made = Container {
            state: State::Created,
            image: spec.definition.image.clone(),
            ports: spec.ports.clone(),
            hangs: !self.world.is_calm() && self.world.chance(0.1),
        };
        lock(&self.machine.containers).entry(spec.id.clone()).or_insert(made);
        self.finish(moment).await;
        Ok(spec.id.to_string())
    }

    async fn start(&self, id: &ContainerId) -> Result<String, RuntimeError> {
        let moment = self.begin().await;
        tokio::time::sleep(self.world.start_delay()).await;
        if lock(&self.machine.containers).get(id).is_some_and(|c| c.image == "slow") {
            tokio::time::sleep(SLOW).await;
        }
        let started = self.start_now(id);
        self.finish(moment).await;
        started.map(|()| id.to_string())
    }

    async fn restart(&self, id: &ContainerId) -> Result<String, RuntimeError> {
        let moment = self.begin().await;
        tokio::time::sleep(self.world.start_delay()).await;
        let restarted = match lock(&self.machine.containers).get_mut(id) {
            Some(container) => {
                container.state = State::Running;
                Ok(id.to_string())
            }
            None => Err(RuntimeError::NotFound(id.clone())),
        };
        self.finish(moment).await;
        restarted
    }

    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        let moment = self.begin().await;
        self.world.stopping(&self.machine.name, id);
        let hangs = lock(&self.machine.containers).get(id).is_some_and(|c| c.hangs && c.state == State::Running);
        tokio::time::sleep(if hangs { grace } else { self.world.latency() }).await;
        self.machine.end(id, if hangs { 137 } else { 143 }, &*self.world.clock);
        self.finish(moment).await;
        Ok(())
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let moment = self.begin().await;
        let container = lock(&self.machine.containers).remove(id);
        if container.is_some_and(|c| c.state == State::Running) {
            self.world.stopping(&self.machine.name, id);
        }
        self.finish(moment).await;
        Ok(())
    }

    async fn execute(&self, id: &ContainerId, _: Command) -> Result<Execution, RuntimeError> {
        self.life.awake().await;
        let running = lock(&self.machine.containers).get(id).is_some_and(|c| c.state == State::Running);
        if running {
            let image = lock(&self.machine.containers).get(id).map(|c| c.image.clone()).unwrap_or_default();
            if image == "flaps" {
                return Ok(Execution::ended(i32::from(self.world.clock.now().0 / FLAP % 2 == 1)));
            }
            Ok(Execution::ended(i32::from(!self.world.is_calm() && self.world.chance(0.1))))
        } else {
            Err(RuntimeError::NotFound(id.clone()))
        }
    }

    async fn usage(&self, _: &ContainerId) -> Result<Usage, RuntimeError> {
        Ok(Usage::default())
    }

    async fn logs(
        &self,
        _: &ContainerId,
        _: LogRequest,
    ) -> Result<BoxStream<'static, Result<LogPiece, RuntimeError>>, RuntimeError> {
        Ok(stream::empty().boxed())
    }

    fn exits(&self) -> mpsc::UnboundedReceiver<(ContainerId, Exit)> {
        let (sender, receiver) = mpsc::unbounded_channel();
        *lock(&self.machine.exits) = Some(sender);
        receiver
    }

    fn is_port_free(&self, _: u16, _: bool) -> bool {
        true
    }
}

impl MachineLink {
    fn start_now(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let mut containers = lock(&self.machine.containers);
        let Some(container) = containers.get(id) else { return Err(RuntimeError::NotFound(id.clone())) };
        if container.state != State::Created {
            return Ok(());
        }
        let unlucky = !self.world.is_calm() && self.world.chance(0.02);
        if container.image == "never-starts" || unlucky {
            self.world.failed(id);
            return Err(RuntimeError::Start("simulated".into()));
        }
        let taken = |port: &Port| {
            let running = containers.values().filter(|c| c.state == State::Running);
            running.flat_map(|c| &c.ports).any(|other| other.host == port.host && other.udp == port.udp)
        };
        if let Some(port) = container.ports.iter().find(|port| taken(port)) {
            return Err(RuntimeError::Start(format!("simulated: port {} is already allocated", port.host)));
        }
        let ends = container.image == "exits";
        if let Some(container) = containers.get_mut(id) {
            container.state = State::Running;
        }
        drop(containers);
        self.world.started(&self.machine.name, id);
        if ends {
            let (world, machine, id) = (Arc::clone(&self.world), Arc::clone(&self.machine), id.clone());
            tokio::spawn(async move {
                tokio::time::sleep(world.lifetime()).await;
                world.failed(&id);
                machine.end(&id, 1, &*world.clock);
            });
        }
        Ok(())
    }
}
