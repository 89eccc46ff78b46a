//! What requests go through: anything that obeys tables.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};

use crate::handover::Sockets;
use crate::table::Table;

/// Connections of clients that go on.
pub(crate) type Open = Arc<AtomicI64>;

/// A data plane.
pub(crate) trait Plane: Send {
    /// From now on it obeys this table; it may take a moment, which [`Plane::known`] tells.
    fn obey(&mut self, table: &Arc<Table>);

    /// Numbers of the tables that its parts know: nothing begins any more by an older one than the oldest of these.
    fn known(&self) -> Vec<Arc<AtomicU64>>;

    /// Something could not be done, and may be done later: it is to be told the table again.
    fn is_pending(&self) -> bool;

    /// Gives what the next process takes over; none where that needs nothing.
    fn sockets(&self) -> Box<dyn Fn() -> Sockets + Send> {
        Box::new(Sockets::new)
    }

    /// It goes on sending requests when this process is gone.
    fn goes_on(&self) -> bool {
        false
    }

    /// Whether it tells how many requests there are.
    fn counts(&self) -> bool {
        true
    }

    /// Takes no more connections; what goes on may come to its end. `handed_over`: another process has taken its place.
    fn close(&mut self, handed_over: bool);

    /// Tells whether, after [`Plane::close`], nothing goes on any more.
    fn has_ended(&self) -> Box<dyn Fn() -> bool + Send + Sync>;

    /// Ends whatever is left; blocks for a moment.
    fn end(self: Box<Self>);
}

/// Tells that a port cannot be had, once for each reason.
pub(crate) fn tell(refused: &mut BTreeMap<u16, String>, port: u16, error: &io::Error) {
    let why = error.to_string();
    if refused.insert(port, why.clone()).as_ref() != Some(&why) {
        tracing::error!(port, error = why, "cannot listen at a listener's port; trying again");
    }
}
