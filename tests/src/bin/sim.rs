//! The simulator's command: histories by seed, every crash of a fixed story, and whether a missing guard is noticed.
//! See `docs/robustness.md`.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use steady_core::guard::Guard;
use steady_tests::sim::{self, Ended, Settings};

/// Runs Steady's control plane on one thread a history, with faults by seed, and says whether a promise was broken.
#[derive(Parser)]
#[command(name = "sim")]
struct Args {
    /// Histories to run; with --planted, at most for each guard.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// Seed of the first one.
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// Only this history, twice: both must be the same.
    #[arg(long)]
    seed: Option<u64>,
    /// Print what happens in it; with `RUST_LOG`, also what the processes log.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Crash every write and lose every event of the fixed stories.
    #[arg(long)]
    exhaustive: bool,
    /// Every kind of deployment, with everything that usually goes wrong with one.
    #[arg(long)]
    matrix: bool,
    /// Take away every guard in turn, and count the seeds until that is noticed.
    #[arg(long)]
    planted: bool,
    /// With --planted: only this guard.
    #[arg(long)]
    guard: Option<String>,
    /// Threads; 0: as many as there are cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

fn main() -> ExitCode {
    let args = Args::parse();
    sim::catch_panics();
    let threads = match args.threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        given => given,
    };
    let sound = if let Some(seed) = args.seed {
        one(seed, args.trace)
    } else if args.exhaustive {
        exhaustive(threads)
    } else if args.matrix {
        matrix(threads)
    } else if args.planted {
        planted(threads, args.first_seed, args.seeds, args.guard.as_deref())
    } else {
        many(args.first_seed..args.first_seed + args.seeds, threads)
    };
    if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Does every job on a few threads, in order.
fn in_parallel<T: Send + Sync>(jobs: &[T], threads: usize, work: impl Fn(&T) + Sync) {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    work(job);
                }
            });
        }
    });
}

fn one(seed: u64, trace: bool) -> bool {
    if trace && let Ok(filter) = std::env::var("RUST_LOG") {
        tracing_subscriber::fmt().without_time().with_ansi(false).with_env_filter(filter).init();
    }
    let run = |trace| sim::run(Settings { trace, ..Settings::of_seed(seed) });
    let first = run(trace);
    let again = run(false);
    let settings = Settings::of_seed(seed);
    println!("{settings:?}");
    if let Some(reason) = &first.broken {
        println!("seed {seed}: {reason}");
    }
    println!(
        "seed {seed}: hash {:016x}, again {:016x}; {} revisions, {} faults, {} simulated s: {}",
        first.hash,
        again.hash,
        first.revisions,
        first.faults,
        first.time.as_secs(),
        if first.broken.is_none() && first.hash == again.hash { "ok" } else { "FAILED" },
    );
    first.broken.is_none() && first.hash == again.hash
}

#[derive(Default)]
struct Tally {
    histories: u64,
    revisions: i64,
    faults: u64,
    time: Duration,
    failed: Vec<(u64, String)>,
}

impl Tally {
    fn add(&mut self, seed: u64, ended: Ended) {
        self.histories += 1;
        self.revisions += ended.revisions;
        self.faults += ended.faults;
        self.time += ended.time;
        if let Some(reason) = ended.broken {
            println!("seed {seed}: {reason}");
            self.failed.push((seed, reason));
        }
    }
}

fn many(seeds: std::ops::Range<u64>, threads: usize) -> bool {
    let began = Instant::now();
    let tally = Mutex::new(Tally::default());
    let seeds: Vec<u64> = sim::regressions().into_iter().chain(seeds).collect();
    in_parallel(&seeds, threads, |seed| {
        let ended = sim::run(Settings::of_seed(*seed));
        let Ok(mut tally) = tally.lock() else { return };
        tally.add(*seed, ended);
        if tally.histories.is_multiple_of(1000) {
            println!("{} of {} histories, {} failed", tally.histories, seeds.len(), tally.failed.len());
        }
    });
    let tally = tally.into_inner().unwrap_or_default();
    let real = began.elapsed().as_secs_f64();
    println!(
        "{} histories, {} failed; {} revisions, {} faults; {:.1} simulated h in {real:.1} s on {threads} threads: {:.1} \
         histories/s, {:.1} simulated h/s",
        tally.histories,
        tally.failed.len(),
        tally.revisions,
        tally.faults,
        tally.time.as_secs_f64() / 3600.0,
        tally.histories as f64 / real,
        tally.time.as_secs_f64() / 3600.0 / real,
    );
    tally.failed.is_empty()
}

