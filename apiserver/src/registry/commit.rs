//! Commit: an atomic list of changes, each with what it expects.

use std::collections::BTreeSet;

use prost::Message;
use steady_core::guard::{self, Guard};
use steady_core::v1::change::Change as Wire;
use steady_core::v1::task_last_status::Value as Status;
use steady_core::v1::{CommitRequest, CommitResponse, Expect, Object, ObjectRef, PutSpec, PutStatus, object};
use steady_core::validate::{self, MAX_OBJECT_BYTES};
use steady_core::{Key, Kind, KindExt, Revision, bind_size, task, v1};
use steady_proto::fields;

use super::writes::Writes;
use super::{ATTEMPTS, Registry, RegistryError, bind, cluster, fault};

/// Most changes of one commit: with fence, sequencer and comparisons they fit one etcd transaction. (Each service that
/// loses a healthy task by them costs one more; the runner leaves room for it.)
pub(super) const MAX_CHANGES: usize = 100;

impl Registry {
    /// Does all of the request's changes, or none.
    /// What changes nothing is not written, and then the sequencer stays as it is too.
    pub async fn commit(&self, request: CommitRequest) -> Result<CommitResponse, RegistryError> {
        let count: usize = request.changes.iter().map(size).sum();
        if count > MAX_CHANGES {
            return Err(RegistryError::Refused(format!("{count} changes in one commit; at most {MAX_CHANGES}")));
        }
        let newest = newest_expected(&request);
        if newest > self.cache().revision() {
            self.see(newest).await?;
        }
        let named = named(&request);
        for _ in 0..ATTEMPTS {
            let mut writes = self.writes();
            for (index, change) in request.changes.iter().cloned().enumerate() {
                let change = change.change.ok_or_else(|| invalid(index, "changes", "the change is empty"))?;
                one(&mut writes, index, change, request.fence.is_some())?;
            }
            if !writes.changes_something() {
                let sequencer_revision = request.sequencer.as_ref().map_or(0, |s| s.revision);
                return Ok(CommitResponse { revision: writes.view().revision().0, sequencer_revision });
            }
            if let Some(sequencer) = &request.sequencer {
                let seen = Revision(sequencer.revision);
                let known = writes.view().revision_of(&Key::new(Kind::Sequencer, "", &sequencer.name));
                writes.bump(&sequencer.name, if guard::stands(Guard::Sequencer) { seen } else { known });
            }
            if let Some(fence) = request.fence.as_ref().filter(|_| guard::stands(Guard::Fence)) {
                writes.fence(Key::new(Kind::Lease, "", &fence.lease), Revision(fence.epoch));
            }
            match self.execute(writes).await? {
                Ok(revision) => return Ok(CommitResponse { revision: revision.0, sequencer_revision: revision.0 }),
                // What the caller asked for «whatever revision it has» was newer than this server knew.
                Err((revision, failed)) if failed.iter().all(|path| !named.contains(path)) => {
                    self.see(revision).await?;
                }
                Err((_, failed)) => return Err(stale(request.fence.as_ref(), &failed)),
            }
        }
        Err(RegistryError::Stale("the objects are being written all the time; try again".into()))
    }
}

