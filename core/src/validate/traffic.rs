//! Checks of target groups, listeners and the load balancers of services.

use std::collections::BTreeSet;

use steady_proto::v1::load_balancing_algorithm::Value as Algorithm;
use steady_proto::v1::protocol_version::Value as Version;
use steady_proto::v1::traffic_protocol::Value as Protocol;
use steady_proto::v1::{Action, ListenerSpec, LoadBalancer, Rule, RuleCondition, ServiceRegistry, TargetGroupSpec};

use super::common::{Faults, name};
use crate::discovery;
use crate::security::parse_cidr;
use crate::traffic::{forwards, is_http, matches_code};

/// Most target groups of a service, and of an action (ECS, Elastic Load Balancing).
const MAX_GROUPS: usize = 5;
const MAX_RULES: usize = 100;
const MAX_CONDITIONS: usize = 5;
const MAX_PATTERN: usize = 128;
const MAX_BODY: usize = 1024;

/// A target group, filled in.
pub(super) fn target_group(spec: &TargetGroupSpec, faults: &mut Faults) {
    let number = |faults: &mut Faults, field: &str, value: Option<i32>, from: i64, to: i64, unit: &str| {
        faults.range(&format!("spec.{field}"), value.unwrap_or_default().into(), from, to, unit);
    };
    number(faults, "healthCheckIntervalSeconds", spec.health_check_interval_seconds, 1, 300, "seconds");
    number(faults, "healthCheckTimeoutSeconds", spec.health_check_timeout_seconds, 1, 120, "seconds");
    number(faults, "healthyThresholdCount", spec.healthy_threshold_count, 1, 10, "checks");
    number(faults, "unhealthyThresholdCount", spec.unhealthy_threshold_count, 1, 10, "checks");
    number(faults, "deregistrationDelaySeconds", spec.deregistration_delay_seconds, 0, 3600, "seconds");
    let slow = spec.slow_start_seconds();
    if slow != 0 {
        number(faults, "slowStartSeconds", Some(slow), 30, 900, "seconds, or 0");
        if spec.load_balancing_algorithm_type() != Algorithm::RoundRobin {
            let message = "is for round_robin only; leave it out, or loadBalancingAlgorithmType";
            faults.add("spec.slowStartSeconds", message.into());
        }
    }
    if spec.health_check_port != "traffic-port" && !spec.health_check_port.parse::<u16>().is_ok_and(|port| port > 0) {
        let message = format!("`{}` is no port; expected traffic-port, or 1 to 65535", spec.health_check_port);
        faults.add("spec.healthCheckPort", message);
    }
    let http = is_http(spec.protocol());
    if !http && spec.protocol_version() != Version::Unspecified {
        faults.add("spec.protocolVersion", "is for HTTP and HTTPS; leave it out".into());
    }
    if spec.health_check_protocol() == Protocol::Tls {
        faults.add("spec.healthCheckProtocol", "TLS is not checked; expected HTTP, HTTPS or TCP".into());
    }
    if is_http(spec.health_check_protocol()) && !spec.health_check_path.starts_with('/') {
        let message = format!("`{}` is no path; expected one like /health", spec.health_check_path);
        faults.add("spec.healthCheckPath", message);
    }
    let matcher = spec.matcher.clone().unwrap_or_default();
    for (field, codes, example) in [
        ("httpCode", &matcher.http_code, "200, 200-299 or 200,302"),
        ("grpcCode", &matcher.grpc_code, "0, 0-99 or 0,1"),
    ] {
        if !codes.is_empty() && matches_code(codes, 0).is_none() {
            faults.add(&format!("spec.matcher.{field}"), format!("`{codes}` is none; expected codes like {example}"));
        }
    }
    if let Some(stickiness) = &spec.stickiness {
        let kind = stickiness.r#type.as_str();
        if !matches!(kind, "lb_cookie" | "app_cookie") {
            let message = format!("`{kind}` is unknown; expected lb_cookie or app_cookie");
            faults.add("spec.stickiness.type", message);
        }
        if kind == "app_cookie" && stickiness.cookie_name.is_empty() {
            faults.add("spec.stickiness.cookieName", "is missing; app_cookie needs the application's own".into());
        }
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if !stickiness.cookie_name.bytes().all(is_token) {
            let message = format!("`{}` is no name of a cookie; expected one like SESSION", stickiness.cookie_name);
            faults.add("spec.stickiness.cookieName", message);
        }
        number(faults, "stickiness.durationSeconds", stickiness.duration_seconds, 1, 604_800, "seconds");
        if !http && stickiness.enabled {
            faults.add("spec.stickiness", "needs HTTP: connections have no cookies".into());
        }
    }
}

