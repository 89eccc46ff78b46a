//! The instances that take tasks of a class, best first; kept in step with the instances at the cost of what changed.
//!
//! Instances with the same values of all attributes that the class spreads over are one bucket: how crowded those values
//! are is the same for all of them, and changes for all of them at once. Within a bucket they are in order of what the other
//! steps of the chain say. The best of all is the best of the buckets' firsts.
//!
//! A task that another class places makes an instance worse for most classes, or changes nothing. That is not taken in at
//! once: what seems best is looked at again before it is believed. Tasks of the own group, and classes for which an instance
//! can become better (binpack), are kept in step.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::class::{Class, Step};
use super::node::{Fixed, Groups, Node};
use steady_core::hash::mixed;

/// Steps of the longest chain (ECS).
const STEPS: usize = 5;

/// Which nodes changed, in order, and how.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// The node, and the group of the task that was placed on it; of any other change no group.
    entries: Vec<(u32, u32)>,
    /// How many were forgotten before the first of them.
    forgotten: u64,
}

/// Stands for any change, among the numbers of groups.
const ANY: u32 = u32::MAX;

impl Log {
    /// A node, of so many, changed.
    pub(super) fn changed(&mut self, node: usize, of: usize) {
        self.push(node, ANY, of);
    }

    /// A task of a group was placed on a node.
    pub(super) fn placed(&mut self, node: usize, group: u32, of: usize) {
        self.push(node, group, of);
    }

    fn push(&mut self, node: usize, group: u32, of: usize) {
        if self.entries.len() > 8 * of + 1024 {
            self.forgotten += self.entries.len() as u64;
            self.entries.clear();
        }
        self.entries.push((node as u32, group));
    }

    /// How much has changed so far.
    pub(super) fn end(&self) -> u64 {
        self.forgotten + self.entries.len() as u64
    }

    /// Those since; `None` when some of them are forgotten.
    fn since(&self, seen: u64) -> Option<&[(u32, u32)]> {
        self.entries.get(usize::try_from(seen.checked_sub(self.forgotten)?).ok()?..)
    }
}

/// How good a node is among those of its bucket: less is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    by_step: [i64; STEPS],
    /// A number of its name. Schedulers that work beside each other prefer different ones of those that are as good.
    tie: u64,
    node: u32,
}

/// Numbers of the values of attributes, as many as the class spreads over.
type Values = [u32; STEPS];

#[derive(Debug)]
struct Bucket {
    values: Values,
    order: BTreeSet<Rank>,
}

/// What is known of a node.
#[derive(Debug)]
struct Entry {
    /// What it was of the node that does not depend on tasks: its bucket, and whether it is unfit.
    fixed: Arc<Fixed>,
    unfit: bool,
    bucket: u32,
    /// Where it is in its bucket; `None`: it takes no task.
    rank: Option<Rank>,
    /// Its tasks of the group, as far as they crowd the values of its attributes.
    crowd: i64,
}

/// The nodes in order of how good they are for a class.
#[derive(Debug, Default)]
pub(super) struct Index {
    seen: u64,
    entries: Vec<Option<Entry>>,
    buckets: Vec<Bucket>,
    by_values: BTreeMap<Values, u32>,
    /// Of each attribute: the numbers of its values, from 1 on.
    numbers: Vec<BTreeMap<String, u32>>,
    /// Of each attribute and value: how many tasks of the group are where it is.
    crowds: Vec<Vec<i64>>,
}

/// What an index is of.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    /// The class, and its number.
    pub(super) class: &'a Class,
    pub(super) number: usize,
    pub(super) nodes: &'a [Node],
    pub(super) groups: &'a Groups,
    pub(super) log: &'a Log,
    /// What this scheduler prefers among what is as good.
    pub(super) preference: u64,
}

impl Index {
    /// Takes in what changed since it was last asked.
    pub(super) fn catch_up(&mut self, of: Subject<'_>) {
        match of.log.since(self.seen).filter(|_| !self.entries.is_empty()) {
            Some(changed) => {
                let lazy = of.class.only_worsens();
                let concerns = |group: u32| !lazy || group == ANY || group == of.class.group;
                let mut nodes: Vec<u32> =
                    changed.iter().filter(|(_, group)| concerns(*group)).map(|(node, _)| *node).collect();
                if nodes.len() > 1 {
                    nodes.sort_unstable();
                    nodes.dedup();
                }
                for node in nodes {
                    self.look(of, node);
                }
            }
            None => self.build(of),
        }
        self.seen = of.log.end();
    }

    fn build(&mut self, of: Subject<'_>) {
        *self = Index::default();
        self.numbers.resize_with(of.class.attributes.len(), BTreeMap::new);
        self.crowds.resize_with(of.class.attributes.len(), || vec![0]);
        let mut ranks: Vec<Vec<Rank>> = Vec::new();
        for number in 0..of.nodes.len() {
            let entry = self.entry(of, number as u32);
            ranks.resize_with(self.buckets.len(), Vec::new);
            ranks[entry.bucket as usize].extend(entry.rank);
            self.entries.push(Some(entry));
        }
        for (bucket, mut ranks) in self.buckets.iter_mut().zip(ranks) {
            ranks.sort_unstable();
            bucket.order = ranks.into_iter().collect();
        }
    }

