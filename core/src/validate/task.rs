//! Checks of a Task that is asked for by itself (ECS `RunTask`).

use steady_proto::v1::TaskSpec;

use super::common::{Faults, constraints, name, priority, strategies};
use super::network;

/// Most characters of `startedBy` (ECS).
const MAX_STARTED_BY: usize = 128;

pub(super) fn check(spec: &TaskSpec, faults: &mut Faults) {
    if spec.task_definition.is_empty() {
        faults.add("spec.taskDefinition", "is missing; expected `family` or `family:revision`".into());
    }
    if spec.started_by.len() > MAX_STARTED_BY {
        faults.add("spec.startedBy", format!("{} characters; at most {MAX_STARTED_BY}", spec.started_by.len()));
    }
    constraints(faults, "spec.placementConstraints", &spec.placement_constraints, false);
    strategies(faults, "spec.placementStrategy", &spec.placement_strategy);
    priority(faults, spec.priority, &spec.scheduler_name);
    network::configuration(spec.network_configuration.as_ref(), faults);
    if !spec.capacity_provider.is_empty() {
        name(faults, "spec.capacityProvider", &spec.capacity_provider);
    }
}
