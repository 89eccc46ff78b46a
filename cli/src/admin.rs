//! `steady admin`: how the control plane itself is, and room in a store that is full.

use clap::{Args, Subcommand};

use crate::args::Global;
use crate::failure::Failure;
use crate::out::Out;
use crate::table::Table;

/// Arguments of `steady admin`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  steady admin status                         store, cache, what stands in the way
  steady admin make-room                      after «the store is full»; takes minutes for a large one")]
pub struct Admin {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What `steady admin` does.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Verb {
    /// How the store and the API server are. Exit 1 when something stands in the way of writing.
    Status,
    /// Forget the past, shrink the store's files, and take back the alarm that it is full.
    MakeRoom,
}

/// `steady admin`.
pub async fn run(args: Admin, global: &Global, out: &mut Out) -> Result<(), Failure> {
    match args.verb {
        Verb::Status => status(global, out).await,
        Verb::MakeRoom => {
            let made = global.connect().await?.make_room().await?;
            out.line(&format!("the store's files had {}, and have {} now", size(made.before), size(made.after)))
        }
    }
}

fn size(bytes: i64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

async fn status(global: &Global, out: &mut Out) -> Result<(), Failure> {
    let client = global.connect().await?;
    let status = client.status().await?;
    out.line(&format!("api server   {} · version {}", client.address(), status.version))?;
    let behind = status.revision - status.cached_revision;
    let behind = if behind > 0 { format!(" · {behind} revisions behind the store") } else { String::new() };
    let (objects, watches, sessions) = (status.objects, status.watchers, status.sessions);
    out.line(&format!("cache        {objects} objects · {watches} watches · {sessions} agents{behind}"))?;
    out.line(&format!("store        revision {} · epoch {}", status.revision, status.epoch))?;
    let mut table = Table::new(&["MEMBER", "ENDPOINT", "VERSION", "ROLE", "SIZE", "IN-USE", "QUOTA"], out.is_colored());
    for member in &status.members {
        if !member.error.is_empty() {
            let dead = ["-", &member.endpoint, "-", &format!("down: {}", member.error), "-", "-", "-"];
            table.push(dead.into_iter().map(Into::into).collect());
            continue;
        }
        let role = if member.leads {
            "leader"
        } else if member.learner {
            "learner"
        } else {
            "follower"
        };
        let (held, used, quota) = (size(member.size), size(member.in_use), size(member.quota));
        let cells = [member.name.as_str(), &member.endpoint, &member.version, role, &held, &used, &quota];
        table.push(cells.into_iter().map(Into::into).collect());
    }
    if !table.is_empty() {
        out.text(&table.render())?;
    }
    for (key, reason) in &status.quarantine {
        out.line(&format!("unreadable   {key}: {reason}"))?;
    }
    match status.alarms.first() {
        Some(alarm) if alarm == "NOSPACE" => Err(Failure::failed(
            "the store is full (NOSPACE): only deletions are taken. Run `steady admin make-room`, delete what is not \
             needed, or give etcd a larger --quota-backend-bytes",
        )),
        Some(alarm) => Err(Failure::failed(format!("etcd raises the alarm {alarm}; see its log"))),
        None => Ok(()),
    }
}
