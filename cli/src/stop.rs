//! `steady stop`: asks a task to stop.

use clap::Args;
use steady_core::Kind;
use steady_proto::v1::StopTaskRequest;

use crate::args::Global;
use crate::failure::Failure;
use crate::out::Out;
use crate::target;

/// Arguments of `steady stop`.
#[derive(Debug, Args)]
#[command(after_long_help = "A service starts another task in place of one of its own.

Examples:
  steady stop task/3fa8c1                     the beginning of the id is enough
  steady stop task/3fa8c1 --reason 'too slow'")]
pub struct Stop {
    /// Tasks: task/ID or ID.
    #[arg(required = true, value_name = "TASK")]
    pub tasks: Vec<String>,
    /// Shown as the task's stoppedReason.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

/// Asks each task to stop.
pub async fn run(args: Stop, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let client = global.connect().await?;
    for word in &args.tasks {
        let name = target::name_of(Kind::Task, word)?;
        let key = target::task(&client, &global.cluster, &name).await?;
        let reason = args.reason.clone().unwrap_or_default();
        client
            .stop_task(StopTaskRequest { cluster: key.cluster.to_string(), task: key.name.to_string(), reason })
            .await?;
        out.line(&format!("{key} is stopping"))?;
    }
    Ok(())
}
