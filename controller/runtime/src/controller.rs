//! The contract of a controller.

use std::future::ready;

use futures::future::BoxFuture;
use steady_core::v1::Object;
use steady_core::{Clock, Key, Kind, Plan, Timestamp, View};

/// Turns what is into what is to be done. Pure: no clock, no chance, no effect.
pub trait Controller: Send + Sync + 'static {
    /// Its name: of its lease (`controller.NAME`), its sequencers and its events.
    const NAME: &'static str;
    /// Whether each commit for a key compares and bumps the key's sequencer. A controller whose every change is
    /// guarded by the objects it compares needs none.
    const SEQUENCED: bool = true;
    /// Whether any number of it work beside each other, each under a lease of its own, `controller.NAME.HOLDER`; else one
    /// leads and the others wait. Only for one whose every change is guarded by the objects it compares.
    const SHARED: bool = false;

    /// Kinds that its view holds.
    fn watches() -> &'static [Kind];

    /// Keys to plan for, given that this object changed. An event is only a key: what to do is read from the view.
    fn keys(&self, changed: &Object, view: &View) -> Vec<Key>;

    /// What to do about a key, after asking whom it takes: what is not in the view is asked for here, and nothing else is
    /// done. It may be asked for again for the same, and then nothing be done with the answer.
    fn act<'a>(&'a self, view: &'a View, key: &'a Key, clock: &'a dyn Clock) -> BoxFuture<'a, Plan> {
        Box::pin(ready(self.plan(view, key, clock.now())))
    }

    /// What to do about a key. Planned again on its own outcome, it is empty.
    fn plan(&self, view: &View, key: &Key, now: Timestamp) -> Plan;
}