/// Store keys that the request itself says something about: when one of these does not hold, the caller must look again.
fn named(request: &CommitRequest) -> BTreeSet<String> {
    let of = |reference: Option<&ObjectRef>, expect: Option<Expect>| {
        Some((reference?, expect?)).map(|(r, _)| Key::of_ref(r))
    };
    let mut keys: BTreeSet<String> = request
        .changes
        .iter()
        .filter_map(|change| match change.change.as_ref()? {
            Wire::Create(object) => Some(Key::of(object)),
            Wire::PutSpec(put) => of(put.object.as_ref().map(Object::reference).as_ref(), put.expect),
            Wire::PutStatus(put) => of(put.object.as_ref().map(Object::reference).as_ref(), put.expect),
            Wire::Remove(remove) => of(remove.r#ref.as_ref(), remove.expect),
            Wire::Check(check) => check.r#ref.as_ref().map(Key::of_ref),
            Wire::Bind(_) => None,
        })
        .map(|key| key.to_path())
        .collect();
    let binds = request.changes.iter().filter_map(|change| match change.change.as_ref()? {
        Wire::Bind(bind) => Some(bind),
        _ => None,
    });
    for bind in binds {
        let of = |kind, name: &str| Key::new(kind, cluster(&bind.cluster), name).to_path();
        keys.extend(bind.reservation.map(|_| of(Kind::Reservation, &bind.container_instance)));
        keys.extend(bind.tasks.iter().map(|task| of(Kind::Task, &task.name)));
    }
    keys.extend(request.sequencer.iter().map(|s| Key::new(Kind::Sequencer, "", &s.name).to_path()));
    keys.extend(request.fence.iter().map(|f| Key::new(Kind::Lease, "", &f.lease).to_path()));
    keys
}

fn stale(fence: Option<&v1::Fence>, failed: &[String]) -> RegistryError {
    let names: Vec<String> =
        failed.iter().map(|path| Key::parse_path(path).map_or_else(|_| path.clone(), |key| key.to_string())).collect();
    if let Some(fence) = fence
        && failed.iter().any(|path| *path == Key::new(Kind::Lease, "", &fence.lease).to_path())
    {
        return RegistryError::Fenced(fence.lease.clone(), fence.epoch);
    }
    RegistryError::Stale(format!("changed since it was looked at: {}", names.join(", ")))
}

fn newest_expected(request: &CommitRequest) -> Revision {
    let of = |expect: &Option<Expect>| expect.map_or(0, |e| e.revision);
    let changes = request.changes.iter().map(|change| match &change.change {
        Some(Wire::PutSpec(put)) => of(&put.expect),
        Some(Wire::PutStatus(put)) => of(&put.expect),
        Some(Wire::Remove(remove)) => of(&remove.expect),
        Some(Wire::Bind(bind)) => {
            bind.tasks.iter().map(|task| of(&task.expect)).chain([of(&bind.reservation)]).max().unwrap_or(0)
        }
        Some(Wire::Check(check)) => of(&check.expect),
        Some(Wire::Create(_)) | None => 0,
    });
    Revision(changes.chain(request.sequencer.iter().map(|s| s.revision)).max().unwrap_or(0))
}

/// How many changes a change counts as.
fn size(change: &v1::Change) -> usize {
    match &change.change {
        Some(Wire::Bind(bind)) => bind_size(bind.tasks.len()),
        _ => 1,
    }
}

pub(super) fn invalid(index: usize, path: &str, message: &str) -> RegistryError {
    RegistryError::Invalid(vec![(index, fault(path, message))])
}

fn one(writes: &mut Writes, index: usize, change: Wire, led: bool) -> Result<(), RegistryError> {
    match change {
        Wire::Create(object) => create(writes, index, object),
        Wire::PutSpec(put) => put_spec(writes, index, put, led),
        Wire::PutStatus(put) => put_status(writes, index, put),
        Wire::Remove(remove) => {
            let key = expected(writes, index, remove.r#ref.as_ref(), remove.expect)?;
            writes.remove(&key);
            Ok(())
        }
        Wire::Bind(asked) => bind::bind(writes, index, &asked),
        Wire::Check(check) => {
            let reference = check.r#ref.as_ref().ok_or_else(|| invalid(index, "check.ref", "is missing"))?;
            let key = Key::of_ref(reference);
            let revision = Revision(check.expect.map_or(0, |e| e.revision));
            if guard::stands(Guard::Check) && writes.view().revision_of(&key) != revision {
                return Err(RegistryError::Stale(format!("changed since it was looked at: {key}")));
            }
            if guard::stands(Guard::Check) {
                writes.expect(&key, revision);
            }
            Ok(())
        }
    }
}

fn create(writes: &mut Writes, index: usize, object: Object) -> Result<(), RegistryError> {
    let key = Key::of(&object);
    if matches!(key.kind, Kind::Unspecified | Kind::Lease | Kind::Sequencer | Kind::Secret) || key.name.is_empty() {
        return Err(invalid(index, "create", "cannot be created by a commit; use the call that is made for it"));
    }
    if writes.get(&key).is_some() && guard::stands(Guard::Absence) {
        return Err(RegistryError::Stale(format!("{key} is there already")));
    }
    if task::of(&object).is_some_and(|task| !task.spec.container_instance.is_empty()) {
        return Err(invalid(index, "create.task.spec.containerInstance", "is set; bind the task to place it"));
    }
    let faults = validate::object(&object);
    if !faults.is_empty() {
        return Err(RegistryError::Invalid(faults.into_iter().map(|f| (index, f)).collect()));
    }
    writes.create(object);
    Ok(())
}

/// Checks that an object is there, is the one that is meant, and has the revision that is expected.
pub(super) fn expected(
    writes: &mut Writes,
    index: usize,
    reference: Option<&ObjectRef>,
    expect: Option<Expect>,
) -> Result<Key, RegistryError> {
    let reference = reference.ok_or_else(|| invalid(index, "ref", "is missing"))?;
    let key = Key::of_ref(reference);
    let Some(current) = writes.view().get(&key) else {
        return Err(match expect {
            Some(_) => RegistryError::Stale(format!("{key} is gone")),
            None => RegistryError::NotFound(key),
        });
    };
    let meta = current.meta();
    let other = !reference.uid.is_empty() && reference.uid != meta.uid;
    let changed = expect.is_some_and(|e| e.revision != meta.revision) && guard::stands(Guard::Expectation);
    if other || changed {
        return Err(RegistryError::Stale(format!("changed since it was looked at: {key}")));
    }
    writes.compare(&key);
    Ok(key)
}

/// `led`: a controller writes it.
fn put_spec(writes: &mut Writes, index: usize, put: PutSpec, led: bool) -> Result<(), RegistryError> {
    let new = put.object.ok_or_else(|| invalid(index, "putSpec.object", "is missing"))?;
    let key = expected(writes, index, Some(&new.reference()), put.expect)?;
    let Some(mut object) = writes.get(&key).cloned() else { return Err(RegistryError::NotFound(key)) };
    let before = object.clone();
    set_spec(&mut object, &new, &put.fields).map_err(|message| invalid(index, "putSpec.fields", &message))?;
    if object == before {
        return Ok(());
    }
    object.meta_mut().generation += 1;
    let mut faults = validate::object(&object);
    if led && put.fields == ["desiredCount"] {
        // A service scales through counts that leave its percentages no room; no deployment progresses while it has one of them.
        faults.retain(|fault| fault.path.starts_with("spec.desiredCount"));
    }
    if !faults.is_empty() {
        return Err(RegistryError::Invalid(faults.into_iter().map(|f| (index, f)).collect()));
    }
    writes.put(object);
    Ok(())
}

/// Writes the spec's named fields, or all of it, of one object into another of its kind.
fn set_spec(object: &mut Object, new: &Object, names: &[String]) -> Result<(), String> {
    let kind = object.kind();
    let numbers: Vec<u32> = names
        .iter()
        .map(|name| {
            let known = fields::spec_fields(kind).join(", ");
            fields::spec_field(kind, name)
                .ok_or_else(|| format!("{} has no spec field `{name}`; fields: {known}", kind.name()))
        })
        .collect::<Result<_, _>>()?;
    macro_rules! set {
        ($old:expr, $new:expr) => {{
            let given = $new.spec.clone().unwrap_or_default();
            let spec = $old.spec.get_or_insert_default();
            if numbers.is_empty() {
                *spec = given;
            } else {
                let spliced = fields::splice(&spec.encode_to_vec(), &given.encode_to_vec(), &numbers);
                *spec = spliced
                    .and_then(|bytes| Message::decode(bytes.as_slice()).ok())
                    .ok_or("the spec does not decode")?;
            }
            Ok(())
        }};
    }
    match (&mut object.kind, &new.kind) {
        (Some(object::Kind::Service(old)), Some(object::Kind::Service(new))) => set!(old, new),
        (Some(object::Kind::Deployment(old)), Some(object::Kind::Deployment(new))) => set!(old, new),
        (Some(object::Kind::ContainerInstance(old)), Some(object::Kind::ContainerInstance(new))) => set!(old, new),
        (Some(object::Kind::Alarm(old)), Some(object::Kind::Alarm(new))) => set!(old, new),
        (Some(object::Kind::Task(_)), _) => Err("a task's spec is written once; bind it to place it".into()),
        _ => Err(format!("the spec of {} is not written by commits", kind.name())),
    }
}

fn put_status(writes: &mut Writes, index: usize, put: PutStatus) -> Result<(), RegistryError> {
    let new = put.object.ok_or_else(|| invalid(index, "putStatus.object", "is missing"))?;
    let key = expected(writes, index, Some(&new.reference()), put.expect)?;
    let Some(mut object) = writes.get(&key).cloned() else { return Err(RegistryError::NotFound(key)) };
    match (&mut object.kind, new.kind) {
        (Some(object::Kind::Service(old)), Some(object::Kind::Service(new))) => old.status = new.status,
        (Some(object::Kind::Deployment(old)), Some(object::Kind::Deployment(new))) => old.status = new.status,
        (Some(object::Kind::TaskSet(old)), Some(object::Kind::TaskSet(new))) => old.status = new.status,
        (Some(object::Kind::ContainerInstance(old)), Some(object::Kind::ContainerInstance(new))) => {
            old.status = new.status;
        }
        (Some(object::Kind::Alarm(old)), Some(object::Kind::Alarm(new))) => old.status = new.status,
        (Some(object::Kind::CapacityProvider(old)), Some(object::Kind::CapacityProvider(new))) => {
            old.status = new.status;
        }
        (Some(object::Kind::ScalableTarget(old)), Some(object::Kind::ScalableTarget(new))) => old.status = new.status,
        (Some(object::Kind::ScalingPolicy(old)), Some(object::Kind::ScalingPolicy(new))) => old.status = new.status,
        (Some(object::Kind::Task(old)), Some(object::Kind::Task(new))) => {
            only_up(&key, old.status.as_ref(), new.status.as_ref())?;
            old.status = new.status;
        }
        _ => {
            let message = format!("the status of {} is not written by commits", key.kind.name());
            return Err(invalid(index, "putStatus.object", &message));
        }
    }
    if object.encoded_len() > MAX_OBJECT_BYTES {
        return Err(invalid(index, "status", "the object is larger than what is stored"));
    }
    writes.put(object);
    Ok(())
}

/// A task's status only moves up, and a stop is never taken back.
pub(super) fn only_up(
    key: &Key,
    old: Option<&v1::TaskStatus>,
    new: Option<&v1::TaskStatus>,
) -> Result<(), RegistryError> {
    let of = |status: Option<&v1::TaskStatus>| {
        status.map_or((Status::Unspecified, 0), |s| (s.last_status(), s.desired_status))
    };
    let ((was, wanted), (is, wants)) = (of(old), of(new));
    if is < was || wants < wanted {
        let (is, was) = (is.as_str_name(), was.as_str_name());
        return Err(RegistryError::Refused(format!("{key}: a task never goes back from {was} to {is}")));
    }
    Ok(())
}
