//! What a load balancer obeys: listeners, their rules, target groups and targets, made of one view. Pure.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use steady_core::traffic::{forwards, is_http};
use steady_core::v1::target_state::Value as State;
use steady_core::v1::traffic_protocol::Value as Protocol;
use steady_core::v1::{self, Action, ListenerSpec, RedirectConfig, TargetReport};
use steady_core::{Key, Kind, Revision, View, task};

use crate::endpoint::{Endpoint, Identity};
use crate::group::{Counters, Group, Pool};
use crate::rule::{Asked, Condition};

/// Everything that is obeyed.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// Counts tables of this process, from 1.
    pub(crate) number: u64,
    /// Of the view that it was made of.
    pub(crate) revision: Revision,
    /// By name.
    pub(crate) listeners: BTreeMap<String, Arc<Listener>>,
    pub(crate) groups: BTreeMap<String, Arc<Group>>,
    /// Every target, also those that drain.
    pub(crate) endpoints: HashMap<Identity, Arc<Endpoint>>,
}

/// A port, and what is done with its requests.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    /// By priority.
    pub(crate) rules: Vec<Rule>,
    pub(crate) otherwise: Does,
    pub(crate) idle: Duration,
    /// Names of secrets; the first is everybody's who is nobody else's.
    pub(crate) certificates: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) priority: i32,
    pub(crate) conditions: Vec<Condition>,
    pub(crate) does: Does,
}

/// What is done with a request.
#[derive(Debug)]
pub(crate) enum Does {
    Forward(Forward),
    Redirect(RedirectConfig),
    Respond { status: u16, kind: String, body: String },
}

/// Target groups by weight.
#[derive(Debug)]
pub(crate) struct Forward(Vec<Share>);

/// A group's weight, and those of its pools.
#[derive(Debug)]
pub(crate) struct Share {
    pub(crate) weight: u32,
    pub(crate) group: Arc<Group>,
    pub(crate) pools: Vec<f64>,
}

impl Share {
    /// Who of its targets may get requests. When nobody is fit everybody is who stays (Elastic Load Balancing fails open).
    pub(crate) fn admits(&self) -> impl Fn(&Endpoint) -> bool + use<> {
        let pools = self.group.pools.iter().zip(&self.pools);
        let somebody =
            pools.filter(|(_, weight)| **weight > 0.0).any(|(pool, _)| pool.endpoints.iter().any(|e| e.is_fit()));
        move |endpoint: &Endpoint| if somebody { endpoint.is_fit() } else { !endpoint.is_draining() }
    }
}

impl Forward {
    #[cfg(test)]
    pub(crate) fn new(shares: Vec<Share>) -> Self {
        Forward(shares)
    }

    /// Those that get anything.
    pub(crate) fn shares(&self) -> impl Iterator<Item = &Share> {
        self.0.iter().filter(|share| share.weight > 0)
    }

    /// One of them, by weight.
    pub(crate) fn choose(&self) -> Option<&Share> {
        if let [only] = self.0.as_slice() {
            return (only.weight > 0).then_some(only);
        }
        let total: u32 = self.0.iter().map(|share| share.weight).sum();
        let mut at = if total == 0 { return None } else { fastrand::u32(..total) };
        self.0.iter().find(|share| {
            let its = at < share.weight;
            at = at.saturating_sub(share.weight);
            its
        })
    }
}

impl Does {
    pub(crate) fn forward(&self) -> Option<&Forward> {
        match self {
            Does::Forward(forward) => Some(forward),
            _ => None,
        }
    }
}

impl Listener {
    /// Whether clients speak TLS with it.
    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self.protocol, Protocol::Https | Protocol::Tls)
    }

    /// What is done with a request.
    pub(crate) fn does(&self, asked: Asked<'_>) -> &Does {
        let fits = |rule: &&Rule| rule.conditions.iter().all(|condition| condition.holds(asked));
        self.rules.iter().find(fits).map_or(&self.otherwise, |rule| &rule.does)
    }

    /// Where connections go, of a listener that looks at no requests.
    pub(crate) fn forward(&self) -> Option<&Forward> {
        self.otherwise.forward()
    }

    /// All that is done with requests, and what it is called: the priority of its rule.
    pub(crate) fn actions(&self) -> impl Iterator<Item = (String, &Does)> {
        let of_rules = self.rules.iter().map(|rule| (rule.priority.to_string(), &rule.does));
        of_rules.chain([("default".to_owned(), &self.otherwise)])
    }

    /// What a target group is called where a rule leads to it.
    pub(crate) fn backend(&self, rule: &str, group: &Group) -> String {
        format!("{}:{rule}:{}", self.name, group.name)
    }
}

