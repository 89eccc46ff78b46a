//! The last good table on disk: what is obeyed after a restart for as long as the control plane is away.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message;
use steady_core::v1::Object;
use steady_core::{Kind, Revision, View, task};

/// Where it is.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    directory: PathBuf,
}

impl Kept {
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        Ok(Kept { directory: directory.to_owned() })
    }

    /// Writes a file that only its owner reads: whole, or as it was before.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (path, part) = (self.directory.join(name), self.directory.join(format!("{name}.part")));
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&part)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(part, path)
    }

    /// Keeps what tables of a cluster are made of.
    pub(crate) fn keep(&self, view: &View, cluster: &str) -> io::Result<()> {
        let mut bytes = Vec::new();
        for kind in [Kind::Listener, Kind::TargetGroup, Kind::Deployment, Kind::Task] {
            for object in view.in_cluster(kind, cluster) {
                if task::of(object).is_some_and(|task| task.status.targets.is_empty()) {
                    continue;
                }
                object.encode_length_delimited(&mut bytes).map_err(io::Error::other)?;
            }
        }
        self.write("table", &bytes)
    }

    /// What was kept; `None`: nothing, or nothing that can be read.
    pub(crate) fn load(&self) -> Option<View> {
        let bytes = fs::read(self.directory.join("table")).ok()?;
        let (mut rest, mut view) = (bytes.as_slice(), View::default());
        while !rest.is_empty() {
            view.put(Arc::new(Object::decode_length_delimited(&mut rest).ok()?));
        }
        view.set_revision(Revision(1));
        Some(view)
    }

    /// Keeps certificates, private keys and all.
    pub(crate) fn keep_certificates(&self, all: &serde_json::Value) -> io::Result<()> {
        self.write("certificates", all.to_string().as_bytes())
    }

    pub(crate) fn load_certificates(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&fs::read(self.directory.join("certificates")).ok()?).ok()
    }

    /// Where the next process asks for the sockets of this one.
    pub(crate) fn handover(&self) -> PathBuf {
        self.directory.join("handover.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_core::v1::{Listener, ListenerSpec, Task};

    #[test]
    fn what_was_kept_is_there_again_and_half_of_it_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let kept = Kept::open(directory.path()).expect("opened");
        assert!(kept.load().is_none());
        let mut view = View::default();
        let spec = ListenerSpec { port: 80, ..ListenerSpec::default() };
        view.put(Arc::new(Object::new("default", "http", Listener { spec: Some(spec) })));
        view.put(Arc::new(Object::new("default", "t", Task::default())));
        kept.keep(&view, "default").expect("kept");
        let loaded = kept.load().expect("loaded");
        assert_eq!((loaded.in_cluster(Kind::Listener, "default").count(), loaded.len()), (1, 1));
        let path = directory.path().join("table");
        let bytes = fs::read(&path).expect("bytes");
        fs::write(path, &bytes[..bytes.len() - 1]).expect("written");
        assert!(kept.load().is_none());
    }
}
