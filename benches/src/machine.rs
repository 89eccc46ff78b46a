//! The machine that a figure was measured on, and what else it did meanwhile.

use std::fs;
use std::process::Command;
use std::time::Instant;

use anyhow::Context as _;

/// Ticks a second in `/proc` (`USER_HZ`): 100 on every Linux that this runs on.
const TICKS: f64 = 100.0;

/// What to know of the machine and the code.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    /// Cores that this process may use.
    pub(crate) cores: usize,
    /// Memory, MiB.
    pub(crate) memory: u64,
    /// Name of the processor.
    pub(crate) processor: String,
    /// Commit, and whether files differ from it.
    pub(crate) commit: String,
}

impl Machine {
    /// This machine. What cannot be found out stays empty.
    pub(crate) fn this() -> Self {
        let field = |path: &str, name: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(':'));
            line.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let memory = field("/proc/meminfo", "MemTotal");
        Machine {
            cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            memory: memory.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024,
            processor: field("/proc/cpuinfo", "model name"),
            commit: commit(),
        }
    }
}

fn commit() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_default();
    // The benchmarks' own files are not what is measured.
    let changed = git(&["status", "--porcelain", "--untracked-files=no", "--", "..", ":(exclude)."]);
    if changed.is_some_and(|changed| !changed.is_empty()) { format!("{commit}+changes") } else { commit }
}

/// Seconds of processor time that a process has used; with those of its children that have ended.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Used {
    /// Its own.
    pub(crate) own: f64,
    /// Of children that were waited for.
    pub(crate) children: f64,
}

/// What a process has used.
pub(crate) fn used(pid: u32) -> anyhow::Result<Used> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    // The name may hold blanks and brackets; what follows its last bracket does not. Fields 14 to 17 of proc(5).
    let fields: Vec<&str> = text.rsplit_once(')').map_or(vec![], |(_, rest)| rest.split_whitespace().collect());
    let ticks = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    Ok(Used { own: (ticks(14) + ticks(15)) / TICKS, children: (ticks(16) + ticks(17)) / TICKS })
}

/// Resident memory of a process, MiB.
pub(crate) fn resident(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// Seconds that all processors together were busy since boot.
fn busy() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|text| text.parse().ok()).collect();
    // user nice system idle iowait irq softirq; what a hypervisor took (steal) is nobody's here.
    [0, 1, 2, 5, 6].iter().filter_map(|index| ticks.get(*index)).sum::<f64>() / TICKS
}

/// Measures how busy everything else is while a benchmark runs.
pub(crate) struct Others {
    pids: Vec<u32>,
    began: Instant,
    busy: f64,
    ours: f64,
}

impl Others {
    /// From now on. Everything but this process, its ended children, and these processes counts as other.
    pub(crate) fn watch(pids: &[u32]) -> Self {
        let pids: Vec<u32> = pids.iter().copied().chain([std::process::id()]).collect();
        Others { began: Instant::now(), busy: busy(), ours: ours(&pids), pids }
    }

    /// Percent of one core that other processes have taken so far.
    pub(crate) fn percent(&self) -> f64 {
        let others = (busy() - self.busy) - (ours(&self.pids) - self.ours);
        (others / self.began.elapsed().as_secs_f64() * 100.0).max(0.0)
    }
}

fn ours(pids: &[u32]) -> f64 {
    let used = pids.iter().filter_map(|pid| used(*pid).ok());
    used.map(|used| used.own + used.children).sum()
}

/// The process whose command line holds this word.
pub(crate) fn process_with(word: &str) -> Option<u32> {
    processes(|found| found == word).next()
}

/// Processes that have such a word in their command lines.
pub(crate) fn processes(is_one: impl Fn(&str) -> bool) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(move |entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        line.split(|byte| *byte == 0).any(|found| std::str::from_utf8(found).is_ok_and(&is_one)).then_some(pid)
    })
}
