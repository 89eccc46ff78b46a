//! What one thread has to itself: the table as it knows it, and its connections to targets.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_rustls::TlsConnector;

use super::access::AccessLog;
use super::upstream::Upstreams;
use crate::endpoint::now;
use crate::table::Table;
use crate::tls;

/// Runs futures on the thread that has them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Local;

impl<F> hyper::rt::Executor<F> for Local
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Requests of a second that were sent again, beyond which none is: when everything fails, retries make it worse.
const RETRIES: u64 = 10;
/// And how many of a hundred.
const SHARE: u64 = 20;

/// How many requests may be sent to another target once more.
#[derive(Debug, Default)]
struct Budget {
    second: u64,
    requests: u64,
    retries: u64,
}

/// A thread's own.
pub(crate) struct Worker {
    table: RefCell<Arc<Table>>,
    /// The number of the table that it knows, for all to see.
    at: Arc<AtomicU64>,
    pub(crate) upstreams: Rc<Upstreams>,
    /// To targets: HTTP/1, HTTP/2.
    pub(crate) tls: [TlsConnector; 2],
    pub(crate) log: Option<AccessLog>,
    budget: RefCell<Budget>,
}

impl Worker {
    pub(crate) fn new(table: Arc<Table>, at: Arc<AtomicU64>, log: Option<AccessLog>) -> Self {
        at.store(table.number, Ordering::Release);
        Worker {
            table: RefCell::new(table),
            at,
            upstreams: Rc::default(),
            tls: [tls::to_targets(&[b"http/1.1"]), tls::to_targets(&[b"h2"])],
            log,
            budget: RefCell::default(),
        }
    }

    pub(crate) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.borrow())
    }

    /// From now on another table is obeyed.
    pub(crate) fn obey(&self, table: Arc<Table>) {
        let (number, revision) = (table.number, table.revision);
        let addresses: std::collections::HashSet<_> = table.endpoints.keys().map(|identity| identity.address).collect();
        self.upstreams.retain(|address| addresses.contains(address));
        let before = self.table.replace(table);
        // After this nobody here begins anything by the table before.
        self.at.store(number, Ordering::Release);
        tracing::debug!(table = number, revision = revision.0, "obeyed");
        drop(before);
    }

    fn budget(&self, change: impl FnOnce(&mut Budget) -> bool) -> bool {
        let mut budget = self.budget.borrow_mut();
        let second = now() / 1000;
        if budget.second != second {
            *budget = Budget { second, ..Budget::default() };
        }
        change(&mut budget)
    }

    /// Counts a request.
    pub(crate) fn count(&self) {
        self.budget(|budget| {
            budget.requests += 1;
            true
        });
    }

    /// Whether a request that may have begun somewhere may be sent to somebody else.
    pub(crate) fn may_retry(&self) -> bool {
        self.budget(|budget| {
            let may = budget.retries < RETRIES + budget.requests * SHARE / 100;
            budget.retries += u64::from(may);
            may
        })
    }
}
