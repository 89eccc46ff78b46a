//! A table as resources of xDS. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use prost::Message;
use prost_types::{Any, Duration};
use steady_core::traffic::is_http;
use steady_core::v1::RedirectConfig;
use steady_core::v1::load_balancing_algorithm::Value as Algorithm;

use super::proto::{
    Address, Ads, ApiListener, CircuitBreakers, Cluster, ClusterLoadAssignment, ClusterWeight,
    CommonHttpProtocolOptions, CommonLbConfig, CommonTlsContext, ConfigSource, DataSource, DirectResponse,
    DownstreamTlsContext, EdsClusterConfig, Endpoint, ExplicitHttpConfig, Filter, FilterChain, HeaderMatcher,
    HeaderValue, HeaderValueOption, Http1ProtocolOptions, Http2ProtocolOptions, HttpConnectionManager,
    HttpProtocolOptions, LbEndpoint, Locality, LocalityLbEndpoints, LocalityWeighted, Percent, Rds, RedirectAction,
    RegexMatcher, RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, SocketAddress, TcpCluster,
    TcpClusters, TcpProxy, Thresholds, TlsCertificate, TlsParameters, TransportSocket, UpgradeConfig,
    UpstreamTlsContext, VirtualHost, WeightedCluster,
};
use super::proto::{Listener as XdsListener, route, route_action, route_match, tcp_proxy};
use crate::group::{Spoken, spoken};
use crate::pattern;
use crate::rule::Condition;
use crate::table::{Does, Forward, Listener, Rule, Share, Table};
use crate::tls::Certificates;

/// What clients ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    // What others name comes before what names it.
    Cluster,
    Endpoints,
    Listener,
    Routes,
}

impl Kind {
    pub(crate) const ALL: [Kind; 4] = [Kind::Cluster, Kind::Endpoints, Kind::Listener, Kind::Routes];

    /// As requests and resources call it.
    pub(crate) fn url(self) -> &'static str {
        match self {
            Kind::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Kind::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Kind::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Kind::Routes => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }
}

const MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const TCP_PROXY: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const DOWNSTREAM_TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
const UPSTREAM_TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Parts of a locality's weight.
const PARTS: f64 = 10_000.0;

type Named = BTreeMap<String, Arc<Any>>;

/// Where more of Envoy's circuit breakers are: of no use, since nobody has said how much is too much.
const UNLIMITED: u32 = 1_000_000;
/// How long a connection to a target is kept that has nothing to do.
const IDLE: Duration = Duration { seconds: 30, nanos: 0 };

/// All that there is.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Resources {
    kinds: BTreeMap<Kind, Named>,
    /// Listeners and clusters for clients that are their own proxies (gRPC): they ask for each by its name.
    by_name: BTreeMap<Kind, Named>,
    /// Listeners that cannot be said, and why.
    pub(crate) refused: BTreeMap<String, String>,
}

impl Resources {
    /// What a table says. Listeners are opened at this address.
    pub(crate) fn of(table: &Table, address: IpAddr, certificates: &Certificates) -> Self {
        let mut all = Resources::default();
        for listener in table.listeners.values() {
            if let Err(why) = all.listener(listener, address, certificates) {
                all.refused.insert(listener.name.clone(), why);
            }
        }
        all
    }

