//! Images in containerd's stores: pulled from a registry, imported by others (`ctr -n steady images import`), or made of the running
//! program; unpacked layer by layer into snapshots.

use std::collections::{BTreeMap, HashMap};
use std::sync::Once;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::services::v1::{
    ApplyRequest, CreateImageRequest, DeleteImageRequest, GetImageRequest, Image, Info, InfoRequest,
    ReadContentRequest, UpdateImageRequest, UpdateRequest,
};
use containerd_client::types::Descriptor;
use futures::{StreamExt, stream};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use prost_types::FieldMask;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::api::{Api, Failed, LOOK, STEP, call, causes, done, failed, optional};
use super::content::{Lease, unique, write};
use crate::runtime::image::{Images, MADE_OF, SELF, SELF_PATH, archive, identity};
use crate::runtime::{Credentials, RuntimeError};

/// Media types.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Most bytes of a manifest or a config.
const LARGEST: usize = 8 << 20;
/// How long a registry may be silent.
const CONNECT: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(60);
/// Label with the digest by which the image can be pulled again: of the list where it is of several platforms.
const DIGEST: &str = "steady.digest";

/// What an image says of containers made of it (the OCI image's `config`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Config {
    pub(super) entrypoint: Option<Vec<String>>,
    pub(super) cmd: Option<Vec<String>>,
    pub(super) env: Option<Vec<String>>,
    pub(super) working_dir: String,
    pub(super) user: String,
    pub(super) stop_signal: String,
    pub(super) labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
struct ConfigFile {
    #[serde(default)]
    config: Config,
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: i64,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// A manifest, or a list of them.
#[derive(Debug, Deserialize)]
struct Manifest {
    config: Option<Named>,
    #[serde(default)]
    layers: Vec<Named>,
    #[serde(default)]
    manifests: Vec<Named>,
}

/// An image that is unpacked.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) config: Config,
    /// The snapshot that has all of its layers; empty for an image without any.
    pub(super) snapshot: String,
}

/// The stores.
#[derive(Debug, Clone)]
pub(super) struct Store {
    api: Api,
    snapshotter: String,
}

/// `sha256:` and its 64 hex digits.
fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// Names of the snapshots that have the first layer, the first two, … (OCI's chain ids).
fn chain(layers: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::new();
    for layer in layers {
        let next = chain.last().map_or_else(|| layer.clone(), |below| digest(format!("{below} {layer}").as_bytes()));
        chain.push(next);
    }
    chain
}

/// An image's full name, as containerd's other clients have it.
fn full(image: &str) -> Result<Reference, String> {
    image.parse().map_err(|e| format!("invalid reference format: {e}"))
}

