//! Values that are not written to disk: they are in the machine's memory file system for as long as their container is
//! there, so that its shim and the next agent find them. Their names say whose they are: of which containers' base, and of
//! which container.

use std::fs::{self, DirBuilder, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use crate::runtime::ContainerId;

/// A file system in memory.
const MEMORY: &str = "/dev/shm";

fn directory() -> PathBuf {
    Path::new(MEMORY).join(format!("steady-{}", geteuid().as_raw()))
}

/// What names of this base's containers begin with.
fn prefix(base: &Path) -> String {
    let mut hasher = DefaultHasher::new();
    base.hash(&mut hasher);
    format!("{:016x}-", hasher.finish())
}

/// Writes variables down where only this user reads them.
pub(super) fn keep(base: &Path, id: &ContainerId, variables: &[(String, String)]) -> io::Result<Option<PathBuf>> {
    if variables.is_empty() {
        return Ok(None);
    }
    let directory = directory();
    match DirBuilder::new().mode(0o700).create(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::symlink_metadata(&directory)?;
    if !found.is_dir() || found.uid() != geteuid().as_raw() || found.mode() & 0o077 != 0 {
        let message = format!("{} is not this user's alone; remove it", directory.display());
        return Err(io::Error::other(message));
    }
    let name = format!("{}{id}", prefix(base));
    let (path, part) = (directory.join(&name), directory.join(format!("{name}.part")));
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    file.write_all(&serde_json::to_vec(variables)?)?;
    fs::rename(part, &path)?;
    Ok(Some(path))
}

/// Reads them.
pub(super) fn read(path: Option<&Path>) -> io::Result<Vec<(String, String)>> {
    let Some(path) = path else { return Ok(Vec::new()) };
    let gone = |e: io::Error| io::Error::other(format!("its secrets are gone, as after a restart of the machine: {e}"));
    Ok(serde_json::from_slice(&fs::read(path).map_err(gone)?)?)
}

/// Forgets them.
pub(super) fn forget(path: Option<&Path>) {
    if let Some(path) = path
        && let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "secrets stay");
    }
}

/// Forgets those of this base's containers that are not there, as after a crash.
pub(super) fn sweep(base: &Path, there: &[ContainerId]) {
    let Ok(entries) = fs::read_dir(directory()) else { return };
    let prefix = prefix(base);
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.strip_prefix(&prefix).is_some_and(|id| !there.iter().any(|known| known.to_string() == id)) {
            forget(Some(&entry.path()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_this_user_s_alone_and_goes_with_its_container() {
        let base = tempfile::tempdir().expect("a directory");
        let id = |name: &str| ContainerId { task: "t".into(), name: name.into() };
        let variables = [("A".to_owned(), "CANARY".to_owned())];
        let kept = ["a", "b"].map(|name| keep(base.path(), &id(name), &variables).expect("kept").expect("a path"));
        assert_eq!(fs::metadata(&kept[0]).expect("is there").mode() & 0o777, 0o600);
        assert_eq!(read(Some(&kept[0])).expect("read"), variables);
        sweep(base.path(), &[id("a")]);
        assert!(kept[0].exists() && !kept[1].exists());
        forget(Some(&kept[0]));
        assert!(read(Some(&kept[0])).expect_err("is gone").to_string().contains("its secrets are gone"));
    }
}
