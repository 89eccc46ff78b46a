//! What is measured: how a metric is named, and what is known of it from all API servers together.
//!
//! Time is cut into periods of ten seconds that are the same for everybody. Each API server tells what it knows of a period as sums that
//! add up ([`Point`]). What is missing is told apart from what is nothing: whoever decides on a metric must know how much of it is known.

use std::collections::BTreeMap;

use steady_proto::Kind;
use steady_proto::v1::statistic::Value as Statistic;
use steady_proto::v1::{Dimension, MetricDataSpec, PrometheusQuery, Series};

use crate::{Key, View, derived_id, traffic};

/// Seconds of the shortest period.
pub const PERIOD: i64 = 10;
/// How many of them are kept: three minutes.
pub const FINE: usize = 18;
/// Seconds of the longer period.
pub const MINUTE: i64 = 60;
/// How many of them are kept.
pub const MINUTES: usize = 30;

/// Namespace of what Steady measures of services and clusters.
pub const ECS: &str = "AWS/ECS";
/// Namespace of what load balancers measure.
pub const ELB: &str = "AWS/ApplicationELB";
/// Namespace of what is asked of a Prometheus.
const PROMETHEUS: &str = "Prometheus";

/// Percent of the CPU that tasks reserve; of a cluster, that its instances have.
pub const CPU_UTILIZATION: &str = "CPUUtilization";
/// The same of memory.
pub const MEMORY_UTILIZATION: &str = "MemoryUtilization";
/// Percent of the CPU of a cluster's instances that tasks reserve.
pub const CPU_RESERVATION: &str = "CPUReservation";
/// The same of memory.
pub const MEMORY_RESERVATION: &str = "MemoryReservation";
/// Requests of a target group.
pub const REQUEST_COUNT: &str = "RequestCount";
/// The same for each of its healthy targets.
pub const REQUEST_COUNT_PER_TARGET: &str = "RequestCountPerTarget";

const CLUSTER_NAME: &str = "ClusterName";
const SERVICE_NAME: &str = "ServiceName";
const TARGET_GROUP: &str = "TargetGroup";

/// A metric by its names (`CloudWatch`: namespace, name and dimensions are its identity).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Metric {
    /// Whose it is.
    pub namespace: String,
    /// What it is.
    pub name: String,
    /// What it is of.
    pub dimensions: BTreeMap<String, String>,
}

impl Metric {
    /// The metric of these names.
    pub fn new(namespace: &str, name: &str, dimensions: &[Dimension]) -> Self {
        let dimensions = dimensions.iter().map(|d| (d.name.clone(), d.value.clone())).collect();
        Metric { namespace: namespace.to_owned(), name: name.to_owned(), dimensions }
    }

    fn of(namespace: &str, name: &str, dimensions: &[(&str, &str)]) -> Self {
        let dimensions = dimensions.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Metric { namespace: namespace.to_owned(), name: name.to_owned(), dimensions }
    }

    /// What a service's tasks take, in percent of what they reserve.
    pub fn of_service(name: &str, cluster: &str, service: &str) -> Self {
        Self::of(ECS, name, &[(CLUSTER_NAME, cluster), (SERVICE_NAME, service)])
    }

    /// What is taken or reserved of a cluster's instances, in percent.
    pub fn of_cluster(name: &str, cluster: &str) -> Self {
        Self::of(ECS, name, &[(CLUSTER_NAME, cluster)])
    }

    /// Requests of a target group, by its name.
    pub fn requests(group: &str) -> Self {
        Self::of(ELB, REQUEST_COUNT, &[(TARGET_GROUP, group)])
    }

    /// What a Prometheus says to a query.
    pub fn of_prometheus(query: &PrometheusQuery) -> Self {
        Self::of(PROMETHEUS, "query", &[("Address", &query.address), ("Query", &query.query)])
    }

