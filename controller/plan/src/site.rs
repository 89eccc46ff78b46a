//! A container instance as queries and DAEMON services see it.

use steady_core::placement::ZONE;
use steady_core::query::{self, Query};
use steady_core::v1::instance_state::Value as State;
use steady_core::v1::{Attribute, ContainerInstanceSpec, Object, ServiceSpec, TaskDefinitionSpec};
use steady_core::{Key, Kind, Timestamp, View, placement, resources, security, task};

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

    /// Whether it is one that tasks with these needs can be on, whatever room it has.
    pub(crate) fn satisfies(&self, needs: &Needs) -> bool {
        let Some(spec) = self.spec() else { return false };
        let own = || spec.attributes.iter().map(|a| (a.name.as_str(), a.value.as_str()));
        needs.queries.iter().all(|query| query.selects(self))
            && needs.attributes.iter().all(|required| resources::has_attribute(required, own()))
            && (needs.providers.is_empty() || needs.providers.contains(&spec.capacity_provider))
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
        registered_at(self.object).map(|at| at.to_string()).unwrap_or_default()
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

/// Zone of an instance, empty where it has none.
pub(crate) fn zone(object: &Object) -> &str {
    let spec = object.as_container_instance().and_then(|instance| instance.spec.as_ref());
    spec.and_then(|spec| attribute(spec, ZONE)).unwrap_or_default()
}

/// When an instance was registered.
pub(crate) fn registered_at(object: &Object) -> Option<Timestamp> {
    object.meta().created.as_ref().map(Timestamp::from)
}

/// Whether an instance is DRAINING.
pub(crate) fn drains(view: &View, cluster: &str, instance: &str) -> bool {
    let object = view.get(&Key::new(Kind::ContainerInstance, cluster, instance));
    let spec = object.and_then(|object| object.as_container_instance()?.spec.as_ref());
    spec.is_some_and(|spec| spec.status() == State::Draining)
}

/// A task definition by its name.
pub(crate) fn definition<'a>(view: &'a View, name: &str) -> Option<&'a TaskDefinitionSpec> {
    view.get(&Key::new(Kind::TaskDefinition, "", name))?.as_task_definition()?.spec.as_ref()
}

/// Whether an instance is to take tasks at all.
pub(crate) fn is_active(object: &Object) -> bool {
    let spec = object.as_container_instance().and_then(|instance| instance.spec.as_ref());
    let state = spec.map_or(State::Inactive, ContainerInstanceSpec::status);
    !matches!(state, State::Draining | State::Inactive) && !object.is_deleting()
}

/// What a service and its task definition ask of an instance, room left out.
pub(crate) struct Needs {
    queries: Vec<Query>,
    attributes: Vec<Attribute>,
    /// Capacity providers that it may belong to; none: any, and none at all.
    providers: Vec<String>,
}

impl Needs {
    pub(crate) fn of(view: &View, spec: &ServiceSpec) -> Self {
        let definition = definition(view, &spec.task_definition);
        let of_definition = definition.map_or(&[][..], |definition| &definition.placement_constraints);
        let mut attributes = definition.map(resources::requires_attributes).unwrap_or_default();
        attributes.extend(security::requires_attributes(spec.network_configuration.as_ref()));
        Needs {
            queries: placement::queries(spec.placement_constraints.iter().chain(of_definition)),
            attributes,
            providers: spec.capacity_provider_strategy.iter().map(|item| item.capacity_provider.clone()).collect(),
        }
    }
}

/// The capacity provider that an instance belongs to, empty for none.
pub(crate) fn provider<'a>(view: &'a View, cluster: &str, instance: &str) -> &'a str {
    let object = view.get(&Key::new(Kind::ContainerInstance, cluster, instance));
    let spec = object.and_then(|object| object.as_container_instance()?.spec.as_ref());
    spec.map_or("", |spec| &spec.capacity_provider)
}
