//! Security groups as rules of nftables, in the task's own network: what no rule lets through is dropped there.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use steady_core::security::{ANY, groups};
use steady_core::v1::network_mode::Value as NetworkMode;
use steady_core::v1::{ResolvedRule, ResolvedSecurityGroup};

use super::model::{Phase, TaskState};
use super::{Engine, effects, id};
use crate::metadata;
use crate::runtime::{PAUSE, RuntimeError};

/// Security groups of this instance's tasks, by name.
pub(super) type Groups = BTreeMap<String, ResolvedSecurityGroup>;

/// What a task's network has been given.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// The rules that are there; `None`: not known.
    rules: Option<String>,
    /// They are being changed.
    busy: bool,
    /// They were compared with those that it is to have, and are the same: until something changes nothing is worked out.
    settled: bool,
}

impl Applied {
    /// A network that was just made with these rules.
    pub(super) fn made(rules: String) -> Self {
        Applied { rules: Some(rules), busy: false, settled: false }
    }
}

/// The security groups of a task; none where it has no network of its own.
fn named(task: &TaskState) -> &[String] {
    let spec = task.object.as_task().and_then(|task| task.spec.as_ref());
    let own = spec.filter(|_| task.definition.network_mode() == NetworkMode::Awsvpc);
    groups(own.and_then(|spec| spec.network_configuration.as_ref()))
}

/// The rules of a task; `None`: it has no security groups, and everything is let through.
pub(super) fn rules(task: &TaskState, known: &Groups) -> Option<String> {
    let names = named(task);
    (!names.is_empty()).then(|| ruleset(names.iter().filter_map(|name| known.get(name))))
}

impl Engine {
    /// Security groups are now these.
    pub(super) fn grouped(&mut self, groups: Vec<ResolvedSecurityGroup>) {
        self.groups = groups.into_iter().map(|group| (group.name.clone(), group)).collect();
        for (name, entry) in self.tasks.iter_mut().filter(|(_, entry)| !named(&entry.state).is_empty()) {
            entry.firewall.settled = false;
            self.touched.insert(name.clone());
        }
    }

    /// Gives a task's network the rules that it is to have now.
    pub(super) fn filter(&mut self, name: &str) {
        // Until the control plane has said what they are, those stay that are there.
        if !self.is_told {
            return;
        }
        let Some(entry) = self.tasks.get_mut(name) else { return };
        let runs = entry.state.container(PAUSE).is_some_and(|pause| pause.phase == Phase::Running);
        if entry.firewall.busy || entry.firewall.settled || !runs {
            return;
        }
        let wanted = rules(&entry.state, &self.groups);
        entry.firewall.settled = wanted.is_none() || entry.firewall.rules == wanted;
        if let Some(wanted) = wanted.filter(|_| !entry.firewall.settled) {
            entry.firewall.busy = true;
            effects::filter(Arc::clone(&self.runtime), self.inputs.clone(), id(name, PAUSE), wanted);
        }
    }

    /// A task's network has these rules, or could not be given them.
    pub(super) fn filtered(&mut self, name: &str, result: Result<String, RuntimeError>) {
        let Some(entry) = self.tasks.get_mut(name) else { return };
        entry.firewall.busy = false;
        match result {
            Ok(rules) => entry.firewall.rules = Some(rules),
            Err(error) => {
                tracing::error!(task = name, %error, "its security groups could not be changed; trying again");
                entry.firewall.rules = None;
            }
        }
        self.touched.insert(name.to_owned());
    }
}

/// A table of nftables that replaces the one before as a whole.
fn ruleset<'a>(groups: impl Iterator<Item = &'a ResolvedSecurityGroup>) -> String {
    let (mut input, mut output) = (String::new(), String::new());
    let add = |chain: &mut String, direction: &str, rule: &ResolvedRule| {
        let (from, to, addresses) = (rule.from_port, rule.to_port, rule.cidrs.join(", "));
        let what = match rule.ip_protocol.as_str() {
            ANY => String::new(),
            "icmp" => " meta l4proto icmp".to_owned(),
            protocol => format!(" {protocol} dport {from}-{to}"),
        };
        // Nobody: nothing to let through.
        if !addresses.is_empty() {
            let _ = writeln!(chain, "    ip {direction} {{ {addresses} }}{what} accept");
        }
    };
    for group in groups {
        group.ingress.iter().for_each(|rule| add(&mut input, "saddr", rule));
        group.egress.iter().for_each(|rule| add(&mut output, "daddr", rule));
        if group.egress.is_empty() {
            output.push_str("    accept\n");
        }
    }
    let own = metadata::ADDRESS.ip();
    format!(
        "table inet steady\ndelete table inet steady\ntable inet steady {{\n  chain input {{\n    type filter hook input priority filter; \
         policy drop;\n    ct state established,related accept\n    iif lo accept\n{input}  }}\n  chain output {{\n    type filter hook \
         output priority filter; policy drop;\n    ct state established,related accept\n    oif lo accept\n    ip daddr {own} \
         accept\n{output}  }}\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_rule_lets_through_is_dropped() {
        let rule = |protocol: &str, cidrs: &[&str]| ResolvedRule {
            ip_protocol: protocol.into(),
            from_port: 80,
            to_port: 90,
            cidrs: cidrs.iter().map(|cidr| (*cidr).to_owned()).collect(),
        };
        let web = ResolvedSecurityGroup {
            name: "web".into(),
            ingress: vec![rule("tcp", &["10.0.0.0/8", "10.88.0.2/32"]), rule("udp", &[]), rule("icmp", &["0.0.0.0/0"])],
            egress: vec![rule("-1", &["10.1.0.0/16"])],
        };
        let text = ruleset([&web].into_iter());
        assert!(text.contains("    ip saddr { 10.0.0.0/8, 10.88.0.2/32 } tcp dport 80-90 accept\n"), "{text}");
        assert!(text.contains("    ip saddr { 0.0.0.0/0 } meta l4proto icmp accept\n"), "{text}");
        assert!(text.contains("    ip daddr { 10.1.0.0/16 } accept\n") && !text.contains("udp"), "{text}");
        assert_eq!(text.matches("policy drop").count(), 2);
        assert!(!text.contains("\n    accept\n"), "its egress has rules: {text}");
        let open = ResolvedSecurityGroup { name: "open".into(), ..ResolvedSecurityGroup::default() };
        assert!(ruleset([&web, &open].into_iter()).contains("\n    accept\n"));
        // A group that is not known lets nothing through.
        assert!(!ruleset([].into_iter()).contains("\n    accept\n"));
    }
}
