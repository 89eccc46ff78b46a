//! The reaper: removes what is over and kept long enough, and what nothing owns any more.

use std::collections::BTreeMap;
use std::time::Duration;

use steady_core::v1::Object;
use steady_core::v1::stop_code::Value as StopCode;
use steady_core::{Change, DEFAULT_CLUSTER, Key, Kind, Plan, Revision, Timestamp, View, task};

/// How long stopped tasks and events are kept, at most.
pub const RETENTION: Duration = Duration::from_secs(24 * 3600);
/// How many of each are kept in a cluster, at most.
pub const MOST: usize = 2000;
/// How many events about one object are kept, at most (ECS service events).
pub const MOST_EVENTS: usize = 100;
/// How long metrics are kept that go on no more: they are of the last half hour.
pub const METRICS: Duration = Duration::from_secs(35 * 60);
/// Between sweeps.
pub const SWEEP: Duration = Duration::from_secs(10);
/// Most changes of one sweep.
const MAX_CHANGES: usize = 500;

/// One sweep of the cluster that the key names; the default one's also sweeps what belongs to no cluster.
pub fn plan(view: &View, key: &Key, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let cluster = key.name.as_str();
    let mut changes = Vec::new();
    stopped_tasks(view, cluster, now, &mut changes);
    events(view, cluster, now, &mut changes);
    orphans(view, cluster, now, &mut changes);
    metrics(view, cluster, now, &mut changes);
    if cluster == DEFAULT_CLUSTER {
        definitions(view, &mut changes);
        sequencers(view, &mut changes);
    }
    for change in changes.into_iter().take(MAX_CHANGES) {
        plan.push(change);
    }
    plan.wake(now + SWEEP);
    plan
}

fn remove(object: &Object) -> Change {
    Change::Remove { key: Key::of(object), expect: Revision(object.meta().revision) }
}

/// Those too old, and the oldest of those too many.
fn expired(mut dated: Vec<(Timestamp, &Object)>, now: Timestamp, changes: &mut Vec<Change>) {
    dated.sort_by_key(|(at, object)| (*at, object.name().to_owned()));
    let surplus = dated.len().saturating_sub(MOST);
    let over = dated.iter().enumerate().filter(|(i, (at, _))| *i < surplus || now.since(*at) > RETENTION);
    changes.extend(over.map(|(_, (_, object))| remove(object)));
}

fn stopped_tasks(view: &View, cluster: &str, now: Timestamp, changes: &mut Vec<Change>) {
    let stopped = view.in_cluster(Kind::Task, cluster).filter_map(|t| task::of(t)).filter(|t| !t.is_live());
    expired(stopped.map(|t| (t.stopped_at().unwrap_or_default(), t.object)).collect(), now, changes);
}

fn events(view: &View, cluster: &str, now: Timestamp, changes: &mut Vec<Change>) {
    let at = |object: &Object| object.meta().created.as_ref().map(Timestamp::from).unwrap_or_default();
    let all: Vec<(Timestamp, &Object)> = view.in_cluster(Kind::Event, cluster).map(|e| (at(e), e.as_ref())).collect();
    let mut by_object: BTreeMap<&str, Vec<(Timestamp, &Object)>> = BTreeMap::new();
    for (at, event) in all {
        let about = event.as_event().and_then(|e| e.spec.as_ref()?.about.as_ref()).map_or("", |about| &about.uid);
        by_object.entry(about).or_default().push((at, event));
    }
    let mut kept = Vec::new();
    for events in by_object.values_mut() {
        events.sort_by_key(|(at, event)| (*at, event.name().to_owned()));
        let surplus = events.len().saturating_sub(MOST_EVENTS);
        changes.extend(events.drain(..surplus).map(|(_, event)| remove(event)));
        kept.append(events);
    }
    expired(kept, now, changes);
}

/// What names an owner that is not there.
fn orphans(view: &View, cluster: &str, now: Timestamp, changes: &mut Vec<Change>) {
    let owned = |object: &Object| {
        let owner = object.meta().owner.as_ref();
        owner.is_none_or(|owner| view.get(&Key::of_ref(owner)).is_some_and(|o| o.meta().uid == owner.uid))
    };
    for kind in [Kind::Deployment, Kind::TaskSet, Kind::Alarm] {
        changes.extend(view.in_cluster(kind, cluster).filter(|object| !owned(object)).map(|object| remove(object)));
    }
    for found in view.in_cluster(Kind::Task, cluster).filter(|t| !owned(t)).filter_map(|t| task::of(t)) {
        if found.is_wanted() {
            let object = found.stopped(StopCode::ServiceSchedulerInitiated, "its service is gone", now);
            changes.push(Change::PutStatus { object, expect: found.revision() });
        }
    }
    for reservation in view.in_cluster(Kind::Reservation, cluster) {
        if view.get(&Key::new(Kind::ContainerInstance, cluster, reservation.name())).is_none() {
            changes.push(remove(reservation));
        }
    }
}

