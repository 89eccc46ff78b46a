//! Steady's instance pools: whoever makes instances for a capacity provider.
//!
//! What there is to be is a list in the provider's status ([`PoolInstance`]). A [`Maker`] knows what there is; what is missing is made, and
//! what is not on the list any more is ended. Nothing is remembered between two looks, and nothing told but what failed: that an instance is
//! there its agent says. A cloud's instances are another maker.

mod exec;
mod figures;
mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use steady_core::v1::change::Change as Wire;
use steady_core::v1::pool_instance_state::Value as State;
use steady_core::v1::severity::Value as Severity;
use steady_core::v1::{
    CapacityProvider, CapacityProviderStatus, Change, CommitRequest, Event, EventSpec, GetRequest, GetResponse,
    InstanceTemplate, Object, PoolInstance,
};
use steady_core::{Clock, DEFAULT_CLUSTER, Key, Kind, Timestamp, View, capacity, derived_id};
use steady_runtime::{Client, News, Reflector, presence, release};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::{Code, Response, Status};

use figures::Figures;

pub use exec::Exec;
pub use process::{Process, Settings as ProcessSettings};

/// Between looks when nothing changes.
const LOOK: Duration = Duration::from_secs(5);
/// The same while somebody else serves a provider, or nobody yet.
const SOON: Duration = Duration::from_secs(1);
/// How long changes are gathered.
const GATHER: Duration = Duration::from_millis(50);
/// How long the API server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
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

/// What a process that makes instances is started with.
#[derive(Debug)]
pub struct Settings {
    /// Whose instances, and where they belong; without a name every provider's.
    pub provider: Provider,
    /// Where it keeps which store it belongs to, and what it has served.
    pub directory: PathBuf,
    /// This process', and no other one's.
    pub holder: String,
    /// Where figures are asked for.
    pub metrics: Option<TcpListener>,
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

    /// Clears away what is left of instances that are neither there nor wanted.
    async fn tidy(&self, _: &Provider, _wanted: &BTreeSet<String>) {}
}

/// Serves capacity providers of a cluster until `ending` says so: the named one, or all of them. Instances go on.
pub async fn run(
    settings: Settings,
    maker: &dyn Maker,
    client: Client,
    clock: &dyn Clock,
    mut ending: watch::Receiver<bool>,
) -> Result<(), String> {
    let Settings { provider, directory, holder, metrics } = settings;
    let lease = capacity::pool_lease(&provider.cluster, &provider.name);
    let mut beside = tokio::task::JoinSet::new();
    beside.spawn(presence(client.clone(), lease.clone(), holder.clone()));
    let figures = Figures::default();
    let told = figures.clone();
    let serving = Serving {
        provider,
        maker,
        directory: &directory,
        client: &client,
        lease: &lease,
        holder: &holder,
        clock,
        figures,
    };
    let ended = tokio::select! {
        ended = serving.serve() => ended,
        () = steady_runtime::metrics::serve(metrics.as_ref(), move || std::future::ready(told.text())) => Ok(()),
        _ = ending.wait_for(|ending| *ending) => Ok(()),
    };
    beside.shutdown().await;
    release(&client, lease, holder).await;
    ended
}

/// Serves providers.
struct Serving<'a> {
    provider: Provider,
    maker: &'a dyn Maker,
    directory: &'a Path,
    client: &'a Client,
    lease: &'a str,
    holder: &'a str,
    clock: &'a dyn Clock,
    figures: Figures,
}

