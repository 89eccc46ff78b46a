//! The instances of a cluster and the tasks that wait in it, kept in step with the view at the cost of what changed.
//!
//! A fleet that was brought up to a view is the same as one that is made from it: nothing in it is remembered that the view
//! does not say. What a round places is placed here too, so that the next task sees it, and is forgotten before the next
//! round: by then the view says it, or it did not happen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use steady_core::v1::{Demand, TaskSpec};
use steady_core::{Key, Kind, Placement, SmolStr, Timestamp, View, task};

use super::class::Class;
use super::index::{Index, Log, Subject};
use super::node::{Groups, Held, Node};
use super::refusal::{Reason, Refusals};
use super::room::Room;
use crate::daemon;

/// Entries of all indexes together, beyond which those that were not used for longest are dropped: some 500 MB.
const MOST_ENTRIES: usize = 4_000_000;
/// Classes and groups beyond which what is no longer used is forgotten.
const MOST_NAMES: usize = 100_000;

/// Where a waiting task is kept.
#[derive(Debug, Clone)]
enum Kept {
    Class(usize, Timestamp),
    /// It can be on one instance only.
    Targeted(Timestamp),
    /// Another scheduler places it.
    Foreign(Timestamp),
}

/// A class' turn: its priority, negative, a waiting task's age and name, and the class' number.
pub(super) type Head = (i32, Timestamp, SmolStr, usize);

/// An index and when it was last asked.
#[derive(Debug, Default)]
struct Shelf {
    index: Option<Index>,
    used: u64,
    /// Why every node refused its tasks when so much had changed.
    refusals: Option<(u64, Arc<Refusals>)>,
}

/// The instances and the waiting tasks of one cluster.
#[derive(Debug, Default)]
pub struct Fleet {
    /// Of the view that it was brought up to.
    seen: Placement,
    daemons: Vec<(String, Demand)>,
    pub(super) nodes: Vec<Node>,
    by_name: BTreeMap<Arc<str>, usize>,
    pub(super) groups: Groups,
    log: Log,
    pub(super) classes: Vec<Class>,
    by_likeness: BTreeMap<Vec<u8>, usize>,
    shelves: Vec<Shelf>,
    /// How often an index was asked for.
    asked: u64,
    waiting: BTreeMap<Key, Kept>,
    /// Those that can be on one instance only: of DAEMON services first, then by age.
    pub(super) targeted: BTreeSet<(bool, Timestamp, SmolStr)>,
    /// Those that other schedulers place, by age.
    pub(super) foreign: BTreeSet<(Timestamp, SmolStr)>,
    /// Nodes on which the last round placed something, or that it held.
    assumed: BTreeSet<usize>,
    pub(super) preference: u64,
}

impl Fleet {
    /// One that knows nothing yet.
    pub(super) fn preferring(preference: u64) -> Self {
        Fleet { preference, ..Fleet::default() }
    }

    /// Brings it up to a view.
    pub(super) fn follow(&mut self, view: &View, cluster: &str) {
        let daemons = daemon::services(view, cluster);
        let names = self.classes.len().max(self.groups.len()) > MOST_NAMES + self.waiting.len();
        // Instances that are gone keep their places, so that the others keep theirs.
        let gone = self.nodes.len() > 2 * self.by_name.len() + 64;
        if daemons != self.daemons || names || gone {
            *self = Fleet { daemons, preference: self.preference, ..Fleet::default() };
        }
        let before = std::mem::replace(&mut self.seen, view.placement().clone());
        let assumed = std::mem::take(&mut self.assumed);
        let mut changed: BTreeSet<Arc<str>> = assumed.into_iter().map(|at| Arc::clone(&self.nodes[at].name)).collect();
        changed.extend(view.placement().instances_since(&before, cluster).map(Arc::from));
        for name in &changed {
            self.look(view, name, cluster);
        }
        for key in view.placement().unplaced_since(&before, cluster) {
            self.wait(view, key);
        }
    }