/// The machine's, as images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Store {
    pub(super) fn new(api: Api, snapshotter: String) -> Self {
        Store { api, snapshotter }
    }

    pub(super) fn snapshotter(&self) -> &str {
        &self.snapshotter
    }

    async fn image(&self, image: &str) -> Result<Option<Image>, Failed> {
        let name = full(image).map_err(Failed::Refused)?.whole();
        let found = call("image", LOOK, self.api.images().get(GetImageRequest { name })).await;
        Ok(optional(found)?.and_then(|found| found.image))
    }

    /// Removes an image's name; its parts go when nothing else has them. Containers keep theirs.
    pub(super) async fn remove(&self, image: &str) -> Result<(), Failed> {
        let name = full(image).map_err(Failed::Refused)?.whole();
        let request = DeleteImageRequest { name, sync: true, target: None };
        done(call("remove image", STEP, self.api.images().delete(request)).await)
    }

    /// What an image says of its containers, and the snapshot to make them of: unpacked now if it is not yet.
    pub(super) async fn unpacked(&self, image: &str) -> Result<Unpacked, RuntimeError> {
        let failed = |failed: Failed| failed.or(|text| RuntimeError::Pull(format!("{image}: {text}")));
        let found = self.image(image).await.map_err(failed)?;
        let target = found.and_then(|found| found.target);
        let target = target.ok_or_else(|| RuntimeError::Pull(format!("{image}: no such image")))?;
        let leased = Lease::take(&self.api).await.map_err(failed)?;
        let unpacked = self.unpack(&leased, &target.digest).await;
        leased.end().await;
        unpacked.map_err(failed)
    }

    /// Unpacks what is in the content store.
    async fn unpack(&self, lease: &Lease, target: &str) -> Result<Unpacked, Failed> {
        let mut manifest: Manifest = self.read(target).await?;
        if manifest.config.is_none() {
            let own = manifest
                .manifests
                .iter()
                .find(|of| of.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == architecture()));
            let own = own.or(manifest.manifests.first()).map(|of| of.digest.clone());
            manifest = self.read(&own.ok_or_else(|| Failed::Refused("an index without manifests".into()))?).await?;
        }
        let config = manifest.config.ok_or_else(|| Failed::Refused("a manifest without a config".into()))?;
        let file: ConfigFile = self.read(&config.digest).await?;
        let chain = chain(&file.rootfs.diff_ids);
        if manifest.layers.len() != chain.len() {
            let (layers, ids) = (manifest.layers.len(), chain.len());
            return Err(Failed::Refused(format!("the manifest has {layers} layers, the config names {ids}")));
        }
        let mut parent = String::new();
        for ((layer, name), id) in manifest.layers.iter().zip(&chain).zip(&file.rootfs.diff_ids) {
            self.layer(lease, layer, id, name, &parent).await?;
            parent.clone_from(name);
        }
        // As long as the config is there the snapshot is.
        if !parent.is_empty() {
            let labels =
                HashMap::from([(format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter), parent.clone())]);
            self.label(&config.digest, labels).await?;
        }
        Ok(Unpacked { config: file.config, snapshot: parent })
    }

    /// Unpacks one layer onto those below it.
    async fn layer(&self, lease: &Lease, layer: &Named, id: &str, name: &str, parent: &str) -> Result<(), Failed> {
        let (snapshotter, api) = (|| self.snapshotter.clone(), &lease.api);
        let stat = StatSnapshotRequest { snapshotter: snapshotter(), key: name.to_owned() };
        if optional(call("snapshot", LOOK, api.snapshots().stat(stat)).await)?.is_some() {
            return lease.hold(&format!("snapshots/{}", self.snapshotter), name).await;
        }
        let key = format!("steady-unpack-{}-{name}", unique());
        let request = PrepareSnapshotRequest {
            snapshotter: snapshotter(),
            key: key.clone(),
            parent: parent.to_owned(),
            labels: HashMap::new(),
        };
        let prepared = call("prepare", LOOK, api.snapshots().prepare(request)).await?;
        let descriptor = Descriptor {
            media_type: layer.media_type.clone(),
            digest: layer.digest.clone(),
            size: layer.size,
            annotations: HashMap::new(),
        };
        let request =
            ApplyRequest { diff: Some(descriptor), mounts: prepared.mounts, payloads: HashMap::new(), sync_fs: false };
        let applied = async {
            let applied = call("unpack", STEP, api.diff().apply(request)).await?;
            let got = applied.applied.map(|applied| applied.digest).unwrap_or_default();
            if got != id {
                return Err(Failed::Refused(format!("wrong digest: the config says {id}, the layer is {got}")));
            }
            let request = CommitSnapshotRequest {
                snapshotter: snapshotter(),
                name: name.to_owned(),
                key: key.clone(),
                labels: HashMap::new(),
            };
            call("commit", LOOK, api.snapshots().commit(request)).await
        };
        match applied.await {
            Ok(()) => Ok(()),
            // Another container of the same image was first, or it failed: either way this one is of no use.
            Err(error) => {
                let request = RemoveSnapshotRequest { snapshotter: snapshotter(), key };
                let _ = call("remove", LOOK, api.snapshots().remove(request)).await;
                match error {
                    Failed::Exists => Ok(()),
                    error => Err(error),
                }
            }
        }
    }

    async fn read<T: for<'de> Deserialize<'de>>(&self, digest: &str) -> Result<T, Failed> {
        let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        let mut stream = call("read", LOOK, self.api.content().read(request)).await?;
        let mut bytes = Vec::new();
        let rest = async {
            while let Some(piece) = stream.message().await.map_err(|status| failed(&status))? {
                bytes.extend_from_slice(&piece.data);
                if bytes.len() > LARGEST {
                    return Err(Failed::Refused(format!("{digest} has more than {LARGEST} bytes")));
                }
            }
            Ok(())
        };
        let silent =
            |_| Failed::Silent(RuntimeError::Timeout(format!("containerd did not send {digest} within {LOOK:?}")));
        tokio::time::timeout(LOOK, rest).await.map_err(silent)??;
        serde_json::from_slice(&bytes).map_err(|e| Failed::Refused(format!("{digest}: {e}")))
    }

    async fn label(&self, digest: &str, labels: HashMap<String, String>) -> Result<(), Failed> {
        let paths = labels.keys().map(|name| format!("labels.{name}")).collect();
        let info = Info { digest: digest.to_owned(), labels, ..Info::default() };
        let request = UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) };
        call("label", LOOK, self.api.content().update(request)).await.map(|_| ())
    }

    async fn has(&self, digest: &str) -> Result<bool, Failed> {
        let request = InfoRequest { digest: digest.to_owned() };
        Ok(optional(call("content", LOOK, self.api.content().info(request)).await)?.is_some())
    }

    /// Puts an image together whose parts are in the content store, and gives it its name.
    async fn name(&self, image: &str, manifest: &Descriptor, labels: HashMap<String, String>) -> Result<(), Failed> {
        let image = Image {
            name: image.to_owned(),
            labels,
            target: Some(manifest.clone()),
            created_at: None,
            updated_at: None,
        };
        let request = CreateImageRequest { image: Some(image.clone()), ..CreateImageRequest::default() };
        match call("create image", LOOK, self.api.images().create(request)).await {
            Err(Failed::Exists) => {
                let request = UpdateImageRequest { image: Some(image), ..UpdateImageRequest::default() };
                call("update image", LOOK, self.api.images().update(request)).await.map(|_| ())
            }
            created => created.map(|_| ()),
        }
    }

    async fn pull(&self, lease: &Lease, reference: &Reference, auth: &RegistryAuth) -> Result<(), String> {
        let (client, api) = (registry(reference), &lease.api);
        let (manifest, own, list) = client.pull_image_manifest_and_list_digest(reference, auth).await.map_err(said)?;
        let pinned = reference.clone_with_digest(own.clone());
        let (raw, _) = client.pull_manifest_raw(&pinned, auth, &[MANIFEST, DOCKER_MANIFEST]).await.map_err(said)?;
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            if self.has(&blob.digest).await.map_err(Failed::text)? {
                lease.hold("content", &blob.digest).await.map_err(Failed::text)?;
                continue;
            }
            let stream = client.pull_blob_stream(&pinned, blob).await.map_err(said)?;
            let pieces = stream.stream.map(|piece| piece.map_err(|e| format!("the registry broke off: {e}")));
            write(api, &blob.digest, blob.size, pieces.boxed(), HashMap::new()).await?;
        }
        let layers = manifest.layers.iter().map(|layer| layer.digest.clone());
        let labels = references(&manifest.config.digest, layers);
        let size = raw.len() as i64;
        write(api, &own, size, stream::iter([Ok(raw)]).boxed(), labels).await?;
        let media_type = manifest.media_type.unwrap_or_else(|| MANIFEST.to_owned());
        let target = Descriptor { media_type, digest: own.clone(), size, annotations: HashMap::new() };
        self.unpack(lease, &own).await.map_err(Failed::text)?;
        let labels = HashMap::from([(DIGEST.to_owned(), list.unwrap_or(own))]);
        self.name(&reference.whole(), &target, labels).await.map_err(Failed::text)
    }

    async fn import_self(&self, lease: &Lease, of: &str) -> Result<(), String> {
        let api = &lease.api;
        let files =
            tokio::task::spawn_blocking(archive).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        let layer = digest(&files);
        let config = json!({
            "architecture": architecture(), "os": "linux",
            "config": { "Env": [format!("PATH={SELF_PATH}")], "Labels": { MADE_OF: of } },
            "rootfs": { "type": "layers", "diff_ids": [layer] },
        });
        let config = Bytes::from(config.to_string());
        let (config_digest, config_size, size) = (digest(&config), config.len() as i64, files.len() as i64);
        let manifest: Value = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": { "mediaType": CONFIG, "digest": config_digest, "size": config_size },
            "layers": [{ "mediaType": LAYER, "digest": layer, "size": size }],
        });
        let manifest = Bytes::from(manifest.to_string());
        let target = Descriptor {
            media_type: MANIFEST.to_owned(),
            digest: digest(&manifest),
            size: manifest.len() as i64,
            annotations: HashMap::new(),
        };
        write(api, &layer, size, stream::iter([Ok(files)]).boxed(), HashMap::new()).await?;
        write(api, &config_digest, config_size, stream::iter([Ok(config)]).boxed(), HashMap::new()).await?;
        let labels = references(&config_digest, [layer]);
        write(api, &target.digest, target.size, stream::iter([Ok(manifest)]).boxed(), labels).await?;
        self.unpack(lease, &target.digest).await.map_err(Failed::text)?;
        let name = full(SELF)?.whole();
        self.name(&name, &target, HashMap::new()).await.map_err(Failed::text)
    }
}

