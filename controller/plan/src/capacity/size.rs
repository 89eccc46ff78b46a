//! How many instances there are to be, and which come or go for that.

use std::sync::Arc;
use std::time::Duration;

use steady_core::capacity::is_enabled;
use steady_core::placement::ZONE;
use steady_core::v1::instance_state::Value as InstanceState;
use steady_core::v1::pool_instance_state::Value as State;
use steady_core::v1::severity::Value as Severity;
use steady_core::v1::{
    Attribute, ContainerInstance, ContainerInstanceSpec, ContainerInstanceStatus, InstanceResources, InstanceTemplate,
    Object, PoolInstance, ScalingActivity,
};
use steady_core::{Change, Key, Kind, Timestamp, derived_id};

use super::{MAX_ENDED, Pool, digest, told};
use crate::scheduler::{Sample, needed, room_for};

/// Why an instance goes that is not to be taken back.
const USELESS: &str = "makes room for one that waiting tasks can be on";
/// Activities that are remembered.
const ACTIVITIES: usize = 20;
/// At most so much of a pool goes in a minute, percent.
const LEAVING: usize = 50;
const MINUTE: Duration = Duration::from_secs(60);
/// Instances that may fail one after the other before the next one waits, how long that does at first, and at most.
const PATIENT: u32 = 2;
const BACKOFF: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(900);