    /// Looks at an instance anew.
    fn look(&mut self, view: &View, name: &str, cluster: &str) {
        let number = view.placement().number(cluster, name);
        if let Some(node) =
            self.by_name.get(name).map(|at| &mut self.nodes[*at]).filter(|node| node.number == Some(number))
        {
            // What was placed here has happened, and nothing else.
            if node.held.take().is_some() {
                let at = self.by_name[name];
                self.changed(at);
            }
            return;
        }
        let object = view.get(&Key::new(Kind::ContainerInstance, cluster, name)).cloned();
        let at = match (self.by_name.get(name).copied(), object) {
            (known, Some(object)) => {
                let at = known.unwrap_or_else(|| {
                    self.nodes.push(Node::of(&object));
                    self.nodes.len() - 1
                });
                self.nodes[at].fill(view, &object, &self.daemons, &mut self.groups);
                self.nodes[at].number = Some(number);
                if known.is_none() {
                    self.by_name.insert(Arc::clone(&self.nodes[at].name), at);
                }
                at
            }
            (Some(at), None) => {
                self.by_name.remove(name);
                self.nodes[at].closed = Some(Reason::Gone);
                at
            }
            (None, None) => return,
        };
        self.changed(at);
    }

    /// Takes note that a task waits, or does so no longer.
    fn wait(&mut self, view: &View, key: &Key) {
        match self.waiting.remove(key) {
            Some(Kept::Class(class, created)) => {
                self.classes[class].waiting.remove(&(created, key.name.clone()));
            }
            Some(Kept::Targeted(created)) => {
                for moves in [false, true] {
                    self.targeted.remove(&(moves, created, key.name.clone()));
                }
            }
            Some(Kept::Foreign(created)) => {
                self.foreign.remove(&(created, key.name.clone()));
            }
            None => {}
        }
        let Some(object) = view.get(key).cloned() else { return };
        let Some(found) = task::of(&object).filter(task::View::wants_place) else { return };
        let created = found.created();
        let kept = if !matches!(found.spec.scheduler_name.as_str(), "" | super::NAME) {
            self.foreign.insert((created, key.name.clone()));
            Kept::Foreign(created)
        } else if found.spec.target_instance.is_empty() {
            let class = self.class(found.spec);
            self.classes[class].waiting.insert((created, key.name.clone()));
            Kept::Class(class, created)
        } else {
            self.targeted.insert((!found.spec.replaces.is_empty(), created, key.name.clone()));
            Kept::Targeted(created)
        };
        self.waiting.insert(key.clone(), kept);
    }

    /// Number of a task's class.
    pub(super) fn class(&mut self, spec: &TaskSpec) -> usize {
        let likeness = task::likeness(spec);
        if let Some(class) = self.by_likeness.get(&likeness) {
            return *class;
        }
        let class = Class::of(spec, &mut self.groups);
        self.by_likeness.insert(likeness, self.classes.len());
        self.classes.push(class);
        self.shelves.push(Shelf::default());
        self.classes.len() - 1
    }

    /// Drops the index that was not used for longest, when all of them would be too large with one more.
    fn make_room(&mut self) {
        let there = || self.shelves.iter().enumerate().filter(|(_, shelf)| shelf.index.is_some());
        if (there().count() + 1) * self.nodes.len() > MOST_ENTRIES
            && let Some((oldest, _)) = there().min_by_key(|(_, shelf)| shelf.used)
        {
            self.shelves[oldest].index = None;
        }
    }

    /// Whether any task waits.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many instances there are.
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// The oldest waiting task of each class, in the order in which they are placed: by priority, then by age.
    pub(super) fn heads(&self) -> BTreeSet<Head> {
        let head = |(number, class): (usize, &Class)| {
            let (created, name) = class.waiting.first()?.clone();
            Some((-class.priority, created, name, number))
        };
        self.classes.iter().enumerate().filter_map(head).collect()
    }

