//! `steady-benches NAME`: measures one row of the scorecard.
//!
//! Every figure stands beside a yardstick that was measured in the same run on the same machine, in alternation:
//! median and spread of the rounds, what else the machine did meanwhile, and what peers reached elsewhere. The
//! thing measured is the program `steady` itself, as a process of its own, asked over its own API.

mod agent;
mod args;
mod bind;
mod commits;
mod converge;
mod engine;
mod failover;
mod flat;
mod herd;
mod idle;
mod launch;
mod lb;
mod machine;
mod one;
mod pack;
mod peers;
mod place;
mod report;
mod rollout;
mod sample;
mod scale;
mod startup;
mod store;
mod subject;
mod targets;
mod tasks;
mod watchers;
mod workspace;
mod write;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let args = args::Args::parse();
    let run = || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(args.run())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("steady-benches: {error:#}");
            ExitCode::FAILURE
        }
    }
}
