//! Security groups: what names them is there, and what is named stays.

use std::collections::BTreeSet;

use steady_core::security::groups;
use steady_core::v1::network_mode::Value as NetworkMode;
use steady_core::v1::{NetworkConfiguration, Object, SecurityGroupSpec};
use steady_core::validate::Fault;
use steady_core::{Key, Kind, task};

use super::fault;
use super::upsert::unknown;
use super::writes::Writes;

/// What is wrong with the network configuration of tasks of a definition, at this path.
pub(super) fn faults(
    writes: &mut Writes,
    cluster: &str,
    network: Option<&NetworkConfiguration>,
    definition: Option<&str>,
    path: &str,
) -> Vec<Fault> {
    let mut faults = there_are(writes, cluster, groups(network), &format!("{path}.awsvpcConfiguration.securityGroups"));
    let mode = definition.and_then(|name| {
        let object = writes.get(&Key::new(Kind::TaskDefinition, "", name))?;
        Some((name, object.as_task_definition()?.spec.as_ref()?.network_mode()))
    });
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
        let key = Key::new(Kind::SecurityGroup, cluster, name);
        if writes.get(&key).is_some() {
            writes.compare(&key);
            continue;
        }
        let known: Vec<&str> = writes.view().in_cluster(Kind::SecurityGroup, cluster).map(|g| g.name()).collect();
        faults.push(fault(&format!("{path}[{i}]"), unknown("security group", name, &known)));
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
            let key = Key::new(Kind::SecurityGroup, group.cluster(), name);
            if others.iter().any(|other| beside(&other)) {
                continue;
            }
            if writes.get(&key).is_some() {
                writes.compare(&key);
                continue;
            }
            let known: Vec<&str> =
                writes.view().in_cluster(Kind::SecurityGroup, group.cluster()).map(|g| g.name()).collect();
            let path = format!("spec.{field}[{i}].referencedGroup");
            faults.push(fault(&path, unknown("security group", name, &known)));
        }
    }
    faults
}

/// Who has a security group or refers to it, if anybody does (EC2 `DependencyViolation`).
pub(super) fn in_use(writes: &Writes, key: &Key) -> Option<String> {
    let view = writes.view();
    let names = |network: Option<&NetworkConfiguration>| groups(network).contains(&key.name.to_string());
    let of = |kind: Kind, uses: &dyn Fn(&Object) -> bool| -> BTreeSet<String> {
        let found = view.in_cluster(kind, &key.cluster).filter(|object| uses(object));
        found.map(|object| Key::of(object).to_string()).collect()
    };
    let by_service = |o: &Object| {
        o.as_service().and_then(|s| s.spec.as_ref()).is_some_and(|s| names(s.network_configuration.as_ref()))
    };
    // One that is rolled back to gives its tasks its own.
    let by_deployment = |o: &Object| {
        o.as_deployment().and_then(|d| d.spec.as_ref()).is_some_and(|d| names(d.network_configuration.as_ref()))
    };
    let by_set = |o: &Object| {
        o.as_task_set().and_then(|s| s.spec.as_ref()).is_some_and(|s| names(s.network_configuration.as_ref()))
    };
    let by_task = |o: &Object| task::of(o).is_some_and(|t| t.is_live() && names(t.spec.network_configuration.as_ref()));
    let refers = |spec: &SecurityGroupSpec| {
        spec.ingress.iter().chain(&spec.egress).any(|rule| rule.referenced_group == *key.name)
    };
    let by_group =
        |o: &Object| o.name() != key.name && o.as_security_group().and_then(|g| g.spec.as_ref()).is_some_and(refers);
    let users = of(Kind::Service, &by_service)
        .into_iter()
        .chain(of(Kind::Deployment, &by_deployment))
        .chain(of(Kind::TaskSet, &by_set))
        .chain(of(Kind::SecurityGroup, &by_group))
        .chain(of(Kind::Task, &by_task));
    let users: Vec<String> = users.take(5).collect();
    (!users.is_empty()).then(|| users.join(", "))
}