    /// Those of a kind that a client wants: all, when it names none.
    pub(crate) fn wanted<'a>(&self, kind: Kind, names: Option<impl Iterator<Item = &'a str>>) -> Vec<Arc<Any>> {
        let everything = self.kinds.get(&kind);
        let Some(names) = names else {
            return everything.into_iter().flat_map(|all| all.values().cloned()).collect();
        };
        // Whoever asks by name opens no port.
        let all = self.by_name.get(&kind).or(everything);
        names.filter_map(|name| all?.get(name).cloned()).collect()
    }

    /// These, with clusters that the others have besides.
    pub(crate) fn with_clusters_of(mut self, others: &Resources) -> Self {
        let both = [(&mut self.kinds, &others.kinds), (&mut self.by_name, &others.by_name)];
        for (kinds, others) in both {
            for kind in [Kind::Cluster, Kind::Endpoints] {
                for (name, resource) in others.get(&kind).into_iter().flatten() {
                    let known = kinds.entry(kind).or_default();
                    known.entry(name.clone()).or_insert_with(|| Arc::clone(resource));
                }
            }
        }
        self
    }

    /// Whether these name clusters that the others have not.
    pub(crate) fn has_more_clusters_than(&self, others: &Resources) -> bool {
        let none = Named::new();
        let known = others.kinds.get(&Kind::Cluster).unwrap_or(&none);
        self.kinds.get(&Kind::Cluster).is_some_and(|all| all.keys().any(|name| !known.contains_key(name)))
    }

    fn put_by_name(&mut self, kind: Kind, name: &str, message: &impl Message) {
        self.by_name.entry(kind).or_default().insert(name.to_owned(), Arc::new(any(kind.url(), message)));
    }

    fn put(&mut self, kind: Kind, name: &str, message: &impl Message) {
        self.kinds.entry(kind).or_default().insert(name.to_owned(), Arc::new(any(kind.url(), message)));
    }

    fn listener(&mut self, listener: &Listener, address: IpAddr, certificates: &Certificates) -> Result<(), String> {
        let (name, http) = (&listener.name, is_http(listener.protocol));
        let idle = Duration { seconds: listener.idle.as_secs() as i64, nanos: 0 };
        let mut shares = listener.actions().filter_map(|(_, does)| does.forward()).flat_map(Forward::shares);
        if let Some(share) = shares.find(|share| share.group.is_sticky()) {
            return Err(format!("target group {}: stickiness is not said by xDS", share.group.name));
        }
        let transport_socket = encryption(listener, certificates)?;
        let filter = if http {
            let mut routes = Vec::new();
            for rule in &listener.rules {
                for matches in matches(rule)? {
                    routes.push(route_of(listener, &rule.priority.to_string(), matches, &rule.does, idle)?);
                }
            }
            let all = RouteMatch { path_specifier: Some(prefix("/")), headers: Vec::new() };
            routes.push(route_of(listener, "default", all, &listener.otherwise, idle)?);
            let manager = |routes: &str| {
                let last = Filter { name: "envoy.filters.http.router".into(), typed_config: Some(empty(ROUTER)) };
                let manager = HttpConnectionManager {
                    stat_prefix: name.clone(),
                    rds: Some(Rds { config_source: Some(ads()), route_config_name: routes.to_owned() }),
                    http_filters: vec![last],
                    use_remote_address: Some(true),
                    upgrade_configs: vec![UpgradeConfig { upgrade_type: "websocket".into() }],
                    stream_idle_timeout: Some(idle),
                };
                any(MANAGER, &manager)
            };
            self.routes(name, routes.clone());
            match for_grpc(listener, routes) {
                Ok(routes) => {
                    let of_grpc = format!("grpc:{name}");
                    self.routes(&of_grpc, routes);
                    let api_listener = Some(ApiListener { api_listener: Some(manager(&of_grpc)) });
                    let by_name = XdsListener { name: name.clone(), api_listener, ..XdsListener::default() };
                    self.put_by_name(Kind::Listener, name, &by_name);
                }
                Err(why) => drop(self.refused.insert(format!("{name} (gRPC clients)"), why)),
            }
            let typed_config = Some(manager(name));
            Filter { name: "envoy.filters.network.http_connection_manager".into(), typed_config }
        } else {
            let forward = listener.forward().ok_or("it forwards nothing")?;
            let proxy = TcpProxy {
                stat_prefix: name.clone(),
                max_connect_attempts: Some(4),
                idle_timeout: Some(idle),
                cluster_specifier: Some(tcp_clusters(listener, forward).ok_or("it forwards to nobody")?),
            };
            Filter { name: "envoy.filters.network.tcp_proxy".into(), typed_config: Some(any(TCP_PROXY, &proxy)) }
        };
        let chain = FilterChain { filters: vec![filter], transport_socket };
        let address = Some(socket(address, listener.port));
        let opened = XdsListener { name: name.clone(), address, filter_chains: vec![chain], api_listener: None };
        self.put(Kind::Listener, name, &opened);
        for (rule, does) in listener.actions() {
            for share in does.forward().into_iter().flat_map(Forward::shares) {
                self.cluster(&listener.backend(&rule, &share.group), share, http);
            }
        }
        Ok(())
    }

    fn routes(&mut self, name: &str, routes: Vec<Route>) {
        let host = VirtualHost { name: name.to_owned(), domains: vec!["*".into()], routes };
        self.put(Kind::Routes, name, &RouteConfiguration { name: name.to_owned(), virtual_hosts: vec![host] });
    }

    fn cluster(&mut self, name: &str, share: &Share, http: bool) {
        let spec = &share.group.spec;
        let Spoken { tls, http2 } = spoken(spec, http);
        let tls = tls.then(|| {
            let alpn_protocols = if http2 { vec!["h2".to_owned()] } else { Vec::new() };
            let tls_params = Some(TlsParameters { tls_maximum_protocol_version: 4 });
            let common = CommonTlsContext { tls_params, alpn_protocols, ..CommonTlsContext::default() };
            let context = UpstreamTlsContext { common_tls_context: Some(common) };
            let name = "envoy.transport_sockets.tls".into();
            TransportSocket { name, typed_config: Some(any(UPSTREAM_TLS, &context)) }
        });
        let options = HttpProtocolOptions {
            common_http_protocol_options: Some(CommonHttpProtocolOptions { idle_timeout: Some(IDLE) }),
            explicit_http_config: Some(ExplicitHttpConfig {
                http_protocol_options: (!http2).then_some(Http1ProtocolOptions {}),
                http2_protocol_options: http2.then_some(Http2ProtocolOptions {}),
            }),
        };
        let options = (HTTP_OPTIONS.to_owned(), any(&format!("type.googleapis.com/{HTTP_OPTIONS}"), &options));
        let least = spec.load_balancing_algorithm_type() == Algorithm::LeastOutstandingRequests;
        let many = Thresholds {
            max_connections: Some(UNLIMITED),
            max_pending_requests: Some(UNLIMITED),
            max_requests: Some(UNLIMITED),
            max_retries: Some(UNLIMITED),
        };
        // What gRPC clients take is no more than this: encryption is theirs to decide, and they take turns.
        let plain = Cluster {
            name: name.to_owned(),
            r#type: 3,
            eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(ads()) }),
            connect_timeout: Some(Duration { seconds: 3, nanos: 0 }),
            circuit_breakers: Some(CircuitBreakers { thresholds: vec![many] }),
            ..Cluster::default()
        };
        self.put_by_name(Kind::Cluster, name, &plain);
        let cluster = Cluster {
            lb_policy: u32::from(least),
            transport_socket: tls,
            // Who is told of is fit: there is nothing to be afraid of.
            common_lb_config: Some(CommonLbConfig {
                healthy_panic_threshold: Some(Percent { value: 0.0 }),
                locality_weighted_lb_config: Some(LocalityWeighted {}),
            }),
            typed_extension_protocol_options: http.then_some(options).into_iter().collect(),
            ..plain
        };
        self.put(Kind::Cluster, name, &cluster);
        self.put(Kind::Endpoints, name, &assignment(name, share));
    }
}

