//! Services: the only one that starts and stops a service's tasks.
//!
//! Each deployment is brought to its target count, within floor and ceiling over all of them: no start takes the
//! live tasks over the ceiling, no stop takes the healthy ones below the floor. What stopped is replaced; what stops
//! again and again is started less and less often.

mod balance;
mod choice;
mod counts;
mod failures;
mod throttle;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use steady_core::guard::{self, Guard};
use steady_core::v1::instance_state::Value as InstanceState;
use steady_core::v1::rollout_state::Value as Rollout;
use steady_core::v1::stop_code::Value as StopCode;
use steady_core::v1::{
    Object, ServiceSpec, ServiceStatus, Task, TaskDefinitionSpec, TaskSpec, TaskStatus, desired_status, severity,
    task_last_status,
};
use steady_core::{
    Change, Event, Key, Kind, Plan, Revision, Timestamp, View, Waiting, derived_id, resources, service, task,
};

use crate::daemon;
use crate::deployment::{Rolling, counts_from, is_tripped, of_service};
use counts::counts;

/// All that is known of one service.
struct Known<'a> {
    view: &'a View,
    object: &'a Object,
    spec: &'a ServiceSpec,
    status: &'a ServiceStatus,
    deployments: Vec<Rolling<'a>>,
    /// Of this very service; an older one of the same name is another.
    tasks: Vec<task::View<'a>>,
    /// How many it is to have.
    desired: i32,
    /// Tasks of older deployments are still there.
    replaces: bool,
    /// Instances of its tasks that are DRAINING.
    draining: BTreeSet<&'a str>,
    /// Where in `tasks` the one is that is to take a task's place, by that task's name.
    replacing: BTreeMap<&'a str, usize>,
    now: Timestamp,
}

impl<'a> Known<'a> {
    fn of(view: &'a View, key: &Key, now: Timestamp) -> Option<Self> {
        let object = view.get(key)?;
        let service = object.as_service()?;
        let uid = &object.meta().uid;
        let deployments = of_service(view, object);
        let tasks = view.of_service(Kind::Task, &key.cluster, &key.name).filter_map(|task| task::of(task));
        let tasks: Vec<task::View<'a>> = tasks.filter(|t| t.is_owned_by(uid)).collect();
        let newest = deployments.last().map_or("", |d| d.object.name());
        let replaces = tasks.iter().any(|t| t.is_live() && t.spec.deployment != newest);
        let wanted = tasks.iter().filter(|t| t.is_wanted());
        let instances: BTreeSet<&'a str> = wanted.map(|t| t.spec.container_instance.as_str()).collect();
        let drains = |name: &&str| {
            let instance = view.get(&Key::new(Kind::ContainerInstance, &key.cluster, name));
            let spec = instance.and_then(|i| i.as_container_instance()?.spec.as_ref());
            spec.is_some_and(|spec| spec.status() == InstanceState::Draining)
        };
        let draining = instances.into_iter().filter(drains).collect();
        let moves = tasks.iter().enumerate().filter(|(_, t)| t.is_wanted() && !t.spec.replaces.is_empty());
        let replacing = moves.map(|(place, t)| (t.spec.replaces.as_str(), place)).collect();
        let (spec, status) = (service.spec.as_ref()?, service.status.as_ref()?);
        let desired = daemon::desired(view, &key.cluster, spec);
        Some(Known { view, object, spec, status, deployments, tasks, desired, replaces, draining, replacing, now })
    }

