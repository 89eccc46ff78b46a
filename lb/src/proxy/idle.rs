//! Clocks of connections on which nothing goes on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::endpoint::now;

/// Returns when nothing has gone on for so long: no request, no piece of one or of an answer. `progress` is when something did last,
/// as [`now`] has it. One clock for a connection, whatever it carries.
pub(crate) async fn silence(progress: &AtomicU64, limit: Duration) {
    let mut left = limit;
    loop {
        tokio::time::sleep(left).await;
        let silent = Duration::from_millis(now().saturating_sub(progress.load(Ordering::Relaxed)));
        match limit.checked_sub(silent).filter(|left| !left.is_zero()) {
            Some(more) => left = more,
            None => return,
        }
    }
}
