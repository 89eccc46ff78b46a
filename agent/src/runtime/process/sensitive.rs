//! Values that are not written to disk: they are in the machine's memory file system for as long as their container is
//! there, so that its shim and the next agent find them.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

/// A file system in memory.
const MEMORY: &str = "/dev/shm";

/// Writes variables down where only this user reads them.
pub(super) fn keep(variables: &[(String, String)]) -> io::Result<Option<PathBuf>> {
    if variables.is_empty() {
        return Ok(None);
    }
    let user = geteuid().as_raw();
    let directory = Path::new(MEMORY).join(format!("steady-{user}"));
    match DirBuilder::new().mode(0o700).create(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::symlink_metadata(&directory)?;
    if !found.is_dir() || found.uid() != user || found.mode() & 0o077 != 0 {
        let message = format!("{} is not this user's alone; remove it", directory.display());
        return Err(io::Error::other(message));
    }
    let name = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let path = directory.join(name.trim());
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(&serde_json::to_vec(variables)?)?;
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
