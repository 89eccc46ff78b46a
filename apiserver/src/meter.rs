//! What is measured: agents, load balancers and people tell it, and at the end of each period what is asked for is published.
//!
//! It is kept in memory alone, for half an hour. What no alarm and no policy is decided on is not published: a cluster without auto
//! scaling writes nothing. An API server knows of the agents and load balancers that are connected to it; how many there should be it
//! knows from its cache, and tells that too: whoever reads what all API servers publish can tell what is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use steady_core::metric::{
    CPU_RESERVATION, CPU_UTILIZATION, MEMORY_RESERVATION, MEMORY_UTILIZATION, Metric, PERIOD, Point, Window,
};
use steady_core::v1::target_state::Value as Target;
use steady_core::v1::{InstanceUsage, MetricDataSpec, Object, TaskUsage};
use steady_core::{Key, Kind, SmolStr, Timestamp, View, scaling, task, traffic};
use tokio::task::JoinHandle;

use crate::registry::Registry;

/// Milliseconds of a period.
const LENGTH: i64 = PERIOD * 1000;
/// How long after the end of a period it is summed up: whoever tells of it as it ends is heard.
const LATE: Duration = Duration::from_millis(200);
/// What an agent said last is good for a period and a half.
const FRESH: Duration = Duration::from_secs(15);
/// Metrics of a cluster's users that are kept without anybody asking for them.
const MOST: usize = 10_000;

#[derive(Debug, Default)]
struct State {
    /// By instance: when it was told, and what its tasks take.
    usage: BTreeMap<Key, (Timestamp, Vec<TaskUsage>)>,
    /// By cluster and load balancer: requests of this period for each target group, and of how many seconds they are.
    requests: BTreeMap<(SmolStr, String), (f64, BTreeMap<String, f64>)>,
    windows: BTreeMap<(SmolStr, Metric), Window>,
    /// Those that something is decided on.
    wanted: BTreeSet<(SmolStr, Metric)>,
}

/// What is known. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meter(Arc<Mutex<State>>);

impl Meter {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an instance's tasks take.
    pub(crate) fn sampled(&self, instance: &Key, tasks: Vec<TaskUsage>, now: Timestamp) {
        self.lock().usage.insert(instance.clone(), (now, tasks));
    }

    /// How many requests a load balancer led to target groups in so many seconds.
    pub(crate) fn counted(&self, cluster: &str, balancer: &str, seconds: f64, requests: BTreeMap<String, u64>) {
        let mut state = self.lock();
        let (total, groups) = state.requests.entry((cluster.into(), balancer.to_owned())).or_default();
        *total += seconds;
        for (group, count) in requests {
            *groups.entry(group).or_default() += count as f64;
        }
    }

    /// Values of metrics of somebody's own, all of them or none. False: there are too many metrics that nothing is decided on.
    pub(crate) fn put(&self, cluster: &str, values: Vec<(Metric, Timestamp, Point)>) -> bool {
        let mut state = self.lock();
        let values: Vec<_> =
            values.into_iter().map(|(metric, at, point)| ((SmolStr::new(cluster), metric), at, point)).collect();
        let new = |key: &(SmolStr, Metric)| !state.windows.contains_key(key) && !state.wanted.contains(key);
        let new = values.iter().filter(|(key, ..)| new(key)).count();
        let idle = state.windows.len().saturating_sub(state.wanted.len());
        if new > 0 && idle + new > MOST {
            return false;
        }
        for (key, at, point) in values {
            state.windows.entry(key).or_default().add(at.0.div_euclid(LENGTH), &point);
        }
        true
    }

    /// An instance's session here is over: what its tasks take is known elsewhere from now on.
    pub(crate) fn gone(&self, instance: &Key) {
        self.lock().usage.remove(instance);
    }

