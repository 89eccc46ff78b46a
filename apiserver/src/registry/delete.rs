//! Delete: at once for what nothing depends on, otherwise when its controllers are done with it.

use steady_core::v1::task_definition_state::Value as State;
use steady_core::v1::{Object, ObjectRef, object, service_state};
use steady_core::{DEFAULT_CLUSTER, Key, Kind, KindExt, Revision, task};

use super::writes::Writes;
use super::{Registry, RegistryError, capacity, network, scaling, traffic};

impl Registry {
    /// Deletes an object. Returns it as it is now: `None` when it is gone.
    pub async fn delete(&self, reference: &ObjectRef) -> Result<(Option<Object>, Revision), RegistryError> {
        let key = Key::of_ref(reference);
        self.write(|writes| {
            let Some(object) = writes.get(&key).cloned() else { return Err(RegistryError::NotFound(key.clone())) };
            if !reference.uid.is_empty() && reference.uid != object.meta().uid {
                return Err(RegistryError::NotFound(key.clone()));
            }
            delete(writes, &key, object)
        })
        .await
    }
}

fn delete(writes: &mut Writes, key: &Key, mut object: Object) -> Result<Option<Object>, RegistryError> {
    match key.kind {
        Kind::Cluster => cluster(writes, key)?,
        Kind::Service => {
            if object.is_deleting() {
                return Ok(Some(object));
            }
            object.meta_mut().deleting = Some(writes.now().into());
            if let Some(object::Kind::Service(service)) = &mut object.kind {
                service.status.get_or_insert_default().set_status(service_state::Value::Draining);
            }
            writes.put(object.clone());
            return Ok(Some(object));
        }
        Kind::Task if task::of(&object).is_some_and(|t| t.is_live()) => {
            return Err(RegistryError::Refused(format!("{key} is not STOPPED; run `steady stop {key}` first")));
        }
        Kind::TaskDefinition if writes.view().uses_definition(&key.name) => {
            if object.is_deleting() {
                return Ok(Some(object));
            }
            let now = writes.now();
            object.meta_mut().deleting = Some(now.into());
            if let Some(object::Kind::TaskDefinition(definition)) = &mut object.kind {
                let status = definition.status.get_or_insert_default();
                status.set_status(State::DeleteInProgress);
                status.deregistered_at = Some(now.into());
            }
            writes.put(object.clone());
            return Ok(Some(object));
        }
        Kind::ContainerInstance => instance(writes, key)?,
        Kind::TaskSet => task_set(writes, &object)?,
        Kind::Deployment | Kind::Reservation | Kind::Lease | Kind::Sequencer | Kind::Unspecified => {
            let kind = key.kind.name();
            return Err(RegistryError::Refused(format!(
                "{kind} objects are Steady's own and go with what they belong to"
            )));
        }
        Kind::SecurityGroup => {
            if let Some(users) = network::in_use(writes, key) {
                let message = format!("{key} is in use by {users} (DependencyViolation); take it from them first");
                return Err(RegistryError::Refused(message));
            }
        }
        Kind::TargetGroup => {
            if let Some(users) = traffic::in_use(writes, key) {
                let message = format!("{key} is in use by {users} (ResourceInUse); take it from them first");
                return Err(RegistryError::Refused(message));
            }
        }
        Kind::CapacityProvider => {
            if let Some(users) = capacity::in_use(writes, key) {
                let message = format!("{key} is in use by {users} (ResourceInUse); take it from them first");
                return Err(RegistryError::Refused(message));
            }
            if let Some(left) = capacity::deleting(writes, object) {
                return Ok(Some(left));
            }
        }
        Kind::ScalableTarget => scaling::delete_target(writes, key),
        Kind::ScalingPolicy => scaling::delete_policy(writes, key),
        Kind::Task
        | Kind::TaskDefinition
        | Kind::Event
        | Kind::Alarm
        | Kind::Secret
        | Kind::Listener
        | Kind::MetricData => {}
    }
    writes.remove(key);
    Ok(None)
}

fn cluster(writes: &Writes, key: &Key) -> Result<(), RegistryError> {
    let view = writes.view();
    if key.name == DEFAULT_CLUSTER {
        return Err(RegistryError::Refused("the cluster `default` stays; delete what is in it".into()));
    }
    let of = |kind| view.in_cluster(kind, &key.name).next().is_some();
    let what = if of(Kind::ContainerInstance) {
        "Container Instances are active or draining"
    } else if of(Kind::Service) {
        "Services are active"
    } else if view.in_cluster(Kind::Task, &key.name).any(|t| task::of(t).is_some_and(|t| t.is_live())) {
        "Tasks are active"
    } else if of(Kind::Secret) {
        // Whoever makes a cluster of that name later must not have them.
        "it has Secrets (steady get secrets)"
    } else if of(Kind::SecurityGroup) {
        "it has SecurityGroups (steady get securitygroups)"
    } else if of(Kind::Listener) || of(Kind::TargetGroup) {
        "it has Listeners or TargetGroups (steady get listeners, steady get targetgroups)"
    } else if of(Kind::CapacityProvider) {
        "it has CapacityProviders (steady get capacityproviders)"
    } else if of(Kind::ScalableTarget) || of(Kind::Alarm) {
        "it has ScalableTargets or Alarms (steady get scalabletargets, steady get alarms)"
    } else {
        return Ok(());
    };
    Err(RegistryError::Refused(format!("The Cluster cannot be deleted while {what}.")))
}

/// A PRIMARY set with tasks is not deleted by mistake (ECS: scale 0, or force). Its service looks anew.
fn task_set(writes: &mut Writes, object: &Object) -> Result<(), RegistryError> {
    let spec = object.as_task_set().and_then(|set| set.spec.clone()).unwrap_or_default();
    let of = Key::new(Kind::Service, object.cluster(), &spec.service);
    let Some(mut service) = writes.get(&of).cloned().filter(|service| !service.is_deleting()) else { return Ok(()) };
    let primary = service.as_service().and_then(|s| s.spec.as_ref()).map_or("", |s| &s.primary_task_set);
    if primary == object.name() && spec.scale.is_some_and(|scale| scale.value > 0.0) {
        return Err(RegistryError::Refused(format!(
            "{} is PRIMARY; scale it to 0, or make another one the service's primaryTaskSet, first",
            Key::of(object)
        )));
    }
    service.meta_mut().generation += 1;
    writes.put(service);
    Ok(())
}

fn instance(writes: &Writes, key: &Key) -> Result<(), RegistryError> {
    let view = writes.view();
    if view.on_instance(&key.cluster, &key.name).next().is_some() {
        return Err(RegistryError::Refused(format!("Found running tasks on the instance. Stop them first: {key}")));
    }
    let lease = Key::new(Kind::Lease, "", &steady_core::instance_lease(&key.cluster, &key.name));
    if view.get(&lease).is_some() {
        return Err(RegistryError::Refused(format!("the agent of {key} is connected; end it first")));
    }
    Ok(())
}
