//! Volumes of the engine's own: made before the container that mounts them. One that is only named, without a configuration, the
//! engine makes by itself.

use std::collections::HashMap;

use bollard::Docker;
use bollard::models::VolumeCreateRequest;
use bollard::query_parameters::ListVolumesOptions;
use steady_core::v1::Volume;

use super::mapping::{is_shared, volume_name};
use super::{LOOK, failed, status, within};
use crate::runtime::{ContainerSpec, RuntimeError, labels};

/// Makes sure that the volumes are there that a container mounts.
pub(super) async fn prepare(engine: &Docker, spec: &ContainerSpec) -> Result<(), RuntimeError> {
    let mounts = |volume: &Volume| spec.definition.mount_points.iter().any(|mount| mount.source_volume == volume.name);
    for volume in spec.volumes.iter().filter(|volume| mounts(volume)) {
        let Some(docker) = &volume.docker_volume_configuration else { continue };
        let shared = is_shared(volume);
        let name = if shared { volume.name.clone() } else { volume_name(&spec.id.task, &volume.name) };
        if shared {
            match within("inspect volume", LOOK, engine.inspect_volume(&name)).await? {
                Ok(_) => continue,
                Err(error) if status(&error) != Some(404) => return Err(failed(&error, RuntimeError::Volume)),
                Err(_) if !docker.autoprovision => {
                    let message = format!(
                        "there is no volume `{name}` on this instance; make it (docker volume create), or set autoprovision: \
                         true"
                    );
                    return Err(RuntimeError::Volume(message));
                }
                Err(_) => {}
            }
        }
        let mut own = docker.labels.clone();
        if !shared {
            own.insert(labels::TASK.to_owned(), spec.id.task.clone());
        }
        // Asked for again with the same driver, it stays as it is.
        let request = VolumeCreateRequest {
            name: Some(name),
            driver: Some(if docker.driver.is_empty() { "local".to_owned() } else { docker.driver.clone() }),
            driver_opts: Some(docker.driver_opts.clone().into_iter().collect()),
            labels: Some(own.into_iter().collect()),
            ..VolumeCreateRequest::default()
        };
        let made = within("create volume", LOOK, engine.create_volume(request)).await?;
        made.map_err(|error| failed(&error, RuntimeError::Volume))?;
    }
    Ok(())
}

/// Volumes that were made for a task.
pub(super) async fn of_task(engine: &Docker, task: &str) -> Result<Vec<String>, RuntimeError> {
    let filters = HashMap::from([("label".to_owned(), vec![format!("{}={task}", labels::TASK)])]);
    let options = ListVolumesOptions { filters: Some(filters) };
    let listed = within("list volumes", LOOK, engine.list_volumes(Some(options))).await?;
    let listed = listed.map_err(|error| failed(&error, RuntimeError::Other))?;
    Ok(listed.volumes.unwrap_or_default().into_iter().map(|volume| volume.name).collect())
}
