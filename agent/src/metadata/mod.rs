//! The task metadata endpoint (ECS, version 4) and the credentials endpoint: what containers are told of themselves, over HTTP at the
//! address that every AWS SDK asks, `169.254.170.2`.
//!
//! Each container has an address of its own that nobody else can guess: it is made of its task, and of a key that only the agent
//! has; so it is the same after a restart of the agent. A task with a network of its own is answered only there.

mod bucket;
pub(crate) mod document;
mod protection;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use steady_core::Timestamp;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::engine::Input;
use crate::runtime::{ContainerId, Runtime, cni};
use bucket::Buckets;
pub(crate) use protection::Protector;

/// Where containers ask (ECS).
pub const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)), 80);

/// Where it listens for what comes to [`ADDRESS`] (ECS).
const PORT: u16 = 51679;
/// Longest that a request's head may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most connections at once, and how long one may last.
const CONNECTIONS: usize = 256;
const CONVERSATION: Duration = Duration::from_secs(30);
/// Longest token.
const TOKEN: usize = 100;
/// Largest body, bytes.
const BODY: usize = 4096;
/// How long an engine may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How long credentials may be used before they are asked for again.
const CREDENTIALS: Duration = Duration::from_secs(3600);

/// What a container is told by: its task and itself.
pub(crate) struct Told {
    /// Who asks.
    pub(crate) id: ContainerId,
    /// Its task has a network of its own.
    pub(crate) has_own_network: bool,
    /// The address there.
    pub(crate) from: Option<String>,
    /// The task, with all of its containers.
    pub(crate) task: Value,
    /// Containers that run, and what an engine calls them.
    pub(crate) running: Vec<(ContainerId, String)>,
    /// Its role; empty: none.
    pub(crate) role: String,
    /// The role's credentials: members of a secret.
    pub(crate) credentials: Option<String>,
    /// Its service does not choose it to stop before this.
    pub(crate) protected_until: Option<Timestamp>,
}

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Told").field("id", &self.id).finish_non_exhaustive()
    }
}

/// How containers of an agent find the endpoint.
#[derive(Clone)]
pub(crate) struct Addresses {
    at: SocketAddr,
    key: [u8; 32],
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Addresses").field("at", &self.at).finish_non_exhaustive()
    }
}

impl Addresses {
    /// With the key of the agent's directory, which is made if it is not there.
    pub(crate) fn open(at: SocketAddr, directory: &Path) -> io::Result<Self> {
        let path = directory.join("metadata.key");
        if let Ok(bytes) = std::fs::read(&path)
            && let Ok(key) = <[u8; 32]>::try_from(bytes)
        {
            return Ok(Addresses { at, key });
        }
        let mut key = [0; 32];
        io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut key)?;
        let part = path.with_extension("part");
        let mut options = std::fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.create(true).truncate(true).write(true).open(&part)?;
        io::Write::write_all(&mut file, &key)?;
        file.sync_all()?;
        std::fs::rename(part, path)?;
        Ok(Addresses { at, key })
    }

    /// The last part of a container's addresses: its task, and what nobody can guess.
    pub(crate) fn token(&self, id: &ContainerId) -> String {
        let mut hash = Sha256::new();
        for part in [&self.key[..], id.task.as_bytes(), b".", id.name.as_bytes()] {
            hash.update(part);
        }
        hash.finalize().iter().take(16).fold(format!("{}-", id.task), |text, byte| format!("{text}{byte:02x}"))
    }

    /// Variables that lead a container there (ECS); with those of its credentials where its task has a role.
    pub(crate) fn variables(&self, id: &ContainerId, has_role: bool) -> Vec<(String, String)> {
        let (base, token) = (self.base(), self.token(id));
        let mut all = vec![
            ("ECS_CONTAINER_METADATA_URI_V4".to_owned(), format!("{base}/v4/{token}")),
            ("ECS_CONTAINER_METADATA_URI".to_owned(), format!("{base}/v3/{token}")),
            ("ECS_AGENT_URI".to_owned(), format!("{base}/api/{token}")),
        ];
        let path = format!("/v2/credentials/{token}");
        if has_role && self.at == ADDRESS {
            all.push(("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI".to_owned(), path));
        } else if has_role {
            all.push(("AWS_CONTAINER_CREDENTIALS_FULL_URI".to_owned(), base + &path));
        }
        all
    }

    fn base(&self) -> String {
        if self.at.port() == 80 { format!("http://{}", self.at.ip()) } else { format!("http://{}", self.at) }
    }
}

/// One agent of the process.
struct Seat {
    instance: String,
    engine: mpsc::UnboundedSender<Input>,
    runtime: Arc<dyn Runtime>,
    protector: Protector,
}

