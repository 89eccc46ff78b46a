//! What happened: a hash of all of it, printed as it happens where somebody wants to read it.

use std::cell::RefCell;
use std::hash::{DefaultHasher, Hash, Hasher};

use steady_apiserver::cache::decode;
use steady_apiserver::storage::Change;
use steady_core::v1::object;
use steady_core::{Clock, Revision, task};

use super::net::Origin;

/// The record of a history.
pub(crate) struct Trace {
    hash: DefaultHasher,
    print: bool,
    pub(crate) faults: u64,
}

impl Trace {
    pub(crate) fn new(print: bool) -> Self {
        Trace { hash: DefaultHasher::new(), print, faults: 0 }
    }

    /// Something happened.
    pub(crate) fn note(&mut self, clock: &dyn Clock, what: &'static str, text: &str) {
        (clock.now(), what, text).hash(&mut self.hash);
        if self.print {
            println!("{:>9} {what:<9} {text}", clock.now().0 % 100_000_000);
        }
    }

    /// A revision was written.
    pub(crate) fn revision(
        &mut self,
        clock: &dyn Clock,
        revision: Revision,
        changes: &[Change],
        origin: Option<&Origin>,
    ) {
        (clock.now(), revision.0).hash(&mut self.hash);
        for change in changes {
            match change {
                Change::Put(entry) => (&entry.key, &entry.value).hash(&mut self.hash),
                Change::Deleted { key, .. } => key.hash(&mut self.hash),
            }
        }
        if !self.print {
            return;
        }
        let who = origin.map_or_else(String::new, |o| format!("{} {}", o.name, o.call));
        for change in changes {
            let text = match change {
                Change::Deleted { key, .. } => format!("- {key}"),
                Change::Put(entry) => {
                    let object = decode(entry).map(|d| d.object).unwrap_or_default();
                    let detail = task::of(&object).map(|t| {
                        let (last, wanted) = (t.status.last_status().as_str_name(), t.is_wanted());
                        let (service, place) = (&t.spec.service, &t.spec.container_instance);
                        format!("{last} wanted {wanted} of `{service}` on `{place}` {}", t.status.stopped_reason)
                    });
                    format!("+ {} {}", entry.key, detail.unwrap_or_else(|| summary(&object)))
                }
            };
            println!("{:>9} r{revision:<8} {text}   ({who})", clock.now().0 % 100_000_000);
        }
    }

    /// The hash of all of it.
    pub(crate) fn hash(&self) -> u64 {
        self.hash.finish()
    }
}

/// What changes about an object.
fn summary(object: &steady_core::v1::Object) -> String {
    let generation = object.meta().generation;
    let spec = object.as_deployment().and_then(|d| d.spec.as_ref()).map(|s| s.target_count).unwrap_or_default();
    match &object.kind {
        Some(object::Kind::Service(service)) => format!("generation {generation} {:?}", service.status),
        Some(object::Kind::Deployment(deployment)) => format!("target {spec} {:?}", deployment.status),
        Some(object::Kind::ContainerInstance(instance)) => format!("{:?}", instance.status),
        Some(object::Kind::Event(event)) => event.spec.as_ref().map(|s| s.message.clone()).unwrap_or_default(),
        other => format!("{other:?}"),
    }
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Remembers panics of this thread instead of printing them: a panic of any process breaks its history.
pub fn catch_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let payload = panic.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
        let text = text.unwrap_or("?").to_owned();
        PANIC.with_borrow_mut(|kept| kept.get_or_insert(format!("panic at {place}: {text}")).len());
    }));
}

/// The panic since it was last asked for, if there was one.
pub(crate) fn panicked() -> Option<String> {
    PANIC.with_borrow_mut(Option::take)
}
