//! What becomes of an object that is declared: made, changed, or left as it is.

use steady_core::manifest::nearest;
use steady_core::v1::apply_result::Outcome;
use steady_core::v1::{ApplyResult, Object, object};
use steady_core::{Key, Kind};

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
    let respecified = respecify(&mut new, wanted);
    if new == old {
        return result(Outcome::Unchanged, old.clone(), Some(old));
    }
    if respecified {
        new.meta_mut().generation += 1;
    }
    writes.put(new.clone());
    result(Outcome::Configured, new, Some(old))
}

/// Gives an object the spec that is wanted. Whether it had another one.
fn respecify(new: &mut Object, wanted: Object) -> bool {
    macro_rules! kinds {
        ($($kind:ident),*) => {
            match (&mut new.kind, wanted.kind) {
                $((Some(object::Kind::$kind(new)), Some(object::Kind::$kind(wanted))) => {
                    let is_other = new.spec != wanted.spec;
                    new.spec = wanted.spec;
                    is_other
                })*
                _ => false,
            }
        };
    }
    kinds!(
        Service,
        TaskSet,
        Alarm,
        Secret,
        SecurityGroup,
        TargetGroup,
        Listener,
        ScalableTarget,
        ScalingPolicy,
        CapacityProvider
    )
}

pub(super) fn result(outcome: Outcome, object: Object, previous: Option<Object>) -> ApplyResult {
    ApplyResult { outcome: outcome.into(), object: Some(object), previous }
}

/// What names an object relies on that it is there, and stays; else what to say of it.
pub(super) fn missing(writes: &mut Writes, kind: Kind, what: &str, cluster: &str, name: &str) -> Option<String> {
    let key = Key::new(kind, cluster, name);
    if writes.get(&key).is_some() {
        writes.compare(&key);
        return None;
    }
    let known: Vec<&str> = writes.view().in_cluster(kind, cluster).map(|object| object.name()).collect();
    Some(unknown(what, name, &known))
}

/// What to say of a name that is not there.
pub(super) fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    match nearest(name, known) {
        Some(near) => format!("there is no {what} `{name}`; did you mean `{near}`?"),
        None => format!("there is no {what} `{name}`; apply it first, or in the same manifest"),
    }
}
