//! `steady events`: what happened, oldest first.

use clap::Args;
use steady_core::{Key, Kind};

use crate::args::Global;
use crate::failure::Failure;
use crate::get::{self, Output, Query};
use crate::out::Out;
use crate::target;

/// Arguments of `steady events`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  steady events                     of the cluster
  steady events service/hello       about one object
  steady events --watch             and go on as things happen")]
pub struct Events {
    /// Only events about this object: KIND/NAME.
    #[arg(value_name = "KIND/NAME")]
    pub about: Option<String>,
    /// Go on as things happen.
    #[arg(short, long)]
    pub watch: bool,
    /// Of every cluster.
    #[arg(short = 'A', long)]
    pub all_clusters: bool,
    /// How to show them.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// Shows the events there are, and those to come with --watch.
pub async fn run(args: Events, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let client = global.connect().await?;
    let about = match &args.about {
        Some(word) => {
            let target = target::parse_one(word)?;
            let name = target.name.unwrap_or_default();
            // What is gone still has its events: only a task's shortened id is looked up.
            let key = match target.kind {
                Kind::Task => target::task(&client, &global.cluster, &name).await?,
                kind => Key::new(kind, &global.cluster, &name),
            };
            Some(key)
        }
        None => None,
    };
    let query = Query {
        kind: Kind::Event,
        cluster: if args.all_clusters { String::new() } else { global.cluster.clone() },
        names: vec![],
        labels: <_>::default(),
        stopped: false,
        about,
        controllers: false,
        output: args.output,
    };
    if args.watch { Box::pin(get::follow(&client, &query, out)).await } else { get::show(&client, &query, out).await }
}