/// Targets that get requests: the pools of a share are localities, since those have weights everywhere.
fn assignment(name: &str, share: &Share) -> ClusterLoadAssignment {
    let (admits, slow_start) = (share.admits(), share.group.slow_start());
    let total: f64 = share.pools.iter().sum();
    let pools = share.group.pools.iter().zip(&share.pools).filter(|(_, weight)| **weight > 0.0);
    let localities = pools.filter_map(|(pool, weight)| {
        let fit = pool.endpoints.iter().filter(|endpoint| admits(endpoint));
        let lb_endpoints: Vec<LbEndpoint> = fit
            .map(|endpoint| {
                let at = endpoint.identity.address;
                LbEndpoint {
                    endpoint: Some(Endpoint { address: Some(socket(at.ip(), at.port())) }),
                    health_status: 1,
                    load_balancing_weight: Some(parts(endpoint.warmth(slow_start), 100.0)),
                }
            })
            .collect();
        (!lb_endpoints.is_empty()).then(|| LocalityLbEndpoints {
            locality: Some(Locality { sub_zone: format!("{}/{}", pool.service, pool.deployment) }),
            lb_endpoints,
            load_balancing_weight: Some(parts(weight / total, PARTS)),
        })
    });
    ClusterLoadAssignment { cluster_name: name.to_owned(), endpoints: localities.collect() }
}

