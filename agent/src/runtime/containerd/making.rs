//! Making a container: its snapshot, what it mounts, and what containerd is told of it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use containerd_client::services::v1::container::Runtime as ShimName;
use containerd_client::services::v1::snapshots::PrepareSnapshotRequest;
use containerd_client::services::v1::{Container, CreateContainerRequest};
use containerd_client::types::Mount;
use containerd_client::types::v1::Status;
use steady_core::v1::network_mode::Value as NetworkMode;
use steady_core::{Clock, SystemClock};

use super::api::{Failed, LOOK, call, done};
use super::bundle::{self, Given};
use super::{BRIDGE, Containerd, SHIM, SPEC, any, files, labels, name, specification};
use crate::runtime::{ContainerId, ContainerSpec, PAUSE, RuntimeError, cgroup};

impl Containerd {
    /// What a container mounts of its task's volumes, which are made if they have to be.
    async fn mounts(&self, spec: &ContainerSpec, root: &[Mount]) -> Result<Vec<(PathBuf, String, bool)>, RuntimeError> {
        let mut mounts = Vec::new();
        for mount in &spec.definition.mount_points {
            let volume = spec.volumes.iter().find(|volume| volume.name == mount.source_volume);
            let host = volume.and_then(|v| v.host.as_ref()).map_or("", |host| &host.source_path);
            let docker = volume.and_then(|v| v.docker_volume_configuration.as_ref());
            if let Some(docker) = docker
                && (!matches!(docker.driver.as_str(), "" | "local") || !docker.driver_opts.is_empty())
            {
                let message = format!("volume `{}`: drivers and their options need Docker", mount.source_volume);
                return Err(RuntimeError::Volume(message));
            }
            let path = match (host, docker.filter(|docker| docker.scope == "shared")) {
                ("", None) => self.volume(&spec.id.task, &mount.source_volume),
                ("", Some(docker)) => {
                    let path = self.volume("shared", &mount.source_volume);
                    if !docker.autoprovision && !path.exists() {
                        let (name, path) = (&mount.source_volume, path.display());
                        return Err(RuntimeError::Volume(format!(
                            "there is no volume `{name}` on this instance; make {path}, or set autoprovision: true"
                        )));
                    }
                    path
                }
                (path, _) => PathBuf::from(path),
            };
            if !path.exists() {
                let failed = |e: io::Error| RuntimeError::Volume(format!("{}: {e}", path.display()));
                fs::create_dir_all(&path).map_err(failed)?;
                // As whose it is in the image: who runs there may write (Docker copies what is in it, too).
                if host.is_empty() {
                    files::own_like(&path, root, &mount.container_path).map_err(failed)?;
                }
            }
            mounts.push((path, mount.container_path.clone(), mount.read_only));
        }
        for from in &spec.definition.volumes_from {
            let id = ContainerId { task: spec.id.task.clone(), name: from.source_container.clone() };
            let Some(other) = self.find(&id).await? else { return Err(RuntimeError::NotFound(id)) };
            let own = self.settings.base.join(name(&id));
            mounts.extend(volumes_of(&other, &own).into_iter().map(|(path, to, ro)| (path, to, ro || from.read_only)));
        }
        Ok(mounts)
    }