    /// The service that it is of, if it is one of Steady's own.
    pub fn service(&self) -> Option<&str> {
        if self.namespace == ECS { self.dimensions.get(SERVICE_NAME).map(String::as_str) } else { None }
    }

    /// The target group that its requests are of.
    pub fn target_group(&self) -> Option<&str> {
        let group = self.dimensions.get(TARGET_GROUP).filter(|_| self.namespace == ELB)?;
        // CloudWatch: `targetgroup/NAME/ID`.
        Some(
            group
                .strip_prefix("targetgroup/")
                .map_or_else(|| traffic::name_of(group), |rest| rest.split('/').next().unwrap_or(rest)),
        )
    }

    /// The metric as it is kept: per target nothing is, that is worked out.
    #[must_use]
    pub fn kept(&self) -> Self {
        match self.target_group() {
            Some(group) if self.name == REQUEST_COUNT_PER_TARGET || self.name == REQUEST_COUNT => Self::requests(group),
            _ => self.clone(),
        }
    }

    /// Whether values are percent of something: each is 0 to 100, as good as always.
    pub fn is_percent(&self) -> bool {
        self.namespace == ECS
    }

    /// Whether it is Steady's own, and nobody else's to tell.
    pub fn is_reserved(&self) -> bool {
        self.namespace.starts_with("AWS/")
    }

    /// Whether there should be a value in each of the shortest periods.
    pub fn is_fine(&self) -> bool {
        self.is_reserved()
    }

    /// The object that one API server keeps of it.
    pub fn object_name(&self, server: i64) -> String {
        format!("{}-{server:x}", self.id())
    }

    fn id(&self) -> String {
        let mut parts = vec![self.namespace.as_str(), &self.name];
        parts.extend(self.dimensions.iter().flat_map(|(name, value)| [name.as_str(), value]));
        derived_id(&parts)
    }

    /// Its dimensions, as a message has them.
    pub fn dimensions(&self) -> Vec<Dimension> {
        let dimension = |(name, value): (&String, &String)| Dimension { name: name.clone(), value: value.clone() };
        self.dimensions.iter().map(dimension).collect()
    }
}

impl From<&MetricDataSpec> for Metric {
    fn from(spec: &MetricDataSpec) -> Self {
        Metric::new(&spec.namespace, &spec.metric_name, &spec.dimensions)
    }
}

impl std::fmt::Display for Metric {
    /// `AWS/ECS CPUUtilization (ClusterName default, ServiceName web)`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.namespace, self.name)?;
        let of: Vec<String> = self.dimensions.iter().map(|(name, value)| format!("{name} {value}")).collect();
        if of.is_empty() { Ok(()) } else { write!(f, " ({})", of.join(", ")) }
    }
}

/// What is known of a period.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Point {
    /// All values together.
    pub sum: f64,
    /// How many they are.
    pub samples: f64,
    /// How many there should be.
    pub expected: f64,
    /// The smallest one.
    pub minimum: f64,
    /// The largest one.
    pub maximum: f64,
    /// Of requests: targets that they were led to, of each ten seconds together.
    pub targets: f64,
}

impl Point {
    /// A single value, of as many as there are.
    pub fn of(value: f64) -> Self {
        Point { sum: value, samples: 1.0, expected: 0.0, minimum: value, maximum: value, targets: 0.0 }
    }

    /// Whether nothing is known, not even what should be.
    pub fn is_empty(&self) -> bool {
        self.samples <= 0.0 && self.expected <= 0.0
    }

    /// The same period, as another API server knows it.
    pub fn join(&mut self, other: &Point) {
        let (expected, targets) = (self.expected.max(other.expected), self.targets.max(other.targets));
        self.add(other);
        (self.expected, self.targets) = (expected, targets);
    }

    /// What several API servers know, once all of it is joined: whoever went from one to another is in both, and counts once.
    fn joined(mut self) -> Self {
        if self.expected > 0.0 && self.samples > self.expected {
            self.sum *= self.expected / self.samples;
            self.samples = self.expected;
        }
        self
    }

