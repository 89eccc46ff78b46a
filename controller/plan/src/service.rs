//! Services: the only one that starts and stops a service's tasks.
//!
//! Each deployment is brought to its target count, within floor and ceiling over all of them: no start takes the
//! live tasks over the ceiling, no stop takes the healthy ones below the floor. What stopped is replaced; what stops
//! again and again is started less and less often.

mod balance;
mod choice;
mod counts;
mod failures;
mod starts;
mod stops;
mod throttle;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use steady_core::guard::{self, Guard};
use steady_core::v1::{Object, ServiceSpec, ServiceStatus, severity};
use steady_core::{Change, Event, Key, Kind, Plan, Revision, Timestamp, View, Waiting, condition, service, task};

use crate::deployment::{Rolling, counts_from, of_service};
use crate::{daemon, site};
use counts::counts;
use starts::{start_missing, start_moves};
use stops::{stop, stop_surplus};

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
    /// Of a DAEMON service: the instances that it has a task on.
    homes: Option<BTreeSet<&'a str>>,
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
        let draining = instances.into_iter().filter(|name| site::drains(view, &key.cluster, name)).collect();
        let moves = tasks.iter().enumerate().filter(|(_, t)| t.is_wanted() && !t.spec.replaces.is_empty());
        let replacing = moves.map(|(place, t)| (t.spec.replaces.as_str(), place)).collect();
        let (spec, status) = (service.spec.as_ref()?, service.status.as_ref()?);
        let homes =
            service::is_daemon(spec).then(|| daemon::instances(view, &key.cluster, spec).collect::<BTreeSet<_>>());
        let desired = homes.as_ref().map_or_else(|| daemon::desired(view, object, spec), |homes| homes.len() as i32);
        Some(Known {
            view,
            object,
            spec,
            status,
            deployments,
            tasks,
            desired,
            replaces,
            draining,
            homes,
            replacing,
            now,
        })
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
        if let Some(homes) = &self.homes {
            return !homes.contains(on(task));
        }
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
        self.homes.iter().flatten().copied().filter(|name| !taken.contains(name)).collect()
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
    if !plan.waiting.is_empty() {
        plan.wake(now + condition::TELL_AGAIN);
    }
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
        .map(|d| d.object)
        .chain(service::task_sets(known.view, known.object).map(|(set, _)| set))
        .map(|object| Change::Remove { key: Key::of(object), expect: Revision(object.meta().revision) })
        .collect();
    group.push(Change::Remove { key: Key::of(known.object), expect: Revision(known.object.meta().revision) });
    plan.groups.push(group);
    plan
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
