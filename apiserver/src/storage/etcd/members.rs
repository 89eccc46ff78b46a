//! The members of an etcd, and calls to one of them.
//!
//! All calls go to one member until it fails; then to the next. (Spread over all, a member that is gone would
//! answer fastest of all, with an error, and draw more calls than the others.) A read is asked again elsewhere; a
//! write only when it was surely not done: everything else is an unknown outcome, and its caller must look.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use tokio::time::Instant;
use tower::retry::budget::{Budget as _, TpsBudget};

use crate::storage::StorageError;

/// How long a call may take, tries on other members included. An election takes less than two seconds.
const DEADLINE: Duration = Duration::from_secs(3);
/// How long one member may take, while there are others: a write that was passed on to a leader that died in that moment
/// is never answered.
const ATTEMPT: Duration = Duration::from_millis(1500);
/// Between tries, once every member was tried.
const PAUSE: Duration = Duration::from_millis(50);
/// Calls that are asked again because one before was not answered, by all callers together: so many a second, and one
/// for every two calls that were answered in the last [`BUDGET_SPAN`]. An etcd that is in trouble must not get many times
/// the calls of one that is well.
const BUDGET: (u32, f32) = (50, 0.5);
const BUDGET_SPAN: Duration = Duration::from_secs(10);
/// Between looks at who is a member.
const SYNC: Duration = Duration::from_secs(30);

/// Where etcd is.
#[derive(Debug, Clone, Default)]
pub struct EtcdSettings {
    /// `http://HOST:PORT` or `https://HOST:PORT` of members. The others are found by themselves.
    pub endpoints: Vec<String>,
    /// For `https`.
    pub tls: Option<EtcdTls>,
}

/// How to trust etcd, and how etcd is to trust us. All of it PEM.
#[derive(Debug, Clone, Default)]
pub struct EtcdTls {
    /// The authority that signed etcd's certificate.
    pub authority: Vec<u8>,
    /// Our certificate and its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// A member, and the connection to it.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) endpoint: String,
    pub(super) client: Client,
}

/// The members that are known.
pub(super) struct Members {
    options: ConnectOptions,
    given: Vec<String>,
    known: RwLock<Arc<[Member]>>,
    current: AtomicUsize,
    budget: TpsBudget,
}

impl Members {
    /// Those that were given, and from then on those that they name.
    pub(super) async fn open(settings: &EtcdSettings) -> Result<Arc<Self>, StorageError> {
        // Without require-leader a watch on a member that lost its peers is silent for ever: it has to fail.
        // etcd ends connections that ask for a sign of life more often than every 5 s.
        let mut options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_secs(2))
            .with_keep_alive(Duration::from_secs(6), Duration::from_secs(3))
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some(tls) = &settings.tls {
            let mut config = TlsOptions::new().ca_certificate(Certificate::from_pem(&tls.authority));
            if let Some((certificate, key)) = &tls.identity {
                config = config.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(config);
        }
        let members = Members {
            options,
            given: settings.endpoints.clone(),
            known: RwLock::default(),
            current: AtomicUsize::new(0),
            budget: TpsBudget::new(BUDGET_SPAN, BUDGET.0, BUDGET.1),
        };
        members.set(&settings.endpoints).await?;
        let members = Arc::new(members);
        tokio::spawn(follow(Arc::downgrade(&members)));
        Ok(members)
    }

    /// Every member that is known.
    pub(super) fn all(&self) -> Arc<[Member]> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn set(&self, endpoints: &[String]) -> Result<(), StorageError> {
        let known = self.all();
        let mut members = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            if let Some(member) = known.iter().find(|member| member.endpoint == *endpoint) {
                members.push(member.clone());
                continue;
            }
            let client = Client::connect([endpoint], Some(self.options.clone())).await;
            let client = client.map_err(|error| StorageError::Refused(format!("{endpoint}: {error}")))?;
            members.push(Member { endpoint: endpoint.clone(), client });
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        // The one in use stays the one in use.
        let used = known.get(self.current.load(Ordering::Relaxed) % known.len().max(1)).map(|m| m.endpoint.clone());
        let place = members.iter().position(|member| Some(&member.endpoint) == used.as_ref());
        self.current.store(place.unwrap_or(0), Ordering::Relaxed);
        *known = members.into();
        Ok(())
    }

    /// Asks who is a member now, and knows those from then on.
    async fn sync(&self) -> Result<(), StorageError> {
        let listed =
            self.read("member list", |client| async move { client.cluster_client().member_list().await }).await?;
        let voters = listed.members().iter().filter(|member| !member.is_learner());
        let advertised = voters.flat_map(|member| member.client_urls().iter().cloned());
        let loopback = |url: &str| ["127.", "localhost", "[::1]"].iter().any(|host| url.contains(host));
        let near = self.given.iter().any(|url| loopback(url));
        let mut endpoints = self.given.clone();
        for url in advertised.filter(|url| !url.contains("0.0.0.0") && (near || !loopback(url))) {
            if !endpoints.contains(&url) {
                endpoints.push(url);
            }
        }
        if self.all().iter().map(|member| &member.endpoint).ne(&endpoints) {
            tracing::info!(members = ?endpoints, "etcd's members");
            self.set(&endpoints).await?;
        }
        Ok(())
    }

    /// The member in use, with its number.
    pub(super) fn current(&self) -> (usize, Client) {
        let (members, current) = (self.all(), self.current.load(Ordering::Relaxed));
        (current, members[current % members.len()].client.clone())
    }

