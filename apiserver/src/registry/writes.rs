//! A transaction in the making: changes on top of a view, each compared with what it was decided on.

use std::collections::{BTreeMap, BTreeSet};

use steady_core::guard::{self, Guard};
use steady_core::v1::{Object, Sequencer};
use steady_core::{Key, Kind, Revision, Timestamp, View, task, v1};

use super::NewUid;
use crate::cache::encode;
use crate::storage::{Compare, Op, Txn};

/// Changes on top of a view.
pub(super) struct Writes {
    view: View,
    now: Timestamp,
    new_uid: NewUid,
    puts: BTreeMap<Key, Object>,
    removed: BTreeSet<Key>,
    compared: BTreeMap<Key, Revision>,
    fence: Option<(Key, Revision)>,
}

impl Writes {
    pub(super) fn new(view: View, now: Timestamp, new_uid: NewUid) -> Self {
        Writes {
            view,
            now,
            new_uid,
            puts: BTreeMap::new(),
            removed: BTreeSet::new(),
            compared: BTreeMap::new(),
            fence: None,
        }
    }

    pub(super) fn view(&self) -> &View {
        &self.view
    }

    pub(super) fn now(&self) -> Timestamp {
        self.now
    }

    /// The object as these writes leave it.
    pub(super) fn get(&self, key: &Key) -> Option<&Object> {
        if self.removed.contains(key) {
            return None;
        }
        self.puts.get(key).or_else(|| self.view.get(key).map(AsRef::as_ref))
    }

    /// Compares an object with the view, or with another revision if that was asked for before.
    pub(super) fn compare(&mut self, key: &Key) {
        let revision = self.view.revision_of(key);
        self.compared.entry(key.clone()).or_insert(revision);
    }

    /// Compares an object with a revision that the caller names.
    pub(super) fn expect(&mut self, key: &Key, revision: Revision) {
        self.compared.insert(key.clone(), revision);
    }

    /// Does not compare an object after all.
    pub(super) fn forget(&mut self, key: &Key) {
        self.compared.remove(key);
    }

    /// Compares a lease's epoch.
    pub(super) fn fence(&mut self, lease: Key, epoch: Revision) {
        self.fence = Some((lease, epoch));
    }

    /// Adds a new object: its uid (unless it brings one), creation time and generation are set.
    pub(super) fn create(&mut self, mut object: Object) -> Object {
        let key = Key::of(&object);
        let now = self.now;
        let uid = if key.kind == Kind::Task { key.name.to_string() } else { (self.new_uid)() };
        let meta = object.meta_mut();
        if meta.uid.is_empty() {
            meta.uid = uid;
        }
        meta.created = Some(now.into());
        meta.generation = 1;
        meta.revision = 0;
        if guard::stands(Guard::Absence) {
            self.expect(&key, Revision(0));
        }
        self.puts.insert(key, object.clone());
        object
    }

    /// Writes an object that is there.
    pub(super) fn put(&mut self, object: Object) {
        let key = Key::of(&object);
        self.compare(&key);
        self.puts.insert(key, object);
    }

    /// Removes an object.
    pub(super) fn remove(&mut self, key: &Key) {
        self.compare(key);
        self.puts.remove(key);
        self.removed.insert(key.clone());
    }

    /// Compares a sequencer and counts it up.
    pub(super) fn bump(&mut self, name: &str, expect: Revision) -> i64 {
        let key = Key::new(Kind::Sequencer, "", name);
        let object = self.counted_up(&key);
        let count = object.as_sequencer().map_or(0, |s| s.count);
        self.expect(&key, expect);
        self.puts.insert(key, object);
        count
    }

    fn counted_up(&self, key: &Key) -> Object {
        let count = self.get(key).and_then(Object::as_sequencer).map_or(0, |s| s.count) + 1;
        let mut object = self.get(key).cloned().unwrap_or_else(|| Object::new("", &key.name, Sequencer::default()));
        object.kind = Some(v1::object::Kind::Sequencer(Sequencer { count }));
        object
    }

    /// Counts up the sequencer of every service that loses a healthy task by these writes, unless they are the service
    /// controller's own: what it decides at this moment relies on a task that is no more, and must be refused.
    pub(super) fn tell_losses(&mut self) {
        let lost = self.puts.iter().filter_map(|(key, new)| {
            let old = self.view.get(key).and_then(|old| task::of(old)).filter(task::View::is_healthy)?;
            let still = task::of(new).is_some_and(|new| new.is_healthy());
            let service = old.spec.service.as_str();
            (!still && !service.is_empty()).then(|| format!("service/{}/{service}", key.cluster))
        });
        let lost: BTreeSet<String> = lost.filter(|_| guard::stands(Guard::LossTold)).collect();
        for name in lost {
            let key = Key::new(Kind::Sequencer, "", &name);
            if !self.puts.contains_key(&key) && !self.removed.contains(&key) {
                // Written and not compared: that it is newer is all that counts, and losses must not wait for each other.
                let object = self.counted_up(&key);
                self.puts.insert(key, object);
            }
        }
    }

    /// Whether anything but a sequencer is written.
    pub(super) fn changes_something(&self) -> bool {
        !self.removed.is_empty()
            || self.puts.iter().any(|(key, new)| key.kind != Kind::Sequencer && self.differs(key, new))
    }

    /// How many objects there are more after these writes. What comes along by itself does not count.
    pub(super) fn more(&self) -> usize {
        let counts = |key: &&Key| !matches!(key.kind, Kind::Event | Kind::Sequencer);
        let new = self.puts.keys().filter(counts).filter(|key| self.view.get(key).is_none()).count();
        new.saturating_sub(self.removed.len())
    }

    pub(super) fn written(&self) -> impl Iterator<Item = &Key> {
        self.puts.keys().chain(&self.removed)
    }

    fn differs(&self, key: &Key, new: &Object) -> bool {
        self.view.get(key).is_none_or(|old| old.kind != new.kind || !same_meta(old, new))
    }

    /// The transaction. What is already so is not written.
    pub(super) fn into_txn(self) -> Txn {
        let mut ops: Vec<Op> = self
            .puts
            .iter()
            .filter(|(key, object)| self.differs(key, object))
            .map(|(key, object)| Op::Put { key: key.to_path(), value: encode(object), lease: None })
            .collect();
        let removed = self.removed.iter().filter(|key| self.view.get(key).is_some());
        ops.extend(removed.map(|key| Op::Delete { key: key.to_path() }));
        let mut compares: Vec<Compare> =
            self.compared.iter().map(|(key, revision)| Compare::Modified(key.to_path(), *revision)).collect();
        if let Some((lease, epoch)) = &self.fence {
            compares.push(Compare::Created(lease.to_path(), *epoch));
        }
        Txn { compares, ops }
    }
}

fn same_meta(old: &Object, new: &Object) -> bool {
    let (mut old, mut new) = (old.meta().clone(), new.meta().clone());
    old.revision = 0;
    new.revision = 0;
    old == new
}
