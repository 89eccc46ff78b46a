//! Tasks that are no service's: starting them, and stopping any.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use steady_core::guard::{self, Guard};
use steady_core::v1::stop_code::Value as StopCode;
use steady_core::v1::{
    Object, RunTaskRequest, StopTaskRequest, Task, TaskSpec, TaskStatus, UpdateTaskProtectionRequest, desired_status,
    object, task_last_status,
};
use steady_core::{Key, Kind, Revision, Timestamp, capacity, derived_id, resources, security, task, validate};

use super::writes::Writes;
use super::{Registry, RegistryError, cluster, definitions, fault, network};

/// Most tasks of one `RunTask` (ECS), and of one `UpdateTaskProtection`.
const MAX_COUNT: i32 = 10;
/// Minutes of task protection when nobody says, and most (ECS).
const PROTECTION: i32 = 120;
const MAX_PROTECTION: i32 = 2880;

impl Registry {
    /// Creates standalone tasks. The same client token gives the same tasks.
    pub async fn run_task(&self, request: &RunTaskRequest) -> Result<Vec<Object>, RegistryError> {
        let count = if request.count == 0 { 1 } else { request.count };
        let mut faults = Vec::new();
        if !(1..=MAX_COUNT).contains(&count) {
            faults.push((0, fault("count", format!("{count} is out of range; expected 1 to {MAX_COUNT}"))));
        }
        if request.client_token.len() > 64 {
            faults.push((0, fault("clientToken", "is longer than 64 characters")));
        }
        if !faults.is_empty() {
            return Err(RegistryError::Invalid(faults));
        }
        let cluster = cluster(&request.cluster);
        let token = if request.client_token.is_empty() { (self.new_uid)() } else { request.client_token.clone() };
        let (tasks, revision) = self.write(|writes| run(writes, request, cluster, &token, count)).await?;
        Ok(tasks
            .into_iter()
            .map(|mut task| {
                if task.meta().revision == 0 {
                    task.meta_mut().revision = revision.0;
                }
                task
            })
            .collect())
    }

    /// Asks a task to stop. One that was asked already is left as it is.
    pub async fn stop_task(&self, request: &StopTaskRequest) -> Result<(Object, Revision), RegistryError> {
        let cluster = cluster(&request.cluster);
        let key = Key::new(Kind::Task, cluster, &request.task);
        let reason = if request.reason.is_empty() { "Task stopped by user" } else { &request.reason };
        self.write(|writes| {
            let Some(object) = writes.get(&key).cloned() else { return Err(RegistryError::NotFound(key.clone())) };
            let Some(found) = task::of(&object) else { return Err(RegistryError::NotFound(key.clone())) };
            if !found.is_wanted() {
                return Ok(object);
            }
            let stopped = found.stopped(StopCode::UserInitiated, reason, writes.now());
            writes.put(stopped.clone());
            Ok(stopped)
        })
        .await
    }
}

impl Registry {
    /// Has tasks of services not be chosen to stop for a time, or no longer so (ECS `UpdateTaskProtection`).
    pub async fn protect(&self, request: &UpdateTaskProtectionRequest) -> Result<Vec<Object>, RegistryError> {
        let cluster = cluster(&request.cluster);
        let minutes = if request.expires_in_minutes == 0 { PROTECTION } else { request.expires_in_minutes };
        let mut faults = Vec::new();
        if !(1..=MAX_COUNT as usize).contains(&request.tasks.len()) {
            let message = format!("{} tasks; expected 1 to {MAX_COUNT}", request.tasks.len());
            faults.push((0, fault("tasks", message)));
        }
        if !(1..=MAX_PROTECTION).contains(&minutes) {
            let message = format!("{minutes} is out of range; expected 1 to {MAX_PROTECTION} minutes");
            faults.push((0, fault("expiresInMinutes", message)));
        }
        if !faults.is_empty() {
            return Err(RegistryError::Invalid(faults));
        }
        let (tasks, revision) = self
            .write(|writes| {
                let until = writes.now() + Duration::from_secs(60 * u64::from(minutes.unsigned_abs()));
                let until = request.protection_enabled.then_some(until);
                request.tasks.iter().map(|name| protect(writes, &Key::new(Kind::Task, cluster, name), until)).collect()
            })
            .await?;
        let tasks: Vec<Object> = tasks;
        Ok(tasks
            .into_iter()
            .map(|mut task| {
                task.meta_mut().revision = revision.0;
                task
            })
            .collect())
    }
}

