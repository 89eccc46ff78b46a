//! A container's directory: everything that is known of it, for whoever comes later.
//!
//! `launch.json` what is to be run; `lock` is held by the shim for as long as it lives; `pid` the command's process;
//! `failed` why it could not be started; `exit.json` how it ended; `stdout.log`, `stderr.log`; `work` its directory.
//! Files are written beside and renamed: what is there is whole.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use steady_core::{Clock, SystemClock};

use super::launch::Launch;
use crate::runtime::{ContainerId, Exit, State, output};

/// A process, told from a later one with the same number by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Started {
    pub(super) pid: i32,
    /// Clock ticks after the machine's start.
    pub(super) at: u64,
}

impl Started {
    /// The process of this number, if there is one.
    pub(super) fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything; the fields after it are counted from 3, the start is 22.
        let at = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        Some(Started { pid, at })
    }
}

/// The directory of one container.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    path: PathBuf,
}

/// Directories below `base`, with whose they are.
pub(super) fn all(base: &Path) -> io::Result<Vec<(ContainerId, Directory)>> {
    let entries = match fs::read_dir(base) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some((task, name)) = name.split_once('.')
            && entry.file_type()?.is_dir()
        {
            let id = ContainerId { task: task.to_owned(), name: name.to_owned() };
            found.push((id, Directory::new(entry.path())));
        }
    }
    Ok(found)
}

impl Directory {
    pub(super) fn new(path: PathBuf) -> Self {
        Directory { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    pub(super) fn log(&self, stderr: bool) -> PathBuf {
        output::file(&self.path, stderr)
    }

    /// Makes it, with what is to be run.
    pub(super) fn create(&self, launch: &Launch) -> io::Result<()> {
        fs::create_dir_all(self.work())?;
        self.write("launch.json", &serde_json::to_vec_pretty(launch)?)
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let part = self.path.join(format!("{name}.{}", std::process::id()));
        fs::write(&part, bytes)?;
        fs::rename(part, self.path.join(name))
    }

    pub(super) fn launch(&self) -> io::Result<Launch> {
        Ok(serde_json::from_slice(&fs::read(self.path.join("launch.json"))?)?)
    }

    pub(super) fn pid(&self) -> Option<Started> {
        serde_json::from_slice(&fs::read(self.path.join("pid")).ok()?).ok()
    }

    pub(super) fn set_pid(&self, started: Started) -> io::Result<()> {
        self.write("pid", &serde_json::to_vec(&started)?)
    }

    /// Why it could not be started.
    pub(super) fn failure(&self) -> Option<String> {
        fs::read_to_string(self.path.join("failed")).ok()
    }

    pub(super) fn set_failure(&self, reason: &str) -> io::Result<()> {
        self.write("failed", reason.as_bytes())
    }

    fn exit(&self) -> Option<Exit> {
        serde_json::from_slice(&fs::read(self.path.join("exit.json")).ok()?).ok()
    }

    pub(super) fn set_exit(&self, exit: &Exit) -> io::Result<()> {
        self.write("exit.json", &serde_json::to_vec(exit)?)
    }

    /// It is to be started once more. What says that it ended goes last: until then it has ended as before.
    pub(super) fn forget_exit(&self) -> io::Result<()> {
        for name in ["failed", "pid", "exit.json"] {
            match fs::remove_file(self.path.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// How long it has run in this state, since its last start.
    pub(super) fn ran(&self, state: &State) -> Duration {
        let Ok(started) = fs::metadata(self.path.join("pid")).and_then(|pid| pid.modified()) else {
            return Duration::ZERO;
        };
        match state {
            State::Exited(exit) => exit.at.since(started.into()),
            _ => started.elapsed().unwrap_or_default(),
        }
    }

    /// Takes the lock for as long as the file lives; `None` when another has it.
    pub(super) fn lock(&self) -> io::Result<Option<File>> {
        let file = File::options().create(true).truncate(false).write(true).open(self.path.join("lock"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What the container does.
    pub(super) fn state(&self) -> State {
        if let Some(exit) = self.exit() {
            return State::Exited(exit);
        }
        if self.failure().is_none() && self.pid().is_none() {
            return State::Created;
        }
        let held = matches!(self.lock(), Ok(None));
        // Between the first look and the lock it may have ended as it should.
        match self.exit() {
            Some(exit) => State::Exited(exit),
            None if held => State::Running,
            None => State::Exited(self.abandoned()),
        }
    }

    /// The shim is gone and did not say how the command ended: nothing of it goes on.
    fn abandoned(&self) -> Exit {
        self.signal(Signal::KILL);
        let code = self.failure().map(|_| 127);
        let exit = Exit { code, out_of_memory: false, at: SystemClock.now() };
        if let Err(error) = self.set_exit(&exit) {
            tracing::warn!(path = %self.path.display(), %error, "an exit could not be written down");
        }
        exit
    }

    /// Sends a signal to the command and all that it started.
    pub(super) fn signal(&self, signal: Signal) {
        let Some(started) = self.pid() else { return };
        // A group outlives its first process; another process of that number cannot be its leader by then.
        let reused = Started::of(started.pid).is_some_and(|now| now.at != started.at);
        if !reused && let Some(group) = Pid::from_raw(started.pid) {
            let _ = kill_process_group(group, signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn made() -> (tempfile::TempDir, Directory) {
        let base = tempfile::tempdir().expect("a directory");
        let directory = Directory::new(base.path().join("t.web"));
        let launch = Launch {
            argv: vec!["x".into()],
            env: BTreeMap::new(),
            cwd: "/".into(),
            ports: vec![],
            cgroups: vec![],
            cpu: None,
            memory: None,
            gpus: vec![],
            sensitive: None,
        };
        directory.create(&launch).expect("made");
        (base, directory)
    }

    #[test]
    fn the_state_is_read_off_the_files() {
        let (base, directory) = made();
        assert_eq!(directory.state(), State::Created);
        let lock = directory.lock().expect("a lock").expect("is free");
        directory.set_pid(Started { pid: 999_999_999, at: 1 }).expect("written");
        assert_eq!(directory.state(), State::Running);
        drop(lock);
        let State::Exited(exit) = directory.state() else { panic!("the shim is gone") };
        assert_eq!(exit.code, None, "nobody saw it end");
        assert_eq!(directory.state(), State::Exited(exit), "and that stays so");
        let found = all(base.path()).expect("listed");
        assert_eq!(found[0].0, ContainerId { task: "t".into(), name: "web".into() });
    }

    #[test]
    fn a_process_is_told_from_a_later_one_of_the_same_number() {
        let me = i32::try_from(std::process::id()).expect("a pid");
        let started = Started::of(me).expect("runs");
        assert_eq!(Started::of(me), Some(started));
        assert_eq!(Started::of(-1), None);
    }
}