/// Labels of a manifest that keep its parts.
fn references(config: &str, layers: impl IntoIterator<Item = String>) -> HashMap<String, String> {
    let layers = layers.into_iter().enumerate();
    let layers = layers.map(|(at, digest)| (format!("containerd.io/gc.ref.content.l.{at}"), digest));
    layers.chain([("containerd.io/gc.ref.content.config".to_owned(), config.to_owned())]).collect()
}

/// A registry's client. Registries on this machine may speak plain HTTP.
fn registry(reference: &Reference) -> Client {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    let host = reference.resolve_registry().to_owned();
    let name = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name);
    let local = name == "localhost" || name.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback());
    let protocol = if local { ClientProtocol::HttpsExcept(vec![host]) } else { ClientProtocol::Https };
    let (connect_timeout, read_timeout) = (Some(CONNECT), Some(SILENCE));
    Client::new(ClientConfig { protocol, connect_timeout, read_timeout, ..ClientConfig::default() })
}

/// What a registry said, as Docker words it where it does.
fn said(error: oci_client::errors::OciDistributionError) -> String {
    use oci_client::errors::OciDistributionError as Error;
    match error {
        Error::ImageManifestNotFoundError(what) => format!("not found: manifest unknown: {what}"),
        Error::AuthenticationFailure(what) => format!("unauthorized: {what}"),
        Error::UnauthorizedError { url } => format!("unauthorized: authentication required ({url})"),
        other => causes(&other).split_whitespace().collect::<Vec<_>>().join(" "),
    }
}

