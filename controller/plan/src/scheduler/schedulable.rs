//! How many more tasks fit.

use std::collections::BTreeSet;

use steady_core::resources::Free;
use steady_core::{Kind, View, task};

use super::class;
use super::fleet::Fleet;
use super::node::Node;

/// How many more tasks of a definition fit on the instances of a cluster, or of one of its capacity providers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedulable {
    /// `family:revision`.
    pub task_definition: String,
    /// Empty: all instances.
    pub capacity_provider: String,
    /// CPU units and MiB that one takes.
    pub cpu: i32,
    /// MiB that one takes.
    pub memory: i32,
    /// How many more fit, each alone.
    pub count: u64,
}

/// For each task definition that a service or a live task of the cluster uses, and for each capacity provider: how many more
/// tasks fit, the largest definitions first. Each is counted as if nothing else were placed.
pub fn schedulable(view: &View, cluster: &str) -> Vec<Schedulable> {
    let mut fleet = Fleet::default();
    fleet.follow(view, cluster);
    let services = view.in_cluster(Kind::Service, cluster).filter_map(|o| o.as_service()?.spec.as_ref());
    let mut used: BTreeSet<&str> = services.map(|spec| spec.task_definition.as_str()).collect();
    let tasks = view.in_cluster(Kind::Task, cluster).filter_map(|t| task::of(t)).filter(task::View::is_wanted);
    used.extend(tasks.map(|task| task.spec.task_definition.as_str()));
    let mut providers: BTreeSet<String> = fleet.nodes.iter().map(|node| node.provider().to_owned()).collect();
    providers.insert(String::new());
    let mut all = Vec::new();
    for definition in used {
        let Some(mut class) = class::of_definition(view, definition, &mut fleet.groups) else { continue };
        for provider in &providers {
            class.provider.clone_from(provider);
            let open = fleet.nodes.iter().filter(|node| class.misfit(node, &fleet.groups).is_none());
            all.push(Schedulable {
                task_definition: definition.to_owned(),
                capacity_provider: provider.clone(),
                cpu: class.demand.cpu,
                memory: class.demand.memory,
                count: open.map(|node| times(&class, node)).sum(),
            });
        }
    }
    all.sort_by(|a, b| (b.memory, b.cpu, &a.task_definition).cmp(&(a.memory, a.cpu, &b.task_definition)));
    all
}

/// How many tasks of a class fit on a node, one after the other.
pub(super) fn times(class: &class::Class, node: &Node) -> u64 {
    let demand = &class.demand;
    let one = class.fits(&node.free, node.kept);
    // A host port, or what can be on an instance once, fits once; of what takes nothing there is no end.
    if !one || !demand.ports.is_empty() || class.distinct || takes_nothing(class) {
        return u64::from(one);
    }
    let fit = |needs: i32, left: i64| if needs > 0 { left / i64::from(needs) } else { i64::MAX };
    let Free { cpu, memory, named, .. } = &node.free;
    let fits = fit(demand.cpu, cpu - node.kept.0).min(fit(demand.memory, memory - node.kept.1));
    let named = demand.named.iter().map(|(name, needs)| fit(*needs, named.get(name).copied().unwrap_or(0)));
    named.fold(fits, i64::min).max(0).unsigned_abs()
}

fn takes_nothing(class: &class::Class) -> bool {
    class.demand.cpu <= 0 && class.demand.memory <= 0 && class.demand.named.values().all(|count| *count <= 0)
}
