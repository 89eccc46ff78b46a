//! What an agent remembers of its tasks: enough to go on without the control plane, and never to run a task twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use steady_core::Timestamp;
use steady_core::v1::{Object, TaskDefinitionSpec};

use crate::engine::{Restarts, Stop};

/// One task as it is remembered.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The task as it was assigned, or told to stop.
    pub(crate) task: Object,
    /// Its definition.
    pub(crate) definition: TaskDefinitionSpec,
    /// Containers that were made, or were about to be. One that is not there any more has ended.
    pub(crate) launched: BTreeSet<String>,
    /// Containers that their restart policies started again.
    #[serde(default)]
    pub(crate) restarts: BTreeMap<String, Restarts>,
    /// GPUs that containers were given.
    #[serde(default)]
    pub(crate) gpus: BTreeMap<String, Vec<u32>>,
    /// It is to stop, and why: the next agent goes on with that, and starts none of its containers again.
    #[serde(default)]
    pub(crate) stop: Option<Stop>,
    /// When nothing of it was left, and its end was stored.
    #[serde(default)]
    pub(crate) over: Option<Timestamp>,
}

impl Record {
    /// Of a task of which nothing was done yet.
    pub(crate) fn new(task: Object, definition: TaskDefinitionSpec) -> Self {
        Record {
            task,
            definition,
            launched: BTreeSet::new(),
            restarts: BTreeMap::new(),
            gpus: BTreeMap::new(),
            stop: None,
            over: None,
        }
    }
}

/// Records on disk, a file each; or nowhere.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    directory: Option<PathBuf>,
}

impl Records {
    pub(crate) fn open(directory: Option<&Path>) -> io::Result<Self> {
        let directory = directory.map(|d| d.join("tasks"));
        if let Some(directory) = &directory {
            fs::create_dir_all(directory)?;
        }
        Ok(Records { directory })
    }

    /// Where the agent keeps what it must not forget.
    pub(crate) fn directory(&self) -> Option<&Path> {
        self.directory.as_deref().and_then(Path::parent)
    }

    fn file(&self, task: &str) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.join(format!("{task}.json")))
    }

    /// Every record. One that cannot be read is set aside: its containers are found by their labels.
    pub(crate) fn load(&self) -> io::Result<Vec<Record>> {
        let Some(directory) = &self.directory else { return Ok(Vec::new()) };
        let mut records = Vec::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            match fs::read(&path)
                .map_err(|e| e.to_string())
                .and_then(|b| serde_json::from_slice::<Record>(&b).map_err(|e| e.to_string()))
            {
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::error!(path = %path.display(), error, "a task's record cannot be read; it is set aside");
                    fs::rename(&path, path.with_extension("bad"))?;
                }
            }
        }
        records.sort_by(|a, b| a.task.name().cmp(b.task.name()));
        Ok(records)
    }

    /// Remembers a task where it can only be said that this failed: what was decided goes on all the same.
    pub(crate) fn note(&self, record: &Record) {
        if let Err(error) = self.save(record) {
            tracing::error!(task = record.task.name(), %error, "a task could not be remembered");
        }
    }

    /// Remembers a task.
    pub(crate) fn save(&self, record: &Record) -> io::Result<()> {
        let Some(file) = self.file(record.task.name()) else { return Ok(()) };
        let part = file.with_extension("part");
        fs::write(&part, serde_json::to_vec(record).map_err(io::Error::other)?)?;
        fs::rename(&part, &file)
    }

    /// Forgets a task.
    pub(crate) fn forget(&self, task: &str) {
        if let Some(file) = self.file(task)
            && let Err(error) = fs::remove_file(&file)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %file.display(), %error, "a task's record stays");
        }
    }
}
