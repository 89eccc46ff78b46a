//! What should not be in a store: what cannot be read, and what belongs to nothing.

use std::collections::{BTreeMap, BTreeSet};

use steady_core::v1::deployment_role::Value as Role;
use steady_core::v1::{Finding, Object};
use steady_core::{DEFAULT_CLUSTER, Key, Kind, KindExt, Revision, View, resources, service, task};

use super::{Registry, RegistryError};
use crate::cache::decode;

/// What a check found.
pub struct Checked {
    /// As of when.
    pub revision: Revision,
    /// How many objects were looked at.
    pub objects: usize,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

impl Registry {
    /// Reads the whole store and looks for what should not be there.
    pub async fn check(&self) -> Result<Checked, RegistryError> {
        let listing = self.store.list(Key::PREFIX).await?;
        let mut view = View::default();
        let mut findings = Vec::new();
        for entry in &listing.entries {
            match decode(entry) {
                Ok(decoded) => {
                    if decoded.newer {
                        let message =
                            "has fields that this version does not know; an older API server must not write it";
                        findings.push(finding(&decoded.key.to_string(), "NewerVersion", message));
                    }
                    view.put(decoded.object.into());
                }
                Err(reason) => {
                    let message =
                        format!("{reason}; it is left out everywhere. Delete the key with etcdctl, or restore it");
                    findings.push(finding(&entry.key, "Undecodable", &message));
                }
            }
        }
        view.set_revision(listing.revision);
        self.see(listing.revision).await?;
        findings.extend(dangling(&view));
        findings.extend(doubled(&view));
        findings.extend(differs(&view, &self.cache.view()));
        Ok(Checked { revision: listing.revision, objects: view.len(), findings })
    }
}

fn finding(object: &str, reason: &str, message: &str) -> Finding {
    Finding { object: object.to_owned(), reason: reason.to_owned(), message: message.to_owned() }
}

/// Objects whose owner, place or definition is not there.
fn dangling(view: &View) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut needs = |object: &Object, what: Key, help: &str| {
        if view.get(&what).is_none() {
            let message = format!("{what} is not there; {help}");
            findings.push(finding(&Key::of(object).to_string(), "DanglingOwner", &message));
        }
    };
    for (key, object) in view.range(Key::first()..) {
        if key.kind.in_cluster() && key.cluster != DEFAULT_CLUSTER {
            needs(object, Key::new(Kind::Cluster, "", &key.cluster), "apply it");
        }
        match key.kind {
            Kind::Service => {
                let spec = object.as_service().and_then(|s| s.spec.as_ref());
                if spec.is_some_and(service::is_external) {
                    continue;
                }
                let definition = spec.map(|s| s.task_definition.clone());
                let definition = Key::new(Kind::TaskDefinition, "", &definition.unwrap_or_default());
                needs(object, definition, "apply the service with another one");
            }
            Kind::TaskSet => {
                let spec = object.as_task_set().and_then(|set| set.spec.clone()).unwrap_or_default();
                needs(object, Key::new(Kind::Service, &key.cluster, &spec.service), "the reaper deletes it");
                needs(object, Key::new(Kind::TaskDefinition, "", &spec.task_definition), "make another task set");
            }
            Kind::Deployment => {
                let service = object.as_deployment().and_then(|d| d.spec.as_ref()).map(|s| s.service.clone());
                let service = Key::new(Kind::Service, &key.cluster, &service.unwrap_or_default());
                needs(object, service, "the reaper deletes it within a minute; if not, tell the developers");
            }
            Kind::Reservation => {
                let instance = Key::new(Kind::ContainerInstance, &key.cluster, &key.name);
                needs(object, instance, "it reserves nothing");
            }
            Kind::Task => {
                let Some(task) = task::of(object).filter(task::View::is_live) else { continue };
                let (service, place) = (&task.spec.service, &task.spec.container_instance);
                if !service.is_empty() {
                    let service = Key::new(Kind::Service, &key.cluster, service);
                    needs(object, service, "the service controller stops it; if not, `steady stop` does");
                }
                if !place.is_empty() {
                    let instance = Key::new(Kind::ContainerInstance, &key.cluster, place);
                    needs(object, instance, "`steady stop` gives it up");
                }
            }
            _ => {}
        }
    }
    findings
}

/// Services with two primary deployments, instances with a host port given twice.
fn doubled(view: &View) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut primaries: BTreeMap<Key, usize> = BTreeMap::new();
    for object in view.of_kind(Kind::Deployment) {
        let Some(deployment) = object.as_deployment() else { continue };
        let is_primary = deployment.status.as_ref().is_some_and(|s| s.role() == Role::Primary);
        let service = deployment.spec.as_ref().map(|s| s.service.clone()).unwrap_or_default();
        if is_primary {
            *primaries.entry(Key::new(Kind::Service, object.cluster(), &service)).or_default() += 1;
        }
    }
    for (service, count) in primaries.into_iter().filter(|(_, count)| *count > 1) {
        let message =
            format!("{count} deployments are PRIMARY; apply the service with another spec.forceNewDeployment");
        findings.push(finding(&service.to_string(), "TwoPrimaries", &message));
    }
    for instance in view.of_kind(Kind::ContainerInstance) {
        let mut taken: BTreeSet<String> = BTreeSet::new();
        for task in view.on_instance(instance.cluster(), instance.name()).filter_map(|object| task::of(object)) {
            let definition = view.get(&Key::new(Kind::TaskDefinition, "", &task.spec.task_definition));
            let spec = definition.and_then(|d| d.as_task_definition()?.spec.as_ref());
            for port in spec.iter().flat_map(|spec| resources::host_ports(spec)) {
                let port = format!("{}/{}", port.port, port.protocol().as_str_name().to_lowercase());
                if !taken.insert(port.clone()) {
                    let message = format!("host port {port} is given to two tasks; stop one of them");
                    findings.push(finding(&Key::of(instance).to_string(), "PortTwice", &message));
                }
            }
        }
    }
    findings
}

/// What this server's cache knows otherwise, of what both are old enough to know.
fn differs(stored: &View, cached: &View) -> Vec<Finding> {
    let mut findings = Vec::new();
    let help = "this API server mends it within three minutes; if it comes again, tell the developers";
    for (key, object) in stored.range(Key::first()..) {
        let (stored, known) = (object.meta().revision, cached.revision_of(key).0);
        if known < stored && (known != 0 || cached.revision() == Revision(stored)) {
            let message = format!("revision {stored} in the store, {known} in the cache; {help}");
            findings.push(finding(&key.to_string(), "CacheDiffers", &message));
        }
    }
    findings
}
