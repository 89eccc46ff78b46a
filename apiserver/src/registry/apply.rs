//! Apply: what people declare becomes objects, all of a request or none of it.

use steady_core::validate::{self, Fault};
use steady_core::{DEFAULT_CLUSTER, Key, Kind, KindExt, defaults, service, v1};
use v1::apply_result::Outcome;
use v1::{ApplyResult, Object, object, service_state};

use super::upsert::{result, unknown, upsert};
use super::writes::Writes;
use super::{
    MAX_SERVICES, Registry, RegistryError, capacity, definitions, fault, network, run, scaling, secrets, traffic,
};
use crate::seal::Keys;
use steady_core::Revision;
use steady_core::service::settings;

/// Keeps a service until its tasks are gone.
pub(super) const TASKS_FINALIZER: &str = "steady/tasks";
/// Task sets of a service.
const MAX_TASK_SETS: usize = 20;
/// Where specs say which network tasks have.
const NETWORK: &str = "spec.networkConfiguration";
/// Most objects of one request: they are one transaction.
const MAX_OBJECTS: usize = 50;

/// Kinds that people declare, in the order in which others refer to them.
const APPLIED: [Kind; 13] = [
    Kind::Cluster,
    Kind::CapacityProvider,
    Kind::Alarm,
    Kind::Secret,
    Kind::SecurityGroup,
    Kind::TargetGroup,
    Kind::Listener,
    Kind::TaskDefinition,
    Kind::Service,
    Kind::TaskSet,
    Kind::ScalableTarget,
    Kind::ScalingPolicy,
    Kind::Task,
];

type Faults = Vec<(usize, Fault)>;

impl Registry {
    /// Creates and changes objects as declared. A dry run says what would happen.
    pub async fn apply(
        &self,
        objects: Vec<Object>,
        dry_run: bool,
    ) -> Result<(Vec<ApplyResult>, Revision), RegistryError> {
        if objects.is_empty() || objects.len() > MAX_OBJECTS {
            let count = objects.len();
            return Err(RegistryError::Refused(format!(
                "{count} objects in one request; expected 1 to {MAX_OBJECTS}: apply the files one after the other"
            )));
        }
        let mut objects = objects;
        objects.iter_mut().for_each(defaults::fill);
        check(&objects)?;
        let keys = self.keys.as_deref();
        if dry_run {
            let mut writes = self.writes();
            let revision = writes.view().revision();
            return Ok((decide(&mut writes, keys, &objects)?, revision));
        }
        let (mut results, revision) = self.write(|writes| decide(writes, keys, &objects)).await?;
        for result in &mut results {
            if result.outcome() != Outcome::Unchanged
                && let Some(object) = &mut result.object
            {
                object.meta_mut().revision = revision.0;
            }
        }
        Ok((results, revision))
    }
}

/// What is wrong with the objects by themselves.
fn check(objects: &[Object]) -> Result<(), RegistryError> {
    let mut faults: Faults = validate::duplicates(objects);
    for (index, object) in objects.iter().enumerate() {
        if !APPLIED.contains(&object.kind()) {
            let known: Vec<&str> = APPLIED.iter().map(|kind| kind.name()).collect();
            let message = format!("{} is not applied; expected one of {}", object.kind().name(), known.join(", "));
            faults.push((index, fault("kind", message)));
            continue;
        }
        faults.extend(validate::object(object).into_iter().map(|f| (index, f)));
    }
    faults.sort_by_key(|(index, _)| *index);
    if faults.is_empty() { Ok(()) } else { Err(RegistryError::Invalid(faults)) }
}

