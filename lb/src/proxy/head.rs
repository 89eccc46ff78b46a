//! Heads of requests and answers: what is wrong with them, what is between two connections only, cookies of sticky clients.

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};
use hyper::body::Incoming;

use crate::endpoint::Endpoint;
use crate::group::{APP_COOKIE, COOKIE, Group};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// What is wrong with a request that others might understand in another way.
pub(super) fn wrong(request: &Request<Incoming>) -> Option<&'static str> {
    let headers = request.headers();
    if headers.contains_key(header::TRANSFER_ENCODING) && headers.contains_key(header::CONTENT_LENGTH) {
        return Some("both Transfer-Encoding and Content-Length");
    }
    if headers.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some() {
        return Some("more than one Content-Length");
    }
    let hosts = headers.get_all(header::HOST).iter().count();
    if hosts > 1 {
        return Some("more than one Host");
    }
    if request.version() == Version::HTTP_11 && hosts == 0 {
        return Some("no Host");
    }
    let is_host = |value: &HeaderValue| http::uri::Authority::try_from(value.as_bytes()).is_ok();
    if headers.get(header::HOST).is_some_and(|host| !is_host(host)) {
        return Some("a Host that is none");
    }
    if request.method() == Method::CONNECT {
        return Some("CONNECT is not for load balancers");
    }
    None
}

pub(super) fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE)
}

/// The protocol that a client wants to go on with.
pub(super) fn upgrade_of(request: &Request<Incoming>) -> Option<HeaderValue> {
    let named = request.headers().get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let wants = named.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    let protocol = request.headers().get(header::UPGRADE).filter(|_| wants && request.version() == Version::HTTP_11);
    // HTTP/2 over a connection that began as HTTP/1 is nobody's wish.
    protocol.filter(|protocol| !protocol.as_bytes().eq_ignore_ascii_case(b"h2c")).cloned()
}

/// Headers that are for one connection only.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    HTTP2_SETTINGS,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What a client cannot take from its own request by calling it the connection's.
const KEPT: [&str; 8] =
    ["close", "keep-alive", "te", "host", "content-length", "content-type", "authorization", "cookie"];

/// Takes away the headers that are for one connection only.
pub(super) fn strip(headers: &mut HeaderMap) {
    // Most have none: comparing names costs less than looking for each.
    if !headers.keys().any(|name| HOP_BY_HOP.contains(name)) {
        return;
    }
    let values = headers.get_all(header::CONNECTION).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    let named = values.map(|value| value.to_ascii_lowercase()).collect::<Vec<_>>().join(",");
    for name in named.split(',').map(str::trim).filter(|name| !name.is_empty() && !KEPT.contains(name)) {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// With the path alone, as targets of HTTP/1 take it.
pub(super) fn for_http1(parts: &mut http::request::Parts) {
    parts.version = Version::HTTP_11;
    if parts.uri.scheme().is_some() || parts.uri.authority().is_some() {
        let path = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        parts.uri = path.parse().unwrap_or_default();
    }
    parts.headers.remove(header::TE);
}

/// With its host in the address, as HTTP/2 has it.
pub(super) fn for_http2(parts: &mut http::request::Parts, tls: bool) {
    parts.version = Version::HTTP_2;
    // At a second try it is where the first one has put it.
    let host = parts.headers.remove(header::HOST);
    let known = parts.uri.authority().map(http::uri::Authority::as_str);
    let host = host.as_ref().and_then(|host| host.to_str().ok()).or(known).unwrap_or("target");
    let path = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let scheme = if tls { "https" } else { "http" };
    parts.uri = Uri::builder().scheme(scheme).authority(host).path_and_query(path).build().unwrap_or_default();
}

/// What a client's cookie says of the target that it was sent to.
pub(super) fn cookie_of(headers: &HeaderMap) -> Option<u64> {
    let pairs = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = pairs.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let found = pairs.find(|(name, _)| *name == COOKIE || *name == APP_COOKIE);
    u64::from_str_radix(found?.1, 16).ok()
}

/// Has the client come back to this target.
pub(super) fn stick(headers: &mut HeaderMap, group: &Group, endpoint: &Endpoint) {
    let Some(stickiness) = &group.spec.stickiness else { return };
    let seconds = stickiness.duration_seconds();
    let name = if stickiness.r#type == "app_cookie" {
        let prefix = format!("{}=", stickiness.cookie_name);
        let mut set = headers.get_all(header::SET_COOKIE).iter().filter_map(|value| value.to_str().ok());
        // For as long as the application has a session.
        if !set.any(|value| value.starts_with(&prefix)) {
            return;
        }
        APP_COOKIE
    } else {
        COOKIE
    };
    let value = format!("{name}={:016x}; Max-Age={seconds}; Path=/; HttpOnly", endpoint.cookie);
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.append(header::SET_COOKIE, value);
    }
}
