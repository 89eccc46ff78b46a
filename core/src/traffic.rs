//! Where requests for tasks go in: which tasks are targets, how healthy they are, and when they have left.
//!
//! A task is registered in the transaction that makes it RUNNING, and drains from the one that has it stop: load balancers see both
//! at once. It may stop when its targets are gone.

use std::collections::BTreeSet;
use std::time::Duration;

use steady_proto::Kind;
use steady_proto::v1::target_state::Value as State;
use steady_proto::v1::traffic_protocol::Value as Protocol;
use steady_proto::v1::{
    Action, ListenerSpec, LoadBalancer, Target, TargetGroupSpec, TargetGroupTuple, TargetReport, TaskSpec, TaskStatus,
};

use crate::{Key, Timestamp, View, security};

/// Load balancers of listeners that name none.
pub const DEFAULT_LOAD_BALANCER: &str = "default";
/// Seconds that a target's requests may take to end when its group does not say.
pub const DEREGISTRATION_DELAY: i32 = 300;

/// Elastic Load Balancing's reasons.
pub mod reason {
    /// Nobody has looked at it yet.
    pub const REGISTRATION: &str = "Elb.RegistrationInProgress";
    /// The first checks are under way.
    pub const INITIAL: &str = "Elb.InitialHealthChecking";
    /// It is about to stop.
    pub const DEREGISTRATION: &str = "Target.DeregistrationInProgress";
    /// Another answer than the matcher's.
    pub const MISMATCH: &str = "Target.ResponseCodeMismatch";
    /// No answer in time.
    pub const TIMEOUT: &str = "Target.Timeout";
    /// No connection, or no answer that is HTTP.
    pub const FAILED: &str = "Target.FailedHealthChecks";
}

/// The name in an ARN of a target group (`…:targetgroup/NAME/ID`) or a secret (`…:secret:NAME`), or the name itself.
pub fn name_of(arn: &str) -> &str {
    if !arn.starts_with("arn:") {
        return arn;
    }
    let rest = arn.rsplit(':').next().unwrap_or(arn);
    rest.split('/').nth(1).unwrap_or(rest)
}

/// Whether load balancers send a task requests.
pub fn is_behind(spec: &TaskSpec) -> bool {
    !spec.load_balancers.is_empty()
}

/// Where a port of a container answers: at the task's own address, or at its instance's.
pub fn endpoint<'a>(status: &'a TaskStatus, container: &str, port: i32) -> Option<(&'a str, i32)> {
    if let Some(own) = security::address(status) {
        return Some((own, port));
    }
    let container = status.containers.iter().find(|c| c.name == container)?;
    let binding = container.network_bindings.iter().find(|binding| binding.container_port == port)?;
    Some((&binding.bind_ip, binding.host_port))
}

/// Targets of a task that has just become RUNNING. `delay` is how long each group lets requests end, seconds.
pub fn registered(spec: &TaskSpec, status: &TaskStatus, delay: impl Fn(&str) -> i32) -> Vec<Target> {
    let target = |balancer: &LoadBalancer| {
        let (address, port) = endpoint(status, &balancer.container_name, balancer.container_port)?;
        Some(Target {
            target_group: balancer.target_group_arn.clone(),
            container_name: balancer.container_name.clone(),
            container_port: balancer.container_port,
            address: address.to_owned(),
            port,
            state: State::Initial.into(),
            reason: reason::REGISTRATION.to_owned(),
            description: "Target registration is in progress".to_owned(),
            deregistration_delay_seconds: delay(&balancer.target_group_arn),
            ..Target::default()
        })
    };
    spec.load_balancers.iter().filter_map(target).collect()
}

/// The targets of a task that is to stop.
pub fn drain(targets: &mut [Target], now: Timestamp) {
    for target in targets.iter_mut().filter(|target| target.state() != State::Draining) {
        let delay = Duration::from_secs(u64::from(target.deregistration_delay_seconds.unsigned_abs()));
        target.set_state(State::Draining);
        reason::DEREGISTRATION.clone_into(&mut target.reason);
        "Target deregistration is in progress".clone_into(&mut target.description);
        target.draining_until = Some((now + delay).into());
    }
}

/// Takes in what a load balancer says of a target, and what that makes it: healthy for one, it is healthy; unhealthy, when it is so for
/// all that have looked.
pub fn report(target: &mut Target, report: TargetReport) {
    target.reports.retain(|known| known.load_balancer != report.load_balancer);
    target.reports.push(report);
    target.reports.sort_by(|a, b| a.load_balancer.cmp(&b.load_balancer));
    judge(target);
}

