//! What a run stands on: the program that is measured, and a directory on the disk that is measured.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use tempfile::TempDir;

/// The program and the directory. The directory goes with it unless it is kept.
pub(crate) struct Workspace {
    /// The program `steady`.
    pub(crate) steady: PathBuf,
    directory: TempDir,
}

impl Workspace {
    /// Builds the program unless one is given.
    pub(crate) fn open(steady: Option<PathBuf>, directory: Option<PathBuf>) -> anyhow::Result<Self> {
        if cfg!(debug_assertions) {
            eprintln!("steady-benches: built without --release; the figures mean nothing");
        }
        let this = std::env::current_exe().context("where is this program?")?;
        let beside = this.parent().context("this program is in no directory")?;
        let steady = match steady {
            Some(steady) => steady,
            None => build(beside)?,
        };
        // Not the system's temporary directory: that is often memory, where a sync costs nothing.
        let under = directory.unwrap_or_else(|| beside.to_owned());
        let directory = tempfile::Builder::new()
            .prefix("steady-benches-")
            .tempdir_in(&under)
            .with_context(|| format!("no directory for data in {}", under.display()))?;
        Ok(Workspace { steady, directory })
    }

    /// A directory of this run, not there before.
    pub(crate) fn directory(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.directory.path().join(name);
        std::fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// Leaves the directory where it is.
    pub(crate) fn keep(self) -> PathBuf {
        self.directory.keep()
    }
}

/// The program beside this one. Under cargo it is built first: measuring one that was left from an older commit
/// would be worse than measuring none.
fn build(beside: &Path) -> anyhow::Result<PathBuf> {
    let steady = beside.join("steady");
    let Some(cargo) = std::env::var_os("CARGO") else {
        if steady.exists() {
            return Ok(steady);
        }
        bail!("{} is not there; build it with `cargo build --release -p steady`", steady.display());
    };
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "-p", "steady", "--bin", "steady"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let status = command.stdin(Stdio::null()).status().context("cargo does not run")?;
    if !status.success() {
        bail!("`cargo build -p steady` failed ({status})");
    }
    if !steady.exists() {
        bail!("cargo built no {}; pass --steady PATH", steady.display());
    }
    Ok(steady)
}
