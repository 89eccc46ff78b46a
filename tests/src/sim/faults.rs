//! Faults: what goes wrong, by chance.

use std::sync::Arc;
use std::time::Duration;

use steady_apiserver::storage::{Op, Storage, Txn};
use steady_core::v1::deployment_strategy::Value as Strategy;
use steady_core::{Key, Kind, KindExt};
use tokio::time::Instant;

use super::life::{Life, Moment};
use super::net::{Fate, FrameFate, Origin};
use super::process::Role;
use super::users::{Users, Wish};
use super::{World, exhaustive};

impl World {
    /// The time a message takes.
    pub(crate) fn latency(&self) -> Duration {
        if self.settings.script.is_some() {
            return Duration::from_millis(1);
        }
        Duration::from_millis(self.below(3) as u64)
    }

    /// The time that a container takes to start.
    pub(crate) fn start_delay(&self) -> Duration {
        if self.settings.script.is_some() { Duration::from_millis(50) } else { self.between(1, 400) }
    }

    /// The time until a container that ends by itself does so.
    pub(crate) fn lifetime(&self) -> Duration {
        self.between(200, 15_000)
    }

    /// The time until a process that ended is there again.
    pub(crate) fn restart_delay(&self) -> Duration {
        if self.settings.script.is_some() || self.is_calm() {
            Duration::from_millis(500)
        } else {
            self.between(50, 8000)
        }
    }

    /// What becomes of a call to an API server.
    pub(crate) fn fate(&self, life: &Life, call: &str) -> Fate {
        if self.is_calm() || !self.chance(self.settings.unrest) {
            return Fate::Arrives;
        }
        let fate = self.some_fate();
        self.fault("call", &format!("{} {call} {fate:?}", life.name));
        fate
    }

    /// What becomes of a request of an API server to the store.
    pub(crate) fn store_fate(&self, life: &Life) -> Fate {
        if self.is_calm() || !self.chance(self.settings.unrest / 2.0) {
            return Fate::Arrives;
        }
        let fate = self.some_fate();
        self.fault("store", &format!("{} {fate:?}", life.name));
        fate
    }

    fn some_fate(&self) -> Fate {
        match self.below(4) {
            0 => Fate::Lost,
            1 => Fate::Unanswered,
            _ => Fate::Late(self.between(100, 9000)),
        }
    }

    /// What becomes of a message of a stream. Only a watch can miss or repeat one: the others are TCP's.
    pub(crate) fn frame_fate(&self, life: &Life, watch: bool) -> FrameFate {
        if watch && let Some(fate) = exhaustive::event(self, life) {
            return fate;
        }
        if watch && self.settings.stale && !self.is_calm() && self.chance(0.3) {
            return FrameFate::Delayed(self.between(5, 1500));
        }
        if self.is_calm() || !self.chance(self.settings.unrest) {
            return FrameFate::Arrives;
        }
        let fate = match self.below(8) {
            0 => FrameFate::Breaks,
            1 if watch => FrameFate::Twice,
            2 if watch => FrameFate::Dropped,
            _ => FrameFate::Delayed(self.between(5, 6000)),
        };
        self.fault("message", &format!("{} {fate:?}", life.name));
        fate
    }

    /// What becomes of news from the store.
    pub(crate) fn store_frame_fate(&self, life: &Life) -> FrameFate {
        if self.is_calm() || !self.chance(self.settings.unrest / 2.0) {
            return FrameFate::Arrives;
        }
        let fate = match self.below(6) {
            0 => FrameFate::Breaks,
            1 => FrameFate::Twice,
            2 if self.settings.drops => FrameFate::Dropped,
            _ => FrameFate::Delayed(self.between(5, 4000)),
        };
        self.fault("news", &format!("{} {fate:?}", life.name));
        fate
    }

    /// Counts a write of a process: where in it the process is to crash, if it is.
    pub(crate) fn write(&self, life: &Life) -> Option<Moment> {
        let own = life.count_write();
        exhaustive::write(self, life).or(own)
    }