    /// Tasks of a deployment.
    fn tasks_of(&self, deployment: &str) -> impl Iterator<Item = &task::View<'a>> {
        self.tasks.iter().filter(move |t| t.spec.deployment == deployment)
    }

    /// Its health checks fail, and are counted: its grace period is over.
    fn is_failing(&self, task: &task::View<'_>) -> bool {
        let grace = Duration::from_secs(u64::from(self.spec.health_check_grace_period_seconds().unsigned_abs()));
        task.is_unhealthy() && task.started_at().is_none_or(|at| self.now.since(at) >= grace)
    }

    fn is_daemon(&self) -> bool {
        service::is_daemon(self.spec)
    }

    fn is_protected(&self, task: &task::View<'_>) -> bool {
        task.is_protected(self.now)
    }

    /// It is to make way for another one somewhere else: its instance is DRAINING, or another one has taken its place.
    fn is_moving(&self, task: &task::View<'_>) -> bool {
        self.draining.contains(task.spec.container_instance.as_str()) || self.successor(task).is_some()
    }

    /// The task that has taken its place.
    fn successor(&self, task: &task::View<'_>) -> Option<&task::View<'a>> {
        let found = self.replacing.get(task.object.name()).map(|place| &self.tasks[*place]);
        found.filter(|t| self.is_sure(t))
    }

    /// It does not count for its deployment's target: it is to be replaced.
    fn is_going(&self, task: &task::View<'_>) -> bool {
        self.is_failing(task) || self.is_moving(task)
    }

    /// It counts for its deployment's target.
    fn counts(&self, task: &task::View<'_>) -> bool {
        task.is_wanted() && !self.is_going(task) && (self.is_sure(task) || !balance::is_extra(self, task))
    }

    /// Instances that a DAEMON service has no task on.
    fn without_task(&self) -> Vec<&'a str> {
        let taken: BTreeSet<&str> = self.tasks.iter().filter(|t| t.is_live()).map(on).collect();
        daemon::instances(self.view, self.object.cluster()).filter(|name| !taken.contains(name)).collect()
    }

    /// Tasks of other services, that are not on every instance, are still on this one.
    fn has_replicas(&self, instance: &str) -> bool {
        let cluster = self.object.cluster();
        self.view.on_instance(cluster, instance).filter_map(|t| task::of(t)).any(|t| {
            let service = self.view.get(&Key::new(Kind::Service, cluster, &t.spec.service));
            let spec = service.and_then(|s| s.as_service()?.spec.as_ref());
            t.is_live() && spec.is_some_and(|spec| !service::is_daemon(spec))
        })
    }

    fn live(&self) -> i32 {
        let counts =
            |t: &&task::View<'_>| if guard::stands(Guard::StoppingCounts) { t.is_live() } else { t.is_wanted() };
        self.tasks.iter().filter(counts).count() as i32
    }

    fn healthy(&self) -> i32 {
        self.tasks.iter().filter(|t| t.is_healthy()).count() as i32
    }

    /// It counts for its deployment: it makes room for others to go.
    fn is_sure(&self, task: &task::View<'_>) -> bool {
        self.counts_from(task).is_some_and(|from| from <= self.now)
    }

    fn counts_from(&self, task: &task::View<'_>) -> Option<Timestamp> {
        counts_from(self.spec, self.desired, self.replaces || !task.spec.replaces.is_empty(), task)
    }

    fn sure(&self) -> i32 {
        self.tasks.iter().filter(|t| self.is_sure(t)).count() as i32
    }

    fn event(&self, reason: &'static str, message: &str, severity: severity::Value) -> Event {
        let message = format!("(service {}) {message}", self.object.name());
        Event { about: self.object.reference(), reason, message, severity }
    }
}

/// The instance that a task is on, or is to be on.
fn on<'a>(task: &task::View<'a>) -> &'a str {
    if task.spec.container_instance.is_empty() { &task.spec.target_instance } else { &task.spec.container_instance }
}

/// What to do about one service.
pub fn plan(view: &View, key: &Key, now: Timestamp) -> Plan {
    let Some(known) = Known::of(view, key, now) else { return Plan::default() };
    if known.object.is_deleting() {
        return drain(&known);
    }
    let mut plan = Plan::default();
    let throttle = throttle::after_failures(&known);
    let mut started: Vec<(String, i64)> = Vec::new();
    stop_surplus(&known, &mut plan);
    start_missing(&known, &throttle, &mut plan, &mut started);
    start_moves(&known, &mut plan, &mut started);
    counts(&known, &throttle, &started, &mut plan);
    explain(&known, &mut plan);
    plan
}

