//! The reaper: keyed by cluster, swept every few seconds whatever happens.

use steady_core::v1::Object;
use steady_core::{Key, Kind, Plan, Timestamp, View};
use steady_runtime::Controller;

/// Removing what is over.
pub(crate) struct Reaper;

impl Controller for Reaper {
    const NAME: &'static str = "reaper";
    // It removes objects at the revision it saw them at.
    const SEQUENCED: bool = false;

    fn watches() -> &'static [Kind] {
        &[
            Kind::Cluster,
            Kind::Task,
            Kind::Event,
            Kind::Service,
            Kind::Deployment,
            Kind::TaskSet,
            Kind::TaskDefinition,
            Kind::Reservation,
            Kind::ContainerInstance,
            Kind::MetricData,
            Kind::Alarm,
            Kind::ScalingPolicy,
        ]
    }

    fn keys(&self, changed: &Object, _: &View) -> Vec<Key> {
        if changed.kind() == Kind::Cluster { vec![Key::of(changed)] } else { vec![] }
    }

    fn plan(&self, view: &View, key: &Key, now: Timestamp) -> Plan {
        steady_plan::reaper::plan(view, key, now)
    }
}
