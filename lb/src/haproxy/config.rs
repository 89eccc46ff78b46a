//! A table as `HAProxy`'s configuration. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use steady_core::traffic::is_http;
use steady_core::v1::load_balancing_algorithm::Value as Algorithm;
use steady_core::v1::{RedirectConfig, TargetGroupSpec};

use crate::endpoint::{Endpoint, Identity};
use crate::group::{APP_COOKIE, COOKIE, Group, Pool, Spoken, spoken};
use crate::pattern;
use crate::rule::{Condition, Location, location};
use crate::table::{Does, Forward, Listener, Rule, Share, Table};
use crate::tls::Certificates;

/// Most values of one line: 64 words are all that it takes.
const WORDS: usize = 40;
/// Highest weight of a server.
const HEAVIEST: f64 = 256.0;

/// Where it is to run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site<'a> {
    /// Absolute: of its files and sockets.
    pub(crate) directory: &'a Path,
    pub(crate) address: IpAddr,
    /// 0: as many as it finds good.
    pub(crate) threads: usize,
    /// Listeners that cannot be: their ports are somebody else's, or they are not to its liking.
    pub(crate) left_out: &'a BTreeSet<String>,
    pub(crate) certificates: &'a Certificates,
}

/// A target of a backend.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) endpoint: Arc<Endpoint>,
    /// 0..=256.
    pub(crate) weight: u16,
    /// It gets requests.
    pub(crate) on: bool,
    /// What is spoken with it.
    pub(crate) options: &'static str,
}

/// Servers by backend and name.
pub(crate) type Servers = BTreeMap<(String, String), Server>;

impl Server {
    /// What a line that adds it says, after its name.
    pub(crate) fn line(&self) -> String {
        let Identity { address, .. } = &self.endpoint.identity;
        format!("{address} weight {}{}", self.weight, self.options)
    }
}

/// All of a configuration.
#[derive(Debug, Default, Clone)]
pub(crate) struct Configuration {
    /// All but servers: another one needs a reload.
    pub(crate) shape: String,
    /// Files that it names, by name, named after what is in them.
    pub(crate) files: BTreeMap<String, String>,
    pub(crate) servers: Servers,
    /// Listeners whose port is another's, or whose certificates are not there, are left out; these are those that are not.
    pub(crate) ports: BTreeSet<u16>,
    /// What comes before backends.
    front: String,
    backends: Vec<(String, String)>,
}

impl Configuration {
    /// What a table is.
    pub(crate) fn of(table: &Table, site: Site<'_>) -> Self {
        let mut all = Configuration::default();
        let mut front = head(site);
        for listener in table.listeners.values().filter(|listener| !site.left_out.contains(&listener.name)) {
            let Some(tls) = all.encryption(listener, site) else { continue };
            all.ports.insert(listener.port);
            all.frontend(&mut front, listener, &tls, site);
        }
        all.front = front;
        all.shape = all.written(|_, _| {});
        all
    }

    /// The file, servers and all.
    pub(crate) fn text(&self) -> String {
        self.written(|text, name| {
            let first = (name.to_owned(), String::new());
            for ((_, server), what) in self.servers.range(first..).take_while(|((backend, _), _)| backend == name) {
                let off = if what.on { "" } else { " disabled" };
                let _ = writeln!(text, "  server {server} {}{off}", what.line());
            }
        })
    }

    fn written(&self, servers: impl Fn(&mut String, &str)) -> String {
        let mut text = self.front.clone();
        for (name, lines) in &self.backends {
            let _ = write!(text, "\nbackend {name}\n{lines}");
            servers(&mut text, name);
        }
        text
    }

    /// What `bind` says of TLS. `None`: no certificate is there yet.
    fn encryption(&mut self, listener: &Listener, site: Site<'_>) -> Option<String> {
        if !listener.is_encrypted() {
            return Some(String::new());
        }
        let pems = listener.certificates.iter().filter_map(|name| site.certificates.get(name)?.texts());
        let pems: Vec<String> = pems.map(|(chain, key)| chain + &key).collect();
        let paths: Vec<String> = pems.into_iter().map(|pem| self.file("pem", pem, site)).collect();
        if paths.is_empty() {
            return None;
        }
        let alpn = if is_http(listener.protocol) { " alpn h2,http/1.1" } else { "" };
        // The first is everybody's who is nobody else's.
        let list = self.file("list", paths.iter().fold(String::new(), |all, path| all + path + "\n"), site);
        Some(format!(" ssl crt-list {}{alpn}", quoted(&list)))
    }

