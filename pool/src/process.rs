//! Instances that are agents on this machine: for trying things, and for machines that are divided.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::time::Instant;

use crate::{Maker, Provider, Wanted};

/// How long an agent may take to stop its tasks and end, before it is killed.
const PATIENCE: Duration = Duration::from_secs(40);
/// How long its end is waited for at a time: one without tasks ends at once.
const LOOK: Duration = Duration::from_secs(3);

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
        // It is asked to end when its instance is to be no more.
        command.arg("--stop-tasks").arg("--data-dir").arg(directory.join("data"));
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
        tokio::spawn(async move {
            let _ = child.wait().await;
        });
        Ok(())
    }
}

/// The agent of a directory, if it runs, whoever started it and whether that was written down or not: its command line names the directory.
fn running(directory: &Path) -> Option<Pid> {
    let data = directory.join("data");
    processes("agent", |word| word == data.as_os_str().as_bytes()).next()
}

/// Processes that hold tasks of an agent of a directory.
fn shims(directory: &Path) -> impl Iterator<Item = Pid> {
    let below = directory.join("data").join("");
    processes("__shim", move |word| word.starts_with(below.as_os_str().as_bytes()))
}

/// Processes of a command, one of whose arguments is such a one.
fn processes(command: &'static str, is_one: impl Fn(&[u8]) -> bool) -> impl Iterator<Item = Pid> {
    let names_it = move |entry: &fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        // A zombie has no words.
        words.get(1).is_some_and(|word| *word == command.as_bytes()) && words.iter().any(|word| is_one(word))
    };
    let number = |entry: fs::DirEntry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?);
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter(|entry| entry.file_name().as_bytes().iter().all(u8::is_ascii_digit))
        .filter(names_it)
        .filter_map(number)
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
                continue;
            }
            // Asked twice it would end at once.
            let asked = directory.join("asked");
            let Some(pid) = running(directory) else { continue };
            match fs::metadata(&asked).and_then(|asked| asked.modified()) {
                Ok(at) if at.elapsed().unwrap_or_default() > PATIENCE => {
                    let _ = kill_process(pid, Signal::KILL);
                }
                Ok(_) => {}
                Err(_) => {
                    let _ = kill_process(pid, Signal::TERM);
                    let _ = fs::write(&asked, "");
                }
            }
        }
        let began = Instant::now();
        while directories.iter().any(|(_, directory)| running(directory).is_some()) && began.elapsed() < LOOK {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for (name, directory) in directories {
            if failed.contains_key(&name) || running(&directory).is_some() {
                // It is looked at again.
                continue;
            }
            // Those of an agent that was killed are nobody's. Each holds a task, which ends with it.
            for pid in shims(&directory) {
                let _ = kill_process(pid, Signal::KILL);
            }
            if let Err(error) = fs::remove_dir_all(&directory) {
                failed.insert(name, format!("{}: {error}", directory.display()));
            }
        }
        Ok(failed)
    }

    async fn tidy(&self, provider: &Provider, wanted: &BTreeSet<String>) {
        let entries = fs::read_dir(self.of(provider)).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| !wanted.contains(&*entry.file_name().to_string_lossy())) {
            if running(&entry.path()).is_none() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_agent_is_known_by_its_directory_and_what_is_left_of_others_is_cleared_away() {
        let directory = tempfile::tempdir().expect("a directory");
        let settings = Settings { program: "steady".into(), directory: directory.path().into(), address: None };
        let maker = Process::new(settings);
        let provider = Provider { cluster: "default".into(), name: "spot".into(), servers: vec![] };
        let of = |name: &str| maker.of(&provider).join(name);
        for name in ["runs", "over", "ended"] {
            fs::create_dir_all(of(name).join("data")).expect("made");
        }
        fs::write(of("ended").join("ending"), "").expect("written");
        assert!(running(&of("runs")).is_none());
        // Anything whose command line is an agent's.
        let script = of("runs").join("like-an-agent");
        fs::write(&script, "kill -STOP $$\n").expect("written");
        fs::copy(&script, maker.of(&provider).join("agent")).expect("copied");
        let mut child = Command::new("sh");
        child.current_dir(maker.of(&provider)).arg("agent").arg(of("runs").join("data"));
        let child = child.kill_on_drop(true).spawn().expect("a shell");
        let found = async {
            while running(&of("runs")).is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), found).await.expect("it is found");
        assert_eq!(maker.list(&provider).await, Ok(BTreeSet::from(["ended".to_owned(), "runs".to_owned()])));
        drop(child);
        fs::remove_file(maker.of(&provider).join("agent")).expect("removed");
        while running(&of("runs")).is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(maker.list(&provider).await, Ok(BTreeSet::from(["ended".to_owned()])));
        maker.tidy(&provider, &BTreeSet::from(["runs".to_owned()])).await;
        assert!(of("runs").exists() && !of("over").exists() && !of("ended").exists());
    }
}
