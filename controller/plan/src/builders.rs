//! A world for tests: objects by the dozen, and plans carried out as the API would.

use std::sync::Arc;

use steady_core::v1::desired_status::Value as Desired;
use steady_core::v1::instance_state::Value as InstanceState;
use steady_core::v1::task_last_status::Value as Last;
use steady_core::v1::{
    Attribute, ContainerDefinition, ContainerInstance, ContainerInstanceSpec, ContainerInstanceStatus, Demand,
    Deployment, DeploymentSpec, DeploymentStatus, InstanceResources, Lease, Object, Reservation, Service, ServiceSpec,
    ServiceStatus, Task, TaskDefinition, TaskDefinitionSpec, TaskSpec, TaskStatus, object,
};
use steady_core::{Bind, Change, Key, Kind, Plan, Revision, Timestamp, View};

/// A view, and what it takes to change it.
pub(crate) struct World {
    pub(crate) view: View,
    /// What is created is created now.
    pub(crate) now: Timestamp,
    revision: i64,
}

/// A deployment's spec and status.
pub(crate) struct Found {
    pub(crate) spec: DeploymentSpec,
    pub(crate) status: DeploymentStatus,
}

impl World {
    pub(crate) fn new() -> Self {
        World { view: View::default(), now: Timestamp(0), revision: 0 }
    }

    pub(crate) fn key(service: &str) -> Key {
        Key::new(Kind::Service, "default", service)
    }

    pub(crate) fn put(&mut self, mut object: Object) {
        self.revision += 1;
        let meta = object.meta_mut();
        meta.revision = self.revision;
        if meta.uid.is_empty() {
            meta.uid = format!("uid-{}", meta.name);
        }
        self.view.put(Arc::new(object));
        self.view.set_revision(Revision(self.revision));
    }

    pub(crate) fn drop(&mut self, key: &Key) {
        self.revision += 1;
        self.view.remove(key);
        self.view.set_revision(Revision(self.revision));
    }

    /// A service of definition `NAME:1`, which is there too.
    pub(crate) fn service(&mut self, name: &str, desired: i32) {
        for revision in 1..=2 {
            let spec = TaskDefinitionSpec {
                family: name.into(),
                container_definitions: vec![ContainerDefinition { cpu: 100, memory: 100, ..Default::default() }],
                ..Default::default()
            };
            self.put(Object::new("", &format!("{name}:{revision}"), TaskDefinition { spec: Some(spec), status: None }));
        }
        let spec = ServiceSpec {
            task_definition: format!("{name}:1"),
            desired_count: Some(desired),
            ..ServiceSpec::default()
        };
        let mut object =
            Object::new("default", name, Service { spec: Some(spec), status: Some(ServiceStatus::default()) });
        object.meta_mut().generation = 1;
        self.put(object);
    }

    pub(crate) fn edit_service(&mut self, name: &str, edit: impl Fn(&mut ServiceSpec)) {
        let mut object = Object::clone(self.view.get(&Self::key(name)).expect("a service"));
        if let Some(object::Kind::Service(service)) = &mut object.kind {
            edit(service.spec.as_mut().expect("a spec"));
        }
        object.meta_mut().generation += 1;
        self.put(object);
    }

    pub(crate) fn service_status(&self, name: &str) -> ServiceStatus {
        let object = self.view.get(&Self::key(name)).expect("a service");
        object.as_service().and_then(|s| s.status.clone()).expect("a status")
    }

    pub(crate) fn deployment(&self, name: &str) -> Found {
        let object = self.view.get(&Key::new(Kind::Deployment, "default", name)).expect("a deployment");
        let Deployment { spec, status } = object.as_deployment().cloned().expect("a deployment");
        Found { spec: spec.expect("a spec"), status: status.expect("a status") }
    }

    /// A task of a service.
    pub(crate) fn task(&mut self, service: &str, deployment: &str, name: &str, edit: impl Fn(&mut TaskStatus)) {
        let spec = TaskSpec {
            service: service.into(),
            deployment: deployment.into(),
            group: format!("service:{service}"),
            container_instance: "node".into(),
            ..TaskSpec::default()
        };
        let mut object = task(name, spec, edit);
        object.meta_mut().owner = Some(self.view.get(&Self::key(service)).expect("a service").reference());
        self.put(object);
    }

    /// A standalone task on an instance.
    pub(crate) fn task_on(&mut self, instance: &str, name: &str, edit: impl Fn(&mut TaskStatus)) {
        let spec = TaskSpec { container_instance: instance.into(), ..TaskSpec::default() };
        self.put(task(name, spec, edit));
    }