    /// The path of a file with this in it.
    fn file(&mut self, kind: &str, content: String, site: Site<'_>) -> String {
        let mut hasher = DefaultHasher::new();
        content.hash(&mut hasher);
        let name = format!("{:016x}.{kind}", hasher.finish());
        let path = site.directory.join(&name).display().to_string();
        self.files.insert(name, content);
        path
    }

    fn frontend(&mut self, text: &mut String, listener: &Listener, tls: &str, site: Site<'_>) {
        let http = is_http(listener.protocol);
        let at = SocketAddr::new(site.address, listener.port);
        let (name, idle) = (&listener.name, listener.idle.as_secs());
        let mode = if http { "http" } else { "tcp" };
        let _ = write!(
            text,
            "\nfrontend {name}\n  bind {at}{tls}\n  mode {mode}\n  timeout client {idle}s\n  timeout http-keep-alive {idle}s\n"
        );
        if !http {
            if let Some(forward) = listener.forward() {
                self.forward(text, listener, forward);
            }
            return;
        }
        let scheme = if listener.is_encrypted() { "https" } else { "http" };
        let _ = write!(
            text,
            "  option forwardfor
  http-request deny deny_status 400 if {{ req.ver 1.1 }} !{{ req.hdr(host) -m found }}
  http-request deny deny_status 400 if METH_CONNECT
  http-request del-header Upgrade if {{ req.hdr(upgrade) -m sub -i h2c }}
  http-request del-header HTTP2-Settings
  http-request set-var(txn.host) req.hdr(host),regsub(:[0-9]+$,)
  http-request set-header X-Forwarded-Proto {scheme}
  http-request set-header X-Forwarded-Port {}
",
            listener.port
        );
        // The first rule that fits is a request's; what is done with it follows.
        for (number, rule) in listener.rules.iter().enumerate() {
            let condition = conditions(text, number, rule);
            let _ = writeln!(
                text,
                "  http-request set-var(txn.rule) int({number}) if !{{ var(txn.rule) -m found }} {condition}"
            );
        }
        for (number, rule) in listener.rules.iter().enumerate() {
            let condition = format!("{{ var(txn.rule) -m int {number} }}");
            self.does(text, listener, &rule.priority.to_string(), &rule.does, &condition, site);
        }
        self.does(text, listener, "default", &listener.otherwise, "!{ var(txn.rule) -m found }", site);
    }

    fn does(
        &mut self,
        text: &mut String,
        listener: &Listener,
        rule: &str,
        does: &Does,
        condition: &str,
        site: Site<'_>,
    ) {
        match does {
            Does::Respond { status, kind, body } => {
                let content = if body.is_empty() {
                    String::new()
                } else {
                    let path = self.file("body", body.clone(), site);
                    format!(" content-type {} file {}", quoted(kind), quoted(&path))
                };
                let _ = writeln!(text, "  http-request return status {status}{content} if {condition}");
            }
            Does::Redirect(config) => redirect(text, config, listener, condition),
            Does::Forward(forward) => {
                let shares = self.shares(listener, rule, forward);
                let total: u32 = shares.iter().map(|(_, weight)| weight).sum();
                if total == 0 {
                    let _ = writeln!(text, "  http-request return status 503 if {condition}");
                    return;
                }
                if shares.len() > 1 {
                    let _ = writeln!(text, "  http-request set-var(txn.share) rand({total}) if {condition}");
                }
                let mut below = 0;
                for (backend, weight) in &shares {
                    below += weight;
                    let part = if shares.len() > 1 {
                        format!(" {{ var(txn.share) -m int lt {below} }}")
                    } else {
                        String::new()
                    };
                    let _ = writeln!(text, "  use_backend {backend} if {condition}{part}");
                }
            }
        }
    }

    /// Of a listener that looks at no requests.
    fn forward(&mut self, text: &mut String, listener: &Listener, forward: &Forward) {
        let shares = self.shares(listener, "default", forward);
        let mut left: u32 = shares.iter().map(|(_, weight)| weight).sum();
        for (place, (backend, weight)) in shares.iter().enumerate() {
            if place + 1 == shares.len() {
                let _ = writeln!(text, "  default_backend {backend}");
            } else {
                // Each is asked for anew: its part of those that none before it has taken.
                let _ = writeln!(text, "  use_backend {backend} if {{ rand({left}) lt {weight} }}");
            }
            left -= weight;
        }
    }

