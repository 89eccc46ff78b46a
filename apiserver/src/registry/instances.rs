//! What agents write: their instance, and the status of its tasks.

use std::collections::BTreeMap;

use steady_core::guard::{self, Guard};
use steady_core::v1::task_last_status::Value as Status;
use steady_core::v1::{ContainerInstance, Object, Register, TaskReport, TaskStatus, desired_status, object};
use steady_core::{DEFAULT_CLUSTER, Key, Kind, Revision, Timestamp, defaults, task, validate};

use super::writes::Writes;
use super::{Registry, RegistryError, cluster, traffic};
use crate::registry::commit::MAX_CHANGES;

/// An agent that was let in.
#[derive(Debug, Clone)]
pub struct Registration {
    /// Its instance.
    pub instance: Key,
    /// The instance's uid.
    pub uid: String,
    /// Its registration is at least this old.
    pub revision: Revision,
}

impl Registry {
    /// Registers an instance, or brings what it registered up to date.
    pub async fn register(&self, request: &Register) -> Result<Registration, RegistryError> {
        let cluster = cluster(&request.cluster);
        let mut wanted =
            Object::new(cluster, &request.name, ContainerInstance { spec: request.spec.clone(), status: None });
        defaults::fill(&mut wanted);
        let faults = validate::object(&wanted);
        if !faults.is_empty() {
            return Err(RegistryError::Invalid(faults.into_iter().map(|f| (0, f)).collect()));
        }
        let instance = Key::of(&wanted);
        let (uid, revision) = self.write(|writes| register(writes, &instance, &wanted, &request.uid)).await?;
        Ok(Registration { instance, uid, revision })
    }

    /// Stores statuses that an agent found. Returns those refused for good, with the reason.
    pub async fn report(
        &self,
        instance: &Key,
        reports: &[TaskReport],
    ) -> Result<(BTreeMap<String, String>, Revision), RegistryError> {
        let mut refused = BTreeMap::new();
        let mut newest = Revision(0);
        // Each may cost its service an object more.
        for chunk in reports.chunks(MAX_CHANGES / 2) {
            let (no, revision) = self
                .write(|writes| {
                    let mut no = BTreeMap::new();
                    for report in chunk {
                        if let Err(reason) = one(writes, instance, report) {
                            no.insert(report.task.clone(), reason);
                        }
                    }
                    Ok(no)
                })
                .await?;
            refused.extend(no);
            newest = newest.max(revision);
        }
        Ok((refused, newest))
    }
}

fn register(writes: &mut Writes, key: &Key, wanted: &Object, uid: &str) -> Result<String, RegistryError> {
    if key.cluster != DEFAULT_CLUSTER && writes.get(&Key::new(Kind::Cluster, "", &key.cluster)).is_none() {
        return Err(RegistryError::Refused(format!("there is no cluster `{}`; apply it first", key.cluster)));
    }
    let Some(mut object) = writes.get(key).cloned() else {
        let mut new = wanted.clone();
        uid.clone_into(&mut new.meta_mut().uid);
        return Ok(writes.create(new).meta().uid.clone());
    };
    let known = object.meta().uid.clone();
    if known != uid {
        return Err(RegistryError::Exists(format!(
            "{key} is registered by another agent (uid {known}); start this one with another --name, or delete {key} \
             if that machine is gone for good"
        )));
    }
    if let (Some(object::Kind::ContainerInstance(old)), Some(new)) = (&mut object.kind, wanted.as_container_instance())
    {
        let old = old.spec.get_or_insert_default();
        // ACTIVE or DRAINING is the user's to say.
        let status = old.status;
        old.clone_from(new.spec.as_ref().unwrap_or(&<_>::default()));
        old.status = status;
    }
    if writes.get(key) != Some(&object) {
        object.meta_mut().generation += 1;
        writes.put(object);
    }
    Ok(known)
}

fn one(writes: &mut Writes, instance: &Key, report: &TaskReport) -> Result<(), String> {
    let key = Key::new(Kind::Task, &instance.cluster, &report.task);
    let Some(object) = writes.get(&key).cloned() else { return Err(format!("there is no {key}")) };
    let Some(found) = task::of(&object) else { return Err(format!("{key} is no task")) };
    if found.spec.container_instance != instance.name {
        return Err(format!("{key} is not on {instance}"));
    }
    let Some(told) = &report.status else { return Err("the report has no status".into()) };
    // A task that was given up as lost stays STOPPED; a report that is older than what is known is old news.
    let over = found.status.last_status() == Status::Stopped && guard::stands(Guard::StoppedIsFinal);
    let older = told.last_status() < found.status.last_status() && guard::stands(Guard::StatusOrder);
    if over || older {
        return Ok(());
    }
    let mut status = merge(found.status, told, writes.now());
    traffic::follow(writes, &key.cluster, found.spec, &mut status, writes.now());
    writes.put(found.with_status(status));
    Ok(())
}

/// What the agent knows over what the control plane decided. Its clock may be ahead; nothing has happened later than `now`.
fn merge(known: &TaskStatus, told: &TaskStatus, now: Timestamp) -> TaskStatus {
    let passed = |at| if Timestamp::from(&at) > now { now.into() } else { at };
    let mut status = TaskStatus {
        last_status: told.last_status,
        desired_status: known.desired_status,
        containers: told.containers.clone(),
        health_status: told.health_status,
        pull_started_at: told.pull_started_at,
        pull_stopped_at: told.pull_stopped_at,
        // An agent that adopted the task does not know when it started.
        started_at: known.started_at.or(told.started_at.map(passed)),
        stopping_at: known.stopping_at.or(told.stopping_at),
        stopped_at: known.stopped_at.or(told.stopped_at.map(passed)),
        stopped_reason: known.stopped_reason.clone(),
        stop_code: known.stop_code,
        conditions: Vec::new(),
        targets: known.targets.clone(),
    };
    if status.stopped_reason.is_empty() {
        status.stopped_reason.clone_from(&told.stopped_reason);
        status.stop_code = told.stop_code;
    }
    if status.last_status() == Status::Stopped {
        status.set_desired_status(desired_status::Value::Stopped);
    }
    status
}