impl Table {
    /// What a view makes of the load balancers of one name, in one cluster, for the one that reports as `own`. What is known of
    /// targets stays known.
    pub(crate) fn of(view: &View, cluster: &str, balancer: &str, own: &str, before: &Table) -> Self {
        let specs: Vec<(&str, &ListenerSpec)> = view
            .in_cluster(Kind::Listener, cluster)
            .filter_map(|object| Some((object.name(), object.as_listener()?.spec.as_ref()?)))
            .filter(|(_, spec)| spec.load_balancer == balancer)
            .collect();
        let mut table = Table { number: before.number + 1, revision: view.revision(), ..Table::default() };
        let mut pools = table.pools(view, cluster, own, before);
        for (_, spec) in &specs {
            for name in steady_core::traffic::target_groups(spec) {
                if table.groups.contains_key(name) {
                    continue;
                }
                let object = view.get(&Key::new(Kind::TargetGroup, cluster, name));
                let Some(spec) = object.and_then(|object| object.as_target_group()?.spec.clone()) else { continue };
                let pools = pools.remove(name).unwrap_or_default();
                let counters =
                    before.groups.get(name).map_or_else(Arc::<Counters>::default, |g| Arc::clone(&g.counters));
                let mut group = Group { name: name.to_owned(), spec, pools, by_cookie: HashMap::new(), counters };
                if group.is_sticky() {
                    let all = group.pools.iter().flat_map(|pool| &pool.endpoints);
                    group.by_cookie = all.map(|endpoint| (endpoint.cookie, Arc::clone(endpoint))).collect();
                }
                table.groups.insert(name.to_owned(), Arc::new(group));
            }
        }
        // Targets of groups that nothing leads to are nobody's business, but for those that something led to: they may have requests.
        let groups = &table.groups;
        let known = &before.endpoints;
        table.endpoints.retain(|identity, _| groups.contains_key(&identity.group) || known.contains_key(identity));
        for (name, spec) in specs {
            if let Some(listener) = table.listener(name, spec) {
                table.listeners.insert(name.to_owned(), Arc::new(listener));
            }
        }
        table
    }

