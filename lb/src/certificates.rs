//! Certificates of listeners: asked for, kept for a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use steady_core::v1::GetCertificatesRequest;
use steady_runtime::Client;

use crate::keep::Kept;
use crate::tls::{Certificate, Certificates};

/// Most that are asked for at once.
const MOST: usize = 100;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Knows certificates, and where more are to be had.
pub(crate) struct Keys {
    pub(crate) client: Client,
    pub(crate) cluster: String,
    pub(crate) kept: Kept,
    pub(crate) all: Arc<RwLock<Certificates>>,
}

impl Keys {
    /// Whether one of these is not known.
    pub(crate) fn lacks(&self, named: &BTreeSet<String>) -> bool {
        let known = self.all.read().unwrap_or_else(PoisonError::into_inner);
        named.iter().any(|name| !known.contains_key(name))
    }

    /// Asks for these, and forgets all others. What is not told stays as it is known.
    pub(crate) async fn learn(&self, named: &BTreeSet<String>) {
        let mut news = false;
        for part in named.iter().cloned().collect::<Vec<_>>().chunks(MOST) {
            let request = GetCertificatesRequest { cluster: self.cluster.clone(), certificates: part.to_vec() };
            let mut traffic = self.client.traffic();
            let answer = match tokio::time::timeout(PATIENCE, traffic.get_certificates(request)).await {
                Ok(Ok(answer)) => answer.into_inner(),
                Ok(Err(status)) => {
                    return tracing::warn!(%status, "certificates are not told; those stay that are known");
                }
                Err(_) => return,
            };
            for (name, why) in answer.missing {
                tracing::error!(certificate = name, why, "a certificate of a listener cannot be had");
            }
            news |= self.take(answer.certificates);
        }
        let mut known = self.all.write().unwrap_or_else(PoisonError::into_inner);
        // Keys that nobody names are nobody's to have.
        let before = known.len();
        known.retain(|name, _| named.contains(name));
        if !news && known.len() == before {
            return;
        }
        let all: serde_json::Map<String, serde_json::Value> =
            known.iter().map(|(name, certificate)| (name.clone(), certificate.value.clone().into())).collect();
        if let Err(error) = self.kept.keep_certificates(&all.into()) {
            tracing::warn!(%error, "certificates could not be kept for a restart");
        }
    }

    /// Knows what was kept.
    pub(crate) fn load(&self) {
        let kept = self.kept.load_certificates();
        let all = kept.as_ref().and_then(|all| all.as_object()).into_iter().flatten();
        self.take(all.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect());
    }

    /// Whether one of them was not known.
    fn take(&self, told: BTreeMap<String, String>) -> bool {
        let mut known = self.all.write().unwrap_or_else(PoisonError::into_inner);
        let mut news = false;
        for (name, value) in told {
            if known.get(&name).is_some_and(|certificate| certificate.value == value) {
                continue;
            }
            match Certificate::parse(&value) {
                Ok(certificate) => {
                    known.insert(name, certificate);
                    news = true;
                }
                Err(why) => {
                    tracing::error!(certificate = name, why, "a certificate of a listener is wrong: its secret");
                }
            }
        }
        news
    }
}
