//! Tasks that are over: remembered for a while, so that none of them ever runs again, whatever is said of it. An API
//! server that missed a task's end may name it once more; by the time that a task is forgotten here it has noticed.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use steady_core::Timestamp;

/// How long a task is remembered: longer than an API server may be wrong about it.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Tasks that are over.
#[derive(Debug, Default)]
pub(super) struct Over {
    since: BTreeMap<String, Timestamp>,
    /// Their names, those that are forgotten first first.
    order: VecDeque<String>,
}

impl Over {
    /// Those of a former life.
    pub(super) fn of(mut tasks: Vec<(Timestamp, String)>) -> Self {
        tasks.sort();
        let order = tasks.iter().map(|(_, name)| name.clone()).collect();
        Over { since: tasks.into_iter().map(|(at, name)| (name, at)).collect(), order }
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.since.contains_key(name)
    }

    /// Remembers a task that is over now; returns those that are forgotten for it.
    pub(super) fn add(&mut self, name: &str, now: Timestamp) -> Vec<String> {
        if self.since.insert(name.to_owned(), now).is_none() {
            self.order.push_back(name.to_owned());
        }
        // A clock that was ahead must not keep what comes after it for ever.
        if let Some(at) = self.order.front().and_then(|oldest| self.since.get_mut(oldest)) {
            *at = (*at).min(now);
        }
        let mut forgotten = Vec::new();
        while let Some(oldest) = self.order.front()
            && self.since.get(oldest).is_none_or(|at| now.since(*at) >= REMEMBERED)
        {
            self.since.remove(oldest);
            forgotten.extend(self.order.pop_front());
        }
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_remembered_for_ten_minutes() {
        let mut over = Over::of(vec![(Timestamp(1000), "b".into()), (Timestamp(0), "a".into())]);
        assert_eq!(over.add("c", Timestamp(599_999)), Vec::<String>::new());
        assert_eq!(over.add("d", Timestamp(600_500)), ["a"]);
        assert!(!over.contains("a") && over.contains("b") && over.contains("c"));
    }
}
