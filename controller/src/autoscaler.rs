//! The autoscaler: keyed by scalable target, and by alarms that watch a metric.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use steady_core::metric::{Metric, PERIOD};
use steady_core::v1::{MetricDatum, Object, PrometheusQuery, PutMetricDataRequest};
use steady_core::{Clock, Key, Kind, Plan, SmolStr, Timestamp, View, alarm, scaling};
use steady_plan::autoscaler::{Silent, plan, queries};
use steady_runtime::{Client, Controller};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::prometheus;

/// Queries that are asked at once.
const AT_ONCE: usize = 16;
/// How long the API server may take to hear what was answered.
const PATIENCE: Duration = Duration::from_secs(5);
/// Periods after which what was asked is forgotten.
const FORGOTTEN: i64 = 360;

/// A metric of a Prometheus.
#[derive(Debug, Default)]
struct Query {
    /// In which it was asked for last.
    period: i64,
    /// The answer has not come yet.
    is_open: bool,
    /// Why there was no answer.
    why: Option<String>,
}

/// By cluster and metric.
type Asked = BTreeMap<(SmolStr, Metric), Query>;

/// How many tasks services have.
pub(crate) struct Autoscaler {
    client: Client,
    asked: Arc<Mutex<Asked>>,
    asking: Arc<Semaphore>,
}

impl Autoscaler {
    pub(crate) fn new(client: Client) -> Self {
        Autoscaler { client, asked: Arc::default(), asking: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Asks those of these queries that were not asked in this period; nobody waits for the answers, which come as metrics.
    fn ask(&self, cluster: &str, queries: Vec<PrometheusQuery>, period: i64) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.retain(|_, known| known.is_open || (period - known.period).abs() < FORGOTTEN);
        for query in queries {
            let metric = Metric::of_prometheus(&query);
            let key = (SmolStr::new(cluster), metric.clone());
            let entry = asked.entry(key.clone()).or_insert(Query { period: period - 1, ..Query::default() });
            if entry.is_open || entry.period == period {
                continue;
            }
            (entry.period, entry.is_open) = (period, true);
            let began = Instant::now();
            let (client, asking, known) = (self.client.clone(), Arc::clone(&self.asking), Arc::clone(&self.asked));
            tokio::spawn(async move {
                let turn = asking.acquire().await;
                // Whose turn comes too late says nothing of its period.
                let late = began.elapsed() > Duration::from_secs(PERIOD.unsigned_abs() / 2);
                let failed = match turn {
                    Ok(_turn) if !late => told(&client, &key.0, &metric, &query, period).await.err(),
                    _ => Some(format!("{} was not asked: too many others do not answer", query.address)),
                };
                let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(entry) = known.get_mut(&key) {
                    (entry.is_open, entry.why) = (false, failed);
                }
            });
        }
    }

    fn silent(&self, cluster: &str) -> Silent {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let own = asked.iter().filter(|((of, _), _)| of == cluster);
        own.filter_map(|((_, metric), known)| Some((metric.clone(), known.why.clone()?))).collect()
    }
}

/// Asks a Prometheus, and tells the API server what it said.
async fn told(
    client: &Client,
    cluster: &str,
    metric: &Metric,
    query: &PrometheusQuery,
    period: i64,
) -> Result<(), String> {
    let value = prometheus::ask(query).await?;
    let datum = MetricDatum {
        metric_name: metric.name.clone(),
        dimensions: metric.dimensions(),
        value: Some(value),
        // Of the period that was asked for, whoever's clock is a little ahead.
        timestamp: Some(Timestamp((period * PERIOD + PERIOD / 2) * 1000).into()),
        ..MetricDatum::default()
    };
    let (cluster, namespace) = (cluster.to_owned(), metric.namespace.clone());
    let request = PutMetricDataRequest { cluster, namespace, metric_data: vec![datum] };
    let (mut metrics, place) = (client.metrics(), client.place());
    if let Ok(answer) = tokio::time::timeout(PATIENCE, metrics.put_metric_data(request)).await {
        answer.map(|_| ()).map_err(|status| status.message().to_owned())
    } else {
        client.rotate(place);
        Err("the API server does not answer".to_owned())
    }
}

/// What is decided on a metric: scalable targets, and alarms.
fn deciding(view: &View, cluster: &str, metric: &Metric) -> Vec<Key> {
    let wants = |object: &&Arc<Object>| scaling::wanted(view, object).contains(metric);
    let mut keys: BTreeSet<Key> = BTreeSet::new();
    if let Some(service) = metric.service() {
        // Policies that it is for are the service's own.
        let target = Key::new(Kind::ScalableTarget, cluster, service);
        keys.extend(view.get(&target).is_some().then_some(target));
    } else {
        let policies = view.in_cluster(Kind::ScalingPolicy, cluster).filter(wants);
        keys.extend(policies.filter_map(|object| scaling::target_of(object.as_scaling_policy()?.spec.as_ref()?)));
    }
    let by_user = |object: &&Arc<Object>| object.meta().owner.is_none();
    let alarms = view.in_cluster(Kind::Alarm, cluster).filter(by_user).filter(wants);
    keys.extend(alarms.flat_map(|object| of_alarm(view, object)));
    keys.into_iter().collect()
}

/// An alarm that watches something, and the targets of policies that it triggers, or that it belongs to.
fn of_alarm(view: &View, object: &Object) -> Vec<Key> {
    let Some(spec) = object.as_alarm().and_then(|alarm| alarm.spec.as_ref()) else { return vec![] };
    let owner = object.meta().owner.as_ref().filter(|owner| owner.kind() == Kind::ScalingPolicy);
    let policies = spec.alarm_actions.iter().map(String::as_str).chain(owner.map(|owner| owner.name.as_str()));
    let target = |name: &str| {
        let policy = view.get(&Key::new(Kind::ScalingPolicy, object.cluster(), name))?;
        scaling::target_of(policy.as_scaling_policy()?.spec.as_ref()?)
    };
    let own = (owner.is_none() && alarm::metric(spec).is_some()).then(|| Key::of(object));
    policies.filter_map(target).chain(own).collect()
}

impl Controller for Autoscaler {
    const NAME: &'static str = "autoscaler";
    // Each change compares the service, target, policy or alarm that it is about.
    const SEQUENCED: bool = false;