fn exhaustive(threads: usize) -> bool {
    use sim::exhaustive::{Script, check, perturbations};
    let began = Instant::now();
    let (mut tried, mut failed) = (0, 0);
    for script in Script::ALL {
        let expected = sim::run(Settings::scripted(script));
        if let Some(reason) = &expected.broken {
            println!("{script:?}: {reason}");
            failed += 1;
            continue;
        }
        let all = perturbations(&expected.counts);
        let faults = Mutex::new(Vec::new());
        in_parallel(&all, threads, |perturbation| {
            if let Err(reason) = check(script, perturbation, &expected)
                && let Ok(mut faults) = faults.lock()
            {
                println!("{reason}");
                faults.push(reason);
            }
        });
        let faults = faults.into_inner().unwrap_or_default().len();
        println!("{script:?}: {} tried, {faults} failed; without: {:?}", all.len(), expected.counts);
        tried += all.len();
        failed += faults;
    }
    println!("{tried} crashes and lost events tried, {failed} failed, in {:.1} s", began.elapsed().as_secs_f64());
    failed == 0
}

fn matrix(threads: usize) -> bool {
    let began = Instant::now();
    let cells = sim::matrix::cells();
    let steps = Mutex::new(BTreeMap::new());
    let failed = AtomicU64::new(0);
    in_parallel(&cells, threads, |cell| {
        let ended = sim::matrix::check(*cell);
        if let Some(reason) = ended.broken {
            println!("{cell}: {reason}");
            failed.fetch_add(1, Ordering::Relaxed);
        } else if let Ok(mut steps) = steps.lock() {
            steps.entry((cell.strategy, cell.trouble, cell.desired)).or_insert_with(Vec::new).push(ended.revisions);
        }
    });
    println!("steps (revisions of the store), fewest and most over all percentages:");
    for ((strategy, trouble, desired), steps) in steps.into_inner().unwrap_or_default() {
        let (least, most) = (steps.iter().min().unwrap_or(&0), steps.iter().max().unwrap_or(&0));
        println!("{:<10} {:<15} {desired:>2} tasks: {least} to {most}", strategy.as_str_name(), format!("{trouble:?}"));
    }
    let failed = failed.into_inner();
    println!("{} cells, {failed} failed, in {:.1} s", cells.len(), began.elapsed().as_secs_f64());
    failed == 0
}

/// How often each missing guard is looked for.
const SEARCHES: usize = 3;

fn planted(threads: usize, first: u64, most: u64, only: Option<&str>) -> bool {
    let began = Instant::now();
    let guards: Vec<Guard> =
        Guard::ALL.iter().copied().filter(|guard| only.is_none_or(|only| format!("{guard:?}") == only)).collect();
    let found = Mutex::new(BTreeMap::new());
    in_parallel(&guards, threads, |guard| {
        let mut seed = first;
        let mut searches = Vec::new();
        let mut why = String::new();
        while searches.len() < SEARCHES && seed < first + most {
            let start = seed;
            let noticed = (start..first + most).find_map(|seed| {
                let reason = sim::run_with(Settings::of_seed(seed), Some(*guard), None).broken?;
                // What is broken with the guard in place says nothing about it.
                sim::run(Settings::of_seed(seed)).broken.is_none().then_some((seed, reason))
            });
            let Some((at, reason)) = noticed else { break };
            searches.push(at - start + 1);
            if why.is_empty() {
                why = reason.split([';', '(']).next().unwrap_or_default().chars().take(90).collect();
            }
            seed = at + 1;
        }
        searches.sort_unstable();
        let median = searches.get(searches.len() / 2).copied();
        let row = match median {
            Some(median) => format!("| {guard:?} | {} | {median} | {why} |", guard.what()),
            None => format!("| {guard:?} | {} | not in {most} | |", guard.what()),
        };
        println!("{row}");
        if let Ok(mut found) = found.lock() {
            found.insert(*guard, (median, row));
        }
    });
    let found = found.into_inner().unwrap_or_default();
    println!("\n| guard | what it sees to | median seeds to notice | noticed as |\n|---|---|---|---|");
    for (_, row) in found.values() {
        println!("{row}");
    }
    let missed = found.values().filter(|(median, _)| median.is_none()).count();
    let real = began.elapsed().as_secs_f64();
    println!("{} guards taken away, {missed} not noticed, in {real:.1} s", found.len());
    missed == 0
}
