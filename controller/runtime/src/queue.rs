//! The queue of keys: each at most once, later ones when their time comes, failing ones less and less often.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use steady_core::{Key, Timestamp};

/// First pause after a failure, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(2), Duration::from_secs(30));

/// How many times as long as planning took a key rests, and how long at the most. A plan looks at all that belongs to its
/// key: where that is thousands of tasks, what changes meanwhile is planned for together, or planning would be all that
/// the process does.
const REST: (u32, Duration) = (4, Duration::from_secs(1));
/// Rests that are shorter are none, and what is planned faster needs none.
const SHORTEST_REST: Duration = Duration::from_millis(10);
const SHORT: Duration = Duration::from_millis(1);

/// Keys that wait to be planned. Time is an argument; nothing here waits.
#[derive(Debug, Default)]
pub struct Queue {
    ready: VecDeque<Key>,
    queued: BTreeSet<Key>,
    /// Planned at the moment. What is added meanwhile is planned again afterwards.
    busy: BTreeSet<Key>,
    again: BTreeSet<Key>,
    /// Not planned before a time, and whether they were added meanwhile.
    resting: BTreeMap<Key, (Timestamp, bool)>,
    later: BTreeMap<Key, Timestamp>,
    failures: BTreeMap<Key, u32>,
}

impl Queue {
    /// Adds a key, once.
    pub fn add(&mut self, key: Key) {
        if self.busy.contains(&key) {
            self.again.insert(key);
        } else if let Some((_, wanted)) = self.resting.get_mut(&key) {
            *wanted = true;
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
        // A rest that is too long is one that a clock makes that was set back.
        let over = |until: Timestamp| until <= now || until.since(now) > REST.1;
        let rested: Vec<Key> = self.resting.iter().filter(|(_, (t, _))| over(*t)).map(|(key, _)| key.clone()).collect();
        for key in rested {
            if let Some((_, true)) = self.resting.remove(&key) {
                self.add(key);
            }
        }
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
        let rested = self.resting.values().filter(|(_, wanted)| *wanted).map(|(until, _)| *until);
        self.later.values().copied().chain(rested).min()
    }

    /// A key was planned and the plan executed. It does not come again before `rested`, whatever is added.
    pub fn done(&mut self, key: &Key, rested: Timestamp) {
        self.failures.remove(key);
        self.busy.remove(key);
        self.resting.insert(key.clone(), (rested, self.again.remove(key)));
    }

    /// A key's plan could not be executed: it comes again after a pause that doubles with every failure. `jitter` of
    /// 0 to 1 spreads those that failed together; `rest` is the shortest pause. Returns how often it failed in a row.
    pub fn failed(&mut self, key: &Key, now: Timestamp, jitter: f64, rest: Duration) -> u32 {
        let failures = self.failures.entry(key.clone()).or_default();
        let pause = BACKOFF.0.saturating_mul(1 << (*failures).min(16)).min(BACKOFF.1);
        *failures += 1;
        let failures = *failures;
        self.busy.remove(key);
        self.again.remove(key);
        self.resting.insert(key.clone(), (now + rest, false));
        self.add_at(key.clone(), now + pause.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0).max(rest));
        failures
    }

    /// How long a key rests when planning for it took `spent` for each change that came of it: so long that the keys that are
    /// there to be planned take a fifth of one processor together.
    pub fn rest(&self, spent: Duration) -> Duration {
        let keys = u32::try_from(self.depth()).unwrap_or(u32::MAX).max(1);
        let rest = spent.saturating_mul(REST.0.saturating_mul(keys)).min(REST.1);
        if rest < SHORTEST_REST || spent < SHORT { Duration::ZERO } else { rest }
    }

    /// How many keys wait for nothing but their turn, or are planned at the moment.
    pub fn depth(&self) -> usize {
        self.ready.len() + self.busy.len() + self.wanted()
    }

    fn wanted(&self) -> usize {
        self.resting.values().filter(|(_, wanted)| *wanted).count()
    }

    /// How many keys wait.
    pub fn len(&self) -> usize {
        self.ready.len() + self.later.len() + self.wanted()
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
        queue.done(&key("a"), Timestamp(0));
        assert_eq!(queue.next(Timestamp(0)), Some(key("a")));
    }

    #[test]
    fn a_key_rests_as_long_as_leaves_four_fifths_of_the_time_to_others() {
        let ms = Duration::from_millis;
        let mut queue = Queue::default();
        queue.add(key("a"));
        queue.next(Timestamp(0)).expect("a key");
        assert_eq!(queue.rest(ms(5)), ms(20));
        assert_eq!(queue.rest(ms(300)), ms(1000), "never for long");
        assert_eq!(queue.rest(ms(2)), ms(0), "what is short is none");
        queue.add(key("c"));
        queue.add(key("d"));
        assert_eq!(queue.rest(ms(5)), ms(60), "three of them take turns");
        queue.next(Timestamp(0)).expect("a key");
        queue.next(Timestamp(0)).expect("a key");
        queue.done(&key("a"), Timestamp(100));
        assert_eq!((queue.next_at(), queue.len()), (None, 0), "nobody wants it");
        queue.add(key("a"));
        queue.add(key("b"));
        assert_eq!(queue.next(Timestamp(99)), Some(key("b")));
        assert_eq!((queue.next(Timestamp(99)), queue.next_at()), (None, Some(Timestamp(100))));
        assert_eq!(queue.next(Timestamp(100)), Some(key("a")));
    }

    #[test]
    fn a_key_that_failed_rests_whatever_is_added() {
        let mut queue = Queue::default();
        queue.add(key("a"));
        queue.next(Timestamp(0)).expect("a key");
        queue.failed(&key("a"), Timestamp(0), 1.0, Duration::from_millis(100));
        queue.add(key("a"));
        assert_eq!((queue.next(Timestamp(99)), queue.next_at()), (None, Some(Timestamp(100))));
        assert_eq!(queue.next(Timestamp(100)), Some(key("a")));
        assert_eq!(queue.next(Timestamp(1000)), None);
    }

    #[test]
    fn a_clock_that_is_set_back_lengthens_no_rest() {
        let mut queue = Queue::default();
        queue.add(key("a"));
        queue.next(Timestamp(5000)).expect("a key");
        queue.done(&key("a"), Timestamp(5100));
        queue.add(key("a"));
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
            queue.failed(&key("bad"), now, 1.0, Duration::ZERO);
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