    fn watches() -> &'static [Kind] {
        &[
            Kind::Service,
            Kind::Deployment,
            Kind::Task,
            Kind::Alarm,
            Kind::ScalableTarget,
            Kind::ScalingPolicy,
            Kind::MetricData,
        ]
    }

    fn keys(&self, changed: &Object, view: &View) -> Vec<Key> {
        let cluster = changed.cluster();
        match changed.kind() {
            Kind::ScalableTarget => vec![Key::of(changed)],
            Kind::ScalingPolicy => {
                let spec = changed.as_scaling_policy().and_then(|policy| policy.spec.as_ref());
                spec.and_then(scaling::target_of).into_iter().collect()
            }
            Kind::Service | Kind::Deployment => {
                let target = crate::service_of(changed).map(|key| Key::new(Kind::ScalableTarget, cluster, &key.name));
                target.filter(|key| view.get(key).is_some()).into_iter().collect()
            }
            Kind::Alarm => of_alarm(view, changed),
            Kind::MetricData => {
                let spec = changed.as_metric_data().and_then(|data| data.spec.as_ref());
                spec.map_or_else(Vec::new, |spec| deciding(view, cluster, &Metric::from(spec)))
            }
            // How many targets are healthy is read when it is needed.
            _ => vec![],
        }
    }

    fn act<'a>(&'a self, view: &'a View, key: &'a Key, clock: &'a dyn Clock) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            self.ask(&key.cluster, queries(view, key), clock.now().0.div_euclid(PERIOD * 1000));
            self.plan(view, key, clock.now())
        })
    }

    fn plan(&self, view: &View, key: &Key, now: Timestamp) -> Plan {
        plan(view, key, now, &self.silent(&key.cluster))
    }
}
