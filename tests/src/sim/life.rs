//! A process of the simulated world: its lives, its clock, its pauses, and the moment at which it is to crash.

use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use steady_core::{Clock, Timestamp};
use tokio::sync::watch;
use tokio::time::Instant;

/// When every history begins.
const BEGINNING: Timestamp = Timestamp(1_800_000_000_000);

/// Where in a write a process crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Moment {
    /// The write was not sent.
    Before,
    /// It is done, and its answer never comes.
    After,
    /// Its answer came.
    Answered,
}

/// One life of a process. A process that was killed has another one.
pub(crate) struct Life {
    /// Place among the world's processes.
    pub(crate) process: usize,
    /// `service-1`, `api-0`, `agent-2`, `user`.
    pub(crate) name: String,
    start: Instant,
    skew: AtomicI64,
    dead: watch::Sender<bool>,
    paused_until: watch::Sender<Instant>,
    cut_until: Mutex<Instant>,
    /// Writes so far, of this life.
    writes: AtomicU32,
    crash: Mutex<Option<(u32, Moment)>>,
}

impl Life {
    pub(crate) fn new(process: usize, name: &str, start: Instant) -> Self {
        Life {
            process,
            name: name.to_owned(),
            start,
            skew: AtomicI64::new(0),
            dead: watch::Sender::new(false),
            paused_until: watch::Sender::new(start),
            cut_until: Mutex::new(start),
            writes: AtomicU32::new(0),
            crash: Mutex::new(None),
        }
    }

    pub(crate) fn is_dead(&self) -> bool {
        *self.dead.borrow()
    }

    /// Ends it: whatever it had under way that was not sent yet is lost.
    pub(crate) fn end(&self) {
        self.dead.send_replace(true);
    }

    /// Returns when it has ended.
    pub(crate) fn gone(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut dead = self.dead.subscribe();
        async move {
            let _ = dead.wait_for(|dead| *dead).await;
        }
    }

    /// Freezes it for a while: nothing leaves it, and nothing reaches it.
    pub(crate) fn pause(&self, how_long: Duration) {
        self.paused_until.send_replace(Instant::now() + how_long);
    }

    pub(crate) fn is_paused(&self) -> bool {
        *self.paused_until.borrow() > Instant::now()
    }

    /// Waits until it is not frozen.
    pub(crate) async fn awake(&self) {
        if !self.is_paused() {
            return;
        }
        let mut pauses = self.paused_until.subscribe();
        loop {
            let until = *pauses.borrow_and_update();
            if until <= Instant::now() {
                return;
            }
            let _ = tokio::time::timeout_at(until, pauses.changed()).await;
        }
    }

    /// Cuts it off from the others for a while.
    pub(crate) fn cut(&self, how_long: Duration) {
        *lock(&self.cut_until) = Instant::now() + how_long;
    }

    pub(crate) fn is_cut(&self) -> bool {
        *lock(&self.cut_until) > Instant::now()
    }

    /// Ends pauses, cuts, wrong clocks and crashes to come.
    pub(crate) fn heal(&self) {
        let now = Instant::now();
        self.paused_until.send_replace(now);
        *lock(&self.cut_until) = now;
        *lock(&self.crash) = None;
        self.skew.store(0, Ordering::Relaxed);
    }

    /// Its clock is wrong by this many milliseconds from now on.
    pub(crate) fn step_clock(&self, by: i64) {
        self.skew.store(by, Ordering::Relaxed);
    }

    /// It crashes in the nth write from now.
    pub(crate) fn crash_in(&self, writes: u32, moment: Moment) {
        *lock(&self.crash) = Some((self.writes.load(Ordering::Relaxed) + writes, moment));
    }

    /// Counts a write; the moment of the crash if this is the one.
    pub(crate) fn count_write(&self) -> Option<Moment> {
        let number = self.writes.fetch_add(1, Ordering::Relaxed) + 1;
        lock(&self.crash).filter(|(at, _)| *at <= number).map(|(_, moment)| moment)
    }
}

impl Clock for Life {
    fn now(&self) -> Timestamp {
        let since = i64::try_from(self.start.elapsed().as_millis()).unwrap_or(i64::MAX);
        Timestamp(BEGINNING.0 + since + self.skew.load(Ordering::Relaxed))
    }
}

/// State of a single thread: it is never contended, and a panic elsewhere is told by itself.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
