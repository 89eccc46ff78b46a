//! The judge: sees every revision of the store as it is committed, and says which invariant it breaks.
//!
//! It knows nothing of how Steady decides: it holds each write against what was true when it landed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use steady_agent::runtime::ContainerId;
use steady_apiserver::cache::decode;
use steady_apiserver::storage::{Change, Entry};
use steady_core::resources::Free;
use steady_core::v1::deployment_role::Value as Role;
use steady_core::v1::rollout_state::Value as Rollout;
use steady_core::v1::stop_code::Value as StopCode;
use steady_core::v1::target_state::Value as State;
use steady_core::v1::task_last_status::Value as Status;
use steady_core::v1::{Demand, InstanceResources, Object, TargetReport};
use steady_core::{Key, Kind, Revision, View, instance_lease, service, task, traffic};
use tokio::time::Instant;

use super::net::Origin;
use super::{monitor, pool};

/// How long most instances must have been silent before giving one up breaks S12: what is decided in the same moment
/// in which they fall silent cannot know.
const NOTICE: Duration = Duration::from_secs(3);

/// How long an instance is silent at least before it is given up: the product says 60 s, of which each clock that is
/// wrong meanwhile may take 10 s.
const PATIENCE: Duration = Duration::from_secs(35);

/// An agent waits for load balancers at least so long, unless they are done with a task: its delay, and some more.
const DRAINED: Duration = Duration::from_secs(30);
/// Nobody thinks that the time of a task's requests is over before this: each clock may be wrong by 10 s.
const OVER: Duration = Duration::from_secs(20);
/// A load balancer that is there for so long is known to everybody.
const SETTLED: Duration = Duration::from_secs(30);

/// What the judge knows.
#[derive(Default)]
pub(crate) struct Judge {
    /// Every object that decodes.
    pub(crate) view: View,
    /// Tasks that were to stop at some time, or are gone.
    told: BTreeMap<String, Instant>,
    /// Since when load balancers are there, without a break.
    balancers: BTreeMap<String, Instant>,
    /// Tasks of which a container ended or did not start.
    failed: BTreeSet<String>,
    /// Where each container was started.
    started: BTreeMap<ContainerId, String>,
    mass_silence_since: Option<Instant>,
    /// Services of tasks whose end some API server was never told: it counts them until its cache is compared.
    misled: BTreeSet<String>,
    /// Instances that are not heard of.
    silent_since: BTreeMap<String, Instant>,
    /// The first broken invariant.
    pub(crate) broken: Option<String>,
}

pub(crate) type Verdict = Result<(), String>;

impl Judge {
    /// One revision, whole.
    pub(crate) fn revision(&mut self, revision: Revision, changes: &[Change], origin: Option<&Origin>) {
        let before = self.view.clone();
        let mut keys = Vec::new();
        for change in changes {
            match change {
                Change::Put(entry) => {
                    let Ok(decoded) = decode(entry) else { continue };
                    self.view.put(Arc::new(decoded.object));
                    keys.push(decoded.key);
                }
                Change::Deleted { key, .. } => {
                    let Ok(key) = Key::parse_path(key) else { continue };
                    self.view.remove(&key);
                    keys.push(key);
                }
            }
        }
        self.view.set_revision(revision);
        for key in keys.iter().filter(|key| key.kind == Kind::Task) {
            let now = self.view.get(key).and_then(|object| task::of(object));
            if now.is_none_or(|t| !t.is_wanted()) {
                self.told.entry(key.name.to_string()).or_insert_with(Instant::now);
            }
        }
        let silence = self.mass_silence();
        let since = self.mass_silence_since.unwrap_or_else(Instant::now);
        self.mass_silence_since = silence.then_some(since);
        self.notice_silence();
        let there = traffic::load_balancers(&self.view, "default");
        self.balancers.retain(|name, _| there.contains(name));
        for name in there {
            self.balancers.entry(name).or_insert_with(Instant::now);
        }
        let (silent_since, misled, balancers) = (&self.silent_since, &self.misled, &self.balancers);
        let (after, keys, told) = (&self.view, keys.as_slice(), &self.told);
        let case = Case { before: &before, after, keys, origin, silent_since, misled, balancers, told };
        let silent = silence && since.elapsed() > NOTICE;
        if let Err(reason) = case.judge(silent) {
            let who = origin.map(|o| format!("{} ({})", o.name, o.call)).unwrap_or_default();
            self.fail(format!("{reason}; revision {revision}, written by {who}"));
        }
    }

