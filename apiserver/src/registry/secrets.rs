//! Secrets: sealed when they are declared, opened for the one instance whose task names them, and never told otherwise.

use std::collections::BTreeMap;

use steady_core::secrets::{parse_reference, references};
use steady_core::v1::apply_result::Outcome;
use steady_core::v1::{ApplyResult, Object, Secret, SecretStatus, TaskDefinitionSpec, object};
use steady_core::validate::Fault;
use steady_core::{Key, Kind, View};

use super::upsert::{result, upsert};
use super::writes::Writes;
use super::{Registry, fault};
use crate::seal::Keys;

/// What a task's secrets are, by what its definition names them, and why some cannot be had.
pub(crate) type Opened = (BTreeMap<String, String>, BTreeMap<String, String>);

/// An object as it is shown: without what is sealed in it.
pub(crate) fn shown(object: &Object) -> Object {
    let mut object = object.clone();
    if let Some(object::Kind::Secret(secret)) = &mut object.kind
        && let Some(status) = &mut secret.status
    {
        status.sealed.clear();
    }
    object
}

pub(super) fn declared(writes: &mut Writes, keys: Option<&Keys>, wanted: &Object) -> Result<ApplyResult, Vec<Fault>> {
    let Some(keys) = keys else {
        let message = "this API server has no key to seal secrets with; start it with --secrets-key FILE";
        return Err(vec![fault("kind", message)]);
    };
    let key = Key::of(wanted);
    let (mut wanted, path) = (wanted.clone(), key.to_path());
    let current = writes.get(&key).cloned();
    let old = current.as_ref().and_then(Object::as_secret).and_then(|secret| secret.status.clone());
    let Some(object::Kind::Secret(secret)) = &mut wanted.kind else { return Err(Vec::new()) };
    let value = secret.spec.as_mut().map(|spec| std::mem::take(&mut spec.secret_string)).unwrap_or_default();
    // Put again after the key was changed, it is sealed by the new one.
    let is_same = |status: &SecretStatus| {
        keys.is_current(&path, &status.sealed) && keys.open(&path, &status.sealed).as_deref() == Ok(&value)
    };
    let changed = !value.is_empty() && !old.as_ref().is_some_and(is_same);
    if changed {
        let sealed = keys.seal(&path, &value).map_err(|e| vec![fault("spec.secretString", e.to_string())])?;
        secret.status = Some(SecretStatus { sealed, last_changed: Some(writes.now().into()) });
    } else if old.is_some() {
        secret.status = old;
    } else {
        return Err(vec![fault("spec.secretString", "is missing; expected the value")]);
    }
    let status = secret.status.clone();
    let mut done = upsert(writes, wanted);
    if changed && let Some(current) = current {
        // The value is no part of the spec that is stored; that it is another one has to be seen all the same.
        let mut new = done.object.unwrap_or_default();
        let spec = new.as_secret().and_then(|secret| secret.spec.clone());
        new.kind = Some(Secret { spec, status }.into());
        new.meta_mut().generation = current.meta().generation + 1;
        writes.put(new.clone());
        done = result(Outcome::Configured, new, Some(current));
    }
    done.object = done.object.as_ref().map(shown);
    done.previous = done.previous.as_ref().map(shown);
    Ok(done)
}

impl Registry {
    /// The values of all secrets that tasks of a definition need.
    pub(crate) fn open_secrets(&self, view: &View, cluster: &str, definition: &TaskDefinitionSpec) -> Opened {
        let (mut values, mut missing) = Opened::default();
        for reference in references(definition) {
            match self.open_secret(view, cluster, &reference) {
                Ok(value) => values.insert(reference, value),
                Err(why) => missing.insert(reference, why),
            };
        }
        (values, missing)
    }

    /// One of them.
    pub(crate) fn open_secret(&self, view: &View, cluster: &str, reference: &str) -> Result<String, String> {
        let (name, member) = parse_reference(reference).ok_or("is no name of a secret")?;
        let key = Key::new(Kind::Secret, cluster, name);
        let secret = view.get(&key).ok_or_else(|| format!("there is no {key}; apply it and start the task again"))?;
        let sealed = secret.as_secret().and_then(|secret| secret.status.as_ref()).map(|status| &status.sealed);
        let keys = self.keys.as_ref().ok_or("the API server has no key to open it with (--secrets-key)")?;
        let value = keys.open(&key.to_path(), sealed.map_or(&[], |sealed| sealed)).map_err(|e| e.to_string())?;
        let Some(member) = member else { return Ok(value) };
        let object: serde_json::Value =
            serde_json::from_str(&value).map_err(|_| format!("{key} is no JSON object and has no `{member}`"))?;
        match object.get(member) {
            Some(serde_json::Value::String(text)) => Ok(text.clone()),
            Some(other) => Ok(other.to_string()),
            None => Err(format!("{key} has no member `{member}`")),
        }
    }
}
