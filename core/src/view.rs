//! A view: every object that a controller watches, as of one revision.

use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use steady_proto::Kind;
use steady_proto::v1::Object;

use crate::{Key, Revision, task};

/// An immutable snapshot with the indexes that planning needs. Cloning it costs nothing worth counting.
#[derive(Debug, Clone, Default)]
pub struct View {
    revision: Revision,
    objects: OrdMap<Key, Arc<Object>>,
    /// (cluster, service, object): tasks and deployments of each service.
    by_service: OrdSet<(String, String, Key)>,
    /// (cluster, instance, task): tasks bound to each instance that are not STOPPED.
    by_instance: OrdSet<(String, String, Key)>,
    /// (cluster, task): tasks that wait for a place.
    unplaced: OrdSet<(String, Key)>,
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
        if let Some(old) = self.objects.get(&key).cloned() {
            self.unindex(&key, &old);
        }
        self.index(&key, &object);
        self.objects.insert(key, object);
    }

    /// Takes an object out.
    pub fn remove(&mut self, key: &Key) -> Option<Arc<Object>> {
        let old = self.objects.remove(key)?;
        self.unindex(key, &old);
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
            None => Bound::Included(Key { kind, cluster: String::new(), name: String::new() }),
        };
        self.range((from, Bound::Unbounded)).take_while(move |(key, _)| key.kind == kind).map(|(_, object)| object)
    }

    /// Objects of one kind in one cluster, in order.
    pub fn in_cluster(&self, kind: Kind, cluster: &str) -> impl Iterator<Item = &Arc<Object>> {
        let from = Key { kind, cluster: cluster.to_owned(), name: String::new() };
        let cluster = cluster.to_owned();
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
        let from = Key { kind, cluster: cluster.to_owned(), name: String::new() };
        let (cluster, service) = (cluster.to_owned(), service.to_owned());
        self.by_service
            .range((cluster.clone(), service.clone(), from)..)
            .take_while(move |(c, s, k)| *c == cluster && *s == service && k.kind == kind)
            .filter_map(|(_, _, key)| self.objects.get(key))
    }

    /// Tasks bound to this instance that are not STOPPED.
    pub fn on_instance(&self, cluster: &str, instance: &str) -> impl Iterator<Item = &Arc<Object>> {
        let from = Key { kind: Kind::Task, cluster: cluster.to_owned(), name: String::new() };
        let (cluster, instance) = (cluster.to_owned(), instance.to_owned());
        self.by_instance
            .range((cluster.clone(), instance.clone(), from)..)
            .take_while(move |(c, i, _)| *c == cluster && *i == instance)
            .filter_map(|(_, _, key)| self.objects.get(key))
    }

    /// Tasks of a cluster that are to run and have no instance yet.
    pub fn unplaced(&self, cluster: &str) -> impl Iterator<Item = &Arc<Object>> {
        let from = Key { kind: Kind::Task, cluster: cluster.to_owned(), name: String::new() };
        let cluster = cluster.to_owned();
        self.unplaced
            .range((cluster.clone(), from)..)
            .take_while(move |(c, _)| *c == cluster)
            .filter_map(|(_, key)| self.objects.get(key))
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

    fn index(&mut self, key: &Key, object: &Object) {
        let cluster = key.cluster.clone();
        if let Some(service) = service_of(object) {
            self.by_service.insert((cluster.clone(), service.to_owned(), key.clone()));
        }
        let Some(found) = task::of(object) else { return };
        if found.is_live() && !found.spec.container_instance.is_empty() {
            self.by_instance.insert((cluster, found.spec.container_instance.clone(), key.clone()));
        } else if found.wants_place() {
            self.unplaced.insert((cluster, key.clone()));
        }
    }

    fn unindex(&mut self, key: &Key, object: &Object) {
        let cluster = key.cluster.clone();
        if let Some(service) = service_of(object) {
            self.by_service.remove(&(cluster.clone(), service.to_owned(), key.clone()));
        }
        let Some(found) = task::of(object) else { return };
        if found.is_live() && !found.spec.container_instance.is_empty() {
            self.by_instance.remove(&(cluster, found.spec.container_instance.clone(), key.clone()));
        } else if found.wants_place() {
            self.unplaced.remove(&(cluster, key.clone()));
        }
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