    /// A change of the store was never told to an API server.
    pub(crate) fn untold(&mut self, change: &Change) {
        let (Change::Put(Entry { key, .. }) | Change::Deleted { key, .. }) = change;
        let task = Key::parse_path(key).ok().and_then(|key| self.view.get(&key).cloned());
        if let Some(task) = task.as_ref().and_then(|object| task::of(object)) {
            self.misled.insert(task.spec.service.clone());
        }
    }

    /// Tasks that these changes say ended by themselves, and where.
    pub(crate) fn ended_of(&self, changes: &[Change]) -> Vec<(String, String)> {
        let ended = |change: &Change| {
            let Change::Put(entry) = change else { return None };
            let found = task::of(self.view.get(&Key::parse_path(&entry.key).ok()?)?)?;
            let by_itself =
                matches!(found.status.stop_code(), StopCode::EssentialContainerExited | StopCode::TaskFailedToStart);
            let ended = found.status.last_status() == Status::Stopped && by_itself;
            ended.then(|| (found.spec.container_instance.clone(), found.object.name().to_owned()))
        };
        changes.iter().filter_map(ended).collect()
    }

    /// Notes a broken invariant; the first one counts.
    pub(crate) fn fail(&mut self, reason: String) {
        self.broken.get_or_insert(reason);
    }

    /// A container was started on an instance (S4).
    pub(crate) fn started(&mut self, instance: &str, id: &ContainerId) {
        if let Some(before) = self.started.insert(id.clone(), instance.to_owned()) {
            self.fail(format!("S4: container {id} was started on {before}, and again on {instance}"));
        }
    }

    /// A container of a task ended or did not start.
    pub(crate) fn failed(&mut self, task: &str) {
        self.failed.insert(task.to_owned());
    }

    /// An agent stops a container (S8).
    pub(crate) fn stopping(&mut self, instance: &str, id: &ContainerId) {
        let key = Key::new(Kind::Task, "default", &id.task);
        let known = self.view.get(&key).is_some();
        let told = self.told.get(&id.task).map(Instant::elapsed);
        if known && told.is_none() && !self.failed.contains(&id.task) {
            self.fail(format!("S8: the agent of {instance} stops container {id}, and nobody said so"));
        }
        let targets = self.view.get(&key).and_then(|object| task::of(object)).map_or(0, |t| t.status.targets.len());
        if targets > 0 && told.is_some_and(|told| told < DRAINED) && !self.failed.contains(&id.task) {
            self.fail(format!("S18: the agent of {instance} stops container {id}, which is a target still"));
        }
    }

    fn notice_silence(&mut self) {
        for object in self.view.of_kind(Kind::ContainerInstance) {
            if is_silent(&self.view, object) {
                self.silent_since.entry(object.name().to_owned()).or_insert_with(Instant::now);
            } else {
                self.silent_since.remove(object.name());
            }
        }
    }

    /// Most instances are silent, or all of them; those that were given up before do not count.
    fn mass_silence(&self) -> bool {
        let (mut all, mut silent) = (0, 0);
        for object in self.view.of_kind(Kind::ContainerInstance) {
            if object.as_container_instance().and_then(|i| i.status.as_ref()).is_some_and(|s| s.lost) {
                continue;
            }
            all += 1;
            silent += usize::from(is_silent(&self.view, object));
        }
        all > 0 && ((all >= 3 && silent * 100 >= all * 55) || silent == all)
    }
}

pub(crate) fn is_silent(view: &View, instance: &Object) -> bool {
    view.get(&Key::new(Kind::Lease, "", &instance_lease(instance.cluster(), instance.name()))).is_none()
}

/// One revision, and what was before it.
struct Case<'a> {
    before: &'a View,
    after: &'a View,
    keys: &'a [Key],
    origin: Option<&'a Origin>,
    silent_since: &'a BTreeMap<String, Instant>,
    misled: &'a BTreeSet<String>,
    balancers: &'a BTreeMap<String, Instant>,
    told: &'a BTreeMap<String, Instant>,
}

