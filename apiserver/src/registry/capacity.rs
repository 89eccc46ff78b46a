//! Capacity providers: who uses them, and how they go.

use steady_core::v1::{CapacityProviderStrategyItem, Object, object};
use steady_core::validate::Fault;
use steady_core::{Key, Kind, task};

use super::fault;
use super::writes::Writes;

/// What is wrong with a provider as things are.
pub(super) fn faults(writes: &Writes, object: &Object) -> Vec<Fault> {
    let deleting = writes.get(&Key::of(object)).is_some_and(Object::is_deleting);
    let message = format!("capacity provider `{}` is being deleted; apply it again once it is gone", object.name());
    deleting.then(|| fault("metadata.name", message)).into_iter().collect()
}

/// Who names a provider, if anybody does (ECS `ResourceInUseException`).
pub(super) fn in_use(writes: &Writes, key: &Key) -> Option<String> {
    let view = writes.view();
    let names =
        |strategy: &[CapacityProviderStrategyItem]| strategy.iter().any(|item| item.capacity_provider == *key.name);
    let services = view.in_cluster(Kind::Service, &key.cluster).filter(|object| {
        let spec = object.as_service().and_then(|service| service.spec.as_ref());
        spec.is_some_and(|spec| names(&spec.capacity_provider_strategy))
    });
    let alone = view.in_cluster(Kind::Task, &key.cluster).filter(|object| {
        task::of(object)
            .is_some_and(|t| t.is_live() && t.spec.service.is_empty() && t.spec.capacity_provider == *key.name)
    });
    let users: Vec<String> = services.chain(alone).map(|object| Key::of(object).to_string()).take(5).collect();
    (!users.is_empty()).then(|| users.join(", "))
}

/// A provider that has instances goes when they are gone; `None`: it has none.
pub(super) fn deleting(writes: &mut Writes, mut object: Object) -> Option<Object> {
    let status = object.as_capacity_provider().and_then(|provider| provider.status.as_ref());
    if status.is_none_or(|status| status.instances.is_empty())
        || !matches!(object.kind, Some(object::Kind::CapacityProvider(_)))
    {
        return None;
    }
    if !object.is_deleting() {
        object.meta_mut().deleting = Some(writes.now().into());
        writes.put(object.clone());
    }
    Some(object)
}
