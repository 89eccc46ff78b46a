//! The scheduler: keyed by cluster, one round at a time. Any number of schedulers work beside each other.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use steady_core::v1::Object;
use steady_core::{Key, Kind, Plan, Timestamp, View};
use steady_plan::scheduler::{Fleet, LEASE};
use steady_runtime::Controller;

/// Placement.
pub(crate) struct Scheduler {
    holder: String,
    /// By cluster: what a round knows, which it would know without, too: a round costs what has changed since the last one.
    fleets: Mutex<BTreeMap<Key, Fleet>>,
}

impl Scheduler {
    /// The scheduler of a process.
    pub(crate) fn new(holder: &str) -> Self {
        Scheduler { holder: holder.to_owned(), fleets: Mutex::default() }
    }
}

impl Controller for Scheduler {
    const NAME: &'static str = "scheduler";
    // Each group of a round compares its tasks, the room and, where it matters, what else was bound: nothing else can be wrong.
    const SEQUENCED: bool = false;
    const SHARED: bool = true;

    fn watches() -> &'static [Kind] {
        &[Kind::Task, Kind::ContainerInstance, Kind::Reservation, Kind::Service, Kind::TaskDefinition]
    }

    fn keys(&self, changed: &Object, view: &View) -> Vec<Key> {
        let round = |cluster: &str| Key::new(Kind::Cluster, "", cluster);
        match changed.kind() {
            // Any change of a task may make room, or be one that others wait to be near; a round costs what has changed.
            Kind::Task | Kind::ContainerInstance | Kind::Service => {
                let waits = view.unplaced(changed.cluster()).next().is_some();
                waits.then(|| round(changed.cluster())).into_iter().collect()
            }
            // A scheduler came or went: what was its is another one's.
            Kind::Lease if changed.name().starts_with(LEASE) => {
                view.clusters_waiting().iter().map(|cluster| round(cluster)).collect()
            }
            _ => Vec::new(),
        }
    }

    fn plan(&self, view: &View, key: &Key, now: Timestamp) -> Plan {
        // Rounds of one cluster come one after the other.
        let mut fleet = {
            let mut fleets = self.fleets.lock().unwrap_or_else(PoisonError::into_inner);
            fleets.remove(key).unwrap_or_default()
        };
        let plan = fleet.plan(view, key, now, &self.holder);
        self.fleets.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), fleet);
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedulers_know_each_other_by_the_leases_that_they_hold() {
        assert_eq!(LEASE, format!("controller.{}.", Scheduler::NAME), "as the runner names them");
    }
}
