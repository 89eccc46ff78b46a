//! `steady describe`: one object in sections: what it is, what it waits for, what happened.

mod instance;
mod scaling;
mod service;
mod task;
mod traffic;

use std::fmt::Write as _;
use std::sync::Arc;

use clap::Args;
use steady_core::{Key, Kind, KindExt, Timestamp, condition};
use steady_proto::document;
use steady_proto::v1::Object;

use crate::args::Global;
use crate::client::Client;
use crate::columns::{self, Columns};
use crate::failure::Failure;
use crate::out::{Out, Style};
use crate::table::Table;
use crate::target;
use crate::world::{World, now};

/// Most events that are shown, the newest.
const EVENTS: usize = 20;

/// Arguments of `steady describe`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  steady describe service/hello               why it is, or is not, steady
  steady describe task/3fa8c1                 containers, exit codes, why it stopped
  steady describe containerinstance/node-1    what is free, what runs")]
pub struct Describe {
    /// KIND/NAME…, or KIND NAME….
    #[arg(required = true, value_name = "KIND/NAME")]
    pub what: Vec<String>,
}

/// `steady describe`.
pub async fn run(args: Describe, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let targets = target::parse(&args.what)?;
    let client = global.connect().await?;
    let mut first = true;
    for found in targets {
        let Some(name) = found.name else {
            let kind = found.kind.name().to_lowercase();
            return Err(Failure::usage(format!("say which {kind}: {kind}/NAME")));
        };
        let keys = target::resolve(&client, &global.cluster, found.kind, &name).await?;
        // Of a family, the newest revision.
        if let Some(key) = keys.last() {
            let text = one(&client, key, out.is_colored()).await?;
            out.text(if std::mem::take(&mut first) { "" } else { "\n" })?;
            out.text(&text)?;
        }
    }
    Ok(())
}

async fn one(client: &Client, key: &Key, color: bool) -> Result<String, Failure> {
    let object = client.get(key).await?;
    let kinds = [Kind::Deployment, Kind::Task, Kind::ContainerInstance, Kind::Event, Kind::Listener];
    let scales = [
        Kind::Event,
        Kind::Service,
        Kind::Task,
        Kind::Alarm,
        Kind::ScalableTarget,
        Kind::ScalingPolicy,
        Kind::MetricData,
    ];
    let kinds: &[Kind] = match key.kind {
        Kind::ScalableTarget | Kind::ScalingPolicy => &scales,
        kind if kind.in_cluster() => &kinds,
        _ => &[Kind::Event],
    };
    let mut world = World::list(client, kinds, &key.cluster).await?;
    world.add(vec![object.clone()]);
    if key.kind == Kind::Service {
        world.add(client.find(&Key::new(Kind::ScalableTarget, &key.cluster, &key.name)).await?.into_iter().collect());
    }
    if key.kind == Kind::CapacityProvider {
        for name in [key.name.as_str(), ""] {
            let lease = Key::new(Kind::Lease, "", &steady_core::capacity::pool_lease(&key.cluster, name));
            world.add(client.find(&lease).await?.into_iter().collect());
        }
    }
    let mut page = Page { text: String::new(), color, now: now() };
    page.heading(&object);
    match key.kind {
        Kind::Service => service::describe(&mut page, &object, &world),
        Kind::Task => task::describe(&mut page, &object, &world),
        Kind::ContainerInstance => instance::describe(&mut page, &object, &world),
        Kind::TargetGroup => traffic::group(&mut page, &object, &world),
        Kind::Listener => traffic::listener(&mut page, &object),
        Kind::CapacityProvider => scaling::provider(&mut page, &object, &world),
        Kind::ScalableTarget => scaling::target(&mut page, &object, &world),
        Kind::ScalingPolicy => scaling::policy(&mut page, &object, &world),
        _ => page.plain(&object)?,
    }
    page.events(&object, &world);
    Ok(page.text)
}

/// A description as it grows.
struct Page {
    text: String,
    color: bool,
    now: Timestamp,
}

impl Page {
    fn heading(&mut self, object: &Object) {
        self.field("Name", object.name());
        self.field("Kind", object.kind().name());
        self.field("Cluster", object.cluster());
        let labels: Vec<String> = object.meta().labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        self.field("Labels", &labels.join(", "));
        self.field("Age", &crate::span::age(object.meta().created.as_ref(), self.now));
        if let Some(owner) = &object.meta().owner {
            self.field("Owner", &owner.to_string());
        }
        if let Some(deleting) = &object.meta().deleting {
            let since = crate::span::age(Some(deleting), self.now);
            let waits = object.meta().finalizers.join(", ");
            self.field(
                "Deleting",
                &format!("for {since}{}{waits}", if waits.is_empty() { "" } else { ", waits for " }),
            );
        }
    }