/// What API servers knew that are gone, or that nobody is interested in any more.
fn metrics(view: &View, cluster: &str, now: Timestamp, changes: &mut Vec<Change>) {
    for object in view.in_cluster(Kind::MetricData, cluster) {
        let series = object.as_metric_data().and_then(|data| data.spec.as_ref()).map_or(&[][..], |spec| &spec.series);
        let until = series.iter().map(|s| (s.first + s.sum.len() as i64) * i64::from(s.period_seconds)).max();
        if now.since(Timestamp(until.unwrap_or(0) * 1000)) > METRICS {
            changes.push(remove(object));
        }
    }
}

/// Definitions that were deleted while they were in use.
fn definitions(view: &View, changes: &mut Vec<Change>) {
    let deleted = view.of_kind(Kind::TaskDefinition).filter(|d| d.is_deleting());
    changes.extend(deleted.filter(|d| !view.uses_definition(d.name())).map(|d| remove(d)));
}

/// Sequencers of owners that are gone. A task definition's stays: its numbers never come again.
fn sequencers(view: &View, changes: &mut Vec<Change>) {
    for sequencer in view.of_kind(Kind::Sequencer) {
        let mut parts = sequencer.name().splitn(3, '/');
        let (Some(of), Some(cluster), Some(name)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let owner = match of {
            "service" | "deployment" => Key::new(Kind::Service, cluster, name),
            "instance" => Key::new(Kind::ContainerInstance, cluster, name),
            _ => continue,
        };
        if view.get(&owner).is_none() {
            changes.push(remove(sequencer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builders::World;
    use steady_core::v1::task_last_status::Value as Status;

    fn sweep(world: &mut World, hours: i64) {
        let key = Key::new(Kind::Cluster, "", "default");
        world.settle(|view| plan(view, &key, Timestamp(hours * 3_600_000)));
    }

    #[test]
    fn a_stopped_task_is_kept_for_a_day_and_a_running_one_for_ever() {
        let mut world = World::new();
        world.task_on("node", "old", |status| {
            status.set_last_status(Status::Stopped);
            status.stopped_at = Some(Timestamp(0).into());
        });
        world.task_on("node", "running", |status| status.set_last_status(Status::Running));
        sweep(&mut world, 23);
        assert!(world.has_task("old"));
        sweep(&mut world, 25);
        assert!(!world.has_task("old") && world.has_task("running"));
    }

    #[test]
    fn tasks_whose_service_is_gone_are_stopped() {
        let mut world = World::new();
        world.service("web", 1);
        world.task("web", "web-1", "a", |status| status.set_last_status(Status::Running));
        world.drop(&World::key("web"));
        sweep(&mut world, 1);
        assert_eq!(world.task_status("a").desired_status(), steady_core::v1::desired_status::Value::Stopped);
    }

    #[test]
    fn metrics_that_go_on_no_more_are_removed() {
        use steady_core::v1::{MetricData, MetricDataSpec, Series};
        let mut world = World::new();
        for (name, first) in [("old", 0), ("new", 30)] {
            let series = Series { period_seconds: 60, first, sum: vec![1.0; 3], ..Series::default() };
            let spec = MetricDataSpec { series: vec![series], ..MetricDataSpec::default() };
            world.put(Object::new("default", name, MetricData { spec: Some(spec) }));
        }
        sweep(&mut world, 1);
        let names: Vec<&str> = world.view.of_kind(Kind::MetricData).map(|data| data.name()).collect();
        assert_eq!(names, ["new"]);
    }

    #[test]
    fn the_newest_hundred_events_about_an_object_are_kept() {
        let mut world = World::new();
        let about = |name: &str| steady_core::v1::ObjectRef { uid: name.into(), ..<_>::default() };
        for number in 0..150 {
            let spec = steady_core::v1::EventSpec { about: Some(about("web")), ..<_>::default() };
            let mut event =
                Object::new("default", &format!("{number:03}"), steady_core::v1::Event { spec: Some(spec) });
            event.meta_mut().created = Some(Timestamp(number).into());
            world.put(event);
        }
        let spec = steady_core::v1::EventSpec { about: Some(about("other")), ..<_>::default() };
        world.put(Object::new("default", "a", steady_core::v1::Event { spec: Some(spec) }));
        sweep(&mut world, 1);
        let names: Vec<String> = world.view.of_kind(Kind::Event).map(|e| e.name().to_owned()).collect();
        assert_eq!((names.len(), names[0].as_str(), names[100].as_str()), (101, "050", "a"));
    }
}