/// Decides on every object, those that others refer to first.
fn decide(writes: &mut Writes, keys: Option<&Keys>, objects: &[Object]) -> Result<Vec<ApplyResult>, RegistryError> {
    let mut faults = Faults::new();
    let mut results: Vec<Option<ApplyResult>> = vec![None; objects.len()];
    for kind in APPLIED {
        for (index, object) in objects.iter().enumerate().filter(|(_, o)| o.kind() == kind) {
            let decided = match kind {
                Kind::Cluster => Ok(upsert(writes, object.clone())),
                Kind::CapacityProvider
                | Kind::Alarm
                | Kind::Secret
                | Kind::SecurityGroup
                | Kind::TargetGroup
                | Kind::Listener => {
                    let faults = match (cluster_fault(writes, object.cluster()), kind) {
                        (Some(fault), _) => vec![fault],
                        (None, Kind::SecurityGroup) => network::referenced(writes, object, objects),
                        (None, Kind::Listener) => traffic::listener_faults(writes, object),
                        (None, Kind::CapacityProvider) => capacity::faults(writes, object),
                        _ => Vec::new(),
                    };
                    match kind {
                        _ if !faults.is_empty() => Err(faults),
                        Kind::Secret => secrets::declared(writes, keys, object),
                        Kind::Alarm => {
                            let result = upsert(writes, object.clone());
                            scaling::respecified(writes, object);
                            Ok(result)
                        }
                        _ => Ok(upsert(writes, object.clone())),
                    }
                }
                Kind::TaskDefinition => definitions::register(writes, object),
                Kind::Service => declared(writes, object, objects),
                Kind::TaskSet => task_set(writes, object, objects),
                Kind::ScalableTarget => match scaling::target_faults(writes, object, objects) {
                    faults if faults.is_empty() => Ok(upsert(writes, object.clone())),
                    faults => Err(faults),
                },
                Kind::ScalingPolicy => match scaling::policy_faults(writes, object) {
                    faults if faults.is_empty() => {
                        let result = upsert(writes, object.clone());
                        scaling::respecified(writes, object);
                        Ok(result)
                    }
                    faults => Err(faults),
                },
                _ => task(writes, object),
            };
            match decided {
                Ok(result) => results[index] = Some(result),
                Err(found) => faults.extend(found.into_iter().map(|f| (index, f))),
            }
        }
    }
    if !faults.is_empty() {
        faults.sort_by_key(|(index, _)| *index);
        return Err(RegistryError::Invalid(faults));
    }
    Ok(results.into_iter().flatten().collect())
}

/// The cluster has to be there.
fn cluster_fault(writes: &mut Writes, cluster: &str) -> Option<Fault> {
    let key = Key::new(Kind::Cluster, "", cluster);
    if cluster != DEFAULT_CLUSTER {
        writes.compare(&key);
    }
    if cluster == DEFAULT_CLUSTER || writes.get(&key).is_some_and(|c| !c.is_deleting()) {
        return None;
    }
    let message = format!("there is no cluster `{cluster}`; apply `kind: Cluster` with `name: {cluster}` first");
    Some(fault("metadata.cluster", message))
}

