//! `steady secret`: a value for containers that is never told again.

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use steady_core::{Key, Kind};
use steady_proto::v1::apply_result::Outcome;
use steady_proto::v1::{Object, Secret, SecretSpec};

use crate::args::Global;
use crate::failure::Failure;
use crate::out::Out;
use crate::target;

/// Arguments of `steady secret`.
#[derive(Debug, Args)]
pub struct SecretArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Makes a secret, or gives it another value.
    Put(Put),
}

/// Arguments of `steady secret put`.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Task definitions name it in secrets[].valueFrom, environmentFiles and repositoryCredentials.
Tasks that run keep the value they were started with; `steady rollout restart` starts them again.

Examples:
  steady secret put db-password < password.txt
  steady secret put db --file db.json          {\"user\": …, \"password\": …}: valueFrom db:password
  steady get secrets
  steady delete secret/db"
)]
pub struct Put {
    /// The secret: secret/NAME or NAME.
    name: String,
    /// Where the value is; a last end of line is no part of it [default: standard input].
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// What it is, for people.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
}

/// `steady secret`.
pub async fn run(args: SecretArgs, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let Verb::Put(put) = args.verb;
    let name = target::name_of(Kind::Secret, &put.name)?;
    let value = read(put.file.as_ref())?;
    let client = global.connect().await?;
    let key = Key::new(Kind::Secret, &global.cluster, &name);
    let description = match put.description {
        Some(description) => description,
        None => described(client.find(&key).await?),
    };
    let spec = SecretSpec { description, secret_string: value };
    let secret = Object::new(&global.cluster, &name, Secret { spec: Some(spec), status: None });
    let answer = client.apply(vec![secret], false).await?;
    let outcome = answer.results.first().map_or(Outcome::Unspecified, steady_proto::v1::ApplyResult::outcome);
    out.line(&match outcome {
        Outcome::Created => format!("{key} created"),
        Outcome::Unchanged => format!("{key} unchanged: it has this value already"),
        _ => format!("{key} changed; tasks that run keep the value they were started with"),
    })
}

/// What is said of a secret that is there.
fn described(secret: Option<Object>) -> String {
    secret.and_then(|secret| Some(secret.as_secret()?.spec.as_ref()?.description.clone())).unwrap_or_default()
}

fn read(file: Option<&PathBuf>) -> Result<String, Failure> {
    let from = file.filter(|file| file.as_os_str() != "-");
    let value = match from {
        Some(file) => std::fs::read_to_string(file).map_err(|e| Failure::usage(format!("{}: {e}", file.display())))?,
        None if std::io::stdin().is_terminal() => {
            return Err(Failure::usage("no value: give --file FILE, or the value on standard input".to_owned()));
        }
        None => {
            let mut value = String::new();
            let read = std::io::stdin().read_to_string(&mut value);
            read.map_err(|e| Failure::usage(format!("standard input is no text: {e}")))?;
            value
        }
    };
    let value = value.strip_suffix('\n').map_or(value.as_str(), |bare| bare.strip_suffix('\r').unwrap_or(bare));
    if value.is_empty() {
        return Err(Failure::usage("the value is empty".to_owned()));
    }
    Ok(value.to_owned())
}
