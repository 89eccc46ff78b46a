//! What the agent keeps of a container: a directory with its output, the files of its network, whether it was started and how it ended.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use containerd_client::types::Mount;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mknodat, open, openat2};
use rustix::io::Errno;
use steady_core::resources::parse_link;
use steady_core::v1::network_mode::Value as NetworkMode;

use super::bundle::host_name;
use crate::runtime::{ContainerSpec, Exit, State};

/// Where init programs for containers are found.
const INITS: [&str; 4] =
    ["/usr/bin/tini-static", "/usr/bin/docker-init", "/usr/libexec/docker/docker-init", "/usr/bin/catatonit"];
/// How it ended.
const EXIT: &str = "exit.json";
/// Used where the machine knows only itself (Docker's).
const NAME_SERVERS: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

/// Whether it is written down how a container ended.
pub(super) fn is_over(directory: &Path) -> bool {
    directory.join(EXIT).exists()
}

/// The directory of one container.
#[derive(Debug, Clone)]
pub(super) struct Files {
    path: PathBuf,
}

impl Files {
    pub(super) fn new(path: PathBuf) -> Self {
        Files { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Written beside and renamed: what is there is whole.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let part = self.path.join(format!("{name}.part"));
        fs::write(&part, bytes)?;
        fs::rename(part, self.path.join(name))
    }

    pub(super) fn exit(&self) -> Option<Exit> {
        serde_json::from_slice(&fs::read(self.path.join(EXIT)).ok()?).ok()
    }

    /// The first one that is told counts.
    pub(super) fn set_exit(&self, exit: &Exit) -> io::Result<()> {
        if self.exit().is_some() {
            return Ok(());
        }
        self.write(EXIT, &serde_json::to_vec(exit)?)
    }

    /// When it was last started.
    pub(super) fn started(&self) -> Option<SystemTime> {
        fs::metadata(self.path.join("started")).and_then(|file| file.modified()).ok()
    }

    /// An input that stays open, though nobody writes.
    pub(super) fn make_input(&self) -> io::Result<()> {
        match mknodat(CWD, self.input(), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
            Err(error) if error != Errno::EXIST => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Where that is, if it has one.
    pub(super) fn input(&self) -> PathBuf {
        self.path.join("stdin")
    }

    pub(super) fn set_started(&self) -> io::Result<()> {
        self.write("started", b"")
    }

    /// It is to be started once more. What says that it ended goes last: until then it has ended as before.
    pub(super) fn forget_exit(&self) -> io::Result<()> {
        for name in ["started", EXIT] {
            match fs::remove_file(self.path.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// How long it has run in this state, since its last start.
    pub(super) fn ran(&self, state: &State) -> Duration {
        let Some(started) = self.started() else { return Duration::ZERO };
        match state {
            State::Exited(exit) => exit.at.since(started.into()),
            _ => started.elapsed().unwrap_or_default(),
        }
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes it, with the files of a network.
    pub(super) fn make(&self, spec: &ContainerSpec) -> io::Result<()> {
        fs::create_dir_all(&self.path)?;
        self.write("hostname", format!("{}\n", host_name(spec)).as_bytes())?;
        self.write(
            "resolv.conf",
            resolver(spec, &fs::read_to_string("/etc/resolv.conf").unwrap_or_default()).as_bytes(),
        )?;
        let mut hosts = match spec.network_mode {
            NetworkMode::Host => fs::read_to_string("/etc/hosts").unwrap_or_default(),
            _ => "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned(),
        };
        for host in &spec.definition.extra_hosts {
            hosts.push_str(&format_host(&host.ip_address, &host.hostname));
        }
        self.write("hosts.base", hosts.as_bytes())?;
        // In place, later: what is mounted into a container is this very file.
        fs::write(self.path.join("hosts"), hosts)
    }

    /// It has an address from now on, and knows those of containers that it is linked to.
    pub(super) fn join(
        &self,
        address: &str,
        links: &[String],
        known: impl Fn(&str) -> Option<String>,
    ) -> io::Result<()> {
        let mut hosts = fs::read_to_string(self.path.join("hosts.base"))?;
        let own = fs::read_to_string(self.path.join("hostname"))?;
        hosts.push_str(&format_host(address, own.trim()));
        for (name, alias) in links.iter().filter_map(|link| parse_link(link)) {
            if let Some(address) = known(name) {
                let names = if name == alias { name.to_owned() } else { format!("{alias} {name}") };
                hosts.push_str(&format_host(&address, &names));
            }
        }
        fs::write(self.path.join("hosts"), hosts)
    }
}

fn format_host(address: &str, names: &str) -> String {
    format!("{address}\t{names}\n")
}

/// A container's `resolv.conf`: its own servers, or the machine's. Those that listen on the machine's loopback are nobody's in
/// another network.
fn resolver(spec: &ContainerSpec, machine: &str) -> String {
    let definition = &spec.definition;
    let local = |line: &&str| {
        let server = line.strip_prefix("nameserver").map(str::trim);
        spec.network_mode != NetworkMode::Host && server.is_some_and(|s| s.starts_with("127.") || s == "::1")
    };
    let kind = |line: &&str, kind: &str| line.starts_with(kind);
    let lines: Vec<&str> = machine.lines().map(str::trim).filter(|line| !local(line)).collect();
    let of = |name: &'static str| lines.iter().copied().filter(move |line| kind(line, name)).map(str::to_owned);
    let mut all: Vec<String> = Vec::new();
    match definition.dns_servers.as_slice() {
        [] => all.extend(of("nameserver")),
        own => all.extend(own.iter().map(|server| format!("nameserver {server}"))),
    }
    if all.is_empty() {
        all.extend(NAME_SERVERS.map(|server| format!("nameserver {server}")));
    }
    match definition.dns_search_domains.as_slice() {
        [] => all.extend(of("search")),
        own => all.push(format!("search {}", own.join(" "))),
    }
    all.extend(of("options"));
    all.join("\n") + "\n"
}

/// `passwd` and `group` of a root file system that is not mounted: of its topmost layer that has them. Empty where there are none.
pub(super) fn accounts(mounts: &[Mount]) -> (String, String) {
    let layers: Vec<PathBuf> = mounts.iter().flat_map(layers).collect();
    let read = |name: &str| layers.iter().find_map(|layer| within(layer, name)).unwrap_or_default();
    (read("etc/passwd"), read("etc/group"))
}

/// Directories of a mount's layers, the topmost first.
fn layers(mount: &Mount) -> Vec<PathBuf> {
    if mount.r#type != "overlay" {
        return vec![PathBuf::from(&mount.source)];
    }
    let option = |name: &str| mount.options.iter().find_map(|option| option.strip_prefix(name));
    let upper = option("upperdir=").map(PathBuf::from);
    let lower = option("lowerdir=").unwrap_or_default().split(':').filter(|path| !path.is_empty()).map(PathBuf::from);
    upper.into_iter().chain(lower).collect()
}

/// A file below a root, whose links do not lead out of it.
fn within(root: &Path, name: &str) -> Option<String> {
    let found = below(root, name)?;
    // An image may have anything under this name: a device is not to be opened.
    if !FileType::from_raw_mode(fstat(&found).ok()?.st_mode).is_file() {
        return None;
    }
    let mut text = String::new();
    File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))
        .ok()?
        .take(1024 * 1024)
        .read_to_string(&mut text)
        .ok()?;
    Some(text)
}

/// What a path is below a root, not opened.
fn below(root: &Path, name: &str) -> Option<OwnedFd> {
    let root = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    openat2(&root, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT).ok()
}

/// Gives a directory the owner and the mode that a path has in a root file system that is not mounted.
pub(super) fn own_like(directory: &Path, root: &[Mount], path: &str) -> io::Result<()> {
    let found = root.iter().flat_map(layers).find_map(|layer| fstat(below(&layer, path)?).ok());
    let Some(found) = found.filter(|found| FileType::from_raw_mode(found.st_mode).is_dir()) else { return Ok(()) };
    std::os::unix::fs::chown(directory, Some(found.st_uid), Some(found.st_gid))?;
    fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(found.st_mode & 0o7777))
}

/// An init program of this machine's.
pub(super) fn init() -> Option<PathBuf> {
    INITS.iter().map(PathBuf::from).find(|path| path.exists())
}

/// What a task's containers share as `/dev/shm`.
pub(super) fn shared_memory_path(task: &str) -> PathBuf {
    Path::new("/dev/shm").join(format!("steady-{task}"))
}

/// Makes it.
pub(super) fn shared_memory(task: &str) -> io::Result<PathBuf> {
    let path = shared_memory_path(task);
    fs::create_dir_all(&path)?;
    rustix::fs::chmodat(CWD, &path, Mode::from_raw_mode(0o1777), rustix::fs::AtFlags::empty())?;
    Ok(path)
}

/// Whether a container of a task is there.
pub(super) fn any_of(base: &Path, task: &str) -> bool {
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{task}-")))
}

/// Removes a directory; one that stays is seen again when the next task goes.
pub(super) fn remove_all(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "could not be removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::ContainerId;
    use steady_core::v1::ContainerDefinition;

    fn spec(network: NetworkMode) -> ContainerSpec {
        ContainerSpec::new(ContainerId { task: "0123456789abcdef".into(), name: "web".into() }, "c", "i", network)
    }

    #[test]
    fn a_machine_s_own_resolver_is_no_container_s() {
        let machine = "# made by hand\nnameserver 127.0.0.53\noptions edns0\nsearch here\n";
        assert_eq!(resolver(&spec(NetworkMode::Host), machine), "nameserver 127.0.0.53\nsearch here\noptions edns0\n");
        let bridged = resolver(&spec(NetworkMode::Bridge), machine);
        assert_eq!(bridged, "nameserver 8.8.8.8\nnameserver 8.8.4.4\nsearch here\noptions edns0\n");
        let definition = ContainerDefinition { dns_servers: vec!["10.0.0.2".into()], ..<_>::default() };
        let own = ContainerSpec { definition, ..spec(NetworkMode::Bridge) };
        assert!(resolver(&own, machine).starts_with("nameserver 10.0.0.2\n"));
    }

    #[test]
    fn hosts_name_the_container_and_its_links() {
        let directory = tempfile::tempdir().expect("a directory");
        let files = Files::new(directory.path().join("c"));
        files.make(&spec(NetworkMode::Bridge)).expect("made");
        for _ in 0..2 {
            let known = |name: &str| (name == "db").then(|| "10.88.0.3".to_owned());
            files.join("10.88.0.2", &["db:store".to_owned(), "gone".to_owned()], known).expect("joined");
        }
        let hosts = fs::read_to_string(files.path().join("hosts")).expect("there");
        assert!(hosts.ends_with("10.88.0.2\t0123456789ab\n10.88.0.3\tstore db\n"), "{hosts}");
        assert_eq!(hosts.matches("10.88.0.2").count(), 1);
    }

    #[test]
    fn links_of_an_image_do_not_lead_out_of_it() {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir(root.path().join("real")).expect("made");
        fs::write(root.path().join("real/passwd"), "own").expect("written");
        std::os::unix::fs::symlink("/real", root.path().join("etc")).expect("linked");
        assert_eq!(within(root.path(), "etc/passwd").as_deref(), Some("own"), "in the image, not of the machine");
    }

    #[test]
    fn layers_are_looked_through_from_the_top() {
        let overlay = Mount {
            r#type: "overlay".into(),
            options: vec!["workdir=/w".into(), "upperdir=/u".into(), "lowerdir=/b:/a".into()],
            ..Mount::default()
        };
        assert_eq!(layers(&overlay), ["/u", "/b", "/a"].map(PathBuf::from));
    }
}
