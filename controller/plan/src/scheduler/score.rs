//! How good an instance is for a task: smaller is better, field by field in the order of the strategies.

use steady_core::placement::{Strategy, ZONE};
use steady_core::{derived_id, task};

use super::node::Node;

/// One number for each strategy of the chain, then the name so that the choice is always the same.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Score<'a> {
    by_strategy: Vec<i64>,
    name: &'a str,
}

impl<'a> Score<'a> {
    pub(super) fn of(
        nodes: &'a [Node],
        candidates: &[usize],
        place: usize,
        task: &task::View<'_>,
        chain: &[Strategy],
    ) -> Self {
        let node = &nodes[place];
        let group = task.spec.group.as_str();
        let spread = |attribute: &str| {
            let value = node.attributes.get(attribute);
            let alike = candidates.iter().map(|c| &nodes[*c]).filter(|n| n.attributes.get(attribute) == value);
            alike.map(|n| n.group(group)).sum::<usize>() as i64
        };
        let total = |node: &Node| node.groups.values().sum::<usize>() as i64;
        let by_strategy = if chain.is_empty() {
            // ECS' default: the zone, and in it the instance, with fewest tasks of the service.
            vec![spread(ZONE), node.group(group) as i64, total(node)]
        } else {
            let one = |strategy: &Strategy| match strategy {
                Strategy::Random => {
                    let id = derived_id(&[task.object.name(), &node.name]);
                    i64::from_str_radix(&id[..12], 16).unwrap_or(0)
                }
                Strategy::SpreadInstance => node.group(group) as i64,
                Strategy::SpreadAttribute(name) => spread(name),
                Strategy::BinpackCpu => node.free.cpu,
                Strategy::BinpackMemory => node.free.memory,
            };
            chain.iter().map(one).collect()
        };
        Score { by_strategy, name: &node.name }
    }
}
