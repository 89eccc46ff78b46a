//! TLS: certificates by the name that a client asks for, and connections to targets.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tokio_rustls::TlsConnector;

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));

/// Certificates by the name of their secret, with the names that they are for.
pub(crate) type Certificates = BTreeMap<String, Certificate>;

/// One of them.
#[derive(Debug, Clone)]
pub(crate) struct Certificate {
    /// The secret's value: what it was made of.
    pub(crate) value: String,
    key: Arc<CertifiedKey>,
}

impl Certificate {
    /// Of a JSON object of `certificate` and `privateKey`, both PEM.
    pub(crate) fn parse(value: &str) -> Result<Self, String> {
        let parsed: serde_json::Value =
            serde_json::from_str(value).map_err(|_| "is no JSON object of certificate and privateKey".to_owned())?;
        let member = |name: &str| {
            let text = parsed.get(name).and_then(serde_json::Value::as_str);
            text.ok_or_else(|| format!("has no member `{name}`"))
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(member("certificate")?.as_bytes()).collect();
        let chain = chain.map_err(|error| format!("certificate: {error}"))?;
        if chain.is_empty() {
            return Err("certificate: there is none in it".to_owned());
        }
        let key = PrivateKeyDer::from_pem_slice(member("privateKey")?.as_bytes());
        let key = key.map_err(|error| format!("privateKey: {error}"))?;
        let certified = CertifiedKey::from_der(chain, key, &PROVIDER).map_err(|error| error.to_string())?;
        Ok(Certificate { value: value.to_owned(), key: Arc::new(certified) })
    }

    /// Certificate and key, PEM, for those that take them as text.
    pub(crate) fn texts(&self) -> Option<(String, String)> {
        let parsed: serde_json::Value = serde_json::from_str(&self.value).ok()?;
        let member = |name: &str| Some(parsed.get(name)?.as_str()?.trim_end().to_owned() + "\n");
        Some((member("certificate")?, member("privateKey")?))
    }

    fn is_for(&self, name: &str) -> bool {
        let Some(first) = self.key.cert.first() else { return false };
        let Ok(parsed) = rustls::server::ParsedCertificate::try_from(first) else { return false };
        let Ok(name) = ServerName::try_from(name) else { return false };
        rustls::client::verify_server_name(&parsed, &name).is_ok()
    }
}

/// The certificates of one listener, as they are now.
#[derive(Debug)]
struct Resolver {
    names: Vec<String>,
    all: Arc<RwLock<Certificates>>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let all = self.all.read().ok()?;
        let its: Vec<&Certificate> = self.names.iter().filter_map(|name| all.get(name)).collect();
        let asked = hello.server_name();
        let found = asked.and_then(|name| its.iter().find(|certificate| certificate.is_for(name)));
        found.or(its.first()).map(|certificate| Arc::clone(&certificate.key))
    }
}

/// How clients of a listener are met.
pub(crate) fn of_listener(names: Vec<String>, all: Arc<RwLock<Certificates>>, alpn: &[&[u8]]) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER)).with_safe_default_protocol_versions();
    let mut config = match builder {
        Ok(builder) => builder.with_no_client_auth().with_cert_resolver(Arc::new(Resolver { names, all })),
        // The provider's own versions are its own.
        Err(error) => unreachable!("{error}"),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

/// How targets are met that speak TLS.
pub(crate) fn to_targets(alpn: &[&[u8]]) -> TlsConnector {
    let builder = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER)).with_safe_default_protocol_versions();
    let mut config = match builder {
        Ok(builder) => builder.dangerous().with_custom_certificate_verifier(Arc::new(Whoever)).with_no_client_auth(),
        Err(error) => unreachable!("{error}"),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

/// Targets are known by their addresses: their certificates are not looked at (Elastic Load Balancing), their signatures are.
#[derive(Debug)]
struct Whoever;

impl ServerCertVerifier for Whoever {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signed,
            &PROVIDER.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signed,
            &PROVIDER.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}
