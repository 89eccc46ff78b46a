//! Conditions of rules: which requests they are for.

use std::net::{IpAddr, Ipv4Addr};

use http::{HeaderMap, HeaderName, Method, header};
use steady_core::security::parse_cidr;
use steady_core::v1::{RedirectConfig, RuleCondition};
use steady_core::validate::condition_values;

use crate::pattern;

/// What a rule wants of a request.
#[derive(Debug)]
pub(crate) enum Condition {
    Host(Vec<String>),
    Path(Vec<String>),
    Header(HeaderName, Vec<String>),
    Method(Vec<String>),
    Query(Vec<(String, String)>),
    Source(Vec<(Ipv4Addr, u8)>),
}

/// What rules look at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    pub(crate) query: &'a str,
    pub(crate) method: &'a Method,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) peer: IpAddr,
}

impl Condition {
    pub(crate) fn of(condition: &RuleCondition) -> Option<Self> {
        let values: Vec<String> = condition_values(condition).into_iter().map(str::to_owned).collect();
        Some(match condition.field.as_str() {
            "host-header" => Condition::Host(values),
            "path-pattern" => Condition::Path(values),
            "http-request-method" => Condition::Method(values),
            "source-ip" => Condition::Source(values.iter().filter_map(|value| parse_cidr(value)).collect()),
            "http-header" => {
                let name = &condition.http_header_config.as_ref()?.http_header_name;
                Condition::Header(name.parse().ok()?, values)
            }
            "query-string" => {
                let pairs = condition.query_string_config.as_ref()?.values.iter();
                Condition::Query(pairs.map(|pair| (pair.key.clone(), pair.value.clone())).collect())
            }
            _ => return None,
        })
    }

    pub(crate) fn holds(&self, asked: Asked<'_>) -> bool {
        match self {
            Condition::Host(patterns) => patterns.iter().any(|p| pattern::caseless(p, asked.host)),
            Condition::Path(patterns) => patterns.iter().any(|p| pattern::exactly(p, asked.path)),
            Condition::Method(methods) => methods.iter().any(|m| m == asked.method.as_str()),
            Condition::Header(name, patterns) => asked
                .headers
                .get_all(name)
                .iter()
                .any(|value| value.to_str().is_ok_and(|value| patterns.iter().any(|p| pattern::caseless(p, value)))),
            Condition::Query(pairs) => asked.query.split('&').any(|given| {
                let (key, value) = given.split_once('=').unwrap_or((given, ""));
                pairs.iter().any(|(k, v)| (k.is_empty() || pattern::caseless(k, key)) && pattern::caseless(v, value))
            }),
            Condition::Source(ranges) => {
                let IpAddr::V4(peer) = asked.peer.to_canonical() else { return false };
                let mask = |bits: u8| u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
                ranges.iter().any(|(at, bits)| u32::from(peer) & mask(*bits) == u32::from(*at))
            }
        }
    }
}

/// The host that a request names, without its port.
pub(crate) fn host<'a>(headers: &'a HeaderMap, uri: &'a http::Uri) -> &'a str {
    let named = uri.authority().map(http::uri::Authority::as_str);
    let named = named.or_else(|| headers.get(header::HOST)?.to_str().ok()).unwrap_or_default();
    match named.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => named,
    }
}

/// Where a redirect leads.
pub(crate) struct Location {
    /// All but the query.
    pub(crate) at: String,
    /// Without its question mark; it may be empty.
    pub(crate) query: String,
}

/// Where a redirect leads, its parts filled in: what it does not say stays as it was asked.
pub(crate) fn location(config: &RedirectConfig, fill: impl Fn(&str) -> String) -> Location {
    let given = |template: &str, usual: &str| fill(if template.is_empty() { usual } else { template });
    let protocol = given(&config.protocol, "#{protocol}").to_ascii_lowercase();
    let (host, port) = (given(&config.host, "#{host}"), given(&config.port, "#{port}"));
    let (path, query) = (given(&config.path, "/#{path}"), given(&config.query, "#{query}"));
    let usual = matches!((protocol.as_str(), port.as_str()), ("http", "80") | ("https", "443"));
    let port = if usual { String::new() } else { format!(":{port}") };
    let slash = if path.starts_with('/') { "" } else { "/" };
    Location { at: format!("{protocol}://{host}{port}{slash}{path}"), query }
}