impl Serving<'_> {
    async fn serve(&self) -> Result<(), String> {
        let mut failed: BTreeMap<Key, Timestamp> = BTreeMap::new();
        loop {
            let kinds = BTreeSet::from([Kind::CapacityProvider, Kind::Cluster]);
            let reflector = Reflector::start(self.client.clone(), &kinds);
            reflector.until(|_| true).await;
            belongs(&reflector.view(), self.directory)?;
            let follow = async {
                let mut news = reflector.news();
                loop {
                    let view = reflector.view();
                    let mut look = LOOK;
                    for object in providers(&view, &self.provider, self.directory) {
                        if !self.serves().await {
                            self.figures.forget(object.name());
                            look = SOON;
                            continue;
                        }
                        // First what is there, then what is to be: a name is listed before it is made, and never again once it is gone.
                        let there = self.maker.list(&self.of(&object)).await;
                        // What was heard of last may be long ago: nothing is made or ended on the word of a server that is away.
                        let Some(object) = self.now(&object).await else { continue };
                        let is_gone = object.meta().uid.is_empty();
                        // Before anything is made: it is looked after when its provider is gone.
                        if !is_gone && !remember(&object, self.directory) {
                            continue;
                        }
                        self.obey(&object, there, &mut failed).await;
                        if is_gone {
                            self.forget(&object).await;
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
                    let _ = tokio::time::timeout(look, changed).await;
                    tokio::time::sleep(GATHER).await;
                }
            };
            tokio::select! {
                () = follow => {}
                () = reflector.replaced() => tracing::warn!("the store is another one; looking at everything anew"),
            }
        }
    }

    /// An object as the API server has it now; `None`: it does not answer.
    async fn get(&self, key: &Key) -> Option<Result<Response<GetResponse>, Status>> {
        let asking = async { self.client.objects().get(GetRequest { r#ref: Some(key.reference()) }).await };
        tokio::time::timeout(PATIENCE, asking).await.ok()
    }

    /// Whether it is this process: one at a time serves a provider.
    async fn serves(&self) -> bool {
        let Some(Ok(found)) = self.get(&Key::new(Kind::Lease, "", self.lease)).await else { return false };
        let lease = found.into_inner().object.and_then(|object| object.as_lease()?.spec.clone());
        lease.is_some_and(|lease| lease.holder == self.holder)
    }

    /// A provider as the API server has it now, if this process serves it.
    async fn now(&self, object: &Object) -> Option<Object> {
        if !self.serves().await {
            return None;
        }
        match self.get(&Key::of(object)).await? {
            Ok(answer) => answer.into_inner().object,
            Err(status) if status.code() == Code::NotFound => {
                Some(Object::new(object.cluster(), object.name(), CapacityProvider::default()))
            }
            Err(_) => None,
        }
    }

    /// The provider of an object.
    fn of(&self, object: &Object) -> Provider {
        Provider { name: object.name().to_owned(), ..self.provider.clone() }
    }

    /// A provider that is gone, once nothing of it is left.
    async fn forget(&self, object: &Object) {
        if self.maker.list(&self.of(object)).await.is_ok_and(|left| left.is_empty()) {
            let _ = fs::remove_file(self.directory.join("served").join(object.cluster()).join(object.name()));
            self.figures.forget(object.name());
        }
    }

    /// Makes what is missing, and ends what is not wanted any more.
    async fn obey(
        &self,
        object: &Object,
        there: Result<BTreeSet<String>, String>,
        failed: &mut BTreeMap<Key, Timestamp>,
    ) {
        let (provider, now) = (self.of(object), self.clock.now());
        failed.retain(|_, at| now.since(*at) < AGAIN);
        let of = |name: &str| Key::new(Kind::ContainerInstance, &provider.cluster, name);
        let there = match there {
            Ok(there) => there,
            Err(why) => {
                return self.tell(object, "POOL_UNKNOWN", &format!("its instances are not known: {why}"), now).await;
            }
        };
        let status = object.as_capacity_provider().and_then(|provider| provider.status.clone()).unwrap_or_default();
        self.figures.looked_at(object.name(), there.len(), &status);
        let (mut missing, mut surplus) = decide(&status, &there);
        missing.retain(|wanted| !failed.contains_key(&of(&wanted.name)));
        surplus.retain(|name| !failed.contains_key(&of(name)));
        let made: Vec<String> = missing.iter().map(|wanted| wanted.name.clone()).collect();
        for (grows, names) in [(false, &surplus), (true, &made)] {
            if names.is_empty() {
                continue;
            }
            let (done, reason, does, cannot) = if grows {
                (self.maker.grow(&provider, &missing).await, "POOL_GROW_FAILED", "is begun", "cannot be made")
            } else {
                (self.maker.shrink(&provider, &surplus).await, "POOL_SHRINK_FAILED", "ends", "cannot be ended")
            };
            // Without an answer none of it is done, as far as is known.
            let refused = done
                .unwrap_or_else(|why| names.iter().map(|name| (name.clone(), why.clone())).collect::<BTreeMap<_, _>>());
            for name in names.iter().filter(|name| !refused.contains_key(*name)) {
                tracing::info!(provider = object.name(), instance = name, "an instance {does}");
            }
            for (name, why) in refused {
                failed.insert(of(&name), self.clock.now());
                self.tell(object, reason, &format!("instance {name} {cannot}: {why}"), now).await;
            }
        }
        let listed = status.instances.iter().map(|instance| instance.name.clone());
        self.maker.tidy(&provider, &listed.collect()).await;
    }

    /// Raises an event about a provider.
    async fn tell(&self, object: &Object, reason: &'static str, message: &str, now: Timestamp) {
        self.figures.refused(object.name(), reason);
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
        let telling =
            async { self.client.objects().commit(CommitRequest { changes, ..CommitRequest::default() }).await };
        // That it was told already is no error worth a word; nor is it one to wait for.
        let _ = tokio::time::timeout(PATIENCE, telling).await;
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

/// Providers that are there, and those that were: of these nothing is wanted any more.
fn providers(view: &View, provider: &Provider, directory: &Path) -> Vec<Object> {
    let all = view.in_cluster(Kind::CapacityProvider, &provider.cluster);
    let named = |name: &str| provider.name.is_empty() || name == provider.name;
    let mut found: Vec<Object> =
        all.filter(|object| named(object.name())).map(|object| Object::clone(object)).collect();
    let served = fs::read_dir(directory.join("served").join(&provider.cluster)).into_iter().flatten().flatten();
    for name in served.map(|entry| entry.file_name().to_string_lossy().into_owned()) {
        if named(&name) && !found.iter().any(|object| object.name() == name) {
            found.push(Object::new(&provider.cluster, &name, CapacityProvider::default()));
        }
    }
    found
}

/// What was served is looked after when its provider is gone.
fn remember(object: &Object, directory: &Path) -> bool {
    let path = directory.join("served").join(object.cluster());
    let written = fs::create_dir_all(&path).and_then(|()| fs::write(path.join(object.name()), ""));
    if let Err(error) = &written {
        tracing::error!(provider = object.name(), %error, "it cannot be remembered that this provider is served: nothing is made");
    }
    written.is_ok()
}

/// What is to be made, and what ended.
fn decide(status: &CapacityProviderStatus, there: &BTreeSet<String>) -> (Vec<Wanted>, Vec<String>) {
    let all = status.instances.iter().cloned();
    let stays: Vec<PoolInstance> = all.filter(|instance| instance.state() != State::Terminating).collect();
    let surplus = there.iter().filter(|name| stays.iter().all(|instance| instance.name != **name)).cloned().collect();
    // One that goes is not made again for that.
    let missing =
        stays.into_iter().filter(|instance| instance.state() != State::Draining && !there.contains(&instance.name));
    let wanted = |instance: PoolInstance| Wanted {
        name: instance.name,
        availability_zone: instance.availability_zone,
        template: instance.template.unwrap_or_default(),
    };
    (missing.map(wanted).collect(), surplus)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            instance("lost while it leaves", State::Draining),
            instance("over", State::Terminating),
            instance("ended", State::Terminating),
        ];
        let status = CapacityProviderStatus { instances, ..CapacityProviderStatus::default() };
        let there = ["there", "leaving", "over", "unknown"].map(str::to_owned).into();
        let (missing, surplus) = decide(&status, &there);
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
