//! Capacity: the instances of a pool, from when they are to be made until they are gone (ECS cluster auto scaling).
//!
//! What is to be is a list of instances in the provider's status; whoever makes instances obeys it, and tells nothing: that an instance is
//! there is known by its agent. So the list says the same whoever reads it, however often, and no instance is made or ended twice.

mod refresh;
mod size;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use steady_core::capacity::{self, is_enabled};
use steady_core::v1::instance_state::Value as InstanceState;
use steady_core::v1::pool_instance_state::Value as State;
use steady_core::v1::severity::Value as Severity;
use steady_core::v1::stop_code::Value as StopCode;
use steady_core::v1::{
    CapacityProvider, CapacityProviderSpec, CapacityProviderStatus, ContainerInstanceStatus, InstancePool,
    InstanceTemplate, ManagedScaling, Object, PoolInstance, object,
};
use steady_core::{Change, Event, Key, Kind, Plan, Revision, Timestamp, View, Waiting, derived_id, service, task};

/// An instance may take so long to come, whatever is said: sooner none does.
const SHORTEST: Duration = Duration::from_secs(10);
/// Most instances that one commit has end, or stay.
const MAX_ENDED: usize = 40;
/// Most tasks that one commit gives up.
const MAX_GIVEN_UP: usize = 40;

/// What to do about a capacity provider.
pub fn plan(view: &View, key: &Key, now: Timestamp) -> Plan {
    let Some(object) = view.get(key) else { return Plan::default() };
    let Some(CapacityProvider { spec: Some(spec), status }) = object.as_capacity_provider() else {
        return Plan::default();
    };
    let Some(own) = spec.pool.as_ref() else { return Plan::default() };
    let pool = Pool {
        view,
        key,
        now,
        object,
        spec,
        own,
        scaling: capacity::scaling(spec),
        status: status.clone().unwrap_or_default(),
        beside: Vec::new(),
        plan: Plan::default(),
    };
    pool.run()
}

/// A provider's pool.
struct Pool<'a> {
    view: &'a View,
    key: &'a Key,
    now: Timestamp,
    object: &'a Arc<Object>,
    spec: &'a CapacityProviderSpec,
    own: &'a InstancePool,
    scaling: ManagedScaling,
    status: CapacityProviderStatus,
    /// Goes with the list: that instances which are to be ended are still as they were looked at, so that nothing has been placed on them
    /// meanwhile, and what instances are told that stay after all.
    beside: Vec<Change>,
    plan: Plan,
}