/// Whether a load balancer that has looked at a target may send it requests: it is there, or its data plane goes on without it, and none
/// of the same name has taken that over.
pub fn sends(report: &TargetReport, there: &BTreeSet<String>) -> bool {
    // `GROUP.NAME-PROCESS`.
    let place = |name: &'_ str| name.rsplit_once('-').map_or_else(|| name.to_owned(), |(place, _)| place.to_owned());
    let own = place(&report.load_balancer);
    there.contains(&report.load_balancer) || (report.goes_on && !there.iter().any(|other| place(other) == own))
}

/// Forgets what load balancers say that are not there any more, as long as there are others that have said something.
pub fn forget(target: &mut Target, there: &BTreeSet<String>) {
    if target.reports.iter().any(|report| there.contains(&report.load_balancer)) {
        target.reports.retain(|report| sends(report, there));
        // It may send requests, but looks at nothing.
        for gone in target.reports.iter_mut().filter(|report| !there.contains(&report.load_balancer)) {
            gone.set_state(State::Unspecified);
            gone.reason.clear();
            gone.description.clear();
        }
        judge(target);
    }
}

fn judge(target: &mut Target) {
    if target.state() == State::Draining {
        return;
    }
    let looked = |state: State| target.reports.iter().find(move |report| report.state() == state);
    let (found, state) = match (looked(State::Healthy), looked(State::Unhealthy)) {
        (Some(healthy), _) => (healthy, State::Healthy),
        (None, Some(unhealthy)) if !target.reports.iter().any(|r| r.state() == State::Initial) => {
            (unhealthy, State::Unhealthy)
        }
        _ => return,
    };
    (target.reason, target.description) = (found.reason.clone(), found.description.clone());
    target.set_state(state);
}

/// Whether every request that a draining target had is over. `theirs` are the load balancers that send requests to its group. How
/// long they may take is the agent's to count, who has nobody's clock but its own.
pub fn has_drained(target: &Target, theirs: &BTreeSet<String>) -> bool {
    let told = |name: &String| {
        target.reports.iter().any(|report| report.load_balancer == *name && report.state() == State::Draining)
    };
    target.state() == State::Draining && theirs.iter().all(told)
}

/// Name of the lease that says that a load balancer is there.
pub fn lease(cluster: &str, group: &str, name: &str) -> String {
    format!("lb.{cluster}.{group}.{name}")
}

/// Cluster, group and name of a load balancer, of the name of its lease.
pub fn of_lease(name: &str) -> Option<(&str, &str, &str)> {
    let mut parts = name.strip_prefix("lb.")?.splitn(3, '.');
    Some((parts.next()?, parts.next()?, parts.next()?))
}

/// Load balancers of a cluster that are there, as `GROUP.NAME`.
pub fn load_balancers(view: &View, cluster: &str) -> BTreeSet<String> {
    let from = Key::new(Kind::Lease, "", &format!("lb.{cluster}."));
    let prefix = from.name.clone();
    let leases = view.range(from..).take_while(|(key, _)| key.kind == Kind::Lease && key.name.starts_with(&*prefix));
    leases.filter_map(|(key, _)| key.name.strip_prefix(&*prefix).map(str::to_owned)).collect()
}

/// Groups of load balancers that send requests to a target group.
pub fn groups_of<'a>(view: &'a View, cluster: &str, target_group: &str) -> BTreeSet<&'a str> {
    let listeners = view.in_cluster(Kind::Listener, cluster).filter_map(|l| l.as_listener()?.spec.as_ref());
    let uses = |spec: &&ListenerSpec| target_groups(spec).any(|name| name == target_group);
    listeners.filter(uses).map(|spec| spec.load_balancer.as_str()).collect()
}

/// Target groups that a listener's requests go to.
pub fn target_groups(spec: &ListenerSpec) -> impl Iterator<Item = &str> {
    let of_rules = spec.rules.iter().flat_map(|rule| &rule.actions);
    spec.default_actions.iter().chain(of_rules).flat_map(forwards).map(|(name, _)| name)
}

/// Where a forward action leads, with weights.
pub fn forwards(action: &Action) -> impl Iterator<Item = (&str, i32)> {
    let short = Some((action.target_group_arn.as_str(), 1)).filter(|(name, _)| !name.is_empty());
    let tuple = |tuple: &'_ TargetGroupTuple| tuple.weight.unwrap_or(1);
    let long = action.forward_config.iter().flat_map(|config| &config.target_groups);
    let long: Vec<(&str, i32)> = long.map(|t| (t.target_group_arn.as_str(), tuple(t))).collect();
    // Both may be given where they say the same (Elastic Load Balancing).
    short.filter(|_| long.is_empty()).into_iter().chain(long)
}

