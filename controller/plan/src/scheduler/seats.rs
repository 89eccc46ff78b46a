//! Schedulers beside each other: whose turn a group of tasks is.
//!
//! Any scheduler may place any task; that no instance gets too much is seen to by its Reservation. That they do not all
//! try the same at the same time is what this is for: each group of tasks has a scheduler that takes it at once, the others
//! do when it has waited for a while. Each scheduler shows that it is there by a lease of its own.

use std::time::Duration;

use steady_core::hash::{self, mixed};
use steady_core::{Key, Kind, View};

/// Leases of schedulers: this and who holds it.
pub const LEASE: &str = "controller.scheduler.";

/// After so long a task is anybody's.
pub(super) const ANYBODY: Duration = Duration::from_secs(5);

/// The schedulers that are there.
#[derive(Debug, Clone, Default)]
pub(super) struct Seats {
    own: u64,
    others: Vec<u64>,
}

impl Seats {
    /// Those of a view, of which one is one's own.
    pub(super) fn of(view: &View, holder: &str) -> Self {
        let from = Key::new(Kind::Lease, "", LEASE);
        let leases = view.range(from..).take_while(|(key, _)| key.kind == Kind::Lease && key.name.starts_with(LEASE));
        let held = leases.filter_map(|(key, _)| key.name.strip_prefix(LEASE)).filter(|other| *other != holder);
        Seats { own: hash::of(holder), others: held.map(hash::of).collect() }
    }

    /// Whether tasks of a group are one's own to place at once.
    pub(super) fn is_own(&self, group: &str) -> bool {
        if self.others.is_empty() {
            return true;
        }
        let group = hash::of(group);
        let weight = |seat: u64| mixed(seat ^ group);
        self.others.iter().all(|other| weight(*other) < weight(self.own))
    }

    /// Which of instances that are as good one prefers.
    pub(super) fn preference(&self) -> u64 {
        if self.others.is_empty() { 0 } else { self.own }
    }
}
