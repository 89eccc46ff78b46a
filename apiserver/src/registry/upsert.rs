//! What becomes of an object that is declared: made, changed, or left as it is.

use steady_core::Key;
use steady_core::manifest::nearest;
use steady_core::v1::apply_result::Outcome;
use steady_core::v1::{ApplyResult, Object, object};

use super::writes::Writes;

/// Creates the object, or gives the one that is there its spec, labels and annotations.
pub(super) fn upsert(writes: &mut Writes, wanted: Object) -> ApplyResult {
    let key = Key::of(&wanted);
    let Some(old) = writes.get(&key).cloned() else {
        let created = writes.create(wanted);
        return result(Outcome::Created, created, None);
    };
    let mut new = old.clone();
    let meta = new.meta_mut();
    meta.labels.clone_from(&wanted.meta().labels);
    meta.annotations.clone_from(&wanted.meta().annotations);
    let mut respecified = false;
    match (&mut new.kind, wanted.kind) {
        (Some(object::Kind::Service(new)), Some(object::Kind::Service(wanted))) => {
            respecified = new.spec != wanted.spec;
            new.spec = wanted.spec;
        }
        (Some(object::Kind::TaskSet(new)), Some(object::Kind::TaskSet(wanted))) => {
            respecified = new.spec != wanted.spec;
            new.spec = wanted.spec;
        }
        (Some(object::Kind::Alarm(new)), Some(object::Kind::Alarm(wanted))) => {
            respecified = new.spec != wanted.spec;
            new.spec = wanted.spec;
        }
        (Some(object::Kind::Secret(new)), Some(object::Kind::Secret(wanted))) => {
            respecified = new.spec != wanted.spec;
            new.spec = wanted.spec;
        }
        (Some(object::Kind::SecurityGroup(new)), Some(object::Kind::SecurityGroup(wanted))) => {
            respecified = new.spec != wanted.spec;
            new.spec = wanted.spec;
        }
        (Some(object::Kind::TargetGroup(new)), Some(object::Kind::TargetGroup(wanted))) => {
            respecified = new.spec != wanted.spec;
            new.spec = wanted.spec;
        }
        (Some(object::Kind::Listener(new)), Some(object::Kind::Listener(wanted))) => {
            respecified = new.spec != wanted.spec;
            new.spec = wanted.spec;
        }
        _ => {}
    }
    if new == old {
        return result(Outcome::Unchanged, old.clone(), Some(old));
    }
    if respecified {
        new.meta_mut().generation += 1;
    }
    writes.put(new.clone());
    result(Outcome::Configured, new, Some(old))
}

pub(super) fn result(outcome: Outcome, object: Object, previous: Option<Object>) -> ApplyResult {
    ApplyResult { outcome: outcome.into(), object: Some(object), previous }
}

/// What to say of a name that is not there.
pub(super) fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    match nearest(name, known) {
        Some(near) => format!("there is no {what} `{name}`; did you mean `{near}`?"),
        None => format!("there is no {what} `{name}`; apply it first, or in the same manifest"),
    }
}