/// Whether requests are looked at one by one, and rules apply.
pub fn is_http(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Http | Protocol::Https | Protocol::Unspecified)
}

/// Whether an answer's code is one of a matcher's: `200`, `200-299`, `200,302`. `None`: the matcher is none.
pub fn matches_code(matcher: &str, code: u16) -> Option<bool> {
    let mut fits = false;
    for part in matcher.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to) = (from.trim().parse::<u16>().ok()?, to.trim().parse::<u16>().ok()?);
        fits |= (from..=to).contains(&code);
    }
    Some(fits)
}

/// Everything that a group leaves open, filled in.
pub fn fill_target_group(spec: &mut TargetGroupSpec) {
    use steady_proto::v1::load_balancing_algorithm::Value as Algorithm;
    use steady_proto::v1::protocol_version::Value as Version;
    if spec.protocol() == Protocol::Unspecified {
        spec.set_protocol(Protocol::Http);
    }
    let http = is_http(spec.protocol());
    if http && spec.protocol_version() == Version::Unspecified {
        spec.set_protocol_version(Version::Http1);
    }
    let grpc = spec.protocol_version() == Version::Grpc;
    if spec.health_check_protocol() == Protocol::Unspecified {
        spec.set_health_check_protocol(if http { spec.protocol() } else { Protocol::Tcp });
    }
    let checks_http = is_http(spec.health_check_protocol());
    if spec.health_check_path.is_empty() && checks_http {
        if grpc { "/AWS.ALB/healthcheck" } else { "/" }.clone_into(&mut spec.health_check_path);
    }
    if spec.health_check_port.is_empty() {
        "traffic-port".clone_into(&mut spec.health_check_port);
    }
    let matcher = spec.matcher.get_or_insert_default();
    if grpc && matcher.grpc_code.is_empty() {
        "12".clone_into(&mut matcher.grpc_code);
    }
    if !grpc && checks_http && matcher.http_code.is_empty() {
        "200".clone_into(&mut matcher.http_code);
    }
    spec.health_check_enabled.get_or_insert(true);
    spec.health_check_interval_seconds.get_or_insert(30);
    spec.health_check_timeout_seconds.get_or_insert(if checks_http { 6 } else { 10 });
    spec.healthy_threshold_count.get_or_insert(5);
    spec.unhealthy_threshold_count.get_or_insert(2);
    spec.deregistration_delay_seconds.get_or_insert(DEREGISTRATION_DELAY);
    spec.slow_start_seconds.get_or_insert(0);
    if spec.load_balancing_algorithm_type() == Algorithm::Unspecified {
        spec.set_load_balancing_algorithm_type(Algorithm::RoundRobin);
    }
    if let Some(stickiness) = &mut spec.stickiness {
        if stickiness.r#type.is_empty() {
            "lb_cookie".clone_into(&mut stickiness.r#type);
        }
        stickiness.duration_seconds.get_or_insert(86400);
    }
}

/// Everything that a listener leaves open, filled in; ARNs become names.
pub fn fill_listener(spec: &mut ListenerSpec) {
    if spec.load_balancer.is_empty() {
        DEFAULT_LOAD_BALANCER.clone_into(&mut spec.load_balancer);
    }
    if spec.protocol() == Protocol::Unspecified {
        spec.set_protocol(Protocol::Http);
    }
    spec.idle_timeout_seconds.get_or_insert(60);
    for certificate in &mut spec.certificates {
        certificate.certificate_arn = name_of(&certificate.certificate_arn).to_owned();
    }
    let of_rules = spec.rules.iter_mut().flat_map(|rule| &mut rule.actions);
    for action in spec.default_actions.iter_mut().chain(of_rules) {
        action.target_group_arn = name_of(&action.target_group_arn).to_owned();
        for tuple in action.forward_config.iter_mut().flat_map(|config| &mut config.target_groups) {
            tuple.target_group_arn = name_of(&tuple.target_group_arn).to_owned();
            tuple.weight.get_or_insert(1);
        }
    }
}

