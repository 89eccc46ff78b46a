//! Security groups: which tasks have them, and what their rules come to.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use steady_proto::Kind;
use steady_proto::v1::{
    Attribute, NetworkConfiguration, ResolvedRule, ResolvedSecurityGroup, SecurityGroupRule, TaskSpec, TaskStatus,
};

use crate::resources::capability;
use crate::{SmolStr, View, task};

/// Names of the security groups of a network configuration.
pub fn groups(network: Option<&NetworkConfiguration>) -> &[String] {
    network.and_then(|network| network.awsvpc_configuration.as_ref()).map_or(&[], |own| &own.security_groups)
}

/// What an instance must have for tasks of this network configuration, beyond what their definition asks for.
pub fn requires_attributes(network: Option<&NetworkConfiguration>) -> Option<Attribute> {
    let name = capability::SECURITY_GROUPS.to_owned();
    (!groups(network).is_empty()).then(|| Attribute { name, value: String::new() })
}

/// The protocols of a rule, and whether they have ports.
pub const PROTOCOLS: [(&str, bool); 4] = [("tcp", true), ("udp", true), ("icmp", false), (ANY, false)];

/// The protocol that is all of them (EC2).
pub const ANY: &str = "-1";

/// First and last port of a rule whose protocol has ports.
pub fn ports(rule: &SecurityGroupRule) -> Option<(i32, i32)> {
    let from = rule.from_port?;
    Some((from, rule.to_port.unwrap_or(from)))
}

/// Address and length of the prefix of `10.0.0.0/8`; a bare address is one of 32 bits. `None` for anything else, also where
/// bits behind the prefix are set.
pub fn parse_cidr(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, bits) = text.split_once('/').unwrap_or((text, "32"));
    // Whoever reads it next may take `010` for eight.
    let number = bits.parse::<u8>().ok().filter(|number| *number <= 32 && number.to_string() == bits);
    let (address, bits) = (address.parse::<Ipv4Addr>().ok()?, number?);
    let host = u32::MAX.checked_shr(bits.into()).unwrap_or(0);
    (u32::from(address) & host == 0).then_some((address, bits))
}

/// The address of its own that a task has.
pub fn address(status: &TaskStatus) -> Option<&str> {
    let mut interfaces = status.containers.iter().flat_map(|container| &container.network_interfaces);
    interfaces.next().map(|interface| interface.private_ipv4_address.as_str()).filter(|address| !address.is_empty())
}

/// Security groups by cluster and name, as rules of addresses.
pub type Resolved = BTreeMap<(SmolStr, SmolStr), ResolvedSecurityGroup>;

/// Every security group, with the addresses of the tasks that have the groups its rules refer to.
pub fn resolve(view: &View) -> Resolved {
    let mut declared = view.of_kind(Kind::SecurityGroup).peekable();
    // Nobody else pays for them.
    if declared.peek().is_none() {
        return Resolved::new();
    }
    let mut members: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
    for object in view.of_kind(Kind::Task) {
        let Some(task) = task::of(object).filter(task::View::is_live) else { continue };
        let Some(address) = address(task.status) else { continue };
        for group in groups(task.spec.network_configuration.as_ref()) {
            members.entry((object.cluster(), group)).or_default().push(format!("{address}/32"));
        }
    }
    for addresses in members.values_mut() {
        addresses.sort_unstable();
    }
    let resolved = declared.filter_map(|object| {
        let spec = object.as_security_group()?.spec.clone().unwrap_or_default();
        let rule = |rule: &SecurityGroupRule| {
            let (from_port, to_port) = ports(rule).unwrap_or_default();
            let cidrs = match rule.referenced_group.as_str() {
                "" => parse_cidr(&rule.cidr_ipv4).iter().map(|(at, bits)| format!("{at}/{bits}")).collect(),
                group => members.get(&(object.cluster(), group)).cloned().unwrap_or_default(),
            };
            ResolvedRule { ip_protocol: rule.ip_protocol.clone(), from_port, to_port, cidrs }
        };
        let name = object.name().to_owned();
        let key = (SmolStr::new(object.cluster()), SmolStr::new(&name));
        let (ingress, egress) = (spec.ingress.iter().map(rule).collect(), spec.egress.iter().map(rule).collect());
        Some((key, ResolvedSecurityGroup { name, ingress, egress }))
    });
    resolved.collect()
}

