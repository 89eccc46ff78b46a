//! The command line: which benchmark, how large, how often.
// Doc comments of arguments are help texts: no backticks.
#![allow(clippy::doc_markdown)]

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::workspace::Workspace;
use crate::{
    agent, bind, commits, converge, failover, flat, herd, idle, launch, lb, one, pack, place, rollout, scale, startup,
    targets, watchers,
};

/// A row of the scorecard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Benchmark {
    /// P1: placements per second in memory, with 100, 1,000 and 10,000 instances
    Place,
    /// P2: 50,000 tasks bound to 10,000 hollow instances, by one scheduler and by three
    Bind,
    /// How many instances binpack needs, and how evenly spread spreads
    Pack,
    /// P3: a service of many tasks, from apply to all RUNNING and from scale 0 to all STOPPED
    Converge,
    /// P6: one task, from RunTask to RUNNING
    One,
    /// P14: what a cluster at rest costs
    Idle,
    /// P15: from `steady up` to an API that answers, and to an answer of the example's tasks
    Startup,
    /// P8: small writes from 64 clients at once, over the API
    Commits,
    /// P9: events that reach 1, 100 and 1,000 watchers
    Watchers,
    /// P7: Get, List and Commit with 10, 1,000, 3,000 and 10,000 instances
    Flat,
    /// P11: from kill -9 of the controllers that lead until others act
    Failover,
    /// An agent at rest with 100 containers and 1,000 hollow instances, and how soon an end is known (needs root and docker.io)
    Agent,
    /// P4: one container, and eight at a time, beside docker run and ctr run (needs root and docker.io)
    Launch,
    /// P12: requests through steady lb, beside HAProxy and nginx (needs haproxy, nginx-light, wrk and curl)
    Lb,
    /// P13: how soon load balancers obey, and what 10,000 targets cost (needs haproxy)
    Targets,
    /// A service of 100 tasks rolled to its next version, beside Docker Swarm (needs root and docker.io)
    Rollout,
    /// From a load's first request until there are enough tasks for it (needs wrk)
    Scale,
    /// All agents at once lose their API server, and are restarted
    Herd,
    /// Says which benchmarks there are
    List,
}

/// Measures Steady beside its yardsticks, in the same run.
#[derive(Debug, Parser)]
#[command(name = "steady-benches", version)]
pub(crate) struct Args {
    /// Which benchmark.
    #[arg(value_enum)]
    name: Benchmark,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
    /// Repetitions, in alternation with the yardstick [default: converge, commits and watchers 3, one, flat and herd 1, rollout 3, failover 20, launch 10, idle 1, startup 5].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Tasks: of the service (converge and idle, 1000), calls of RunTask per round (one, 100), or a tenth of all (bind, 5000).
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    tasks: Option<u32>,
    /// Hollow container instances [default: bind 10000, else 20].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    instances: Option<u32>,
    /// The program to measure [default: the one of this workspace, built first].
    #[arg(long, value_name = "PATH")]
    steady: Option<PathBuf>,
    /// Where data goes: the disk that is measured [default: beside this program].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// How large a run is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// Repetitions.
    pub(crate) rounds: u32,
    /// Tasks, or calls.
    pub(crate) tasks: u32,
    /// Hollow container instances.
    pub(crate) instances: u32,
}

impl Args {
    /// Measures, and prints what was found.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let scale = |rounds, tasks| Scale {
            rounds: self.rounds.unwrap_or(rounds),
            tasks: self.tasks.unwrap_or(tasks),
            instances: self.instances.unwrap_or(20),
        };
        if self.name == Benchmark::List {
            return list(self.json);
        }
        if self.name == Benchmark::Place {
            return place::run(scale(3, 0)).print(self.json);
        }
        if self.name == Benchmark::Pack {
            return pack::run(scale(3, 0)).print(self.json);
        }
        let workspace = Workspace::open(self.steady.clone(), self.dir.clone())?;
        let measured = match self.name {
            Benchmark::Bind => {
                let instances = self.instances.unwrap_or(10_000);
                let scale = Scale { instances, ..scale(1, 0) };
                bind::run(&workspace, scale, self.tasks.map_or(50_000, |each| each * 10)).await
            }
            Benchmark::Converge => converge::run(&workspace, scale(3, 1000)).await,
            Benchmark::One => one::run(&workspace, scale(1, 100)).await,
            Benchmark::Idle => idle::run(&workspace, scale(1, 1000)).await,
            Benchmark::Commits => commits::run(&workspace, scale(3, 0)).await,
            Benchmark::Watchers => watchers::run(&workspace, scale(3, 0)).await,
            Benchmark::Flat => flat::run(&workspace, scale(1, 0)).await,
            Benchmark::Failover => failover::run(&workspace, scale(20, 0)).await,
            Benchmark::Agent => agent::run(&workspace, scale(1, 100)).await,
            Benchmark::Launch => launch::run(&workspace, scale(10, 1)).await,
            Benchmark::Lb => lb::run(&workspace, scale(5, 2)).await,
            Benchmark::Targets => targets::run(&workspace, scale(3, 10_000)).await,
            Benchmark::Rollout => rollout::run(&workspace, scale(3, 100)).await,
            Benchmark::Scale => scale::run(&workspace, scale(5, 0)).await,
            Benchmark::Herd => herd::run(&workspace, scale(1, 0)).await,
            Benchmark::Startup | Benchmark::List | Benchmark::Place | Benchmark::Pack => {
                startup::run(&workspace, scale(5, 0)).await
            }
        };
        match measured {
            Ok(report) => report.print(self.json),
            Err(error) => {
                let kept = workspace.keep();
                Err(error.context(format!("data and logs are kept in {}", kept.display())))
            }
        }
    }
}

fn list(json: bool) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    for name in Benchmark::value_variants().iter().filter_map(Benchmark::to_possible_value) {
        let help = name.get_help().map(ToString::to_string).unwrap_or_default();
        if json {
            let line = serde_json::json!({"benchmark": name.get_name(), "help": help});
            writeln!(out, "{line}")?;
        } else {
            writeln!(out, "{:<10} {help}", name.get_name())?;
        }
    }
    Ok(())
}
