//! A view: every object that a controller watches, as of one revision.

use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use smol_str::{SmolStr, format_smolstr};
use steady_proto::Kind;
use steady_proto::v1::Object;

use crate::{Key, Revision, Timestamp, hash, task};

/// An immutable snapshot with the indexes that planning needs. Cloning it costs nothing worth counting.
#[derive(Debug, Clone, Default)]
pub struct View {
    revision: Revision,
    objects: OrdMap<Key, Arc<Object>>,
    /// (cluster, service, object): tasks, deployments and task sets of each service.
    by_service: OrdMap<(SmolStr, SmolStr, Key), Arc<Object>>,
    /// (cluster, instance, task): tasks bound to each instance that are not STOPPED.
    by_instance: OrdMap<(SmolStr, SmolStr, Key), Arc<Object>>,
    placement: Placement,
}

/// What of a view placement depends on, in short: two of them tell what has changed between their views.
#[derive(Debug, Clone, Default)]
pub struct Placement {
    /// (cluster, task): tasks that wait for a place, and the revision of each.
    unplaced: OrdMap<(SmolStr, Key), Revision>,
    /// (cluster, instance): a number of the instance's revision and of the tasks that are bound to it.
    instances: OrdMap<(SmolStr, SmolStr), u64>,
}

impl Placement {
    /// Names of a cluster's instances that are not, or have not bound to them, what they were and had before. Costs as
    /// much as has changed.
    pub fn instances_since<'a>(&'a self, before: &'a Placement, cluster: &str) -> impl Iterator<Item = &'a str> {
        let changed = before.instances.diff(&self.instances).map(|item| changed(&item));
        changed.filter(move |(c, _)| c == cluster).map(|(_, name)| name.as_str())
    }

    /// Tasks of a cluster that wait for a place now and did not before, or the other way round, or that have been written.
    /// Costs as much as has changed.
    pub fn unplaced_since<'a>(&'a self, before: &'a Placement, cluster: &str) -> impl Iterator<Item = &'a Key> {
        let changed = before.unplaced.diff(&self.unplaced).map(|item| changed(&item));
        changed.filter(move |(c, _)| c == cluster).map(|(_, key)| key)
    }

    /// A number that is another one, as good as certainly, when anything of an instance is otherwise, or of what is bound to
    /// it: that of the instance, combined by exclusive or with [`bound`] of each task on it.
    pub fn number(&self, cluster: &str, instance: &str) -> u64 {
        self.instances.get(&(SmolStr::new(cluster), SmolStr::new(instance))).copied().unwrap_or(0)
    }

    /// Combines the number of an instance with another one.
    fn combine(&mut self, cluster: &str, instance: &str, number: u64) {
        let key = (SmolStr::new(cluster), SmolStr::new(instance));
        let combined = self.instances.get(&key).copied().unwrap_or(0) ^ number;
        if combined == 0 {
            self.instances.remove(&key);
        } else {
            self.instances.insert(key, combined);
        }
    }
}

/// The number of a task that is bound to an instance: whether it is to stay, and until when its service spares it.
pub fn bound(task: &task::View<'_>) -> u64 {
    // Mixed together: what two tasks have in common must not cancel itself out.
    let until = task.protected_until().map_or(0, |until| hash::mixed(until.0.unsigned_abs()));
    let created = task.object.meta().created.as_ref().map_or(0, |at| hash::mixed(Timestamp::from(at).0.unsigned_abs()));
    hash::mixed(
        hash::of(task.object.name()) ^ hash::mixed(until ^ created.rotate_left(1) ^ u64::from(task.is_wanted())),
    )
}

impl View {
    /// Revision that everything in it is as of.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Greater with each restoration of the store from a backup; 0 before the first. What is named after what happened before must be named otherwise
    /// afterwards: it may have happened, and be forgotten.
    pub fn epoch(&self) -> i64 {
        self.get(&Key::epoch()).and_then(|object| object.as_sequencer()).map_or(0, |epoch| epoch.count)
    }

    /// Moves it on, once every change up to `revision` is in.
    pub fn set_revision(&mut self, revision: Revision) {
        self.revision = revision;
    }

    /// Adds or replaces an object.
    pub fn put(&mut self, object: Arc<Object>) {
        let key = Key::of(&object);
        let new = Arc::clone(&object);
        let old = self.objects.insert(key.clone(), object);
        self.index(&key, old.as_deref(), Some(&new));
    }

    /// Takes an object out.
    pub fn remove(&mut self, key: &Key) -> Option<Arc<Object>> {
        let old = self.objects.remove(key)?;
        self.index(key, Some(&old), None);
        Some(old)
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// Revision of one object; 0 when there is none.
    pub fn revision_of(&self, key: &Key) -> Revision {
        self.get(key).map_or(Revision(0), |object| Revision(object.meta().revision))
    }

    /// Objects of one kind, every cluster, in order.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Arc<Object>> {
        self.of_kind_after(kind, None)
    }