impl Case<'_> {
    fn judge(&self, mass_silence: bool) -> Verdict {
        self.fence()?;
        self.statuses()?;
        self.specs()?;
        self.instances()?;
        self.services()?;
        self.primaries()?;
        self.preemptions()?;
        self.targets()?;
        for key in self.keys.iter().filter(|key| key.kind == Kind::CapacityProvider) {
            pool::judge(self.before, self.after, key)?;
        }
        self.given_up(mass_silence)
    }

    /// The controller that wrote this, by the lease of its fence.
    fn controller(&self) -> Option<&str> {
        self.origin?.fence.as_ref()?.lease.strip_prefix("controller.")
    }

    /// S6: no write by a controller whose lease is not current.
    fn fence(&self) -> Verdict {
        let Some(origin) = self.origin.filter(|o| o.call == "Commit" && !matches!(o.name.as_str(), "user" | "rival"))
        else {
            return Ok(());
        };
        // Whoever makes instances tells what it cannot make, and writes nothing else.
        if origin.name.starts_with("pool-") && self.keys.iter().all(|key| key.kind == Kind::Event) {
            return Ok(());
        }
        let Some(fence) = &origin.fence else { return Err("S6: a commit without a fence".into()) };
        let lease = self.before.get(&Key::new(Kind::Lease, "", &fence.lease));
        let epoch = lease.and_then(|l| l.as_lease()?.spec.as_ref()).map(|s| s.epoch);
        if epoch == Some(fence.epoch) {
            return Ok(());
        }
        Err(format!("S6: {} wrote at epoch {}, and the lease is at {epoch:?}", fence.lease, fence.epoch))
    }

    fn tasks(&self) -> impl Iterator<Item = (Option<task::View<'_>>, Option<task::View<'_>>)> {
        let tasks = self.keys.iter().filter(|key| key.kind == Kind::Task);
        tasks.map(|key| (of(self.before.get(key)), of(self.after.get(key))))
    }

    /// A task's status only moves up, its placement is written once, and it is never wanted again.
    fn statuses(&self) -> Verdict {
        for (before, after) in self.tasks() {
            let (Some(before), Some(after)) = (before, after) else { continue };
            let name = before.object.name();
            if before.object.meta().uid != after.object.meta().uid {
                return Err(format!("task {name} became another one"));
            }
            if before.status.last_status() == Status::Stopped && before.status != after.status {
                return Err(format!("task {name} is STOPPED, and was written again"));
            }
            if after.status.last_status() < before.status.last_status() {
                let (from, to) = (before.status.last_status(), after.status.last_status());
                return Err(format!("task {name} went back from {} to {}", from.as_str_name(), to.as_str_name()));
            }
            if !before.is_wanted() && after.is_wanted() {
                return Err(format!("task {name} was to stop, and is to run again"));
            }
            let (target, place) = (&after.spec.target_instance, &after.spec.container_instance);
            if !target.is_empty() && !place.is_empty() && target != place {
                return Err(format!("task {name} was to be on {target}, and was placed on {place}"));
            }
            let (from, to) = (&before.spec.container_instance, &after.spec.container_instance);
            if !from.is_empty() && from != to {
                return Err(format!("task {name} was moved from {from} to {to}"));
            }
        }
        Ok(())
    }

    /// S17: a task is only stopped to make room if it is marked for that, and something of a higher priority waits.
    fn preemptions(&self) -> Verdict {
        for (before, after) in self.tasks() {
            let (Some(before), Some(after)) = (before, after) else { continue };
            if !before.is_wanted() || after.is_wanted() || after.status.stop_code() != StopCode::SpotInterruption {
                continue;
            }
            let name = before.object.name();
            if !before.spec.preemptible {
                return Err(format!("S17: task {name} was stopped to make room, and is not pre-emptible"));
            }
            let waiting = self.before.unplaced(before.object.cluster()).filter_map(|t| task::of(t));
            if waiting.map(|t| t.spec.priority).max().is_none_or(|highest| highest <= before.spec.priority) {
                return Err(format!("S17: task {name} was stopped to make room for nothing of a higher priority"));
            }
        }
        Ok(())
    }

    /// S19: a task that runs is no target any more when all load balancers that knew it have said that nothing of it goes on, or its
    /// time is over.
    fn targets(&self) -> Verdict {
        for (before, after) in self.tasks() {
            let (Some(before), Some(after)) = (before, after) else { continue };
            let gone = !before.status.targets.is_empty() && after.status.targets.is_empty();
            if !gone || !after.is_live() {
                continue;
            }
            let name = after.object.name();
            if after.is_wanted() {
                return Err(format!("S19: task {name} is wanted, and is no target any more"));
            }
            for target in &before.status.targets {
                let of_lb = |name: &String| self.balancers.get(name).is_some_and(|since| since.elapsed() > SETTLED);
                let open = |report: &&TargetReport| report.state() != State::Draining && of_lb(&report.load_balancer);
                if let Some(open) = target.reports.iter().find(open)
                    && self.told.get(name).is_none_or(|told| told.elapsed() < OVER)
                {
                    return Err(format!(
                        "S19: task {name} is no target any more, and {} has its requests",
                        open.load_balancer
                    ));
                }
            }
        }
        Ok(())
    }

    /// S5: a service's spec is as its user wrote it.
    fn specs(&self) -> Verdict {
        for key in self.keys.iter().filter(|key| key.kind == Kind::Service) {
            let spec =
                |view: &View| view.get(key).and_then(|o| Some((o.meta().uid.clone(), o.as_service()?.spec.clone())));
            let (Some(before), Some(after)) = (spec(self.before), spec(self.after)) else { continue };
            if self.controller() == Some("autoscaler") {
                monitor::judge(self.before, self.after, key)?;
            } else if before != after && self.origin.is_none_or(|o| o.call != "Apply") {
                return Err(format!("S5: somebody who is no user changed the spec of {key}"));
            }
        }
        Ok(())
    }

    /// S1 and S10: no port twice, and no more than an instance has.
    fn instances(&self) -> Verdict {
        let bound = self.tasks().filter_map(|(before, after)| {
            let after = after.filter(|t| !t.spec.container_instance.is_empty())?;
            before.is_none_or(|t| t.spec.container_instance.is_empty()).then_some(after.spec.container_instance.clone())
        });
        for name in bound.collect::<BTreeSet<String>>() {
            let Some(instance) = self.after.get(&Key::new(Kind::ContainerInstance, "default", &name)) else {
                return Err(format!("a task was bound to {name}, which is not there"));
            };
            let resources =
                instance.as_container_instance().and_then(|i| i.spec.as_ref()?.registered_resources.clone());
            let mut free = Free::of(&resources.unwrap_or(InstanceResources::default()));
            for on in self.after.on_instance("default", &name).filter_map(|t| task::of(t)) {
                let demand = on.spec.demand.clone().unwrap_or(Demand::default());
                if let Some(port) = free.port_conflict(&demand) {
                    return Err(format!("S1: host port {port} of {name} has two tasks"));
                }
                free.take(&demand);
            }
            if free.cpu < 0 || free.memory < 0 {
                return Err(format!("S10: {name} is over-committed: {} cpu, {} MiB left", free.cpu, free.memory));
            }
        }
        Ok(())
    }

    /// S2 and S3: a start keeps the ceiling, a stop keeps the floor.
    fn services(&self) -> Verdict {
        if self.controller() != Some("service") {
            return Ok(());
        }
        let mut touched = BTreeMap::new();
        for (before, after) in self.tasks() {
            let Some(of) = after.or(before) else { continue };
            let deployment = self.before.get(&Key::new(Kind::Deployment, "default", &of.spec.deployment));
            let status = deployment.and_then(|d| d.as_deployment()?.status.as_ref());
            if before.is_none() && status.is_some_and(|status| status.rollout_state() == Rollout::Failed) {
                return Err(format!("S16: a task of {} was started after it was given up", of.spec.deployment));
            }
            let (created, stopped) = touched.entry(of.spec.service.clone()).or_insert((false, false));
            *created |= before.is_none();
            *stopped |= before.is_some_and(|t| t.is_wanted()) && after.is_none_or(|t| !t.is_wanted());
        }
        for key in self.keys.iter().filter(|key| key.kind == Kind::Service && self.after.get(key).is_none()) {
            let Some(gone) = self.before.get(key) else { continue };
            let left = self.after.of_service(Kind::Task, "default", &key.name).filter_map(|t| task::of(t));
            let left = left.filter(|t| t.is_live() && t.is_owned_by(&gone.meta().uid)).count();
            if left > 0 {
                return Err(format!("L2: service {} is gone, and {left} of its tasks are not", key.name));
            }
        }
        for (name, (created, stopped)) in touched {
            let Some(object) = self.after.get(&Key::new(Kind::Service, "default", &name)) else { continue };
            let both = object.as_service().and_then(|s| Some((s.spec.as_ref()?, s.status.as_ref()?)));
            let Some((spec, status)) = both.filter(|_| !object.is_deleting()) else { continue };
            let bounds = service::bounds(spec, service::desired(spec, status));
            let count = |view: &View, which: &dyn Fn(&task::View<'_>) -> bool| {
                let tasks = view.of_service(Kind::Task, "default", &name).filter_map(|t| task::of(t));
                tasks.filter(|t| t.is_owned_by(&object.meta().uid) && which(t)).count() as i32
            };
            let live = count(self.after, &|t| t.is_live());
            if service::is_daemon(spec) {
                let mut places = BTreeSet::new();
                let tasks = self.after.of_service(Kind::Task, "default", &name).filter_map(|t| task::of(t));
                for task in tasks.filter(|t| t.is_owned_by(&object.meta().uid) && t.is_live()) {
                    if created && !places.insert(task.spec.target_instance.clone()) {
                        let place = &task.spec.target_instance;
                        return Err(format!("S2: DAEMON service {name} has two tasks for {place}"));
                    }
                }
            } else if created && live > bounds.ceiling {
                return Err(format!(
                    "S2: service {name} has {live} live tasks after a start, and its ceiling is {}",
                    bounds.ceiling
                ));
            }
            let healthy = |view| count(view, &|t| t.is_healthy());
            let (was, is) = (healthy(self.before), healthy(self.after));
            // What nobody can know cannot be kept: an API server counts a task whose end the store's watch has lost.
            if stopped && is < was && is < bounds.floor && !self.misled.contains(&name) {
                return Err(format!(
                    "S3: service {name} went from {was} to {is} healthy tasks by a stop, and its floor is {}",
                    bounds.floor
                ));
            }
        }
        Ok(())
    }

    /// S16: one primary deployment a service.
    fn primaries(&self) -> Verdict {
        for key in self.keys.iter().filter(|key| key.kind == Kind::Deployment) {
            let owner = |object: &Object| object.meta().owner.as_ref().map(|o| o.uid.clone());
            let Some(object) = self.after.get(key) else { continue };
            let service = object.as_deployment().and_then(|d| d.spec.as_ref()).map_or("", |s| &s.service);
            let primary = |o: &&Arc<Object>| {
                owner(o) == owner(object)
                    && o.as_deployment().and_then(|d| d.status.as_ref()).is_some_and(|s| s.role() == Role::Primary)
            };
            let count = self.after.of_service(Kind::Deployment, "default", service).filter(primary).count();
            if count > 1 {
                return Err(format!("S16: service {service} has {count} primary deployments"));
            }
        }
        Ok(())
    }

    /// S12: no task is given up for lost while most instances are silent, or before its instance was silent for long.
    fn given_up(&self, mass_silence: bool) -> Verdict {
        if self.controller() != Some("instance") {
            return Ok(());
        }
        for (before, after) in self.tasks() {
            let (Some(before), Some(after)) = (before, after) else { continue };
            if !before.is_live() || after.is_live() || after.status.stop_code() != StopCode::InfrastructureHealth {
                continue;
            }
            let name = after.object.name();
            if mass_silence {
                return Err(format!("S12: task {name} was given up while most instances are silent"));
            }
            let silent = self.silent_since.get(&after.spec.container_instance).map(Instant::elapsed);
            if silent.is_none_or(|silent| silent < PATIENCE) {
                return Err(format!("S12: task {name} was given up after a silence of {silent:?}"));
            }
        }
        Ok(())
    }
}

fn of(object: Option<&Arc<Object>>) -> Option<task::View<'_>> {
    object.and_then(|object| task::of(object))
}
