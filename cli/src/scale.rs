//! `steady scale`: changes how many tasks a service keeps.

use clap::Args;
use steady_core::{Key, Kind};
use steady_proto::v1::ServiceSpec;

use crate::args::Global;
use crate::failure::Failure;
use crate::out::Out;
use crate::{progress, target};

/// Arguments of `steady scale`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  steady scale service/hello 5
  steady scale service/hello 5 --wait          until it is steady, with progress
  steady scale service/hello 0                 stop all its tasks and keep the service")]
pub struct Scale {
    /// The service: service/NAME or NAME.
    pub service: String,
    /// Tasks to keep, 0..5000.
    #[arg(value_name = "COUNT", value_parser = clap::value_parser!(i32).range(0..=5000))]
    pub count: i32,
    /// Wait until it is steady.
    #[arg(long)]
    pub wait: bool,
}

/// `steady scale`.
pub async fn run(args: Scale, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let name = target::name_of(Kind::Service, &args.service)?;
    let client = if args.wait { global.connect_to_wait().await? } else { global.connect().await? };
    let key = Key::new(Kind::Service, &global.cluster, &name);
    let mut before = args.count;
    let edit = |spec: &mut ServiceSpec| before = std::mem::replace(spec.desired_count.get_or_insert(0), args.count);
    client.edit_service(&key, &["desiredCount"], edit).await?;
    if before == args.count {
        out.line(&format!("{key} unchanged: desiredCount is {before} already"))?;
    } else {
        out.line(&format!("{key} scaled from {before} to {}", args.count))?;
    }
    if !args.wait {
        return Ok(());
    }
    let within = global.timeout.unwrap_or(progress::PATIENCE);
    Box::pin(progress::until_steady(&client, &[(key.cluster.into(), key.name.into())], within, out)).await
}