    /// Objects of one kind that come after this key, every cluster, in order; without a key all of them.
    pub fn of_kind_after(&self, kind: Kind, after: Option<&Key>) -> impl Iterator<Item = &Arc<Object>> {
        let from = match after {
            Some(key) => Bound::Excluded(key.clone()),
            None => Bound::Included(Key { kind, ..Key::first() }),
        };
        self.range((from, Bound::Unbounded)).take_while(move |(key, _)| key.kind == kind).map(|(_, object)| object)
    }

    /// Objects of one kind in one cluster, in order.
    pub fn in_cluster(&self, kind: Kind, cluster: &str) -> impl Iterator<Item = &Arc<Object>> {
        let from = Key { kind, cluster: SmolStr::new(cluster), ..Key::first() };
        let cluster = SmolStr::new(cluster);
        self.range(from..).take_while(move |(k, _)| k.kind == kind && k.cluster == cluster).map(|(_, object)| object)
    }

    /// Every object with its key, in order.
    pub fn range(&self, range: impl RangeBounds<Key>) -> impl Iterator<Item = (&Key, &Arc<Object>)> {
        self.objects.range(range)
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Objects of a kind (`Task`, `Deployment`, `TaskSet`) that name this service, of any service that ever had the name.
    pub fn of_service(&self, kind: Kind, cluster: &str, service: &str) -> impl Iterator<Item = &Arc<Object>> {
        let from = Key { kind, cluster: SmolStr::new(cluster), ..Key::first() };
        let (cluster, service) = (SmolStr::new(cluster), SmolStr::new(service));
        self.by_service
            .range((cluster.clone(), service.clone(), from)..)
            .take_while(move |((c, s, k), _)| *c == cluster && *s == service && k.kind == kind)
            .map(|(_, object)| object)
    }

    /// Tasks bound to this instance that are not STOPPED.
    pub fn on_instance(&self, cluster: &str, instance: &str) -> impl Iterator<Item = &Arc<Object>> {
        let from = Key { kind: Kind::Task, cluster: SmolStr::new(cluster), ..Key::first() };
        let (cluster, instance) = (SmolStr::new(cluster), SmolStr::new(instance));
        self.by_instance
            .range((cluster.clone(), instance.clone(), from)..)
            .take_while(move |((c, i, _), _)| *c == cluster && *i == instance)
            .map(|(_, object)| object)
    }

    /// Tasks of a cluster that are to run and have no instance yet.
    pub fn unplaced(&self, cluster: &str) -> impl Iterator<Item = &Arc<Object>> {
        let from = Key { kind: Kind::Task, cluster: SmolStr::new(cluster), ..Key::first() };
        let cluster = SmolStr::new(cluster);
        self.placement
            .unplaced
            .range((cluster.clone(), from)..)
            .take_while(move |((c, _), _)| *c == cluster)
            .filter_map(|((_, key), _)| self.objects.get(key))
    }

    /// Clusters in which tasks wait for a place.
    pub fn clusters_waiting(&self) -> Vec<SmolStr> {
        let mut clusters: Vec<SmolStr> = Vec::new();
        // In order: from one cluster straight to the next.
        while let Some(((cluster, _), _)) = match clusters.last() {
            None => self.placement.unplaced.iter().next(),
            Some(last) => {
                let after = (format_smolstr!("{last}\0"), Key::first());
                self.placement.unplaced.range(after..).next()
            }
        } {
            clusters.push(cluster.clone());
        }
        clusters
    }

    /// What of it placement depends on.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Whether a service, a task set, a deployment that is to have tasks, or a task that is not STOPPED, uses a task definition.
    pub fn uses_definition(&self, name: &str) -> bool {
        let by_service = self
            .of_kind(Kind::Service)
            .any(|s| s.as_service().and_then(|s| s.spec.as_ref()).is_some_and(|s| s.task_definition == name));
        let deployed = |o: &Arc<Object>| {
            let spec = o.as_deployment().and_then(|d| d.spec.as_ref());
            spec.is_some_and(|spec| spec.task_definition == name && spec.target_count > 0)
        };
        let live = |t: &task::View<'_>| t.is_live() && t.spec.task_definition == name;
        let in_set = |o: &Arc<Object>| {
            o.as_task_set().and_then(|set| set.spec.as_ref()).is_some_and(|spec| spec.task_definition == name)
        };
        by_service
            || self.of_kind(Kind::TaskSet).any(in_set)
            || self.of_kind(Kind::Deployment).any(deployed)
            || self.of_kind(Kind::Task).filter_map(|t| task::of(t)).any(|t| live(&t))
    }

    /// Keeps the indexes to an object that was `old` and is `new`. Where it stays where it is nothing is taken out first:
    /// this is most of what following a watch costs.
    fn index(&mut self, key: &Key, old: Option<&Object>, new: Option<&Arc<Object>>) {
        let of_service = |service: &str| (key.cluster.clone(), SmolStr::new(service), key.clone());
        let (was, is) = (old.and_then(service_of), new.and_then(|object| service_of(object)));
        if let Some(was) = was.filter(|was| is != Some(*was)) {
            self.by_service.remove(&of_service(was));
        }
        if let (Some(is), Some(object)) = (is, new) {
            self.by_service.insert(of_service(is), Arc::clone(object));
        }
        if key.kind == Kind::Task {
            self.index_place(key, old, new);
        }
        self.note(key, old, new.map(|object| &**object));
    }

    /// The same of where a task is, or that it waits.
    fn index_place(&mut self, key: &Key, old: Option<&Object>, new: Option<&Arc<Object>>) {
        let on_instance = |instance: &str| (key.cluster.clone(), SmolStr::new(instance), key.clone());
        let waiting = || (key.cluster.clone(), key.clone());
        let (was, is) = (old.map_or(Place::Nowhere, place_of), new.map_or(Place::Nowhere, |object| place_of(object)));
        if was != is {
            match was {
                Place::On(instance) => drop(self.by_instance.remove(&on_instance(instance))),
                Place::Waiting => drop(self.placement.unplaced.remove(&waiting())),
                Place::Nowhere => {}
            }
        }
        let Some(object) = new else { return };
        match is {
            Place::On(instance) => drop(self.by_instance.insert(on_instance(instance), Arc::clone(object))),
            Place::Waiting => drop(self.placement.unplaced.insert(waiting(), Revision(object.meta().revision))),
            Place::Nowhere => {}
        }
    }

    /// Takes note of what placement counts of an object that was `old` and is `new`.
    fn note(&mut self, key: &Key, old: Option<&Object>, new: Option<&Object>) {
        let (old, new) = (old.and_then(|object| number(key, object)), new.and_then(|object| number(key, object)));
        if old != new {
            for (instance, number) in [old, new].into_iter().flatten() {
                self.placement.combine(&key.cluster, instance, number);
            }
        }
    }
}

/// Where a task is.
#[derive(PartialEq, Eq)]
enum Place<'a> {
    /// On no instance, and waiting for none; or the object is no task.
    Nowhere,
    Waiting,
    On(&'a str),
}

fn place_of(object: &Object) -> Place<'_> {
    let Some(task) = task::of(object) else { return Place::Nowhere };
    match task.placed_on() {
        Some(instance) => Place::On(instance),
        None if task.wants_place() => Place::Waiting,
        None => Place::Nowhere,
    }
}

