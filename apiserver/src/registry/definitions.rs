//! Task definitions: immutable revisions of families, and names that stand for the newest.

use std::collections::BTreeSet;

use steady_core::task::split_definition;
use steady_core::validate::Fault;
use steady_core::{Key, Kind, v1};
use v1::apply_result::Outcome;
use v1::task_definition_state::Value as State;
use v1::{ApplyResult, Object, TaskDefinition, TaskDefinitionSpec, TaskDefinitionStatus, object};

use super::fault;
use super::upsert::{result, unknown, upsert};
use super::writes::Writes;

/// Revisions of a family that are there, in order. Includes what these writes register.
fn revisions(writes: &Writes, family: &str) -> Vec<(i64, Object)> {
    let from = Key::new(Kind::TaskDefinition, "", &format!("{family}:"));
    let prefix = from.name.clone();
    let stored = writes
        .view()
        .range(from..)
        .take_while(|(key, _)| key.kind == Kind::TaskDefinition && key.name.starts_with(&*prefix))
        .map(|(key, _)| key.clone());
    let written = writes.written().filter(|k| k.kind == Kind::TaskDefinition && k.name.starts_with(&*prefix)).cloned();
    let keys: BTreeSet<Key> = stored.chain(written).collect();
    let mut found: Vec<(i64, Object)> =
        keys.iter().filter_map(|key| Some((split_definition(&key.name)?.1, writes.get(key)?.clone()))).collect();
    found.sort_by_key(|(revision, _)| *revision);
    found
}

fn is_active(object: &Object) -> bool {
    let status = object.as_task_definition().and_then(|t| t.status.as_ref()).map(TaskDefinitionStatus::status);
    !object.is_deleting() && status == Some(State::Active)
}

fn spec(object: &Object) -> Option<&TaskDefinitionSpec> {
    object.as_task_definition()?.spec.as_ref()
}

/// What a revision says, if it is there.
pub(super) fn spec_of<'a>(writes: &'a Writes, name: &str) -> Option<&'a TaskDefinitionSpec> {
    spec(writes.get(&Key::new(Kind::TaskDefinition, "", name))?)
}

/// Registers a definition, unless the family's newest revision is the same already.
pub(super) fn register(writes: &mut Writes, wanted: &Object) -> Result<ApplyResult, Vec<Fault>> {
    let family = spec(wanted).map(|s| s.family.clone()).unwrap_or_default();
    if wanted.name().split(':').next() != Some(family.as_str()) {
        let message = format!("`{}` differs from spec.family `{family}`; leave one of them out", wanted.name());
        return Err(vec![fault("metadata.name", message)]);
    }
    let known = revisions(writes, &family);
    let named = split_definition(wanted.name()).map(|(_, revision)| revision);
    let same = match named {
        Some(revision) => known.iter().find(|(r, _)| *r == revision).map(|(_, object)| object),
        None => known.iter().rev().map(|(_, object)| object).find(|object| is_active(object)),
    };
    if let Some(object) = same.filter(|object| spec(object) == spec(wanted)) {
        let mut again = wanted.clone();
        object.name().clone_into(&mut again.meta_mut().name);
        return Ok(upsert(writes, again));
    }
    if let Some(revision) = named {
        let message = format!(
            "`{family}:{revision}` is no such revision, or differs from it, and a revision never changes; \
             write `name: {family}` to register a new one"
        );
        return Err(vec![fault("metadata.name", message)]);
    }
    let previous = known.last().map(|(_, object)| object.clone());
    let sequencer = format!("taskdefinition/{family}");
    let used = writes.view().revision_of(&Key::new(Kind::Sequencer, "", &sequencer));
    let revision = writes.bump(&sequencer, used);
    let mut object = wanted.clone();
    object.meta_mut().name = format!("{family}:{revision}");
    let status = TaskDefinitionStatus {
        status: State::Active.into(),
        registered_at: Some(writes.now().into()),
        deregistered_at: None,
    };
    let definition = TaskDefinition { spec: spec(wanted).cloned(), status: Some(status) };
    object.kind = Some(object::Kind::TaskDefinition(definition));
    let created = writes.create(object);
    let outcome = if previous.is_some() { Outcome::Configured } else { Outcome::Created };
    Ok(result(outcome, created, previous))
}

/// `family:revision` of a reference: of a bare family, its newest ACTIVE revision. What is in use already may
/// stay in use though it is INACTIVE (ECS).
pub(super) fn resolve(writes: &mut Writes, reference: &str, in_use: &str) -> Result<String, String> {
    if reference.contains(':') {
        let key = Key::new(Kind::TaskDefinition, "", reference);
        let found = writes.get(&key).cloned();
        return match found {
            Some(object) if is_active(&object) => {
                writes.compare(&key);
                Ok(reference.to_owned())
            }
            Some(_) if reference == in_use => Ok(reference.to_owned()),
            Some(_) => Err(format!("task definition `{reference}` is INACTIVE; use another revision")),
            None => Err(unknown("task definition", reference, &known_names(writes))),
        };
    }
    let newest = revisions(writes, reference).into_iter().rev().find(|(_, object)| is_active(object));
    match newest {
        Some((_, object)) => {
            writes.compare(&Key::of(&object));
            Ok(object.name().to_owned())
        }
        None if in_use.split(':').next() == Some(reference) => Ok(in_use.to_owned()),
        None => {
            let families: BTreeSet<&str> = known_names(writes).iter().filter_map(|n| n.split(':').next()).collect();
            Err(unknown("task definition", reference, &families.into_iter().collect::<Vec<_>>()))
        }
    }
}

fn known_names(writes: &Writes) -> Vec<&str> {
    writes.view().of_kind(Kind::TaskDefinition).map(|object| object.name()).collect()
}