    /// Another value, or another period.
    pub fn add(&mut self, other: &Point) {
        if other.samples > 0.0 {
            let first = self.samples <= 0.0;
            self.minimum = if first { other.minimum } else { self.minimum.min(other.minimum) };
            self.maximum = if first { other.maximum } else { self.maximum.max(other.maximum) };
        }
        self.sum += other.sum;
        self.samples += other.samples;
        self.expected += other.expected;
        self.targets += other.targets;
    }

    /// What a statistic of it is at least and at most: not the same when some of it is missing. `None`: it may be anything.
    pub fn bounds(&self, statistic: Statistic, is_percent: bool) -> (Option<f64>, Option<f64>) {
        let whole = self.samples + 1e-6 >= self.expected;
        let known = |value: f64| (self.samples > 0.0).then_some(value);
        match statistic {
            // Who is silent may do nothing, or be busy altogether.
            Statistic::Average | Statistic::Unspecified if is_percent => {
                let count = self.expected.max(self.samples);
                let missing = count - self.samples;
                (known(self.sum / count), known((self.sum + 100.0 * missing) / count))
            }
            Statistic::Average | Statistic::Unspecified => {
                let value = known(self.sum / self.samples).filter(|_| whole);
                (value, value)
            }
            Statistic::Sum => (known(self.sum), known(self.sum).filter(|_| whole)),
            Statistic::SampleCount => (known(self.samples), known(self.samples).filter(|_| whole)),
            Statistic::Minimum => (known(self.minimum).filter(|_| whole), known(self.minimum)),
            Statistic::Maximum => (known(self.maximum), known(self.maximum).filter(|_| whole)),
        }
    }
}

/// A row of periods, each by its number since 1970.
pub type Row = BTreeMap<i64, Point>;

/// A row as a message has it.
pub fn to_series(period: i64, row: &Row) -> Series {
    let mut series = Series { period_seconds: i32::try_from(period).unwrap_or(0), ..Series::default() };
    let (Some(first), Some(last)) = (row.keys().next(), row.keys().next_back()) else { return series };
    series.first = *first;
    for index in *first..=*last {
        let point = row.get(&index).copied().unwrap_or_default();
        series.sum.push(point.sum);
        series.sample_count.push(point.samples);
        series.expected.push(point.expected);
        series.minimum.push(point.minimum);
        series.maximum.push(point.maximum);
        series.targets.push(point.targets);
    }
    series
}

fn rows(series: &Series) -> impl Iterator<Item = (i64, Point)> {
    let at = |values: &[f64], place: usize| values.get(place).copied().unwrap_or(0.0);
    let points = series.sum.iter().enumerate().map(move |(place, sum)| {
        let point = Point {
            sum: *sum,
            samples: at(&series.sample_count, place),
            expected: at(&series.expected, place),
            minimum: at(&series.minimum, place),
            maximum: at(&series.maximum, place),
            targets: at(&series.targets, place),
        };
        (series.first + place as i64, point)
    });
    points.filter(|(_, point)| !point.is_empty())
}

/// The last half hour of a metric as one API server knows it, while it goes on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Window {
    fine: Row,
    minutes: Row,
}

impl Window {
    /// What was measured in a period of ten seconds, all of it.
    pub fn set(&mut self, index: i64, point: Point) {
        self.fine.insert(index, point);
    }

    /// One more value in a period of ten seconds.
    pub fn add(&mut self, index: i64, point: &Point) {
        self.fine.entry(index).or_default().add(point);
    }

