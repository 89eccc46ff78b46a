//! The newest changes, for watchers to read from where they are.

use std::collections::VecDeque;
use std::sync::Arc;

use steady_core::Revision;
use steady_core::v1::Object;

/// How many changes are kept at most (at rest, those of a minute or two). A watcher that is further behind lists again.
const KEPT: usize = 65_536;

/// One change of one object.
#[derive(Debug)]
pub struct Changed {
    /// When.
    pub revision: Revision,
    /// The object after it; of a deletion, before it.
    pub object: Arc<Object>,
    /// The object before it, if there was one.
    pub previous: Option<Arc<Object>>,
    /// It was deleted.
    pub deleted: bool,
}

/// The revision asked for is no longer in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("changes are kept only after revision {oldest}")]
pub struct TooOld {
    /// Changes after it are all there.
    pub oldest: Revision,
}

/// Changes in revision order.
#[derive(Debug, Default)]
pub struct Ring {
    changes: VecDeque<Arc<Changed>>,
    /// Every change after it is in the ring.
    oldest: Revision,
}

impl Ring {
    /// Forgets everything: the ring starts after `revision`.
    pub fn restart(&mut self, revision: Revision) {
        self.changes.clear();
        self.oldest = revision;
    }

    /// Adds a change, no older than the newest.
    pub fn push(&mut self, change: Changed) {
        self.changes.push_back(Arc::new(change));
        // Whole revisions only: half a transaction would be a lie.
        while self.changes.len() > KEPT {
            let Some(first) = self.changes.pop_front() else { break };
            self.oldest = first.revision;
            while self.changes.front().is_some_and(|next| next.revision == first.revision) {
                self.changes.pop_front();
            }
        }
    }

    /// Forgets the changes up to a revision.
    pub fn forget(&mut self, before: Revision) {
        let gone = self.changes.partition_point(|change| change.revision <= before);
        if gone > 0 {
            self.changes.drain(..gone);
            self.changes.shrink_to_fit();
        }
        self.oldest = self.oldest.max(before);
    }

    /// About `most` changes after a revision, whole revisions only, and the revision that they reach: `newest`
    /// when there are no more.
    pub fn after(
        &self,
        after: Revision,
        newest: Revision,
        most: usize,
    ) -> Result<(Vec<Arc<Changed>>, Revision), TooOld> {
        if after < self.oldest {
            return Err(TooOld { oldest: self.oldest });
        }
        let from = self.changes.partition_point(|c| c.revision <= after);
        let mut taken: Vec<Arc<Changed>> = Vec::new();
        for change in self.changes.range(from..) {
            if taken.len() >= most && taken.last().is_some_and(|last| last.revision != change.revision) {
                let reached = taken.last().map_or(newest, |last| last.revision);
                return Ok((taken, reached));
            }
            taken.push(Arc::clone(change));
        }
        Ok((taken, newest.max(after)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(revision: i64) -> Changed {
        Changed { revision: Revision(revision), object: Arc::default(), previous: None, deleted: false }
    }

    #[test]
    fn a_reader_gets_whole_revisions_and_then_the_rest() {
        let mut ring = Ring::default();
        for revision in [2, 3, 3, 3, 5] {
            ring.push(change(revision));
        }
        let (taken, at) = ring.after(Revision(2), Revision(6), 1).expect("is there");
        assert_eq!((taken.len(), at), (3, Revision(3)));
        let (taken, at) = ring.after(at, Revision(6), 10).expect("is there");
        assert_eq!((taken.len(), at), (1, Revision(6)));
    }

    #[test]
    fn what_is_forgotten_is_whole_revisions() {
        let mut ring = Ring::default();
        for revision in [2, 3, 3, 5] {
            ring.push(change(revision));
        }
        ring.forget(Revision(3));
        assert!(ring.after(Revision(2), Revision(6), 10).is_err());
        assert_eq!(ring.after(Revision(3), Revision(6), 10).expect("is there").0.len(), 1);
        ring.forget(Revision(9));
        assert_eq!(ring.after(Revision(9), Revision(9), 10).expect("is there").0.len(), 0);
    }

    #[test]
    fn a_reader_that_is_too_far_behind_is_told_so() {
        let mut ring = Ring::default();
        ring.restart(Revision(10));
        assert_eq!(ring.after(Revision(9), Revision(12), 1).unwrap_err(), TooOld { oldest: Revision(10) });
        for revision in 0..(KEPT as i64 + 10) {
            ring.push(change(revision / 2 + 11));
        }
        assert!(ring.changes.len() <= KEPT);
        assert!(ring.after(Revision(10), Revision(99_999), 1).is_err());
        let first = ring.changes.front().expect("not empty").revision;
        assert_eq!(ring.oldest.0, first.0 - 1, "no revision is cut in half");
    }
}