    /// Looks at a node anew.
    fn look(&mut self, of: Subject<'_>, number: u32) {
        let at = number as usize;
        if self.entries.len() <= at {
            self.entries.resize_with(at + 1, || None);
        }
        let Some(mut entry) = self.entries[at].take() else {
            let entry = self.entry(of, number);
            if let Some(rank) = entry.rank {
                self.buckets[entry.bucket as usize].order.insert(rank);
            }
            self.entries[at] = Some(entry);
            return;
        };
        let before = (entry.bucket, entry.rank);
        self.crowd(entry.bucket, -entry.crowd);
        self.fill(of, number, &mut entry);
        if before != (entry.bucket, entry.rank) {
            if let Some(rank) = before.1 {
                self.buckets[before.0 as usize].order.remove(&rank);
            }
            if let Some(rank) = entry.rank {
                self.buckets[entry.bucket as usize].order.insert(rank);
            }
        }
        self.entries[at] = Some(entry);
    }

    /// What there is to know of a node; its tasks count for its bucket's crowds.
    fn entry(&mut self, of: Subject<'_>, number: u32) -> Entry {
        let node = &of.nodes[number as usize];
        let (bucket, fixed) = (self.bucket(of.class, node), Arc::clone(&node.fixed));
        let unfit = of.class.unfit(node, of.groups).is_some();
        let mut entry = Entry { fixed, unfit, bucket, rank: None, crowd: 0 };
        self.fill(of, number, &mut entry);
        entry
    }

    /// Brings what is known of a node up to what it is now.
    fn fill(&mut self, of: Subject<'_>, number: u32, entry: &mut Entry) {
        let node = &of.nodes[number as usize];
        if !Arc::ptr_eq(&entry.fixed, &node.fixed) {
            entry.fixed = Arc::clone(&node.fixed);
            entry.bucket = self.bucket(of.class, node);
            entry.unfit = of.class.unfit(node, of.groups).is_some();
        }
        // What is on an instance that takes no task is on its way out.
        entry.crowd = if node.closed.is_none() { node.group(of.class.group) } else { 0 };
        self.crowd(entry.bucket, entry.crowd);
        let accepted = node.closed.is_none() && !entry.unfit && of.class.accepted(of.number, node, of.groups);
        entry.rank = accepted.then(|| rank(of, node, number));
    }

    fn crowd(&mut self, bucket: u32, more: i64) {
        if more != 0 {
            let values = self.buckets[bucket as usize].values;
            self.crowds.iter_mut().zip(values).for_each(|(crowds, value)| crowds[value as usize] += more);
        }
    }

    fn bucket(&mut self, class: &Class, node: &Node) -> u32 {
        let mut values = Values::default();
        for (at, attribute) in class.attributes.iter().enumerate() {
            let Some(value) = node.attribute(attribute) else { continue };
            let numbers = &mut self.numbers[at];
            values[at] = if let Some(number) = numbers.get(value) {
                *number
            } else {
                let number = numbers.len() as u32 + 1;
                numbers.insert(value.to_owned(), number);
                self.crowds[at].push(0);
                number
            };
        }
        if let Some(bucket) = self.by_values.get(&values) {
            return *bucket;
        }
        let bucket = self.buckets.len() as u32;
        self.by_values.insert(values, bucket);
        self.buckets.push(Bucket { values, order: BTreeSet::new() });
        bucket
    }

    /// The best node.
    pub(super) fn best(&mut self, of: Subject<'_>) -> Option<usize> {
        loop {
            let firsts = self.buckets.iter().filter_map(|bucket| Some((bucket, bucket.order.first()?)));
            let rank_of_best = *firsts.min_by(|a, b| self.compare(of.class, *a, *b))?.1;
            let node = &of.nodes[rank_of_best.node as usize];
            let accepted = node.closed.is_none() && of.class.accepted(of.number, node, of.groups);
            if accepted && rank(of, node, rank_of_best.node) == rank_of_best {
                return Some(rank_of_best.node as usize);
            }
            // It is not what it was, and worse: each is looked at once at most.
            self.look(of, rank_of_best.node);
        }
    }

    fn compare(&self, class: &Class, a: (&Bucket, &Rank), b: (&Bucket, &Rank)) -> Ordering {
        for (at, step) in class.chain.iter().take(STEPS).enumerate() {
            let order = match step {
                Step::Attribute(attribute) => {
                    let crowd = |of: &Bucket| self.crowds[*attribute][of.values[*attribute] as usize];
                    crowd(a.0).cmp(&crowd(b.0))
                }
                _ => a.1.by_step[at].cmp(&b.1.by_step[at]),
            };
            if order != Ordering::Equal {
                return order;
            }
        }
        (a.1.tie, a.1.node).cmp(&(b.1.tie, b.1.node))
    }

    /// Looks at every node, whatever changed since.
    pub(super) fn refresh(&mut self, of: Subject<'_>) {
        for node in 0..of.nodes.len() as u32 {
            self.look(of, node);
        }
    }

    /// Every node that takes one, with what each step of the chain says, best first.
    pub(super) fn candidates(&self, class: &Class) -> Vec<(usize, Vec<i64>)> {
        let mut all: Vec<(&Bucket, &Rank)> =
            self.buckets.iter().flat_map(|bucket| bucket.order.iter().map(move |rank| (bucket, rank))).collect();
        all.sort_by(|a, b| self.compare(class, *a, *b));
        let values = |bucket: &Bucket, rank: &Rank| {
            let value = |(at, step): (usize, &Step)| match step {
                Step::Attribute(attribute) => self.crowds[*attribute][bucket.values[*attribute] as usize],
                _ => rank.by_step[at],
            };
            class.chain.iter().take(STEPS).enumerate().map(value).collect()
        };
        all.into_iter().map(|(bucket, rank)| (rank.node as usize, values(bucket, rank))).collect()
    }
}

fn rank(of: Subject<'_>, node: &Node, number: u32) -> Rank {
    let mut by_step = [0; STEPS];
    for (at, step) in of.class.chain.iter().take(STEPS).enumerate() {
        by_step[at] = of.class.value(*step, node);
    }
    Rank { by_step, tie: mixed(node.fixed.hash ^ of.preference), node: number }
}