    /// Targets by group, and by what they share traffic with.
    fn pools(&mut self, view: &View, cluster: &str, own: &str, before: &Table) -> HashMap<String, Vec<Pool>> {
        let mut found: BTreeMap<(&str, &str, &str), Pool> = BTreeMap::new();
        self.endpoints.reserve(before.endpoints.len());
        let mut shares: HashMap<&str, Option<(f64, f64)>> = HashMap::new();
        let share = |name: &str| {
            let deployment = view.get(&Key::new(Kind::Deployment, cluster, name));
            let spec = deployment.and_then(|object| object.as_deployment()?.spec.as_ref())?;
            Some((spec.production_traffic_weight?, spec.test_traffic_weight.unwrap_or(0.0)))
        };
        for object in view.in_cluster(Kind::Task, cluster) {
            let Some(task) = task::of(object).filter(|task| task.is_live() && !task.status.targets.is_empty()) else {
                continue;
            };
            let deployment = task.spec.deployment.as_str();
            let weights = *shares.entry(deployment).or_insert_with(|| share(deployment));
            for target in &task.status.targets {
                let (Ok(ip), Ok(port)) = (target.address.parse::<IpAddr>(), u16::try_from(target.port)) else {
                    continue;
                };
                let identity = Identity {
                    task: object.name().to_owned(),
                    group: target.target_group.clone(),
                    container_port: target.container_port,
                    address: SocketAddr::new(ip, port),
                };
                let endpoint = before.endpoints.get(&identity).map_or_else(
                    || {
                        let endpoint = Endpoint::new(identity.clone());
                        // What others have found is believed until it is looked at here.
                        if target.state() == State::Healthy {
                            endpoint.set_state(State::Healthy, "", String::new());
                        }
                        Arc::new(endpoint)
                    },
                    Arc::clone,
                );
                let mine = target.reports.iter().find(|report| report.load_balancer == own);
                endpoint.set_told(mine.map_or(State::Unspecified, TargetReport::state));
                if !task.is_wanted() || target.state() == State::Draining {
                    endpoint.set_draining(self.number);
                }
                self.endpoints.insert(identity, Arc::clone(&endpoint));
                let of = if weights.is_some() { deployment } else { "" };
                let key = (target.target_group.as_str(), task.spec.service.as_str(), of);
                let pool = found.entry(key).or_insert_with(|| {
                    let of_target = |b: &&v1::LoadBalancer| b.target_group_arn == target.target_group;
                    let balancer = task.spec.load_balancers.iter().find(of_target);
                    let advanced = balancer.and_then(|balancer| balancer.advanced_configuration.as_ref());
                    let test_rule = advanced.map(|advanced| advanced.test_listener_rule.clone()).unwrap_or_default();
                    Pool {
                        service: task.spec.service.clone(),
                        deployment: of.to_owned(),
                        weights,
                        test_rule,
                        endpoints: Vec::new(),
                    }
                });
                pool.endpoints.push(endpoint);
            }
        }
        let mut pools: HashMap<String, Vec<Pool>> = HashMap::new();
        for ((group, ..), pool) in found {
            pools.entry(group.to_owned()).or_default().push(pool);
        }
        pools
    }

    fn listener(&self, name: &str, spec: &ListenerSpec) -> Option<Listener> {
        let mut rules: Vec<&v1::Rule> = spec.rules.iter().collect();
        rules.sort_by_key(|rule| rule.priority);
        let rules = rules.into_iter().filter_map(|rule| {
            let conditions: Option<Vec<Condition>> = rule.conditions.iter().map(Condition::of).collect();
            let id = format!("{name}/{}", rule.priority);
            Some(Rule {
                priority: rule.priority,
                conditions: conditions?,
                does: self.does(rule.actions.first()?, name, &id)?,
            })
        });
        Some(Listener {
            name: name.to_owned(),
            port: u16::try_from(spec.port).ok()?,
            protocol: spec.protocol(),
            rules: if is_http(spec.protocol()) { rules.collect() } else { Vec::new() },
            otherwise: self.does(spec.default_actions.first()?, name, name)?,
            idle: Duration::from_secs(u64::from(spec.idle_timeout_seconds().unsigned_abs())),
            certificates: spec.certificates.iter().map(|c| c.certificate_arn.clone()).collect(),
        })
    }

    fn does(&self, action: &Action, listener: &str, rule: &str) -> Option<Does> {
        Some(match action.r#type.as_str() {
            "forward" => {
                let share = |(name, weight): (&str, i32)| {
                    let group = Arc::clone(self.groups.get(name)?);
                    let pools = group.pools.iter().map(|pool| {
                        let is_test = pool.test_rule == listener || pool.test_rule == rule;
                        match pool.weights {
                            // Every target counts as one.
                            None => 100.0 * pool.endpoints.len() as f64,
                            Some((_, test)) if is_test => test * pool_size(&group, &pool.service),
                            Some((production, _)) => production * pool_size(&group, &pool.service),
                        }
                    });
                    let pools = pools.collect();
                    Some(Share { weight: weight.unsigned_abs(), group, pools })
                };
                Does::Forward(Forward(forwards(action).filter_map(share).collect()))
            }
            "redirect" => Does::Redirect(action.redirect_config.clone()?),
            _ => {
                let config = action.fixed_response_config.clone()?;
                let kind = if config.content_type.is_empty() { "text/plain".into() } else { config.content_type };
                Does::Respond { status: config.status_code.parse().ok()?, kind, body: config.message_body }
            }
        })
    }
}

