//! What is to be run, as it is written down before it is.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use steady_core::resources;
use steady_core::v1::ContainerDefinition;
use steady_core::v1::network_mode::Value as NetworkMode;

use super::sensitive;
use crate::runtime::{ContainerSpec, Modes, Port, RuntimeError, gpu_list};

/// Where commands are looked for, after the steady program's own directory.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command and all that it gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Launch {
    pub(super) argv: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) cwd: PathBuf,
    pub(super) ports: Vec<Port>,
    /// Directories of the cgroups that it belongs to.
    pub(super) cgroups: Vec<PathBuf>,
    /// The task's limit of CPU units, and the container's of memory, MiB.
    #[serde(default)]
    pub(super) cpu: Option<i32>,
    #[serde(default)]
    pub(super) memory: Option<i32>,
    /// GPUs that it was given.
    #[serde(default)]
    pub(super) gpus: Vec<u32>,
    /// Where the variables are that are not written down here.
    #[serde(default)]
    pub(super) sensitive: Option<PathBuf>,
}

impl Launch {
    /// The command of a container; why it cannot be run without a container engine otherwise.
    pub(super) fn of(spec: &ContainerSpec, program: &Path, work: PathBuf) -> Result<Self, RuntimeError> {
        refuse(spec).map_err(RuntimeError::Create)?;
        let definition = &spec.definition;
        let argv: Vec<String> = definition.entry_point.iter().chain(&definition.command).cloned().collect();
        if argv.is_empty() {
            let message = "without a container engine the image is not used: give a command".to_owned();
            return Err(RuntimeError::Create(message));
        }
        let cwd = match definition.working_directory.as_str() {
            "" => work,
            path => PathBuf::from(path),
        };
        let env = environment(spec, definition, program);
        let (ports, cpu, memory) = (spec.ports.clone(), spec.cpu_limit, spec.memory_limit);
        Ok(Launch {
            argv,
            env,
            cwd,
            ports,
            cgroups: Vec::new(),
            cpu,
            memory,
            gpus: spec.gpus.clone().unwrap_or_default(),
            sensitive: None,
        })
    }

    /// All variables of its environment.
    pub(super) fn environment(&self) -> io::Result<BTreeMap<String, String>> {
        let mut env: BTreeMap<String, String> = sensitive::read(self.sensitive.as_deref())?.into_iter().collect();
        env.extend(self.env.clone());
        Ok(env)
    }

    /// The file that a command's name means.
    pub(super) fn resolve(&self, name: &str) -> Option<PathBuf> {
        if name.contains('/') {
            return Some(self.cwd.join(name)).filter(|path| path.is_file());
        }
        let path = self.env.get("PATH").map_or(PATH, String::as_str);
        path.split(':').map(|directory| Path::new(directory).join(name)).find(|path| path.is_file())
    }
}

fn environment(spec: &ContainerSpec, definition: &ContainerDefinition, program: &Path) -> BTreeMap<String, String> {
    let own = program.parent().map(|p| p.display().to_string()).unwrap_or_default();
    let mut env = BTreeMap::from([
        ("PATH".to_owned(), format!("{own}:{PATH}")),
        ("HOME".to_owned(), std::env::var("HOME").unwrap_or_else(|_| "/".into())),
        ("STEADY_TASK".to_owned(), spec.id.task.clone()),
        ("STEADY_CONTAINER".to_owned(), spec.id.name.clone()),
    ]);
    if let Some(first) = spec.ports.first() {
        env.insert("PORT".to_owned(), first.host.to_string());
    }
    for port in &spec.ports {
        env.insert(format!("PORT_{}", port.container), port.host.to_string());
    }
    // What is kept elsewhere counts before what is only a default.
    env.retain(|name, _| !spec.sensitive.variables.iter().any(|(hidden, _)| hidden == name));
    env.extend(definition.environment.iter().map(|pair| (pair.name.clone(), pair.value.clone())));
    // What CUDA's programs heed without a container engine.
    env.extend(spec.gpus.as_ref().map(|gpus| ("CUDA_VISIBLE_DEVICES".to_owned(), gpu_list(gpus))));
    env
}

/// What only a container engine can do.
fn refuse(spec: &ContainerSpec) -> Result<(), String> {
    let definition = &spec.definition;
    let needs = |what: &str| Err(format!("{what} needs a container engine; use an instance with runtime docker"));
    if !definition.user.is_empty() {
        return needs("user");
    }
    if definition.privileged || definition.readonly_root_filesystem {
        return needs("privileged or readonlyRootFilesystem");
    }
    if let Some(setting) = resources::engine_only(definition) {
        return needs(setting);
    }
    if let Some(driver) = resources::log_driver(definition) {
        return needs(&format!("log driver {driver}"));
    }
    if matches!(spec.network_mode, NetworkMode::None | NetworkMode::Awsvpc) {
        return needs(&format!("networkMode {}", spec.network_mode.as_str_name()));
    }
    if spec.modes != Modes::default() {
        return needs("pidMode or ipcMode");
    }
    if spec.volumes.iter().any(|volume| volume.docker_volume_configuration.is_some()) {
        return needs("dockerVolumeConfiguration");
    }
    for mount in &definition.mount_points {
        let volume = spec.volumes.iter().find(|v| v.name == mount.source_volume);
        let source = volume.and_then(|v| v.host.as_ref()).map_or("", |h| &h.source_path);
        if source != mount.container_path {
            return needs(&format!("mounting `{}` at {}", mount.source_volume, mount.container_path));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::ContainerId;
    use steady_core::v1::KeyValuePair;

    fn spec() -> ContainerSpec {
        let id = ContainerId { task: "t".into(), name: "web".into() };
        ContainerSpec {
            definition: ContainerDefinition {
                command: vec!["serve".into(), "--fast".into()],
                entry_point: vec!["/bin/app".into()],
                environment: vec![KeyValuePair { name: "PORT".into(), value: "1".into() }],
                ..Default::default()
            },
            ports: vec![
                Port { container: 8080, host: 20_001, udp: false },
                Port { container: 9, host: 20_002, udp: true },
            ],
            ..ContainerSpec::new(id, "default", "i", NetworkMode::Bridge)
        }
    }

    fn launch(spec: &ContainerSpec) -> Result<Launch, RuntimeError> {
        Launch::of(spec, Path::new("/opt/steady/steady"), PathBuf::from("/d/t.web/work"))
    }

    #[test]
    fn a_command_is_told_its_ports_and_may_be_steady_itself() {
        let launch = launch(&spec()).expect("can be run");
        assert_eq!(launch.argv, ["/bin/app", "serve", "--fast"]);
        assert_eq!(launch.env["PORT_8080"], "20001");
        assert_eq!(launch.env["PORT_9"], "20002");
        assert_eq!(launch.env["PORT"], "1", "what the definition says counts");
        assert!(launch.env["PATH"].starts_with("/opt/steady:/usr/local/sbin"));
        assert_eq!(launch.cwd, Path::new("/d/t.web/work"));
    }

    #[test]
    fn what_only_an_engine_can_do_is_refused_and_said() {
        let mut privileged = spec();
        privileged.definition.privileged = true;
        assert!(launch(&privileged).expect_err("refused").to_string().contains("container engine"));
        let mut linked = spec();
        linked.definition.links = vec!["db".into()];
        assert!(launch(&linked).expect_err("refused").to_string().contains("links needs a container engine"));
        let mut empty = spec();
        empty.definition.command.clear();
        empty.definition.entry_point.clear();
        assert!(launch(&empty).expect_err("refused").to_string().contains("give a command"));
    }
}
