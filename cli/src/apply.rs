//! `steady apply` and `steady diff`: manifests to the server, and what would change.

use std::path::PathBuf;

use clap::Args;
use similar::TextDiff;
use steady_core::{Key, Kind};
use steady_proto::document;
use steady_proto::v1::apply_result::Outcome;
use steady_proto::v1::{ApplyResult, Meta, Object, object};

use crate::args::Global;
use crate::client::Client;
use crate::failure::{FAILED, Failure};
use crate::manifests::Documents;
use crate::out::{Out, Style};

/// Arguments of `steady apply`.
#[derive(Debug, Args)]
#[command(
    after_long_help = "All documents are applied together, or none of them. Every fault of every document is told at
once, with its file and line.

Examples:
  steady apply -f hello.yaml            a file
  steady apply -f manifests/            *.yaml, *.yml and *.json of a directory
  steady apply hello.yaml --dry-run     say what would change, and change nothing
  steady diff -f hello.yaml             the same; exit 1 when something would change
  generate | steady apply -f -          standard input"
)]
pub struct Apply {
    /// Manifests: files, directories, or - for standard input.
    #[arg(short = 'f', long = "filename", value_name = "PATH")]
    pub filenames: Vec<PathBuf>,
    /// The same.
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Say what would change, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `steady diff`.
#[derive(Debug, Args)]
#[command(after_long_help = "Exits with 1 when something would change, with 0 when nothing would.

Examples:
  steady diff -f hello.yaml
  steady diff manifests/ && echo nothing to do")]
pub struct Diff {
    /// Manifests: files, directories, or - for standard input.
    #[arg(short = 'f', long = "filename", value_name = "PATH")]
    pub filenames: Vec<PathBuf>,
    /// The same.
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,
}

fn both(filenames: Vec<PathBuf>, paths: Vec<PathBuf>) -> Vec<PathBuf> {
    filenames.into_iter().chain(paths).collect()
}

/// `steady apply`.
pub async fn run(args: Apply, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let dry_run = args.dry_run;
    let documents = Documents::read(&both(args.filenames, args.paths), &global.cluster)?;
    documents.check()?;
    let client = global.connect().await?;
    for result in send(&client, &documents, dry_run).await? {
        show(&result, dry_run, out)?;
    }
    Ok(())
}

/// `steady diff`: fails quietly when something would change.
pub async fn diff(args: Diff, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let documents = Documents::read(&both(args.filenames, args.paths), &global.cluster)?;
    documents.check()?;
    let client = global.connect().await?;
    let mut differs = false;
    for result in send(&client, &documents, true).await? {
        if result.outcome() != Outcome::Unchanged {
            differs = true;
            out.text(&difference(&result, out.is_colored()))?;
        }
    }
    if differs { Err(Failure::quiet(FAILED)) } else { Ok(()) }
}

/// Applies manifests for another command, prints a line for each object, and says which objects they are.
///
/// # Errors
/// With every fault of the manifests, those that only the server finds too.
pub async fn apply_paths(
    client: &Client,
    paths: &[PathBuf],
    cluster: &str,
    out: &mut Out,
) -> Result<Vec<Object>, Failure> {
    let documents = Documents::read(paths, cluster)?;
    documents.check()?;
    let mut objects = Vec::new();
    for result in send(client, &documents, false).await? {
        show(&result, false, out)?;
        objects.extend(result.object);
    }
    Ok(objects)
}

/// Cluster and name of each service among objects, for [`crate::progress::until_steady`].
pub fn services(objects: &[Object]) -> Vec<(String, String)> {
    let services = objects.iter().filter(|object| object.kind() == Kind::Service);
    services.map(|object| (object.cluster().to_owned(), object.name().to_owned())).collect()
}

async fn send(client: &Client, documents: &Documents, dry_run: bool) -> Result<Vec<ApplyResult>, Failure> {
    let answer = client.apply(documents.objects(), dry_run).await;
    Ok(answer.map_err(|failure| documents.explain(failure))?.results)
}

fn show(result: &ApplyResult, dry_run: bool, out: &mut Out) -> Result<(), Failure> {
    let Some(object) = &result.object else { return Ok(()) };
    let (word, style) = match result.outcome() {
        Outcome::Created => ("created", Style::Good),
        Outcome::Configured => ("configured", Style::Busy),
        Outcome::Unchanged | Outcome::Unspecified => ("unchanged", Style::Faint),
    };
    let word = out.styled(style, word);
    let how = if dry_run { " (dry run)" } else { "" };
    out.line(&format!("{} {word}{how}", Key::of(object)))?;
    if dry_run && result.outcome() != Outcome::Unchanged {
        out.text(&difference(result, out.is_colored()))?;
    }
    Ok(())
}

/// The change as a unified diff of what a person may write.
fn difference(result: &ApplyResult, color: bool) -> String {
    let yaml = |object: &Option<Object>| {
        object.as_ref().and_then(|object| document::to_yaml(&desired(object)).ok()).unwrap_or_default()
    };
    let name = result.object.as_ref().or(result.previous.as_ref()).map(|o| Key::of(o).to_string()).unwrap_or_default();
    let (old, new) = (yaml(&result.previous), yaml(&result.object));
    let from = if result.previous.is_some() { &name } else { "/dev/null" };
    let text = TextDiff::from_lines(&old, &new).unified_diff().context_radius(3).header(from, &name).to_string();
    if color { text.lines().map(|line| painted(line) + "\n").collect() } else { text }
}

fn painted(line: &str) -> String {
    let style = match line.as_bytes() {
        [b'-', b'-', b'-', ..] | [b'+', b'+', b'+', ..] => Style::Bold,
        [b'-', ..] => Style::Bad,
        [b'+', ..] => Style::Good,
        [b'@', ..] => Style::Faint,
        _ => Style::Plain,
    };
    style.paint(line)
}

/// What a person wrote of an object: neither status nor what the server keeps in its metadata.
fn desired(object: &Object) -> Object {
    let meta = object.meta().clone();
    let meta = Meta {
        name: meta.name,
        cluster: meta.cluster,
        labels: meta.labels,
        annotations: meta.annotations,
        ..<_>::default()
    };
    let mut kind = object.kind.clone();
    match &mut kind {
        Some(object::Kind::Cluster(value)) => value.status = None,
        Some(object::Kind::TaskDefinition(value)) => value.status = None,
        Some(object::Kind::Service(value)) => value.status = None,
        Some(object::Kind::Task(value)) => value.status = None,
        Some(object::Kind::ContainerInstance(value)) => value.status = None,
        Some(object::Kind::Deployment(value)) => value.status = None,
        _ => {}
    }
    Object { meta: Some(meta), kind }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_proto::v1::{Service, ServiceSpec, ServiceStatus};

    fn service(count: i32, revision: i64) -> Object {
        let spec = ServiceSpec { task_definition: "web:1".into(), desired_count: Some(count), ..Default::default() };
        let status = ServiceStatus { running_count: Some(count), ..Default::default() };
        let mut object = Object::new("default", "web", Service { spec: Some(spec), status: Some(status) });
        object.meta_mut().revision = revision;
        object
    }

    #[test]
    fn a_diff_shows_what_a_person_may_change_and_not_what_the_server_keeps() {
        let result = ApplyResult {
            outcome: Outcome::Configured.into(),
            object: Some(service(3, 9)),
            previous: Some(service(2, 5)),
        };
        let text = difference(&result, false);
        assert!(text.starts_with("--- service/web\n+++ service/web\n"), "{text}");
        assert!(text.contains("-  desiredCount: 2\n+  desiredCount: 3\n"), "{text}");
        assert!(!text.contains("revision") && !text.contains("runningCount"), "{text}");
    }

    #[test]
    fn a_new_object_is_all_added() {
        let result = ApplyResult { outcome: Outcome::Created.into(), object: Some(service(1, 0)), previous: None };
        let text = difference(&result, false);
        assert!(text.starts_with("--- /dev/null\n"), "{text}");
        assert!(text.contains("+kind: Service\n"), "{text}");
    }
}