    /// Backends of the groups that have a share, and their weights.
    fn shares(&mut self, listener: &Listener, rule: &str, forward: &Forward) -> Vec<(String, u32)> {
        forward.shares().map(|share| (self.backend(listener, rule, share), share.weight)).collect()
    }

    fn backend(&mut self, listener: &Listener, rule: &str, share: &Share) -> String {
        let group = &share.group;
        let name = listener.backend(rule, group);
        let http = is_http(listener.protocol);
        let idle = listener.idle.as_secs();
        let balance = match group.spec.load_balancing_algorithm_type() {
            Algorithm::LeastOutstandingRequests => "leastconn",
            Algorithm::WeightedRandom => "random",
            _ => "roundrobin",
        };
        let mode = if http { "http" } else { "tcp" };
        let mut lines =
            format!("  mode {mode}\n  balance {balance}\n  timeout server {idle}s\n  timeout tunnel {idle}s\n");
        if http {
            lines.push_str(
                "  retry-on conn-failure empty-response
  http-request disable-l7-retry unless { method GET HEAD OPTIONS PUT DELETE TRACE }
",
            );
            sticky(&mut lines, group);
        }
        // Servers that are there stay as they are: others need a reload.
        let _ = writeln!(lines, "  # targets:{}", options(&group.spec, http));
        self.backends.push((name.clone(), lines));
        for (server, what) in servers(share, http) {
            self.servers.insert((name.clone(), server), what);
        }
        name
    }
}

/// Lines that say what a rule wants, and what they are called together.
fn conditions(text: &mut String, number: usize, rule: &Rule) -> String {
    let mut all = Vec::new();
    for (place, condition) in rule.conditions.iter().enumerate() {
        let name = format!("r{number}_{place}");
        let mut acl = |fetch: &str, flags: &str, values: Vec<String>| {
            // Lines of one name are one of them; a line takes so many words.
            for part in values.chunks(WORDS) {
                let values: Vec<String> = part.iter().map(|value| quoted(value)).collect();
                let _ = writeln!(text, "  acl {name} {fetch} {flags} -- {}", values.join(" "));
            }
        };
        let whole = |patterns: &[String]| -> Vec<String> {
            patterns.iter().map(|p| format!("^{}$", pattern::linear(p))).collect()
        };
        match condition {
            Condition::Host(patterns) => acl("var(txn.host)", "-m reg -i", whole(patterns)),
            Condition::Path(patterns) => acl("path", "-m reg", whole(patterns)),
            Condition::Method(methods) => acl("method", "-m str", methods.clone()),
            Condition::Header(header, patterns) => acl(&format!("req.fhdr({header})"), "-m reg -i", whole(patterns)),
            Condition::Query(pairs) => {
                let one = |(key, value): &(String, String)| format!("(^|&){}(&|$)", pattern::query(key, value));
                acl("query", "-m reg -i", pairs.iter().map(one).collect());
            }
            Condition::Source(ranges) => {
                acl("src", "", ranges.iter().map(|(at, bits)| format!("{at}/{bits}")).collect());
            }
        }
        all.push(name);
    }
    all.join(" ")
}

/// What is the same for all listeners.
fn head(site: Site<'_>) -> String {
    let threads = if site.threads == 0 { String::new() } else { format!("  nbthread {}\n", site.threads.min(64)) };
    let socket = quoted(&site.directory.join("admin.sock").display().to_string());
    // `quiet`: servers that come and go are Steady's to tell.
    format!(
        "# Written by steady lb. Whatever is changed here is lost.
global
  stats socket {socket} mode 600 level admin expose-fd listeners
  quiet
  tune.bufsize 65536
  ssl-default-bind-options ssl-min-ver TLSv1.2
{threads}
defaults
  timeout connect 3s
  timeout http-request 10s
  retries 3
  option redispatch 1
  option idle-close-on-response
"
    )
}

