//! A pool of instances: what users want of it, whoever makes them, as one life of `steady pool` reaches it, and what has to hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use steady_core::placement::ZONE;
use steady_core::v1::instance_state::Value as InstanceState;
use steady_core::v1::pool_instance_state::Value as State;
use steady_core::v1::{
    Attribute, AutoScalingGroupProvider, CapacityProvider, CapacityProviderSpec, CapacityProviderStatus,
    CapacityProviderStrategyItem, InstancePool, InstanceRefresh, InstanceTemplate, ManagedScaling, Object,
    PoolInstance,
};
use steady_core::{Key, Kind, View, task};
use steady_pool::{Maker, Provider, Wanted};
use tokio::sync::watch;

use super::judge::{Verdict, is_silent};
use super::life::{Life, Moment, lock};
use super::machine::Machine;
use super::{Settings, World, net};

/// The provider's name.
pub(crate) const NAME: &str = "pool";
/// How much longer everything may take: what failed is tried again more and more seldom, and instances are replaced one by one.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1800);
/// Seconds that an instance has to come.
const WARMUP: i32 = 30;

/// What the pool is to be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PoolWish {
    min: i32,
    max: i32,
    version: u32,
    /// Instances of this version never come.
    bad: bool,
    batch: i32,
    percent: i32,
    target: i32,
    zones: bool,
    evaluation: i32,
}

impl PoolWish {
    /// A pool that any service can be on.
    pub(crate) fn simple(version: u32) -> Self {
        let (min, max, batch, percent, target, evaluation) = (0, 3, 1, 100, 100, 10);
        PoolWish { min, max, version, bad: false, batch, percent, target, zones: false, evaluation }
    }

    /// Another wish.
    pub(crate) fn some(world: &World, old: Option<&PoolWish>) -> Self {
        let most = world.settings.instances;
        let min = world.below(2);
        let new = old.is_none_or(|_| world.chance(0.4));
        PoolWish {
            min: min as i32,
            max: (min + 1 + world.below(most)).min(most) as i32,
            version: old.map_or(0, |old| old.version) + u32::from(new),
            bad: if new { world.chance(0.25) } else { old.is_some_and(|old| old.bad) },
            batch: 1 + world.below(3) as i32,
            percent: [0, 50, 100][world.below(3)],
            target: [60, 100][world.below(2)],
            zones: old.map_or_else(|| world.flip(), |old| old.zones),
            evaluation: [10, 40][world.below(2)],
        }
    }

    /// Something that can be had. A version that failed is not tried again: another one is.
    pub(crate) fn make_possible(&mut self, settings: &Settings, failed: bool) {
        self.max = settings.instances as i32;
        if self.bad || failed {
            self.version += 1000;
            self.bad = false;
        }
    }

    fn template(&self, settings: &Settings) -> InstanceTemplate {
        let version = format!("{}{}", if self.bad { "bad" } else { "v" }, self.version);
        InstanceTemplate { cpu: settings.size, memory: settings.size, version, ..InstanceTemplate::default() }
    }

    pub(crate) fn object(&self, settings: &Settings) -> Object {
        let scaling = ManagedScaling {
            target_capacity: self.target,
            instance_warmup_period: Some(WARMUP),
            scale_in_evaluation_seconds: self.evaluation,
            ..ManagedScaling::default()
        };
        let pool = InstancePool {
            min_size: self.min,
            max_size: self.max,
            availability_zones: if self.zones { vec!["z0".into(), "z1".into()] } else { vec![] },
            template: Some(self.template(settings)),
            refresh: Some(InstanceRefresh {
                batch_size: self.batch,
                min_healthy_percentage: Some(self.percent),
                failure_threshold: 2,
            }),
        };
        let spec = CapacityProviderSpec {
            auto_scaling_group_provider: Some(AutoScalingGroupProvider {
                managed_scaling: Some(scaling),
                ..AutoScalingGroupProvider::default()
            }),
            pool: Some(pool),
        };
        Object::new("default", NAME, CapacityProvider { spec: Some(spec), status: None })
    }
}

/// What services are placed by.
pub(crate) fn strategy() -> CapacityProviderStrategyItem {
    CapacityProviderStrategyItem { capacity_provider: NAME.into(), weight: 1, base: 0 }
}

/// Whether the newest version of a pool's instances was given up.
pub(crate) fn has_failed(view: &View) -> bool {
    status(view).is_some_and(|status| !status.failed_template.is_empty())
}

fn status(view: &View) -> Option<&CapacityProviderStatus> {
    view.get(&Key::new(Kind::CapacityProvider, "default", NAME))?.as_capacity_provider()?.status.as_ref()
}

/// Instances that were made.
#[derive(Default)]
pub(crate) struct Cloud {
    /// The machines of those that are there, by their names.
    there: BTreeMap<String, usize>,
    ended: BTreeSet<String>,
}