    /// A task that waits for a place.
    pub(crate) fn waiting(&mut self, name: &str, cpu: i32, memory: i32, edit: impl Fn(&mut TaskSpec)) {
        let demand = Demand { cpu, memory, ..Demand::default() };
        let mut spec = TaskSpec { demand: Some(demand), group: "service:web".into(), ..TaskSpec::default() };
        edit(&mut spec);
        let mut object = task(name, spec, |_| {});
        object.meta_mut().created = Some(self.now.into());
        self.put(object);
    }

    pub(crate) fn task_status(&self, name: &str) -> TaskStatus {
        let object = self.view.get(&Key::new(Kind::Task, "default", name)).expect("a task");
        object.as_task().and_then(|t| t.status.clone()).expect("a status")
    }

    pub(crate) fn place(&self, name: &str) -> String {
        let object = self.view.get(&Key::new(Kind::Task, "default", name)).expect("a task");
        object.as_task().and_then(|t| t.spec.as_ref()).expect("a spec").container_instance.clone()
    }

    pub(crate) fn has_task(&self, name: &str) -> bool {
        self.view.get(&Key::new(Kind::Task, "default", name)).is_some()
    }

    /// Tasks of a service that are wanted: name and deployment.
    pub(crate) fn wanted(&self, service: &str) -> Vec<(String, String)> {
        self.view
            .of_service(Kind::Task, "default", service)
            .filter_map(|t| steady_core::task::of(t))
            .filter(steady_core::task::View::is_wanted)
            .map(|t| (t.object.name().to_owned(), t.spec.deployment.clone()))
            .collect()
    }

    /// Changes the status of every task that satisfies a condition.
    pub(crate) fn each_task(
        &mut self,
        which: impl Fn(&TaskSpec, &TaskStatus) -> bool,
        edit: impl Fn(&mut TaskSpec, &mut TaskStatus),
    ) {
        let tasks: Vec<Object> = self.view.of_kind(Kind::Task).map(|t| Object::clone(t)).collect();
        for mut object in tasks {
            if let Some(object::Kind::Task(Task { spec: Some(spec), status: Some(status) })) = &mut object.kind
                && which(spec, status)
            {
                edit(spec, status);
                self.put(object);
            }
        }
    }

    /// What is to stop has stopped.
    pub(crate) fn stop_unwanted(&mut self, now: Timestamp) {
        self.each_task(
            |_, s| s.desired_status() == Desired::Stopped && s.last_status() < Last::Stopped,
            |_, s| {
                s.set_last_status(Last::Stopped);
                s.stopped_at = Some(now.into());
            },
        );
    }

    /// A connected instance.
    pub(crate) fn instance(&mut self, name: &str, cpu: i32, memory: i32) {
        let spec = ContainerInstanceSpec {
            registered_resources: Some(InstanceResources { cpu, memory, ..InstanceResources::default() }),
            ..ContainerInstanceSpec::default()
        };
        let status = ContainerInstanceStatus { agent_connected: true, ..ContainerInstanceStatus::default() };
        self.put(Object::new("default", name, ContainerInstance { spec: Some(spec), status: Some(status) }));
    }

    /// Has an instance drain, or not any more.
    pub(crate) fn drain(&mut self, instance: &str, drains: bool) {
        let key = Key::new(Kind::ContainerInstance, "default", instance);
        let mut object = Object::clone(self.view.get(&key).expect("an instance"));
        if let Some(object::Kind::ContainerInstance(instance)) = &mut object.kind {
            let state = if drains { InstanceState::Draining } else { InstanceState::Active };
            instance.spec.as_mut().expect("a spec").set_status(state);
        }
        self.put(object);
    }

    /// Has a task end.
    pub(crate) fn end(&mut self, name: &str) {
        let mut object = Object::clone(self.view.get(&Key::new(Kind::Task, "default", name)).expect("a task"));
        if let Some(object::Kind::Task(Task { status: Some(status), .. })) = &mut object.kind {
            status.set_last_status(Last::Stopped);
        }
        self.put(object);
    }

    /// Changes an instance's spec.
    pub(crate) fn edit_instance(&mut self, name: &str, edit: impl FnOnce(&mut ContainerInstanceSpec)) {
        let key = Key::new(Kind::ContainerInstance, "default", name);
        let mut object = Object::clone(self.view.get(&key).expect("an instance"));
        if let Some(object::Kind::ContainerInstance(instance)) = &mut object.kind {
            edit(instance.spec.as_mut().expect("a spec"));
        }
        self.put(object);
    }

    /// Gives an instance an attribute.
    pub(crate) fn attribute(&mut self, instance: &str, name: &str, value: &str) {
        let key = Key::new(Kind::ContainerInstance, "default", instance);
        let mut object = Object::clone(self.view.get(&key).expect("an instance"));
        if let Some(object::Kind::ContainerInstance(instance)) = &mut object.kind {
            let attribute = Attribute { name: name.into(), value: value.into() };
            instance.spec.as_mut().expect("a spec").attributes.push(attribute);
        }
        self.put(object);
    }