#[async_trait]
impl Images for Store {
    async fn digest(&self, image: &str) -> Result<Option<Option<String>>, RuntimeError> {
        let found = self.image(image).await.map_err(|e| e.or(RuntimeError::Pull))?;
        Ok(found.map(|found| found.labels.get(DIGEST).cloned()))
    }

    async fn fetch(&self, reference: &str, credentials: Option<&Credentials>) -> Result<(), String> {
        let reference = full(reference)?;
        let auth = credentials.map_or(RegistryAuth::Anonymous, |given| {
            RegistryAuth::Basic(given.username.clone(), given.password.clone())
        });
        let leased = Lease::take(&self.api).await.map_err(Failed::text)?;
        let pulled = self.pull(&leased, &reference, &auth).await;
        leased.end().await;
        pulled
    }

    async fn make_self(&self) -> Result<(), RuntimeError> {
        let failed = |e: String| RuntimeError::Pull(format!("{SELF} cannot be made: {e}"));
        let of = identity().map_err(|e| failed(e.to_string()))?;
        if let Ok(known) = self.unpacked(SELF).await
            && known.config.labels.is_some_and(|labels| labels.get(MADE_OF) == Some(&of))
        {
            return Ok(());
        }
        let leased = Lease::take(&self.api).await.map_err(|e| failed(e.text()))?;
        let made = self.import_self(&leased, &of).await;
        leased.end().await;
        made.map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_snapshots_are_chained_as_oci_says() {
        let layers = ["sha256:a".to_owned(), "sha256:b".to_owned()];
        assert_eq!(chain(&layers), ["sha256:a".to_owned(), digest(b"sha256:a sha256:b")]);
        assert_eq!(chain(&[]), Vec::<String>::new());
        assert_eq!(digest(b""), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn images_have_one_full_name() {
        let name = |image| full(image).expect("a name").whole();
        assert_eq!(name("web"), "docker.io/library/web:latest");
        assert_eq!(name("127.0.0.1:5000/web:1"), "127.0.0.1:5000/web:1");
        assert!(full("Web Site").is_err());
    }
}
