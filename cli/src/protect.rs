//! `steady protect`: has tasks of services not be chosen to stop (ECS task scale-in protection).

use std::time::Duration;

use clap::Args;
use steady_core::Kind;
use steady_proto::v1::UpdateTaskProtectionRequest;

use crate::args::Global;
use crate::failure::Failure;
use crate::out::Out;
use crate::{span, target};

/// Arguments of `steady protect`.
#[derive(Debug, Args)]
#[command(
    after_long_help = "A service does not choose a protected task to stop: not when it is scaled in, not when another deployment takes its
place (which waits), not when its instance drains. `steady stop` and failing health checks stop it all the same.

Examples:
  steady protect task/3fa8c1                  for two hours
  steady protect task/3fa8c1 --for 30m
  steady protect task/3fa8c1 --off"
)]
pub struct Protect {
    /// Tasks of services: task/ID or ID.
    #[arg(required = true, value_name = "TASK")]
    pub tasks: Vec<String>,
    /// For how long: 1m to 48h.
    #[arg(long = "for", value_name = "TIME", default_value = "2h", value_parser = parse)]
    pub within: Duration,
    /// Not any more.
    #[arg(long, conflicts_with = "within")]
    pub off: bool,
}

fn parse(text: &str) -> Result<Duration, String> {
    let span = span::parse(text)?;
    if span < Duration::from_secs(60) { Err(format!("`{text}` is too short; expected 1m to 48h")) } else { Ok(span) }
}

/// `steady protect`.
pub async fn run(args: Protect, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let client = global.connect().await?;
    let mut tasks = Vec::new();
    for word in &args.tasks {
        let name = target::name_of(Kind::Task, word)?;
        tasks.push(target::task(&client, &global.cluster, &name).await?.name.into());
    }
    let minutes = i32::try_from(args.within.as_secs().div_ceil(60)).unwrap_or(i32::MAX);
    let request = UpdateTaskProtectionRequest {
        cluster: global.cluster.clone(),
        tasks,
        protection_enabled: !args.off,
        expires_in_minutes: minutes,
    };
    for task in client.protect(request).await? {
        let key = steady_core::Key::of(&task);
        if args.off {
            out.line(&format!("{key} is not protected any more"))?;
        } else {
            out.line(&format!("{key} is protected for {}", span::short(args.within)))?;
        }
    }
    Ok(())
}