/// Stops everything, and lets the service go once nothing of it is left.
fn drain(known: &Known<'_>) -> Plan {
    let mut plan = Plan::default();
    let reason = format!("Service {} was deleted", known.object.name());
    for task in known.tasks.iter().filter(|t| t.is_wanted()) {
        plan.push(stop(task, &reason, known.now));
    }
    if known.live() > 0 && guard::stands(Guard::DrainFirst) {
        counts(known, &throttle::Throttle::of(known), &[], &mut plan);
        return plan;
    }
    let mut group: Vec<Change> = known
        .deployments
        .iter()
        .map(|d| Change::Remove { key: Key::of(d.object), expect: Revision(d.object.meta().revision) })
        .collect();
    group.push(Change::Remove { key: Key::of(known.object), expect: Revision(known.object.meta().revision) });
    plan.groups.push(group);
    plan
}

fn stop(task: &task::View<'_>, reason: &str, now: Timestamp) -> Change {
    let object = task.stopped(StopCode::ServiceSchedulerInitiated, reason, now);
    Change::PutStatus { object, expect: task.revision() }
}

/// Stops what is too much: tasks that fail their health checks, and tasks above their deployment's target.
fn stop_surplus(known: &Known<'_>, plan: &mut Plan) {
    let bounds = service::bounds(known.spec, known.desired);
    let above = |healthy: i32| if guard::stands(Guard::Floor) { healthy - bounds.floor } else { i32::MAX };
    let (mut spare, mut spare_sure) = (above(known.healthy()), above(known.sure()));
    let mut stopped = Vec::new();
    for deployment in &known.deployments {
        let name = deployment.object.name();
        let wanted: Vec<&task::View<'_>> = known.tasks_of(name).filter(|t| t.is_wanted()).collect();
        let unhealthy: Vec<&task::View<'_>> = wanted.iter().copied().filter(|t| known.is_failing(t)).collect();
        let good = wanted.iter().filter(|t| known.counts(t)).count() as i32;
        let target = deployment.spec.target_count;
        for task in wanted.iter().filter(|t| balance::is_stuck(known, t)) {
            let reason = format!("It did not run on container instance {} in time", task.spec.target_instance);
            plan.push(stop(task, &reason, known.now));
            stopped.push(task.object.name().to_owned());
        }
        // A replacement comes first while there is room for one; after it, or without room, the task that is to go does.
        let stays = |t: &&task::View<'_>| t.is_healthy() && !known.is_moving(t);
        let replaced = known.tasks_of(name).filter(stays).count() as i32 >= target;
        let full = (known.live() >= bounds.ceiling && good < target) || known.is_daemon();
        if replaced || full {
            let most = if replaced { unhealthy.len() } else { 1 };
            for task in unhealthy.iter().take(most) {
                plan.push(stop(task, "Task failed container health checks", known.now));
                stopped.push(task.object.name().to_owned());
            }
        }
        let stays_longer = |t: &task::View<'_>| {
            known.is_protected(t) || (known.is_daemon() && known.has_replicas(&t.spec.container_instance))
        };
        let moving = wanted.iter().copied().filter(|t| known.is_moving(t) && !known.is_failing(t) && !stays_longer(t));
        let (ready, pending): (Vec<&task::View<'_>>, Vec<&task::View<'_>>) = moving.partition(|t| t.is_healthy());
        let most = if replaced || known.is_daemon() { ready.len() } else { usize::from(full) };
        let most = most.min(usize::try_from(spare.min(spare_sure)).unwrap_or(0));
        (spare, spare_sure) = (spare - most as i32, spare_sure - most as i32);
        for task in pending.into_iter().chain(ready.into_iter().take(most)) {
            let reason = match known.successor(task) {
                Some(successor) => format!("Service rebalanced: (task {}) runs elsewhere", successor.object.name()),
                None => format!("Container instance {} is draining", task.spec.container_instance),
            };
            plan.push(stop(task, &reason, known.now));
            stopped.push(task.object.name().to_owned());
        }
        let reason = format!("Scaling activity initiated by (deployment {name})");
        let surplus = usize::try_from(good - target).unwrap_or(0);
        for task in choice::leaving(known, name, surplus) {
            if task.is_healthy() {
                let sure = i32::from(known.is_sure(task));
                if spare <= 0 || (sure > 0 && spare_sure <= 0) {
                    continue;
                }
                (spare, spare_sure) = (spare - 1, spare_sure - sure);
            }
            plan.push(stop(task, &reason, known.now));
            stopped.push(task.object.name().to_owned());
        }
    }
    if !stopped.is_empty() {
        let message = format!("has stopped {} running tasks: {}.", stopped.len(), listed(&stopped));
        plan.events.push(known.event("SERVICE_TASKS_STOPPED", &message, severity::Value::Info));
    }
}