    /// The most tasks that every service can have, also while it is rolled out. All services have the same port, so
    /// that it is scarce, and one task with it an instance.
    pub(crate) fn most(&self, memory: i32, port: i32) -> usize {
        let (instances, services) = (self.settings.instances, self.settings.services);
        let room = self.settings.size as usize * instances / (2 * services);
        let at_once = if self.settings.strategy == Strategy::Rolling { 1 } else { 2 };
        if port > 0 { instances / services / at_once } else { (room / memory as usize).min(4) }
    }

    /// A wish that the instances have room for.
    pub(crate) fn wish(&self, old: Option<&Wish>) -> Wish {
        let memory = [64, 128, 256][self.below(3)];
        let port = if self.most(memory, 8000) > 0 && self.chance(0.4) { 8000 } else { 0 };
        let desired = self.below(self.most(memory, port) + 1);
        let (least, most) =
            if port > 0 { (0, 100) } else { [(100, 200), (50, 200), (0, 150), (0, 100)][self.below(4)] };
        Wish {
            desired: desired as i32,
            least,
            most,
            image: if self.chance(0.7) { "good" } else { super::machine::IMAGES[self.below(4)] },
            memory,
            port,
            version: old.map_or(1, |old| old.version + 1),
            spread: self.flip(),
            breaker: self.settings.breaker,
            strategy: self.settings.strategy,
            daemon: false,
            pooled: false,
            scaled: false,
        }
    }