/// How many targets a service has in a group: its share among other services.
fn pool_size(group: &Group, service: &str) -> f64 {
    group.pools.iter().filter(|pool| pool.service == service).map(|pool| pool.endpoints.len()).sum::<usize>() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderMap;
    use steady_core::v1::{
        AdvancedConfiguration, Deployment, DeploymentSpec, LoadBalancer, Object, RuleCondition, Target, TargetGroup,
        TargetGroupSpec, Task, TaskSpec, TaskStatus, desired_status, task_last_status,
    };

    fn forward(groups: &[(&str, i32)]) -> Action {
        let tuples = groups
            .iter()
            .map(|(name, weight)| v1::TargetGroupTuple { target_group_arn: (*name).into(), weight: Some(*weight) });
        let config = v1::ForwardConfig { target_groups: tuples.collect() };
        Action { r#type: "forward".into(), forward_config: Some(config), ..Action::default() }
    }

    fn task(name: &str, deployment: &str, port: i32, wanted: bool) -> Object {
        let target = Target {
            target_group: "web".into(),
            container_port: 80,
            address: "10.0.0.1".into(),
            port,
            state: State::Healthy.into(),
            ..Target::default()
        };
        let mut status = TaskStatus { targets: vec![target], ..TaskStatus::default() };
        status.set_last_status(task_last_status::Value::Running);
        status.set_desired_status(if wanted { desired_status::Value::Running } else { desired_status::Value::Stopped });
        let advanced = AdvancedConfiguration { test_listener_rule: "test".into() };
        let balancer = LoadBalancer {
            target_group_arn: "web".into(),
            advanced_configuration: Some(advanced),
            ..LoadBalancer::default()
        };
        let spec = TaskSpec {
            service: "web".into(),
            deployment: deployment.into(),
            load_balancers: vec![balancer],
            ..TaskSpec::default()
        };
        Object::new("default", name, Task { spec: Some(spec), status: Some(status) })
    }

    fn view(listeners: &[(&str, ListenerSpec)], others: Vec<Object>) -> View {
        let mut view = View::default();
        for name in ["web", "other"] {
            let group = TargetGroup { spec: Some(TargetGroupSpec::default()) };
            view.put(Arc::new(Object::new("default", name, group)));
        }
        for (name, spec) in listeners {
            let mut spec = spec.clone();
            spec.load_balancer = "default".into();
            view.put(Arc::new(Object::new("default", name, v1::Listener { spec: Some(spec) })));
        }
        for object in others {
            view.put(Arc::new(object));
        }
        view
    }

    fn listener(rules: Vec<v1::Rule>, otherwise: Action) -> ListenerSpec {
        ListenerSpec { port: 80, rules, default_actions: vec![otherwise], ..ListenerSpec::default() }
    }

    #[test]
    fn a_request_is_the_first_rule_s_that_fits() {
        let condition = |field: &str, values: &[&str]| RuleCondition {
            field: field.into(),
            values: values.iter().map(|v| (*v).to_owned()).collect(),
            ..RuleCondition::default()
        };
        let respond = |status: &str| Action {
            r#type: "fixed-response".into(),
            fixed_response_config: Some(v1::FixedResponseConfig { status_code: status.into(), ..<_>::default() }),
            ..Action::default()
        };
        let header = RuleCondition {
            field: "http-header".into(),
            http_header_config: Some(v1::HttpHeaderConfig {
                http_header_name: "X-Kind".into(),
                values: vec!["beta*".into()],
            }),
            ..RuleCondition::default()
        };
        let query = RuleCondition {
            field: "query-string".into(),
            query_string_config: Some(v1::QueryStringConfig {
                values: vec![v1::QueryStringPair { key: "v".into(), value: "2".into() }],
            }),
            ..RuleCondition::default()
        };
        let rule = |priority, status: &str, conditions: Vec<RuleCondition>| v1::Rule {
            priority,
            conditions,
            actions: vec![respond(status)],
        };
        let rules = vec![
            rule(30, "430", vec![condition("path-pattern", &["/a/*"])]),
            rule(20, "420", vec![condition("path-pattern", &["/a/*"]), condition("host-header", &["*.b.c"])]),
            rule(40, "440", vec![header]),
            rule(50, "450", vec![query]),
            rule(60, "460", vec![condition("source-ip", &["10.1.0.0/16"])]),
            rule(70, "470", vec![condition("http-request-method", &["PURGE"])]),
        ];
        let view = view(&[("http", listener(rules, respond("499")))], vec![]);
        let table = Table::of(&view, "default", "default", "default.a", &Table::default());
        let listener = &table.listeners["http"];
        let status = |host: &str, uri: &str, method: &str, kind: &str, peer: &str| {
            let uri: http::Uri = uri.parse().expect("a uri");
            let mut headers = HeaderMap::new();
            headers.insert("x-kind", kind.parse().expect("a value"));
            let asked = Asked {
                host,
                path: uri.path(),
                query: uri.query().unwrap_or_default(),
                method: &method.parse().expect("a method"),
                headers: &headers,
                peer: peer.parse().expect("an address"),
            };
            match listener.does(asked) {
                Does::Respond { status, .. } => *status,
                _ => 0,
            }
        };
        assert_eq!(status("x.B.c", "/a/1", "GET", "", "10.0.0.1"), 420);
        assert_eq!(status("b.c", "/a/1", "GET", "", "10.0.0.1"), 430);
        assert_eq!(status("b.c", "/b", "GET", "Beta1", "10.0.0.1"), 440);
        assert_eq!(status("b.c", "/b?u=1&V=2", "GET", "", "10.0.0.1"), 450);
        assert_eq!(status("b.c", "/b?v=3", "GET", "", "::ffff:10.1.2.3"), 460);
        assert_eq!(status("b.c", "/", "PURGE", "", "10.2.0.1"), 470);
        assert_eq!(status("b.c", "/", "GET", "", "10.2.0.1"), 499);
    }

    #[test]
    fn production_and_test_traffic_have_weights_of_their_own_and_targets_stay_who_they_are() {
        let weights = |name: &str, production: f64, test: f64| {
            let spec = DeploymentSpec {
                production_traffic_weight: Some(production),
                test_traffic_weight: Some(test),
                ..DeploymentSpec::default()
            };
            Object::new("default", name, Deployment { spec: Some(spec), status: None })
        };
        let listeners =
            [("http", listener(vec![], forward(&[("web", 1)]))), ("test", listener(vec![], forward(&[("web", 1)])))];
        let objects = |blue: bool| {
            vec![
                weights("web-1", 95.0, 0.0),
                weights("web-2", 5.0, 100.0),
                task("a", "web-1", 1001, blue),
                task("b", "web-2", 1002, true),
            ]
        };
        let table = Table::of(&view(&listeners, objects(true)), "default", "default", "default.a", &Table::default());
        let shares = |table: &Table, listener: &str| {
            table.listeners[listener].forward().map(|forward| forward.0[0].pools.clone()).expect("a forward")
        };
        assert_eq!(shares(&table, "http"), [190.0, 10.0]);
        assert_eq!(shares(&table, "test"), [0.0, 200.0]);
        assert!(table.endpoints.values().all(|endpoint| endpoint.is_fit()), "others have found them healthy");
        let after = Table::of(&view(&listeners, objects(false)), "default", "default", "default.a", &table);
        assert_eq!((after.number, after.endpoints.len()), (2, 2));
        for (identity, endpoint) in &after.endpoints {
            assert!(Arc::ptr_eq(endpoint, &table.endpoints[identity]));
            assert_eq!(endpoint.is_draining(), identity.task == "a");
        }
    }

    #[test]
    fn groups_are_chosen_by_weight() {
        let listeners = [("http", listener(vec![], forward(&[("web", 3), ("other", 1)])))];
        let table = Table::of(&view(&listeners, vec![]), "default", "default", "default.a", &Table::default());
        let forward = table.listeners["http"].forward().expect("a forward");
        let webs = (0..4000).filter(|_| forward.choose().is_some_and(|share| share.group.name == "web")).count();
        assert!((2800..3200).contains(&webs), "{webs}");
        assert!(
            Table::of(&view(&listeners, vec![]), "default", "edge", "edge.a", &Table::default()).listeners.is_empty()
        );
    }
}