    /// What the tasks of a cluster take, as far as it is known.
    pub(crate) fn usage(&self, cluster: &str, now: Timestamp) -> Vec<InstanceUsage> {
        let state = self.lock();
        let fresh = state.usage.iter().filter(|(key, (at, _))| key.cluster == cluster && now.since(*at) <= FRESH);
        let usage = fresh
            .map(|(key, (_, tasks))| InstanceUsage { container_instance: key.name.to_string(), tasks: tasks.clone() });
        usage.collect()
    }

    /// Sums up each period as it ends, for as long as the server lives.
    pub(crate) async fn run(self, registry: Registry) {
        let mut telling: Option<JoinHandle<()>> = None;
        loop {
            let now = registry.now().0;
            let left = Duration::from_millis(u64::try_from(LENGTH - now.rem_euclid(LENGTH)).unwrap_or(0));
            tokio::time::sleep(left + LATE).await;
            let view = registry.cache().view();
            let known = self.close(&view, registry.now(), registry.server());
            // A store that is slow is told with the next period, which tells of this one, too.
            if telling.as_ref().is_some_and(|telling| !telling.is_finished()) {
                continue;
            }
            let registry = registry.clone();
            telling = Some(tokio::spawn(async move {
                if let Err(error) = registry.publish(known).await {
                    tracing::warn!(%error, "what was measured cannot be told; it is lost if that lasts for three minutes");
                }
            }));
        }
    }

    /// Ends the period before the one that goes on: what there is to publish.
    fn close(&self, view: &View, now: Timestamp, server: i64) -> Vec<(SmolStr, String, MetricDataSpec)> {
        let index = now.0.div_euclid(LENGTH);
        let mut state = self.lock();
        state.usage.retain(|_, (at, _)| now.since(*at) <= FRESH);
        let state = &mut *state;
        let wanted = wanted(view);
        let requests = std::mem::take(&mut state.requests);
        for (cluster, metric) in &wanted {
            let Some(point) = measure(view, cluster, metric, &state.usage, &requests) else { continue };
            state.windows.entry((cluster.clone(), metric.clone())).or_default().set(index - 1, point);
        }
        state.windows.retain(|(_, metric), window| {
            window.roll(index, !metric.is_fine());
            !window.is_empty()
        });
        state.wanted = wanted;
        let known = state.windows.iter().filter(|(key, window)| state.wanted.contains(*key) && window.has_samples());
        let spec = |(cluster, metric): &(SmolStr, Metric), window: &Window| {
            let spec = MetricDataSpec {
                namespace: metric.namespace.clone(),
                metric_name: metric.name.clone(),
                dimensions: metric.dimensions(),
                server,
                series: window.to_series(index),
            };
            (cluster.clone(), metric.object_name(server), spec)
        };
        known.map(|(key, window)| spec(key, window)).collect()
    }
}

/// Metrics that something is decided on.
fn wanted(view: &View) -> BTreeSet<(SmolStr, Metric)> {
    let deciding = view.of_kind(Kind::ScalingPolicy).chain(view.of_kind(Kind::Alarm));
    let of = |object: &Arc<Object>| {
        let cluster = SmolStr::new(object.cluster());
        scaling::wanted(view, object).into_iter().map(move |metric| (cluster.clone(), metric)).collect::<Vec<_>>()
    };
    deciding.flat_map(of).collect()
}

type Usage = BTreeMap<Key, (Timestamp, Vec<TaskUsage>)>;
type Requests = BTreeMap<(SmolStr, String), (f64, BTreeMap<String, f64>)>;

/// What one of Steady's own metrics was in a period.
fn measure(view: &View, cluster: &str, metric: &Metric, usage: &Usage, requests: &Requests) -> Option<Point> {
    if let Some(group) = metric.target_group() {
        return Some(of_group(view, cluster, group, requests));
    }
    if metric.namespace != steady_core::metric::ECS {
        return None;
    }
    match metric.service() {
        Some(service) => Some(of_service(view, cluster, service, &metric.name, usage)),
        None => Some(of_cluster(view, cluster, &metric.name, usage)),
    }
}

