//! How many instances tasks need that wait: as the scheduler itself would place them on empty ones.

use std::collections::BTreeSet;
use std::sync::Arc;

use steady_core::v1::{Object, ServiceSpec, TaskSpec};
use steady_core::{Kind, View, task};

use super::class::{self, Class};
use super::node::{Groups, Node};
use super::schedulable::{Schedulable, schedulable, times};
use crate::daemon;

/// Tasks of one likeness that no instance of a kind would take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Misfit {
    /// `service:web`.
    pub(crate) group: String,
    pub(crate) count: usize,
    pub(crate) why: String,
}

/// How many instances like `template` those waiting tasks need that ask for `provider`, the largest first; and those tasks that none
/// would take. At most `most` instances are counted.
pub(crate) fn needed(view: &View, template: &Arc<Object>, provider: &str, most: usize) -> (usize, Vec<Misfit>) {
    let cluster = template.cluster();
    let mut groups = Groups::default();
    let daemons = daemon::services(view, cluster);
    let empty = |groups: &mut Groups| {
        let mut node = Node::of(template);
        // Nothing has this name: only what DAEMON services will take is there.
        node.fill(view, template, &daemons, groups);
        node
    };
    let waiting = view.unplaced(cluster).filter_map(|object| task::of(object));
    let mut waiting: Vec<&TaskSpec> = waiting
        .map(|found| found.spec)
        .filter(|spec| spec.capacity_provider == provider && spec.target_instance.is_empty())
        .collect();
    let size = |spec: &TaskSpec| spec.demand.as_ref().map_or((0, 0), |demand| (demand.memory, demand.cpu));
    waiting.sort_by_key(|spec| std::cmp::Reverse(size(spec)));
    let (mut nodes, mut misfits): (Vec<Node>, Vec<Misfit>) = (Vec::new(), Vec::new());
    for spec in waiting {
        let class = Class::of(spec, &mut groups);
        if let Some(node) =
            nodes.iter_mut().find(|node| class.misfit(node, &groups).is_none() && class.fits(&node.free, node.kept))
        {
            node.take(spec, class.group);
            continue;
        }
        let mut node = empty(&mut groups);
        if let Some(why) = class.refused(usize::MAX, &node, &groups) {
            let why = why.told(&class.demand);
            match misfits.iter_mut().find(|known| known.group == spec.group && known.why == why) {
                Some(known) => known.count += 1,
                None => misfits.push(Misfit { group: spec.group.clone(), count: 1, why }),
            }
        } else if nodes.len() < most {
            node.take(spec, class.group);
            nodes.push(node);
        }
    }
    (nodes.len(), misfits)
}

/// How many more instances like `template` there have to be so that so many more tasks fit, each alone, of every task definition of
/// services that use the provider.
pub(crate) fn room_for(view: &View, cluster: &str, provider: &str, template: &Arc<Object>, tasks: u64) -> usize {
    let names =
        |spec: &ServiceSpec| spec.capacity_provider_strategy.iter().any(|item| item.capacity_provider == provider);
    let services = view.in_cluster(Kind::Service, cluster).filter_map(|object| object.as_service()?.spec.as_ref());
    let used: BTreeSet<&str> = services.filter(|spec| names(spec)).map(|spec| spec.task_definition.as_str()).collect();
    let mut groups = Groups::default();
    let mut node = Node::of(template);
    node.fill(view, template, &daemon::services(view, cluster), &mut groups);
    let fits = schedulable(view, cluster);
    let missing = used.into_iter().filter_map(|definition| {
        let of = |s: &&Schedulable| s.task_definition == definition && s.capacity_provider == provider;
        let there = fits.iter().find(of).map_or(0, |fits| fits.count);
        let mut class = class::of_definition(view, definition, &mut groups)?;
        provider.clone_into(&mut class.provider);
        // What no instance would take asks for none.
        let each = if class.misfit(&node, &groups).is_none() { times(&class, &node) } else { 0 };
        (each > 0).then(|| tasks.saturating_sub(there).div_ceil(each))
    });
    usize::try_from(missing.max().unwrap_or(0)).unwrap_or(usize::MAX)
}