/// A listener, filled in.
pub(super) fn listener(spec: &ListenerSpec, faults: &mut Faults) {
    name(faults, "spec.loadBalancer", &spec.load_balancer);
    faults.range("spec.port", spec.port.into(), 1, 65535, "");
    faults.range("spec.idleTimeoutSeconds", spec.idle_timeout_seconds().into(), 1, 4000, "seconds");
    let tls = matches!(spec.protocol(), Protocol::Https | Protocol::Tls);
    if tls && spec.certificates.is_empty() {
        let message = format!("is missing; {} needs the name of a Secret", spec.protocol().as_str_name());
        faults.add("spec.certificates", message);
    }
    if !tls && !spec.certificates.is_empty() {
        faults.add("spec.certificates", "is for HTTPS and TLS; leave it out, or change the protocol".into());
    }
    for (i, certificate) in spec.certificates.iter().enumerate() {
        name(faults, &format!("spec.certificates[{i}].certificateArn"), &certificate.certificate_arn);
    }
    actions(&spec.default_actions, "spec.defaultActions", spec.protocol(), faults);
    if !is_http(spec.protocol()) && !spec.rules.is_empty() {
        faults.add("spec.rules", "are for HTTP and HTTPS; leave them out, or change the protocol".into());
    }
    if spec.rules.len() > MAX_RULES {
        faults.add("spec.rules", format!("{} rules; at most {MAX_RULES}", spec.rules.len()));
    }
    let mut priorities = BTreeSet::new();
    for (i, rule) in spec.rules.iter().enumerate() {
        let path = format!("spec.rules[{i}]");
        if !priorities.insert(rule.priority) {
            let message = format!("{} is given twice; each rule has its own", rule.priority);
            faults.add(&format!("{path}.priority"), message);
        }
        check_rule(rule, &path, spec.protocol(), faults);
    }
}

fn check_rule(rule: &Rule, path: &str, protocol: Protocol, faults: &mut Faults) {
    faults.range(&format!("{path}.priority"), rule.priority.into(), 1, 50000, "");
    let count = rule.conditions.len();
    if count == 0 || count > MAX_CONDITIONS {
        faults.add(&format!("{path}.conditions"), format!("{count} conditions; expected 1 to {MAX_CONDITIONS}"));
    }
    for (i, condition) in rule.conditions.iter().enumerate() {
        check_condition(condition, &format!("{path}.conditions[{i}]"), faults);
    }
    actions(&rule.actions, &format!("{path}.actions"), protocol, faults);
}

/// The values of a condition, wherever they are written.
pub fn values(condition: &RuleCondition) -> Vec<&str> {
    let config = match condition.field.as_str() {
        "host-header" => condition.host_header_config.as_ref(),
        "path-pattern" => condition.path_pattern_config.as_ref(),
        "http-request-method" => condition.http_request_method_config.as_ref(),
        "source-ip" => condition.source_ip_config.as_ref(),
        _ => None,
    };
    let long = config.iter().flat_map(|config| &config.values);
    let of_header = condition.http_header_config.iter().flat_map(|config| &config.values);
    condition.values.iter().chain(long).chain(of_header).map(String::as_str).collect()
}

fn check_condition(condition: &RuleCondition, path: &str, faults: &mut Faults) {
    const FIELDS: [&str; 6] =
        ["host-header", "path-pattern", "http-header", "http-request-method", "query-string", "source-ip"];
    let field = condition.field.as_str();
    if !FIELDS.contains(&field) {
        let message = format!("`{field}` is unknown; expected one of {}", FIELDS.join(", "));
        faults.add(&format!("{path}.field"), message);
        return;
    }
    let pairs = condition.query_string_config.as_ref().map_or(0, |config| config.values.len());
    let values = values(condition);
    if values.is_empty() && (field != "query-string" || pairs == 0) {
        faults.add(path, format!("has no values; expected at least one that `{field}` may have"));
    }
    let header = condition.http_header_config.as_ref().map_or("", |config| &config.http_header_name);
    let is_name =
        |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if field == "http-header" && !is_name(header) {
        let message = format!("`{header}` is no name of a header; expected one like User-Agent");
        faults.add(&format!("{path}.httpHeaderConfig.httpHeaderName"), message);
    }
    let pairs = condition.query_string_config.iter().flat_map(|config| &config.values);
    let pairs = pairs.flat_map(|pair| [pair.key.as_str(), pair.value.as_str()]);
    if values.iter().copied().chain(pairs).any(|value| value.bytes().any(|b| b.is_ascii_control())) {
        faults.add(path, "a value has control characters, which no request has".into());
    }
    for value in values {
        if field == "http-request-method" && !is_name(value) {
            faults.add(path, format!("`{value}` is no method; expected one like GET"));
        }
        if value.len() > MAX_PATTERN {
            faults.add(path, format!("a value has {} characters; at most {MAX_PATTERN}", value.len()));
        }
        if field == "source-ip" && parse_cidr(value).is_none() {
            faults.add(path, format!("`{value}` is no range of addresses; expected one like 10.0.0.0/8"));
        }
        if field == "path-pattern" && !value.starts_with(['/', '*']) {
            faults.add(path, format!("`{value}` fits no path; expected one like /img/*"));
        }
    }
}

