//! Services on their way to a steady state, told line by line.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use steady_core::{Key, Kind, condition, task};
use steady_proto::v1::Object;
use steady_proto::v1::hook_status::Value as HookStatus;
use steady_proto::v1::lifecycle_stage::Value as Stage;

use crate::client::Client;
use crate::columns::urls;
use crate::failure::Failure;
use crate::out::{Out, Style};
use crate::target;
use crate::watch::Watch;
use crate::world::World;

/// How long a command waits for a steady state unless --timeout says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Watches services, each `(cluster, name)`, until all are steady; tells each change, and at the end where
/// their tasks answer.
///
/// # Errors
/// When a service is not steady in time (exit code 3, with what it waits for), goes, or its rollout failed.
pub async fn until_steady(
    client: &Client,
    services: &[(String, String)],
    within: Duration,
    out: &mut Out,
) -> Result<(), Failure> {
    let result = follow(client, services, within, out).await;
    out.rest();
    result
}

async fn follow(
    client: &Client,
    services: &[(String, String)],
    within: Duration,
    out: &mut Out,
) -> Result<(), Failure> {
    let mut waiting: Vec<Key> = services.iter().map(|(cluster, name)| Key::new(Kind::Service, cluster, name)).collect();
    if waiting.is_empty() {
        return Ok(());
    }
    let one = waiting.iter().all(|key| key.cluster == waiting[0].cluster);
    let cluster = if one { waiting[0].cluster.to_string() } else { String::new() };
    let kinds = [Kind::Service, Kind::Deployment, Kind::Task, Kind::ContainerInstance];
    let mut watch = Watch::open(client, &kinds, target::in_cluster(&cluster)).await?;
    let mut world = World::default();
    let mut told = BTreeMap::new();
    let deadline = tokio::time::Instant::now() + within;
    while !waiting.is_empty() {
        match tokio::time::timeout_at(deadline, world.follow(&mut watch)).await {
            Ok(news) => news?,
            Err(_) => return Err(late(&world, &waiting, within)),
        };
        let mut open = Vec::new();
        for key in waiting {
            if !tell(&world, &key, &mut told, out)? {
                open.push(key);
            }
        }
        waiting = open;
    }
    Ok(())
}

/// Tells where a service has got to, when that is news. Whether it is there.
fn tell(world: &World, key: &Key, told: &mut BTreeMap<Key, String>, out: &mut Out) -> Result<bool, Failure> {
    let Some(service) = world.view.get(key) else {
        return Err(Failure::failed(format!("{key} was deleted")));
    };
    if let Some(reason) = rollout_failure(service) {
        return Err(Failure::failed(format!("{key}: {reason} `steady describe {key}` tells more")));
    }
    if is_steady(service) {
        let running = status_of(service).running_count();
        let steady = out.styled(Style::Good, "has reached a steady state");
        out.line(&format!("{key} {steady}: {running} running"))?;
        for object in world.view.of_service(Kind::Task, &key.cluster, &key.name) {
            if task::of(object).is_some_and(|task| task.is_running()) {
                for url in urls(object, world) {
                    out.line(&format!("  {url}"))?;
                }
            }
        }
        return Ok(true);
    }
    let line = format!("{key}  {}", counts(service, world));
    if told.get(key) != Some(&line) {
        out.progress(&line)?;
        told.insert(key.clone(), line);
    }
    Ok(false)
}

fn status_of(service: &Object) -> steady_proto::v1::ServiceStatus {
    service.as_service().and_then(|s| s.status.clone()).unwrap_or_default()
}

/// Whether a service is steady, as of its newest generation.
pub fn is_steady(service: &Object) -> bool {
    let status = status_of(service);
    status.steady && status.observed_generation == service.meta().generation && !service.is_deleting()
}

/// `1/2 running, 1 pending: what it waits for`.
pub fn counts(service: &Object, world: &World) -> String {
    let status = status_of(service);
    let spec = service.as_service().and_then(|s| s.spec.as_ref());
    let desired = spec.map_or(0, |spec| steady_core::service::desired(spec, &status));
    let mut text = format!("{}/{desired} running", status.running_count());
    if status.pending_count() > 0 {
        let _ = write!(text, ", {} pending", status.pending_count());
    }
    if let Some(stage) = stage(service, world) {
        let _ = write!(text, ", {stage}");
    }
    if let Some((reason, _)) = reasons(service, world).into_iter().next() {
        text.push_str(": ");
        text.push_str(&reason);
    }
    text
}

