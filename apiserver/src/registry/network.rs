//! Security groups: what names them is there, and what is named stays.

use steady_core::security::groups;
use steady_core::v1::network_mode::Value as NetworkMode;
use steady_core::v1::{NetworkConfiguration, Object, SecurityGroupSpec, object};
use steady_core::validate::Fault;
use steady_core::{Key, Kind, task};

use super::upsert::missing;
use super::writes::Writes;
use super::{definitions, fault};

/// As faults call it.
const WHAT: &str = "security group";

/// What is wrong with the network configuration of tasks of a definition, at this path.
pub(super) fn faults(
    writes: &mut Writes,
    cluster: &str,
    network: Option<&NetworkConfiguration>,
    definition: Option<&str>,
    path: &str,
) -> Vec<Fault> {
    let mut faults = there_are(writes, cluster, groups(network), &format!("{path}.awsvpcConfiguration.securityGroups"));
    let mode = definition.and_then(|name| Some((name, definitions::spec_of(writes, name)?.network_mode())));
    if let (Some((name, mode)), Some(_)) = (mode, network)
        && mode != NetworkMode::Awsvpc
    {
        let mode = if mode == NetworkMode::Unspecified { "bridge" } else { mode.as_str_name() }.to_ascii_lowercase();
        let message = format!(
            "is not valid for networkMode {mode} of task definition `{name}`; expected a definition with networkMode awsvpc"
        );
        faults.push(fault(path, message));
    }
    faults
}

/// Groups that are named have to be there, and stay.
fn there_are(writes: &mut Writes, cluster: &str, names: &[String], path: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (i, name) in names.iter().enumerate() {
        if let Some(message) = missing(writes, Kind::SecurityGroup, WHAT, cluster, name) {
            faults.push(fault(&format!("{path}[{i}]"), message));
        }
    }
    faults
}

/// Groups that a group refers to; itself is there as soon as it is.
pub(super) fn referenced(writes: &mut Writes, group: &Object, others: &[Object]) -> Vec<Fault> {
    let spec = group.as_security_group().and_then(|group| group.spec.clone()).unwrap_or_default();
    let mut faults = Vec::new();
    for (field, rules) in [("ingress", &spec.ingress), ("egress", &spec.egress)] {
        for (i, rule) in rules.iter().enumerate().filter(|(_, rule)| !rule.referenced_group.is_empty()) {
            let name = &rule.referenced_group;
            let beside = |other: &&Object| {
                other.kind() == Kind::SecurityGroup && other.cluster() == group.cluster() && other.name() == name
            };
            if others.iter().any(|other| beside(&other)) {
                continue;
            }
            if let Some(message) = missing(writes, Kind::SecurityGroup, WHAT, group.cluster(), name) {
                faults.push(fault(&format!("spec.{field}[{i}].referencedGroup"), message));
            }
        }
    }
    faults
}

/// Who has a security group or refers to it, if anybody does (EC2 `DependencyViolation`).
pub(super) fn in_use(writes: &Writes, key: &Key) -> Option<String> {
    let names = |object: &Object| groups(configuration(object)).contains(&key.name.to_string());
    let refers = |spec: &SecurityGroupSpec| {
        spec.ingress.iter().chain(&spec.egress).any(|rule| rule.referenced_group == *key.name)
    };
    let has_it = |object: &Object| match object.as_security_group() {
        Some(group) => object.name() != key.name && group.spec.as_ref().is_some_and(refers),
        None => names(object),
    };
    let kinds = [Kind::Service, Kind::Deployment, Kind::TaskSet, Kind::SecurityGroup, Kind::Task];
    let all = kinds.into_iter().flat_map(|kind| writes.view().in_cluster(kind, &key.cluster));
    let users: Vec<String> = all.filter(|object| has_it(object)).map(|o| Key::of(o).to_string()).take(5).collect();
    (!users.is_empty()).then(|| users.join(", "))
}

/// The network of an object's tasks; none of a task that is over.
fn configuration(object: &Object) -> Option<&NetworkConfiguration> {
    match &object.kind {
        Some(object::Kind::Service(service)) => service.spec.as_ref()?.network_configuration.as_ref(),
        Some(object::Kind::Deployment(deployment)) => deployment.spec.as_ref()?.network_configuration.as_ref(),
        Some(object::Kind::TaskSet(set)) => set.spec.as_ref()?.network_configuration.as_ref(),
        Some(object::Kind::Task(_)) => {
            task::of(object).filter(task::View::is_live)?.spec.network_configuration.as_ref()
        }
        _ => None,
    }
}
