//! The hollow runtime: simulated containers, thousands in a process, for scale tests. Nothing runs.
//!
//! Chance comes from a seed: the same seed and the same calls behave the same.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use steady_core::resources::capability;
use steady_core::{Clock, SystemClock};
use tokio::sync::mpsc;

use super::{
    Command, ContainerId, ContainerSpec, Credentials, Execution, Exit, Found, LogPiece, LogRequest, Port, Pulled,
    Runtime, RuntimeError, State, Usage,
};

/// How simulated containers behave.
#[derive(Debug, Clone, PartialEq)]
pub struct HollowBehaviour {
    /// Milliseconds that a start takes.
    pub start_delay: RangeInclusive<u64>,
    /// Milliseconds until a container ends by itself; `None`: it never does.
    pub run_for: Option<RangeInclusive<u64>>,
    /// Exit code of a container that ends by itself.
    pub exit_code: i32,
    /// Share of starts that fail, 0 to 1.
    pub fail_to_start: f64,
}

impl Default for HollowBehaviour {
    fn default() -> Self {
        HollowBehaviour { start_delay: 0..=0, run_for: None, exit_code: 0, fail_to_start: 0.0 }
    }
}

#[derive(Debug)]
struct Container {
    state: State,
    ports: Vec<Port>,
}

#[derive(Default)]
struct Inner {
    containers: BTreeMap<ContainerId, Container>,
    seed: u64,
    exits: Option<mpsc::UnboundedSender<(ContainerId, Exit)>>,
}

impl Inner {
    /// The next number of the seed's sequence (splitmix64).
    fn next(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn within(&mut self, range: &RangeInclusive<u64>) -> Duration {
        let width = range.end().saturating_sub(*range.start()).saturating_add(1);
        Duration::from_millis(range.start() + self.next() % width)
    }

    fn end(&mut self, id: &ContainerId, code: i32) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.state != State::Running {
            return;
        }
        let exit = Exit { code: Some(code), out_of_memory: false, at: SystemClock.now() };
        container.state = State::Exited(exit.clone());
        if let Some(exits) = &self.exits {
            let _ = exits.send((id.clone(), exit));
        }
    }
}

/// Simulated containers. Clones share them.
#[derive(Clone)]
pub struct Hollow {
    inner: Arc<Mutex<Inner>>,
    behaviour: HollowBehaviour,
}

