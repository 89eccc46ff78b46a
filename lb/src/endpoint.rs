//! A target as this load balancer knows it: how healthy it is, and what it has to do. It stays the same while tables change.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use steady_core::v1::target_state::Value as State;

/// Who a target is: it is another one when it answers elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Identity {
    pub(crate) task: String,
    pub(crate) group: String,
    pub(crate) container_port: i32,
    pub(crate) address: SocketAddr,
}

/// A target.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) identity: Identity,
    /// What a client's cookie calls it.
    pub(crate) cookie: u64,
    state: AtomicU8,
    /// It was looked at from here.
    looked_at: AtomicBool,
    /// What the control plane was told of it, as the newest view has it.
    told: AtomicU8,
    /// Why it is so.
    why: Mutex<(&'static str, String)>,
    /// Requests, or connections, that go on.
    outstanding: AtomicU32,
    /// It gets nothing new.
    draining: AtomicBool,
    /// The table since which it does not; tables count from 1.
    drains_since: AtomicU64,
    /// Until when it is spared after it could not be reached, milliseconds of [`now`].
    spared_until: AtomicU64,
    refusals: AtomicU32,
    /// When it became healthy, milliseconds of [`now`].
    healthy_since: AtomicU64,
    pub(crate) figures: Figures,
}

/// What a target did.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) requests: AtomicU64,
    /// Answers of 5xx.
    pub(crate) errors: AtomicU64,
    /// It could not be reached, or gave no answer that is HTTP.
    pub(crate) failures: AtomicU64,
    pub(crate) microseconds: AtomicU64,
}

/// Longest that a target is spared that cannot be reached.
const LONGEST: u64 = 10_000;

/// Milliseconds since this process began.
pub(crate) fn now() -> u64 {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    BEGAN.elapsed().as_millis() as u64
}

impl Endpoint {
    pub(crate) fn new(identity: Identity) -> Self {
        let mut cookie = std::hash::DefaultHasher::new();
        std::hash::Hash::hash(&identity, &mut cookie);
        Endpoint {
            cookie: std::hash::Hasher::finish(&cookie),
            identity,
            state: AtomicU8::new(State::Initial as u8),
            looked_at: AtomicBool::new(false),
            told: AtomicU8::new(State::Unspecified as u8),
            why: Mutex::default(),
            outstanding: AtomicU32::new(0),
            draining: AtomicBool::new(false),
            drains_since: AtomicU64::new(0),
            spared_until: AtomicU64::new(0),
            refusals: AtomicU32::new(0),
            healthy_since: AtomicU64::new(0),
            figures: Figures::default(),
        }
    }

    /// initial, healthy or unhealthy.
    pub(crate) fn state(&self) -> State {
        match self.state.load(Ordering::Relaxed) {
            state if state == State::Healthy as u8 => State::Healthy,
            state if state == State::Unhealthy as u8 => State::Unhealthy,
            _ => State::Initial,
        }
    }

