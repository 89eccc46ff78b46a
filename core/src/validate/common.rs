//! What several kinds' checks share.

use steady_proto::v1::placement_constraint_type::Value as ConstraintType;
use steady_proto::v1::{CapacityProviderStrategyItem, PlacementConstraint, PlacementStrategy};

use super::Fault;
use crate::placement::Strategy;
use crate::query::Query;

/// Collects faults.
#[derive(Default)]
pub(super) struct Faults {
    pub(super) found: Vec<Fault>,
}

impl Faults {
    pub(super) fn add(&mut self, path: &str, message: String) {
        self.found.push(Fault { path: path.to_owned(), message });
    }

    /// Refuses a number outside `from..=to`.
    pub(super) fn range(&mut self, path: &str, value: i64, from: i64, to: i64, unit: &str) {
        if !(from..=to).contains(&value) {
            let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
            self.add(path, format!("{value} is out of range; expected {from} to {to}{unit}"));
        }
    }

    /// Refuses a field that cannot be obeyed yet, rather than ignoring it.
    pub(super) fn unsupported(&mut self, path: &str, given: bool, instead: &str) {
        if given {
            self.add(path, format!("is not supported; {instead}"));
        }
    }
}

/// 1-255 of `[A-Za-z0-9_-]` (ECS).
pub(super) fn name(faults: &mut Faults, path: &str, name: &str) {
    if name.is_empty() {
        faults.add(path, "is missing; expected 1-255 of letters, digits, `_` and `-`".into());
    } else if name.len() > 255 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
        faults.add(path, format!("`{name}` is no name; expected 1-255 of letters, digits, `_` and `-`"));
    }
}

pub(super) fn constraints(faults: &mut Faults, path: &str, constraints: &[PlacementConstraint], in_definition: bool) {
    if constraints.len() > 10 {
        faults.add(path, format!("{} constraints; at most 10", constraints.len()));
    }
    for (i, constraint) in constraints.iter().enumerate() {
        let path = format!("{path}[{i}]");
        match constraint.r#type() {
            ConstraintType::Unspecified => {
                faults.add(&format!("{path}.type"), "is missing; expected memberOf or distinctInstance".into());
            }
            ConstraintType::DistinctInstance if in_definition => {
                let message = "distinctInstance is not for a task definition; put it into the service".into();
                faults.add(&format!("{path}.type"), message);
            }
            ConstraintType::DistinctInstance if !constraint.expression.is_empty() => {
                faults.add(&format!("{path}.expression"), "distinctInstance takes no expression; leave it out".into());
            }
            ConstraintType::DistinctInstance => {}
            ConstraintType::MemberOf => {
                if let Err(error) = Query::parse(&constraint.expression) {
                    faults.add(&format!("{path}.expression"), error.to_string());
                }
            }
        }
    }
}

pub(super) fn strategies(faults: &mut Faults, path: &str, strategies: &[PlacementStrategy]) {
    if strategies.len() > 5 {
        faults.add(path, format!("{} strategies; at most 5", strategies.len()));
    }
    for (i, strategy) in strategies.iter().enumerate() {
        if let Err(message) = Strategy::parse(strategy) {
            faults.add(&format!("{path}[{i}]"), message);
        }
    }
}

/// Highest and lowest priority of a task.
const PRIORITIES: (i64, i64) = (-100, 100);

/// Whose turn a task is, and who places it.
pub(super) fn priority(faults: &mut Faults, priority: i32, scheduler: &str) {
    faults.range("spec.priority", priority.into(), PRIORITIES.0, PRIORITIES.1, "");
    if !scheduler.is_empty() {
        name(faults, "spec.schedulerName", scheduler);
    }
}

/// ECS: at most 20 items, each provider once, one base, and a weight somewhere.
pub(super) fn capacity(faults: &mut Faults, path: &str, strategy: &[CapacityProviderStrategyItem]) {
    if strategy.len() > 20 {
        faults.add(path, format!("{} capacity providers; at most 20", strategy.len()));
    }
    for (i, item) in strategy.iter().enumerate() {
        let at = |field: &str| format!("{path}[{i}].{field}");
        name(faults, &at("capacityProvider"), &item.capacity_provider);
        faults.range(&at("weight"), item.weight.into(), 0, 1000, "");
        faults.range(&at("base"), item.base.into(), 0, 100_000, "tasks");
        if strategy[..i].iter().any(|other| other.capacity_provider == item.capacity_provider) {
            faults.add(&at("capacityProvider"), format!("`{}` is named twice", item.capacity_provider));
        }
    }
    if strategy.iter().filter(|item| item.base > 0).count() > 1 {
        faults.add(path, "two capacity providers have a base; only one can have one".into());
    }
    if !strategy.is_empty() && strategy.iter().all(|item| item.weight <= 0) {
        faults.add(path, "no capacity provider has a weight; give one of them a weight of 1 or more".into());
    }
}
