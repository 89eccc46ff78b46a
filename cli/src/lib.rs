//! The binary `steady`: every process is a subcommand, and so is every verb of a user.
//!
//! A verb is one module: its arguments, and a function that asks the API and writes to [`out::Out`].
//! What several verbs share is a noun of its own: the [`client`], a [`watch`], a [`table`], a
//! [`target`]. Errors are [`failure::Failure`]s: one sentence, what to do next, and an exit code.

pub mod admin;
pub mod alarm;
pub mod apply;
pub mod args;
pub mod client;
pub mod columns;
pub mod completion;
pub mod context;
pub mod delete;
pub mod describe;
pub mod drain;
pub mod events;
pub mod exec;
pub mod explain;
pub mod failure;
pub mod get;
pub mod hello;
pub mod logs;
pub mod manifests;
pub mod metric;
pub mod out;
pub mod process;
pub mod progress;
pub mod protect;
pub mod rollout;
pub mod run;
pub mod scale;
pub mod secret;
pub mod span;
pub mod stop;
pub mod store;
pub mod table;
pub mod target;
pub mod top;
pub mod usage;
pub mod wait;
pub mod watch;
pub mod world;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command, Global};
use failure::{Failure, INTERRUPTED};
use out::Out;

/// Runs one command line, from its name to its exit code.
pub async fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Printing fails when the reader is gone: nobody to tell.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(failure::USAGE));
        }
    };
    let Cli { global, command } = cli;
    let result = match command {
        Command::Up(args) => Box::pin(process::up(args, &global)).await,
        Command::Apiserver(args) => Box::pin(process::apiserver(args, &global)).await,
        Command::Etcd(args) => Box::pin(process::etcd(args, &global)).await,
        Command::Controller(args) => Box::pin(process::controller(args, &global)).await,
        Command::Agent(args) => Box::pin(process::agent(args, &global)).await,
        Command::Lb(args) => Box::pin(process::lb(args, &global)).await,
        Command::Dns(args) => Box::pin(process::dns(args, &global)).await,
        Command::Pool(args) => Box::pin(process::pool(args, &global)).await,
        Command::Hello(args) => hello::run(&args).await.map_err(Failure::from),
        verb => tokio::select! {
            result = Box::pin(verb_of(verb, &global)) => result,
            _ = tokio::signal::ctrl_c() => Err(Failure::quiet(INTERRUPTED)),
        },
    };
    finish(result)
}

/// The verbs of a user: each ends at Ctrl-C.
async fn verb_of(verb: Command, global: &Global) -> Result<(), Failure> {
    let mut out = Out::stdout(global.color);
    let out = &mut out;
    match verb {
        Command::Apply(args) => apply::run(args, global, out).await,
        Command::Diff(args) => apply::diff(args, global, out).await,
        Command::Get(args) => get::run(args, global, out).await,
        Command::Describe(args) => describe::run(args, global, out).await,
        Command::Delete(args) => delete::run(args, global, out).await,
        Command::Wait(args) => wait::run(args, global, out).await,
        Command::Run(args) => run::run(args, global, out).await,
        Command::Stop(args) => stop::run(args, global, out).await,
        Command::Scale(args) => scale::run(args, global, out).await,
        Command::Rollout(args) => rollout::run(args, global, out).await,
        Command::Alarm(args) => alarm::run(args, global, out).await,
        Command::Metric(args) => metric::run(args, global, out).await,
        Command::Secret(args) => secret::run(args, global, out).await,
        Command::Protect(args) => protect::run(args, global, out).await,
        Command::Explain(args) => explain::run(args, global, out).await,
        Command::Drain(args) => drain::run(args, global, out).await,
        Command::Top(args) => top::run(args, global, out).await,
        Command::Exec(args) => exec::run(args, global, out).await,
        Command::Logs(args) => logs::run(args, global, out).await,
        Command::Events(args) => events::run(args, global, out).await,
        Command::Admin(args) => admin::run(args, global, out).await,
        Command::Store(args) => store::run(args, global, out).await,
        Command::Completion(args) => completion::run(&args, out),
        Command::Version => out.line(concat!("steady ", env!("CARGO_PKG_VERSION"))),
        Command::Up(_)
        | Command::Apiserver(_)
        | Command::Etcd(_)
        | Command::Controller(_)
        | Command::Agent(_)
        | Command::Lb(_)
        | Command::Dns(_)
        | Command::Pool(_)
        | Command::Hello(_) => Ok(()),
    }
}

fn finish(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                out::note(&format!("steady: {failure}"));
            }
            ExitCode::from(failure.exit)
        }
    }
}