impl Pool<'_> {
    /// Whether an instance takes tasks: it is ACTIVE, and its agent is not silent for long.
    fn serves(&mut self, name: &str) -> bool {
        let Some(instance) = self.instance(name).and_then(|object| object.as_container_instance()) else {
            return false;
        };
        let is_active = instance.spec.as_ref().is_some_and(|spec| spec.status() == InstanceState::Active);
        let status = instance.status.clone().unwrap_or_default();
        let silent = status.disconnected_at.as_ref().map(Timestamp::from).filter(|_| !status.agent_connected);
        let due = silent.map(|at| at + MINUTE).filter(|due| *due > self.now);
        if let Some(due) = due {
            self.plan.wake(due);
        }
        is_active && (status.agent_connected || due.is_some())
    }

    /// Instances of the provider that others started, and that take tasks.
    fn others(&self) -> Vec<String> {
        let own = |name: &str| self.status.instances.iter().any(|instance| instance.name == name);
        let all = self.view.in_cluster(Kind::ContainerInstance, &self.key.cluster);
        let of_provider = all.filter(|object| {
            let Some(instance) = object.as_container_instance() else { return false };
            let is_active = |spec: &ContainerInstanceSpec| {
                spec.capacity_provider == *self.key.name && spec.status() == InstanceState::Active
            };
            let connected = instance.status.as_ref().is_some_and(|status| status.agent_connected);
            connected && instance.spec.as_ref().is_some_and(is_active) && !own(object.name())
        });
        of_provider.map(|object| object.name().to_owned()).collect()
    }

    /// An empty instance of the template in each zone, as the scheduler would see it.
    fn samples(&self, template: &InstanceTemplate) -> Vec<Sample> {
        let attribute = |name: &str, value: &str| Attribute { name: name.to_owned(), value: value.to_owned() };
        // What an agent says by itself is what those that are there say, without what their template gave them.
        let known = self.status.instances.iter().find_map(|instance| {
            let spec = self.instance(&instance.name)?.as_container_instance()?.spec.as_ref()?;
            let given = instance.template.as_ref().map(|template| &template.attributes);
            let own =
                spec.attributes.iter().filter(|a| a.name != ZONE && given.is_none_or(|g| !g.contains_key(&a.name)));
            Some(own.cloned().collect::<Vec<Attribute>>())
        });
        let mut own = known.unwrap_or_else(|| vec![attribute("ecs.os-type", "linux")]);
        own.retain(|known| !template.attributes.contains_key(&known.name));
        own.extend(template.attributes.iter().map(|(name, value)| attribute(name, value)));
        let zones = if self.own.availability_zones.is_empty() {
            vec![String::new()]
        } else {
            self.own.availability_zones.clone()
        };
        let sample = |zone: String| {
            let mut attributes = own.clone();
            if !zone.is_empty() {
                attributes.push(attribute(ZONE, &zone));
            }
            let spec = ContainerInstanceSpec {
                attributes,
                registered_resources: Some(InstanceResources {
                    cpu: template.cpu,
                    memory: template.memory,
                    ..InstanceResources::default()
                }),
                capacity_provider: self.key.name.to_string(),
                ..ContainerInstanceSpec::default()
            };
            let status = ContainerInstanceStatus { agent_connected: true, ..ContainerInstanceStatus::default() };
            let instance = ContainerInstance { spec: Some(spec), status: Some(status) };
            let object = Object::new(&self.key.cluster, &format!("{}-sample", self.key.name), instance);
            let count = self.in_zone(&zone);
            (zone, Arc::new(object), count)
        };
        zones.into_iter().map(sample).collect()
    }

    /// Instances of a zone that are there or on their way.
    fn in_zone(&self, zone: &str) -> usize {
        let there = self.status.instances.iter().filter(|i| matches!(i.state(), State::Pending | State::InService));
        there.filter(|instance| instance.availability_zone == zone).count()
    }

    /// Decides how many there are to be, and has some come or go.
    pub(super) fn size(&mut self, template: &InstanceTemplate) {
        let (min, max) = (self.own.min_size.max(0) as usize, self.own.max_size.max(0) as usize);
        let samples = self.samples(template);
        let others = self.others();
        let own: Vec<String> =
            self.status.instances.iter().filter(|i| i.state() == State::InService).map(|i| i.name.clone()).collect();
        let (serving, away): (Vec<String>, Vec<String>) = own.into_iter().partition(|name| self.serves(name));
        let in_service = serving.len() + others.len();
        let there: Vec<Arc<Object>> =
            serving.iter().chain(&others).filter_map(|name| self.instance(name).cloned()).collect();
        let need = needed(self.view, &self.key.cluster, &there, &samples, &self.key.name, max + 1);
        // What was on one that is silent, or that somebody drains, needs a place when it goes.
        let displaced = away.iter().filter(|name| self.tasks(name) > 0).count();
        let wanted = need.used + need.new.len() + displaced;
        (self.status.needed, self.status.in_service) = (wanted as i32, in_service as i32);
        // ECS: nothing needed of nothing is as it should be; something of nothing is twice too little.
        self.status.reservation = match (wanted, in_service) {
            (0, 0) => 100.0,
            (_, 0) => 200.0,
            (wanted, there) => wanted as f64 / there as f64 * 100.0,
        };
        if !need.misfits.is_empty() {
            let told = need
                .misfits
                .iter()
                .take(3)
                .map(|misfit| format!("{} tasks of {}: {}", misfit.count, misfit.group, misfit.why));
            let told: Vec<String> = told.collect();
            let message =
                format!("has no instance, and would have none, for {} (template of the pool)", told.join("; "));
            self.wait("TASKS_FIT_NO_INSTANCE", &message);
        }
        let managed = is_enabled(self.scaling.status());
        let target = f64::from(self.scaling.target_capacity.clamp(1, 100));
        let mut desired = if managed { (wanted as f64 * 100.0 / target - 1e-9).ceil() as usize } else { 0 };
        if managed && !need.new.is_empty() {
            // Those that are there are no good for what is new, however empty they are.
            desired = desired.max(in_service + need.new.len());
        }
        let mut why = format!("{wanted} instances needed, {in_service} there, to be {target} % full");
        let more = self.scaling.minimum_schedulable_tasks.max(0) as u64;
        if managed
            && more > 0
            && let Some((_, sample, _)) = samples.first()
        {
            let spare = room_for(self.view, &self.key.cluster, &self.key.name, sample, more);
            if spare > 0 {
                desired = desired.max(in_service + spare);
                why = format!("{why}; room for {more} more tasks of each definition needs {spare} more");
            } else {
                // What is there is just enough, or more.
                desired = desired.max(self.least_for_room(in_service, more, sample));
            }
        }
        let most = others.len() + max;
        let (wish, coming) = (desired, self.count(State::Pending));
        desired = desired.clamp((others.len() + min).min(most), most);
        let there = in_service + coming;
        if desired > there {
            // Those that are on their way are for some of them.
            let mut zones = need.new.clone();
            for instance in self.status.instances.iter().filter(|instance| instance.state() == State::Pending) {
                if let Some(place) = zones.iter().position(|zone| *zone == instance.availability_zone) {
                    zones.remove(place);
                }
            }
            self.grow(desired - there, there, template, &zones, &why);
        } else if wish > most {
            self.wait("AlreadyAtMaxCapacity", &format!("would have {wish} instances, and {max} are its most"));
        }
        // While others take their place, those that go are chosen there.
        let replaces = self.status.instances.iter().any(|i| {
            i.state() == State::InService && i.template.as_ref().is_none_or(|own| digest(own) != digest(template))
        });
        // Where it has its most, those that are good for nothing that waits make room for what is.
        let is_full = wish > most && self.count(State::Pending) + self.count(State::InService) >= max;
        let useless = if is_full { need.new.len().min(in_service.saturating_sub(need.used)) } else { 0 };
        let (by, reason) = match in_service.saturating_sub(desired) {
            0 => (useless, USELESS),
            fewer => (fewer, "fewer instances are enough"),
        };
        if by > 0 && coming == 0 && !replaces {
            self.shrink(by, in_service, &why, reason);
        } else {
            self.status.low_since = None;
        }
    }

    /// How many instances there have to stay so that there is room for so many more tasks: one fewer may be too few.
    fn least_for_room(&self, in_service: usize, more: u64, sample: &Arc<Object>) -> usize {
        let cluster = &self.key.cluster;
        let empty = self.status.instances.iter().find(|i| i.state() == State::InService && self.tasks(&i.name) == 0);
        let Some(empty) = empty else { return in_service };
        let mut without = self.view.clone();
        without.remove(&Key::new(Kind::ContainerInstance, cluster, &empty.name));
        let short = room_for(&without, cluster, &self.key.name, sample, more) > 0;
        if short { in_service } else { in_service.saturating_sub(1) }
    }

    fn grow(&mut self, by: usize, there: usize, template: &InstanceTemplate, zones: &[String], why: &str) {
        if let Some(until) = self.backs_off() {
            self.plan.wake(until);
            let failed = self.status.failed_launches;
            self.wait(
                "INSTANCES_FAIL",
                &format!("has {failed} instances that did not come; the next is tried at {until}"),
            );
            return;
        }
        let (least, most) =
            (self.scaling.minimum_scaling_step_size.max(1), self.scaling.maximum_scaling_step_size.max(1));
        let own = self.count(State::Pending) + self.count(State::InService);
        let room = (self.own.max_size.max(0) as usize).saturating_sub(own);
        let mut by = by.clamp(least as usize, (most as usize).max(least as usize)).min(room);
        if by == 0 {
            let (all, max) = (self.status.instances.len(), self.own.max_size);
            let message = format!(
                "needs more instances, and {max} are its most: {all} are there, with those that are silent, that somebody drains, or that go"
            );
            self.wait("AlreadyAtMaxCapacity", &message);
            return;
        }
        let to = there + by;
        // Those that were about to go stay; they are here already.
        let digest = digest(template);
        for place in self.places(State::Draining, &digest) {
            if by == 0 {
                break;
            }
            if self.beside.len() >= MAX_ENDED {
                // The rest of them is decided with the next commit.
                by = 0;
                break;
            }
            let name = self.status.instances[place].name.clone();
            if self.status.instances[place].reason == USELESS {
                continue;
            }
            let Some(object) = self.instance(&name).filter(|_| self.is_connected(&name)) else { continue };
            let change = told(object, InstanceState::Active);
            // One that has just been told to drain is told once.
            self.plan.groups.retain(|group| {
                !group.iter().any(|c| matches!(c, Change::PutSpec { object, .. } if object.name() == name))
            });
            // Together with the list: it is either of both, and never one of each.
            self.beside.push(change);
            self.status.instances[place].set_state(State::InService);
            self.status.instances[place].reason.clear();
            by -= 1;
        }
        let mut zones = zones.iter();
        for _ in 0..by {
            self.launch(template, zones.next().map(String::as_str));
        }
        self.done(there, to, why);
    }

    /// When the next instance is tried, after several that did not come.
    pub(super) fn backs_off(&self) -> Option<Timestamp> {
        let failed = self.status.failed_launches.unsigned_abs().checked_sub(PATIENT)?;
        let at = self.status.failed_at.as_ref().map(Timestamp::from).filter(|at| *at <= self.now)?;
        let until = at + (BACKOFF * 2u32.saturating_pow(failed.min(10))).min(LONGEST);
        (until > self.now).then_some(until)
    }

    /// Places in the list of instances in a state that are of a template.
    pub(super) fn places(&self, state: State, digest: &str) -> Vec<usize> {
        let of =
            |i: &PoolInstance| i.state() == state && i.template.as_ref().is_some_and(|t| self::digest(t) == digest);
        self.status.instances.iter().enumerate().filter(|(_, i)| of(i)).map(|(place, _)| place).collect()
    }

    /// Puts one more instance on the list, in a zone, or in that which has fewest.
    pub(super) fn launch(&mut self, template: &InstanceTemplate, zone: Option<&str>) {
        self.status.launched += 1;
        let number = self.status.launched.to_string();
        let uid = &self.object.meta().uid;
        let id = derived_id(&["instance", uid, &number]);
        let name = format!("{}-{}", self.key.name, &id[..8]);
        let zones = &self.own.availability_zones;
        let fewest = || zones.iter().min_by_key(|zone| self.in_zone(zone)).cloned().unwrap_or_default();
        let zone = zone.map_or_else(fewest, str::to_owned);
        self.status.instances.push(PoolInstance {
            name,
            availability_zone: zone,
            state: State::Pending.into(),
            template: Some(template.clone()),
            launched_at: Some(self.now.into()),
            reason: String::new(),
        });
    }

    /// Has some go, once fewer have been enough for long.
    fn shrink(&mut self, by: usize, in_service: usize, why: &str, reason: &str) {
        let since = self.status.low_since.as_ref().map(Timestamp::from);
        let Some(since) = since.filter(|since| *since <= self.now) else {
            self.status.low_since = Some(self.now.into());
            self.plan.wake(self.now + Duration::from_secs(u64::from(self.evaluation())));
            return;
        };
        let due = since + Duration::from_secs(u64::from(self.evaluation()));
        let shrunk = self.status.shrunk_at.as_ref().map(Timestamp::from).filter(|at| *at <= self.now);
        let due = shrunk.map_or(due, |at| due.max(at + MINUTE));
        if due > self.now {
            self.plan.wake(due);
            return;
        }
        let by = by.min((in_service * LEAVING / 100).max(1));
        let protects = self.spec.auto_scaling_group_provider.as_ref();
        let protects = is_enabled(
            protects.map_or(<_>::default(), steady_core::v1::AutoScalingGroupProvider::managed_termination_protection),
        );
        let mut candidates: Vec<(usize, usize, usize)> = Vec::new();
        for (place, instance) in self.status.instances.iter().enumerate() {
            let tasks = self.tasks(&instance.name);
            let is_there = instance.state() == State::InService && self.is_connected(&instance.name);
            if is_there && (tasks == 0 || !protects) {
                candidates.push((tasks, usize::MAX - self.in_zone(&instance.availability_zone), place));
            }
        }
        candidates.sort_unstable();
        let leaving: Vec<usize> = candidates.into_iter().take(by).map(|(.., place)| place).collect();
        if leaving.is_empty() {
            return;
        }
        let count = leaving.len();
        for place in leaving {
            self.leave(place, reason);
        }
        self.status.shrunk_at = Some(self.now.into());
        self.done(in_service, in_service - count, why);
        self.drain();
    }

    fn evaluation(&self) -> u32 {
        self.scaling.scale_in_evaluation_seconds.unsigned_abs()
    }

    /// Remembers and tells what was done.
    fn done(&mut self, from: usize, to: usize, why: &str) {
        let activity = ScalingActivity {
            start_time: Some(self.now.into()),
            description: format!("Setting the number of instances to {to}."),
            cause: "managed scaling".to_owned(),
            details: why.to_owned(),
            from: from as i32,
            to: to as i32,
        };
        self.status.activities.insert(0, activity);
        self.status.activities.truncate(ACTIVITIES);
        let reason = if to > from { "POOL_GROWS" } else { "POOL_SHRINKS" };
        self.tell(reason, &format!("goes from {from} to {to} instances: {why}"), Severity::Info);
    }
}