impl Hollow {
    /// A machine without containers.
    pub fn new(seed: u64, behaviour: HollowBehaviour) -> Self {
        Hollow { inner: Arc::new(Mutex::new(Inner { seed, ..Inner::default() })), behaviour }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Runtime for Hollow {
    fn name(&self) -> &'static str {
        "hollow"
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        [capability::PRIVILEGED, capability::ENGINE, capability::TASK_ENI, capability::SECURITY_GROUPS]
            .map(|name| (name.to_owned(), String::new()))
            .into()
    }

    async fn list(&self) -> Result<Vec<Found>, RuntimeError> {
        let found =
            |(id, container): (&ContainerId, &Container)| Found::simulated(id, &container.state, &container.ports);
        Ok(self.lock().containers.iter().map(found).collect())
    }

    async fn pull(&self, _: &str, _: Option<&Credentials>) -> Result<Pulled, RuntimeError> {
        Ok(Pulled::default())
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<String, RuntimeError> {
        let made = Container { state: State::Created, ports: spec.ports.clone() };
        self.lock().containers.entry(spec.id.clone()).or_insert(made);
        Ok(spec.id.to_string())
    }

    async fn start(&self, id: &ContainerId) -> Result<String, RuntimeError> {
        let (delay, fails, run_for) = {
            let mut inner = self.lock();
            let chance = (inner.next() >> 11) as f64 / (1_u64 << 53) as f64;
            let run_for = self.behaviour.run_for.as_ref().map(|range| inner.within(range));
            (inner.within(&self.behaviour.start_delay), chance < self.behaviour.fail_to_start, run_for)
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if fails {
            return Err(RuntimeError::Start("simulated".into()));
        }
        match self.lock().containers.get_mut(id) {
            Some(container) if container.state == State::Created => container.state = State::Running,
            Some(_) => {}
            None => return Err(RuntimeError::NotFound(id.clone())),
        }
        if let Some(run_for) = run_for {
            let (this, id) = (self.clone(), id.clone());
            tokio::spawn(async move {
                tokio::time::sleep(run_for).await;
                this.lock().end(&id, this.behaviour.exit_code);
            });
        }
        Ok(id.to_string())
    }

    async fn attach_network(&self, id: &ContainerId) -> Result<String, RuntimeError> {
        let digits = id.task.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let [_, b, c, d] = digits.to_be_bytes();
        Ok(Ipv4Addr::new(10, b, c, d).to_string())
    }

    async fn filter_network(&self, _: &ContainerId, _: &str) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn restart(&self, id: &ContainerId) -> Result<String, RuntimeError> {
        if let Some(container) = self.lock().containers.get_mut(id)
            && container.state != State::Running
        {
            container.state = State::Created;
        }
        self.start(id).await
    }

    async fn stop(&self, id: &ContainerId, _: Duration) -> Result<(), RuntimeError> {
        // 128 + SIGTERM.
        self.lock().end(id, 143);
        Ok(())
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.lock().containers.remove(id);
        Ok(())
    }

    async fn execute(&self, id: &ContainerId, _: Command) -> Result<Execution, RuntimeError> {
        let running = self.lock().containers.get(id).is_some_and(|c| c.state == State::Running);
        if running { Ok(Execution::ended(0)) } else { Err(RuntimeError::NotFound(id.clone())) }
    }

    fn measures(&self) -> bool {
        false
    }

    async fn usage(&self, id: &ContainerId) -> Result<Usage, RuntimeError> {
        let running = self.lock().containers.get(id).is_some_and(|c| c.state == State::Running);
        if running { Ok(Usage::default()) } else { Err(RuntimeError::NotFound(id.clone())) }
    }

    async fn logs(
        &self,
        id: &ContainerId,
        _: LogRequest,
    ) -> Result<BoxStream<'static, Result<LogPiece, RuntimeError>>, RuntimeError> {
        let data = format!("{id} is simulated and says nothing\n").into();
        Ok(stream::iter([Ok(LogPiece { data, stderr: false })]).boxed())
    }

    fn is_port_free(&self, _: u16, _: bool) -> bool {
        true
    }

    fn exits(&self) -> mpsc::UnboundedReceiver<(ContainerId, Exit)> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.lock().exits = Some(sender);
        receiver
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> ContainerId {
        ContainerId { task: "t".into(), name: name.into() }
    }

    fn spec(name: &str) -> ContainerSpec {
        ContainerSpec::new(id(name), "default", "i", steady_core::v1::network_mode::Value::Bridge)
    }

    #[tokio::test]
    async fn a_container_runs_until_it_is_stopped_and_its_exit_is_told() {
        let hollow = Hollow::new(1, HollowBehaviour::default());
        let mut exits = hollow.exits();
        hollow.create(&spec("a")).await.expect("made");
        hollow.start(&id("a")).await.expect("started");
        hollow.start(&id("a")).await.expect("left alone");
        hollow.stop(&id("a"), Duration::ZERO).await.expect("stopped");
        assert_eq!(exits.recv().await.map(|(_, exit)| exit.code), Some(Some(143)));
        hollow.remove(&id("a")).await.expect("removed");
        assert_eq!(hollow.list().await.expect("listed"), vec![]);
    }

    #[tokio::test]
    async fn the_same_seed_fails_the_same_starts() {
        let run = || async {
            let hollow = Hollow::new(7, HollowBehaviour { fail_to_start: 0.5, ..HollowBehaviour::default() });
            let mut failed = Vec::new();
            for i in 0..20 {
                let name = i.to_string();
                hollow.create(&spec(&name)).await.expect("made");
                failed.push(hollow.start(&id(&name)).await.is_err());
            }
            failed
        };
        let first = run().await;
        assert_eq!(first, run().await);
        assert!(first.contains(&true) && first.contains(&false));
    }
}
