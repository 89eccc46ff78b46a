//! Deployments: turns a change of a service into a rollout, and says when it is complete.
//!
//! Writes Deployments' specs, roles and rollout states, and the service's `primaryDeployment`. Which task starts and
//! stops is the service controller's to decide.

mod hooks;
mod rollback;
mod stages;
mod task_sets;

use std::sync::Arc;
use std::time::Duration;

use steady_core::guard::{self, Guard};
use steady_core::v1::deployment_role::Value as Role;
use steady_core::v1::lifecycle_stage::Value as Stage;
use steady_core::v1::rollout_state::Value as Rollout;
use steady_core::v1::{
    Deployment, DeploymentSpec, DeploymentStatus, Object, ServiceSpec, ServiceStatus, object, severity,
};
use steady_core::{Change, Event, Key, Kind, Plan, Revision, Timestamp, View, service, task};

pub use hooks::{Answer, CALL_BACK, Call, answered, calls};

use crate::daemon;

/// Deployments of a service that are kept after they are over.
const HISTORY: usize = 10;

/// Fields of a deployment's spec that change while it goes.
const TARGETS: [&str; 3] = ["targetCount", "productionTrafficWeight", "testTrafficWeight"];

/// A deployment with its spec and status at hand.
#[derive(Clone, Copy)]
pub(crate) struct Rolling<'a> {
    pub(crate) object: &'a Object,
    pub(crate) spec: &'a DeploymentSpec,
    pub(crate) status: &'a DeploymentStatus,
}

impl Rolling<'_> {
    pub(crate) fn change(&self, status: DeploymentStatus) -> Change {
        let deployment = Deployment { spec: Some(self.spec.clone()), status: Some(status) };
        let object = Object { meta: self.object.meta.clone(), kind: Some(object::Kind::Deployment(deployment)) };
        Change::PutStatus { object, expect: Revision(self.object.meta().revision) }
    }

    /// The same with another spec, of which these fields differ.
    fn respecified(&self, spec: DeploymentSpec, fields: &'static [&'static str]) -> Change {
        let changed = Deployment { spec: Some(spec), status: Some(self.status.clone()) };
        let object = Object { meta: self.object.meta.clone(), kind: Some(object::Kind::Deployment(changed)) };
        Change::PutSpec { object, fields, expect: Revision(self.object.meta().revision) }
    }

    /// It was completed, or has only to wait for what was before it to go, and is not over yet.
    fn serves(&self) -> bool {
        let served = self.status.rollout_state() == Rollout::Completed || self.has_taken_over();
        served && self.status.role() == Role::Active
    }

    /// It has all the traffic, and those before it go.
    fn has_taken_over(&self) -> bool {
        self.status.rollout_state() == Rollout::InProgress && self.status.lifecycle_stage() == Stage::CleanUp
    }

    fn in_progress(&self) -> String {
        in_progress(self.object.name())
    }
}

fn in_progress(deployment: &str) -> String {
    format!("ECS deployment {deployment} in progress.")
}

fn completed(deployment: &str) -> String {
    format!("ECS deployment {deployment} completed.")
}

/// Deployments of this very service, oldest first.
pub(crate) fn of_service<'a>(view: &'a View, service: &Object) -> Vec<Rolling<'a>> {
    let mut found: Vec<Rolling<'a>> = view
        .of_service(Kind::Deployment, service.cluster(), service.name())
        .filter(|object| object.meta().owner.as_ref().is_some_and(|owner| owner.uid == service.meta().uid))
        .filter_map(rolling)
        .collect();
    found.sort_by_key(|d| d.spec.sequence);
    found
}

fn rolling(object: &Arc<Object>) -> Option<Rolling<'_>> {
    let deployment = object.as_deployment()?;
    Some(Rolling { object, spec: deployment.spec.as_ref()?, status: deployment.status.as_ref()? })
}

