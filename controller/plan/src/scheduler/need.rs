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

/// What waiting tasks need.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Need {
    /// Instances that are there and have tasks, or will have.
    pub(crate) used: usize,
    /// Zones of instances that have to come, one for each.
    pub(crate) new: Vec<String>,
    /// Tasks that none would take.
    pub(crate) misfits: Vec<Misfit>,
}

/// A zone, an empty instance in it, and how many there are.
pub(crate) type Sample = (String, Arc<Object>, usize);

/// How many instances those waiting tasks need that ask for `provider`, the largest first: on those that are there and open as long as they
/// have room, else on new ones like the samples, in the zone with fewest. At most `most` new ones are counted.
pub(crate) fn needed(
    view: &View,
    cluster: &str,
    there: &[Arc<Object>],
    samples: &[Sample],
    provider: &str,
    most: usize,
) -> Need {
    let mut groups = Groups::default();
    let daemons = daemon::services(view, cluster);
    let node = |object: &Arc<Object>, groups: &mut Groups| {
        let mut node = Node::of(object);
        // Of a sample, whose name nothing has, only what DAEMON services will take is there.
        node.fill(view, object, &daemons, groups);
        node
    };
    let mut nodes: Vec<(Node, Option<String>)> = there.iter().map(|object| (node(object, &mut groups), None)).collect();
    let empty: Vec<(&String, Node, usize)> =
        samples.iter().map(|(zone, object, count)| (zone, node(object, &mut groups), *count)).collect();
    let waiting = view.unplaced(cluster).filter_map(|object| task::of(object));
    let mut waiting: Vec<&TaskSpec> = waiting
        .map(|found| found.spec)
        .filter(|spec| spec.capacity_provider == provider && spec.target_instance.is_empty())
        .collect();
    let size = |spec: &TaskSpec| spec.demand.as_ref().map_or((0, 0), |demand| (demand.memory, demand.cpu));
    waiting.sort_by_key(|spec| std::cmp::Reverse(size(spec)));
    let mut misfits: Vec<Misfit> = Vec::new();
    let mut new: Vec<String> = Vec::new();
    for spec in waiting {
        let class = Class::of(spec, &mut groups);
        let open = |node: &Node| class.misfit(node, &groups).is_none() && class.fits(&node.free, node.kept);
        // Those that have tasks already first: as few as can be.
        let best = nodes.iter().enumerate().filter(|(_, (node, _))| open(node)).max_by_key(|(_, (node, _))| node.tasks);
        if let Some(place) = best.map(|(place, _)| place) {
            nodes[place].0.take(spec, class.group);
            continue;
        }
        let fewest = |zone: &str, count: usize| count + new.iter().filter(|known| *known == zone).count();
        let fits = empty.iter().filter(|(_, node, _)| class.refused(usize::MAX, node, &groups).is_none());
        let zone = fits.min_by_key(|(zone, _, count)| fewest(zone, *count)).map(|(zone, ..)| (*zone).clone());
        let Some(zone) = zone else {
            let why = empty.first().and_then(|(_, node, _)| class.refused(usize::MAX, node, &groups));
            let why = why.map_or_else(|| "there is no template".to_owned(), |why| why.told(&class.demand));
            match misfits.iter_mut().find(|known| known.group == spec.group && known.why == why) {
                Some(known) => known.count += 1,
                None => misfits.push(Misfit { group: spec.group.clone(), count: 1, why }),
            }
            continue;
        };
        if new.len() < most
            && let Some((_, object, _)) = samples.iter().find(|(of, ..)| *of == zone)
        {
            let mut node = node(object, &mut groups);
            node.take(spec, class.group);
            nodes.push((node, Some(zone.clone())));
            new.push(zone);
        }
    }
    let daemons: Vec<u32> = daemons.iter().map(|(group, _)| groups.number(group)).collect();
    let own = |node: &Node| node.tasks as i64 - daemons.iter().map(|daemon| node.group(*daemon)).sum::<i64>();
    let used = nodes.iter().filter(|(node, new)| new.is_none() && own(node) > 0).count();
    Need { used, new, misfits }
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