    /// Users and faults, for as long as the settings say.
    pub(crate) async fn turmoil(self: &Arc<Self>, users: &Users) {
        let end = Instant::now() + Duration::from_secs(self.settings.turmoil as u64);
        let exits = async {
            loop {
                tokio::time::sleep(self.between(200, 6000)).await;
                if self.settings.stale {
                    self.end_a_container();
                }
            }
        };
        let faults = async {
            loop {
                tokio::time::sleep(self.between(100, 5000)).await;
                self.something_goes_wrong().await;
            }
        };
        let changes = async {
            loop {
                users.change_something().await;
                tokio::time::sleep(self.between(100, 8000)).await;
            }
        };
        let watching = async {
            while !self.is_broken() {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(end) => {}
            () = watching => {}
            () = exits => {}
            () = faults => {}
            () = changes => {}
        }
    }

    fn some_life(&self, which: impl Fn(&Role) -> bool) -> Option<(usize, Arc<Life>)> {
        let lives = self.lives().into_iter().filter(|(_, role, _)| which(role) && self.is_there(role));
        let lives: Vec<(usize, Arc<Life>)> = lives.map(|(i, _, life)| (i, life)).collect();
        self.pick(&lives)
    }

    /// A machine that was taken away has no agent.
    fn is_there(&self, role: &Role) -> bool {
        !matches!(role, Role::Agent(number) if self.machine(*number).is_gone())
    }

    async fn something_goes_wrong(self: &Arc<Self>) {
        let controllers = |role: &Role| matches!(role, Role::Controllers(_));
        let agents = |role: &Role| matches!(role, Role::Agent(_));
        let moment = [Moment::Before, Moment::After, Moment::Answered][self.below(3)];
        if self.settings.pool && self.chance(0.15) {
            return self.pool_goes_wrong(moment);
        }
        match self.below(21) {
            0 => self.kill(controllers),
            1 => self.kill(agents),
            2 => self.kill(|role| matches!(role, Role::Api(_))),
            3 | 4 => self.crash_soon(controllers, moment),
            5 | 6 => self.crash_soon(agents, moment),
            7 | 8 => self.pause_some(controllers, self.between(500, 15_000)),
            9 => self.pause_some(agents, self.between(500, 20_000)),
            10 => self.pause_some(|role| matches!(role, Role::Api(_)), self.between(200, 8000)),
            11 | 19 => self.silence_agents(),
            12 => self.cut_some(),
            13 => self.compact().await,
            14 => self.end_a_lease().await,
            15 => self.end_a_container(),
            16 | 20 => self.step_a_clock(),
            17 => self.corrupt_an_object().await,
            _ => {
                if let Some((index, life)) = self.some_life(controllers) {
                    self.fault("term", &life.name);
                    self.end_in_order(index);
                }
            }
        }
    }

    fn pool_goes_wrong(self: &Arc<Self>, moment: Moment) {
        let pools = |role: &Role| *role == Role::Pool;
        match self.below(4) {
            0 => self.kill(pools),
            1 => self.pause_some(pools, self.between(500, 20_000)),
            _ => self.crash_soon(pools, moment),
        }
    }

    fn kill(self: &Arc<Self>, which: impl Fn(&Role) -> bool) {
        if let Some((_, life)) = self.some_life(which) {
            self.crash(&life, "is killed");
        }
    }

    fn crash_soon(&self, which: impl Fn(&Role) -> bool, moment: Moment) {
        if let Some((_, life)) = self.some_life(which) {
            life.crash_in(1 + self.below(4) as u32, moment);
        }
    }

    fn pause_some(&self, which: impl Fn(&Role) -> bool, how_long: Duration) {
        if let Some((_, life)) = self.some_life(which) {
            self.fault("pause", &format!("{} for {how_long:?}", life.name));
            life.pause(how_long);
        }
    }

    /// One agent, or most of them, is not heard of for longer than tasks are waited for.
    fn silence_agents(&self) {
        let how_long = self.between(62_000, 100_000);
        let all = self.flip();
        let agents = self.lives().into_iter();
        let agents = agents.filter(|(_, role, _)| matches!(role, Role::Agent(_)) && self.is_there(role));
        let agents: Vec<_> = agents.collect();
        let count = if all { agents.len() } else { 1 };
        let first = self.below(agents.len());
        for (_, _, life) in agents.iter().cycle().skip(first).take(count) {
            self.fault("silence", &format!("{} for {how_long:?}", life.name));
            life.pause(how_long);
        }
    }

    fn cut_some(&self) {
        let how_long = self.between(500, 15_000);
        if let Some((_, life)) = self.some_life(|role| !matches!(role, Role::Api(_))) {
            self.fault("cut", &format!("{} for {how_long:?}", life.name));
            life.cut(how_long);
        }
    }

    async fn compact(&self) {
        if let Ok(revision) = self.memory.revision().await {
            self.observe(None, &Origin::default());
            self.fault("compact", &revision.to_string());
            let _ = self.memory.compact(revision).await;
        }
    }

    /// A lease ends early; or goes on though its holder is gone.
    async fn end_a_lease(self: &Arc<Self>) {
        let Ok(listing) = self.memory.list(&format!("{}{}/", Key::PREFIX, Kind::Lease.plural())).await else { return };
        let Some(entry) = self.pick(&listing.entries) else { return };
        let Some(lease) = entry.lease else { return };
        if self.flip() {
            self.fault("revoke", &entry.key);
            let _ = self.memory.revoke(lease).await;
            self.observe(None, &Origin::default());
        } else {
            self.fault("linger", &entry.key);
            let world = Arc::clone(self);
            tokio::spawn(async move {
                for _ in 0..10 {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    let _ = world.memory.keep_alive(lease).await;
                }
            });
        }
    }

    fn end_a_container(self: &Arc<Self>) {
        let Some(machine) = self.pick(&self.machines()) else { return };
        if self.chance(0.2) {
            machine.running().iter().for_each(|id| self.failed(id));
            machine.power_off(&*self.clock, self.flip());
            let own = |role: &Role| matches!(role, Role::Agent(number) if self.machine(*number).name == machine.name);
            if let Some((_, life)) = self.some_life(own) {
                self.crash(&life, "lost power");
            }
        } else if let Some(id) = self.pick(&machine.running()) {
            self.fault("exit", &id.to_string());
            self.failed(&id);
            machine.end(&id, 1, &*self.clock);
        }
    }

    fn step_a_clock(&self) {
        if let Some((_, life)) = self.some_life(|_| true) {
            let by = [-3_600_000, -5_000, 5_000, 50_000][self.below(4)];
            self.fault("clock", &format!("{} by {by} ms", life.name));
            life.step_clock(by);
        }
    }

    /// An object that nobody can read, where nobody's object is.
    async fn corrupt_an_object(&self) {
        let kind = [Kind::Task, Kind::Service, Kind::ContainerInstance, Kind::Deployment][self.below(4)];
        let key = Key::new(kind, "default", &format!("rubbish-{}", self.below(5))).to_path();
        self.fault("corrupt", &key);
        let value = vec![0xff; 1 + self.below(20)].into();
        let txn = Txn { compares: vec![], ops: vec![Op::Put { key, value, lease: None }] };
        let _ = self.commit(txn, &Origin::default()).await;
    }
}