fn declared(writes: &mut Writes, wanted: &Object, beside: &[Object]) -> Result<ApplyResult, Vec<Fault>> {
    let mut faults: Vec<Fault> = cluster_fault(writes, wanted.cluster()).into_iter().collect();
    let mut wanted = wanted.clone();
    let current = writes.get(&Key::of(&wanted)).cloned();
    let running = current.as_ref().and_then(|c| c.as_service()?.spec.clone()).unwrap_or_default();
    if current.as_ref().is_some_and(Object::is_deleting) {
        let message = format!("service `{}` is being deleted; apply it again once it is gone", wanted.name());
        return Err(vec![fault("metadata.name", message)]);
    }
    if current.is_none() && writes.view().in_cluster(Kind::Service, wanted.cluster()).count() >= MAX_SERVICES {
        let message = format!("cluster `{}` has {MAX_SERVICES} services, and takes no more", wanted.cluster());
        return Err(vec![fault("metadata.cluster", message)]);
    }
    if let Some(object::Kind::Service(found)) = &mut wanted.kind {
        let spec = found.spec.get_or_insert_default();
        // Absent means «as it is»: an autoscaler or `steady scale` may have set it.
        if current.is_some() && service::is_daemon(spec) != service::is_daemon(&running) {
            let message = format!(
                "cannot become {} while the service is there; delete it first, or give it another name",
                spec.scheduling_strategy().as_str_name()
            );
            faults.push(fault("spec.schedulingStrategy", message));
        }
        if !service::is_daemon(spec) {
            spec.desired_count = spec.desired_count.or(running.desired_count).or(Some(1));
        }
        if spec.force_new_deployment == 0 {
            spec.force_new_deployment = running.force_new_deployment;
        }
        let alarms = settings(spec).alarms.as_ref().filter(|alarms| alarms.enable);
        for name in alarms.iter().flat_map(|alarms| &alarms.alarm_names) {
            let key = Key::new(Kind::Alarm, wanted.meta.as_ref().map_or("", |meta| &meta.cluster), name);
            if writes.get(&key).is_none() {
                let known: Vec<&str> = writes.view().in_cluster(Kind::Alarm, &key.cluster).map(|a| a.name()).collect();
                let message = unknown("alarm", name, &known);
                faults.push(fault("spec.deploymentConfiguration.alarms.alarmNames", message));
            }
        }
        if current.is_some() && service::is_external(spec) != service::is_external(&running) {
            let message = "cannot change while the service is there; delete it first, or give it another name";
            faults.push(fault("spec.deploymentController.type", message));
        }
        match definitions::resolve(writes, &spec.task_definition, &running.task_definition) {
            _ if service::is_external(spec) => {}
            Ok(name) => spec.task_definition = name,
            Err(message) => faults.push(fault("spec.taskDefinition", message)),
        }
        let cluster = wanted.meta.as_ref().map_or("", |meta| &meta.cluster);
        let definition = (!service::is_external(spec)).then_some(spec.task_definition.as_str());
        let configuration = spec.network_configuration.as_ref();
        faults.extend(network::faults(writes, cluster, configuration, definition, NETWORK));
        faults.extend(traffic::faults(writes, cluster, &spec.load_balancers, definition, beside));
        faults.extend(traffic::registry_faults(writes, &spec.service_registries, definition));
        if current.is_none() {
            let active = service_state::Value::Active.into();
            found.status = Some(v1::ServiceStatus { status: active, ..Default::default() });
        }
    }
    // The count that was filled in can make the percentages wrong.
    faults.extend(validate::object(&wanted));
    if !faults.is_empty() {
        return Err(faults);
    }
    if current.is_none() {
        wanted.meta_mut().finalizers = vec![TASKS_FINALIZER.to_owned()];
    }
    Ok(upsert(writes, wanted))
}