    /// Makes minutes of what is there before the period `now`, and forgets what is too old. A minute is known when all of it is; of a
    /// metric that need not have a value in each period, when any of it is (`some`).
    pub fn roll(&mut self, now: i64, some: bool) {
        let parts = MINUTE / PERIOD;
        self.fine.retain(|index, _| *index >= now - FINE as i64);
        let first = self.fine.keys().next().map_or(now, |index| index.div_euclid(parts));
        for minute in first..now.div_euclid(parts) {
            let mut known = 0;
            let mut point = Point::default();
            for (_, part) in self.fine.range(minute * parts..(minute + 1) * parts) {
                known += 1;
                point.add(part);
            }
            // One whose beginning is forgotten was made before.
            if known == parts || (some && known > 0 && minute * parts >= now - FINE as i64) {
                self.minutes.insert(minute, point);
            }
        }
        let oldest = now.div_euclid(parts) - MINUTES as i64;
        self.minutes.retain(|minute, _| *minute >= oldest);
    }

    /// Whether nothing is known any more.
    pub fn is_empty(&self) -> bool {
        self.fine.is_empty() && self.minutes.is_empty()
    }

    /// Whether anything was measured: not only what should have been.
    pub fn has_samples(&self) -> bool {
        self.fine.values().chain(self.minutes.values()).any(|point| point.samples > 0.0)
    }

    /// As a message has it. What is of the period `now` goes on.
    pub fn to_series(&self, now: i64) -> Vec<Series> {
        let over: Row = self.fine.range(..now).map(|(index, point)| (*index, *point)).collect();
        [(PERIOD, &over), (MINUTE, &self.minutes)].map(|(period, row)| to_series(period, row)).into()
    }
}

/// Everything that is known of a metric.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Data {
    fine: Row,
    minutes: Row,
}

impl Data {
    /// What all API servers of a view know of a metric.
    pub fn of(view: &View, cluster: &str, metric: &Metric) -> Self {
        let id = metric.id();
        let from = Key::new(Kind::MetricData, cluster, &format!("{id}-"));
        let to = Key::new(Kind::MetricData, cluster, &format!("{id}."));
        let mut data = Data::default();
        for (_, object) in view.range(from..to) {
            let Some(spec) = object.as_metric_data().and_then(|data| data.spec.as_ref()) else { continue };
            for series in &spec.series {
                let row = if i64::from(series.period_seconds) == PERIOD { &mut data.fine } else { &mut data.minutes };
                for (index, point) in rows(series) {
                    row.entry(index).and_modify(|known| known.join(&point)).or_insert(point);
                }
            }
        }
        for point in data.fine.values_mut().chain(data.minutes.values_mut()) {
            *point = point.joined();
        }
        data
    }

    /// Of rows that are at hand: periods of ten seconds, and of sixty.
    pub fn from_rows(fine: Row, minutes: Row) -> Self {
        Data { fine, minutes }
    }

    /// One period, by its number; `period` is ten, twenty, thirty, or a multiple of sixty seconds.
    pub fn point(&self, period: i64, index: i64) -> Option<Point> {
        let (row, base) = if period < MINUTE { (&self.fine, PERIOD) } else { (&self.minutes, MINUTE) };
        let parts = (period / base).max(1);
        let mut whole: Option<Point> = None;
        for part in index * parts..(index + 1) * parts {
            // One that is not known makes all of it unknown: half a sum is no sum.
            whole.get_or_insert_default().add(row.get(&part)?);
        }
        whole
    }

    /// When the newest period ends, seconds since 1970.
    pub fn until(&self) -> Option<i64> {
        let fine = self.fine.keys().next_back().map(|index| (index + 1) * PERIOD);
        let minute = self.minutes.keys().next_back().map(|index| (index + 1) * MINUTE);
        fine.max(minute)
    }