/// So many of so many, but one at least.
fn parts(share: f64, of: f64) -> u32 {
    (share * of).round().clamp(1.0, of) as u32
}

fn any(url: &str, message: &impl Message) -> Any {
    Any { type_url: url.to_owned(), value: message.encode_to_vec() }
}

fn empty(url: &str) -> Any {
    Any { type_url: url.to_owned(), value: Vec::new() }
}

fn ads() -> ConfigSource {
    ConfigSource { ads: Some(Ads {}), resource_api_version: 2 }
}

fn text(text: &str) -> DataSource {
    DataSource { inline_string: text.to_owned() }
}

fn socket(ip: IpAddr, port: u16) -> Address {
    let ipv4_compat = ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    Address { socket_address: Some(SocketAddress { address: ip.to_string(), port_value: port.into(), ipv4_compat }) }
}

fn encryption(listener: &Listener, certificates: &Certificates) -> Result<Option<TransportSocket>, String> {
    if !listener.is_encrypted() {
        return Ok(None);
    }
    let known = listener.certificates.iter().filter_map(|name| certificates.get(name)?.texts());
    let tls_certificates: Vec<TlsCertificate> = known
        .map(|(chain, key)| TlsCertificate { certificate_chain: Some(text(&chain)), private_key: Some(text(&key)) })
        .collect();
    if tls_certificates.is_empty() {
        return Err("none of its certificates is there".to_owned());
    }
    let alpn: &[&str] = if is_http(listener.protocol) { &["h2", "http/1.1"] } else { &[] };
    let alpn_protocols = alpn.iter().map(|name| (*name).to_owned()).collect();
    let tls_params = Some(TlsParameters { tls_maximum_protocol_version: 4 });
    let common = CommonTlsContext { tls_params, tls_certificates, alpn_protocols };
    let context = DownstreamTlsContext { common_tls_context: Some(common) };
    let name = "envoy.transport_sockets.tls".into();
    Ok(Some(TransportSocket { name, typed_config: Some(any(DOWNSTREAM_TLS, &context)) }))
}

fn tcp_clusters(listener: &Listener, forward: &Forward) -> Option<tcp_proxy::ClusterSpecifier> {
    let clusters: Vec<TcpCluster> = forward
        .shares()
        .map(|share| TcpCluster { name: listener.backend("default", &share.group), weight: share.weight })
        .collect();
    match clusters.as_slice() {
        [] => None,
        [only] => Some(tcp_proxy::ClusterSpecifier::Cluster(only.name.clone())),
        _ => Some(tcp_proxy::ClusterSpecifier::WeightedClusters(TcpClusters { clusters })),
    }
}

fn regex(regex: String) -> RegexMatcher {
    RegexMatcher { regex }
}

fn prefix(prefix: &str) -> route_match::PathSpecifier {
    route_match::PathSpecifier::Prefix(prefix.to_owned())
}

/// One of several regular expressions.
fn either(all: impl Iterator<Item = String>) -> String {
    all.collect::<Vec<_>>().join("|")
}

/// What a rule wants: one of these. Paths are not made one expression: Envoy takes none that is long.
fn matches(rule: &Rule) -> Result<Vec<RouteMatch>, String> {
    let wrong = |why: &str| Err(format!("rule {}: {why}", rule.priority));
    let mut paths = Vec::new();
    let mut headers = Vec::new();
    let mut header = |name: &str, expression: String| {
        headers.push(HeaderMatcher { name: name.to_owned(), safe_regex_match: Some(regex(expression)) });
    };
    for condition in &rule.conditions {
        match condition {
            Condition::Host(patterns) => {
                let hosts = either(patterns.iter().map(|p| pattern::regex(p, ".")));
                header(AUTHORITY, format!("(?i)({hosts})(:[0-9]+)?"));
            }
            Condition::Path(_) if !paths.is_empty() => return wrong("xDS has one path-pattern condition of a rule"),
            Condition::Path(patterns) => paths.extend(patterns.iter().map(|pattern| path(pattern))),
            Condition::Header(name, patterns) => {
                header(name.as_str(), format!("(?i)({})", either(patterns.iter().map(|p| pattern::regex(p, ".")))));
            }
            Condition::Method(methods) => {
                let methods = methods.iter().filter(|method| !method.is_empty());
                header(METHOD, either(methods.map(|method| pattern::literal(method))));
            }
            Condition::Query(pairs) => {
                let pairs = either(pairs.iter().map(|(key, value)| pattern::query(key, value)));
                header(PATH, format!(r"(?i)[^?]*\?(.*&)?({pairs})(&.*)?"));
            }
            Condition::Source(_) => return wrong("xDS has no source-ip of a request"),
        }
    }
    if paths.is_empty() {
        paths.push(prefix("/"));
    }
    Ok(paths.into_iter().map(|path| RouteMatch { path_specifier: Some(path), headers: headers.clone() }).collect())
}

