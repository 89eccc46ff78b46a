//! Guards by name: what keeps Steady's promises when things go wrong.
//!
//! Each is asked for where it stands. In the product [`stands`] is the constant `true` and costs nothing; with the
//! feature `planted`, the simulator takes one away at a time, to see whether it would notice (`docs/robustness.md`).

/// Something without which a promise is broken.
macro_rules! guards {
    ($($name:ident: $what:literal,)*) => {
        /// Something without which a promise is broken.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Guard {
            $(#[doc = $what] $name,)*
        }

        impl Guard {
            /// Every guard.
            pub const ALL: &'static [Guard] = &[$(Guard::$name,)*];

            /// What it sees to.
            pub const fn what(self) -> &'static str {
                match self {
                    $(Guard::$name => $what,)*
                }
            }
        }
    };
}

guards! {
    Fence: "a commit compares the epoch of its writer's lease",
    Sequencer: "a commit compares the sequencer of the owner it was decided for",
    Expectation: "a change compares the object with the revision it was decided on",
    Check: "a commit compares what it was decided on and does not change",
    Absence: "what is created is compared with nothing being there",
    StoppedIsFinal: "a task that was given up as lost stays STOPPED",
    LossTold: "a loss of a healthy task conflicts with what its service decides at the same moment",
    StatusOrder: "a report that is older than what is known is not stored",
    ClientToken: "tasks of a client token are named after it",
    RelistDeletes: "what a new listing does not hold any more is deleted from the cache",
    RelistTells: "what a new listing changes is told to watchers",
    Comparison: "the cache is compared with the store from time to time",
    Quarantine: "an object that cannot be read is left out",
    WakeUp: "a plan that waits for a time is looked at again then",
    Retry: "what could not be committed is planned again",
    RelistPlans: "after a new listing everything is planned for",
    Gap: "a watcher that missed a message watches anew",
    OneSource: "a watch is continued by the API server that told it so far",
    TooOld: "a watcher whose revision is gone lists again",
    Floor: "no stop takes the healthy tasks below the floor",
    Ceiling: "no start takes the live tasks above the ceiling",
    StoppingCounts: "tasks that stop count against the ceiling",
    DrainFirst: "a service goes only when its tasks are gone",
    Attempts: "the number of a start is written with it, so that no number comes twice",
    Counted: "a failure that was counted is not counted again",
    OnePrimary: "a new deployment takes the place of the one before in the same commit",
    GivenUp: "nothing is started for a deployment that was given up",
    StillSilent: "an instance is given up only if it is still silent when that is written",
    MassSilence: "when most instances are silent, none is given up",
    Patience: "a silent instance is waited for",
    Returned: "an instance that is back is not lost any more",
    Reservation: "what is bound to an instance compares and writes its reservation",
    RoundCounts: "what a round places counts for the rest of the round",
    Memory: "no task is placed where there is no memory or cpu left",
    Port: "no task is placed where its host port is in use",
    Launched: "a container that was launched and is gone has ended",
    Exited: "a container that ended while the agent was away has ended",
    Adoption: "containers of a former agent are adopted",
    Over: "a task that is over never runs again, whatever is said of it",
    Stored: "a task is forgotten only after its end was stored",
}

#[cfg(feature = "planted")]
mod planted {
    use std::cell::Cell;

    thread_local! {
        pub(super) static REMOVED: Cell<Option<super::Guard>> = const { Cell::new(None) };
    }
}

/// Whether a guard is in force.
#[cfg(feature = "planted")]
pub fn stands(guard: Guard) -> bool {
    planted::REMOVED.get() != Some(guard)
}

/// Whether a guard is in force.
#[cfg(not(feature = "planted"))]
#[inline]
pub const fn stands(_: Guard) -> bool {
    true
}

/// Takes a guard away on this thread; `None` puts it back.
#[cfg(feature = "planted")]
pub fn remove(guard: Option<Guard>) {
    planted::REMOVED.set(guard);
}
