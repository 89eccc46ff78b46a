//! Bind: tasks get their place on an instance, if it has room for them.
//!
//! The instance's Reservation is compared and written, so that what is decided here on the tasks that are bound to the
//! instance is still so when it is committed: whoever places, our scheduler or anybody's, no instance gets too much.

use steady_core::guard::{self, Guard};
use steady_core::resources::{Free, has_attribute};
use steady_core::v1::instance_state::Value as State;
use steady_core::v1::task_last_status::Value as Status;
use steady_core::v1::{
    Bind, BoundTask, ContainerInstance, ContainerInstanceSpec, Object, Reservation, ReservationSpec, Task, object,
};
use steady_core::{Key, Kind, Revision, task};

use super::commit::{expected, invalid};
use super::writes::Writes;
use super::{RegistryError, cluster};

pub(super) fn bind(writes: &mut Writes, index: usize, bind: &Bind) -> Result<(), RegistryError> {
    let cluster = cluster(&bind.cluster);
    let key = Key::new(Kind::ContainerInstance, cluster, &bind.container_instance);
    if bind.tasks.is_empty() {
        return Err(invalid(index, "bind.tasks", "is empty; expected the tasks to place"));
    }
    reserve(writes, index, bind, &Key::new(Kind::Reservation, cluster, &key.name))?;
    let Some(found) = writes.get(&key).cloned() else { return Err(RegistryError::Stale(format!("{key} is gone"))) };
    let instance = found.as_container_instance().cloned().unwrap_or_default();
    writes.compare(&key);
    open(&key, &found, &instance)?;
    let spec = instance.spec.unwrap_or_default();
    let mut free = Free::of(&spec.registered_resources.unwrap_or_default());
    for on in writes.view().on_instance(cluster, &key.name).filter_map(|object| task::of(object)) {
        free.take(&on.spec.demand.clone().unwrap_or_default());
    }
    let attributes: Vec<(String, String)> = spec.attributes.into_iter().map(|a| (a.name, a.value)).collect();
    for bound in &bind.tasks {
        let (object, task) = waiting(writes, index, cluster, &key.name, bound)?;
        let spec = task.spec.clone().unwrap_or_default();
        let demand = spec.demand.clone().unwrap_or_default();
        if let Some(short) = free.short_of(&demand, (0, 0)) {
            let message = format!("{key} has no room for task {}: {short}", bound.name);
            return Err(RegistryError::NoRoom(short.reason(), message));
        }
        let own = || attributes.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        if let Some(lacking) = spec.requires_attributes.iter().find(|required| !has_attribute(required, own())) {
            let message = format!("{key} lacks the attribute {} that task {} requires", lacking.name, bound.name);
            return Err(RegistryError::NoRoom("ATTRIBUTE", message));
        }
        free.take(&demand);
        place(writes, object, task, &key.name);
    }
    Ok(())
}

/// Compares and writes the instance's reservation.
fn reserve(writes: &mut Writes, index: usize, bind: &Bind, key: &Key) -> Result<(), RegistryError> {
    let seen = bind.reservation.map(|expect| Revision(expect.revision));
    if writes.written().any(|written| written == key) {
        return Err(invalid(
            index,
            "bind.containerInstance",
            "is bound to twice in one commit; bind all tasks at once",
        ));
    }
    if guard::stands(Guard::Reservation) && seen.is_some_and(|seen| writes.view().revision_of(key) != seen) {
        return Err(RegistryError::Stale(format!("something else was placed on {} meanwhile", key.name)));
    }
    let known = writes.get(key).cloned();
    let so_far = known.as_ref().and_then(|o| o.as_reservation()?.spec.as_ref()).map_or(0, |spec| spec.bound);
    let spec = ReservationSpec { scheduler: bind.scheduler.clone(), bound: so_far + bind.tasks.len() as i64 };
    let reservation = Reservation { spec: Some(spec) };
    match known {
        Some(mut object) => {
            object.kind = Some(object::Kind::Reservation(reservation));
            writes.put(object);
        }
        None => drop(writes.create(Object::new(&key.cluster, &key.name, reservation))),
    }
    if !guard::stands(Guard::Reservation) {
        writes.forget(key);
    }
    Ok(())
}

/// Whether an instance takes tasks at all. What it says of itself changes by itself: whoever decided otherwise looks again.
fn open(key: &Key, object: &Object, instance: &ContainerInstance) -> Result<(), RegistryError> {
    let state = instance.spec.as_ref().map_or(State::Unspecified, ContainerInstanceSpec::status);
    if object.is_deleting() || matches!(state, State::Draining | State::Inactive) {
        return Err(RegistryError::Stale(format!("{key} is draining: nothing is placed on it (INACTIVE)")));
    }
    if !instance.status.as_ref().is_some_and(|status| status.agent_connected) {
        return Err(RegistryError::Stale(format!("the agent of {key} is not connected (AGENT)")));
    }
    Ok(())
}

/// A task that waits for a place, as the caller knows it.
fn waiting(
    writes: &mut Writes,
    index: usize,
    cluster: &str,
    instance: &str,
    bound: &BoundTask,
) -> Result<(Object, Task), RegistryError> {
    let key = Key::new(Kind::Task, cluster, &bound.name);
    expected(writes, index, Some(&key.reference()), bound.expect)?;
    let Some(object) = writes.get(&key).cloned() else { return Err(RegistryError::NotFound(key)) };
    let Some(found) = task::of(&object).filter(task::View::wants_place) else {
        return Err(RegistryError::Refused(format!("{key} waits for no place: it has one, or is to stop")));
    };
    let target = &found.spec.target_instance;
    if !target.is_empty() && target != instance {
        return Err(RegistryError::Refused(format!("{key} can be on {target} only, not on {instance}")));
    }
    let task = object.as_task().cloned().unwrap_or_default();
    Ok((object, task))
}

fn place(writes: &mut Writes, mut object: Object, task: Task, instance: &str) {
    let (mut spec, mut status) = (task.spec.unwrap_or_default(), task.status.unwrap_or_default());
    instance.clone_into(&mut spec.container_instance);
    status.set_last_status(Status::Pending);
    status.conditions.clear();
    object.kind = Some(object::Kind::Task(Task { spec: Some(spec), status: Some(status) }));
    object.meta_mut().generation += 1;
    writes.put(object);
}