/// Targets of a share, by name.
fn servers(share: &Share, http: bool) -> Vec<(String, Server)> {
    let group = &share.group;
    let slow_start = group.slow_start();
    let each = |weight: f64, count: usize| if count == 0 { 0.0 } else { weight / count as f64 };
    // A pool's share is that of those who can have it.
    let admits = share.admits();
    let count = |pool: &Pool| pool.endpoints.iter().filter(|endpoint| admits(endpoint)).count();
    let weights: Vec<f64> =
        group.pools.iter().zip(&share.pools).map(|(pool, weight)| each(*weight, count(pool))).collect();
    let heaviest = weights.iter().copied().fold(0.0, f64::max);
    let of = group.pools.iter().zip(&weights).flat_map(|(pool, w)| pool.endpoints.iter().map(move |e| (e, *w)));
    let options = options(&group.spec, http);
    of.map(|(endpoint, weight)| {
        let scaled = if heaviest > 0.0 { weight / heaviest * HEAVIEST * endpoint.warmth(slow_start) } else { 0.0 };
        let weight = if weight > 0.0 { scaled.round().clamp(1.0, HEAVIEST) as u16 } else { 0 };
        let on = admits(endpoint);
        (name(group, endpoint), Server { endpoint: Arc::clone(endpoint), weight, on, options })
    })
    .collect()
}

/// What a server is called: what a client's cookie calls it, where there are cookies.
fn name(group: &Group, endpoint: &Endpoint) -> String {
    let [plain, cookie] = names(endpoint);
    if group.is_sticky() { cookie } else { plain }
}

/// Both names that the server of a target may have.
pub(crate) fn names(endpoint: &Endpoint) -> [String; 2] {
    let Identity { task, container_port, address, .. } = &endpoint.identity;
    [format!("{task}:{container_port}:{}:{}", address.ip(), address.port()), format!("{:016x}", endpoint.cookie)]
}

fn options(spec: &TargetGroupSpec, http: bool) -> &'static str {
    let Spoken { tls, http2 } = spoken(spec, http);
    match (tls, http2) {
        (false, false) => "",
        (false, true) => " proto h2 ws h1",
        (true, false) => " ssl verify none",
        (true, true) => " ssl verify none alpn h2 ws h1",
    }
}

/// Clients come back by a cookie that names their server. One that is off is passed over.
fn sticky(lines: &mut String, group: &Group) {
    let Some(stickiness) = group.spec.stickiness.as_ref().filter(|stickiness| stickiness.enabled) else { return };
    let seconds = stickiness.duration_seconds();
    let (cookie, condition) = if stickiness.r#type == "app_cookie" {
        (APP_COOKIE, format!(" if {{ res.cook({}) -m found }}", quoted(&stickiness.cookie_name)))
    } else {
        (COOKIE, String::new())
    };
    let _ = write!(
        lines,
        "  use-server %[req.cook({cookie})] if {{ req.cook({cookie}) -m found }}
  http-response add-header Set-Cookie \"{cookie}=%s; Max-Age={seconds}; Path=/; HttpOnly\"{condition}
"
    );
}

/// The query of a request, in a part of a redirect.
const QUERY: &str = "#{query}";

fn redirect(text: &mut String, config: &RedirectConfig, listener: &Listener, condition: &str) {
    let scheme = if listener.is_encrypted() { "https" } else { "http" };
    let Location { at, query } = location(config, |template| {
        let template = template.replace('%', "%%").replace("#{protocol}", scheme);
        let template = template.replace("#{port}", &listener.port.to_string()).replace("#{host}", "%[var(txn.host)]");
        template.replace("#{path}", "%[path,regsub(^/+,)]")
    });
    let code = if config.status_code == "HTTP_301" { 301 } else { 302 };
    if query.contains(QUERY) {
        let _ = writeln!(
            text,
            "  http-request redirect location {} code {code} if {condition} {{ query -m len ge 1 }}",
            quoted(&format!("{at}?{}", query.replace(QUERY, "%[query]")))
        );
    }
    let query = query.replace(QUERY, "");
    let query = if query.is_empty() { String::new() } else { format!("?{query}") };
    let _ = writeln!(
        text,
        "  http-request redirect location {} code {code} if {condition}",
        quoted(&format!("{at}{query}"))
    );
}