fn task_set(writes: &mut Writes, wanted: &Object, beside: &[Object]) -> Result<ApplyResult, Vec<Fault>> {
    let mut wanted = wanted.clone();
    let key = Key::of(&wanted);
    let spec = wanted.as_task_set().and_then(|set| set.spec.clone()).unwrap_or_default();
    let of = Key::new(Kind::Service, &key.cluster, &spec.service);
    let Some(mut found) = writes.get(&of).cloned() else {
        let known: Vec<&str> = writes.view().in_cluster(Kind::Service, &key.cluster).map(|s| s.name()).collect();
        return Err(vec![fault("spec.service", unknown("service", &spec.service, &known))]);
    };
    if found.is_deleting() {
        let message = format!("service `{}` is being deleted; apply it again once it is gone", spec.service);
        return Err(vec![fault("spec.service", message)]);
    }
    if !found.as_service().and_then(|s| s.spec.as_ref()).is_some_and(service::is_external) {
        let message = format!("service `{}` does not have deploymentController EXTERNAL", spec.service);
        return Err(vec![fault("spec.service", message)]);
    }
    let current = writes.get(&key).cloned();
    let owner = current.as_ref().and_then(|set| set.meta().owner.as_ref());
    if owner.is_some_and(|owner| owner.uid != found.meta().uid) {
        let message = format!("task set `{}` is of a service that is gone; apply it again in a few seconds", key.name);
        return Err(vec![fault("metadata.name", message)]);
    }
    if current.is_none() && service::task_sets(writes.view(), &found).count() >= MAX_TASK_SETS {
        let message = format!("service `{}` has {MAX_TASK_SETS} task sets, and takes no more", spec.service);
        return Err(vec![fault("spec.service", message)]);
    }
    let old = current.as_ref().and_then(|c| c.as_task_set()?.spec.clone()).unwrap_or_default();
    // Its definition is what the family was when it was made.
    let same = current.is_some() && old.task_definition.split(':').next() == Some(&spec.task_definition);
    let definition = if same {
        old.task_definition.clone()
    } else {
        definitions::resolve(writes, &spec.task_definition, &old.task_definition)
            .map_err(|message| vec![fault("spec.taskDefinition", message)])?
    };
    let spec = v1::TaskSetSpec { task_definition: definition, ..spec };
    let configuration = spec.network_configuration.as_ref();
    let mut faults = network::faults(writes, &key.cluster, configuration, Some(&spec.task_definition), NETWORK);
    let definition = Some(spec.task_definition.as_str());
    faults.extend(traffic::faults(writes, &key.cluster, &spec.load_balancers, definition, beside));
    if !faults.is_empty() {
        return Err(faults);
    }
    if current.is_some() && (v1::TaskSetSpec { scale: old.scale, ..spec.clone() }) != old {
        let message = format!("task set `{}` is there, and only its scale can change; make another one", key.name);
        return Err(vec![fault("spec", message)]);
    }
    wanted.kind = Some(object::Kind::TaskSet(v1::TaskSet { spec: Some(spec), status: None }));
    wanted.meta_mut().owner = Some(found.reference());
    let result = upsert(writes, wanted);
    if result.outcome() == Outcome::Unchanged {
        writes.compare(&of);
    } else {
        // Whoever waits for the service waits for this.
        found.meta_mut().generation += 1;
        writes.put(found);
    }
    Ok(result)
}

fn task(writes: &mut Writes, wanted: &Object) -> Result<ApplyResult, Vec<Fault>> {
    if let Some(fault) = cluster_fault(writes, wanted.cluster()) {
        return Err(vec![fault]);
    }
    let spec = wanted.as_task().and_then(|t| t.spec.clone()).unwrap_or_default();
    if let Some(current) = writes.get(&Key::of(wanted)).cloned() {
        let old = current.as_task().and_then(|t| t.spec.clone()).unwrap_or_default();
        let family = |name: &str| name.split(':').next().unwrap_or_default().to_owned();
        let same = (spec.task_definition == old.task_definition
            || spec.task_definition == family(&old.task_definition))
            && spec.overrides == old.overrides
            && spec.network_configuration == old.network_configuration
            && (spec.started_by.is_empty() || spec.started_by == old.started_by);
        if same {
            return Ok(result(Outcome::Unchanged, current.clone(), Some(current)));
        }
        let name = wanted.name();
        let message = format!("task `{name}` is there with another spec, and tasks never change; give it another name");
        return Err(vec![fault("metadata.name", message)]);
    }
    let definition = definitions::resolve(writes, &spec.task_definition, "")
        .map_err(|message| vec![fault("spec.taskDefinition", message)])?;
    let configuration = spec.network_configuration.as_ref();
    let faults = network::faults(writes, wanted.cluster(), configuration, Some(&definition), NETWORK);
    if !faults.is_empty() {
        return Err(faults);
    }
    let mut object = run::standalone(writes, wanted.cluster(), wanted.name(), &definition, spec);
    object.meta_mut().labels.clone_from(&wanted.meta().labels);
    object.meta_mut().annotations.clone_from(&wanted.meta().annotations);
    let created = writes.create(object);
    Ok(result(Outcome::Created, created, None))
}