fn actions(actions: &[Action], path: &str, protocol: Protocol, faults: &mut Faults) {
    let [action] = actions else {
        return faults.add(path, format!("{} actions; expected exactly one", actions.len()));
    };
    let path = format!("{path}[0]");
    if action.r#type != "forward" && !is_http(protocol) {
        let message = format!("`{}` is for HTTP and HTTPS; expected forward", action.r#type);
        return faults.add(&format!("{path}.type"), message);
    }
    match action.r#type.as_str() {
        "forward" => {
            let targets: Vec<(&str, i32)> = forwards(action).collect();
            if targets.is_empty() || targets.len() > MAX_GROUPS {
                let message = format!("leads to {} target groups; expected 1 to {MAX_GROUPS}", targets.len());
                faults.add(&format!("{path}.targetGroupArn"), message);
            }
            let mut seen = BTreeSet::new();
            for (i, (group, weight)) in targets.into_iter().enumerate() {
                let path = format!("{path}.forwardConfig.targetGroups[{i}]");
                name(faults, &format!("{path}.targetGroupArn"), group);
                faults.range(&format!("{path}.weight"), weight.into(), 0, 999, "");
                if !seen.insert(group) {
                    faults.add(&format!("{path}.targetGroupArn"), format!("`{group}` is given twice"));
                }
            }
        }
        "redirect" => {
            let config = action.redirect_config.clone().unwrap_or_default();
            let path = format!("{path}.redirectConfig");
            let code = &config.status_code;
            if !matches!(code.as_str(), "HTTP_301" | "HTTP_302") {
                let message = format!("`{code}` is unknown; expected HTTP_301 or HTTP_302");
                faults.add(&format!("{path}.statusCode"), message);
            }
            let parts = [&config.protocol, &config.host, &config.port, &config.path, &config.query];
            if parts.iter().all(|part| part.is_empty()) {
                faults.add(
                    &path,
                    "leads where the request came from; change at least one of protocol, host, port, path, query"
                        .into(),
                );
            }
            if parts.iter().any(|part| part.bytes().any(|b| b.is_ascii_control() || b == b' ')) {
                faults.add(&path, "has blanks or control characters; encode them".into());
            }
        }
        "fixed-response" => {
            let config = action.fixed_response_config.clone().unwrap_or_default();
            let path = format!("{path}.fixedResponseConfig");
            let code = config.status_code.parse::<u16>().unwrap_or(0);
            if !matches!(code / 100, 2 | 4 | 5) {
                let message = format!("`{}` is out of range; expected 2XX, 4XX or 5XX", config.status_code);
                faults.add(&format!("{path}.statusCode"), message);
            }
            if config.content_type.bytes().any(|b| b.is_ascii_control()) {
                faults
                    .add(&format!("{path}.contentType"), "has control characters; expected one like text/plain".into());
            }
            if config.message_body.len() > MAX_BODY {
                let message = format!("has {} bytes; at most {MAX_BODY}", config.message_body.len());
                faults.add(&format!("{path}.messageBody"), message);
            }
        }
        other => {
            let message = format!("`{other}` is unknown; expected forward, redirect or fixed-response");
            faults.add(&format!("{path}.type"), message);
        }
    }
}

/// How a service or a task set names its target groups.
pub(super) fn load_balancers(balancers: &[LoadBalancer], faults: &mut Faults) {
    const PATH: &str = "spec.loadBalancers";
    if balancers.len() > MAX_GROUPS {
        faults.add(PATH, format!("{} target groups; at most {MAX_GROUPS}", balancers.len()));
    }
    for (i, balancer) in balancers.iter().enumerate() {
        let path = format!("{PATH}[{i}]");
        name(faults, &format!("{path}.targetGroupArn"), &balancer.target_group_arn);
        if balancer.container_name.is_empty() {
            faults.add(
                &format!("{path}.containerName"),
                "is missing; expected a container of the task definition".into(),
            );
        }
        faults.range(&format!("{path}.containerPort"), balancer.container_port.into(), 1, 65535, "");
        let same = |other: &LoadBalancer| {
            other.target_group_arn == balancer.target_group_arn && other.container_port == balancer.container_port
        };
        if balancers[..i].iter().any(same) {
            faults.add(&path, "is given twice".into());
        }
        let rule = balancer.advanced_configuration.as_ref().map_or("", |config| &config.test_listener_rule);
        let priority = rule.split_once('/').map(|(_, priority)| priority);
        if priority.is_some_and(|priority| priority.parse::<u16>().is_err()) {
            let message = format!("`{rule}` is no rule; expected LISTENER, or LISTENER/PRIORITY");
            faults.add(&format!("{path}.advancedConfiguration.testListenerRule"), message);
        }
    }
}

