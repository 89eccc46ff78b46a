//! Schedulers beside each other: whose turn a group of tasks is.
//!
//! Any scheduler may place any task; that no instance gets too much is seen to by its Reservation. That they do not all
//! try the same at the same time is what this is for: each group of tasks has a scheduler that takes it at once, and as long
//! as it waits the schedulers take turns. Each shows that it is there by a lease of its own.

use std::time::Duration;

use steady_core::hash::{self, mixed};
use steady_core::{Key, Kind, View};

/// Leases of schedulers: this and who holds it.
pub const LEASE: &str = "controller.scheduler.";

/// How long a turn is: longer than a full round takes to be committed, and than the lease of a scheduler that is gone, so
/// that this is for one that is there and does not place.
const TURN: Duration = Duration::from_secs(15);

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

    /// The how manieth turn is one's own for tasks of a group: the first is at once.
    pub(super) fn turn(&self, group: &str) -> usize {
        if self.others.is_empty() {
            return 0;
        }
        let group = hash::of(group);
        let weight = |seat: u64| mixed(seat ^ group);
        self.others.iter().filter(|other| weight(**other) > weight(self.own)).count()
    }

    /// How long until it is one's turn to place a task of a group whose turn is this one, that has waited for so long; none
    /// when it is.
    pub(super) fn until(&self, turn: usize, waited: Duration) -> Option<Duration> {
        let everyone = self.others.len() as u128 + 1;
        let (length, turn) = (TURN.as_millis(), turn as u128);
        let round = length * everyone;
        // Since one's turn began last.
        let since = (waited.as_millis() + round - turn * length) % round;
        (since >= length).then(|| Duration::from_millis((round - since) as u64))
    }

    /// Which of instances that are as good one prefers.
    pub(super) fn preference(&self) -> u64 {
        if self.others.is_empty() { 0 } else { self.own }
    }
}