/// The instance that an object is, or is bound to, and the object's number there.
fn number<'a>(key: &'a Key, object: &'a Object) -> Option<(&'a str, u64)> {
    if key.kind == Kind::ContainerInstance {
        return Some((&key.name, hash::mixed(object.meta().revision.unsigned_abs() + 1)));
    }
    let found = task::of(object)?;
    Some((found.placed_on()?, bound(&found)))
}

/// What a difference between two indexes is about.
fn changed<'a, K, V>(item: &DiffItem<'a, 'a, K, V>) -> &'a K {
    match item {
        DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _) => key,
    }
}

/// Name of the service that an object names, if any.
fn service_of(object: &Object) -> Option<&str> {
    let name = match object.kind() {
        Kind::Task => &object.as_task()?.spec.as_ref()?.service,
        Kind::Deployment => &object.as_deployment()?.spec.as_ref()?.service,
        Kind::TaskSet => &object.as_task_set()?.spec.as_ref()?.service,
        _ => return None,
    };
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_proto::v1::task_last_status::Value as Status;
    use steady_proto::v1::{ContainerInstance, Task, TaskSpec, TaskStatus};

    fn task(name: &str, place: &str, status: Status) -> Arc<Object> {
        let spec = TaskSpec { container_instance: place.into(), ..TaskSpec::default() };
        let status = TaskStatus { last_status: status.into(), ..TaskStatus::default() };
        Arc::new(Object::new("default", name, Task { spec: Some(spec), status: Some(status) }))
    }

    #[test]
    fn what_placement_counts_is_all_that_differs_between_two_views() {
        let mut view = View::default();
        for name in ["a", "b"] {
            view.put(Arc::new(Object::new("default", name, ContainerInstance::default())));
        }
        view.put(task("t", "", Status::Provisioning));
        let since = |view: &View, before: &View| {
            let (now, before) = (view.placement(), before.placement());
            let instances: Vec<String> = now.instances_since(before, "default").map(str::to_owned).collect();
            (instances, now.unplaced_since(before, "default").count())
        };
        assert_eq!(since(&view, &View::default()), (vec!["a".to_owned(), "b".to_owned()], 1));
        let empty = view.clone();
        assert_eq!(since(&view, &empty), (vec![], 0));
        view.put(task("t", "a", Status::Pending));
        assert_eq!(since(&view, &empty), (vec!["a".to_owned()], 1));
        let pending = view.clone();
        view.put(task("t", "a", Status::Running));
        assert_eq!(since(&view, &pending), (vec![], 0), "that it runs changes nothing");
        view.put(task("t", "a", Status::Stopped));
        assert_eq!(since(&view, &pending), (vec!["a".to_owned()], 0));
        let stopped = view.clone();
        view.remove(&Key::new(Kind::ContainerInstance, "default", "b"));
        assert_eq!(since(&view, &stopped), (vec!["b".to_owned()], 0));
    }
}
