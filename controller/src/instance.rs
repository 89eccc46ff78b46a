//! The instance controller: keyed by container instance.

use steady_core::v1::Object;
use steady_core::{Key, Kind, Plan, Timestamp, View};
use steady_runtime::Controller;

/// Silent agents.
pub(crate) struct Instances;

impl Controller for Instances {
    const NAME: &'static str = "instance";

    fn watches() -> &'static [Kind] {
        &[Kind::ContainerInstance, Kind::Lease, Kind::Task]
    }

    fn keys(&self, changed: &Object, _: &View) -> Vec<Key> {
        match changed.kind() {
            Kind::ContainerInstance => vec![Key::of(changed)],
            Kind::Lease => {
                // `instance.CLUSTER.NAME`, see `steady_core::instance_lease`.
                let mut parts = changed.name().splitn(3, '.');
                match (parts.next(), parts.next(), parts.next()) {
                    (Some("instance"), Some(cluster), Some(name)) => {
                        vec![Key::new(Kind::ContainerInstance, cluster, name)]
                    }
                    _ => vec![],
                }
            }
            _ => vec![],
        }
    }

    fn plan(&self, view: &View, key: &Key, now: Timestamp) -> Plan {
        steady_plan::instance::plan(view, key, now)
    }
}
