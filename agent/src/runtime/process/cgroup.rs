//! Limits of cpu and memory, where the machine lets the agent set them: cgroups, version 2 or 1.

use std::fs;
use std::path::{Path, PathBuf};

use crate::runtime::ContainerId;

const ROOT: &str = "/sys/fs/cgroup";
/// Microseconds over which cpu is shared out.
const PERIOD: i64 = 100_000;

/// One file of a cgroup and what goes into it.
type Setting = (&'static str, String);

fn is_version_2() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// Whether limits can be set here.
pub(super) fn is_usable() -> bool {
    let parents = if is_version_2() { vec![""] } else { vec!["memory", "cpu"] };
    parents.iter().all(|parent| {
        let path = Path::new(ROOT).join(parent).join("steady");
        fs::create_dir_all(&path).is_ok() && fs::metadata(path.join("cgroup.procs")).is_ok()
    })
}

/// Makes the cgroups of a container. Where that cannot be done there are none, and no limits.
pub(super) fn create(id: &ContainerId, cpu: Option<i32>, memory: Option<i32>) -> Vec<PathBuf> {
    let bytes = memory.map(|mib| (i64::from(mib) * 1024 * 1024).to_string());
    let quota = cpu.filter(|units| *units > 0).map(|units| i64::from(units) * PERIOD / 1024);
    let wanted: Vec<(PathBuf, Vec<Setting>)> = if is_version_2() {
        let root = Path::new(ROOT);
        // Children have a controller only where their parent hands it on.
        for parent in [root.to_owned(), root.join("steady")] {
            let _ = fs::create_dir_all(&parent);
            let _ = fs::write(parent.join("cgroup.subtree_control"), "+memory +cpu");
        }
        let memory = bytes.map(|bytes| ("memory.max", bytes));
        let cpu = quota.map(|quota| ("cpu.max", format!("{quota} {PERIOD}")));
        vec![(root.join("steady").join(id.to_string()), memory.into_iter().chain(cpu).collect())]
    } else {
        let of = |controller: &str| Path::new(ROOT).join(controller).join("steady").join(id.to_string());
        let memory = bytes.map(|bytes| ("memory.limit_in_bytes", bytes));
        let cpu = quota.map(|quota| ("cpu.cfs_quota_us", quota.to_string()));
        vec![(of("memory"), memory.into_iter().collect()), (of("cpu"), cpu.into_iter().collect())]
    };
    let mut made = Vec::new();
    for (path, settings) in wanted {
        let set = |(file, value): &Setting| fs::write(path.join(file), value);
        let done = fs::create_dir_all(&path).and_then(|()| settings.iter().try_for_each(set));
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

/// Removes cgroups that nothing runs in any more.
pub(super) fn remove(cgroups: &[PathBuf]) {
    for path in cgroups {
        if let Err(error) = fs::remove_dir(path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::debug!(path = %path.display(), %error, "a cgroup stays");
        }
    }
}

/// How often the kernel killed something in them for want of memory.
pub(super) fn kills_for_memory(cgroups: &[PathBuf]) -> u64 {
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
