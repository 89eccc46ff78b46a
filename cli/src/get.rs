//! `steady get`: lists objects, shows some, or follows them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde_json::json;
use steady_core::{Key, Kind, KindExt, task};
use steady_proto::document::{self, Document};
use steady_proto::v1::{Object, Selector};

use crate::args::Global;
use crate::client::Client;
use crate::columns::{self, Columns};
use crate::failure::Failure;
use crate::out::{self, Out};
use crate::table::{Cell, Table};
use crate::target::{self, Target};
use crate::watch::Watch;
use crate::world::{Changed, World, now};

/// The form of what is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// A line each.
    #[default]
    Table,
    /// A line each, with more columns.
    Wide,
    /// JSON: one object as it is, several under `items`.
    Json,
    /// YAML documents; they can be applied again.
    Yaml,
    /// kind/name.
    Name,
}

/// Arguments of `steady get`.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Kinds: clusters, taskdefinitions (td), services (svc), deployments, tasksets, tasks, containerinstances (ci), targetgroups,
listeners, securitygroups, secrets, scalabletargets, scalingpolicies, alarms, metricdata, capacityproviders, reservations,
events, leases, and controllers: who leads, since when, what waits, what went wrong last. Stopped tasks are hidden unless they are named or --all is given.

Examples:
  steady get services
  steady get tasks -w                         follow: a line for every change
  steady get task/3fa8c1 -o yaml              the beginning of a task's id is enough
  steady get svc -l app=web -A -o json        of every cluster, for a program"
)]
pub struct Get {
    /// KIND, KIND NAME… or KIND/NAME….
    #[arg(required = true, value_name = "KIND[/NAME]")]
    pub what: Vec<String>,
    /// How to show them.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// Go on with a line for every change.
    #[arg(short, long)]
    pub watch: bool,
    /// Only objects with these labels.
    #[arg(short = 'l', long, value_name = "KEY=VALUE,…", value_parser = labels)]
    pub selector: Option<Labels>,
    /// Of every cluster.
    #[arg(short = 'A', long)]
    pub all_clusters: bool,
    /// Tasks: stopped ones too.
    #[arg(long)]
    pub all: bool,
}

/// Labels that objects must have.
#[derive(Debug, Clone, Default)]
pub struct Labels(pub BTreeMap<String, String>);

fn labels(text: &str) -> Result<Labels, String> {
    target::labels(text).map(Labels)
}

/// Which objects are wanted, and how they are to be shown.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    pub(crate) kind: Kind,
    /// Empty: all of them.
    pub(crate) cluster: String,
    /// Empty: all of them.
    pub(crate) names: Vec<String>,
    pub(crate) labels: BTreeMap<String, String>,
    /// Tasks that are STOPPED too.
    pub(crate) stopped: bool,
    /// Events: only those about this object.
    pub(crate) about: Option<Key>,
    pub(crate) output: Output,
    /// Leases: only those of controllers, shown as what they are.
    pub(crate) controllers: bool,
}

/// What the leases of controllers begin with.
const CONTROLLER: &str = "controller.";

/// `controllers` and `controller/NAME` are leases, by their names.
fn without_controllers(words: &[String]) -> (Vec<String>, bool) {
    let mut found = false;
    let words = words.iter().map(|word| {
        let (kind, name) = word.split_once('/').map_or((word.as_str(), None), |(kind, name)| (kind, Some(name)));
        if !matches!(kind, "controller" | "controllers") {
            return word.clone();
        }
        found = true;
        name.map_or_else(|| "leases".to_owned(), |name| format!("lease/{CONTROLLER}{name}"))
    });
    (words.collect(), found)
}

/// `steady get`.
pub async fn run(args: Get, global: &Global, out: &mut Out) -> Result<(), Failure> {
    let (words, controllers) = without_controllers(&args.what);
    let targets = target::parse(&words)?;
    let client = global.connect().await?;
    if args.watch && targets.iter().any(|t| t.kind != targets[0].kind) {
        return Err(Failure::usage("--watch follows one kind at a time"));
    }
    for (number, mut query) in queries(&client, &args, &targets, global).await?.into_iter().enumerate() {
        query.controllers = controllers && query.kind == Kind::Lease;
        if args.watch {
            return Box::pin(follow(&client, &query, out)).await;
        }
        if number > 0 && query.output == Output::Yaml {
            out.text("---\n")?;
        }
        show(&client, &query, out).await?;
    }
    Ok(())
}

