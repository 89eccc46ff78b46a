//! The contract of a controller.

use steady_core::v1::Object;
use steady_core::{Key, Kind, Plan, Timestamp, View};

/// Turns what is into what is to be done. Pure: no clock, no chance, no effect.
pub trait Controller: Send + Sync + 'static {
    /// Its name: of its lease (`controller.NAME`), its sequencers and its events.
    const NAME: &'static str;
    /// Whether each commit for a key compares and bumps the key's sequencer. A controller whose every change is
    /// guarded by the objects it compares needs none.
    const SEQUENCED: bool = true;

    /// Kinds that its view holds.
    fn watches() -> &'static [Kind];

    /// Keys to plan for, given that this object changed. An event is only a key: what to do is read from the view.
    fn keys(&self, changed: &Object, view: &View) -> Vec<Key>;

    /// What to do about a key. Planned again on its own outcome, it is empty.
    fn plan(&self, view: &View, key: &Key, now: Timestamp) -> Plan;
}