/// Serves the pool for as long as it lives.
pub(crate) async fn run(world: Arc<World>, life: Arc<Life>, holder: String, ending: watch::Receiver<bool>) {
    let client = net::client(&world, &life);
    let link = CloudLink { world: Arc::clone(&world), life: Arc::clone(&life) };
    let directory = world.directory().join(life.name.as_str());
    let provider = Provider { cluster: "default".into(), name: NAME.into(), servers: vec![] };
    let settings = steady_pool::Settings { provider, directory, holder, metrics: None };
    if let Err(error) = steady_pool::run(settings, &link, client, life.as_ref(), ending).await
        && !life.is_dead()
    {
        world.fail(format!("{} ended: {error}", life.name));
    }
}

struct CloudLink {
    world: Arc<World>,
    life: Arc<Life>,
}

impl CloudLink {
    fn is_unlucky(&self, of: f64) -> bool {
        !self.world.is_calm() && self.world.chance(of)
    }

    async fn begin(&self) -> Option<Moment> {
        let moment = self.world.begin(&self.life).await;
        tokio::time::sleep(self.world.latency()).await;
        moment
    }

    async fn finish(&self, moment: Option<Moment>, refused: BTreeMap<String, String>) -> Answer {
        self.world.finish(&self.life, moment).await;
        if self.is_unlucky(0.1) { Err("simulated: no answer".into()) } else { Ok(refused) }
    }
}

type Answer = Result<BTreeMap<String, String>, String>;

#[async_trait]
impl Maker for CloudLink {
    async fn list(&self, _: &Provider) -> Result<BTreeSet<String>, String> {
        self.life.awake().await;
        tokio::time::sleep(self.world.latency()).await;
        if self.is_unlucky(0.1) {
            return Err("simulated: no answer".into());
        }
        Ok(lock(&self.world.cloud).there.keys().cloned().collect())
    }

    async fn grow(&self, _: &Provider, wanted: &[Wanted]) -> Answer {
        let moment = self.begin().await;
        let mut refused = BTreeMap::new();
        for one in wanted {
            if self.is_unlucky(0.1) {
                refused.insert(one.name.clone(), "simulated: no room".to_owned());
            } else {
                self.world.make(one);
            }
        }
        self.finish(moment, refused).await
    }

    async fn shrink(&self, _: &Provider, names: &[String]) -> Answer {
        let moment = self.begin().await;
        let mut refused = BTreeMap::new();
        for name in names {
            if self.is_unlucky(0.1) {
                refused.insert(name.clone(), "simulated: not now".to_owned());
            } else {
                self.world.unmake(name);
            }
        }
        self.finish(moment, refused).await
    }
}

impl World {
    fn make(self: &Arc<Self>, wanted: &Wanted) {
        let name = &wanted.name;
        let number = {
            let mut cloud = lock(&self.cloud);
            if cloud.there.contains_key(name) {
                return;
            }
            if cloud.ended.contains(name) {
                self.fail(format!("S20: instance {name} was ended, and is made again"));
            }
            let mut machines = lock(&self.machines);
            let number = machines.len();
            let mut machine = Machine::new(name, number, wanted.template.cpu);
            machine.spec.attributes.retain(|attribute| attribute.name != ZONE);
            if !wanted.availability_zone.is_empty() {
                let value = wanted.availability_zone.clone();
                machine.spec.attributes.push(Attribute { name: ZONE.into(), value });
            }
            machine.spec.capacity_provider = NAME.into();
            machines.push(Arc::new(machine));
            cloud.there.insert(name.clone(), number);
            number
        };
        let lame = wanted.template.version.starts_with("bad") || (!self.is_calm() && self.chance(0.1));
        self.note(if lame { "made lame" } else { "made" }, name);
        if lame {
            return;
        }
        let delay = if self.settings.script.is_some() { Duration::from_secs(1) } else { self.between(200, 12_000) };
        let world = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            if !world.machine(number).is_gone() {
                world.start_agent(number);
            }
        });
    }

    fn unmake(&self, name: &str) {
        let Some(number) = lock(&self.cloud).there.remove(name) else { return };
        lock(&self.cloud).ended.insert(name.to_owned());
        self.note("ended", name);
        let state = {
            let judge = lock(&self.judge);
            let entry = status(&judge.view).and_then(|s| s.instances.iter().find(|instance| instance.name == name));
            entry.map(PoolInstance::state)
        };
        if let Some(state) = state.filter(|state| *state != State::Terminating) {
            self.fail(format!("S20: instance {name} was ended, and is {}", state.as_str_name()));
        }
        let machine = self.machine(number);
        machine.running().iter().for_each(|id| self.failed(id));
        machine.take_away(&*self.clock);
        self.end_agent(number);
    }
}

/// Instances that are there or on their way, and are not to go.
fn active(status: &CapacityProviderStatus) -> impl Iterator<Item = &PoolInstance> {
    status.instances.iter().filter(|i| matches!(i.state(), State::Pending | State::InService))
}