    /// A field; nothing where it is empty.
    fn field(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            let _ = writeln!(self.text, "{:<18}{value}", format!("{name}:"));
        }
    }

    /// Whose turn a task is, where it is not as usual.
    fn priority(&mut self, priority: i32, preemptible: bool) {
        if priority != 0 || preemptible {
            let preemptible = if preemptible { ", preemptible" } else { "" };
            self.field("Priority", &format!("{priority}{preemptible}"));
        }
    }

    /// A status, coloured.
    fn state(&mut self, name: &str, word: &str) {
        let cell = columns::state(if word == "VALUE_UNSPECIFIED" { "" } else { word });
        let text = if self.color && !cell.text.is_empty() { cell.style.paint(&cell.text) } else { cell.text };
        self.field(name, &text);
    }

    fn section(&mut self, title: &str) {
        let title = format!("{title}:");
        let title = if self.color { Style::Bold.paint(&title) } else { title };
        let _ = writeln!(self.text, "\n{title}");
    }

    fn line(&mut self, line: &str) {
        let _ = writeln!(self.text, "  {line}");
    }

    /// A table of objects of one kind.
    fn table<'a>(&mut self, title: &str, kind: Kind, objects: impl Iterator<Item = &'a Arc<Object>>, world: &World) {
        let mut objects: Vec<Arc<Object>> = objects.cloned().collect();
        columns::sort(kind, &mut objects);
        self.section(title);
        if objects.is_empty() {
            self.line("none");
            return;
        }
        let columns = Columns::new(kind, false, false);
        let mut table = Table::new(&columns.heads(), self.color);
        for object in &objects {
            table.push(columns.row(object, world, self.now));
        }
        self.text.push_str(&table.render_indented("  "));
    }

    fn conditions(&mut self, object: &Object) {
        if object.conditions().is_empty() {
            return;
        }
        self.section("Conditions");
        for condition in object.conditions() {
            let since = crate::span::age(condition.since.as_ref(), self.now);
            let (kind, reason, message) = (&condition.r#type, &condition.reason, &condition.message);
            self.line(&format!("{kind}={}  {reason}: {message} (for {since})", condition.status));
        }
    }

    /// The last things that happened to it, newest first; the same thing several times is one line.
    fn events(&mut self, object: &Object, world: &World) {
        let key = Key::of(object);
        let about = |event: &&Arc<Object>| {
            let about = event.as_event().and_then(|e| e.spec.as_ref()).and_then(|s| s.about.as_ref());
            about.is_some_and(|about| {
                Key::of_ref(about) == key && (about.uid.is_empty() || about.uid == object.meta().uid)
            })
        };
        let mut events: Vec<Arc<Object>> = world.view.of_kind(Kind::Event).filter(about).cloned().collect();
        columns::sort(Kind::Event, &mut events);
        self.section("Events");
        if events.is_empty() {
            self.line("none");
        }
        for event in events.iter().rev().take(EVENTS) {
            let spec = event.as_event().and_then(|e| e.spec.clone()).unwrap_or_default();
            let age = columns::at(event).map_or_else(|| "-".to_owned(), |at| crate::span::short(self.now.since(at)));
            let severity = columns::state(spec.severity().as_str_name()).style;
            let reason = if self.color { severity.paint(&spec.reason) } else { spec.reason.clone() };
            self.line(&format!("{age:<6}  {reason}  {}", spec.message));
        }
        if events.len() > EVENTS {
            let more = events.len() - EVENTS;
            self.line(&format!("({more} older ones: steady events {key})"));
        }
    }

    /// Any other kind: its document.
    fn plain(&mut self, object: &Object) -> Result<(), Failure> {
        self.section("Document");
        let yaml = document::to_yaml(object).map_err(Failure::failed)?;
        for line in yaml.lines() {
            self.line(line);
        }
        Ok(())
    }

    fn waiting(&mut self, object: &Object) {
        if let Some(waiting) = condition::waiting(object.conditions()) {
            let since = crate::span::age(waiting.since.as_ref(), self.now);
            self.field("Waits", &format!("{} (for {since})", waiting.message));
        }
    }
}