    /// Keeps places for all that have waited for long, as a round does.
    pub(super) fn hold_for_all(&mut self, now: Timestamp) {
        let mut room = Room::default();
        for (_, created, _, number) in self.heads() {
            if self.best(number).is_none() && self.refusals(number).is_for_room() {
                room.keep(self, number, created, now);
            }
        }
    }

    /// The node of an instance.
    pub(super) fn node(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Places a task on a node.
    pub(super) fn take(&mut self, at: usize, task: &task::View<'_>, group: u32) {
        let node = &mut self.nodes[at];
        node.take(task.spec, group);
        // If nothing else happens there, the node is as it will be.
        let plain = !task.spec.preemptible && task.spec.target_instance.is_empty();
        if !task.spec.service.is_empty() {
            node.staying.extend(task.spec.demand.clone());
        }
        node.number = node.number.filter(|_| plain).map(|number| number ^ steady_core::bound(task));
        self.assumed.insert(at);
        self.log.placed(at, group, self.nodes.len());
    }

    /// Keeps a node for tasks of a class.
    pub(super) fn hold(&mut self, at: usize, held: Held) {
        self.nodes[at].held = Some(held);
        self.assumed.insert(at);
        self.changed(at);
    }

    fn changed(&mut self, at: usize) {
        self.log.changed(at, self.nodes.len());
    }

    /// What a class' index is of, and the index, up to date.
    fn indexed(&mut self, number: usize) -> (Subject<'_>, &mut Index) {
        if self.shelves[number].index.is_none() {
            self.make_room();
        }
        self.asked += 1;
        let subject = Subject {
            class: &self.classes[number],
            number,
            nodes: &self.nodes,
            groups: &self.groups,
            log: &self.log,
            preference: self.preference,
        };
        let kept = &mut self.shelves[number];
        kept.used = self.asked;
        let index = kept.index.get_or_insert_default();
        index.catch_up(subject);
        (subject, index)
    }

    /// The best node for a task of a class.
    pub(super) fn best(&mut self, number: usize) -> Option<usize> {
        let (subject, index) = self.indexed(number);
        index.best(subject)
    }

    /// Why nodes refuse tasks of a class.
    pub(super) fn reasons(&self, number: usize) -> impl Iterator<Item = (&Node, Reason)> {
        let class = &self.classes[number];
        let reason = move |node| Some((node, class.refused(number, node, &self.groups)?));
        self.nodes.iter().filter_map(reason).filter(|(_, reason)| *reason != Reason::Gone)
    }

    /// Every node that takes a task of a class, with what each step of its chain says, best first.
    pub(super) fn candidates(&mut self, number: usize) -> Vec<(usize, Vec<i64>)> {
        let (subject, index) = self.indexed(number);
        index.refresh(subject);
        index.candidates(subject.class)
    }

    /// How many waiting tasks come before one of this priority and age, those that can be on one instance only left out.
    pub(super) fn before(&self, priority: i32, created: Timestamp, name: &str) -> usize {
        let of_class = |class: &Class| match class.priority.cmp(&priority) {
            std::cmp::Ordering::Greater => class.waiting.len(),
            std::cmp::Ordering::Equal => class.waiting.range(..(created, SmolStr::new(name))).count(),
            std::cmp::Ordering::Less => 0,
        };
        self.classes.iter().map(of_class).sum()
    }

    /// Why every node refuses the tasks of a class.
    pub(super) fn refusals(&mut self, number: usize) -> Arc<Refusals> {
        let now = self.log.end();
        if let Some((_, known)) = self.shelves[number].refusals.as_ref().filter(|(then, _)| *then == now) {
            return Arc::clone(known);
        }
        let mut refusals = Refusals::new(&self.classes[number].demand);
        self.reasons(number).for_each(|(node, reason)| refusals.add(&node.name, &reason));
        let refusals = Arc::new(refusals);
        self.shelves[number].refusals = Some((now, Arc::clone(&refusals)));
        refusals
    }
}