/// Requests that load balancers led to a target group.
fn of_group(view: &View, cluster: &str, group: &str, requests: &Requests) -> Point {
    let places = traffic::groups_of(view, cluster, group);
    let leads = |name: &&String| name.split_once('.').is_some_and(|(place, _)| places.contains(place));
    let there = traffic::load_balancers(view, cluster);
    let mut point = Point { expected: there.iter().filter(leads).count() as f64, ..Point::default() };
    for name in there.iter().filter(leads) {
        let Some((seconds, counted)) = requests.get(&(SmolStr::new(cluster), name.clone())) else { continue };
        // Reports are not told at the edges of periods.
        let count = counted.get(group).copied().unwrap_or(0.0) * PERIOD as f64 / seconds.max(0.1);
        point.add(&Point::of(count));
    }
    point.targets = healthy_targets(view, cluster, group) as f64;
    point
}

/// How many targets of a group get requests.
fn healthy_targets(view: &View, cluster: &str, group: &str) -> usize {
    let tasks = view.in_cluster(Kind::Task, cluster).filter_map(|object| task::of(object));
    let healthy = |found: &task::View<'_>| {
        let targets = found.status.targets.iter().filter(|target| target.target_group == group);
        targets.filter(|target| target.state() == Target::Healthy).count()
    };
    tasks.map(|found| healthy(&found)).sum()
}

/// What the tasks of a service take of what they reserve, each of them alike.
fn of_service(view: &View, cluster: &str, service: &str, name: &str, usage: &Usage) -> Point {
    let mut point = Point::default();
    for found in view.of_service(Kind::Task, cluster, service).filter_map(|task| task::of(task)) {
        let Some(reserved) = reserved(&found, name).filter(|_| found.is_running()) else { continue };
        point.expected += 1.0;
        let instance = Key::new(Kind::ContainerInstance, cluster, &found.spec.container_instance);
        let told =
            usage.get(&instance).and_then(|(_, tasks)| tasks.iter().find(|told| told.task == found.object.name()));
        if let Some(told) = told {
            point.add(&Point::of(100.0 * taken(told, name) / reserved));
        }
    }
    point
}

/// What is taken, or reserved, of what the instances of a cluster have.
fn of_cluster(view: &View, cluster: &str, name: &str, usage: &Usage) -> Point {
    let mut point = Point::default();
    for object in view.in_cluster(Kind::ContainerInstance, cluster) {
        let Some(instance) = object.as_container_instance() else { continue };
        if !instance.status.as_ref().is_some_and(|status| status.agent_connected) {
            continue;
        }
        let registered = instance.spec.as_ref().and_then(|spec| spec.registered_resources.as_ref());
        let is_cpu = name == CPU_UTILIZATION || name == CPU_RESERVATION;
        let size = registered.map_or(0, |r| if is_cpu { r.cpu } else { r.memory });
        let size = f64::from(size);
        point.expected += size;
        let Some((_, tasks)) = usage.get(&Key::of(object)) else { continue };
        let part: f64 = if name == CPU_RESERVATION || name == MEMORY_RESERVATION {
            let on = view.on_instance(cluster, object.name()).filter_map(|task| task::of(task));
            on.filter_map(|found| reserved(&found, name)).sum()
        } else {
            tasks.iter().map(|told| taken(told, name)).sum()
        };
        let percent = 100.0 * part / size.max(1.0);
        let one = Point { sum: 100.0 * part, samples: size, ..Point::of(percent) };
        point.add(&one);
    }
    point
}

/// CPU units or MiB that a task takes.
fn taken(told: &TaskUsage, name: &str) -> f64 {
    if name == MEMORY_UTILIZATION { told.memory_bytes as f64 / f64::from(1 << 20) } else { told.cpu }
}

/// CPU units or MiB that a task reserves; `None`: it reserves none.
fn reserved(found: &task::View<'_>, name: &str) -> Option<f64> {
    let demand = found.spec.demand.as_ref()?;
    let is_memory = name == MEMORY_UTILIZATION || name == MEMORY_RESERVATION;
    let reserved = if is_memory { demand.memory } else { demand.cpu };
    (reserved > 0).then(|| f64::from(reserved))
}
