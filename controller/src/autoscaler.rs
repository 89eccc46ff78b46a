//! The autoscaler: keyed by scalable target, and by alarms that watch a metric.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::{BoxFuture, join_all};
use steady_core::metric::{Metric, PERIOD};
use steady_core::v1::{MetricDatum, Object, PrometheusQuery, PutMetricDataRequest};
use steady_core::{Clock, Key, Kind, Plan, Timestamp, View, alarm, scaling};
use steady_plan::autoscaler::{Silent, plan, queries};
use steady_runtime::{Client, Controller};

use crate::prometheus;

/// How many tasks services have.
pub(crate) struct Autoscaler {
    client: Client,
    /// By metric of a Prometheus: the period in which it was asked last, and why it did not answer.
    asked: Mutex<BTreeMap<Metric, (i64, Option<String>)>>,
}

impl Autoscaler {
    pub(crate) fn new(client: Client) -> Self {
        Autoscaler { client, asked: Mutex::default() }
    }

    /// Those of these queries that were not asked in this period.
    fn due(&self, queries: Vec<PrometheusQuery>, period: i64) -> Vec<(Metric, PrometheusQuery)> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.retain(|_, (last, _)| period - *last < 360);
        let with_metric = queries.into_iter().map(|query| (Metric::of_prometheus(&query), query));
        with_metric
            .filter(|(metric, _)| {
                let entry = asked.entry(metric.clone()).or_insert((i64::MIN / 2, None));
                let is_due = entry.0 < period;
                entry.0 = period;
                is_due
            })
            .collect()
    }

    /// Asks a Prometheus, and tells the API server what it said.
    async fn ask(&self, cluster: &str, metric: &Metric, query: &PrometheusQuery) {
        let asking = async {
            let value = prometheus::ask(query).await?;
            let datum = MetricDatum {
                metric_name: metric.name.clone(),
                dimensions: metric.dimensions(),
                value: Some(value),
                ..MetricDatum::default()
            };
            let (cluster, namespace) = (cluster.to_owned(), metric.namespace.clone());
            let request = PutMetricDataRequest { cluster, namespace, metric_data: vec![datum] };
            let mut metrics = self.client.metrics();
            metrics.put_metric_data(request).await.map(|_| ()).map_err(|status| status.message().to_owned())
        };
        let failed = asking.await.err();
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = asked.get_mut(metric) {
            entry.1 = failed;
        }
    }

    fn silent(&self) -> Silent {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().filter_map(|(metric, (_, why))| Some((metric.clone(), why.clone()?))).collect()
    }
}

/// What is decided on a metric: scalable targets, and alarms.
fn deciding(view: &View, cluster: &str, metric: &Metric) -> Vec<Key> {
    let wants = |object: &&Arc<Object>| scaling::wanted(view, object).contains(metric);
    let policies = view.in_cluster(Kind::ScalingPolicy, cluster).filter(wants);
    let targets = policies.filter_map(|object| scaling::target_of(object.as_scaling_policy()?.spec.as_ref()?));
    let alarms = view.in_cluster(Kind::Alarm, cluster).filter(wants).flat_map(|object| of_alarm(view, object));
    targets.chain(alarms).collect::<BTreeSet<Key>>().into_iter().collect()
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
            let due = self.due(queries(view, key), clock.now().0.div_euclid(PERIOD * 1000));
            join_all(due.iter().map(|(metric, query)| self.ask(&key.cluster, metric, query))).await;
            plan(view, key, clock.now(), &self.silent())
        })
    }

    fn plan(&self, view: &View, key: &Key, now: Timestamp) -> Plan {
        plan(view, key, now, &self.silent())
    }
}