/// The stage that its newest deployment is in, its share of the traffic, and what it waits for.
pub fn stage(service: &Object, world: &World) -> Option<String> {
    let deployments = world.view.of_service(Kind::Deployment, service.cluster(), service.name());
    let owned = deployments.filter(|d| d.meta().owner.as_ref().is_some_and(|owner| owner.uid == service.meta().uid));
    let newest = owned.filter_map(|d| Some((d.as_deployment()?.spec.as_ref()?, d.as_deployment()?.status.as_ref()?)));
    let (spec, status) = newest.max_by_key(|(spec, _)| spec.sequence)?;
    if status.lifecycle_stage() == Stage::Unspecified {
        return None;
    }
    let mut text = status.lifecycle_stage().as_str_name().to_owned();
    if let Some(weight) = spec.production_traffic_weight {
        let _ = write!(text, ", {weight}% of the traffic");
    }
    for hook in status.hooks.iter().filter(|hook| hook.status() != HookStatus::Succeeded) {
        let help = if hook.status() == HookStatus::AwaitingAction {
            format!("; `steady rollout continue service/{}` ends it", service.name())
        } else if hook.message.is_empty() {
            String::new()
        } else {
            format!(": {}", hook.message)
        };
        let _ = write!(text, ", hook {} is {}{help}", hook.hook_id, hook.status().as_str_name());
    }
    Some(text)
}

/// What a service and its tasks wait for: each message with the number of objects that say it, the
/// service's own first.
pub fn reasons(service: &Object, world: &World) -> Vec<(String, usize)> {
    let mut found: Vec<(String, usize)> = Vec::new();
    let deployments = world.view.of_service(Kind::Deployment, service.cluster(), service.name());
    let tasks = world.view.of_service(Kind::Task, service.cluster(), service.name());
    let tasks = tasks.filter(|object| task::of(object).is_some_and(|task| task.is_live()));
    let all = std::iter::once(service).chain(deployments.map(|o| &**o)).chain(tasks.map(|o| &**o));
    for waiting in all.filter_map(|object| condition::waiting(object.conditions())) {
        match found.iter_mut().find(|(message, _)| *message == waiting.message) {
            Some((_, count)) => *count += 1,
            None => found.push((waiting.message.clone(), 1)),
        }
    }
    found
}

/// Why what is wanted of a service was given up, if it was.
pub fn rollout_failure(service: &Object) -> Option<String> {
    let service = service.as_service()?;
    let failed = service.status.as_ref()?.failed_rollout.as_ref()?;
    let wanted = steady_core::service::revision_digest(service.spec.as_ref()?);
    if failed.revision_digest != wanted {
        return None;
    }
    let back = match failed.rolled_back_to.as_str() {
        "" => String::new(),
        before => format!(" It was rolled back to {before}."),
    };
    Some(format!("deployment {} failed: {}{back}", failed.deployment, failed.reason))
}

fn late(world: &World, waiting: &[Key], within: Duration) -> Failure {
    let mut text = format!("not steady after {}", crate::span::short(within));
    for key in waiting {
        let state = world.view.get(key).map_or_else(|| "not seen".to_owned(), |service| counts(service, world));
        let _ = write!(text, "\n  {key}  {state}");
    }
    let _ = write!(text, "\n`steady describe {}` tells why", waiting[0]);
    Failure::timed_out(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_core::Timestamp;
    use steady_proto::v1::{Service, ServiceSpec, ServiceStatus, Task, TaskSpec};

    fn service() -> Object {
        let spec = ServiceSpec { desired_count: Some(3), ..Default::default() };
        let status = ServiceStatus { running_count: Some(1), pending_count: Some(2), ..Default::default() };
        Object::new("default", "web", Service { spec: Some(spec), status: Some(status) })
    }

    fn waiting_task(name: &str, why: &str) -> Object {
        let spec = TaskSpec { service: "web".into(), ..Default::default() };
        let mut object = Object::new("default", name, Task { spec: Some(spec), status: None });
        if let Some(conditions) = object.conditions_mut() {
            condition::set_waiting(conditions, "scheduler", "Unplaced", why, Timestamp(0));
        }
        object
    }

    #[test]
    fn tasks_that_wait_for_the_same_are_counted_together() {
        let mut world = World::default();
        world.add(vec![waiting_task("a", "no memory"), waiting_task("b", "no memory"), waiting_task("c", "no port")]);
        assert_eq!(reasons(&service(), &world), [("no memory".to_owned(), 2), ("no port".to_owned(), 1)]);
        assert_eq!(counts(&service(), &world), "1/3 running, 2 pending: no memory");
    }
}