/// S21: a pool has no more than its most, an instance that goes has no tasks, and one that serves does not go at once.
pub(crate) fn judge(before: &View, after: &View, key: &Key) -> Verdict {
    let both = |view: &View| {
        let provider = view.get(key)?.as_capacity_provider()?.clone();
        Some((provider.spec?.pool?, provider.status.unwrap_or_default()))
    };
    let (Some((pool, is)), was) = (both(after), both(before)) else { return Ok(()) };
    let was = was.map(|(_, status)| status).unwrap_or_default();
    let counts = |status: &CapacityProviderStatus| active(status).count();
    // The template that is in use: after a failure the one before it.
    let effective = if is.failed_template.is_empty() { &pool.template } else { &is.good_template };
    let new = |status: &CapacityProviderStatus| {
        active(status).filter(|instance| instance.template == *effective).count() as i32
    };
    let old = counts(&was) as i32 - new(&was);
    // Those that are replaced may be more than a new most, and as many come for them.
    let more = if old > 0 { pool.refresh.map_or(0, |refresh| refresh.batch_size) } else { 0 };
    let most = pool.max_size.max(old);
    if new(&is) > new(&was) && (new(&is) > most || counts(&is) as i32 > most.max(old + new(&was)) + more) {
        return Err(format!(
            "S21: the pool has {} new instances of {}, and {most} are its most",
            new(&is),
            counts(&is)
        ));
    }
    let names: BTreeSet<&str> = is.instances.iter().map(|instance| instance.name.as_str()).collect();
    if names.len() < is.instances.len() {
        return Err("S21: an instance is twice in the list".into());
    }
    // Those that are to be ended now, or are no more.
    let ending = is.instances.iter().filter(|instance| instance.state() == State::Terminating);
    let dropped = was.instances.iter().filter(|instance| !names.contains(instance.name.as_str()));
    for instance in ending.chain(dropped) {
        let name = &instance.name;
        let old = was.instances.iter().find(|old| old.name == *name).map(PoolInstance::state);
        let object = before.get(&Key::new(Kind::ContainerInstance, "default", name));
        let Some(object) = object.filter(|_| old != Some(State::Terminating)) else { continue };
        let status = object.as_container_instance().and_then(|instance| instance.status.clone()).unwrap_or_default();
        if status.lost {
            continue;
        }
        if old == Some(State::InService) {
            return Err(format!("S21: {name} is to be ended, and was IN_SERVICE"));
        }
        let tasks = before.on_instance("default", name).filter_map(|object| task::of(object));
        let tasks = tasks.filter(task::View::is_live).count();
        if tasks > 0 && !is_silent(before, object) {
            return Err(format!("S21: {name} is to be ended, and has {tasks} tasks"));
        }
    }
    Ok(())
}

/// What of the pool is not as it should be.
pub(crate) fn problems(world: &World, view: &View, wish: &PoolWish, found: &mut Vec<String>) {
    let Some(status) = status(view) else {
        found.push("the pool has no status".into());
        return;
    };
    let wanted = wish.template(&world.settings);
    for instance in &status.instances {
        let name = &instance.name;
        let key = Key::new(Kind::ContainerInstance, "default", name);
        let connected = view.get(&key).and_then(|o| o.as_container_instance()?.status.as_ref());
        let spec = view.get(&key).and_then(|o| o.as_container_instance()?.spec.as_ref());
        let is_active = spec.is_some_and(|spec| spec.status() == InstanceState::Active);
        let good = if status.failed_template.is_empty() { Some(&wanted) } else { status.good_template.as_ref() };
        if instance.state() != State::InService
            || instance.template.as_ref() != good
            || !connected.is_some_and(|status| status.agent_connected)
            || !is_active
        {
            found.push(format!(
                "instance {name} of the pool is {}: {}",
                instance.state().as_str_name(),
                instance.reason
            ));
        }
    }
    let listed: BTreeSet<&str> = status.instances.iter().map(|instance| instance.name.as_str()).collect();
    let cloud = lock(&world.cloud);
    let there: BTreeSet<&str> = cloud.there.keys().map(String::as_str).collect();
    if listed != there {
        found.push(format!("the pool is to have {listed:?}, and has {there:?}"));
    }
    let registered = view.of_kind(Kind::ContainerInstance).filter(|object| {
        let spec = object.as_container_instance().and_then(|instance| instance.spec.as_ref());
        spec.is_some_and(|spec| spec.capacity_provider == NAME)
    });
    let registered: BTreeSet<&str> = registered.map(|object| object.name()).collect();
    if listed != registered {
        found.push(format!("the pool is to have {listed:?}, and {registered:?} are registered"));
    }
    if status.low_since.is_some() {
        found.push("the pool is to have fewer instances soon".into());
    }
    let count = status.instances.len() as i32;
    if count < wish.min || count > wish.max {
        found.push(format!("the pool has {count} instances of {} to {}", wish.min, wish.max));
    }
}