/// What to do about the deployments of one service.
pub fn plan(view: &View, key: &Key, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(object) = view.get(key).filter(|object| !object.is_deleting()) else { return plan };
    let Some((spec, status)) = object.as_service().and_then(|s| Some((s.spec.as_ref()?, s.status.clone()?))) else {
        return plan;
    };
    let deployments = of_service(view, object);
    let digest = service::revision_digest(spec);
    let desired = daemon::desired(view, object, spec);
    let service = Rolled { view, object, spec, desired, status: &status, deployments: &deployments, now };
    if service::is_external(spec) {
        return service.external();
    }
    let refused = status.failed_rollout.as_ref().is_some_and(|failed| failed.revision_digest == digest);
    let Some(newest) = deployments.last().filter(|d| d.spec.revision_digest == digest || refused) else {
        // Tasks that still run what is wanted again need not be replaced.
        let wanted = |d: &&Rolling<'_>| d.spec.revision_digest == digest && d.status.role() == Role::Active;
        match deployments.iter().rfind(wanted) {
            Some(again) => {
                plan.groups.push(service.resume(again, None, demoted(&deployments)));
            }
            None => service.start(&mut plan, digest),
        }
        return plan;
    };
    if let Some(cause) = service.cause_to_give_up(newest) {
        service.give_up(newest, refused, digest, &cause, &mut plan);
        return plan;
    }
    if status.failed_rollout.is_some() && !refused {
        // What is wanted now is here already: what was rolled back to. It may have failed since, and is tried again.
        if newest.status.rollout_state() == Rollout::Failed {
            plan.groups.push(service.resume(newest, None, Vec::new()));
        } else {
            plan.push(service.with_status(ServiceStatus { failed_rollout: None, ..status.clone() }));
        }
        return plan;
    }
    let in_force = service.in_force(newest, &mut plan);
    let (targets, weights) = (service.targets(&in_force), service.weights(&in_force));
    // Traffic moves from one to the other in one write.
    let mut group = Vec::new();
    for (place, deployment) in deployments.iter().enumerate() {
        let spec = DeploymentSpec {
            target_count: targets[place],
            production_traffic_weight: weights[place].map(|(production, _)| production),
            test_traffic_weight: weights[place].map(|(_, test)| test),
            ..deployment.spec.clone()
        };
        if spec != *deployment.spec {
            group.push(deployment.respecified(spec, &TARGETS));
        }
        let primary = place + 1 == deployments.len();
        let status = if primary { in_force.clone() } else { service.replaced(deployment, targets[place]) };
        if status != *deployment.status {
            group.push(deployment.change(status));
        }
    }
    if !group.is_empty() {
        plan.groups.push(group);
    }
    service.trim(&mut plan);
    plan
}

/// Every deployment in force, no longer so.
fn demoted(deployments: &[Rolling<'_>]) -> Vec<Change> {
    let in_force = |d: &&Rolling<'_>| d.status.role() == Role::Primary && guard::stands(Guard::OnePrimary);
    let demote = |d: &Rolling<'_>| {
        let mut status = d.status.clone();
        status.set_role(Role::Active);
        d.change(status)
    };
    deployments.iter().filter(in_force).map(demote).collect()
}

/// A service and its deployments, oldest first.
struct Rolled<'a> {
    view: &'a View,
    object: &'a Object,
    spec: &'a ServiceSpec,
    /// How many tasks it is to have.
    desired: i32,
    status: &'a ServiceStatus,
    deployments: &'a [Rolling<'a>],
    now: Timestamp,
}