    /// Reason and description of its state.
    pub(crate) fn why(&self) -> (&'static str, String) {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says how it is. Whether it was otherwise.
    pub(crate) fn set_state(&self, state: State, reason: &'static str, description: String) -> bool {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = (reason, description);
        let before = self.state.swap(state as u8, Ordering::Relaxed);
        if state == State::Healthy && before != state as u8 {
            self.healthy_since.store(now(), Ordering::Relaxed);
        }
        before != state as u8
    }

    /// It was looked at from here, or is not to be.
    pub(crate) fn looked_at(&self) -> bool {
        self.looked_at.load(Ordering::Relaxed) || self.is_draining()
    }

    pub(crate) fn set_looked_at(&self) {
        self.looked_at.store(true, Ordering::Relaxed);
    }

    /// What the control plane knows from here.
    pub(crate) fn told(&self) -> State {
        State::try_from(i32::from(self.told.load(Ordering::Relaxed))).unwrap_or(State::Unspecified)
    }

    pub(crate) fn set_told(&self, state: State) {
        self.told.store(state as u8, Ordering::Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// It gets nothing new from this table on.
    pub(crate) fn set_draining(&self, table: u64) {
        if !self.draining.swap(true, Ordering::Relaxed) {
            self.drains_since.store(table, Ordering::Relaxed);
        }
    }

    /// Nothing of it goes on, and nobody who knows an older table can begin anything.
    pub(crate) fn has_drained(&self, oldest: u64) -> bool {
        self.is_draining()
            && oldest >= self.drains_since.load(Ordering::Relaxed)
            && self.outstanding.load(Ordering::Acquire) == 0
    }

    pub(crate) fn outstanding(&self) -> u32 {
        self.outstanding.load(Ordering::Relaxed)
    }

    /// It has so many, as somebody else counts them.
    pub(crate) fn set_outstanding(&self, count: u32) {
        self.outstanding.store(count, Ordering::Release);
    }

    /// It has one more to do, until this is dropped.
    pub(crate) fn begin(self: &std::sync::Arc<Self>) -> Busy {
        self.outstanding.fetch_add(1, Ordering::AcqRel);
        Busy(std::sync::Arc::clone(self))
    }

    /// It could not be reached: others get its requests for a while, the longer the more often it happens.
    pub(crate) fn refused(&self) {
        let times = self.refusals.fetch_add(1, Ordering::Relaxed).min(7);
        let spare = (100_u64 << times).min(LONGEST);
        self.spared_until.store(now() + spare, Ordering::Relaxed);
        self.figures.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// It answered.
    pub(crate) fn answered(&self) {
        if self.refusals.load(Ordering::Relaxed) != 0 {
            self.refusals.store(0, Ordering::Relaxed);
            self.spared_until.store(0, Ordering::Relaxed);
        }
    }

    fn is_spared(&self) -> bool {
        let until = self.spared_until.load(Ordering::Relaxed);
        until != 0 && until > now()
    }

    /// It may get a request.
    pub(crate) fn is_fit(&self) -> bool {
        self.state() == State::Healthy && !self.is_draining() && !self.is_spared()
    }

    /// How much of its share it gets while it starts slowly, 0..1.
    pub(crate) fn warmth(&self, slow_start: Duration) -> f64 {
        if slow_start.is_zero() {
            return 1.0;
        }
        let since = now().saturating_sub(self.healthy_since.load(Ordering::Relaxed));
        (since as f64 / slow_start.as_millis() as f64).clamp(0.05, 1.0)
    }
}

/// One thing that a target has to do.
#[derive(Debug)]
pub(crate) struct Busy(std::sync::Arc<Endpoint>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.outstanding.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_target_has_drained_when_nothing_goes_on_and_no_older_table_is_known() {
        let address = "127.0.0.1:1".parse().expect("an address");
        let identity = Identity { task: "t".into(), group: "g".into(), container_port: 80, address };
        let endpoint = Arc::new(Endpoint::new(identity));
        endpoint.set_state(State::Healthy, "", String::new());
        assert!(endpoint.is_fit());
        let busy = endpoint.begin();
        endpoint.set_draining(7);
        endpoint.set_draining(9);
        assert!(!endpoint.is_fit() && !endpoint.has_drained(7));
        drop(busy);
        assert!(!endpoint.has_drained(6) && endpoint.has_drained(7));
    }

    #[test]
    fn one_that_cannot_be_reached_is_spared_for_a_while() {
        let address = "127.0.0.1:1".parse().expect("an address");
        let identity = Identity { task: "t".into(), group: "g".into(), container_port: 80, address };
        let endpoint = Endpoint::new(identity);
        endpoint.set_state(State::Healthy, "", String::new());
        endpoint.refused();
        assert!(!endpoint.is_fit());
        endpoint.answered();
        assert!(endpoint.is_fit());
    }
}
