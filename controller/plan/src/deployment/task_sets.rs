//! Services whose deployments are made by somebody else (ECS deployment controller EXTERNAL): one Deployment for each `TaskSet`,
//! with as many tasks as the set's scale says.

use steady_core::v1::deployment_role::Value as Role;
use steady_core::v1::rollout_state::Value as Rollout;
use steady_core::v1::stability_status::Value as Stability;
use steady_core::v1::{
    Deployment, DeploymentSpec, DeploymentStatus, Object, ServiceStatus, TaskSet, TaskSetStatus, object,
};
use steady_core::{Change, Key, Plan, Revision, Waiting, service, task};

use super::{Rolled, Rolling};
use crate::site;

/// A task set with its deployment, if that is there already.
struct Set<'a> {
    object: &'a Object,
    content: &'a TaskSet,
    deployment: Option<&'a Rolling<'a>>,
}

/// Gives a deployment so many tasks and this role.
fn bring(group: &mut Vec<Change>, deployment: &Rolling<'_>, target: i32, role: Role) {
    if deployment.spec.target_count != target {
        let spec = DeploymentSpec { target_count: target, ..deployment.spec.clone() };
        group.push(deployment.respecified(spec, &["targetCount"]));
    }
    if deployment.status.role() != role {
        let status = DeploymentStatus { role: role.into(), ..deployment.status.clone() };
        group.push(deployment.change(status));
    }
}

impl Rolled<'_> {
    /// What to do about a service with task sets.
    pub(super) fn external(&self) -> Plan {
        let mut plan = Plan::default();
        let sets: Vec<Set<'_>> = service::task_sets(self.view, self.object)
            .map(|(object, set)| {
                let deployment = self.deployments.iter().find(|d| d.spec.revision_digest == object.meta().uid);
                Set { object, content: set, deployment }
            })
            .collect();
        let mut sequence = self.deployments.last().map_or(0, |d| d.spec.sequence);
        // Never two in force, not for a moment: all in one write.
        let mut group = Vec::new();
        for gone in
            self.deployments.iter().filter(|d| !sets.iter().any(|s| s.object.meta().uid == d.spec.revision_digest))
        {
            if gone.spec.target_count == 0 && gone.status.role() == Role::Active && !self.lives(gone) {
                let expect = Revision(gone.object.meta().revision);
                group.push(Change::Remove { key: Key::of(gone.object), expect });
            } else {
                bring(&mut group, gone, 0, Role::Active);
            }
        }
        for set in &sets {
            let target = service::computed_count(self.spec, set.content);
            let role = if set.object.name() == self.spec.primary_task_set { Role::Primary } else { Role::Active };
            if let Some(deployment) = set.deployment {
                bring(&mut group, deployment, target, role);
            } else {
                sequence += 1;
                group.push(Change::Create(self.of_set(set, sequence, target, role)));
            }
            self.tell(set, target, role, &mut plan);
        }
        if !group.is_empty() {
            plan.groups.insert(0, group);
        }
        let primary = sets.iter().find(|set| set.object.name() == self.spec.primary_task_set);
        let primary = primary.and_then(|set| set.deployment).map_or("", |d| d.object.name());
        let named = &self.spec.primary_task_set;
        if !named.is_empty() && !sets.iter().any(|set| set.object.name() == named) {
            let message =
                format!("(service {}) has no task set `{named}`, which is to be PRIMARY.", self.object.name());
            let about = Key::of(self.object);
            plan.waiting.push(Waiting { about, reason: "TaskSetMissing", message, quiet: false });
        }
        if self.status.primary_deployment != primary {
            plan.push(
                self.with_status(ServiceStatus { primary_deployment: primary.to_owned(), ..self.status.clone() }),
            );
        }
        plan
    }

    fn of_set(&self, set: &Set<'_>, sequence: i64, target: i32, role: Role) -> Object {
        let meta = set.object.meta();
        let spec = set.content.spec.clone().unwrap_or_default();
        let deployment = Deployment {
            spec: Some(DeploymentSpec {
                service: self.object.name().to_owned(),
                task_definition: spec.task_definition,
                target_count: target,
                sequence,
                revision_digest: meta.uid.clone(),
                network_configuration: spec.network_configuration,
                load_balancers: spec.load_balancers,
                ..DeploymentSpec::default()
            }),
            status: Some(DeploymentStatus {
                role: role.into(),
                rollout_state: Rollout::Completed.into(),
                rollout_state_reason: format!("As task set {} says.", meta.name),
                ..DeploymentStatus::default()
            }),
        };
        // A set that is made again under the same name is another one.
        let uid: String = meta.uid.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
        let service: String = self.object.name().chars().take(200).collect();
        let name = format!("{service}-{uid}");
        let mut created = Object::new(self.object.cluster(), &name, deployment);
        created.meta_mut().owner = Some(self.object.reference());
        created
    }

    /// Writes how a set is doing.
    fn tell(&self, set: &Set<'_>, target: i32, role: Role, plan: &mut Plan) {
        let tasks: Vec<task::View<'_>> = set.deployment.into_iter().flat_map(|d| self.tasks_of(d)).collect();
        let wanted = || tasks.iter().filter(|t| t.is_wanted());
        let running = wanted().filter(|t| t.is_running()).count() as i32;
        let pending = wanted().count() as i32 - running;
        let drains = |t: &task::View<'_>| site::drains(self.view, self.object.cluster(), &t.spec.container_instance);
        let live = tasks.iter().filter(|t| t.is_live()).count() as i32;
        let stable = live == target && tasks.iter().filter(|t| t.is_live()).all(|t| t.is_healthy() && !drains(t));
        let stability = if stable { Stability::SteadyState } else { Stability::Stabilizing };
        let old = set.content.status.unwrap_or_default();
        let mut status = TaskSetStatus {
            status: role.into(),
            computed_desired_count: Some(target),
            running_count: Some(running),
            pending_count: Some(pending),
            stability_status: stability.into(),
            ..old
        };
        if old.stability_status() != stability {
            status.stability_status_at = Some(self.now.into());
        }
        if status != old {
            let changed = TaskSet { spec: set.content.spec.clone(), status: Some(status) };
            let object = Object { meta: set.object.meta.clone(), kind: Some(object::Kind::TaskSet(changed)) };
            plan.push(Change::PutStatus { object, expect: Revision(set.object.meta().revision) });
        }
    }
}
