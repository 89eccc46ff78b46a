//! The command line: global options and one subcommand for each process and verb.
// Doc comments of arguments are help texts: no backticks.
#![allow(clippy::doc_markdown)]

use std::time::Duration;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand};

use crate::client::Client;
use crate::failure::Failure;
use crate::out::Color;
use crate::{
    admin, alarm, apply, completion, context, delete, describe, drain, events, exec, explain, get, hello, logs, metric,
    process, protect, rollout, run, scale, secret, span, stop, store, top, wait,
};

/// Longest that a request takes, unless --timeout says otherwise.
pub const REQUEST: Duration = Duration::from_secs(30);

const STYLES: Styles =
    Styles::styled().header(AnsiColor::Green.on_default().bold()).literal(AnsiColor::Cyan.on_default());

/// Runs containers the way Amazon ECS does, on machines you own.
#[derive(Debug, Parser)]
#[command(
    name = "steady",
    version,
    styles = STYLES,
    infer_long_args = false,
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 ok; 1 failed, or different (diff); 2 usage or bad manifest; 3 timed out; 4 denied.",
    after_long_help = "First steps:
  steady up                                    everything in one process
  steady apply -f examples/manifests/hello.yaml
  steady get services
  steady describe service/hello                why it is, or is not, steady
  steady logs service/hello -f

Objects are named KIND/NAME: service/hello, task/3fa8c1 (the beginning of an id is enough),
taskdefinition/hello:2, containerinstance/node-1. Short kinds: svc, td, ci.

Exit codes:
  0    ok
  1    failed; for `diff`: something differs
  2    wrong usage, or a bad manifest
  3    timed out
  4    denied
  130  ended with Ctrl-C
`run --wait` ends with the exit code of the task's essential container."
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// API servers, the first that answers is taken [default: the current context's, else 127.0.0.1:7443].
    #[arg(long, global = true, env = "STEADY_SERVER", value_name = "URL[,URL]", hide_env_values = true)]
    pub server: Option<String>,
    /// Cluster to work in.
    #[arg(
        short = 'c',
        long,
        global = true,
        env = "STEADY_CLUSTER",
        value_name = "NAME",
        default_value = "default",
        hide_env_values = true
    )]
    pub cluster: String,
    /// When to colour; NO_COLOR is obeyed too.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub color: Color,
    /// Longest that a request may take [default: 30s]; for commands that wait: that the wait may take.
    #[arg(long, global = true, value_name = "DURATION", value_parser = span::parse)]
    pub timeout: Option<Duration>,
}

impl Global {
    /// Connects to the server that is meant.
    pub async fn connect(&self) -> Result<Client, Failure> {
        Client::connect(&self.servers()?, self.timeout.unwrap_or(REQUEST)).await
    }

    /// Connects for a command that waits: --timeout bounds the wait, not each request.
    pub async fn connect_to_wait(&self) -> Result<Client, Failure> {
        Client::connect(&self.servers()?, REQUEST).await
    }

    /// Addresses to try, in order.
    pub fn servers(&self) -> Result<Vec<String>, Failure> {
        context::servers(self.server.as_deref())
    }
}

/// What `steady` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything in one process: store, API, controllers and an agent.
    Up(process::Up),
    /// Make what is declared in manifests so.
    Apply(apply::Apply),
    /// Show what `apply` would change; exit 1 when something differs.
    Diff(apply::Diff),
    /// List objects, or show some.
    Get(get::Get),
    /// Explain one object: what it is, what it waits for, what happened.
    Describe(describe::Describe),
    /// Delete objects and wait until they are gone.
    Delete(delete::Delete),
    /// Wait until an object is steady, running, stopped, connected or deleted.
    Wait(wait::Wait),
    /// Run tasks of a task definition, outside any service.
    Run(run::Run),
    /// Stop a task.
    Stop(stop::Stop),
    /// Change how many tasks a service keeps.
    Scale(scale::Scale),
    /// Follow, list, undo, stop or restart the deployments of a service.
    Rollout(rollout::RolloutArgs),
    /// Say how an alarm is: it ends deployments that heed it.
    Alarm(alarm::AlarmArgs),
    /// Tell values of metrics of your own, that services scale by.
    Metric(metric::MetricArgs),
    /// Give containers a value that is sealed where it is stored, and never told again.
    Secret(secret::SecretArgs),
    /// Have tasks of services not be chosen to stop, for a time.
    Protect(protect::Protect),
    /// How the scheduler sees a task: which instances take it, and why the others do not.
    Explain(explain::Explain),
    /// Have services' tasks leave container instances.
    Drain(drain::Drain),
    /// Print the output of a task, or of every task of a service.
    Logs(logs::Logs),
    /// Run a command in a container.
    Exec(exec::Exec),
    /// Show what the containers of running tasks take.
    Top(top::Top),
    /// Show what happened, oldest first.
    Events(events::Events),
    /// See how the control plane itself is, and make room in a full store.
    #[command(next_display_order = 90)]
    Admin(admin::Admin),
    /// Check, back up, restore, export or import what is stored.
    Store(store::Store),
    /// Run an API server.
    #[command(next_display_order = 100)]
    Apiserver(process::Apiserver),
    /// Run a member of an etcd, the bundled one; join it to others.
    Etcd(process::Etcd),
    /// Run controllers.
    Controller(process::Controller),
    /// Run the agent of a container instance.
    Agent(process::Agent),
    /// Run a load balancer.
    Lb(process::Lb),
    /// Answer the names of services.
    Dns(process::Dns),
    /// Make instances for capacity providers.
    Pool(process::Pool),
    /// Run a small web server to try things with.
    Hello(hello::Hello),
    /// Print the completion script of a shell.
    Completion(completion::Completion),
    /// Print the version.
    Version,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_may_stand_after_the_verb() {
        let cli = Cli::try_parse_from(["steady", "get", "svc", "-c", "prod", "--timeout", "5m"]).unwrap();
        assert_eq!(cli.global.cluster, "prod");
        assert_eq!(cli.global.timeout, Some(Duration::from_secs(300)));
    }

    #[test]
    fn a_wrong_command_line_exits_2() {
        for bad in [&["steady", "gte"][..], &["steady", "get", "svc", "--timeout", "soon"], &["steady", "scale", "a"]] {
            let error = Cli::try_parse_from(bad).unwrap_err();
            assert_eq!(error.exit_code(), i32::from(crate::failure::USAGE), "{bad:?}");
        }
    }

    #[test]
    fn every_verb_explains_itself_with_examples() {
        for verb in [
            "up", "apply", "diff", "get", "describe", "delete", "wait", "run", "stop", "scale", "logs", "events",
            "admin", "store",
        ] {
            let command = Cli::command();
            let found = command.find_subcommand(verb).unwrap_or_else(|| panic!("no verb {verb}"));
            assert!(found.get_about().is_some(), "{verb}");
            let more = found.get_after_long_help().map(ToString::to_string).unwrap_or_default();
            assert!(more.contains("Examples:"), "{verb}");
        }
    }
}
