//! How often a container may ask: 40 times a second, and 60 times at once (ECS).

use std::collections::BTreeMap;
use std::time::Instant;

const RATE: f64 = 40.0;
const BURST: f64 = 60.0;
/// Above so many those that are full again are forgotten.
const KEPT: usize = 1000;

/// What is left for each, and since when.
#[derive(Debug, Default)]
pub(super) struct Buckets(BTreeMap<String, (f64, Instant)>);

impl Buckets {
    /// Whether it may be answered once more.
    pub(super) fn take(&mut self, of: &str) -> bool {
        self.take_at(of, Instant::now())
    }

    fn take_at(&mut self, of: &str, now: Instant) -> bool {
        let filled = |(left, since): (f64, Instant)| {
            f64::min(left + now.saturating_duration_since(since).as_secs_f64() * RATE, BURST)
        };
        if self.0.len() > KEPT {
            self.0.retain(|_, bucket| filled(*bucket) < BURST);
        }
        let left = self.0.get(of).map_or(BURST, |bucket| filled(*bucket));
        let may = left >= 1.0;
        self.0.insert(of.to_owned(), (if may { left - 1.0 } else { left }, now));
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn sixty_at_once_then_forty_a_second_and_each_for_itself() {
        let (mut buckets, now) = (Buckets::default(), Instant::now());
        let many = |buckets: &mut Buckets, at: Instant| (0..100).filter(|_| buckets.take_at("a", at)).count();
        assert_eq!(many(&mut buckets, now), 60);
        assert_eq!(many(&mut buckets, now + Duration::from_millis(500)), 20);
        assert!(buckets.take_at("b", now));
        for other in 0..2000 {
            buckets.take_at(&other.to_string(), now + Duration::from_secs(other));
        }
        assert!(buckets.0.len() <= KEPT + 1);
    }
}
