//! Starting what is missing, within the ceiling and as the throttle allows, and what moves.

use std::collections::BTreeMap;

use steady_core::guard::{self, Guard};
use steady_core::v1::rollout_state::Value as Rollout;
use steady_core::v1::version_consistency::Value as VersionConsistency;
use steady_core::v1::{
    Object, Task, TaskDefinitionSpec, TaskSpec, TaskStatus, desired_status, severity, task_last_status,
};
use steady_core::{Change, Key, Plan, Waiting, capacity, derived_id, resources, security, service, task};

use super::{Known, balance, choice, failures, listed, throttle};
use crate::deployment::{Rolling, is_tripped};
use crate::site;

/// Starts what is missing, newest deployment first, while the ceiling and the throttle allow.
pub(super) fn start_missing(
    known: &Known<'_>,
    throttle: &throttle::Throttle,
    plan: &mut Plan,
    started: &mut Vec<(String, i64)>,
) {
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
        let newest = known.deployments.last().is_some_and(|newest| newest.object.name() == name);
        let blocked = if newest { throttle.blocked(known.now) } else { throttle::blocked_by_own(known, name) };
        if let Some(until) = blocked {
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
        let (first, digests) = (deployment.status.attempts, image_digests(known, deployment));
        let mut have = by_provider(known, name);
        for (number, slot) in slots.iter().enumerate() {
            let mut spec = new_task(known, deployment, definition, *slot, first + 1 + number as i64);
            spec.image_digests.clone_from(&digests);
            if let Some(place) = places.as_mut().and_then(Iterator::next) {
                place.clone_into(&mut spec.target_instance);
            }
            if let Some(provider) = capacity::next_provider(&known.spec.capacity_provider_strategy, &have) {
                provider.clone_into(&mut spec.capacity_provider);
                *have.entry(provider.to_owned()).or_default() += 1;
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
    site::definition(known.view, &deployment.spec.task_definition)
}

/// Starts tasks that are to take the place of others, where a service at steady state is uneven.
pub(super) fn start_moves(known: &Known<'_>, plan: &mut Plan, started: &mut Vec<(String, i64)>) {
    known.tasks.iter().filter_map(|t| balance::gives_up_at(known, t)).for_each(|at| plan.wake(at));
    let Some(newest) = known.deployments.last().filter(|_| plan.groups.is_empty()) else { return };
    let Some(definition) = definition(known, newest) else { return };
    let (moves, again) = balance::moves(known, &resources::demand(definition));
    if let Some(again) = again {
        plan.wake(again);
    }
    if moves.is_empty() {
        return;
    }
    let (name, first, digests) = (newest.object.name(), newest.status.attempts, image_digests(known, newest));
    let slots = choice::free_slots(known, name, moves.len());
    let mut told = Vec::new();
    for (number, (moves, slot)) in moves.iter().zip(&slots).enumerate() {
        let mut spec = new_task(known, newest, definition, *slot, first + 1 + number as i64);
        moves.instance.clone_into(&mut spec.target_instance);
        if !known.spec.capacity_provider_strategy.is_empty() {
            let provider = site::provider(known.view, known.object.cluster(), moves.instance);
            provider.clone_into(&mut spec.capacity_provider);
        }
        moves.task.clone_into(&mut spec.replaces);
        spec.image_digests.clone_from(&digests);
        let object = created(known, spec);
        told.push(object.name().to_owned());
        plan.push(Change::Create(object));
    }
    started.push((name.to_owned(), first + told.len() as i64));
    let message = format!("has started {} tasks to rebalance the service: {}.", told.len(), listed(&told));
    plan.events.push(known.event("SERVICE_REBALANCING_STARTED", &message, severity::Value::Info));
}

/// How many of a deployment's tasks are for each capacity provider.
fn by_provider(known: &Known<'_>, deployment: &str) -> BTreeMap<String, i64> {
    let mut have = BTreeMap::new();
    for task in known.tasks_of(deployment).filter(|t| t.is_wanted() && !t.spec.capacity_provider.is_empty()) {
        *have.entry(task.spec.capacity_provider.clone()).or_default() += 1;
    }
    have
}

fn new_task(
    known: &Known<'_>,
    deployment: &Rolling<'_>,
    definition: &TaskDefinitionSpec,
    slot: i32,
    attempt: i64,
) -> TaskSpec {
    let (meta, name) = (known.object.meta(), deployment.object.name());
    let network = deployment.spec.network_configuration.as_ref();
    let mut requires_attributes = resources::requires_attributes(definition);
    requires_attributes.extend(security::requires_attributes(network));
    TaskSpec {
        task_definition: deployment.spec.task_definition.clone(),
        group: format!("service:{}", meta.name),
        started_by: name.to_owned(),
        service: meta.name.clone(),
        deployment: name.to_owned(),
        demand: Some(resources::demand(definition)),
        placement_constraints: [&known.spec.placement_constraints[..], &definition.placement_constraints].concat(),
        placement_strategy: known.spec.placement_strategy.clone(),
        priority: known.spec.priority,
        preemptible: known.spec.preemptible,
        requires_attributes,
        network_configuration: network.cloned(),
        load_balancers: deployment.spec.load_balancers.clone(),
        scheduler_name: known.spec.scheduler_name.clone(),
        slot,
        attempt,
        ..TaskSpec::default()
    }
}

/// Digests of a deployment's images, as its first tasks found them.
pub(super) fn image_digests(known: &Known<'_>, deployment: &Rolling<'_>) -> BTreeMap<String, String> {
    let mut digests = deployment.status.image_digests.clone();
    let Some(definition) = definition(known, deployment) else { return digests };
    let follows_its_tag = |name: &str| {
        let mut containers = definition.container_definitions.iter().filter(|c| c.name == name);
        containers.any(|c| c.version_consistency() == VersionConsistency::Disabled)
    };
    let first = known.tasks_of(deployment.object.name()).filter(|t| t.started_at().is_some());
    let mut first: Vec<&task::View<'_>> = first.collect();
    first.sort_by_key(|t| t.spec.attempt);
    for container in first.iter().flat_map(|t| &t.status.containers) {
        if !container.image_digest.is_empty() && !follows_its_tag(&container.name) {
            digests.entry(container.name.clone()).or_insert_with(|| container.image_digest.clone());
        }
    }
    digests
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
