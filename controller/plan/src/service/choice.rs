//! Which task leaves, and which place a new one takes.

use std::collections::{BTreeMap, BTreeSet};

use steady_core::{Key, Kind, task};

use super::Known;
use crate::site;

/// Tasks of a deployment that may leave, at most `count`, those that should leave first first (ECS): what does not run
/// yet, then what runs in the zone, and on the instance, that has most of the service's tasks, the newest first. Tasks
/// that are to be replaced anyway are not among them: they are counted and stopped by themselves. Nor are protected ones.
pub(super) fn leaving<'a, 'b>(known: &'b Known<'a>, deployment: &str, count: usize) -> Vec<&'b task::View<'a>> {
    if count == 0 {
        return Vec::new();
    }
    let mut zones: BTreeMap<&str, &str> = BTreeMap::new();
    let mut in_zone: BTreeMap<&str, usize> = BTreeMap::new();
    let mut on_instance: BTreeMap<&str, usize> = BTreeMap::new();
    for task in known.tasks.iter().filter(|t| t.is_wanted()) {
        let instance = task.spec.container_instance.as_str();
        *on_instance.entry(instance).or_default() += 1;
        *in_zone.entry(zones.entry(instance).or_insert_with(|| zone(known, instance))).or_default() += 1;
    }
    let mut buckets: BTreeMap<&str, Vec<&task::View<'a>>> = BTreeMap::new();
    for task in known.tasks_of(deployment).filter(|t| t.is_wanted() && !known.is_going(t) && !known.is_protected(t)) {
        buckets.entry(task.spec.container_instance.as_str()).or_default().push(task);
    }
    let readiness = |t: &task::View<'_>| (!t.is_running(), !t.is_healthy());
    for bucket in buckets.values_mut() {
        bucket.sort_by_key(|t| (readiness(t), t.spec.attempt));
    }
    let mut chosen = Vec::new();
    while chosen.len() < count {
        let fullest = buckets.iter().filter_map(|(instance, bucket)| {
            let next = bucket.last()?;
            let crowd = (in_zone.get(zones.get(instance)?).copied(), on_instance.get(instance).copied());
            Some(((readiness(next), crowd, next.spec.attempt), *instance))
        });
        let Some((_, instance)) = fullest.max() else { break };
        chosen.extend(buckets.get_mut(instance).and_then(Vec::pop));
        if let Some(count) = on_instance.get_mut(instance) {
            *count -= 1;
        }
        if let Some(count) = zones.get(instance).and_then(|zone| in_zone.get_mut(zone)) {
            *count -= 1;
        }
    }
    chosen
}

/// Zone of an instance, empty where it has none.
fn zone<'a>(known: &Known<'a>, instance: &str) -> &'a str {
    let key = Key::new(Kind::ContainerInstance, known.object.cluster(), instance);
    known.view.get(&key).map_or("", |object| site::zone(object))
}

/// The lowest places of a deployment that no task fills.
pub(super) fn free_slots(known: &Known<'_>, deployment: &str, count: usize) -> Vec<i32> {
    let taken: BTreeSet<i32> = known.tasks_of(deployment).filter(|t| t.is_wanted()).map(|t| t.spec.slot).collect();
    (0..).filter(|slot| !taken.contains(slot)).take(count).collect()
}
