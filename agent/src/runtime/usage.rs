//! What a container takes of its machine, read off the kernel: for runtimes without an engine that counts.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::param::clock_ticks_per_second;

use super::Usage;

/// Of the processes in a container's cgroups; of `group`, a process group, where it has none.
pub(crate) fn of(cgroups: &[PathBuf], group: i32) -> Usage {
    let pids = processes(cgroups, group);
    let (mut usage, mut resident) = (Usage { processes: pids.len() as u64, ..Usage::default() }, 0);
    for pid in &pids {
        let directory = PathBuf::from(format!("/proc/{pid}"));
        usage.cpu_nanoseconds +=
            ticks(&directory).unwrap_or(0).saturating_mul(1_000_000_000) / clock_ticks_per_second();
        resident += field(&directory.join("statm"), |text| text.split_whitespace().nth(1)).unwrap_or(0);
        let io =
            |name: &str| field(&directory.join("io"), |text| text.lines().find_map(|line| line.strip_prefix(name)));
        usage.read_bytes += io("read_bytes: ").unwrap_or(0);
        usage.written_bytes += io("write_bytes: ").unwrap_or(0);
    }
    usage.memory_bytes = resident * rustix::param::page_size() as u64;
    for cgroup in cgroups {
        let counted = ["memory.current", "memory.usage_in_bytes"];
        if let Some(bytes) = counted.iter().find_map(|name| number(&cgroup.join(name))) {
            // File pages that are not used are given back at once.
            let idle = |text: &str| {
                let names = ["total_inactive_file ", "inactive_file "];
                names.iter().find_map(|name| text.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned)))
            };
            let stat = fs::read_to_string(cgroup.join("memory.stat")).ok();
            let idle: u64 = stat.and_then(|text| idle(&text)?.trim().parse().ok()).unwrap_or(0);
            usage.memory_bytes = bytes.saturating_sub(idle);
        }
        let limits = ["memory.max", "memory.limit_in_bytes"];
        let limit = limits.iter().find_map(|name| number(&cgroup.join(name)));
        usage.memory_limit_bytes = limit.filter(|bytes| *bytes < 1 << 60).or(usage.memory_limit_bytes);
        // Counts processes that have ended, too.
        let spent = |text: &str| text.lines().find_map(|line| line.strip_prefix("usage_usec ").map(str::to_owned));
        if let Some(micros) =
            fs::read_to_string(cgroup.join("cpu.stat")).ok().and_then(|text| spent(&text)?.parse().ok())
        {
            usage.cpu_nanoseconds = u64::saturating_mul(micros, 1000);
        }
    }
    usage
}

/// Of a container whose process is `pid`: what its network moved, too, where that is not the machine's own.
pub(crate) fn of_container(cgroups: &[PathBuf], pid: i32) -> Usage {
    let mut usage = of(cgroups, pid);
    let network = |of: &str| fs::read_link(format!("/proc/{of}/ns/net")).ok();
    if network(&pid.to_string()) != network("self") {
        let counted = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
        (usage.received_bytes, usage.sent_bytes) = moved(&counted);
    }
    usage
}

/// Bytes received and sent by all interfaces but loopback, as `/proc/PID/net/dev` has them.
fn moved(counted: &str) -> (u64, u64) {
    let interfaces = counted.lines().filter_map(|line| line.trim().split_once(':')).filter(|(name, _)| *name != "lo");
    interfaces.fold((0, 0), |(received, sent), (_, counts)| {
        let counts: Vec<u64> = counts.split_whitespace().filter_map(|count| count.parse().ok()).collect();
        (received + counts.first().unwrap_or(&0), sent + counts.get(8).unwrap_or(&0))
    })
}

fn processes(cgroups: &[PathBuf], group: i32) -> Vec<i32> {
    let listed = cgroups.first().and_then(|cgroup| fs::read_to_string(cgroup.join("cgroup.procs")).ok());
    if let Some(listed) = listed {
        return listed.lines().filter_map(|pid| pid.parse().ok()).collect();
    }
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        stat(Path::new(&format!("/proc/{pid}"))).is_some_and(|f| f.get(2).is_some_and(|g| *g == group.to_string()))
    })
    .collect()
}

/// Fields of `stat` after the name: state, parent, group…
fn stat(directory: &Path) -> Option<Vec<String>> {
    let stat = fs::read_to_string(directory.join("stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

/// Clock ticks of a process and of its children that it waited for.
fn ticks(directory: &Path) -> Option<u64> {
    Some(stat(directory)?.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum())
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn field(path: &Path, pick: impl Fn(&str) -> Option<&str>) -> Option<u64> {
    pick(&fs::read_to_string(path).ok()?)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moved_is_summed_over_interfaces() {
        let counted = "Inter-| Receive\n face |bytes\n    lo: 9 0 0 0 0 0 0 0 9 0 0 0 0 0 0 0\n  eth0: 10 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0\n";
        assert_eq!(moved(counted), (10, 20));
    }

    #[test]
    fn this_process_takes_something() {
        let me = rustix::process::getpgrp().as_raw_nonzero().get();
        let usage = of(&[], me);
        assert!(usage.processes >= 1 && usage.memory_bytes > 100_000, "{usage:?}");
    }
}
