//! Tasks as decisions see them.

use std::sync::LazyLock;

use prost::Message;
use steady_proto::v1::desired_status::Value as Desired;
use steady_proto::v1::health_status::Value as Health;
use steady_proto::v1::stop_code::Value as StopCode;
use steady_proto::v1::target_state::Value as TargetState;
use steady_proto::v1::task_last_status::Value as Status;
use steady_proto::v1::{Object, Target, Task, TaskSpec, TaskStatus, object};

use crate::{Key, Revision, Timestamp, traffic};

/// A task with its spec and status at hand.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The whole object.
    pub object: &'a Object,
    /// Its spec.
    pub spec: &'a TaskSpec,
    /// Its status.
    pub status: &'a TaskStatus,
}

static NO_SPEC: LazyLock<TaskSpec> = LazyLock::new(TaskSpec::default);
static NO_STATUS: LazyLock<TaskStatus> = LazyLock::new(TaskStatus::default);

/// The task in an object, if it is one.
pub fn of(object: &Object) -> Option<View<'_>> {
    let task = object.as_task()?;
    Some(View {
        object,
        spec: task.spec.as_ref().unwrap_or(&NO_SPEC),
        status: task.status.as_ref().unwrap_or(&NO_STATUS),
    })
}

impl<'a> View<'a> {
    /// Not STOPPED: it may use ports and memory.
    pub fn is_live(&self) -> bool {
        self.status.last_status() != Status::Stopped
    }

    /// To run, as far as anyone has decided.
    pub fn is_wanted(&self) -> bool {
        self.is_live() && self.status.desired_status() != Desired::Stopped
    }

    /// To run, and without an instance.
    pub fn wants_place(&self) -> bool {
        self.is_wanted() && self.spec.container_instance.is_empty()
    }

    /// The instance whose room it takes: it is placed, and not STOPPED.
    pub fn placed_on(&self) -> Option<&'a str> {
        let instance = self.spec.container_instance.as_str();
        (self.is_live() && !instance.is_empty()).then_some(instance)
    }

    /// RUNNING and to stay so.
    pub fn is_running(&self) -> bool {
        self.is_wanted() && self.status.last_status() == Status::Running
    }

    /// RUNNING, and its containers' health checks, where it has any, pass, and those of its target groups.
    pub fn is_healthy(&self) -> bool {
        let contained = matches!(self.status.health_status(), Health::Unspecified | Health::Healthy);
        self.is_running() && contained && self.is_reached()
    }

    /// Load balancers find it healthy, in all of its target groups.
    fn is_reached(&self) -> bool {
        let balancers = &self.spec.load_balancers;
        let healthy = |target: &Target| target.state() == TargetState::Healthy;
        balancers.is_empty()
            || (self.status.targets.len() >= balancers.len() && self.status.targets.iter().all(healthy))
    }

    /// A target group whose load balancers find it unhealthy.
    pub fn unhealthy_target(&self) -> Option<&'a Target> {
        self.status.targets.iter().find(|target| target.state() == TargetState::Unhealthy)
    }

    /// Somebody checks its health, and found it good.
    pub fn is_found_healthy(&self) -> bool {
        self.is_healthy() && (self.status.health_status() == Health::Healthy || !self.spec.load_balancers.is_empty())
    }

    /// Its service does not choose it to stop.
    pub fn is_protected(&self, now: Timestamp) -> bool {
        self.protected_until().is_some_and(|until| until > now)
    }

    /// Until when its service does not choose it to stop.
    pub fn protected_until(&self) -> Option<Timestamp> {
        self.spec.protected_until.as_ref().map(Timestamp::from)
    }

    /// Its containers' health checks fail, or those of a target group.
    pub fn is_unhealthy(&self) -> bool {
        self.is_wanted() && (self.status.health_status() == Health::Unhealthy || self.unhealthy_target().is_some())
    }

    /// Its key.
    pub fn key(&self) -> Key {
        Key::of(self.object)
    }

    /// Revision it was last written at.
    pub fn revision(&self) -> Revision {
        Revision(self.object.meta().revision)
    }

    /// Whether it belongs to the service with this uid.
    pub fn is_owned_by(&self, uid: &str) -> bool {
        self.object.meta().owner.as_ref().is_some_and(|owner| owner.uid == uid)
    }

    /// When it was created; a task that was not stored yet: before all others.
    pub fn created(&self) -> Timestamp {
        self.object.meta().created.as_ref().map_or(Timestamp(0), Timestamp::from)
    }

    /// When it became RUNNING, if ever.
    pub fn started_at(&self) -> Option<Timestamp> {
        self.status.started_at.as_ref().map(Timestamp::from)
    }

    /// When it became STOPPED.
    pub fn stopped_at(&self) -> Option<Timestamp> {
        self.status.stopped_at.as_ref().map(Timestamp::from)
    }

    /// The task as it is once it was asked to stop. A task without an instance is STOPPED at once: there is
    /// no agent to do it.
    pub fn stopped(&self, code: StopCode, reason: &str, now: Timestamp) -> Object {
        let mut status = self.status.clone();
        status.desired_status = Desired::Stopped.into();
        if status.stopped_reason.is_empty() {
            reason.clone_into(&mut status.stopped_reason);
            status.stop_code = code.into();
        }
        status.stopping_at.get_or_insert(now.into());
        status.conditions.clear();
        // From now on it gets no new requests.
        traffic::drain(&mut status.targets, now);
        if self.spec.container_instance.is_empty() {
            status.last_status = Status::Stopped.into();
            status.stopped_at = Some(now.into());
        }
        self.with_status(status)
    }

    /// The same, stopped already: its instance is no more, or not heard of any more.
    pub fn given_up(&self, code: StopCode, reason: &str, now: Timestamp) -> Object {
        let mut stopped = self.stopped(code, reason, now);
        if let Some(object::Kind::Task(Task { status: Some(status), .. })) = &mut stopped.kind {
            status.set_last_status(Status::Stopped);
            status.stopped_at = Some(now.into());
            status.targets.clear();
        }
        stopped
    }

    /// The task with another status.
    pub fn with_status(&self, status: TaskStatus) -> Object {
        let task = Task { spec: Some(self.spec.clone()), status: Some(status) };
        Object { meta: self.object.meta.clone(), kind: Some(object::Kind::Task(task)) }
    }
}

/// `family` and revision of `family:revision`.
pub fn split_definition(name: &str) -> Option<(&str, i64)> {
    let (family, revision) = name.rsplit_once(':')?;
    Some((family, revision.parse().ok().filter(|r| *r > 0)?))
}

/// What decides where a task can be and how well: tasks that are alike in it are interchangeable for a scheduler.
pub fn likeness(spec: &TaskSpec) -> Vec<u8> {
    let alike = TaskSpec {
        group: spec.group.clone(),
        demand: spec.demand.clone(),
        placement_constraints: spec.placement_constraints.clone(),
        placement_strategy: spec.placement_strategy.clone(),
        priority: spec.priority,
        requires_attributes: spec.requires_attributes.clone(),
        capacity_provider: spec.capacity_provider.clone(),
        ..TaskSpec::default()
    };
    alike.encode_to_vec()
}