/// Whether what is said of a task is of interest to others' security groups.
pub fn is_member(spec: &TaskSpec) -> bool {
    !groups(spec.network_configuration.as_ref()).is_empty()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use steady_proto::v1::{
        AwsVpcConfiguration, Container, NetworkInterface, Object, SecurityGroup, SecurityGroupSpec, Task,
        desired_status, task_last_status,
    };

    fn task(name: &str, cluster: &str, group: &str, last: task_last_status::Value) -> Arc<Object> {
        let own = AwsVpcConfiguration { security_groups: vec![group.to_owned()] };
        let network = NetworkConfiguration { awsvpc_configuration: Some(own) };
        let spec = TaskSpec { network_configuration: Some(network), ..TaskSpec::default() };
        let interface = NetworkInterface { private_ipv4_address: format!("10.88.0.{name}") };
        let container = Container { network_interfaces: vec![interface], ..Container::default() };
        let mut status = TaskStatus { containers: vec![container], ..TaskStatus::default() };
        status.set_last_status(last);
        status.set_desired_status(desired_status::Value::Running);
        Arc::new(Object::new(cluster, name, Task { spec: Some(spec), status: Some(status) }))
    }

    #[test]
    fn a_group_that_is_referred_to_stands_for_its_tasks_addresses() {
        let mut view = View::default();
        let rule = |referenced: &str, cidr: &str| SecurityGroupRule {
            ip_protocol: "tcp".into(),
            from_port: Some(80),
            referenced_group: referenced.into(),
            cidr_ipv4: cidr.into(),
            ..SecurityGroupRule::default()
        };
        let spec = SecurityGroupSpec {
            ingress: vec![rule("web", ""), rule("", "10.0.0.0/8"), rule("none", "")],
            ..SecurityGroupSpec::default()
        };
        view.put(Arc::new(Object::new("default", "db", SecurityGroup { spec: Some(spec) })));
        for (name, cluster, group, last) in [
            ("5", "default", "web", task_last_status::Value::Running),
            ("4", "default", "web", task_last_status::Value::Running),
            ("6", "other", "web", task_last_status::Value::Running),
            ("7", "default", "db", task_last_status::Value::Running),
            ("8", "default", "web", task_last_status::Value::Stopped),
        ] {
            view.put(task(name, cluster, group, last));
        }
        let resolved = resolve(&view);
        let group = &resolved[&("default".into(), "db".into())];
        let cidrs: Vec<Vec<String>> = group.ingress.iter().map(|rule| rule.cidrs.clone()).collect();
        let members = vec!["10.88.0.4/32".to_owned(), "10.88.0.5/32".to_owned()];
        assert_eq!(cidrs, vec![members, vec!["10.0.0.0/8".to_owned()], vec![]]);
        assert_eq!((group.ingress[0].from_port, group.ingress[0].to_port), (80, 80));
    }

    #[test]
    fn a_range_of_addresses_has_nothing_behind_its_prefix() {
        assert_eq!(parse_cidr("10.0.0.0/8"), Some((Ipv4Addr::new(10, 0, 0, 0), 8)));
        assert_eq!(parse_cidr("0.0.0.0/0"), Some((Ipv4Addr::UNSPECIFIED, 0)));
        assert_eq!(parse_cidr("10.1.2.3"), Some((Ipv4Addr::new(10, 1, 2, 3), 32)));
        for wrong in ["10.0.0.1/8", "10.0.0.0/33", "10.0.0/8", "10.1.2.0/024", "10.0.0.0/+8", "web", ""] {
            assert_eq!(parse_cidr(wrong), None, "{wrong}");
        }
    }
}