fn protect(writes: &mut Writes, key: &Key, until: Option<Timestamp>) -> Result<Object, RegistryError> {
    let not_found = || RegistryError::NotFound(key.clone());
    let mut object = writes.get(key).cloned().ok_or_else(not_found)?;
    let found = task::of(&object).ok_or_else(not_found)?;
    if found.spec.service.is_empty() || !found.is_wanted() {
        let message =
            format!("{key} cannot be protected: only tasks of services that run, or are to run, can (TASK_NOT_VALID)");
        return Err(RegistryError::Refused(message));
    }
    let spec = TaskSpec { protected_until: until.map(Into::into), ..found.spec.clone() };
    let task = Task { spec: Some(spec), status: Some(found.status.clone()) };
    object.kind = Some(object::Kind::Task(task));
    writes.put(object.clone());
    Ok(object)
}

fn run(
    writes: &mut Writes,
    request: &RunTaskRequest,
    cluster: &str,
    token: &str,
    count: i32,
) -> Result<Vec<Object>, RegistryError> {
    let definition = definitions::resolve(writes, &request.task_definition, "")
        .map_err(|message| RegistryError::Invalid(vec![(0, fault("taskDefinition", message))]))?;
    let strategy = &request.capacity_provider_strategy;
    let network = request.network_configuration.as_ref();
    let faults = network::faults(writes, cluster, network, Some(&definition), "networkConfiguration");
    if !faults.is_empty() {
        return Err(RegistryError::Invalid(faults.into_iter().map(|fault| (0, fault)).collect()));
    }
    let faults = validate::capacity_provider_strategy("capacityProviderStrategy", strategy);
    if !faults.is_empty() {
        return Err(RegistryError::Invalid(faults.into_iter().map(|fault| (0, fault)).collect()));
    }
    let (mut tasks, mut have) = (Vec::new(), BTreeMap::new());
    for number in 0..count {
        let token = if guard::stands(Guard::ClientToken) { token } else { &format!("{token}{}", writes.now().0) };
        let epoch = writes.view().epoch().to_string();
        let name = derived_id(&["run", cluster, token, &number.to_string(), &epoch]);
        if let Some(there) = writes.get(&Key::new(Kind::Task, cluster, &name)).cloned() {
            let same = there.as_task().and_then(|t| t.spec.as_ref()).is_some_and(|s| {
                s.overrides == request.overrides && s.network_configuration == request.network_configuration
            });
            if !same {
                let message = format!("client token `{token}` was used for another request; use a new one");
                return Err(RegistryError::Exists(message));
            }
            tasks.push(there);
            continue;
        }
        let spec = TaskSpec {
            started_by: request.started_by.clone(),
            group: request.group.clone(),
            overrides: request.overrides.clone(),
            placement_constraints: request.placement_constraints.clone(),
            placement_strategy: request.placement_strategy.clone(),
            priority: request.priority,
            preemptible: request.preemptible,
            scheduler_name: request.scheduler_name.clone(),
            network_configuration: request.network_configuration.clone(),
            capacity_provider: capacity::next_provider(strategy, &have).unwrap_or_default().to_owned(),
            ..TaskSpec::default()
        };
        *have.entry(spec.capacity_provider.clone()).or_default() += 1;
        let object = standalone(writes, cluster, &name, &definition, spec);
        let faults = validate::object(&object);
        if !faults.is_empty() {
            return Err(RegistryError::Invalid(faults.into_iter().map(|f| (0, f)).collect()));
        }
        tasks.push(writes.create(object));
    }
    Ok(tasks)
}

/// A standalone task, about to be created. Nobody but the API says where it runs or whose it is.
pub(super) fn standalone(writes: &Writes, cluster: &str, name: &str, definition: &str, spec: TaskSpec) -> Object {
    let key = Key::new(Kind::TaskDefinition, "", definition);
    let found = writes.get(&key).cloned().map(Arc::new);
    let found = found.as_ref().and_then(|d| d.as_task_definition()?.spec.as_ref());
    let family = definition.split(':').next().unwrap_or_default();
    let asked = found.map_or(&[][..], |definition| &definition.placement_constraints);
    let placement_constraints = [&spec.placement_constraints[..], asked].concat();
    let mut requires_attributes = found.map(resources::requires_attributes).unwrap_or_default();
    requires_attributes.extend(security::requires_attributes(spec.network_configuration.as_ref()));
    let group = if spec.group.is_empty() { format!("family:{family}") } else { spec.group };
    let spec = TaskSpec {
        task_definition: definition.to_owned(),
        group,
        demand: found.map(resources::demand),
        placement_constraints,
        service: String::new(),
        deployment: String::new(),
        container_instance: String::new(),
        slot: 0,
        attempt: 0,
        target_instance: String::new(),
        replaces: String::new(),
        protected_until: None,
        image_digests: BTreeMap::new(),
        requires_attributes,
        ..spec
    };
    let status = TaskStatus {
        last_status: task_last_status::Value::Provisioning.into(),
        desired_status: desired_status::Value::Running.into(),
        ..TaskStatus::default()
    };
    Object::new(cluster, name, Task { spec: Some(spec), status: Some(status) })
}
