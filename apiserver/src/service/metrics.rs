//! `steady.v1.Metrics`.

use steady_core::metric::{Metric, Point};
use steady_core::v1::metrics_server::Metrics;
use steady_core::v1::{
    ListUsageRequest, ListUsageResponse, MetricDatum, PutMetricDataRequest, PutMetricDataResponse,
    ReportRequestCountRequest, ReportRequestCountResponse, StatisticSet,
};
use steady_core::validate::{self, Fault};
use steady_core::{Key, Kind, Timestamp};
use tonic::{Request, Response, Status};

use super::status;
use crate::meter::Meter;
use crate::registry::{Registry, RegistryError, cluster};

/// Most values of one request (`CloudWatch`).
const MAX_VALUES: usize = 1000;
/// Milliseconds that a value may be old: what is older was decided on. And how much a clock may be ahead.
const OLDEST: i64 = 120_000;
const AHEAD: i64 = 10_000;

/// Serves what is measured.
pub(crate) struct MetricsService {
    pub(crate) registry: Registry,
    pub(crate) meter: Meter,
}

#[tonic::async_trait]
impl Metrics for MetricsService {
    async fn put_metric_data(
        &self,
        request: Request<PutMetricDataRequest>,
    ) -> Result<Response<PutMetricDataResponse>, Status> {
        let request = request.into_inner();
        let (cluster, now) = (cluster(&request.cluster), self.registry.now());
        let view = self.registry.cache().view();
        if view.get(&Key::new(Kind::Cluster, "", cluster)).is_none() {
            return Err(Status::not_found(format!("there is no cluster `{cluster}`; apply it first")));
        }
        let mut faults = Vec::new();
        if !(1..=MAX_VALUES).contains(&request.metric_data.len()) {
            let message = format!("{} values; expected 1 to {MAX_VALUES}", request.metric_data.len());
            faults.push((0, Fault { path: "metricData".into(), message }));
        }
        let mut points = Vec::new();
        for (i, datum) in request.metric_data.iter().enumerate() {
            match read(&request.namespace, datum, now, &format!("metricData[{i}]")) {
                Ok(read) => points.push(read),
                Err(found) => faults.extend(found.into_iter().map(|fault| (0, fault))),
            }
        }
        // All of them, or none.
        if !faults.is_empty() {
            return Err(status::of(RegistryError::Invalid(faults)));
        }
        if !self.meter.put(cluster, points) {
            let message =
                "this API server keeps as many metrics as it can that no alarm and no policy names; put fewer";
            return Err(Status::resource_exhausted(message));
        }
        Ok(Response::new(PutMetricDataResponse {}))
    }

    async fn report_request_count(
        &self,
        request: Request<ReportRequestCountRequest>,
    ) -> Result<Response<ReportRequestCountResponse>, Status> {
        let request = request.into_inner();
        if request.seconds.is_nan() || request.seconds <= 0.0 {
            return Err(Status::invalid_argument(format!(
                "seconds: {} is no time since the last report",
                request.seconds
            )));
        }
        self.meter.counted(cluster(&request.cluster), &request.load_balancer, request.seconds, request.requests);
        Ok(Response::new(ReportRequestCountResponse {}))
    }

    async fn list_usage(&self, request: Request<ListUsageRequest>) -> Result<Response<ListUsageResponse>, Status> {
        let instances = self.meter.usage(cluster(&request.into_inner().cluster), self.registry.now());
        Ok(Response::new(ListUsageResponse { instances }))
    }
}

fn is_set(set: &StatisticSet) -> bool {
    let numbers = [set.sample_count, set.sum, set.minimum, set.maximum];
    numbers.into_iter().all(f64::is_finite) && set.sample_count > 0.0 && set.minimum <= set.maximum
}

/// A value, if it is one.
fn read(
    namespace: &str,
    datum: &MetricDatum,
    now: Timestamp,
    path: &str,
) -> Result<(Metric, Timestamp, Point), Vec<Fault>> {
    let mut faults = validate::metric(namespace, &datum.metric_name, &datum.dimensions, path);
    let mut wrong = |field: &str, message: String| faults.push(Fault { path: format!("{path}.{field}"), message });
    let metric = Metric::new(namespace, &datum.metric_name, &datum.dimensions);
    if metric.is_reserved() {
        wrong("namespace", format!("`{namespace}` is Steady's own; expected a name that does not begin with AWS/"));
    }
    let at = datum.timestamp.as_ref().map_or(now, Timestamp::from);
    if at.0 < now.0 - OLDEST || at.0 > now.0 + AHEAD {
        wrong("timestamp", format!("{at} is too far from now, {now}; expected the last two minutes"));
    }
    let point = match (datum.value, datum.statistic_values) {
        (Some(value), None) if value.is_finite() => Point::of(value),
        (None, Some(set)) if is_set(&set) => {
            let (samples, minimum, maximum) = (set.sample_count, set.minimum, set.maximum);
            Point { sum: set.sum, samples, minimum, maximum, ..Point::default() }
        }
        _ => {
            let message = "expected a number, or statisticValues with a sampleCount above 0 and a minimum that is no more than \
                           the maximum, one of both";
            wrong("value", message.into());
            Point::default()
        }
    };
    if faults.is_empty() { Ok((metric, at, point)) } else { Err(faults) }
}