/// Starts what is missing, newest deployment first, while the ceiling and the throttle allow.
fn start_missing(known: &Known<'_>, throttle: &throttle::Throttle, plan: &mut Plan, started: &mut Vec<(String, i64)>) {
    let mut places = known.is_daemon().then(|| known.without_task().into_iter());
    let mut room = match &places {
        Some(places) => places.len() as i32,
        None if guard::stands(Guard::Ceiling) => service::bounds(known.spec, known.desired).ceiling - known.live(),
        None => i32::MAX,
    };
    let mut names = Vec::new();
    for deployment in known.deployments.iter().rev() {
        let name = deployment.object.name();
        let good = known.tasks_of(name).filter(|t| known.counts(t)).count() as i32;
        let missing = (deployment.spec.target_count - good).min(room);
        if missing <= 0 {
            continue;
        }
        let status = failures::counted(known, deployment);
        let over = is_tripped(known.spec, known.desired, &status) || status.rollout_state() == Rollout::Failed;
        if over && guard::stands(Guard::GivenUp) {
            continue;
        }
        // Its failures are those of the newest one.
        let newest = known.deployments.last().is_some_and(|newest| newest.object.name() == name);
        if let Some(until) = throttle.blocked(known.now).filter(|_| newest) {
            plan.wake(until);
            continue;
        }
        let Some(definition) = definition(known, deployment) else {
            let message = format!(
                "(service {}) cannot start tasks: there is no task definition `{}`.",
                known.object.name(),
                deployment.spec.task_definition
            );
            plan.waiting.push(Waiting {
                about: Key::of(known.object),
                reason: "TaskDefinitionMissing",
                message,
                quiet: false,
            });
            continue;
        };
        let slots = choice::free_slots(known, name, missing as usize);
        let first = deployment.status.attempts;
        for (number, slot) in slots.iter().enumerate() {
            let mut spec = new_task(known, deployment, definition, *slot, first + 1 + number as i64);
            if let Some(place) = places.as_mut().and_then(Iterator::next) {
                place.clone_into(&mut spec.target_instance);
            }
            let object = created(known, spec);
            names.push(object.name().to_owned());
            plan.push(Change::Create(object));
        }
        started.push((name.to_owned(), first + slots.len() as i64));
        room -= missing;
    }
    if !names.is_empty() {
        let message = format!("has started {} tasks: {}.", names.len(), listed(&names));
        plan.events.push(known.event("SERVICE_TASKS_STARTED", &message, severity::Value::Info));
    }
}

fn definition<'a>(known: &Known<'a>, deployment: &Rolling<'_>) -> Option<&'a TaskDefinitionSpec> {
    let key = Key::new(Kind::TaskDefinition, "", &deployment.spec.task_definition);
    known.view.get(&key).and_then(|d| d.as_task_definition()?.spec.as_ref())
}

/// Starts tasks that are to take the place of others, where a service at steady state is uneven.
fn start_moves(known: &Known<'_>, plan: &mut Plan, started: &mut Vec<(String, i64)>) {
    known.tasks.iter().filter_map(|t| balance::gives_up_at(known, t)).for_each(|at| plan.wake(at));
    let Some(newest) = known.deployments.last().filter(|_| plan.groups.is_empty()) else { return };
    let Some(definition) = definition(known, newest) else { return };
    let (moves, again) = balance::moves(known, &resources::demand(definition));
    if let Some(again) = again {
        plan.wake(again);
    }
    let (name, first) = (newest.object.name(), newest.status.attempts);
    let slots = choice::free_slots(known, name, moves.len());
    let mut told = Vec::new();
    for (number, (moves, slot)) in moves.iter().zip(&slots).enumerate() {
        let mut spec = new_task(known, newest, definition, *slot, first + 1 + number as i64);
        moves.instance.clone_into(&mut spec.target_instance);
        moves.task.clone_into(&mut spec.replaces);
        let object = created(known, spec);
        told.push(object.name().to_owned());
        plan.push(Change::Create(object));
    }
    if !told.is_empty() {
        started.push((name.to_owned(), first + told.len() as i64));
        let message = format!("has started {} tasks to rebalance the service: {}.", told.len(), listed(&told));
        plan.events.push(known.event("SERVICE_REBALANCING_STARTED", &message, severity::Value::Info));
    }
}