impl Rolled<'_> {
    fn with_status(&self, status: ServiceStatus) -> Change {
        let object = service::with_status(self.object, status);
        Change::PutStatus { object, expect: Revision(self.object.meta().revision) }
    }

    fn event(&self, reason: &'static str, message: &str, severity: severity::Value) -> Event {
        let message = format!("(service {}) {message}", self.object.name());
        Event { about: self.object.reference(), reason, message, severity }
    }

    /// Its tasks in a deployment.
    fn tasks_of(&self, deployment: &Rolling<'_>) -> impl Iterator<Item = task::View<'_>> {
        let (uid, name) = (&self.object.meta().uid, deployment.object.name());
        let tasks = self.view.of_service(Kind::Task, self.object.cluster(), self.object.name());
        tasks.filter_map(|task| task::of(task)).filter(move |t| t.is_owned_by(uid) && t.spec.deployment == name)
    }

    fn lives(&self, deployment: &Rolling<'_>) -> bool {
        self.tasks_of(deployment).any(|t| t.is_live())
    }

    /// A new deployment, named by what it is of: a repeated write cannot make two.
    fn start(&self, plan: &mut Plan, digest: String) {
        let sequence = self.deployments.last().map_or(0, |d| d.spec.sequence) + 1;
        let name = format!("{}-{sequence}", self.object.name());
        let deployment = Deployment {
            spec: Some(DeploymentSpec {
                service: self.object.name().to_owned(),
                task_definition: self.spec.task_definition.clone(),
                target_count: if service::is_rolling(self.spec) { self.desired } else { 0 },
                sequence,
                revision_digest: digest,
                force_new_deployment: self.spec.force_new_deployment,
                network_configuration: self.spec.network_configuration.clone(),
                load_balancers: self.spec.load_balancers.clone(),
                ..DeploymentSpec::default()
            }),
            status: Some(DeploymentStatus {
                ignored_alarms: self.raised().map(str::to_owned).collect(),
                role: Role::Primary.into(),
                rollout_state: Rollout::InProgress.into(),
                rollout_state_reason: in_progress(&name),
                ..DeploymentStatus::default()
            }),
        };
        let mut created = Object::new(self.object.cluster(), &name, deployment);
        created.meta_mut().owner = Some(self.object.reference());
        let status =
            ServiceStatus { primary_deployment: name, steady: false, failed_rollout: None, ..self.status.clone() };
        let mut group = vec![Change::Create(created), self.with_status(status)];
        // Never two in force, not for a moment.
        group.extend(demoted(self.deployments));
        plan.groups.push(group);
    }

    /// How many tasks each deployment is to have. One that failed keeps those that run, and the last one that was
    /// completed keeps the rest: nothing else is there to serve.
    fn targets(&self, in_force: &DeploymentStatus) -> Vec<i32> {
        let is_staged = !service::is_rolling(self.spec);
        if is_staged && (in_force.rollout_state() != Rollout::Failed || self.blue().is_some()) {
            let mut targets = self.staged_targets(in_force);
            if in_force.rollout_state() == Rollout::Failed {
                // All of the traffic is with the one that served.
                let blue = self.blue().map(|blue| blue.object.name());
                for (target, deployment) in targets.iter_mut().zip(self.deployments) {
                    *target = if Some(deployment.object.name()) == blue { self.desired } else { 0 };
                }
            }
            return targets;
        }
        let mut targets = vec![0; self.deployments.len()];
        let (Some(newest), desired) = (self.deployments.last(), self.desired) else { return targets };
        let last = targets.len() - 1;
        targets[last] = desired;
        if newest.status.rollout_state() == Rollout::Failed {
            let kept = (self.tasks_of(newest).filter(task::View::is_healthy).count() as i32).min(desired);
            targets[last] = kept;
            // One whose tasks are gone is not brought back: that would be a rollback.
            let before = self.deployments.iter().rposition(Rolling::serves);
            if let Some(before) = before {
                targets[before] = desired - kept;
            }
        }
        targets
    }

    /// What becomes of the newest deployment: its stage, and whether it is completed.
    fn in_force(&self, deployment: &Rolling<'_>, plan: &mut Plan) -> DeploymentStatus {
        let mut status = deployment.status.clone();
        status.set_role(Role::Primary);
        if status.rollout_state() != Rollout::InProgress {
            return status;
        }
        if let Some(at) = hooks::next_call(&status, self.now) {
            plan.wake(at);
        }
        let is_over = if service::is_rolling(self.spec) {
            status.hooks.clear();
            self.is_complete(deployment, plan) && self.has_baked(&mut status, plan)
        } else {
            match self.on_its_way(deployment, plan) {
                None => true,
                Some(on) => {
                    status = DeploymentStatus { role: Role::Primary.into(), ..on };
                    let (name, stage) = (deployment.object.name(), status.lifecycle_stage().as_str_name());
                    status.rollout_state_reason = format!("{} Stage {stage}.", in_progress(name));
                    false
                }
            }
        };
        if is_over {
            let name = deployment.object.name();
            status.set_rollout_state(Rollout::Completed);
            status.set_lifecycle_stage(Stage::Unspecified);
            status.hooks.clear();
            status.rollout_state_reason = completed(name);
            status.completed_at = Some(self.now.into());
            let message = format!("(deployment {name}) deployment completed.");
            plan.events.push(self.event("SERVICE_DEPLOYMENT_COMPLETED", &message, severity::Value::Info));
        }
        status
    }

    /// Whether a ROLLING deployment that has all its tasks was watched for long enough.
    fn has_baked(&self, status: &mut DeploymentStatus, plan: &mut Plan) -> bool {
        let bake = service::bake_time(self.spec);
        if bake.is_zero() {
            return true;
        }
        if status.lifecycle_stage() != Stage::BakeTime {
            stages::enter(self.spec, status, Stage::BakeTime, self.now);
        }
        let over = status.stage_started_at.as_ref().map_or(self.now, Timestamp::from) + bake;
        plan.wake(over);
        over <= self.now
    }

    /// What becomes of a deployment that another one took the place of.
    fn replaced(&self, deployment: &Rolling<'_>, target: i32) -> DeploymentStatus {
        let mut status = deployment.status.clone();
        // While the newest one has failed, the one that serves instead stays, whatever it is to have at the moment.
        let failed = self.deployments.last().is_some_and(|d| d.status.rollout_state() == Rollout::Failed);
        let on_its_way = self.deployments.last().is_some_and(|d| d.status.rollout_state() == Rollout::InProgress);
        let is_blue = || self.blue().is_some_and(|blue| blue.object.name() == deployment.object.name());
        let goes_back = on_its_way && !service::is_rolling(self.spec) && is_blue();
        let stays = target > 0 || (failed && deployment.serves()) || self.lives(deployment) || goes_back;
        status.set_role(if stays { Role::Active } else { Role::Inactive });
        if status.rollout_state() == Rollout::InProgress {
            let name = deployment.object.name();
            status.set_lifecycle_stage(Stage::Unspecified);
            status.hooks.clear();
            if status.completed_at.is_some() || deployment.has_taken_over() {
                // It was on its way back, or as good as there: it can be gone back to again.
                status.completed_at.get_or_insert(self.now.into());
                status.set_rollout_state(Rollout::Completed);
                status.rollout_state_reason = completed(name);
            } else {
                status.set_rollout_state(Rollout::Failed);
                status.rollout_state_reason = format!("ECS deployment {name} was replaced by a newer one.");
            }
        }
        status
    }

    /// Whether the deployment in force has all its tasks, and no other has any.
    fn is_complete(&self, deployment: &Rolling<'_>, plan: &mut Plan) -> bool {
        let others = || self.deployments.iter().filter(|d| d.object.name() != deployment.object.name());
        !others().any(|d| self.lives(d)) && self.has_all(deployment, plan)
    }

    /// Whether a deployment has all its tasks. Looks again when a young one counts.
    fn has_all(&self, deployment: &Rolling<'_>, plan: &mut Plan) -> bool {
        let from: Vec<Timestamp> =
            self.tasks_of(deployment).filter_map(|t| counts_from(self.spec, self.desired, false, &t)).collect();
        let (sure, young): (Vec<Timestamp>, Vec<Timestamp>) = from.into_iter().partition(|from| *from <= self.now);
        let complete = sure.len() >= self.desired as usize;
        if !complete {
            for from in young {
                plan.wake(from);
            }
        }
        complete
    }

    /// Removes the oldest deployments that are over.
    fn trim(&self, plan: &mut Plan) {
        let over = |d: &&Rolling<'_>| d.status.role() == Role::Inactive && d.spec.target_count == 0 && !self.lives(d);
        let over: Vec<&Rolling<'_>> = self.deployments.iter().filter(over).collect();
        for deployment in over.iter().take(over.len().saturating_sub(HISTORY)) {
            plan.push(Change::Remove {
                key: Key::of(deployment.object),
                expect: Revision(deployment.object.meta().revision),
            });
        }
    }
}

