//! Steady's instance pools: whoever makes instances for a capacity provider.
//!
//! What there is to be is a list in the provider's status ([`PoolInstance`]). A [`Maker`] knows what there is; what is missing is made, and
//! what is not on the list any more is ended. Nothing is remembered between two looks, and nothing told but what failed: that an instance is
//! there its agent says. A cloud's instances are another maker.

mod exec;
mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use steady_core::v1::change::Change as Wire;
use steady_core::v1::pool_instance_state::Value as State;
use steady_core::v1::severity::Value as Severity;
use steady_core::v1::{Change, CommitRequest, Event, EventSpec, InstanceTemplate, Object};
use steady_core::{Clock, DEFAULT_CLUSTER, Key, Kind, SystemClock, Timestamp, View, derived_id};
use steady_runtime::{Client, News, Reflector, presence, release};
use tokio::sync::watch;

pub use exec::Exec;
pub use process::{Process, Settings as ProcessSettings};

/// Between looks when nothing changes.
const LOOK: Duration = Duration::from_secs(5);
/// How long changes are gathered.
const GATHER: Duration = Duration::from_millis(50);
/// How long after a failure the same instance is left alone.
const AGAIN: Duration = Duration::from_secs(10);
/// The same failure of an instance is told once in so many milliseconds.
const TOLD: i64 = 600_000;

/// An instance that is to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The name that its agent is to register with.
    pub name: String,
    /// Empty: none.
    pub availability_zone: String,
    /// What it is to be like.
    pub template: InstanceTemplate,
}

/// Where an instance belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// Its cluster.
    pub cluster: String,
    /// The name that agents give with `--capacity-provider`.
    pub name: String,
    /// API servers that its agents talk to.
    pub servers: Vec<String>,
}

/// What makes instances, and ends them. Each call may be repeated: what is there is not made again, what is gone not ended.
#[async_trait]
pub trait Maker: Send + Sync {
    /// Names of the instances that are there, or on their way. An error: it is not known, and nothing is done.
    async fn list(&self, provider: &Provider) -> Result<BTreeSet<String>, String>;

    /// Makes instances; those that cannot be made, and why.
    async fn grow(&self, provider: &Provider, wanted: &[Wanted]) -> Result<BTreeMap<String, String>, String>;

    /// Ends instances; those that cannot be ended, and why.
    async fn shrink(&self, provider: &Provider, names: &[String]) -> Result<BTreeMap<String, String>, String>;
}

/// Serves capacity providers of a cluster until `ending` says so: the named one, or all of them. Instances go on.
pub async fn run(
    provider: Provider,
    maker: &dyn Maker,
    directory: &Path,
    client: Client,
    mut ending: watch::Receiver<bool>,
) -> Result<(), String> {
    let holder = steady_runtime::holder();
    let name = if provider.name.is_empty() { "all" } else { &provider.name };
    let lease = format!("pool.{}.{name}", provider.cluster);
    let mut beside = tokio::task::JoinSet::new();
    beside.spawn(presence(client.clone(), lease.clone(), holder.clone()));
    let serving = serve(&provider, maker, directory, &client, (&lease, &holder));
    let ended = tokio::select! {
        ended = serving => ended,
        _ = ending.wait_for(|ending| *ending) => Ok(()),
    };
    beside.shutdown().await;
    release(&client, lease, holder).await;
    ended
}

async fn serve(
    provider: &Provider,
    maker: &dyn Maker,
    directory: &Path,
    client: &Client,
    (lease, holder): (&str, &str),
) -> Result<(), String> {
    let mut failed: BTreeMap<Key, Timestamp> = BTreeMap::new();
    loop {
        let kinds = BTreeSet::from([Kind::CapacityProvider, Kind::Cluster, Kind::Lease]);
        let reflector = Reflector::start(client.clone(), &kinds);
        reflector.until(|_| true).await;
        belongs(&reflector.view(), directory)?;
        let follow = async {
            let mut news = reflector.news();
            loop {
                let view = reflector.view();
                // One at a time serves a provider.
                let leads =
                    view.get(&Key::new(Kind::Lease, "", lease)).and_then(|found| found.as_lease()?.spec.as_ref());
                if leads.is_some_and(|lease| lease.holder == holder) {
                    for object in providers(&view, provider) {
                        obey(&object, provider, maker, client, &mut failed).await;
                    }
                }
                let changed = async {
                    loop {
                        match news.recv().await {
                            Ok(News::Changed(objects))
                                if objects.iter().all(|o| o.kind() != Kind::CapacityProvider) => {}
                            _ => return,
                        }
                    }
                };
                let _ = tokio::time::timeout(LOOK, changed).await;
                tokio::time::sleep(GATHER).await;
            }
        };
        tokio::select! {
            () = follow => {}
            () = reflector.replaced() => tracing::warn!("the store is another one; looking at everything anew"),
        }
    }
}