/// How a service is found by name.
pub(super) fn registries(service: &str, registries: &[ServiceRegistry], faults: &mut Faults) {
    const PATH: &str = "spec.serviceRegistries";
    if registries.len() > 1 {
        faults.add(PATH, format!("{} names; at most 1 (as ECS)", registries.len()));
    }
    for (i, registry) in registries.iter().enumerate() {
        let path = format!("{PATH}[{i}]");
        let name = discovery::name(registry, service);
        let is_label = |name: &str| {
            let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
            let inner = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            name.len() <= 63 && inner && edge(name.bytes().next()) && edge(name.bytes().last())
        };
        if !is_label(name) {
            let message = format!("`{name}` is no name in DNS; expected at most 63 letters, digits and `-`");
            faults.add(&format!("{path}.registryArn"), message);
        }
        if registry.container_name.is_empty() != (registry.container_port == 0) {
            faults.add(&path, "names a container or a port; expected both, or none".into());
        }
        faults.range(&format!("{path}.containerPort"), registry.container_port.into(), 0, 65535, "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::{fill_listener, fill_target_group};
    use steady_proto::v1::{RedirectConfig, Stickiness};

    fn said(faults: &Faults) -> Vec<String> {
        faults.found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_target_group_that_says_nothing_is_complete_and_a_wrong_one_is_told_everything() {
        let mut spec = TargetGroupSpec::default();
        fill_target_group(&mut spec);
        let mut faults = Faults::default();
        target_group(&spec, &mut faults);
        assert_eq!(said(&faults), Vec::<String>::new());
        let stickiness = Stickiness { enabled: true, r#type: "app_cookie".into(), ..Stickiness::default() };
        let mut wrong = TargetGroupSpec {
            health_check_interval_seconds: Some(0),
            health_check_port: "web".into(),
            health_check_path: "health".into(),
            slow_start_seconds: Some(10),
            stickiness: Some(stickiness),
            matcher: Some(steady_proto::v1::Matcher { http_code: "2xx".into(), ..<_>::default() }),
            ..TargetGroupSpec::default()
        };
        fill_target_group(&mut wrong);
        target_group(&wrong, &mut faults);
        let found = said(&faults);
        assert_eq!(found.len(), 6, "{found:#?}");
        assert!(found[4].starts_with("spec.matcher.httpCode: `2xx` is none; expected codes like 200"), "{found:#?}");
    }

    #[test]
    fn a_listener_s_rules_and_actions_are_looked_at_one_by_one() {
        let forward =
            |group: &str| Action { r#type: "forward".into(), target_group_arn: group.into(), ..Action::default() };
        let condition = |field: &str, values: &[&str]| RuleCondition {
            field: field.into(),
            values: values.iter().map(|v| (*v).to_owned()).collect(),
            ..RuleCondition::default()
        };
        let rule = |priority, condition| Rule { priority, conditions: vec![condition], actions: vec![forward("web")] };
        let mut spec = ListenerSpec {
            port: 80,
            default_actions: vec![forward("web")],
            rules: vec![rule(1, condition("path-pattern", &["/a/*"])), rule(2, condition("host-header", &["*.b.c"]))],
            ..ListenerSpec::default()
        };
        fill_listener(&mut spec);
        let mut faults = Faults::default();
        listener(&spec, &mut faults);
        assert_eq!(said(&faults), Vec::<String>::new());
        spec.rules.push(rule(2, condition("path", &["a"])));
        spec.rules.push(rule(0, condition("source-ip", &["10.0.0.1/8"])));
        spec.rules.push(Rule { actions: vec![], ..rule(7, condition("path-pattern", &[])) });
        spec.default_actions[0] = Action {
            r#type: "redirect".into(),
            redirect_config: Some(RedirectConfig { status_code: "HTTP_307".into(), ..RedirectConfig::default() }),
            ..Action::default()
        };
        listener(&spec, &mut faults);
        let found = said(&faults);
        assert_eq!(found.len(), 8, "{found:#?}");
        assert!(found.iter().any(|f| f.starts_with("spec.rules[2].conditions[0].field: `path` is unknown")));
    }
}