/// One query for each kind that is asked for.
async fn queries(client: &Client, args: &Get, targets: &[Target], global: &Global) -> Result<Vec<Query>, Failure> {
    let cluster = if args.all_clusters { String::new() } else { global.cluster.clone() };
    let mut found: Vec<Query> = Vec::new();
    for target in targets {
        let names = match &target.name {
            Some(name) => {
                let keys = target::resolve(client, &cluster, target.kind, name).await?;
                keys.into_iter().map(|key| key.name.into()).collect()
            }
            None => vec![],
        };
        match found.iter_mut().find(|query| query.kind == target.kind) {
            Some(query) => query.names.extend(names),
            None => found.push(Query {
                kind: target.kind,
                cluster: cluster.clone(),
                stopped: args.all || args.watch || target.name.is_some(),
                names,
                labels: args.selector.clone().unwrap_or_default().0,
                about: None,
                output: args.output,
                controllers: false,
            }),
        }
    }
    Ok(found)
}

impl Query {
    fn takes(&self, object: &Object) -> bool {
        object.kind() == self.kind
            && (self.cluster.is_empty() || !self.kind.in_cluster() || object.cluster() == self.cluster)
            && (!self.controllers || object.name().starts_with(CONTROLLER))
            && (self.names.is_empty() || self.names.iter().any(|name| self.is_named(object, name)))
            && target::matches(object, &self.labels)
            && self.about.as_ref().is_none_or(|key| is_about(object, key))
    }

    /// Whether an object is meant by a name; of controllers that work beside each other each has its holder in the name.
    fn is_named(&self, object: &Object, name: &str) -> bool {
        let rest = object.name().strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || (self.controllers && rest.starts_with('.')))
    }

    fn columns(&self) -> Columns {
        let columns = Columns::new(self.kind, self.output == Output::Wide, self.cluster.is_empty());
        if self.controllers { columns.of_controllers() } else { columns }
    }

    fn is_table(&self) -> bool {
        matches!(self.output, Output::Table | Output::Wide)
    }

    /// Kinds to look at, the wanted one first.
    fn kinds(&self) -> Vec<Kind> {
        let companions = if self.is_table() { Columns::companions(self.kind, false) } else { &[] };
        std::iter::once(self.kind).chain(companions.iter().copied()).collect()
    }

    /// What the server can choose by itself.
    fn selector(&self) -> Selector {
        let mut selector = target::in_cluster(&self.cluster);
        if let [name] = &self.names[..]
            && !self.controllers
        {
            selector.name.clone_from(name);
        }
        selector.labels.clone_from(&self.labels);
        selector
    }
}

fn is_about(event: &Object, key: &Key) -> bool {
    let about = event.as_event().and_then(|e| e.spec.as_ref()).and_then(|s| s.about.as_ref());
    about.is_some_and(|about| Key::of_ref(about) == *key)
}

/// Shows what there is now.
pub(crate) async fn show(client: &Client, query: &Query, out: &mut Out) -> Result<(), Failure> {
    let items = client.list(query.kind, query.selector()).await?;
    let mut items: Vec<Arc<Object>> = items.into_iter().filter(|o| query.takes(o)).map(Arc::new).collect();
    if let Some(missing) = query.names.iter().find(|name| !items.iter().any(|item| query.is_named(item, name))) {
        let (kind, plural) = (query.kind.name().to_lowercase(), query.kind.plural());
        return Err(Failure::failed(format!(
            "there is no {kind}/{missing}; `steady get {plural} -A` lists what there is"
        )));
    }
    let all = items.len();
    if query.kind == Kind::Task && !query.stopped {
        items.retain(|item| task::of(item).is_some_and(|task| task.is_live()));
    }
    columns::sort(query.kind, &mut items);
    match query.output {
        Output::Table | Output::Wide => table(client, query, &items, out).await?,
        Output::Json if query.names.len() == 1 => out.line(&printed(document::to_json(&items[0]))?)?,
        Output::Json => {
            let list = json!({ "items": items.iter().map(|item| Document(item)).collect::<Vec<_>>() });
            out.line(&printed(serde_json::to_string_pretty(&list).map_err(|e| e.to_string()))?)?;
        }
        Output::Yaml => {
            let texts: Result<Vec<_>, _> = items.iter().map(|item| printed(document::to_yaml(item))).collect();
            out.text(&texts?.join("---\n"))?;
        }
        Output::Name => items.iter().try_for_each(|item| out.line(&Key::of(item).to_string()))?,
    }
    if all > items.len() && out.is_terminal() {
        out::note(&format!("({} stopped tasks are hidden; --all shows them)", all - items.len()));
    }
    Ok(())
}

fn printed(text: Result<String, String>) -> Result<String, Failure> {
    text.map_err(Failure::failed)
}