/// ARNs of target groups become names.
pub fn fill_load_balancers(balancers: &mut [LoadBalancer]) {
    for balancer in balancers {
        balancer.target_group_arn = name_of(&balancer.target_group_arn).to_owned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_proto::v1::{Container, NetworkBinding};

    fn said(balancer: &str, state: State) -> TargetReport {
        TargetReport { load_balancer: balancer.into(), state: state.into(), ..TargetReport::default() }
    }

    fn target() -> Target {
        let mut target = Target { deregistration_delay_seconds: 30, ..Target::default() };
        target.set_state(State::Initial);
        target
    }

    #[test]
    fn a_target_is_healthy_when_one_load_balancer_finds_it_so_and_unhealthy_when_all_do() {
        let mut t = target();
        report(&mut t, said("d.a", State::Unhealthy));
        assert_eq!(t.state(), State::Unhealthy);
        report(&mut t, said("d.b", State::Healthy));
        assert_eq!(t.state(), State::Healthy);
        report(&mut t, said("d.b", State::Unhealthy));
        assert_eq!((t.state(), t.reports.len()), (State::Unhealthy, 2));
        // One that is gone has no say, unless it was the only one.
        report(&mut t, said("d.b", State::Healthy));
        forget(&mut t, &BTreeSet::from(["d.a".to_owned()]));
        assert_eq!((t.state(), t.reports.len()), (State::Unhealthy, 1));
        forget(&mut t, &BTreeSet::new());
        assert_eq!(t.reports.len(), 1);
    }

    #[test]
    fn what_goes_on_without_its_load_balancer_is_reckoned_with_but_has_no_say() {
        let (mut t, there) = (target(), |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect());
        let goes_on = TargetReport { goes_on: true, ..said("d.edge-7", State::Healthy) };
        report(&mut t, goes_on);
        report(&mut t, said("d.b-1", State::Unhealthy));
        forget(&mut t, &there(&["d.b-1"]));
        assert_eq!((t.state(), t.reports.len()), (State::Unhealthy, 2));
        assert!(sends(&t.reports[1], &there(&[])) && !sends(&t.reports[0], &there(&[])));
        assert!(!sends(&t.reports[1], &there(&["d.edge-8"])), "the next one has taken it over");
        forget(&mut t, &there(&["d.b-1", "d.edge-8"]));
        assert_eq!(t.reports.len(), 1);
    }

    #[test]
    fn a_target_has_drained_when_all_say_so() {
        let mut t = target();
        report(&mut t, said("d.a", State::Healthy));
        let now = Timestamp(1_000_000_000);
        assert!(!has_drained(&t, &BTreeSet::new()), "it is not even draining");
        drain(std::slice::from_mut(&mut t), now);
        let both = BTreeSet::from(["d.a".to_owned(), "d.b".to_owned()]);
        assert!(has_drained(&t, &BTreeSet::new()), "nobody sends it anything");
        report(&mut t, said("d.a", State::Draining));
        assert!(!has_drained(&t, &both));
        report(&mut t, said("d.b", State::Draining));
        assert!(has_drained(&t, &both) && t.state() == State::Draining);
        // Draining again does not make it longer.
        let until = t.draining_until;
        drain(std::slice::from_mut(&mut t), now + Duration::from_secs(10));
        assert_eq!(t.draining_until, until);
    }

    #[test]
    fn a_task_is_registered_where_its_port_answers() {
        let binding = NetworkBinding { bind_ip: "10.0.0.7".into(), container_port: 80, host_port: 32768, protocol: 0 };
        let container = Container { name: "web".into(), network_bindings: vec![binding], ..Container::default() };
        let status = TaskStatus { containers: vec![container], ..TaskStatus::default() };
        let balancer = |port| LoadBalancer {
            target_group_arn: "web".into(),
            container_name: "web".into(),
            container_port: port,
            advanced_configuration: None,
        };
        let spec = TaskSpec { load_balancers: vec![balancer(80), balancer(81)], ..TaskSpec::default() };
        let targets = registered(&spec, &status, |_| 7);
        assert_eq!(targets.len(), 1, "a port that is nowhere is no target");
        assert_eq!((targets[0].address.as_str(), targets[0].port), ("10.0.0.7", 32768));
        assert_eq!((targets[0].state(), targets[0].deregistration_delay_seconds), (State::Initial, 7));
    }

    #[test]
    fn names_are_found_in_arns_and_codes_in_matchers() {
        assert_eq!(name_of("web"), "web");
        assert_eq!(name_of("arn:aws:elasticloadbalancing:eu-west-1:1:targetgroup/web/73e2d6bc24d8a067"), "web");
        assert_eq!(name_of("arn:aws:secretsmanager:eu-west-1:1:secret:cert"), "cert");
        assert_eq!(matches_code("200,300-302", 301), Some(true));
        assert_eq!(matches_code("200,300-302", 303), Some(false));
        assert_eq!(matches_code("2xx", 200), None);
        assert_eq!(of_lease("lb.default.edge.m1"), Some(("default", "edge", "m1")));
        assert_eq!(of_lease("instance.default.m1"), None);
    }
}
