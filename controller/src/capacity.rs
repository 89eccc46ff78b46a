//! The capacity controller: keyed by capacity provider.

use steady_core::v1::Object;
use steady_core::{Key, Kind, Plan, Timestamp, View, task};
use steady_runtime::Controller;

/// How many instances pools have.
pub(crate) struct Capacity;

impl Controller for Capacity {
    const NAME: &'static str = "capacity";
    // What is decided on many objects is written into one, at the revision it was read at.
    const SEQUENCED: bool = false;

    fn watches() -> &'static [Kind] {
        &[Kind::CapacityProvider, Kind::ContainerInstance, Kind::Task, Kind::Service, Kind::TaskDefinition]
    }

    fn keys(&self, changed: &Object, view: &View) -> Vec<Key> {
        let cluster = changed.cluster();
        let provider = |name: &str| {
            let key = Key::new(Kind::CapacityProvider, cluster, name);
            (!name.is_empty() && view.get(&key).is_some()).then_some(key)
        };
        let all = || view.in_cluster(Kind::CapacityProvider, cluster).map(|object| Key::of(object)).collect();
        match changed.kind() {
            Kind::CapacityProvider => vec![Key::of(changed)],
            Kind::ContainerInstance => {
                let spec = changed.as_container_instance().and_then(|instance| instance.spec.as_ref());
                spec.and_then(|spec| provider(&spec.capacity_provider)).into_iter().collect()
            }
            Kind::Task => {
                let Some(found) = task::of(changed) else { return vec![] };
                // Tasks of any provider may be on an instance of this one.
                let on = view.get(&Key::new(Kind::ContainerInstance, cluster, &found.spec.container_instance));
                let of = on.and_then(|on| on.as_container_instance()?.spec.as_ref());
                let of = of.and_then(|spec| provider(&spec.capacity_provider));
                of.into_iter().chain(provider(&found.spec.capacity_provider)).collect()
            }
            // What is DAEMON, and what room is kept for.
            Kind::Service => all(),
            _ => vec![],
        }
    }

    fn plan(&self, view: &View, key: &Key, now: Timestamp) -> Plan {
        steady_plan::capacity::plan(view, key, now)
    }
}
