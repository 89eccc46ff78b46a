//! `steady store`: checks, copies and puts back what is stored.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use prost::Message as _;
use steady_apiserver::backup::{self, RestoreError};
use steady_core::{Clock as _, Kind, KindExt, SystemClock, task};
use steady_proto::document;
use steady_proto::v1::backup_response::Part;
use steady_proto::v1::{Object, Selector, object};

use crate::args::Global;
use crate::failure::Failure;
use crate::manifests::{Documents, refuse};
use crate::out::{Out, note};
use crate::process::{EtcdArgs, Store as Opened, data_directory, lock};
use crate::table::Table;

/// Arguments of `steady store`.
#[derive(Debug, Args)]
#[command(
    after_long_help = "A backup holds everything as of one moment: what was declared and what was found. End the API
servers before it is restored. An export
holds what was declared, as manifests.

Examples:
  steady store check                          what should not be there; exit 1 when something is
  steady store backup monday.backup
  steady store restore monday.backup --data-dir /var/lib/steady    into an empty store, before it is started
  steady store restore monday.backup --etcd http://10.0.0.1:2379
  steady store export > everything.yaml
  steady store import everything.yaml         into a cluster that runs"
)]
pub struct Store {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What `steady store` does.
#[derive(Debug, Clone, Subcommand)]
pub enum Verb {
    /// Look for what should not be there: what cannot be read, what belongs to nothing.
    Check,
    /// Copy everything, as of one moment, into a file.
    Backup {
        /// Not there yet.
        file: PathBuf,
    },
    /// Put a backup into an empty store. Tasks that still run go on.
    Restore {
        /// A backup.
        file: PathBuf,
        /// Directory of the bundled etcd: of `steady up` or `steady apiserver`, which must not run
        #[arg(long, value_name = "DIR", conflicts_with = "etcd", required_unless_present = "etcd")]
        data_dir: Option<PathBuf>,
        /// The etcd to put it into.
        #[command(flatten)]
        etcd: EtcdArgs,
    },
    /// Print clusters, task definitions and services as manifests.
    Export,
    /// Apply what was exported, one after the other.
    Import {
        /// Manifests.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

/// `steady store`.
pub async fn run(args: Store, global: &Global, out: &mut Out) -> Result<(), Failure> {
    match args.verb {
        Verb::Check => check(global, out).await,
        Verb::Backup { file } => backup(&file, global, out).await,
        Verb::Restore { file, data_dir, etcd } => restore(&file, data_dir, &etcd, out).await,
        Verb::Export => export(global, out).await,
        Verb::Import { files } => import(&files, global, out).await,
    }
}

async fn check(global: &Global, out: &mut Out) -> Result<(), Failure> {
    let checked = global.connect().await?.check().await?;
    let mut table = Table::new(&["OBJECT", "REASON", "MESSAGE"], out.is_colored());
    for finding in &checked.findings {
        let cells = [&finding.object, &finding.reason, &finding.message];
        table.push(cells.into_iter().map(|text| text.as_str().into()).collect());
    }
    if !table.is_empty() {
        out.text(&table.render())?;
    }
    let (objects, revision, count) = (checked.objects, checked.revision, checked.findings.len());
    out.line(&format!("{objects} objects as of revision {revision}: {count} findings"))?;
    if count > 0 { Err(Failure::quiet(crate::failure::FAILED)) } else { Ok(()) }
}

async fn backup(path: &Path, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::failed(format!("{}: {error}", path.display()));
    let client = global.connect().await?;
    if path.exists() {
        return Err(Failure::usage(format!("{} is there already; choose another name", path.display())));
    }
    // Beside it and then renamed: what is there under the name is always whole.
    let part = path.with_extension("part");
    let mut file = BufWriter::new(File::create(&part).map_err(failed)?);
    let mut stream = client.backup().await?;
    let (mut revision, mut entries, mut whole) = (0, 0, false);
    while let Some(message) = client.next_part(&mut stream).await? {
        match &message.part {
            Some(Part::Header(header)) => revision = header.revision,
            Some(Part::End(end)) => (entries, whole) = (end.entries, true),
            _ => {}
        }
        file.write_all(&message.encode_length_delimited_to_vec()).map_err(failed)?;
    }
    if !whole {
        return Err(Failure::failed("the API server ended before the backup did; run the command again"));
    }
    let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
    let size = file.metadata().map_err(failed)?.len();
    file.sync_all().and_then(|()| std::fs::rename(&part, path)).map_err(failed)?;
    out.line(&format!("{}: {entries} keys as of revision {revision}, {size} bytes", path.display()))
}

async fn restore(path: &Path, directory: Option<PathBuf>, etcd: &EtcdArgs, out: &mut Out) -> Result<(), Failure> {
    let file = File::open(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    let directory = data_directory(directory)?;
    let _lock = if etcd.etcd.is_empty() { Some(lock(&directory)?) } else { None };
    let store = Opened::open(etcd, &directory).await?;
    let restored = backup::restore(BufReader::new(file), &*store.storage, SystemClock.now()).await;
    store.close().await;
    let restored = restored.map_err(|error| match error {
        RestoreError::Broken(_) => Failure::usage(format!("{}: {error}; nothing was restored", path.display())),
        error => Failure::failed(error.to_string()),
    })?;
    let (entries, revision, epoch) = (restored.entries, restored.header.revision, restored.epoch);
    out.line(&format!("restored {entries} keys of revision {revision}; epoch {epoch} begins with the first API server"))
}

/// What people declare. A task definition comes with the family's name alone, and right after it the services that use
/// this revision: applied in this order, each gets what it had.
async fn export(global: &Global, out: &mut Out) -> Result<(), Failure> {
    let client = global.connect().await?;
    let mut objects = client.list(Kind::Cluster, Selector::default()).await?;
    objects.retain(|cluster| cluster.name() != steady_core::DEFAULT_CLUSTER);
    // What others refer to comes first.
    for kind in [Kind::CapacityProvider, Kind::Alarm, Kind::SecurityGroup, Kind::TargetGroup, Kind::Listener] {
        objects.extend(client.list(kind, Selector::default()).await?);
    }
    // Those of policies come with them.
    objects.retain(|object| object.kind() != Kind::Alarm || object.meta().owner.is_none());
    let services = client.list(Kind::Service, Selector::default()).await?;
    let mut definitions = client.list(Kind::TaskDefinition, Selector::default()).await?;
    definitions.sort_by_key(|definition| {
        task::split_definition(definition.name()).map(|(family, revision)| (family.to_owned(), revision))
    });
    let uses = |service: &Object, name: &str| {
        let spec = service.as_service().and_then(|s| s.spec.as_ref());
        !service.is_deleting() && spec.is_some_and(|spec| spec.task_definition == name)
    };
    definitions.retain(|definition| !definition.is_deleting() || services.iter().any(|s| uses(s, definition.name())));
    for definition in &definitions {
        objects.push(definition.clone());
        objects.extend(services.iter().filter(|s| uses(s, definition.name())).cloned());
    }
    for kind in [Kind::ScalableTarget, Kind::ScalingPolicy] {
        objects.extend(client.list(kind, Selector::default()).await?);
    }
    let secrets = client.list(Kind::Secret, Selector::default()).await?;
    if !secrets.is_empty() {
        let names: Vec<String> =
            secrets.iter().map(|secret| format!("{}/{}", secret.cluster(), secret.name())).collect();
        note(&format!("secrets are not exported; put them anew where this is applied: {}", names.join(", ")));
    }
    for mut object in objects {
        declared(&mut object);
        let yaml = document::to_yaml(&object).map_err(Failure::failed)?;
        out.line(&format!("---\n{}", yaml.trim_end()))?;
    }
    Ok(())
}

/// Only what its user wrote.
fn declared(object: &mut Object) {
    let meta = object.meta_mut();
    let kept = steady_proto::v1::Meta {
        name: meta.name.split(':').next().unwrap_or_default().to_owned(),
        cluster: meta.cluster.clone(),
        labels: std::mem::take(&mut meta.labels),
        annotations: std::mem::take(&mut meta.annotations),
        ..<_>::default()
    };
    *meta = kept;
    match &mut object.kind {
        Some(object::Kind::Service(service)) => {
            service.status = None;
            if let Some(spec) = &mut service.spec {
                let family = spec.task_definition.split(':').next().unwrap_or_default();
                spec.task_definition = family.to_owned();
            }
        }
        Some(object::Kind::TaskDefinition(definition)) => definition.status = None,
        Some(object::Kind::Cluster(cluster)) => cluster.status = None,
        Some(object::Kind::CapacityProvider(provider)) => provider.status = None,
        Some(object::Kind::Alarm(alarm)) => alarm.status = None,
        Some(object::Kind::ScalableTarget(target)) => target.status = None,
        Some(object::Kind::ScalingPolicy(policy)) => policy.status = None,
        _ => {}
    }
}

async fn import(files: &[PathBuf], global: &Global, out: &mut Out) -> Result<(), Failure> {
    let documents = Documents::as_written(files, &global.cluster)?;
    refuse(&documents.faults_of_each())?;
    let client = global.connect().await?;
    for object in documents.objects() {
        let applied = client.apply(vec![object], false).await?;
        for result in applied.results {
            let object = result.object.clone().unwrap_or_default();
            let outcome = result.outcome().as_str_name().trim_start_matches("OUTCOME_").to_lowercase();
            out.line(&format!("{}/{} {outcome}", object.kind().name().to_lowercase(), object.name()))?;
        }
    }
    Ok(())
}
