//! Deployments: turns a change of a service into a rollout, and says when it is complete.
//!
//! Writes Deployments' specs, roles and rollout states, and the service's `primaryDeployment`. Which task starts and
//! stops is the service controller's to decide.

use std::sync::Arc;

use steady_core::guard::{self, Guard};
use steady_core::v1::deployment_role::Value as Role;
use steady_core::v1::rollout_state::Value as Rollout;
use steady_core::v1::{
    Deployment, DeploymentSpec, DeploymentStatus, Object, ServiceSpec, ServiceStatus, object, severity,
};
use steady_core::{Change, Event, Key, Kind, Plan, Revision, Timestamp, View, service, task};

/// Deployments of a service that are kept after they are over.
const HISTORY: usize = 10;

/// A deployment with its spec and status at hand.
#[derive(Clone, Copy)]
pub(crate) struct Rolling<'a> {
    pub(crate) object: &'a Object,
    pub(crate) spec: &'a DeploymentSpec,
    pub(crate) status: &'a DeploymentStatus,
}

impl Rolling<'_> {
    fn change(&self, status: DeploymentStatus) -> Change {
        let deployment = Deployment { spec: Some(self.spec.clone()), status: Some(status) };
        let object = Object { meta: self.object.meta.clone(), kind: Some(object::Kind::Deployment(deployment)) };
        Change::PutStatus { object, expect: Revision(self.object.meta().revision) }
    }
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
    let newest = deployments.last();
    if newest.is_none_or(|d| d.spec.revision_digest != digest) {
        start(&mut plan, object, spec, status, &deployments, digest);
        return plan;
    }
    for (place, deployment) in deployments.iter().enumerate() {
        let primary = place + 1 == deployments.len();
        let target = if primary { spec.desired_count() } else { 0 };
        if deployment.spec.target_count != target {
            retarget(&mut plan, deployment, target);
        }
        advance(&mut plan, view, object, spec, &deployments, deployment, primary, now);
    }
    trim(&mut plan, &deployments);
    plan
}

/// A new deployment, named by what it is of: a repeated write cannot make two.
fn start(
    plan: &mut Plan,
    object: &Object,
    spec: &ServiceSpec,
    status: ServiceStatus,
    before: &[Rolling<'_>],
    digest: String,
) {
    let sequence = before.last().map_or(0, |d| d.spec.sequence) + 1;
    let name = format!("{}-{sequence}", object.name());
    let reason = format!("ECS deployment {name} in progress.");
    let deployment = Deployment {
        spec: Some(DeploymentSpec {
            service: object.name().to_owned(),
            task_definition: spec.task_definition.clone(),
            target_count: spec.desired_count(),
            sequence,
            revision_digest: digest,
            force_new_deployment: spec.force_new_deployment,
        }),
        status: Some(DeploymentStatus {
            role: Role::Primary.into(),
            rollout_state: Rollout::InProgress.into(),
            rollout_state_reason: reason,
            ..DeploymentStatus::default()
        }),
    };
    let mut created = Object::new(object.cluster(), &name, deployment);
    created.meta_mut().owner = Some(object.reference());
    let status = ServiceStatus { primary_deployment: name, steady: false, ..status };
    let mut group = vec![
        Change::Create(created),
        Change::PutStatus { object: service::with_status(object, status), expect: Revision(object.meta().revision) },
    ];
    // Never two in force, not for a moment.
    for deployment in before.iter().filter(|d| d.status.role() == Role::Primary && guard::stands(Guard::OnePrimary)) {
        let mut status = deployment.status.clone();
        status.set_role(Role::Active);
        group.push(deployment.change(status));
    }
    plan.groups.push(group);
}

fn retarget(plan: &mut Plan, deployment: &Rolling<'_>, target: i32) {
    let spec = DeploymentSpec { target_count: target, ..deployment.spec.clone() };
    let changed = Deployment { spec: Some(spec), status: Some(deployment.status.clone()) };
    plan.push(Change::PutSpec {
        object: Object { meta: deployment.object.meta.clone(), kind: Some(object::Kind::Deployment(changed)) },
        fields: &["targetCount"],
        expect: Revision(deployment.object.meta().revision),
    });
}

/// Moves one deployment's role and rollout state on.
#[allow(clippy::too_many_arguments)]
fn advance(
    plan: &mut Plan,
    view: &View,
    object: &Object,
    spec: &ServiceSpec,
    all: &[Rolling<'_>],
    deployment: &Rolling<'_>,
    primary: bool,
    now: Timestamp,
) {
    if !primary && deployment.status.role() == Role::Inactive {
        return;
    }
    let mut status = deployment.status.clone();
    let tasks = |d: &Rolling<'_>, count: &dyn Fn(&task::View<'_>) -> bool| {
        view.of_service(Kind::Task, object.cluster(), object.name())
            .filter_map(|task| task::of(task))
            .filter(|t| t.is_owned_by(&object.meta().uid) && t.spec.deployment == d.object.name())
            .filter(|t| count(t))
            .count()
    };
    let role = if primary {
        Role::Primary
    } else if tasks(deployment, &|t| t.is_live()) > 0 {
        Role::Active
    } else {
        Role::Inactive
    };
    status.set_role(role);
    let name = deployment.object.name();
    if primary && status.rollout_state() == Rollout::InProgress {
        let old_gone = all.iter().filter(|d| d.object.name() != name).all(|d| tasks(d, &|t| t.is_live()) == 0);
        if old_gone && tasks(deployment, &|t| t.is_healthy()) >= spec.desired_count() as usize {
            status.set_rollout_state(Rollout::Completed);
            status.rollout_state_reason = format!("ECS deployment {name} completed.");
            status.completed_at = Some(now.into());
            plan.events.push(Event {
                about: object.reference(),
                reason: "SERVICE_DEPLOYMENT_COMPLETED",
                message: format!("(service {}) (deployment {name}) deployment completed.", object.name()),
                severity: severity::Value::Info,
            });
        }
    } else if !primary && status.rollout_state() == Rollout::InProgress {
        status.set_rollout_state(Rollout::Failed);
        status.rollout_state_reason = format!("ECS deployment {name} was replaced by a newer one.");
    }
    if status != *deployment.status {
        plan.push(deployment.change(status));
    }
}

/// Removes the oldest deployments that are over.
fn trim(plan: &mut Plan, deployments: &[Rolling<'_>]) {
    let over: Vec<&Rolling<'_>> = deployments.iter().filter(|d| d.status.role() == Role::Inactive).collect();
    for deployment in over.iter().take(over.len().saturating_sub(HISTORY)) {
        plan.push(Change::Remove {
            key: Key::of(deployment.object),
            expect: Revision(deployment.object.meta().revision),
        });
    }
}

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
