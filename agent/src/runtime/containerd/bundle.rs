//! A container definition as an OCI runtime specification: what runc is told.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use steady_core::v1::network_mode::Value as NetworkMode;
use steady_core::v1::{LinuxParameters, Tmpfs};

use super::confinement::{capabilities, seccomp, security};
use super::image::Config;
use crate::runtime::{ContainerSpec, PAUSE, device_access};

const MIB: i64 = 1024 * 1024;
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Who a container's processes are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: Option<String>,
}

impl User {
    /// `USER` or `USER:GROUP`, each a name or a number, by the image's own `passwd` and `group`.
    pub(super) fn find(given: &str, passwd: &str, group: &str) -> Result<Self, String> {
        let (name, of) = given.split_once(':').map_or((given, None), |(name, of)| (name, Some(of)));
        let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
        let users: Vec<Vec<String>> = passwd.lines().map(fields).filter(|f| f.len() >= 6).collect();
        let groups: Vec<Vec<String>> = group.lines().map(fields).filter(|f| f.len() >= 3).collect();
        let name = if name.is_empty() { "0" } else { name };
        let known = users.iter().find(|f| f[0] == name).or_else(|| users.iter().find(|f| f[2] == name));
        let number = |text: &str| text.parse::<u32>().ok();
        let uid = known.and_then(|f| number(&f[2])).or_else(|| number(name));
        let uid = uid.ok_or_else(|| format!("user: the image has no user `{name}`"))?;
        let own = known.and_then(|f| number(&f[3])).unwrap_or(0);
        let gid = match of {
            None => own,
            Some(of) => groups
                .iter()
                .find(|f| f[0] == of)
                .and_then(|f| number(&f[2]))
                .or_else(|| number(of))
                .ok_or_else(|| format!("user: the image has no group `{of}`"))?,
        };
        let member = |f: &&Vec<String>| {
            known.is_some_and(|user| f.get(3).is_some_and(|all| all.split(',').any(|name| name == user[0])))
        };
        // A group that is named is the only one (Docker).
        let further = groups.iter().filter(member).filter(|_| of.is_none()).filter_map(|f| number(&f[2])).collect();
        Ok(User { uid, gid, groups: further, home: known.map(|f| f[5].clone()).filter(|home| !home.is_empty()) })
    }
}

/// What a container gets of its machine beyond its definition.
#[derive(Debug, Clone, Default)]
pub(super) struct Given {
    pub(super) user: User,
    /// The container's own directory, with its `hosts`, `resolv.conf` and `hostname`.
    pub(super) files: PathBuf,
    /// That of the container whose network it shares.
    pub(super) network_files: Option<PathBuf>,
    /// What it mounts: from, to, whether read-only.
    pub(super) mounts: Vec<(PathBuf, String, bool)>,
    /// The pause container's process, for namespaces that are its.
    pub(super) pause: Option<u32>,
    /// What its task's containers share as `/dev/shm`.
    pub(super) shared_memory: Option<PathBuf>,
    /// Its cgroup, below the machine's.
    pub(super) cgroup: String,
    /// The task's cgroup caps the cpu of all of its containers.
    pub(super) is_capped: bool,
    /// An init program of the machine's.
    pub(super) init: Option<PathBuf>,
}

/// The command: the definition's, or the image's (an entry point of the definition's sets the image's command aside).
pub(super) fn words(spec: &ContainerSpec, image: &Config) -> Vec<String> {
    let definition = &spec.definition;
    let entry = match definition.entry_point.as_slice() {
        [] => image.entrypoint.clone().unwrap_or_default(),
        own => own.to_vec(),
    };
    let command = match definition.command.as_slice() {
        [] if definition.entry_point.is_empty() => image.cmd.clone().unwrap_or_default(),
        own => own.to_vec(),
    };
    entry.into_iter().chain(command).collect()
}