/// A task that ran this long did not fail to start.
pub(crate) const SETTLED: Duration = Duration::from_secs(10);

/// From when on a healthy task counts for its deployment: at once if its health checks say so, or if nothing depends on it;
/// where other tasks go for it (`replaces`) or failures are counted, once it is sure not to be one. (ECS waits 40 s for a
/// task without health checks.) `None`: it is not healthy.
pub(crate) fn counts_from(
    spec: &ServiceSpec,
    desired: i32,
    replaces: bool,
    task: &task::View<'_>,
) -> Option<Timestamp> {
    let start = task.is_healthy().then(|| task.started_at().unwrap_or(Timestamp(0)))?;
    let waits = replaces || service::failure_threshold(spec, desired).is_some();
    let sure = task.is_found_healthy() || !waits;
    Some(if sure { start } else { start + SETTLED })
}

/// Whether a deployment has as many failures as its service's circuit breaker bears.
pub(crate) fn is_tripped(spec: &ServiceSpec, desired: i32, status: &DeploymentStatus) -> bool {
    status.rollout_state() == Rollout::InProgress
        && status.lifecycle_stage() != Stage::CleanUp
        && service::failure_threshold(spec, desired).is_some_and(|threshold| status.failed_tasks >= threshold)
}

#[cfg(test)]
mod stages_tests;
#[cfg(test)]
mod task_sets_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builders::World;

    #[test]
    fn a_new_service_gets_its_first_deployment() {
        let mut world = World::new();
        world.service("web", 2);
        world.settle(|view| plan(view, &World::key("web"), Timestamp(0)));
        let deployment = world.deployment("web-1");
        assert_eq!((deployment.spec.target_count, deployment.status.role()), (2, Role::Primary));
        assert_eq!(world.service_status("web").primary_deployment, "web-1");
    }

    #[test]
    fn a_new_definition_starts_a_deployment_and_the_old_one_is_to_go() {
        let mut world = World::new();
        world.service("web", 2);
        world.settle(|view| plan(view, &World::key("web"), Timestamp(0)));
        world.edit_service("web", |spec| spec.task_definition = "web:2".into());
        world.settle(|view| plan(view, &World::key("web"), Timestamp(0)));
        assert_eq!(world.deployment("web-1").spec.target_count, 0);
        assert_eq!(world.deployment("web-1").status.role(), Role::Inactive);
        assert_eq!(world.deployment("web-2").spec.target_count, 2);
    }

    #[test]
    fn there_are_never_two_primary_deployments() {
        let mut world = World::new();
        world.service("web", 2);
        world.settle(|view| plan(view, &World::key("web"), Timestamp(0)));
        world.edit_service("web", |spec| spec.task_definition = "web:2".into());
        let groups = plan(&world.view, &World::key("web"), Timestamp(0)).groups;
        world.carry_out_all(groups[0].clone());
        let roles = [world.deployment("web-1").status.role(), world.deployment("web-2").status.role()];
        assert_eq!(roles, [Role::Active, Role::Primary], "after the first commit");
    }

    #[test]
    fn a_new_count_starts_no_deployment() {
        let mut world = World::new();
        world.service("web", 2);
        world.settle(|view| plan(view, &World::key("web"), Timestamp(0)));
        world.edit_service("web", |spec| spec.desired_count = Some(7));
        world.settle(|view| plan(view, &World::key("web"), Timestamp(0)));
        assert_eq!(world.deployment("web-1").spec.target_count, 7);
    }

    #[test]
    fn a_deployment_is_complete_once_every_task_is_healthy_and_no_old_one_is_left() {
        let mut world = World::new();
        world.service("web", 1);
        world.settle(|view| plan(view, &World::key("web"), Timestamp(0)));
        assert_eq!(world.deployment("web-1").status.rollout_state(), Rollout::InProgress);
        world.task("web", "web-1", "a", |status| {
            status.set_last_status(steady_core::v1::task_last_status::Value::Running);
        });
        world.settle(|view| plan(view, &World::key("web"), Timestamp(0)));
        assert_eq!(world.deployment("web-1").status.rollout_state(), Rollout::Completed);
        assert_eq!(world.events(), ["(service web) (deployment web-1) deployment completed."]);
    }
}
