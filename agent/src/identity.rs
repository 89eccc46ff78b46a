//! Who an agent is: kept on disk, so that a restart is the same instance.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What an agent must not forget about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Uid of its instance.
    pub uid: String,
    /// Name of its instance.
    pub name: String,
    /// The store it belongs to; empty before the first registration.
    pub store: String,
    #[serde(skip)]
    file: Option<PathBuf>,
}

/// The identity cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {error}")]
pub struct IdentityError {
    path: PathBuf,
    error: io::Error,
}

impl Identity {
    /// Reads it from a directory, or makes a new one there. The name that is on disk counts.
    pub fn load(directory: &Path, name: &str) -> Result<Self, IdentityError> {
        Self::load_or(directory, name, random_uid)
    }

    /// The same with a source of uids of one's own.
    pub fn load_or(
        directory: &Path,
        name: &str,
        new_uid: impl FnOnce() -> Result<String, IdentityError>,
    ) -> Result<Self, IdentityError> {
        let file = directory.join("identity.json");
        let failed = |error| IdentityError { path: file.clone(), error };
        match fs::read(&file) {
            Ok(bytes) => {
                let mut known: Identity = serde_json::from_slice(&bytes).map_err(|e| failed(io::Error::other(e)))?;
                known.file = Some(file);
                Ok(known)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (uid, name) = (new_uid()?, name.to_owned());
                let fresh = Identity { uid, name, store: String::new(), file: Some(file) };
                fresh.save()?;
                Ok(fresh)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Remembers the store it belongs to.
    pub fn join(&mut self, store: &str) -> Result<(), IdentityError> {
        store.clone_into(&mut self.store);
        self.save()
    }

    fn save(&self) -> Result<(), IdentityError> {
        let Some(file) = &self.file else { return Ok(()) };
        let failed = |error| IdentityError { path: file.clone(), error };
        if let Some(directory) = file.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        let part = file.with_extension("part");
        let bytes = serde_json::to_vec_pretty(self).map_err(|e| failed(io::Error::other(e)))?;
        fs::write(&part, bytes).and_then(|()| fs::rename(&part, file)).map_err(failed)
    }
}

/// One that nobody had before.
fn random_uid() -> Result<String, IdentityError> {
    let path = Path::new("/proc/sys/kernel/random/uuid");
    let uid = fs::read_to_string(path).map_err(|error| IdentityError { path: path.to_owned(), error })?;
    Ok(uid.trim().replace('-', ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_a_restart_and_so_does_its_store() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut first = Identity::load(directory.path(), "node-1").expect("made");
        first.join("store-1").expect("saved");
        assert_eq!(Identity::load(directory.path(), "other").expect("read"), first);
    }
}