impl Pool<'_> {
    fn run(mut self) -> Plan {
        let before = self.status.clone();
        self.follow();
        if self.object.is_deleting() {
            self.end_all();
        } else {
            let template = self.template();
            self.refresh(&template);
            self.size(&template);
        }
        self.forget_strays();
        self.tell_who_stays();
        if self.object.is_deleting() && self.status.instances.is_empty() {
            let expect = Revision(self.object.meta().revision);
            self.plan.push(Change::Remove { key: self.key.clone(), expect });
        } else if self.status != before {
            let mut object = Object::clone(self.object);
            let provider = CapacityProvider { spec: Some(self.spec.clone()), status: Some(self.status.clone()) };
            object.kind = Some(object::Kind::CapacityProvider(provider));
            let put = Change::PutStatus { object, expect: Revision(self.object.meta().revision) };
            // First: an instance that is to drain is known to go.
            self.plan.groups.insert(0, std::iter::once(put).chain(self.beside).collect());
        }
        self.plan
    }

    fn about(&self) -> String {
        format!("(capacity-provider {})", self.key.name)
    }

    fn tell(&mut self, reason: &'static str, message: &str, severity: Severity) {
        let message = format!("{} {message}", self.about());
        self.plan.events.push(Event { about: self.object.reference(), reason, message, severity });
    }

    fn wait(&mut self, reason: &'static str, message: &str) {
        let message = format!("{} {message}", self.about());
        self.plan.waiting.push(Waiting { about: self.key.clone(), reason, message, quiet: false });
    }

    fn instance(&self, name: &str) -> Option<&Arc<Object>> {
        self.view.get(&Key::new(Kind::ContainerInstance, &self.key.cluster, name))
    }

    fn status_of(&self, name: &str) -> Option<&ContainerInstanceStatus> {
        self.instance(name)?.as_container_instance()?.status.as_ref()
    }

    fn is_connected(&self, name: &str) -> bool {
        self.status_of(name).is_some_and(|status| status.agent_connected)
    }

    /// Tasks on an instance that keep it: those of DAEMON services do not.
    fn tasks(&self, name: &str) -> usize {
        let cluster = &self.key.cluster;
        let is_daemon = |service: &str| {
            let found = self.view.get(&Key::new(Kind::Service, cluster, service));
            found.and_then(|found| found.as_service()?.spec.as_ref()).is_some_and(service::is_daemon)
        };
        let tasks = self.view.on_instance(cluster, name).filter_map(|object| task::of(object));
        tasks.filter(|found| found.spec.service.is_empty() || !is_daemon(&found.spec.service)).count()
    }

    /// Has each instance of the list go on to where it is by now.
    fn follow(&mut self) {
        let warmup = Duration::from_secs(u64::from(self.scaling.instance_warmup_period().unsigned_abs())).max(SHORTEST);
        let (mut arrived, mut failed, mut lost) = (Vec::new(), Vec::new(), Vec::new());
        for place in 0..self.status.instances.len() {
            if self.beside.len() >= MAX_ENDED {
                break;
            }
            let instance = self.status.instances[place].clone();
            let name = instance.name.as_str();
            let is_lost = self.status_of(name).is_none_or(|status| status.lost);
            let next = match instance.state() {
                State::Pending if self.is_connected(name) => {
                    arrived.push(instance.clone());
                    Some((State::InService, String::new()))
                }
                State::Pending => {
                    let due = instance.launched_at.as_ref().map_or(self.now, Timestamp::from) + warmup;
                    if due > self.now {
                        self.plan.wake(due);
                        None
                    } else {
                        failed.push(instance.clone());
                        self.check(name);
                        let why = format!("its agent was not connected within {} s", warmup.as_secs());
                        Some((State::Terminating, why))
                    }
                }
                State::InService if is_lost => {
                    lost.push(name.to_owned());
                    Some((State::Terminating, "it is lost".to_owned()))
                }
                State::Draining if is_lost || !is_enabled(self.draining()) => {
                    Some((State::Terminating, instance.reason.clone()))
                }
                // Those of DAEMON services leave it, too. Nothing is placed on it any more.
                State::Draining if self.is_told(name) && self.is_empty(name) => {
                    self.check(name);
                    Some((State::Terminating, instance.reason.clone()))
                }
                _ => None,
            };
            if let Some((state, reason)) = next {
                let entry = &mut self.status.instances[place];
                entry.set_state(state);
                entry.reason = reason;
            }
        }
        self.arrived(&arrived);
        self.failed(&failed, warmup);
        if !lost.is_empty() {
            let message = format!("replaces {}: lost", names(lost.iter().map(String::as_str)));
            self.tell("INSTANCE_LOST", &message, Severity::Warn);
        }
        self.adopt();
        self.drain();
        // What is to go and has nobody who says that it is there is gone.
        let going = self.status.instances.iter().filter(|instance| instance.state() == State::Terminating);
        let gone = going.filter(|instance| !self.is_connected(&instance.name)).map(|instance| instance.name.clone());
        for name in gone.collect::<Vec<String>>() {
            if !self.is_empty(&name) {
                self.give_up(&name);
                continue;
            }
            if let Some(object) = self.instance(&name) {
                let (key, expect) = (Key::of(object), Revision(object.meta().revision));
                self.plan.push(Change::Remove { key, expect });
            }
            self.status.instances.retain(|instance| instance.name != name);
        }
    }

    /// Tasks of an instance that no service moves, when it has no others.
    fn alone(&self, name: &str) -> Vec<String> {
        let tasks = self.view.on_instance(&self.key.cluster, name).filter_map(|object| task::of(object));
        let live: Vec<task::View<'_>> = tasks.filter(task::View::is_live).collect();
        if live.iter().any(|found| !found.spec.service.is_empty()) {
            return Vec::new();
        }
        live.iter().filter(|found| found.is_wanted()).map(|found| found.object.name().to_owned()).collect()
    }

    /// Says of an instance that goes which task keeps it.
    fn tell_who_stays(&mut self) {
        let leaving = self.status.instances.iter().filter(|instance| instance.state() == State::Draining);
        let waits = leaving.map(|instance| (instance.name.clone(), self.alone(&instance.name)));
        let Some((name, tasks)) = waits.into_iter().find(|(_, tasks)| !tasks.is_empty()) else { return };
        let what = match tasks.len() {
            1 => "a task there belongs to no service, and runs on".to_owned(),
            count => format!("{count} tasks there belong to no service, and run on"),
        };
        let message = format!("waits for {name} to be empty: {what}; `steady stop task/{}` ends it", tasks[0]);
        self.wait("INSTANCE_DRAINS", &message);
    }

    /// It is to end: only if nothing of it has changed.
    fn check(&mut self, name: &str) {
        let key = Key::new(Kind::ContainerInstance, &self.key.cluster, name);
        let expect = self.view.get(&key).map_or(Revision(0), |object| Revision(object.meta().revision));
        self.beside.push(Change::Check { key, expect });
    }

    fn is_told(&self, name: &str) -> bool {
        let spec = self.instance(name).and_then(|object| object.as_container_instance()?.spec.as_ref());
        spec.is_some_and(|spec| spec.status() == InstanceState::Draining)
    }

    fn is_empty(&self, name: &str) -> bool {
        self.view.on_instance(&self.key.cluster, name).next().is_none()
    }

    /// Tasks of an instance that was ended are over.
    fn give_up(&mut self, name: &str) {
        let reason = "Host was ended by its capacity provider";
        let tasks = self.view.on_instance(&self.key.cluster, name).filter_map(|object| task::of(object));
        let over = tasks.map(|found| {
            let object = found.given_up(StopCode::TerminationNotice, reason, self.now);
            Change::PutStatus { object, expect: found.revision() }
        });
        let changes: Vec<Change> = over.collect();
        self.plan.groups.extend(changes.chunks(MAX_GIVEN_UP).map(<[Change]>::to_vec));
    }

    /// What was given up and came all the same goes in order: it may have tasks by now.
    fn adopt(&mut self) {
        let late: Vec<String> =
            self.strays().filter(|o| self.is_connected(o.name())).map(|o| o.name().to_owned()).collect();
        for name in late {
            self.status.instances.push(PoolInstance {
                name,
                state: State::Draining.into(),
                reason: "it came when it was no longer waited for".to_owned(),
                ..PoolInstance::default()
            });
        }
    }

    /// Instances that were of the pool once, by their names, and are not on the list.
    fn strays(&self) -> impl Iterator<Item = &Arc<Object>> {
        let prefix = format!("{}-", self.key.name);
        let known = |name: &str| self.status.instances.iter().any(|instance| instance.name == name);
        let all = self.view.in_cluster(Kind::ContainerInstance, &self.key.cluster);
        all.filter(move |object| {
            let spec = object.as_container_instance().and_then(|instance| instance.spec.as_ref());
            let id = object.name().strip_prefix(&prefix).unwrap_or_default();
            let is_made = id.len() == 8 && id.bytes().all(|b| b.is_ascii_hexdigit());
            is_made && spec.is_some_and(|spec| spec.capacity_provider == *self.key.name) && !known(object.name())
        })
    }

    fn draining(&self) -> steady_core::v1::managed::Value {
        self.spec
            .auto_scaling_group_provider
            .as_ref()
            .map_or(<_>::default(), steady_core::v1::AutoScalingGroupProvider::managed_draining)
    }

    /// Instances that go take no more tasks, and services' tasks leave them.
    fn drain(&mut self) {
        for instance in
            self.status.instances.iter().filter(|i| matches!(i.state(), State::Draining | State::Terminating))
        {
            let Some(object) = self.instance(&instance.name).filter(|_| !self.is_told(&instance.name)) else {
                continue;
            };
            self.plan.groups.push(vec![told(object, InstanceState::Draining)]);
        }
    }

    fn count(&self, state: State) -> usize {
        self.status.instances.iter().filter(|instance| instance.state() == state).count()
    }

    /// Has an instance go.
    fn leave(&mut self, place: usize, why: &str) {
        let instance = self.status.instances[place].clone();
        if instance.state() == State::Pending {
            if self.beside.len() >= MAX_ENDED {
                // It goes with the next commit.
                return;
            }
            self.check(&instance.name);
        }
        let instance = &mut self.status.instances[place];
        let state = if instance.state() == State::Pending { State::Terminating } else { State::Draining };
        instance.set_state(state);
        why.clone_into(&mut instance.reason);
    }

    /// All of them go.
    fn end_all(&mut self) {
        for place in 0..self.status.instances.len() {
            if matches!(self.status.instances[place].state(), State::Pending | State::InService) {
                self.leave(place, "its capacity provider is deleted");
            }
        }
        self.drain();
    }

    /// What once was of the pool, and came back when it was forgotten: nobody wants it.
    fn forget_strays(&mut self) {
        let strays: Vec<Arc<Object>> = self.strays().cloned().collect();
        for object in strays {
            let planned =
                self.plan.changes().any(|c| matches!(c, Change::Remove { key, .. } if *key == Key::of(&object)));
            if !planned && self.is_empty(object.name()) && !self.is_connected(object.name()) {
                let expect = Revision(object.meta().revision);
                self.plan.push(Change::Remove { key: Key::of(&object), expect });
            }
        }
    }
}

/// Has an instance be ACTIVE, or DRAINING.
fn told(object: &Arc<Object>, state: InstanceState) -> Change {
    let (mut object, expect) = (Object::clone(object), Revision(object.meta().revision));
    if let Some(object::Kind::ContainerInstance(found)) = &mut object.kind {
        found.spec.get_or_insert_default().set_status(state);
    }
    Change::PutSpec { object, fields: &["status"], expect }
}

/// Some names, and how many more there are.
fn names<'a>(all: impl ExactSizeIterator<Item = &'a str>) -> String {
    let count = all.len();
    let first: Vec<&str> = all.take(5).collect();
    let more = if count > first.len() { format!(" and {} more", count - first.len()) } else { String::new() };
    let word = if count == 1 { "instance" } else { "instances" };
    format!("{word} {}{more}", first.join(", "))
}

/// Stands for a template: another one for any other.
pub(crate) fn digest(template: &InstanceTemplate) -> String {
    let (cpu, memory) = (template.cpu.to_string(), template.memory.to_string());
    let mut parts = vec![cpu.as_str(), &memory, &template.runtime, &template.version];
    parts.extend(template.attributes.iter().flat_map(|(name, value)| [name.as_str(), value]));
    derived_id(&parts)
}