/// As it is, whatever is in it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use steady_core::v1::Stickiness;
    use steady_core::v1::target_state::Value as State;
    use steady_core::v1::traffic_protocol::Value as Protocol;

    use super::*;

    fn pool(weights: Option<(f64, f64)>, ports: std::ops::Range<u16>) -> Pool {
        let endpoint = |port: u16| {
            let address = ([10, 0, 0, 1], port).into();
            let identity = Identity { task: format!("t{port}"), group: "g".into(), container_port: 80, address };
            let endpoint = Endpoint::new(identity);
            endpoint.set_state(State::Healthy, "", String::new());
            Arc::new(endpoint)
        };
        Pool { weights, endpoints: ports.map(endpoint).collect(), ..Pool::default() }
    }

    fn share(group: Group, pools: &[f64]) -> Share {
        Share { weight: 1, group: Arc::new(group), pools: pools.to_vec() }
    }

    fn group(pools: Vec<Pool>) -> Group {
        Group {
            name: "g".into(),
            spec: TargetGroupSpec::default(),
            pools,
            by_cookie: std::collections::HashMap::new(),
            counters: Arc::default(),
        }
    }

    fn weights(share: &Share) -> BTreeMap<u16, (u16, bool)> {
        let of = |server: &Server| (server.endpoint.identity.address.port(), (server.weight, server.on));
        servers(share, true).iter().map(|(_, server)| of(server)).collect()
    }

    #[test]
    fn deployments_have_their_shares_however_many_targets_they_have() {
        let share = share(group(vec![pool(Some((90.0, 0.0)), 1..4), pool(Some((10.0, 0.0)), 4..5)]), &[90.0, 10.0]);
        let all = weights(&share);
        assert_eq!(all, BTreeMap::from([(1, (256, true)), (2, (256, true)), (3, (256, true)), (4, (85, true))]));
        // Those that are not fit leave theirs to the others of their deployment.
        share.group.pools[0].endpoints[0].set_state(State::Unhealthy, "", String::new());
        share.group.pools[0].endpoints[1].set_draining(1);
        let all = weights(&share);
        assert!(!all[&1].1 && !all[&2].1, "{all:?}");
        assert_eq!((all[&3], all[&4]), ((256, true), (28, true)));
    }

    #[test]
    fn when_nobody_is_fit_everybody_is_who_stays() {
        let share = share(group(vec![pool(None, 1..4)]), &[300.0]);
        for endpoint in &share.group.pools[0].endpoints {
            endpoint.set_state(State::Unhealthy, "", String::new());
        }
        share.group.pools[0].endpoints[0].set_draining(1);
        assert_eq!(weights(&share).values().map(|(_, on)| *on).collect::<Vec<_>>(), [false, true, true]);
    }

    #[test]
    fn what_a_table_is_does_not_change_with_its_targets_and_takes_text_as_it_is() {
        let spec = TargetGroupSpec {
            stickiness: Some(Stickiness { enabled: true, ..Stickiness::default() }),
            ..TargetGroupSpec::default()
        };
        let listener = |group: Group| Listener {
            name: "http".into(),
            port: 80,
            protocol: Protocol::Http,
            rules: vec![Rule {
                priority: 5,
                conditions: vec![Condition::Path(vec!["/o'clock; x".into()])],
                does: Does::Respond { status: 418, kind: "text/plain".into(), body: "a\n'b'".into() },
            }],
            otherwise: Does::Forward(Forward::new(vec![share(group, &[100.0])])),
            idle: Duration::from_secs(60),
            certificates: Vec::new(),
        };
        let certificates = Certificates::new();
        let site = Site {
            directory: Path::new("/var/lib/lb"),
            address: [0, 0, 0, 0].into(),
            threads: 2,
            left_out: &BTreeSet::new(),
            certificates: &certificates,
        };
        let of = |group: Group| {
            let listeners = BTreeMap::from([("http".to_owned(), Arc::new(listener(group)))]);
            Configuration::of(&Table { listeners, ..Table::default() }, site)
        };
        let (one, two) = (of(group(vec![pool(None, 1..2)])), of(group(vec![pool(None, 7..9)])));
        assert_eq!(one.shape, two.shape);
        assert_ne!(one.text(), two.text());
        assert!(one.text().contains("\n  server t1:80:10.0.0.1:1 10.0.0.1:1 weight 256\n"), "{}", one.text());
        assert!(one.shape.contains(r"path -m reg -- '^/o'\''clock; x$'"), "{}", one.shape);
        assert_eq!(one.files.values().collect::<Vec<_>>(), ["a\n'b'"], "not in the file's own words");
        let other =
            of(Group { spec: TargetGroupSpec { protocol: Protocol::Https.into(), ..<_>::default() }, ..group(vec![]) });
        assert_ne!(one.shape, other.shape, "what is spoken with targets is not changed while it runs");
        let sticky = of(Group { spec, ..group(vec![pool(None, 1..2)]) });
        let name = sticky.servers.keys().next().map(|(_, name)| name.clone()).unwrap_or_default();
        assert!(name.len() == 16 && name.bytes().all(|b| b.is_ascii_hexdigit()), "what a cookie says: {name}");
        assert!(sticky.shape.contains("use-server %[req.cook(STEADYLB)]"));
    }
}