    pub(crate) fn lease(&mut self, name: &str) {
        self.put(Object::new("", name, Lease::default()));
    }

    pub(crate) fn drop_lease(&mut self, name: &str) {
        self.drop(&Key::new(Kind::Lease, "", name));
    }

    /// Texts of all events.
    pub(crate) fn events(&self) -> Vec<String> {
        self.view.of_kind(Kind::Event).filter_map(|e| e.as_event()?.spec.as_ref().map(|s| s.message.clone())).collect()
    }

    /// Plans and carries out until nothing is left to do.
    pub(crate) fn settle(&mut self, plan: impl Fn(&View) -> Plan) {
        for _ in 0..20 {
            let groups = plan(&self.view).publish(&self.view, None, "test", Timestamp(0));
            if groups.is_empty() {
                return;
            }
            assert_eq!(groups, plan(&self.view).publish(&self.view, None, "test", Timestamp(0)), "deterministic");
            groups.into_iter().flatten().for_each(|change| self.carry_out(change));
        }
        panic!("the plan is never satisfied: {:#?}", plan(&self.view));
    }

    /// Carries out a group of changes.
    pub(crate) fn carry_out_all(&mut self, group: Vec<Change>) {
        for change in group {
            self.carry_out(change);
        }
    }

    fn carry_out(&mut self, change: Change) {
        match change {
            Change::Create(mut object) => {
                assert!(self.view.get(&Key::of(&object)).is_none(), "{} is there already", Key::of(&object));
                object.meta_mut().created = Some(self.now.into());
                self.put(object);
            }
            // Specs are written with whatever status the object has by then, and the other way round.
            Change::PutSpec { object, .. } => self.merge(object, true),
            Change::PutStatus { object, .. } => self.merge(object, false),
            Change::Remove { key, .. } => self.drop(&key),
            Change::Bind(bind) => self.bind(&bind),
            Change::Check { key, expect } => {
                // Within one plan only the first change can be compared here: its own writes move revisions on.
                assert!(self.view.revision_of(&key) >= expect);
            }
        }
    }

    fn bind(&mut self, bind: &Bind) {
        let reservation = Key::new(Kind::Reservation, &bind.instance.cluster, &bind.instance.name);
        assert_eq!(
            self.view.revision_of(&reservation),
            bind.reservation.unwrap_or(self.view.revision_of(&reservation))
        );
        self.put(Object::new(&bind.instance.cluster, &bind.instance.name, Reservation::default()));
        for (name, expect) in &bind.tasks {
            let key = Key::new(Kind::Task, &bind.instance.cluster, name);
            assert_eq!(self.view.revision_of(&key), *expect, "{name}");
            let mut object = Object::clone(self.view.get(&key).expect("a task"));
            if let Some(object::Kind::Task(Task { spec: Some(spec), status: Some(status) })) = &mut object.kind {
                assert_eq!(spec.container_instance, "", "placed once");
                spec.container_instance = bind.instance.name.to_string();
                status.set_last_status(Last::Pending);
                status.conditions.clear();
            }
            self.put(object);
        }
    }

    fn merge(&mut self, new: Object, spec: bool) {
        let mut object = Object::clone(self.view.get(&Key::of(&new)).expect("is there"));
        macro_rules! take {
            ($old:expr, $new:expr) => {
                if spec { $old.spec = $new.spec } else { $old.status = $new.status }
            };
        }
        match (&mut object.kind, new.kind) {
            (Some(object::Kind::Service(old)), Some(object::Kind::Service(new))) => take!(old, new),
            (Some(object::Kind::Deployment(old)), Some(object::Kind::Deployment(new))) => take!(old, new),
            (Some(object::Kind::Task(old)), Some(object::Kind::Task(new))) => take!(old, new),
            (Some(object::Kind::TaskSet(old)), Some(object::Kind::TaskSet(new))) => take!(old, new),
            (Some(object::Kind::Alarm(old)), Some(object::Kind::Alarm(new))) => take!(old, new),
            (Some(object::Kind::ScalableTarget(old)), Some(object::Kind::ScalableTarget(new))) => take!(old, new),
            (Some(object::Kind::CapacityProvider(old)), Some(object::Kind::CapacityProvider(new))) => take!(old, new),
            (Some(object::Kind::ScalingPolicy(old)), Some(object::Kind::ScalingPolicy(new))) => take!(old, new),
            (Some(object::Kind::ContainerInstance(old)), Some(object::Kind::ContainerInstance(new))) => take!(old, new),
            _ => panic!("cannot be written"),
        }
        self.put(object);
    }
}

fn task(name: &str, spec: TaskSpec, edit: impl Fn(&mut TaskStatus)) -> Object {
    let mut status = TaskStatus { desired_status: Desired::Running.into(), ..TaskStatus::default() };
    edit(&mut status);
    Object::new("default", name, Task { spec: Some(spec), status: Some(status) })
}