    /// The newest period of ten seconds.
    pub fn newest(&self) -> Option<(i64, Point)> {
        self.fine.iter().next_back().map(|(index, point)| (*index, *point))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use steady_proto::v1::{MetricData, Object};

    fn point(sum: f64, samples: f64, expected: f64) -> Point {
        Point { sum, samples, expected, maximum: sum, ..Point::default() }
    }

    #[test]
    fn what_several_api_servers_know_is_one_metric() {
        let metric = Metric::of_service(CPU_UTILIZATION, "default", "web");
        let mut view = View::default();
        for (server, sum) in [(1, 100.0), (2, 60.0)] {
            let row = Row::from([(7, point(sum, 2.0, 4.0))]);
            let spec = MetricDataSpec {
                namespace: metric.namespace.clone(),
                metric_name: metric.name.clone(),
                dimensions: metric.dimensions(),
                server,
                series: vec![to_series(PERIOD, &row)],
            };
            let data = MetricData { spec: Some(spec) };
            view.put(Arc::new(Object::new("default", &metric.object_name(server), data)));
        }
        let data = Data::of(&view, "default", &metric);
        let found = data.point(PERIOD, 7).expect("a point");
        assert_eq!((found.sum, found.samples, found.expected), (160.0, 4.0, 4.0));
        assert_eq!(found.bounds(Statistic::Average, true), (Some(40.0), Some(40.0)));
        assert_eq!(Data::of(&view, "other", &metric), Data::default());
    }

    #[test]
    fn who_is_silent_may_do_nothing_or_be_busy() {
        let half = point(80.0, 1.0, 2.0);
        assert_eq!(half.bounds(Statistic::Average, true), (Some(40.0), Some(90.0)));
        assert_eq!(half.bounds(Statistic::Sum, false), (Some(80.0), None));
        assert_eq!(half.bounds(Statistic::Average, false), (None, None));
        assert_eq!(point(0.0, 0.0, 2.0).bounds(Statistic::Average, true), (None, None));
    }

    #[test]
    fn a_longer_period_is_known_when_all_of_it_is() {
        let fine: Row = [(6, point(1.0, 1.0, 1.0)), (7, point(2.0, 1.0, 1.0)), (9, point(4.0, 1.0, 1.0))].into();
        let data = Data::from_rows(fine, Row::new());
        assert_eq!(data.point(20, 3).map(|p| (p.sum, p.samples)), Some((3.0, 2.0)));
        assert_eq!(data.point(20, 4), None);
    }

    #[test]
    fn a_minute_is_made_of_all_its_periods_and_survives_them() {
        let mut window = Window::default();
        for index in 0..12 {
            window.set(index, point(1.0, 1.0, 1.0));
            window.roll(index + 1, false);
        }
        for index in 13..60 {
            window.set(index, point(2.0, 1.0, 1.0));
            window.roll(index + 1, false);
        }
        let sums: Vec<(i64, f64)> = window.minutes.iter().map(|(minute, point)| (*minute, point.sum)).collect();
        // The third minute has a gap.
        assert_eq!(sums, (0..10).filter(|m| *m != 2).map(|m| (m, if m < 2 { 6.0 } else { 12.0 })).collect::<Vec<_>>());
        assert_eq!(window.fine.len(), FINE);
        let mut window = Window::default();
        window.add(7, &Point::of(4.0));
        window.roll(12, true);
        assert_eq!(window.minutes.get(&1).map(|p| (p.sum, p.samples)), Some((4.0, 1.0)));
    }

    #[test]
    fn gaps_survive_the_way_through_a_message() {
        let row: Row = [(3, Point::of(5.0)), (6, Point::of(-1.0))].into();
        let series = to_series(PERIOD, &row);
        assert_eq!((series.first, series.sum.len()), (3, 4));
        assert_eq!(rows(&series).collect::<Row>(), row);
    }

    #[test]
    fn target_groups_are_known_by_each_of_their_names() {
        for name in ["web", "targetgroup/web/0123", "arn:aws:elasticloadbalancing:x:1:targetgroup/web/0123"] {
            let dimensions = [Dimension { name: "TargetGroup".into(), value: name.into() }];
            let metric = Metric::new(ELB, REQUEST_COUNT_PER_TARGET, &dimensions);
            assert_eq!(metric.kept(), Metric::requests("web"), "{name}");
        }
    }
}
