//! A container instance as queries and DAEMON services see it.

use steady_core::query::{self, Query};
use steady_core::v1::instance_state::Value as State;
use steady_core::v1::{ContainerInstanceSpec, Object, ServiceSpec};
use steady_core::{Key, Kind, Timestamp, View, placement, task};

/// An instance, and what is on it.
pub(crate) struct Site<'a> {
    view: &'a View,
    object: &'a Object,
}

impl<'a> Site<'a> {
    pub(crate) fn new(view: &'a View, object: &'a Object) -> Self {
        Site { view, object }
    }

    fn spec(&self) -> Option<&'a ContainerInstanceSpec> {
        self.object.as_container_instance()?.spec.as_ref()
    }

    /// Whether every query selects it.
    pub(crate) fn satisfies(&self, queries: &[Query]) -> bool {
        queries.iter().all(|query| query.selects(self))
    }
}

impl query::Instance for Site<'_> {
    fn agent_connected(&self) -> bool {
        let status = self.object.as_container_instance().and_then(|instance| instance.status.as_ref());
        status.is_some_and(|status| status.agent_connected)
    }

    fn agent_version(&self) -> &str {
        self.spec().map_or("", |spec| &spec.agent_version)
    }

    fn attribute(&self, name: &str) -> Option<&str> {
        attribute(self.spec()?, name)
    }

    fn id(&self) -> &str {
        self.object.name()
    }

    fn registered_at(&self) -> String {
        registered_at(self.object)
    }

    fn running_tasks_count(&self) -> usize {
        self.view.on_instance(self.object.cluster(), self.object.name()).count()
    }

    fn has_group(&self, which: &dyn Fn(&str) -> bool) -> bool {
        let tasks = self.view.on_instance(self.object.cluster(), self.object.name());
        tasks.filter_map(|task| task::of(task)).any(|task| which(&task.spec.group))
    }
}

fn attribute<'a>(spec: &'a ContainerInstanceSpec, name: &str) -> Option<&'a str> {
    spec.attributes.iter().find(|attribute| attribute.name == name).map(|attribute| attribute.value.as_str())
}

/// When an instance was registered, as RFC 3339; empty: unknown.
pub(crate) fn registered_at(object: &Object) -> String {
    let created = object.meta().created.as_ref().map(Timestamp::from);
    created.map(|at| at.to_string()).unwrap_or_default()
}

/// Whether an instance is to take tasks at all.
pub(crate) fn is_active(object: &Object) -> bool {
    let spec = object.as_container_instance().and_then(|instance| instance.spec.as_ref());
    let state = spec.map_or(State::Inactive, ContainerInstanceSpec::status);
    !matches!(state, State::Draining | State::Inactive) && !object.is_deleting()
}

/// What the placement constraints of a service and of its task definition ask of an instance.
pub(crate) fn queries(view: &View, spec: &ServiceSpec) -> Vec<Query> {
    let definition = view.get(&Key::new(Kind::TaskDefinition, "", &spec.task_definition));
    let definition = definition.and_then(|d| d.as_task_definition()?.spec.as_ref());
    let of_definition = definition.map_or(&[][..], |definition| &definition.placement_constraints);
    placement::queries(spec.placement_constraints.iter().chain(of_definition))
}
