//! `steady describe targetgroup/NAME` and `listener/NAME`: who gets requests, and why not.

use std::sync::Arc;

use steady_core::traffic::{forwards, target_groups};
use steady_core::v1::target_state::Value as State;
use steady_core::{Kind, task};
use steady_proto::v1::{Action, Object, Target};

use super::Page;
use crate::columns::short_id;
use crate::world::World;

/// How a target is, in a line: its address, its state, and what was found.
pub(super) fn target(target: &Target) -> String {
    let (address, port, state) = (&target.address, target.port, target.state().as_str_name());
    let why = if target.state() == State::Healthy { "" } else { target.description.as_str() };
    let reason = if why.is_empty() { String::new() } else { format!("  {} ({why})", target.reason) };
    format!("{address}:{port}  {state}{reason}")
}

/// What an action does, in words.
pub(super) fn action(action: &Action) -> String {
    match action.r#type.as_str() {
        "forward" => {
            let groups: Vec<(&str, i32)> = forwards(action).collect();
            let one = groups.len() == 1;
            let named =
                groups.iter().map(|(name, weight)| if one { (*name).to_owned() } else { format!("{name} ({weight})") });
            format!("forward to {}", named.collect::<Vec<_>>().join(", "))
        }
        "redirect" => "redirect".to_owned(),
        _ => {
            let status = action.fixed_response_config.as_ref().map_or("", |config| &config.status_code);
            format!("answer {status}")
        }
    }
}

pub(super) fn group(page: &mut Page, object: &Object, world: &World) {
    let spec = object.as_target_group().and_then(|group| group.spec.clone()).unwrap_or_default();
    page.field("Protocol", spec.protocol().as_str_name());
    let check = if spec.health_check_enabled() {
        let (protocol, path) = (spec.health_check_protocol().as_str_name(), &spec.health_check_path);
        let (every, limit) = (spec.health_check_interval_seconds(), spec.health_check_timeout_seconds());
        let (good, bad) = (spec.healthy_threshold_count(), spec.unhealthy_threshold_count());
        format!("{protocol} {path} every {every} s, {limit} s each; {good} good or {bad} bad ones in a row decide")
    } else {
        "disabled".to_owned()
    };
    page.field("Health check", &check);
    page.field("Algorithm", spec.load_balancing_algorithm_type().as_str_name());
    page.field(
        "Deregistration",
        &format!("waits {} s at most for requests to end", spec.deregistration_delay_seconds()),
    );
    let listeners = world.view.in_cluster(Kind::Listener, object.cluster());
    let leading = listeners.filter(|listener| {
        let spec = listener.as_listener().and_then(|listener| listener.spec.as_ref());
        spec.is_some_and(|spec| target_groups(spec).any(|name| name == object.name()))
    });
    let leading: Vec<&str> = leading.map(|listener| listener.name()).collect();
    page.field("Listeners", &leading.join(", "));
    page.section("Targets");
    let mut tasks: Vec<&Arc<Object>> = world.view.in_cluster(Kind::Task, object.cluster()).collect();
    tasks.sort_by_key(|task| task.name());
    let mut any = false;
    for (task_object, found) in tasks.into_iter().filter_map(|object| Some((object, task::of(object)?))) {
        let its = found.status.targets.iter().filter(|target| target.target_group == object.name());
        for its in its {
            any = true;
            let service = &found.spec.service;
            page.line(&format!("{}  {service}  {}", short_id(task_object.name()), target(its)));
        }
    }
    if !any {
        page.line("none: no running task has it (loadBalancers of a service)");
    }
}

pub(super) fn listener(page: &mut Page, object: &Object) {
    let spec = object.as_listener().and_then(|listener| listener.spec.clone()).unwrap_or_default();
    page.field("Load balancer", &spec.load_balancer);
    page.field("Listens", &format!("{} at port {}", spec.protocol().as_str_name(), spec.port));
    let certificates: Vec<&str> = spec.certificates.iter().map(|c| c.certificate_arn.as_str()).collect();
    page.field("Certificates", &certificates.join(", "));
    page.section("Rules");
    let mut rules: Vec<_> = spec.rules.iter().collect();
    rules.sort_by_key(|rule| rule.priority);
    for rule in rules {
        let conditions: Vec<String> = rule
            .conditions
            .iter()
            .map(|condition| {
                let pairs = condition.query_string_config.iter().flat_map(|config| &config.values);
                let pairs = pairs.map(|pair| format!("{}={}", pair.key, pair.value));
                let values = steady_core::validate::condition_values(condition).into_iter().map(str::to_owned);
                let header = condition.http_header_config.as_ref().map_or("", |config| &config.http_header_name);
                let field = if header.is_empty() { &condition.field } else { header };
                format!("{field} {}", values.chain(pairs).collect::<Vec<_>>().join(" or "))
            })
            .collect();
        let does = rule.actions.first().map(action).unwrap_or_default();
        page.line(&format!("{:<6} {} → {does}", rule.priority, conditions.join(" and ")));
    }
    page.line(&format!("{:<6} → {}", "else", spec.default_actions.first().map(action).unwrap_or_default()));
}
