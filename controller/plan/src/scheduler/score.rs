//! How good an instance is for a task: smaller is better, field by field in the order of the strategies.

use std::collections::BTreeMap;

use steady_core::placement::{Strategy, ZONE};
use steady_core::{derived_id, task};

use super::node::Node;

/// Tasks of a group on the candidates with each value of each attribute that is spread over.
#[derive(Debug, Default)]
pub(super) struct Crowds<'a> {
    by_attribute: BTreeMap<&'a str, BTreeMap<Option<&'a str>, i64>>,
}

impl<'a> Crowds<'a> {
    pub(super) fn of(nodes: &'a [Node], candidates: &[usize], group: &str, chain: &'a [Strategy]) -> Self {
        let named = chain.iter().filter_map(|strategy| match strategy {
            Strategy::SpreadAttribute(name) => Some(name.as_str()),
            _ => None,
        });
        let mut crowds = Crowds::default();
        for attribute in named.chain(chain.is_empty().then_some(ZONE)) {
            let counts = crowds.by_attribute.entry(attribute).or_default();
            for node in candidates.iter().map(|place| &nodes[*place]) {
                *counts.entry(value(node, attribute)).or_default() += node.group(group) as i64;
            }
        }
        crowds
    }

    fn around(&self, node: &Node, attribute: &str) -> i64 {
        let counts = self.by_attribute.get(attribute);
        counts.and_then(|counts| counts.get(&value(node, attribute))).copied().unwrap_or(0)
    }
}

fn value<'a>(node: &'a Node, attribute: &str) -> Option<&'a str> {
    node.attributes.get(attribute).map(String::as_str)
}

/// One number for each strategy of the chain, then the name so that the choice is always the same.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Score<'a> {
    by_strategy: Vec<i64>,
    name: &'a str,
}

impl<'a> Score<'a> {
    pub(super) fn of(node: &'a Node, task: &task::View<'_>, chain: &[Strategy], crowds: &Crowds<'_>) -> Self {
        let group = task.spec.group.as_str();
        let by_strategy = if chain.is_empty() {
            // ECS' default: the zone, and in it the instance, with fewest tasks of the service.
            vec![crowds.around(node, ZONE), node.group(group) as i64, node.tasks as i64]
        } else {
            let one = |strategy: &Strategy| match strategy {
                Strategy::Random => {
                    let id = derived_id(&[task.object.name(), &node.name]);
                    i64::from_str_radix(&id[..12], 16).unwrap_or(0)
                }
                Strategy::SpreadInstance => node.group(group) as i64,
                Strategy::SpreadAttribute(name) => crowds.around(node, name),
                Strategy::BinpackCpu => node.free.cpu,
                Strategy::BinpackMemory => node.free.memory,
            };
            chain.iter().map(one).collect()
        };
        Score { by_strategy, name: &node.name }
    }
}