/// The endpoint of all agents of a process.
pub struct Endpoint {
    at: SocketAddr,
    seats: Mutex<Vec<Seat>>,
    buckets: Mutex<Buckets>,
}

/// Takes an agent's place back.
pub(crate) struct Seated {
    endpoint: Arc<Endpoint>,
    instance: String,
}

impl Drop for Seated {
    fn drop(&mut self) {
        let mut seats = self.endpoint.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats.retain(|seat| seat.instance != self.instance);
    }
}

/// An answer that is no 200.
type Refusal = (StatusCode, &'static str);

impl Endpoint {
    /// Listens, until the process ends. [`ADDRESS`] is added to this machine's loopback interface if it is not there; what comes
    /// to its port 80 is led to another one, so that tasks can have the machine's port 80.
    pub async fn open(at: SocketAddr) -> io::Result<Arc<Self>> {
        let listener = if at == ADDRESS { Self::bind().await? } else { TcpListener::bind(at).await? };
        let at = if at == ADDRESS { at } else { listener.local_addr()? };
        let endpoint = Arc::new(Endpoint { at, seats: Mutex::default(), buckets: Mutex::default() });
        let serving = Arc::clone(&endpoint);
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        tokio::spawn(async move {
            loop {
                let Ok((stream, peer)) = listener.accept().await else {
                    // Too many open files, most likely: what is open has to end first.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                // Those who ask too much of the agent wait for each other, and not it for them.
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                let talk = Arc::clone(&serving).talk(stream, peer.ip());
                tokio::spawn(async move {
                    let _place = place;
                    let _ = tokio::time::timeout(CONVERSATION, talk).await;
                });
            }
        });
        Ok(endpoint)
    }

    async fn bind() -> io::Result<TcpListener> {
        let own = SocketAddr::new(ADDRESS.ip(), PORT);
        let listener = match TcpListener::bind(own).await {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                let added =
                    Command::new("ip").args(["address", "add", "169.254.170.2/32", "dev", "lo"]).output().await?;
                if !added.status.success() {
                    return Err(io::Error::other(String::from_utf8_lossy(&added.stderr).trim().to_owned()));
                }
                TcpListener::bind(own).await?
            }
            bound => bound?,
        };
        let (ip, to) = (ADDRESS.ip().to_string(), own.to_string());
        let rule = ["-d", &ip, "-p", "tcp", "--dport", "80", "-j", "DNAT", "--to-destination", &to];
        for chain in ["PREROUTING", "OUTPUT"] {
            // Before those of engines, which lead a machine's port 80 to a task of somebody's.
            if !cni::ensure(chain, "-I", &rule).await {
                return Err(io::Error::other(format!("iptables does not lead {ip}:80 to port {PORT}")));
            }
        }
        Ok(listener)
    }

    /// Where containers find it.
    pub fn address(&self) -> SocketAddr {
        self.at
    }

    pub(crate) fn join(
        self: &Arc<Self>,
        instance: &str,
        engine: mpsc::UnboundedSender<Input>,
        runtime: Arc<dyn Runtime>,
        protector: Protector,
    ) -> Seated {
        let seat = Seat { instance: instance.to_owned(), engine, runtime, protector };
        self.seats.lock().unwrap_or_else(PoisonError::into_inner).push(seat);
        Seated { endpoint: Arc::clone(self), instance: instance.to_owned() }
    }

    async fn talk(self: Arc<Self>, stream: TcpStream, peer: IpAddr) {
        let service = service_fn(move |request: Request<Incoming>| {
            let endpoint = Arc::clone(&self);
            async move {
                let (head, body) = request.into_parts();
                // What has no body at all is asked for most of the time.
                let body = Limited::new(body, BODY).collect().await.map(http_body_util::Collected::to_bytes);
                let answer = match body {
                    Ok(body) => endpoint.answer(&head.method, head.uri.path(), &body, peer).await,
                    Err(_) => Err((StatusCode::PAYLOAD_TOO_LARGE, "more than 4 KiB")),
                };
                let (status, body) = match answer {
                    Ok((status, body)) => (status, body.to_string()),
                    Err((status, message)) => {
                        (status, json!({ "code": status.as_u16(), "message": message }).to_string())
                    }
                };
                let mut response = Response::new(Full::new(Bytes::from(body)));
                *response.status_mut() = status;
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
                Ok::<_, Infallible>(response)
            }
        });
        let mut connection = http1::Builder::new();
        connection.timer(TokioTimer::new()).header_read_timeout(PATIENCE).half_close(true);
        let _ = connection.serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(
        &self,
        method: &Method,
        path: &str,
        body: &[u8],
        peer: IpAddr,
    ) -> Result<(StatusCode, Value), Refusal> {
        let unknown = (StatusCode::NOT_FOUND, "there is nothing at this path");
        let (kind, rest) = ["/v4/", "/v3/", "/v2/credentials/", "/api/"]
            .into_iter()
            .find_map(|kind| Some((kind, path.strip_prefix(kind)?)))
            .ok_or(unknown)?;
        let (token, what) = rest.split_once('/').unwrap_or((rest, ""));
        let is_protection = kind == "/api/" && what == protection::PATH;
        if method != Method::GET && !(is_protection && method == Method::PUT) {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "only GET; of task protection, PUT too"));
        }
        if token.len() > TOKEN {
            return Err((StatusCode::NOT_FOUND, "no such container"));
        }
        if !self.buckets.lock().unwrap_or_else(PoisonError::into_inner).take(token) {
            return Err((StatusCode::TOO_MANY_REQUESTS, "more than 40 requests a second; ask less often"));
        }
        let (told, runtime, protector) = self.ask(token).await.ok_or((StatusCode::NOT_FOUND, "no such container"))?;
        if told.has_own_network && told.from != Some(peer.to_string()) {
            return Err((StatusCode::FORBIDDEN, "this is another task's address"));
        }
        if is_protection {
            let (task, now) = (&told.id.task, Timestamp::from(SystemTime::now()));
            return Ok(protector.answer(task, told.protected_until, method, body, now).await);
        }
        let told = match (kind, what) {
            ("/v2/credentials/", "") => {
                if told.role.is_empty() {
                    return Err((StatusCode::NOT_FOUND, "the task has no taskRoleArn"));
                }
                let later = "the role's credentials are not known yet; ask again";
                let secret = told.credentials.ok_or((StatusCode::SERVICE_UNAVAILABLE, later))?;
                let until = Timestamp::from(SystemTime::now() + CREDENTIALS);
                document::credentials(&told.role, &secret, until).ok_or((
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the role's secret has no AccessKeyId and SecretAccessKey",
                ))
            }
            ("/v4/" | "/v3/", "") => document::container(&told.task, &told.id.name).ok_or(unknown),
            ("/v4/" | "/v3/", "task") | ("/v4/", "taskWithTags") => Ok(told.task),
            ("/v4/" | "/v3/", "stats") => runtime.usage(&told.id).await.map_or(Ok(Value::Null), |usage| {
                Ok(document::stats(&told.id.name, &usage, Timestamp::from(SystemTime::now())))
            }),
            ("/v4/" | "/v3/", "task/stats") => {
                let mut all = serde_json::Map::new();
                for (id, runtime_id) in told.running {
                    let usage = runtime.usage(&id).await.ok();
                    let now = Timestamp::from(SystemTime::now());
                    all.insert(runtime_id, usage.map_or(Value::Null, |usage| document::stats(&id.name, &usage, now)));
                }
                Ok(Value::Object(all))
            }
            _ => Err(unknown),
        };
        told.map(|body| (StatusCode::OK, body))
    }

    /// Whose container has this token.
    async fn ask(&self, token: &str) -> Option<(Told, Arc<dyn Runtime>, Protector)> {
        let seats: Vec<_> = {
            let seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
            let seat = |seat: &Seat| (seat.engine.clone(), Arc::clone(&seat.runtime), seat.protector.clone());
            seats.iter().map(seat).collect()
        };
        for (engine, runtime, protector) in seats {
            let (answer, answered) = oneshot::channel();
            let _ = engine.send(Input::Asked { token: token.to_owned(), answer });
            if let Ok(Ok(told)) = tokio::time::timeout(ANSWER, answered).await {
                return Some((told, runtime, protector));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_keeps_its_address_and_no_other_has_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let open = || Addresses::open(ADDRESS, directory.path()).expect("opened");
        let id = |name: &str| ContainerId { task: "t".into(), name: name.into() };
        assert_eq!(open().token(&id("web")), open().token(&id("web")));
        assert_ne!(open().token(&id("web")), open().token(&id("side")));
        let variables = open().variables(&id("web"), true);
        assert!(variables[0].1.starts_with("http://169.254.170.2/v4/t-"), "{variables:?}");
        assert!(variables[2].1.starts_with("http://169.254.170.2/api/t-"), "{variables:?}");
        assert!(variables[3].1.starts_with("/v2/credentials/t-"), "{variables:?}");
        let elsewhere = Addresses { at: "127.0.0.1:51679".parse().expect("an address"), ..open() };
        let variables = elsewhere.variables(&id("web"), true);
        assert!(variables[3].1.starts_with("http://127.0.0.1:51679/v2/credentials/t-"), "{variables:?}");
    }
}
