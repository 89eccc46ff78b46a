//! The shim: the parent of one command, which outlives the agent. Runs as a process of its own, on one thread.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Signal, getppid, set_parent_process_death_signal, setsid};
use steady_core::{Clock, SystemClock};

use super::directory::{Directory, Started};
use super::launch::Launch;
use crate::runtime::{Exit, cgroup, output};

/// How often the size of the output is looked at.
const ROTATION: Duration = Duration::from_secs(5);

/// Runs the command of a container's directory and writes down how it ended. Returns the shim's own exit code.
pub fn run_shim(path: &Path) -> i32 {
    let directory = Directory::new(path.to_owned());
    let _ = setsid();
    // Whoever holds the lock runs it; what ran once never runs again.
    let Ok(Some(_lock)) = directory.lock() else { return 0 };
    if directory.pid().is_some() || directory.failure().is_some() {
        return 0;
    }
    match start_and_wait(&directory) {
        Ok(exit) => i32::from(directory.set_exit(&exit).is_err()),
        Err(error) => {
            let _ = directory.set_failure(&error.to_string());
            let exit = Exit { code: Some(127), out_of_memory: false, at: SystemClock.now() };
            let _ = directory.set_exit(&exit);
            1
        }
    }
}

fn start_and_wait(directory: &Directory) -> io::Result<Exit> {
    let launch = directory.launch()?;
    // Its cgroups are as old as the container: kills of a start before this one are not this one's.
    let kills = cgroup::kills_for_memory(&launch.cgroups);
    let name = launch.argv.first().cloned().unwrap_or_default();
    let missing = || io::Error::other(format!("there is no executable `{name}` on this machine"));
    let program = launch.resolve(&name).ok_or_else(missing)?;
    let open = |stderr| File::options().create(true).append(true).open(directory.log(stderr));
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("__exec").arg(directory.path()).arg(program);
    command.env_clear().envs(launch.environment()?).current_dir(&launch.cwd).process_group(0);
    command.stdin(Stdio::null()).stdout(open(false)?).stderr(open(true)?);
    let mut child = command.spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    directory.set_pid(Started::of(pid).unwrap_or(Started { pid, at: 0 }))?;
    let logs = directory.clone();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(ROTATION);
            for stderr in [false, true] {
                output::rotate(&logs.log(stderr));
            }
        }
    });
    let status = child.wait()?;
    // Whatever the command left behind goes with it.
    directory.signal(Signal::KILL);
    Ok(ended(status, cgroup::kills_for_memory(&launch.cgroups) > kills))
}

fn ended(status: ExitStatus, out_of_memory: bool) -> Exit {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Exit { code, out_of_memory, at: SystemClock.now() }
}

/// Ties this process to its parent and puts it into a container's cgroups.
pub(super) fn enter(path: &Path) -> Result<Launch, String> {
    let parent = getppid();
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    // The parent may have ended before it could be tied to: then somebody else is the parent by now.
    if getppid() != parent {
        return Err("its parent has ended".to_owned());
    }
    let launch = Directory::new(path.to_owned()).launch().map_err(|e| format!("{}: {e}", path.display()))?;
    for cgroup in &launch.cgroups {
        let entered = fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string());
        entered.map_err(|e| format!("{}: {e}", cgroup.display()))?;
    }
    Ok(launch)
}

/// Becomes the command: tied to the shim, and in its cgroups. Only returns when that fails.
pub fn run_exec(path: &Path, program: &Path) -> i32 {
    let launch = match enter(path) {
        Ok(launch) => launch,
        Err(message) => {
            eprintln!("steady: {message}");
            return 126;
        }
    };
    let error = Command::new(program).args(launch.argv.iter().skip(1)).exec();
    eprintln!("steady: {}: {error}", program.display());
    126
}
