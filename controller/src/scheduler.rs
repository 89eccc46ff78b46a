//! The scheduler: keyed by cluster, one round at a time.

use steady_core::v1::Object;
use steady_core::v1::task_last_status::Value as Status;
use steady_core::{Key, Kind, Plan, Timestamp, View, task};
use steady_runtime::Controller;

/// Placement.
pub(crate) struct Scheduler;

impl Controller for Scheduler {
    const NAME: &'static str = "scheduler";
    // Each group of a round compares its instance's reservation and its tasks: nothing else can be wrong.
    const SEQUENCED: bool = false;

    fn watches() -> &'static [Kind] {
        &[Kind::Task, Kind::ContainerInstance, Kind::Reservation, Kind::Service, Kind::TaskDefinition]
    }

    fn keys(&self, changed: &Object, view: &View) -> Vec<Key> {
        let touches = match changed.kind() {
            // A task to place, one that was placed (others may be waiting to be near it), or one that stopped and made room.
            Kind::Task => task::of(changed).is_some_and(|t| t.status.last_status() <= Status::Pending || !t.is_live()),
            Kind::ContainerInstance => true,
            _ => false,
        };
        let round = || Key::new(Kind::Cluster, "", changed.cluster());
        let waits = touches && view.unplaced(changed.cluster()).next().is_some();
        waits.then(round).into_iter().collect()
    }

    fn plan(&self, view: &View, key: &Key, now: Timestamp) -> Plan {
        steady_plan::scheduler::plan(view, key, now)
    }
}
