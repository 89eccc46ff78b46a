//! Limits of cpu and memory, where the machine lets the agent set them: cgroups, version 2 or 1. A container's is
//! `steady/TASK/NAME`; that of its task, `steady/TASK`, caps the cpu of all of its containers together.

use std::fs;
use std::path::{Path, PathBuf};

use super::ContainerId;

const ROOT: &str = "/sys/fs/cgroup";
/// Microseconds over which cpu is shared out.
const PERIOD: i64 = 100_000;

/// One file of a cgroup and what goes into it.
type Setting = (&'static str, String);

fn is_version_2() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// Whether limits can be set here.
pub(crate) fn is_usable() -> bool {
    let parents = if is_version_2() { vec![""] } else { vec!["memory", "cpu"] };
    parents.iter().all(|parent| {
        let path = Path::new(ROOT).join(parent).join("steady");
        fs::create_dir_all(&path).is_ok() && fs::metadata(path.join("cgroup.procs")).is_ok()
    })
}

/// Where the cgroups of a task are, below the machine's.
pub(crate) fn of_task(task: &str) -> String {
    format!("steady/{task}")
}

/// Makes the cgroups of a task, which cap its cpu. Whether that could be done.
pub(crate) fn cap(task: &str, cpu: i32) -> bool {
    make(&of_task(task), Some(cpu), None).len() == hierarchies().len()
}

/// Makes the cgroups of a container; `cpu` is its task's, and shared with the task's other containers. Where that cannot be
/// done there are none, and no limits.
pub(crate) fn create(id: &ContainerId, cpu: Option<i32>, memory: Option<i32>) -> Vec<PathBuf> {
    make(&of_task(&id.task), cpu, None);
    make(&format!("{}/{}", of_task(&id.task), id.name), None, memory)
}

/// Cgroups of a container that an engine made in its task's.
pub(crate) fn of_container(id: &ContainerId) -> Vec<PathBuf> {
    let name = format!("{}/{}", of_task(&id.task), id.name);
    let all = hierarchies().iter().map(|hierarchy| Path::new(ROOT).join(hierarchy).join(&name));
    all.filter(|path| path.exists()).collect()
}

/// Directories of the controllers for memory and cpu: one directory in version 2.
fn hierarchies() -> &'static [&'static str] {
    if is_version_2() { &[""] } else { &["memory", "cpu"] }
}

fn make(name: &str, cpu: Option<i32>, memory: Option<i32>) -> Vec<PathBuf> {
    let bytes = memory.map(|mib| (i64::from(mib) * 1024 * 1024).to_string());
    let quota = cpu.filter(|units| *units > 0).map(|units| i64::from(units) * PERIOD / 1024);
    let (memory, cpu): (Option<Setting>, Option<Setting>) = if is_version_2() {
        // Children have a controller only where their parent hands it on.
        let path = Path::new(ROOT).join(name);
        let parents: Vec<&Path> = path.ancestors().skip(1).take_while(|parent| parent.starts_with(ROOT)).collect();
        for parent in parents.into_iter().rev() {
            let _ = fs::create_dir_all(parent);
            let _ = fs::write(parent.join("cgroup.subtree_control"), "+memory +cpu");
        }
        let quota = quota.map(|quota| ("cpu.max", format!("{quota} {PERIOD}")));
        (bytes.map(|bytes| ("memory.max", bytes)), quota)
    } else {
        let quota = quota.map(|quota| ("cpu.cfs_quota_us", quota.to_string()));
        (bytes.map(|bytes| ("memory.limit_in_bytes", bytes)), quota)
    };
    let mut made = Vec::new();
    for hierarchy in hierarchies() {
        let path = Path::new(ROOT).join(hierarchy).join(name);
        let of = |controller: &str| hierarchy.is_empty() || *hierarchy == controller;
        let settings = memory.iter().filter(|_| of("memory")).chain(cpu.iter().filter(|_| of("cpu")));
        let done = fs::create_dir_all(&path)
            .and_then(|()| settings.into_iter().try_for_each(|(file, value)| fs::write(path.join(file), value)));
        match done {
            Ok(()) => made.push(path),
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "no limits here");
                let _ = fs::remove_dir(&path);
            }
        }
    }
    made
}

/// Removes the cgroups of a task, unless a container of it is there.
pub(crate) fn uncap(task: &str) {
    let _ = fs::remove_dir(Path::new(ROOT).join(of_task(task)));
    // In version 1 an engine makes it in every hierarchy.
    for hierarchy in fs::read_dir(ROOT).into_iter().flatten().flatten() {
        let _ = fs::remove_dir(hierarchy.path().join(of_task(task)));
    }
}

/// Whether anything runs in them.
pub(crate) fn is_occupied(cgroups: &[PathBuf]) -> bool {
    cgroups.iter().any(|cgroup| fs::read_to_string(cgroup.join("cgroup.procs")).is_ok_and(|pids| !pids.is_empty()))
}

/// Removes cgroups that nothing runs in any more.
pub(crate) fn remove(cgroups: &[PathBuf]) {
    for path in cgroups {
        if let Err(error) = fs::remove_dir(path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::debug!(path = %path.display(), %error, "a cgroup stays");
        }
    }
}

/// How often the kernel killed something in them for want of memory.
pub(crate) fn kills_for_memory(cgroups: &[PathBuf]) -> u64 {
    let files = cgroups.iter().flat_map(|c| [c.join("memory.events"), c.join("memory.oom_control")]);
    files.filter_map(|file| fs::read_to_string(file).ok()).map(|text| kills(&text)).sum()
}

fn kills(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted_in_both_versions() {
        assert_eq!(kills("low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\n"), 1);
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), 3);
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\n"), 0);
    }
}
