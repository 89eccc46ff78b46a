//! The queue of keys: each at most once, later ones when their time comes, failing ones less and less often.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use steady_core::{Key, Timestamp};

/// First pause after a failure, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(2), Duration::from_secs(30));

/// Keys that wait to be planned. Time is an argument; nothing here waits.
#[derive(Debug, Default)]
pub struct Queue {
    ready: VecDeque<Key>,
    queued: BTreeSet<Key>,
    /// Planned at the moment. What is added meanwhile is planned again afterwards.
    busy: BTreeSet<Key>,
    again: BTreeSet<Key>,
    later: BTreeMap<Key, Timestamp>,
    failures: BTreeMap<Key, u32>,
}

impl Queue {
    /// Adds a key, once.
    pub fn add(&mut self, key: Key) {
        if self.busy.contains(&key) {
            self.again.insert(key);
        } else if self.queued.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    /// Adds a key at a time, or earlier if it was to come earlier already.
    pub fn add_at(&mut self, key: Key, at: Timestamp) {
        let due = self.later.entry(key).or_insert(at);
        *due = (*due).min(at);
    }

    /// The next key to plan. It is busy until [`Queue::done`] or [`Queue::failed`].
    pub fn next(&mut self, now: Timestamp) -> Option<Key> {
        let due: Vec<Key> = self.later.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        for key in due {
            self.later.remove(&key);
            self.add(key);
        }
        let key = self.ready.pop_front()?;
        self.queued.remove(&key);
        self.later.remove(&key);
        self.busy.insert(key.clone());
        Some(key)
    }

    /// When the next key comes, if none is ready.
    pub fn next_at(&self) -> Option<Timestamp> {
        self.later.values().min().copied()
    }

    /// A key was planned and the plan executed.
    pub fn done(&mut self, key: &Key) {
        self.failures.remove(key);
        self.release(key);
    }

    /// A key's plan could not be executed: it comes again after a pause that doubles with every failure. `jitter` of
    /// 0 to 1 spreads those that failed together. Returns how often it failed in a row.
    pub fn failed(&mut self, key: &Key, now: Timestamp, jitter: f64) -> u32 {
        let failures = self.failures.entry(key.clone()).or_default();
        let pause = BACKOFF.0.saturating_mul(1 << (*failures).min(16)).min(BACKOFF.1);
        *failures += 1;
        let failures = *failures;
        self.busy.remove(key);
        self.again.remove(key);
        self.add_at(key.clone(), now + pause.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0));
        failures
    }

    fn release(&mut self, key: &Key) {
        self.busy.remove(key);
        if self.again.remove(key) {
            self.add(key.clone());
        }
    }

    /// How many keys wait for nothing but their turn, or are planned at the moment.
    pub fn depth(&self) -> usize {
        self.ready.len() + self.busy.len()
    }

    /// How many keys wait.
    pub fn len(&self) -> usize {
        self.ready.len() + self.later.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_core::Kind;

    fn key(name: &str) -> Key {
        Key::new(Kind::Service, "default", name)
    }

    #[test]
    fn a_key_is_planned_once_however_often_it_was_added() {
        let mut queue = Queue::default();
        queue.add(key("a"));
        queue.add(key("a"));
        assert_eq!(queue.next(Timestamp(0)), Some(key("a")));
        assert_eq!(queue.next(Timestamp(0)), None);
    }

    #[test]
    fn a_key_added_while_it_is_planned_comes_again_afterwards() {
        let mut queue = Queue::default();
        queue.add(key("a"));
        queue.next(Timestamp(0)).expect("a key");
        queue.add(key("a"));
        assert_eq!(queue.next(Timestamp(0)), None, "one pass a key at a time");
        queue.done(&key("a"));
        assert_eq!(queue.next(Timestamp(0)), Some(key("a")));
    }

    #[test]
    fn a_failing_key_comes_less_and_less_often_and_blocks_no_other() {
        let mut queue = Queue::default();
        let mut pauses = Vec::new();
        let mut now = Timestamp(0);
        queue.add(key("bad"));
        for _ in 0..20 {
            queue.next(now).expect("a key");
            queue.failed(&key("bad"), now, 1.0);
            let at = queue.next_at().expect("comes again");
            pauses.push(at.0 - now.0);
            now = at;
        }
        assert!(pauses.windows(2).all(|p| p[0] <= p[1]), "{pauses:?}");
        assert_eq!(pauses.last(), Some(&30_000));
        queue.add(key("good"));
        assert_eq!(queue.next(now - Duration::from_secs(1)), Some(key("good")));
    }

    #[test]
    fn the_earlier_of_two_times_counts() {
        let mut queue = Queue::default();
        queue.add_at(key("a"), Timestamp(50));
        queue.add_at(key("a"), Timestamp(20));
        queue.add_at(key("a"), Timestamp(90));
        assert_eq!(queue.next_at(), Some(Timestamp(20)));
        assert_eq!(queue.next(Timestamp(20)), Some(key("a")));
        assert_eq!(queue.next_at(), None);
    }
}