fn environment(spec: &ContainerSpec, image: &Config, user: &User) -> Vec<String> {
    let home = format!("HOME={}", user.home.as_deref().unwrap_or("/"));
    let terminal = spec.definition.pseudo_terminal.then(|| "TERM=xterm".to_owned());
    let defaults = [PATH.to_owned(), home, format!("HOSTNAME={}", host_name(spec))].into_iter().chain(terminal);
    let all = defaults.chain(image.env.clone().unwrap_or_default()).chain(spec.environment());
    // Of a name that is there twice the last one counts.
    let mut merged: Vec<String> = Vec::new();
    for pair in all {
        let name = pair.split_once('=').map_or(pair.as_str(), |(name, _)| name).to_owned();
        merged.retain(|known| known.split_once('=').is_none_or(|(of, _)| of != name));
        merged.push(pair);
    }
    merged
}

/// The name that a container has for itself.
pub(super) fn host_name(spec: &ContainerSpec) -> String {
    match spec.definition.hostname.as_str() {
        "" if spec.network_mode == NetworkMode::Host => {
            fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
        }
        // As Docker's: twelve digits.
        "" => spec.id.task.chars().take(12).collect(),
        own => own.to_owned(),
    }
}

/// The specification, as JSON. `Err`: what of the definition cannot be done.
pub(super) fn specification(spec: &ContainerSpec, image: &Config, given: &Given) -> Result<Value, String> {
    let definition = &spec.definition;
    let linux = definition.linux_parameters.clone().unwrap_or_default();
    let mut args = words(spec, image);
    if args.is_empty() {
        return Err("no command: neither the image nor the definition has one".to_owned());
    }
    if linux.init_process_enabled == Some(true) {
        let missing = "initProcessEnabled: this machine has no init for containers (Debian's tini)";
        given.init.as_ref().ok_or(missing)?;
        args.splice(0..0, ["/dev/init".to_owned(), "--".to_owned()]);
    }
    let capabilities = capabilities(spec, &linux);
    let security = security(spec)?;
    let limits = definition.ulimits.iter().map(|limit| {
        json!({ "type": format!("RLIMIT_{}", limit.name.to_ascii_uppercase()), "soft": limit.soft_limit, "hard": limit.hard_limit })
    });
    let directory = [&definition.working_directory, &image.working_dir].into_iter().find(|path| !path.is_empty());
    let user = &given.user;
    let mut process = json!({
        "terminal": definition.pseudo_terminal,
        "user": { "uid": user.uid, "gid": user.gid, "additionalGids": user.groups },
        "args": args,
        "env": environment(spec, image, user),
        "cwd": directory.map_or("/", String::as_str),
        "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
        "rlimits": limits.collect::<Vec<_>>(),
        "noNewPrivileges": security.no_new_privileges,
    });
    if let Some(profile) = &security.apparmor {
        process["apparmorProfile"] = json!(profile);
    }
    let controls = definition.system_controls.iter().map(|c| (c.namespace.clone(), json!(c.value)));
    let mut platform = json!({
        "cgroupsPath": format!("/{}", given.cgroup),
        "namespaces": namespaces(spec, given),
        "resources": resources(spec, &linux, given),
        "devices": devices(spec, &linux)?,
        "sysctl": controls.collect::<serde_json::Map<_, _>>(),
    });
    if !definition.privileged {
        platform["maskedPaths"] = json!([
            "/proc/acpi",
            "/proc/asound",
            "/proc/interrupts",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/timer_list",
            "/proc/timer_stats",
            "/proc/sched_debug",
            "/proc/scsi",
            "/sys/firmware",
            "/sys/devices/virtual/powercap",
        ]);
        platform["readonlyPaths"] = json!(["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]);
    }
    if !security.unconfined {
        platform["seccomp"] = seccomp(&capabilities);
    }
    let mut whole = json!({
        "ociVersion": "1.0.2",
        "process": process,
        "root": { "path": "rootfs", "readonly": definition.readonly_root_filesystem },
        "mounts": mounts(spec, &linux, given),
        "linux": platform,
    });
    // Only a namespace of its own has another name than the machine.
    if spec.network_mode != NetworkMode::Host {
        whole["hostname"] = json!(host_name(spec));
    }
    Ok(whole)
}

fn namespaces(spec: &ContainerSpec, given: &Given) -> Value {
    let is_pause = spec.id.name == PAUSE;
    let held = |kind: &str, file: &str| match given.pause {
        Some(pid) if !is_pause => json!({ "type": kind, "path": format!("/proc/{pid}/ns/{file}") }),
        _ => json!({ "type": kind }),
    };
    let mut all = vec![json!({ "type": "mount" })];
    match spec.network_mode {
        NetworkMode::Host if !is_pause => {}
        NetworkMode::Awsvpc => all.extend([held("network", "net"), held("uts", "uts")]),
        _ => all.extend([json!({ "type": "network" }), json!({ "type": "uts" })]),
    }
    for (kind, file, mode) in [("pid", "pid", &spec.modes.pid), ("ipc", "ipc", &spec.modes.ipc)] {
        match mode.as_str() {
            "host" if !is_pause => {}
            "task" => all.push(held(kind, file)),
            _ => all.push(json!({ "type": kind })),
        }
    }
    if Path::new("/proc/self/ns/cgroup").exists() && !spec.definition.privileged {
        all.push(json!({ "type": "cgroup" }));
    }
    Value::Array(all)
}

fn resources(spec: &ContainerSpec, linux: &LinuxParameters, given: &Given) -> Value {
    let definition = &spec.definition;
    // Fewer than two shares mean two (ECS).
    let mut cpu = json!({ "shares": definition.cpu.clamp(2, 262_144) });
    if let Some(units) = spec.cpu_limit.filter(|units| *units > 0 && !given.is_capped) {
        cpu["quota"] = json!(i64::from(units) * 100_000 / 1024);
        cpu["period"] = json!(100_000);
    }
    let mut memory = json!({});
    if let Some(limit) = spec.memory_limit {
        memory["limit"] = json!(i64::from(limit) * MIB);
        if let Some(swap) = linux.max_swap {
            memory["swap"] = json!((i64::from(swap) + i64::from(limit)) * MIB);
            if let Some(swappiness) = linux.swappiness {
                memory["swappiness"] = json!(swappiness);
            }
        }
    }
    if definition.memory_reservation > 0 {
        memory["reservation"] = json!(i64::from(definition.memory_reservation) * MIB);
    }
    let allow = |kind: &str, major: i64, minor: Option<i64>| {
        let mut rule = json!({ "allow": true, "type": kind, "major": major, "access": "rwm" });
        if let Some(minor) = minor {
            rule["minor"] = json!(minor);
        }
        rule
    };
    let mut rules = vec![json!({ "allow": definition.privileged, "access": "rwm" })];
    if !definition.privileged {
        // null, zero, full, random, urandom, tty, console, ptmx and terminals: what runc makes by itself.
        let known = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];
        rules.extend(known.map(|(major, minor)| allow("c", major, Some(minor))));
        rules.push(allow("c", 136, None));
        rules.extend(linux.devices.iter().filter_map(|device| {
            let (kind, major, minor) = node(Path::new(&device.host_path)).ok()?;
            Some(
                json!({ "allow": true, "type": kind, "major": major, "minor": minor, "access": device_access(device) }),
            )
        }));
    }
    json!({ "cpu": cpu, "memory": memory, "devices": rules })
}

/// Kind, major and minor number of a device.
fn node(path: &Path) -> Result<(&'static str, u64, u64), String> {
    let found = fs::metadata(path).map_err(|e| format!("linuxParameters.devices: {}: {e}", path.display()))?;
    let kind = found.file_type();
    let kind = match (kind.is_char_device(), kind.is_block_device()) {
        (true, _) => "c",
        (_, true) => "b",
        _ => return Err(format!("linuxParameters.devices: {} is no device", path.display())),
    };
    let number = found.rdev();
    Ok((kind, u64::from(rustix::fs::major(number)), u64::from(rustix::fs::minor(number))))
}

fn devices(spec: &ContainerSpec, linux: &LinuxParameters) -> Result<Vec<Value>, String> {
    let mut all = Vec::new();
    for device in &linux.devices {
        let inside = if device.container_path.is_empty() { &device.host_path } else { &device.container_path };
        all.push(self::device(Path::new(&device.host_path), inside)?);
    }
    if spec.definition.privileged {
        let given: Vec<PathBuf> = linux.devices.iter().map(|device| PathBuf::from(&device.host_path)).collect();
        every_device(Path::new("/dev"), &given, &mut all);
    }
    Ok(all)
}

/// All devices of the machine, but for those that are there already.
fn every_device(directory: &Path, given: &[PathBuf], all: &mut Vec<Value>) {
    // What runc makes by itself, or is mounted.
    const OWN: [&str; 12] =
        ["null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "pts", "shm", "mqueue", "fd"];
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(kind) = entry.file_type() else { continue };
        if given.contains(&path) || (directory == Path::new("/dev") && OWN.iter().any(|own| name == *own)) {
            continue;
        }
        if kind.is_dir() {
            every_device(&path, given, all);
        } else if kind.is_char_device() || kind.is_block_device() {
            all.extend(device(&path, &path.display().to_string()).ok());
        }
    }
}

/// A device of the machine, as it is there.
fn device(path: &Path, inside: &str) -> Result<Value, String> {
    let (kind, major, minor) = node(path)?;
    let found = fs::metadata(path).map_err(|e| format!("linuxParameters.devices: {}: {e}", path.display()))?;
    let (mode, uid, gid) = (found.mode() & 0o777, found.uid(), found.gid());
    Ok(
        json!({ "type": kind, "path": inside, "major": major, "minor": minor, "fileMode": mode, "uid": uid, "gid": gid }),
    )
}

fn mounts(spec: &ContainerSpec, linux: &LinuxParameters, given: &Given) -> Vec<Value> {
    let mount = |to: &str, kind: &str, from: &str, options: &[&str]| {
        let to = if to.len() > 1 { to.trim_end_matches('/') } else { to };
        json!({ "destination": to, "type": kind, "source": from, "options": options })
    };
    let system = if spec.definition.privileged { "rw" } else { "ro" };
    let mut all = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", system]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", system]),
    ];
    let shared = match (spec.modes.ipc.as_str(), &given.shared_memory) {
        ("host", _) => Some(Path::new("/dev/shm")),
        (_, Some(path)) => Some(path.as_path()),
        _ => None,
    };
    let size = format!("size={}m", if linux.shared_memory_size > 0 { linux.shared_memory_size } else { 64 });
    let own = || mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &size]);
    all.push(shared.map_or_else(own, |path| mount("/dev/shm", "bind", &path.display().to_string(), &["rbind", "rw"])));
    // The root of a network of another is that one's.
    let files = given.network_files.as_ref().unwrap_or(&given.files);
    for name in ["hosts", "resolv.conf", "hostname"] {
        let path = files.join(name).display().to_string();
        all.push(mount(&format!("/etc/{name}"), "bind", &path, &["rbind", "rprivate", "rw"]));
    }
    if let Some(init) = given.init.as_ref().filter(|_| linux.init_process_enabled == Some(true)) {
        all.push(mount("/dev/init", "bind", &init.display().to_string(), &["bind", "ro"]));
    }
    let mut own: Vec<Value> = Vec::new();
    own.extend(linux.tmpfs.iter().map(|tmpfs: &Tmpfs| {
        let size = format!("size={}m", tmpfs.size);
        let options: Vec<&str> = [size.as_str(), "nosuid", "nodev", "noexec"]
            .into_iter()
            .chain(tmpfs.mount_options.iter().map(String::as_str))
            .collect();
        mount(&tmpfs.container_path, "tmpfs", "tmpfs", &options)
    }));
    own.extend(given.mounts.iter().map(|(from, to, read_only)| {
        let access = if *read_only { "ro" } else { "rw" };
        mount(to, "bind", &from.display().to_string(), &["rbind", "rprivate", access])
    }));
    // What the definition mounts takes the place of what everybody has.
    all.retain(|known| !own.iter().any(|mount| mount["destination"] == known["destination"]));
    all.extend(own);
    // A mount in a mount comes after it.
    all.sort_by_key(|mount| mount["destination"].as_str().unwrap_or_default().matches('/').count());
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{ContainerId, Modes};
    use steady_core::v1::{ContainerDefinition, KeyValuePair};

    fn spec() -> ContainerSpec {
        let id = ContainerId { task: "0123456789abcdef".into(), name: "web".into() };
        ContainerSpec { ..ContainerSpec::new(id, "default", "i", NetworkMode::Bridge) }
    }

    fn image() -> Config {
        Config {
            entrypoint: Some(vec!["/entry".into()]),
            cmd: Some(vec!["serve".into()]),
            env: Some(vec!["A=image".into(), "B=image".into()]),
            ..Config::default()
        }
    }

    #[test]
    fn the_definition_s_words_take_the_place_of_the_image_s() {
        let with = |entry: &[&str], command: &[&str]| {
            let own = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
            let definition = ContainerDefinition { entry_point: own(entry), command: own(command), ..<_>::default() };
            words(&ContainerSpec { definition, ..spec() }, &image()).join(" ")
        };
        assert_eq!(with(&[], &[]), "/entry serve");
        assert_eq!(with(&[], &["other"]), "/entry other");
        assert_eq!(with(&["/own"], &[]), "/own", "the image's command is for its own entry point");
        assert_eq!(with(&["/own"], &["x"]), "/own x");
    }

    #[test]
    fn of_a_variable_that_is_given_twice_the_definition_s_counts() {
        let definition = ContainerDefinition {
            environment: vec![KeyValuePair { name: "A".into(), value: "own".into() }],
            ..<_>::default()
        };
        let made = environment(&ContainerSpec { definition, ..spec() }, &image(), &User::default());
        let of = |name: &str| made.iter().filter(|pair| pair.starts_with(name)).cloned().collect::<Vec<_>>();
        assert_eq!((of("A="), of("B=")), (vec!["A=own".to_owned()], vec!["B=image".to_owned()]));
        assert_eq!(of("HOSTNAME="), ["HOSTNAME=0123456789ab"]);
    }

    #[test]
    fn users_are_looked_up_in_the_image() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n";
        let group = "root:x:0:\napp:x:1001:\nextra:x:50:other,app\n";
        let find = |given: &str| User::find(given, passwd, group);
        let app = User { uid: 1000, gid: 1001, groups: vec![50], home: Some("/home/app".into()) };
        assert_eq!(find("app"), Ok(app.clone()));
        assert_eq!(find("1000"), Ok(app));
        assert_eq!(find("").expect("root").home.as_deref(), Some("/root"));
        let named = find("app:extra").expect("known");
        assert_eq!((named.gid, named.groups), (50, vec![]));
        assert_eq!(find("77:88"), Ok(User { uid: 77, gid: 88, ..User::default() }));
        assert!(find("nobody").expect_err("unknown").contains("no user `nobody`"));
    }

    #[test]
    fn namespaces_are_the_container_s_the_machine_s_or_the_pause_container_s() {
        let given = Given { pause: Some(7), ..Given::default() };
        let kinds = |spec: &ContainerSpec| {
            let all = namespaces(spec, &given);
            let path = |n: &Value| n["path"].as_str().map_or(String::new(), |path| format!("={path}"));
            let all = all.as_array().expect("a list").iter().filter(|n| n["type"] != "cgroup");
            all.map(|n| format!("{}{}", n["type"].as_str().expect("a type"), path(n))).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(kinds(&spec()), "mount network uts pid ipc");
        let host = ContainerSpec { network_mode: NetworkMode::Host, ..spec() };
        assert_eq!(kinds(&host), "mount pid ipc");
        let shared = ContainerSpec {
            network_mode: NetworkMode::Awsvpc,
            modes: Modes { pid: "task".into(), ipc: "host".into() },
            ..spec()
        };
        assert_eq!(kinds(&shared), "mount network=/proc/7/ns/net uts=/proc/7/ns/uts pid=/proc/7/ns/pid");
    }

    #[test]
    fn what_cannot_be_done_is_named() {
        let refused = |definition: ContainerDefinition| {
            let definition = ContainerDefinition { command: vec!["x".into()], ..definition };
            specification(&ContainerSpec { definition, ..spec() }, &Config::default(), &Given::default())
                .expect_err("refused")
        };
        let option = vec!["label:type:x".to_owned()];
        assert!(
            refused(ContainerDefinition { docker_security_options: option, ..<_>::default() }).contains("label:type:x")
        );
        let linux = LinuxParameters { init_process_enabled: Some(true), ..<_>::default() };
        assert!(refused(ContainerDefinition { linux_parameters: Some(linux), ..<_>::default() }).contains("tini"));
        let empty = specification(&spec(), &Config::default(), &Given::default());
        assert!(empty.expect_err("refused").contains("no command"));
    }
}
