//! Checks of security groups, and of how tasks name them.

use steady_proto::v1::{NetworkConfiguration, SecurityGroupRule, SecurityGroupSpec};

use super::common::{Faults, name};
use crate::security::{ANY, PROTOCOLS, groups, parse_cidr, ports};

/// Most rules of a group in one direction, and most groups of a task (EC2).
const MAX_RULES: usize = 60;
const MAX_GROUPS: usize = 5;
/// Most characters of a description (EC2).
const MAX_DESCRIPTION: usize = 255;

pub(super) fn check(spec: &SecurityGroupSpec, faults: &mut Faults) {
    description("spec.description", &spec.description, faults);
    for (field, rules) in [("spec.ingress", &spec.ingress), ("spec.egress", &spec.egress)] {
        if rules.len() > MAX_RULES {
            faults.add(field, format!("{} rules; at most {MAX_RULES}", rules.len()));
        }
        for (i, rule) in rules.iter().enumerate() {
            check_rule(rule, &format!("{field}[{i}]"), faults);
        }
    }
}

fn description(path: &str, text: &str, faults: &mut Faults) {
    let length = text.chars().count();
    if length > MAX_DESCRIPTION {
        faults.add(path, format!("has {length} characters; at most {MAX_DESCRIPTION}"));
    }
}

fn check_rule(rule: &SecurityGroupRule, path: &str, faults: &mut Faults) {
    description(&format!("{path}.description"), &rule.description, faults);
    let protocol = &rule.ip_protocol;
    match PROTOCOLS.iter().find(|(known, _)| known == protocol) {
        None => {
            let message = format!("`{protocol}` is unknown; expected tcp, udp, icmp, or `{ANY}` for all of them");
            faults.add(&format!("{path}.ipProtocol"), message);
        }
        Some((_, true)) => match ports(rule) {
            None => faults.add(&format!("{path}.fromPort"), "is missing; expected a port, 0 to 65535".into()),
            Some((from, to)) => {
                faults.range(&format!("{path}.fromPort"), from.into(), 0, 65535, "");
                faults.range(&format!("{path}.toPort"), to.into(), from.into(), 65535, "");
            }
        },
        Some((_, false)) => {
            let has_ports = rule.from_port.is_some() || rule.to_port.is_some();
            let field = if rule.from_port.is_some() { "fromPort" } else { "toPort" };
            faults.unsupported(&format!("{path}.{field}"), has_ports, &format!("`{protocol}` has no ports"));
        }
    }
    match (rule.cidr_ipv4.as_str(), rule.referenced_group.as_str()) {
        ("", "") => faults.add(path, "names nobody; expected cidrIpv4 or referencedGroup".into()),
        (_, "") => {
            let cidr = &rule.cidr_ipv4;
            if parse_cidr(cidr).is_none() {
                let message = format!(
                    "`{cidr}` is no range of addresses; expected one like 10.0.0.0/8, nothing behind its prefix"
                );
                faults.add(&format!("{path}.cidrIpv4"), message);
            }
        }
        ("", group) => name(faults, &format!("{path}.referencedGroup"), group),
        _ => faults.add(path, "names cidrIpv4 and referencedGroup; make two rules of it".into()),
    }
}

/// How a service, a task set or a task names its groups.
pub(super) fn configuration(network: Option<&NetworkConfiguration>, faults: &mut Faults) {
    const PATH: &str = "spec.networkConfiguration.awsvpcConfiguration.securityGroups";
    let groups = groups(network);
    if groups.len() > MAX_GROUPS {
        faults.add(PATH, format!("{} groups; at most {MAX_GROUPS}", groups.len()));
    }
    for (i, group) in groups.iter().enumerate() {
        let path = format!("{PATH}[{i}]");
        name(faults, &path, group);
        if groups[..i].contains(group) {
            faults.add(&path, format!("`{group}` is given twice"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_says_which_packets_and_whose() {
        let rule = |protocol: &str, from: Option<i32>, to: Option<i32>, cidr: &str, group: &str| SecurityGroupRule {
            ip_protocol: protocol.into(),
            from_port: from,
            to_port: to,
            cidr_ipv4: cidr.into(),
            referenced_group: group.into(),
            ..SecurityGroupRule::default()
        };
        let spec = SecurityGroupSpec {
            ingress: vec![
                rule("tcp", Some(80), None, "10.0.0.0/8", ""),
                rule("-1", None, None, "", "web"),
                rule("TCP", None, None, "10.0.0.0/8", ""),
                rule("udp", None, Some(3), "10.0.0.0/8", ""),
                rule("icmp", Some(1), None, "10.0.0.1/8", ""),
                rule("tcp", Some(90), Some(80), "", "web"),
                rule("-1", None, None, "", ""),
                rule("-1", None, None, "10.0.0.0/8", "web"),
            ],
            ..SecurityGroupSpec::default()
        };
        let mut faults = Faults::default();
        check(&spec, &mut faults);
        let found: Vec<String> = faults.found.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "spec.ingress[2].ipProtocol: `TCP` is unknown; expected tcp, udp, icmp, or `-1` for all of them",
                "spec.ingress[3].fromPort: is missing; expected a port, 0 to 65535",
                "spec.ingress[4].fromPort: is not supported; `icmp` has no ports",
                "spec.ingress[4].cidrIpv4: `10.0.0.1/8` is no range of addresses; expected one like 10.0.0.0/8, nothing behind its prefix",
                "spec.ingress[5].toPort: 80 is out of range; expected 90 to 65535",
                "spec.ingress[6]: names nobody; expected cidrIpv4 or referencedGroup",
                "spec.ingress[7]: names cidrIpv4 and referencedGroup; make two rules of it",
            ]
        );
    }
}