/// What of a request's own is a header to Envoy.
const AUTHORITY: &str = ":authority";
const METHOD: &str = ":method";
const PATH: &str = ":path";

fn path(pattern: &str) -> route_match::PathSpecifier {
    match pattern.split_once(['*', '?']) {
        None => route_match::PathSpecifier::Path(pattern.to_owned()),
        Some((start, "")) if pattern.ends_with('*') => prefix(start),
        Some(_) => route_match::PathSpecifier::SafeRegex(regex(pattern::regex(pattern, "."))),
    }
}

/// Routes as gRPC clients know them: a request of theirs is a POST without a query, and its host is not known when one is chosen.
fn for_grpc(listener: &Listener, routes: Vec<Route>) -> Result<Vec<Route>, String> {
    let mut all = Vec::new();
    for mut route in routes {
        let Some(matches) = &mut route.r#match else { continue };
        let is = |header: &HeaderMatcher, name: &str| header.name == name;
        if matches.headers.iter().any(|header| is(header, AUTHORITY)) {
            return Err(format!("{}: rule {}: gRPC knows no host-header", listener.name, route.name));
        }
        let posts = |header: &HeaderMatcher| {
            header.safe_regex_match.as_ref().is_some_and(|methods| methods.regex.split('|').any(|m| m == "POST"))
        };
        let never = |header: &HeaderMatcher| is(header, PATH) || (is(header, METHOD) && !posts(header));
        if matches.headers.iter().any(never) {
            continue;
        }
        matches.headers.retain(|header| !is(header, METHOD));
        all.push(route);
    }
    Ok(all)
}

