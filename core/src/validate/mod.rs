//! Checks of what people hand in: every fault of an object at once, each with its path.

mod capacity;
mod common;
mod engine;
mod instance;
mod network;
mod scaling;
mod secret;
mod service;
mod task;
mod task_definition;
mod traffic;

use std::collections::BTreeMap;

use steady_proto::v1::{CapacityProviderStrategyItem, Dimension, Object, ServiceSpec, object};
use steady_proto::{Kind, KindExt};

use crate::Key;
use common::{Faults, name};
pub use scaling::interval as step_interval;
pub use traffic::values as condition_values;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// In JSON names: `spec.containerDefinitions[0].name`.
    pub path: String,
    /// What is wrong, the value, and what would be right.
    pub message: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// Largest object that is stored, bytes.
pub const MAX_OBJECT_BYTES: usize = 256 * 1024;

/// Everything wrong with an object that was filled in (see [`crate::defaults::fill`]) and is about to be stored.
pub fn object(object: &Object) -> Vec<Fault> {
    let mut faults = Faults::default();
    let size = prost::Message::encoded_len(object);
    if size > MAX_OBJECT_BYTES {
        faults.add("", format!("the object has {size} bytes; {MAX_OBJECT_BYTES} are the most that is stored"));
    }
    meta(object, &mut faults);
    match &object.kind {
        Some(object::Kind::TaskDefinition(definition)) => {
            task_definition::check(definition.spec.as_ref().unwrap_or(&<_>::default()), &mut faults);
        }
        Some(object::Kind::Service(service)) => {
            let none = ServiceSpec::default();
            let spec = service.spec.as_ref().unwrap_or(&none);
            service::check(spec, &mut faults);
            traffic::registries(object.name(), &spec.service_registries, &mut faults);
        }
        Some(object::Kind::TaskSet(set)) => {
            let spec = set.spec.clone().unwrap_or_default();
            if spec.service.is_empty() {
                faults.add("spec.service", "is missing; expected the name of a service".into());
            }
            if spec.task_definition.is_empty() {
                faults.add("spec.taskDefinition", "is missing; expected `family` or `family:revision`".into());
            }
            let scale = spec.scale.map_or(0.0, |scale| scale.value);
            if !(0.0..=100.0).contains(&scale) {
                faults.add("spec.scale.value", format!("{scale} is out of range; expected 0 to 100 percent"));
            }
            network::configuration(spec.network_configuration.as_ref(), &mut faults);
            traffic::load_balancers(&spec.load_balancers, &mut faults);
            if spec.external_id.len() > 128 {
                faults.add("spec.externalId", format!("has {} characters; at most 128", spec.external_id.len()));
            }
        }
        Some(object::Kind::Secret(secret)) => {
            secret::check(secret.spec.as_ref().unwrap_or(&<_>::default()), &mut faults);
        }
        Some(object::Kind::SecurityGroup(group)) => {
            network::check(group.spec.as_ref().unwrap_or(&<_>::default()), &mut faults);
        }
        Some(object::Kind::TargetGroup(group)) => {
            traffic::target_group(group.spec.as_ref().unwrap_or(&<_>::default()), &mut faults);
        }
        Some(object::Kind::Listener(listener)) => {
            traffic::listener(listener.spec.as_ref().unwrap_or(&<_>::default()), &mut faults);
        }
        Some(object::Kind::Alarm(alarm)) => {
            scaling::alarm(object.cluster(), alarm.spec.as_ref().unwrap_or(&<_>::default()), &mut faults);
        }
        Some(object::Kind::CapacityProvider(provider)) => {
            capacity::provider(object.name(), provider.spec.as_ref().unwrap_or(&<_>::default()), &mut faults);
        }
        Some(object::Kind::ScalableTarget(target)) => {
            let spec = target.spec.clone().unwrap_or_default();
            scaling::target(object.cluster(), object.name(), &spec, &mut faults);
        }
        Some(object::Kind::ScalingPolicy(policy)) => {
            let spec = policy.spec.clone().unwrap_or_default();
            scaling::policy(object.cluster(), object.name(), &spec, &mut faults);
        }
        Some(object::Kind::ContainerInstance(instance)) => {
            instance::check(instance.spec.as_ref().unwrap_or(&<_>::default()), &mut faults);
        }
        Some(object::Kind::Task(task)) => task::check(task.spec.as_ref().unwrap_or(&<_>::default()), &mut faults),
        Some(_) => {}
        None => faults.add("kind", "the object has no kind".into()),
    }
    faults.found
}

/// Everything wrong with a capacity provider strategy at this path.
pub fn capacity_provider_strategy(path: &str, strategy: &[CapacityProviderStrategyItem]) -> Vec<Fault> {
    let mut faults = Faults::default();
    common::capacity(&mut faults, path, strategy);
    faults.found
}

/// Everything wrong with a metric's names.
pub fn metric(namespace: &str, name: &str, dimensions: &[Dimension], path: &str) -> Vec<Fault> {
    let mut faults = Faults::default();
    scaling::named(namespace, name, dimensions, path, &mut faults);
    faults.found
}

/// Objects of one request that name the same thing: the index of each later one, and its fault.
pub fn duplicates(objects: &[Object]) -> Vec<(usize, Fault)> {
    let mut seen: BTreeMap<Key, usize> = BTreeMap::new();
    let mut faults = Vec::new();
    for (index, object) in objects.iter().enumerate() {
        if let Some(first) = seen.insert(Key::of(object), index) {
            let path = "metadata.name".to_owned();
            let kind = object.kind().name();
            let message = format!("{kind} `{}` is given twice, first as document {}", object.name(), first + 1);
            faults.push((index, Fault { path, message }));
        }
    }
    faults
}

fn meta(object: &Object, faults: &mut Faults) {
    let meta = object.meta();
    if object.kind() != Kind::Event && object.kind() != Kind::Lease && object.kind() != Kind::Sequencer {
        let bare = if object.kind() == Kind::TaskDefinition {
            meta.name.split(':').next().unwrap_or_default()
        } else {
            &meta.name
        };
        name(faults, "metadata.name", bare);
    }
    if object.kind().in_cluster() {
        name(faults, "metadata.cluster", &meta.cluster);
    }
    for (field, map) in [("labels", &meta.labels), ("annotations", &meta.annotations)] {
        if map.len() > 50 {
            faults.add(&format!("metadata.{field}"), format!("{} entries; at most 50 (as ECS tags)", map.len()));
        }
        for (key, value) in map {
            let too_long = if field == "labels" { key.len() > 128 || value.len() > 256 } else { key.len() > 128 };
            if key.is_empty() || too_long {
                let message = format!("`{key}`: a key has 1-128 characters and a value at most 256 (as ECS tags)");
                faults.add(&format!("metadata.{field}"), message);
            }
        }
    }
}