async fn table(client: &Client, query: &Query, items: &[Arc<Object>], out: &mut Out) -> Result<(), Failure> {
    if items.is_empty() {
        let place = if query.cluster.is_empty() || !query.kind.in_cluster() {
            String::new()
        } else {
            format!(" in cluster {}", query.cluster)
        };
        out::note(&format!("no {}{place}", query.kind.plural()));
        return Ok(());
    }
    // Cluster names are names of other objects' clusters: look everywhere.
    let around = if query.kind.in_cluster() { query.cluster.as_str() } else { "" };
    let mut world = World::list(client, Columns::companions(query.kind, query.output == Output::Wide), around).await?;
    world.add(items.iter().map(|item| Object::clone(item)).collect());
    let columns = query.columns();
    let mut table = Table::new(&columns.heads(), out.is_colored());
    for item in items {
        table.push(columns.row(item, &world, now()));
    }
    out.text(&table.render())
}

/// Shows what there is now, then a line for every change.
pub(crate) async fn follow(client: &Client, query: &Query, out: &mut Out) -> Result<(), Failure> {
    let kinds = query.kinds();
    let selector = if kinds.len() == 1 { query.selector() } else { target::in_cluster(&query.cluster) };
    let mut watch = Watch::open(client, &kinds, selector).await?;
    let mut world = World::default();
    let mut shown = Shown::new(query, out);
    let first = world.follow(&mut watch).await?;
    shown.snapshot(first, &world, out)?;
    loop {
        let changed = world.follow(&mut watch).await?;
        shown.changes(&changed, &world, out)?;
    }
}

/// What was shown so far of each object, so that a line comes only for what a person can see.
struct Shown<'a> {
    query: &'a Query,
    columns: Columns,
    age: Option<usize>,
    table: Table,
    rows: HashMap<Key, Vec<Cell>>,
}

impl<'a> Shown<'a> {
    fn new(query: &'a Query, out: &Out) -> Self {
        let columns = query.columns().live();
        let heads = columns.heads();
        let age = heads.iter().position(|head| *head == "AGE");
        Shown { query, columns, age, table: Table::new(&heads, out.is_colored()), rows: HashMap::new() }
    }

    fn snapshot(&mut self, changed: Vec<Changed>, world: &World, out: &mut Out) -> Result<(), Failure> {
        let mut items: Vec<Arc<Object>> =
            changed.into_iter().map(|c| c.object).filter(|o| self.query.takes(o)).collect();
        columns::sort(self.query.kind, &mut items);
        if !self.query.is_table() {
            return items.iter().try_for_each(|item| self.document(item, false, out));
        }
        for item in items {
            let row = self.columns.row(&item, world, now());
            self.table.push(row.clone());
            self.rows.insert(Key::of(&item), self.ageless(row));
        }
        out.text(&self.table.render())
    }

    fn changes(&mut self, changed: &[Changed], world: &World, out: &mut Out) -> Result<(), Failure> {
        for Changed { object, deleted } in changed {
            if self.query.takes(object) {
                self.change(object, *deleted, world, out)?;
            } else if let Some((cluster, name)) = Columns::affected(self.query.kind, object)
                && let Some(object) = world.get(self.query.kind, &cluster, &name).cloned()
                && self.query.is_table()
                && self.query.takes(&object)
            {
                self.change(&object, false, world, out)?;
            }
        }
        Ok(())
    }

    fn change(&mut self, object: &Object, deleted: bool, world: &World, out: &mut Out) -> Result<(), Failure> {
        if !self.query.is_table() {
            return self.document(object, deleted, out);
        }
        let row = self.columns.row(object, world, now());
        let key = Key::of(object);
        if deleted {
            self.rows.remove(&key);
            return out.line(&format!("{}  DELETED", self.table.row(row)));
        }
        let ageless = self.ageless(row.clone());
        if self.rows.get(&key) == Some(&ageless) {
            return Ok(());
        }
        self.rows.insert(key, ageless);
        out.line(&self.table.row(row))
    }

    /// The row without its age, which changes by itself.
    fn ageless(&self, mut row: Vec<Cell>) -> Vec<Cell> {
        if let Some(cell) = self.age.and_then(|age| row.get_mut(age)) {
            *cell = Cell::default();
        }
        row
    }

    fn document(&self, object: &Object, deleted: bool, out: &mut Out) -> Result<(), Failure> {
        match self.query.output {
            Output::Json => out.line(&json!({ "deleted": deleted, "object": Document(object) }).to_string()),
            Output::Yaml => {
                let mark = if deleted { "# DELETED\n" } else { "" };
                out.text(&format!("---\n{mark}{}", printed(document::to_yaml(object))?))
            }
            _ => out.line(&format!("{}{}", Key::of(object), if deleted { " DELETED" } else { "" })),
        }
    }
}
