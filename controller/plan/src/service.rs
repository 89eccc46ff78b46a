//! Services: the only one that starts and stops a service's tasks.
//!
//! Each deployment is brought to its target count, within floor and ceiling over all of them: no start takes the
//! live tasks over the ceiling, no stop takes the healthy ones below the floor. What stopped is replaced; what stops
//! again and again is started less and less often.

mod choice;
mod counts;
mod failures;
mod throttle;

use std::collections::BTreeSet;
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
    /// Tasks of older deployments are still there.
    replaces: bool,
    /// Instances of its tasks that are DRAINING.
    draining: BTreeSet<&'a str>,
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
        let (spec, status) = (service.spec.as_ref()?, service.status.as_ref()?);
        Some(Known { view, object, spec, status, deployments, tasks, replaces, draining, now })
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

    /// It is to make way for another one somewhere else: its instance is DRAINING.
    fn is_moving(&self, task: &task::View<'_>) -> bool {
        self.draining.contains(task.spec.container_instance.as_str())
    }

    /// It does not count for its deployment's target: it is to be replaced.
    fn is_going(&self, task: &task::View<'_>) -> bool {
        self.is_failing(task) || self.is_moving(task)
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
        counts_from(self.spec, self.replaces, task)
    }

    fn sure(&self) -> i32 {
        self.tasks.iter().filter(|t| self.is_sure(t)).count() as i32
    }

    fn event(&self, reason: &'static str, message: &str, severity: severity::Value) -> Event {
        let message = format!("(service {}) {message}", self.object.name());
        Event { about: self.object.reference(), reason, message, severity }
    }
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
    let bounds = service::bounds(known.spec);
    let above = |healthy: i32| if guard::stands(Guard::Floor) { healthy - bounds.floor } else { i32::MAX };
    let (mut spare, mut spare_sure) = (above(known.healthy()), above(known.sure()));
    let mut stopped = Vec::new();
    for deployment in &known.deployments {
        let name = deployment.object.name();
        let wanted: Vec<&task::View<'_>> = known.tasks_of(name).filter(|t| t.is_wanted()).collect();
        let unhealthy: Vec<&task::View<'_>> = wanted.iter().copied().filter(|t| known.is_failing(t)).collect();
        let good = wanted.iter().filter(|t| !known.is_going(t)).count() as i32;
        let target = deployment.spec.target_count;
        // A replacement comes first while there is room for one; after it, or without room, the task that is to go does.
        let stays = |t: &&task::View<'_>| t.is_healthy() && !known.is_moving(t);
        let replaced = known.tasks_of(name).filter(stays).count() as i32 >= target;
        let full = known.live() >= bounds.ceiling && good < target;
        if replaced || full {
            let most = if replaced { unhealthy.len() } else { 1 };
            for task in unhealthy.iter().take(most) {
                plan.push(stop(task, "Task failed container health checks", known.now));
                stopped.push(task.object.name().to_owned());
            }
        }
        let moving = wanted.iter().copied().filter(|t| known.is_moving(t) && !known.is_failing(t));
        let (ready, pending): (Vec<&task::View<'_>>, Vec<&task::View<'_>>) = moving.partition(|t| t.is_healthy());
        let most = if replaced { ready.len() } else { usize::from(full) };
        let most = most.min(usize::try_from(spare.min(spare_sure)).unwrap_or(0));
        (spare, spare_sure) = (spare - most as i32, spare_sure - most as i32);
        for task in pending.into_iter().chain(ready.into_iter().take(most)) {
            let reason = format!("Container instance {} is draining", task.spec.container_instance);
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
    let mut room =
        if guard::stands(Guard::Ceiling) { service::bounds(known.spec).ceiling - known.live() } else { i32::MAX };
    let mut names = Vec::new();
    for deployment in known.deployments.iter().rev() {
        let name = deployment.object.name();
        let good = known.tasks_of(name).filter(|t| t.is_wanted() && !known.is_going(t)).count() as i32;
        let missing = (deployment.spec.target_count - good).min(room);
        if missing <= 0 {
            continue;
        }
        let status = failures::counted(known, deployment);
        let over = is_tripped(known.spec, &status) || status.rollout_state() == Rollout::Failed;
        if over && guard::stands(Guard::GivenUp) {
            continue;
        }
        // Its failures are those of the newest one.
        let newest = known.deployments.last().is_some_and(|newest| newest.object.name() == name);
        if let Some(until) = throttle.blocked(known.now).filter(|_| newest) {
            plan.wake(until);
            continue;
        }
        let key = Key::new(Kind::TaskDefinition, "", &deployment.spec.task_definition);
        let definition = known.view.get(&key).and_then(|d| d.as_task_definition()?.spec.as_ref());
        let Some(definition) = definition else {
            let message = format!(
                "(service {}) cannot start tasks: there is no task definition `{}`.",
                known.object.name(),
                key.name
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
            let object = new_task(known, deployment, definition, *slot, first + 1 + number as i64);
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

fn new_task(
    known: &Known<'_>,
    deployment: &Rolling<'_>,
    definition: &TaskDefinitionSpec,
    slot: i32,
    attempt: i64,
) -> Object {
    let meta = known.object.meta();
    let name = deployment.object.name();
    let epoch = known.view.epoch().to_string();
    let id = derived_id(&[&meta.uid, name, &slot.to_string(), &attempt.to_string(), &epoch]);
    let spec = TaskSpec {
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
    };
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
    let mut waiting = known.tasks.iter().filter(|t| t.wants_place());
    let refused = waiting.find_map(|t| steady_core::condition::waiting(&t.status.conditions));
    if let Some(refused) = refused {
        let message = format!(
            "(service {name}) was unable to place a task because no container instance met all of its requirements. \
             Reason: {}",
            refused.message
        );
        plan.waiting.push(Waiting { about, reason: "SERVICE_TASK_PLACEMENT_FAILURE", message, quiet: false });
    } else if throttle::is_impaired(known) {
        let message =
            format!("(service {name}) is unable to consistently start tasks successfully.{}", throttle::why(known));
        plan.waiting.push(Waiting { about, reason: "SERVICE_TASK_START_IMPAIRED", message, quiet: false });
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod breaker_tests;
#[cfg(test)]
mod drain_tests;