fn route_of(
    listener: &Listener,
    rule: &str,
    matches: RouteMatch,
    does: &Does,
    idle: Duration,
) -> Result<Route, String> {
    let mut response_headers_to_add = Vec::new();
    let request_headers_to_add = vec![header("x-forwarded-port", &listener.port.to_string())];
    let action = match does {
        Does::Forward(forward) => match clusters(listener, rule, forward) {
            Some(clusters) => route::Action::Route(RouteAction {
                cluster_specifier: Some(clusters),
                // As long as something comes.
                timeout: Some(Duration::default()),
                idle_timeout: Some(idle),
                retry_policy: Some(RetryPolicy {
                    retry_on: "connect-failure,refused-stream,reset-before-request".into(),
                    num_retries: Some(3),
                }),
            }),
            None => route::Action::DirectResponse(DirectResponse { status: 503, body: None }),
        },
        Does::Redirect(config) => route::Action::Redirect(redirect(config, listener, rule)?),
        Does::Respond { status, kind, body } => {
            if !body.is_empty() {
                response_headers_to_add.push(header("content-type", &kind.replace('%', "%%")));
            }
            let body = (!body.is_empty()).then(|| text(body));
            route::Action::DirectResponse(DirectResponse { status: u32::from(*status), body })
        }
    };
    let (r#match, action, name) = (Some(matches), Some(action), rule.to_owned());
    Ok(Route { r#match, action, request_headers_to_add, response_headers_to_add, name })
}

/// A header that replaces what is there.
fn header(key: &str, value: &str) -> HeaderValueOption {
    let header = Some(HeaderValue { key: key.to_owned(), value: value.to_owned() });
    HeaderValueOption { header, append_action: 2 }
}

fn clusters(listener: &Listener, rule: &str, forward: &Forward) -> Option<route_action::ClusterSpecifier> {
    let clusters: Vec<ClusterWeight> = forward
        .shares()
        .map(|share| ClusterWeight { name: listener.backend(rule, &share.group), weight: Some(share.weight) })
        .collect();
    match clusters.as_slice() {
        [] => None,
        [only] => Some(route_action::ClusterSpecifier::Cluster(only.name.clone())),
        _ => Some(route_action::ClusterSpecifier::WeightedClusters(WeightedCluster { clusters })),
    }
}

/// What is not said stays as it was asked.
fn redirect(config: &RedirectConfig, listener: &Listener, rule: &str) -> Result<RedirectAction, String> {
    let own = |value: &str, usual: &str| if value == usual { String::new() } else { value.to_owned() };
    let (host, port) = (own(&config.host, "#{host}"), own(&config.port, "#{port}"));
    let (path, query) = (own(&config.path, "/#{path}"), own(&config.query, "#{query}"));
    let scheme = own(&config.protocol, "#{protocol}").to_ascii_lowercase();
    for (field, value) in [("host", &host), ("port", &port), ("path", &path), ("query", &query), ("protocol", &scheme)]
    {
        if value.contains("#{") {
            return Err(format!("rule {rule}: redirectConfig.{field}: xDS has no part of the request in `{value}`"));
        }
    }
    if path.is_empty() && !query.is_empty() {
        return Err(format!("rule {rule}: redirectConfig.query: xDS has a query only with a path"));
    }
    // With another host a port that is not said is the listener's own.
    let port = if port.is_empty() && !host.is_empty() { listener.port.to_string() } else { port };
    let is = if listener.is_encrypted() { "https" } else { "http" };
    let will_be = if scheme.is_empty() { is } else { &scheme };
    let usual = !host.is_empty() && matches!((will_be, port.as_str()), ("http", "80") | ("https", "443"));
    let port = if usual { String::new() } else { port };
    let path_redirect = if query.is_empty() { path } else { format!("{path}?{query}") };
    Ok(RedirectAction {
        host_redirect: host,
        path_redirect,
        response_code: u32::from(config.status_code != "HTTP_301"),
        scheme_redirect: scheme,
        port_redirect: port.parse().unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use steady_core::v1::target_state::Value as State;
    use steady_core::v1::traffic_protocol::Value as Protocol;
    use steady_core::v1::{Stickiness, TargetGroupSpec};

    use super::*;
    use crate::endpoint::{Endpoint as Target, Identity};
    use crate::group::{Group, Pool};

    fn pool(ports: std::ops::Range<u16>) -> Pool {
        let target = |port: u16| {
            let address = ([10, 0, 0, 1], port).into();
            let target = Target::new(Identity { task: "t".into(), group: "g".into(), container_port: 80, address });
            target.set_state(State::Healthy, "", String::new());
            Arc::new(target)
        };
        Pool { service: "web".into(), endpoints: ports.map(target).collect(), ..Pool::default() }
    }

    fn listener(spec: TargetGroupSpec, rules: Vec<Rule>) -> Listener {
        let (pools, counters) = (vec![pool(1..3), pool(3..4)], Arc::default());
        let group = Group { name: "g".into(), spec, pools, by_cookie: std::collections::HashMap::new(), counters };
        let share = Share { weight: 1, group: Arc::new(group), pools: vec![95.0, 5.0] };
        Listener {
            name: "http".into(),
            port: 80,
            protocol: Protocol::Http,
            rules,
            otherwise: Does::Forward(Forward::new(vec![share])),
            idle: std::time::Duration::from_secs(60),
            certificates: Vec::new(),
        }
    }

    fn resources(listener: Listener) -> Resources {
        let listeners = BTreeMap::from([(listener.name.clone(), Arc::new(listener))]);
        Resources::of(&Table { listeners, ..Table::default() }, [0, 0, 0, 0].into(), &Certificates::new())
    }

    #[test]
    fn only_those_that_are_fit_are_told_with_the_shares_of_their_deployments() {
        let listener = listener(TargetGroupSpec::default(), Vec::new());
        let share = listener.forward().and_then(|forward| forward.shares().next()).expect("a share");
        share.group.pools[0].endpoints[0].set_draining(1);
        let said = resources(listener);
        let all = said.wanted(Kind::Endpoints, Some(["http:default:g"].into_iter()));
        let assignment = ClusterLoadAssignment::decode(all[0].value.as_slice()).expect("an assignment");
        let told: Vec<(Option<u32>, Vec<u32>)> = assignment
            .endpoints
            .iter()
            .map(|locality| {
                let ports = locality.lb_endpoints.iter().filter_map(|e| e.endpoint.as_ref()?.address.as_ref());
                let ports = ports.filter_map(|address| Some(address.socket_address.as_ref()?.port_value));
                (locality.load_balancing_weight, ports.collect())
            })
            .collect();
        assert_eq!(told, [(Some(9500), vec![2]), (Some(500), vec![3])]);
        assert!(said.wanted(Kind::Endpoints, Some(["other"].into_iter())).is_empty());
        // Who names a listener gets one that opens no port.
        let of = |name: Option<&'static str>| {
            let all = said.wanted(Kind::Listener, name.map(|name| [name].into_iter()));
            XdsListener::decode(all[0].value.as_slice()).expect("a listener")
        };
        assert!(of(Some("http")).api_listener.is_some() && of(Some("http")).address.is_none());
        assert!(of(None).api_listener.is_none() && of(None).address.is_some());
    }

    #[test]
    fn what_cannot_be_said_is_not_said_in_part() {
        let rule = |condition: Condition, does: Does| Rule { priority: 7, conditions: vec![condition], does };
        let path = || Condition::Path(vec!["/a".into(), "/b*".into()]);
        let moved = |path: &str| RedirectConfig { path: path.into(), ..RedirectConfig::default() };
        let spec = TargetGroupSpec::default;
        let said = resources(listener(spec(), vec![rule(path(), Does::Redirect(moved("/c")))]));
        assert!(said.refused.is_empty());
        let all = |said: &Resources, name: &'static str| -> Vec<Route> {
            let found = said.wanted(Kind::Routes, Some([name].into_iter()));
            let routes = found.first().map(|one| RouteConfiguration::decode(one.value.as_slice()).expect("routes"));
            routes.into_iter().flat_map(|routes| routes.virtual_hosts).flat_map(|host| host.routes).collect()
        };
        let paths: Vec<_> = all(&said, "http").into_iter().filter_map(|route| route.r#match?.path_specifier).collect();
        assert_eq!(paths, [route_match::PathSpecifier::Path("/a".into()), prefix("/b"), prefix("/")]);
        // gRPC clients know less of their requests.
        let gets = Condition::Method(vec!["GET".into()]);
        let posts = Condition::Method(vec!["PUT".into(), "POST".into()]);
        let rules = vec![rule(gets, Does::Redirect(moved("/g"))), rule(posts, Does::Redirect(moved("/p")))];
        let said = resources(listener(spec(), rules));
        assert_eq!((all(&said, "http").len(), all(&said, "grpc:http").len()), (3, 2));
        let hosts = Condition::Host(vec!["a".into()]);
        let said = resources(listener(spec(), vec![rule(hosts, Does::Redirect(moved("/c")))]));
        assert_eq!((all(&said, "http").len(), all(&said, "grpc:http").len()), (2, 0));
        assert!(said.refused["http (gRPC clients)"].contains("host-header"));
        let source = Condition::Source(vec![([10, 0, 0, 0].into(), 8)]);
        let stickiness = Some(Stickiness { enabled: true, ..Stickiness::default() });
        for (listener, why) in [
            (listener(spec(), vec![rule(source, Does::Redirect(moved("/c")))]), "rule 7: xDS has no source-ip"),
            (listener(spec(), vec![rule(path(), Does::Redirect(moved("/c/#{path}")))]), "redirectConfig.path"),
            (listener(TargetGroupSpec { stickiness, ..spec() }, Vec::new()), "group g: stickiness"),
        ] {
            let said = resources(listener);
            assert!(said.refused["http"].contains(why), "{:?}", said.refused);
            assert!(said.wanted(Kind::Listener, None::<std::iter::Empty<&str>>).is_empty());
        }
    }
}