    /// Uses the next member from now on, unless somebody did so already.
    pub(super) fn rotate(&self, from: usize) {
        let next = from.wrapping_add(1);
        if self.current.compare_exchange(from, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let members = self.all();
            if members.len() > 1 {
                tracing::info!(member = members[next % members.len()].endpoint, "using another member of etcd");
            }
        }
    }

    /// A call that changes nothing: asked of one member after the other.
    pub(super) async fn read<T, Call>(&self, what: &str, call: impl Fn(Client) -> Call) -> Result<T, StorageError>
    where
        Call: Future<Output = Result<T, Error>>,
    {
        self.call(what, true, |_| true, call).await.map(|(answer, _)| answer)
    }

    /// The same, with the number of the member that answered.
    pub(super) async fn read_from<T, Call>(
        &self,
        what: &str,
        call: impl Fn(Client) -> Call,
    ) -> Result<(T, usize), StorageError>
    where
        Call: Future<Output = Result<T, Error>>,
    {
        self.call(what, true, |_| true, call).await
    }

    /// A call that changes something: asked again only if it was surely not done.
    pub(super) async fn write<T, Call>(&self, what: &str, call: impl Fn(Client) -> Call) -> Result<T, StorageError>
    where
        Call: Future<Output = Result<T, Error>>,
    {
        self.call(what, false, is_undone, call).await.map(|(answer, _)| answer)
    }

    /// `silence` and `again`: whether to ask anew after no answer, and after an error.
    async fn call<T, Call>(
        &self,
        what: &str,
        silence: bool,
        again: impl Fn(&Error) -> bool,
        call: impl Fn(Client) -> Call,
    ) -> Result<(T, usize), StorageError>
    where
        Call: Future<Output = Result<T, Error>>,
    {
        let deadline = Instant::now() + DEADLINE;
        let mut tries = 0;
        loop {
            let (number, client) = self.current();
            let many = self.all().len();
            let attempt = if many > 1 { ATTEMPT } else { DEADLINE };
            let (error, again) =
                match tokio::time::timeout_at(deadline.min(Instant::now() + attempt), call(client)).await {
                    Ok(Ok(answer)) => {
                        self.budget.deposit();
                        return Ok((answer, number));
                    }
                    Ok(Err(error)) => (explain(&error), again(&error)),
                    Err(_) => {
                        let silent = format!("etcd did not answer {what} within {attempt:?}");
                        (StorageError::Unavailable(silent), silence)
                    }
                };
            if !matches!(error, StorageError::Unavailable(_)) {
                return Err(error);
            }
            self.rotate(number);
            tries += 1;
            if !again || Instant::now() + PAUSE >= deadline {
                return Err(error);
            }
            // Every other member may be asked once; what is beyond that is on the budget.
            if tries % many == 0 {
                if !self.budget.withdraw() {
                    return Err(error);
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn follow(members: Weak<Members>) {
    loop {
        tokio::time::sleep(SYNC).await;
        let Some(members) = members.upgrade() else { return };
        if let Err(error) = members.sync().await {
            tracing::debug!(%error, "etcd's members are not known anew");
        }
    }
}

/// What etcd says of a write that it did not even begin.
const REFUSALS: [&str; 3] =
    ["etcdserver: no leader", "etcdserver: too many requests", "etcdserver: rpc not supported for learner"];

/// Whether a call that failed was surely not done: nobody heard it, or whoever did refused it at the door.
fn is_undone(error: &Error) -> bool {
    if let Error::GRpcStatus(status) = error
        && REFUSALS.iter().any(|text| status.message().contains(text))
    {
        return true;
    }
    let mut source: Option<&(dyn std::error::Error + 'static)> = match error {
        Error::GRpcStatus(status) => std::error::Error::source(status),
        Error::TransportError(error) => Some(error),
        _ => None,
    };
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            use ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
            return matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable);
        }
        source = error.source();
    }
    false
}

pub(super) fn explain(error: &Error) -> StorageError {
    // The client's words for a first answer that says the lease is over.
    if let Error::LeaseKeepAliveError(message) = error
        && message.contains("not found")
    {
        return StorageError::LeaseGone;
    }
    let Error::GRpcStatus(status) = error else { return StorageError::Unavailable(error.to_string()) };
    let message = status.message();
    if message.contains("requested lease not found") {
        StorageError::LeaseGone
    } else if message.contains("database space exceeded") {
        StorageError::NoSpace(message.to_owned())
    } else if message.contains("has been compacted") {
        StorageError::Compacted(steady_core::Revision(0))
    } else if matches!(status.code(), tonic::Code::InvalidArgument | tonic::Code::OutOfRange) {
        StorageError::Refused(message.to_owned())
    } else {
        StorageError::Unavailable(format!("etcd: {message}"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[tokio::test]
    async fn calls_are_asked_again_for_as_long_as_the_budget_lasts() {
        // Nobody listens there; a client connects when it is first used.
        let settings = EtcdSettings { endpoints: vec!["http://127.0.0.1:1".into()], tls: None };
        let members = Members::open(&settings).await.expect("connects later");
        let asked = AtomicU32::new(0);
        let calls = (0..200).map(|_| {
            members.read("get", |_| async {
                asked.fetch_add(1, Ordering::Relaxed);
                Err::<(), _>(Error::GRpcStatus(tonic::Status::unavailable("etcdserver: no leader")))
            })
        });
        let answers = futures::future::join_all(calls).await;
        assert!(answers.iter().all(Result::is_err));
        // Without a budget each would be asked again every 50 ms for 3 s.
        assert_eq!(asked.load(Ordering::Relaxed), 200 + 50 * 10);
    }
}
