//! `steady scale`: changes how many tasks a service keeps.

use clap::Args;
use steady_core::{Key, Kind};
use steady_proto::v1::{Change, Expect, Object, PutSpec, change, object};
use tonic::Code;

use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::out::Out;
use crate::{progress, target};

/// How often the write is tried again when someone else wrote the service in between.
const TRIES: usize = 10;

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
    let before = set(&client, &key, args.count).await?;
    if before == args.count {
        out.line(&format!("{key} unchanged: desiredCount is {before} already"))?;
    } else {
        out.line(&format!("{key} scaled from {before} to {}", args.count))?;
    }
    if !args.wait {
        return Ok(());
    }
    let within = global.timeout.unwrap_or(progress::PATIENCE);
    Box::pin(progress::until_steady(&client, &[(key.cluster, key.name)], within, out)).await
}

/// Sets desiredCount; what it was.
async fn set(client: &Client, key: &Key, count: i32) -> Result<i32, Failure> {
    let mut tries = 0;
    loop {
        let mut object = client.get(key).await?;
        let before =
            object.as_service().and_then(|s| s.spec.as_ref()).map_or(0, steady_core::v1::ServiceSpec::desired_count);
        if before == count {
            return Ok(before);
        }
        let revision = object.meta().revision;
        set_count(&mut object, count);
        let put = PutSpec {
            object: Some(object),
            fields: vec!["desiredCount".to_owned()],
            expect: Some(Expect { revision }),
        };
        match client.commit(vec![Change { change: Some(change::Change::PutSpec(put)) }]).await {
            Ok(()) => return Ok(before),
            Err(failure) if failure.is(Code::Aborted) && tries < TRIES => tries += 1,
            Err(failure) => return Err(failure),
        }
    }
}

fn set_count(object: &mut Object, count: i32) {
    if let Some(object::Kind::Service(service)) = &mut object.kind {
        service.spec.get_or_insert_default().desired_count = Some(count);
    }
}
