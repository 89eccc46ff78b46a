//! Instances that are agents on this machine: for trying things, and for machines that are divided.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

use crate::{Maker, Provider, Wanted};

/// How long an agent may take to end before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// How agents are started.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The program: `steady`.
    pub program: PathBuf,
    /// Where each of them has a directory.
    pub directory: PathBuf,
    /// Address where their tasks' ports answer; none: they find it out.
    pub address: Option<String>,
}

/// Agents on this machine. They go on when whoever started them ends, and are found again by their directories.
#[derive(Debug)]
pub struct Process {
    settings: Settings,
}

impl Process {
    /// A maker of agents.
    pub fn new(settings: Settings) -> Self {
        Process { settings }
    }

    fn of(&self, provider: &Provider) -> PathBuf {
        self.settings.directory.join(&provider.cluster).join(&provider.name)
    }

    fn start(&self, provider: &Provider, wanted: &Wanted) -> io::Result<()> {
        let directory = self.of(provider).join(&wanted.name);
        fs::create_dir_all(&directory)?;
        let log = File::options().create(true).append(true).open(directory.join("agent.log"))?;
        let template = &wanted.template;
        let mut command = Command::new(&self.settings.program);
        command.arg("agent").args(["--name", &wanted.name, "--cluster", &provider.cluster]);
        command.args(["--capacity-provider", &provider.name, "--server", &provider.servers.join(",")]);
        command.args(["--cpu", &template.cpu.to_string(), "--memory", &template.memory.to_string()]);
        command.arg("--data-dir").arg(directory.join("data"));
        if !template.runtime.is_empty() {
            command.args(["--runtime", &template.runtime]);
        }
        if let Some(address) = &self.settings.address {
            command.args(["--address", address]);
        }
        let zone = (!wanted.availability_zone.is_empty())
            .then_some(("ecs.availability-zone", wanted.availability_zone.as_str()));
        let given = template.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in given.chain(zone) {
            command.args(["--attribute", &format!("{name}={value}")]);
        }
        // It is not ours to end when we are.
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(false);
        let mut child = command.spawn()?;
        let pid = child.id().unwrap_or_default();
        let started = since_boot(pid).unwrap_or_default();
        fs::write(directory.join("pid"), format!("{pid} {started}"))?;
        tokio::spawn(async move {
            let _ = child.wait().await;
        });
        Ok(())
    }
}

/// The agent of a directory, if it runs: its number, which may be another process' by now, and when it began.
fn running(directory: &Path) -> Option<Pid> {
    let text = fs::read_to_string(directory.join("pid")).ok()?;
    let (pid, started) = text.trim().split_once(' ')?;
    let pid: u32 = pid.parse().ok()?;
    let is_it = since_boot(pid).is_some_and(|found| found == started);
    Pid::from_raw(i32::try_from(pid).ok()?).filter(|_| is_it)
}

/// When a process began, in the kernel's ticks since boot; none for one that is over.
fn since_boot(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may have spaces and brackets in it.
    let rest = &stat[stat.rfind(')')? + 2..];
    let mut fields = rest.split(' ');
    if matches!(fields.next(), Some("Z" | "X")) {
        return None;
    }
    fields.nth(18).map(str::to_owned)
}

#[async_trait]
impl Maker for Process {
    async fn list(&self, provider: &Provider) -> Result<BTreeSet<String>, String> {
        let directory = self.of(provider);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(error) => return Err(format!("{}: {error}", directory.display())),
        };
        // One whose agent ended is made again, or is to be cleared away: both begin with its not being wanted, or not being there.
        let names = entries.flatten().map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()));
        Ok(names
            .filter(|(_, path)| running(path).is_some() || path.join("ending").exists())
            .map(|(name, _)| name)
            .collect())
    }

    async fn grow(&self, provider: &Provider, wanted: &[Wanted]) -> Result<BTreeMap<String, String>, String> {
        let mut failed = BTreeMap::new();
        for one in wanted {
            if let Err(error) = self.start(provider, one) {
                failed.insert(one.name.clone(), error.to_string());
            }
        }
        Ok(failed)
    }

    async fn shrink(&self, provider: &Provider, names: &[String]) -> Result<BTreeMap<String, String>, String> {
        let mut failed = BTreeMap::new();
        let directories: Vec<(String, PathBuf)> =
            names.iter().map(|name| (name.clone(), self.of(provider).join(name))).collect();
        for (name, directory) in &directories {
            // Until it is cleared away it is there, whatever happens to us.
            if let Err(error) = fs::write(directory.join("ending"), "") {
                failed.insert(name.clone(), error.to_string());
            }
            if let Some(pid) = running(directory) {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while directories.iter().any(|(_, directory)| running(directory).is_some()) {
            if tokio::time::Instant::now() > deadline {
                for pid in directories.iter().filter_map(|(_, directory)| running(directory)) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for (name, directory) in directories {
            if let Err(error) = fs::remove_dir_all(&directory) {
                failed.insert(name, format!("{}: {error}", directory.display()));
            }
        }
        Ok(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_number_and_its_beginning() {
        let directory = tempfile::tempdir().expect("a directory");
        let own = std::process::id();
        let started = since_boot(own).expect("it runs");
        let write = |text: String| fs::write(directory.path().join("pid"), text).expect("written");
        write(format!("{own} {started}"));
        assert!(running(directory.path()).is_some());
        write(format!("{own} 1"));
        assert!(running(directory.path()).is_none(), "another one of the same number");
    }
}