/// Instances are made for one store for ever: another one, which knows of none of them, must not end them all.
fn belongs(view: &View, directory: &Path) -> Result<(), String> {
    let found = view.get(&Key::new(Kind::Cluster, "", DEFAULT_CLUSTER)).map(|cluster| cluster.meta().uid.clone());
    let found = found.ok_or("the store has no default cluster; try again")?;
    let path = directory.join("store");
    match fs::read_to_string(&path) {
        Ok(known) if known == found => Ok(()),
        Ok(known) => Err(format!(
            "the API server belongs to another Steady (store {found}, these instances are {known}'s); nothing was ended. Point \
             --server to the right one, or start with a fresh --data-dir"
        )),
        Err(_) => {
            fs::create_dir_all(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
            fs::write(&path, found).map_err(|e| format!("{}: {e}", path.display()))
        }
    }
}

fn providers(view: &View, provider: &Provider) -> Vec<Object> {
    let all = view.in_cluster(Kind::CapacityProvider, &provider.cluster);
    let named = |object: &&std::sync::Arc<Object>| provider.name.is_empty() || object.name() == provider.name;
    all.filter(named).map(|object| Object::clone(object)).collect()
}

/// What is to be made, and what ended.
fn decide(object: &Object, there: &BTreeSet<String>) -> (Vec<Wanted>, Vec<String>) {
    let status = object.as_capacity_provider().and_then(|provider| provider.status.clone()).unwrap_or_default();
    let stays = status.instances.into_iter().filter(|instance| instance.state() != State::Terminating);
    let stays: BTreeMap<String, Wanted> = stays
        .map(|instance| {
            let (name, availability_zone) = (instance.name.clone(), instance.availability_zone);
            (instance.name, Wanted { name, availability_zone, template: instance.template.unwrap_or_default() })
        })
        .collect();
    let surplus = there.iter().filter(|name| !stays.contains_key(*name)).cloned().collect();
    (stays.into_values().filter(|wanted| !there.contains(&wanted.name)).collect(), surplus)
}

/// Makes what is missing, and ends what is not wanted any more.
async fn obey(
    object: &Object,
    provider: &Provider,
    maker: &dyn Maker,
    client: &Client,
    failed: &mut BTreeMap<Key, Timestamp>,
) {
    let provider = Provider { name: object.name().to_owned(), ..provider.clone() };
    let now = SystemClock.now();
    failed.retain(|_, at| now.since(*at) < AGAIN);
    let of = |name: &str| Key::new(Kind::ContainerInstance, &provider.cluster, name);
    let there = match maker.list(&provider).await {
        Ok(there) => there,
        Err(why) => {
            return tell(client, object, "POOL_UNKNOWN", &format!("its instances are not known: {why}"), now).await;
        }
    };
    let (mut missing, mut surplus) = decide(object, &there);
    missing.retain(|wanted| !failed.contains_key(&of(&wanted.name)));
    surplus.retain(|name| !failed.contains_key(&of(name)));
    for (reason, what, names) in [
        ("POOL_SHRINK_FAILED", "cannot be ended", surplus.clone()),
        ("POOL_GROW_FAILED", "cannot be made", missing.iter().map(|wanted| wanted.name.clone()).collect()),
    ] {
        if names.is_empty() {
            continue;
        }
        let done = if reason == "POOL_GROW_FAILED" {
            maker.grow(&provider, &missing).await
        } else {
            maker.shrink(&provider, &surplus).await
        };
        // Without an answer none of it is done, as far as is known.
        let refused = done.unwrap_or_else(|why| names.into_iter().map(|name| (name, why.clone())).collect());
        for (name, why) in refused {
            failed.insert(of(&name), now);
            tell(client, object, reason, &format!("instance {name} {what}: {why}"), now).await;
        }
    }
}

/// Raises an event about a provider.
async fn tell(client: &Client, object: &Object, reason: &str, message: &str, now: Timestamp) {
    tracing::warn!(provider = object.name(), reason, message);
    let message = format!("(capacity-provider {}) {message}", object.name());
    let name = derived_id(&[&object.meta().uid, reason, &message, &(now.0 / TOLD).to_string()]);
    let spec = EventSpec {
        about: Some(object.reference()),
        reason: reason.to_owned(),
        message,
        severity: Severity::Error.into(),
        source: "pool".to_owned(),
        at: Some(now.into()),
    };
    let event = Object::new(object.cluster(), &name, Event { spec: Some(spec) });
    let changes = vec![Change { change: Some(Wire::Create(event)) }];
    // That it was told already is no error worth a word.
    let _ = client.objects().commit(CommitRequest { changes, ..CommitRequest::default() }).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_core::v1::{CapacityProvider, CapacityProviderStatus, PoolInstance};

    #[test]
    fn what_is_missing_is_made_and_what_goes_is_ended() {
        let instance = |name: &str, state: State| PoolInstance {
            name: name.into(),
            state: state.into(),
            availability_zone: "a".into(),
            ..PoolInstance::default()
        };
        let instances = vec![
            instance("new", State::Pending),
            instance("there", State::InService),
            instance("leaving", State::Draining),
            instance("over", State::Terminating),
            instance("ended", State::Terminating),
        ];
        let status = CapacityProviderStatus { instances, ..CapacityProviderStatus::default() };
        let object = Object::new("default", "spot", CapacityProvider { spec: None, status: Some(status) });
        let there = ["there", "leaving", "over", "unknown"].map(str::to_owned).into();
        let (missing, surplus) = decide(&object, &there);
        assert_eq!(missing.iter().map(|wanted| wanted.name.as_str()).collect::<Vec<_>>(), ["new"]);
        assert_eq!(surplus, ["over", "unknown"]);
    }

    #[test]
    fn instances_of_one_store_are_not_ended_by_another() {
        let directory = tempfile::tempdir().expect("a directory");
        let view = |uid: &str| {
            let mut view = View::default();
            let mut cluster = Object::new("", DEFAULT_CLUSTER, steady_core::v1::Cluster::default());
            cluster.meta_mut().uid = uid.to_owned();
            view.put(std::sync::Arc::new(cluster));
            view
        };
        assert_eq!(belongs(&view("one"), directory.path()), Ok(()));
        assert_eq!(belongs(&view("one"), directory.path()), Ok(()));
        assert!(belongs(&view("two"), directory.path()).is_err_and(|why| why.contains("nothing was ended")));
    }
}