    pub(super) async fn make(&self, spec: &ContainerSpec) -> Result<String, RuntimeError> {
        let (id, key) = (&spec.id, name(&spec.id));
        if spec.gpus.as_ref().is_some_and(|gpus| !gpus.is_empty()) {
            let message =
                "resourceRequirements GPU needs Docker with NVIDIA's runtime; use an instance with runtime docker";
            return Err(RuntimeError::Create(message.into()));
        }
        let image = self.store.unpacked(&spec.definition.image).await?;
        let failed = |e: Failed| e.or(RuntimeError::Create);
        let snapshotter = self.store.snapshotter().to_owned();
        let request = PrepareSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
            parent: image.snapshot.clone(),
            // Until a container refers to it.
            labels: HashMap::from([("containerd.io/gc.root".to_owned(), SystemClock.now().to_string())]),
        };
        // One of a former attempt is as good.
        match call("prepare", LOOK, self.api.snapshots().prepare(request)).await {
            Err(Failed::Exists) | Ok(_) => {}
            Err(error) => return Err(failed(error)),
        }
        let user = if spec.definition.user.is_empty() { &image.config.user } else { &spec.definition.user };
        let mounts = self.snapshot_mounts(&key).await?;
        let files = self.files(id);
        let (passwd, group) = files::accounts(&mounts);
        let user = bundle::User::find(user, &passwd, &group).map_err(RuntimeError::Create)?;
        let pause = ContainerId { task: id.task.clone(), name: PAUSE.to_owned() };
        let shares = spec.network_mode == NetworkMode::Awsvpc || spec.modes.pid == "task" || spec.modes.ipc == "task";
        let held = shares && id.name != PAUSE;
        let process = if held {
            self.task(&pause).await?.filter(|task| task.status() == Status::Running).map(|task| task.pid)
        } else {
            None
        };
        if held && process.is_none() {
            return Err(RuntimeError::Create(format!("{pause} does not run")));
        }
        let capped = spec.cpu_limit.filter(|units| *units > 0).is_some_and(|units| cgroup::cap(&id.task, units));
        let given = Given {
            user,
            files: files.path().to_owned(),
            network_files: (held && spec.network_mode == NetworkMode::Awsvpc)
                .then(|| self.files(&pause).path().to_owned()),
            mounts: self.mounts(spec, &mounts).await?,
            pause: process,
            shared_memory: (spec.modes.ipc == "task")
                .then(|| files::shared_memory(&id.task))
                .transpose()
                .map_err(|e| RuntimeError::Create(format!("shared memory of the task: {e}")))?,
            cgroup: format!("{}/{}", cgroup::of_task(&id.task), id.name),
            is_capped: capped,
            init: files::init(),
        };
        let specification = bundle::specification(spec, &image.config, &given).map_err(RuntimeError::Create)?;
        files.make(spec).map_err(|e| RuntimeError::Create(e.to_string()))?;
        if spec.definition.interactive {
            files.make_input().map_err(|e| RuntimeError::Create(e.to_string()))?;
        }
        let container = Container {
            id: key.clone(),
            labels: self.labels(spec, &image.config.stop_signal),
            image: String::new(),
            runtime: Some(ShimName { name: SHIM.to_owned(), options: None }),
            spec: Some(any(SPEC, &specification)),
            snapshotter,
            snapshot_key: key.clone(),
            ..Container::default()
        };
        let request = CreateContainerRequest { container: Some(container) };
        done(call("create", LOOK, self.api.containers().create(request)).await).map_err(failed)?;
        Ok(key)
    }

    fn labels(&self, spec: &ContainerSpec, stop_signal: &str) -> HashMap<String, String> {
        let mut all: HashMap<String, String> = spec.definition.docker_labels.clone().into_iter().collect();
        let links = serde_json::to_string(&spec.definition.links).unwrap_or_default();
        let own = [
            (labels::CLUSTER, self.settings.cluster.clone()),
            (labels::INSTANCE, self.settings.instance.clone()),
            (labels::TASK, spec.id.task.clone()),
            (labels::CONTAINER, spec.id.name.clone()),
            (labels::PORTS, serde_json::to_string(&spec.ports).unwrap_or_default()),
            (labels::GPUS, serde_json::to_string(spec.gpus.as_deref().unwrap_or_default()).unwrap_or_default()),
            (labels::STOP_SIGNAL, stop_signal.to_owned()),
            (labels::LINKS, links),
        ];
        all.extend(own.map(|(name, value)| (name.to_owned(), value)));
        let bridged = spec.network_mode == NetworkMode::Bridge && spec.id.name != PAUSE;
        all.extend(bridged.then(|| (labels::NETWORK.to_owned(), BRIDGE.to_owned())));
        all.extend(spec.cpu_limit.map(|units| (labels::CPU.to_owned(), units.to_string())));
        all
    }
}

/// What a container mounts beside what every container does: from, to, whether read-only.
fn volumes_of(container: &Container, own: &Path) -> Vec<(PathBuf, String, bool)> {
    let specification = specification(container);
    let mounts = specification["mounts"].as_array().cloned().unwrap_or_default();
    let bound = mounts.iter().filter(|mount| mount["type"] == "bind");
    let volumes = bound.filter_map(|mount| {
        let (from, to) = (PathBuf::from(mount["source"].as_str()?), mount["destination"].as_str()?);
        let read_only = mount["options"].as_array()?.iter().any(|option| option == "ro");
        let everybody_s = from.starts_with(own) || to.starts_with("/dev/");
        (!everybody_s).then(|| (from, to.to_owned(), read_only))
    });
    volumes.collect()
}