fn new_task(
    known: &Known<'_>,
    deployment: &Rolling<'_>,
    definition: &TaskDefinitionSpec,
    slot: i32,
    attempt: i64,
) -> TaskSpec {
    let (meta, name) = (known.object.meta(), deployment.object.name());
    TaskSpec {
        task_definition: deployment.spec.task_definition.clone(),
        group: format!("service:{}", meta.name),
        started_by: name.to_owned(),
        service: meta.name.clone(),
        deployment: name.to_owned(),
        demand: Some(resources::demand(definition)),
        placement_constraints: known.spec.placement_constraints.clone(),
        placement_strategy: known.spec.placement_strategy.clone(),
        slot,
        attempt,
        ..TaskSpec::default()
    }
}

/// A new task as it is created, named by what it is the how manieth try at.
fn created(known: &Known<'_>, spec: TaskSpec) -> Object {
    let meta = known.object.meta();
    let epoch = known.view.epoch().to_string();
    let id = derived_id(&[&meta.uid, &spec.deployment, &spec.slot.to_string(), &spec.attempt.to_string(), &epoch]);
    let status = TaskStatus {
        last_status: task_last_status::Value::Provisioning.into(),
        desired_status: desired_status::Value::Running.into(),
        ..TaskStatus::default()
    };
    let mut object = Object::new(&meta.cluster, &id, Task { spec: Some(spec), status: Some(status) });
    object.meta_mut().owner = Some(known.object.reference());
    object.meta_mut().labels.clone_from(&meta.labels);
    object
}

/// `(task ID) (task ID)`, at most ten (ECS).
fn listed(names: &[String]) -> String {
    let mut text: Vec<String> = names.iter().take(10).map(|name| format!("(task {name})")).collect();
    if names.len() > 10 {
        text.push(format!("and {} more", names.len() - 10));
    }
    text.join(" ")
}

/// Says why the service is not where it should be, in ECS's words.
fn explain(known: &Known<'_>, plan: &mut Plan) {
    if !plan.waiting.is_empty() {
        return;
    }
    let about = Key::of(known.object);
    let name = known.object.name();
    let protected = known.tasks.iter().filter(|t| t.is_wanted() && known.is_protected(t)).count();
    let mut waiting = known.tasks.iter().filter(|t| t.wants_place());
    let refused = waiting.find_map(|t| steady_core::condition::waiting(&t.status.conditions));
    if let Some(refused) = refused {
        let message = format!(
            "(service {name}) was unable to place a task because no container instance met all of its requirements. \
             Reason: {}",
            refused.message
        );
        plan.waiting.push(Waiting { about, reason: "SERVICE_TASK_PLACEMENT_FAILURE", message, quiet: false });
    } else if protected as i32 > known.desired {
        let message = format!(
            "(service {name}) was unable to scale in. Reason: The number of protected tasks ({protected}) are more than \
             the desired count of tasks ({})",
            known.desired
        );
        plan.waiting.push(Waiting { about, reason: "SERVICE_TASK_SCALE_IN_PROTECTED", message, quiet: false });
    } else if throttle::is_impaired(known) {
        let message =
            format!("(service {name}) is unable to consistently start tasks successfully.{}", throttle::why(known));
        plan.waiting.push(Waiting { about, reason: "SERVICE_TASK_START_IMPAIRED", message, quiet: false });
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod balance_tests;
#[cfg(test)]
mod breaker_tests;
#[cfg(test)]
mod daemon_tests;
#[cfg(test)]
mod drain_tests;
