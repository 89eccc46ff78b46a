//! Alarms: whether what is measured is as it should be (`CloudWatch` alarms).

use steady_proto::v1::alarm_state::Value as State;
use steady_proto::v1::comparison_operator::Value as Comparison;
use steady_proto::v1::statistic::Value as Statistic;
use steady_proto::v1::treat_missing_data::Value as Missing;
use steady_proto::v1::{Alarm, AlarmHistoryItem, AlarmSpec, AlarmStatus, Object};

use crate::Timestamp;
use crate::metric::{Data, MINUTE, Metric, PERIOD, REQUEST_COUNT_PER_TARGET};

/// How long what was measured in a period may take to be known, milliseconds after its end.
const GRACE: i64 = 12_000;
/// The same of what nobody knows how much of it there should be.
const SETTLE: i64 = 1_500;
/// Changes of its state that an alarm remembers.
const HISTORY: usize = 20;

/// When an alarm is raised.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// What of each period counts.
    pub statistic: Statistic,
    /// Seconds.
    pub period: i64,
    /// How many periods.
    pub evaluated: i64,
    /// How many of them have to breach.
    pub to_alarm: usize,
    /// What is too much, or too little.
    pub threshold: f64,
    /// Which of it.
    pub comparison: Comparison,
    /// What nothing counts as.
    pub missing: Missing,
    /// What is measured is shared by the targets that there were.
    pub per_target: bool,
    /// See [`Metric::is_percent`].
    pub is_percent: bool,
    /// It is known how much of it there should be.
    pub is_counted: bool,
}

/// How an alarm is.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The state.
    pub state: State,
    /// Why, in words and numbers.
    pub reason: String,
    /// It is raised, and what is known now says so: not that it was.
    pub breaches: bool,
    /// What was compared last.
    pub value: Option<f64>,
    /// The newest of what breached.
    pub breach: Option<f64>,
    /// Numbers of the periods that were looked at: from, and before.
    pub periods: (i64, i64),
}

/// The metric that an alarm watches, if it watches one.
pub fn metric(spec: &AlarmSpec) -> Option<Metric> {
    match &spec.prometheus {
        Some(query) => Some(Metric::of_prometheus(query)),
        None if spec.metric_name.is_empty() => None,
        None => Some(Metric::new(&spec.namespace, &spec.metric_name, &spec.dimensions)),
    }
}

/// What an alarm that was filled in compares.
pub fn rule(spec: &AlarmSpec, metric: &Metric) -> Rule {
    Rule {
        statistic: spec.statistic(),
        period: i64::from(spec.period),
        evaluated: i64::from(spec.evaluation_periods),
        to_alarm: usize::try_from(spec.datapoints_to_alarm).unwrap_or(1).max(1),
        threshold: spec.threshold(),
        comparison: spec.comparison_operator(),
        missing: spec.treat_missing_data(),
        per_target: metric.name == REQUEST_COUNT_PER_TARGET && metric.target_group().is_some(),
        is_percent: metric.is_percent(),
        is_counted: metric.is_reserved(),
    }
}

/// How an alarm is now, that was `was`.
pub fn judge(rule: &Rule, data: &Data, now: Timestamp, was: State) -> Verdict {
    let length = rule.period.max(1) * 1000;
    let mut end = now.0.div_euclid(length);
    // Not all API servers have told of a period in the moment after its end.
    let newest = data.point(rule.period, end - 1);
    let is_whole = newest.is_some_and(|point| point.samples + 1e-6 >= point.expected);
    let passed = now.0 - end * length;
    if passed < SETTLE && !rule.is_counted || passed < GRACE && !is_whole {
        end -= 1;
    }
    let periods = (end - rule.evaluated, end);
    // What is missing never decides: with some of it unknown the value counts that is further from the threshold.
    let of = |index: i64| {
        let point = data.point(rule.period, index)?;
        let (low, high) = point.bounds(rule.statistic, rule.is_percent);
        // As many targets as there were then (CloudWatch).
        let targets = if rule.per_target { (point.targets * PERIOD as f64 / rule.period as f64).max(1.0) } else { 1.0 };
        if is_upper(rule.comparison) { low } else { high }.map(|value| value / targets)
    };
    let values: Vec<Option<f64>> = (periods.0..periods.1).map(of).collect();
    let breaches = |value: f64| match rule.comparison {
        Comparison::GreaterThanOrEqualToThreshold => value >= rule.threshold,
        Comparison::GreaterThanThreshold | Comparison::Unspecified => value > rule.threshold,
        Comparison::LessThanThreshold => value < rule.threshold,
        Comparison::LessThanOrEqualToThreshold => value <= rule.threshold,
    };
    let known: Vec<f64> = values.iter().copied().flatten().collect();
    let missing = values.len() - known.len();
    let over = known.iter().filter(|value| breaches(**value)).count();
    let counted = over + if rule.missing == Missing::Breaching { missing } else { 0 };
    let open = if matches!(rule.missing, Missing::Breaching | Missing::NotBreaching) { 0 } else { missing };
    let stays = if was == State::Unspecified { State::InsufficientData } else { was };
    let state = if counted >= rule.to_alarm {
        State::Alarm
    } else if counted + open < rule.to_alarm {
        State::Ok
    } else if known.is_empty() && rule.missing != Missing::Ignore {
        State::InsufficientData
    } else if rule.missing == Missing::Ignore || was != State::Alarm {
        stays
    } else {
        // Raised, and no longer known to be so: what is missing does not keep it up.
        if over == 0 { State::Ok } else { stays }
    };
    let value = values.iter().rev().find_map(|value| *value);
    let breach = known.iter().rev().copied().find(|value| breaches(*value));
    Verdict { state, reason: reason(rule, &values, over), breaches: over >= rule.to_alarm, breach, value, periods }
}

/// Whether too much raises it, and not too little.
pub fn is_upper(comparison: Comparison) -> bool {
    !matches!(comparison, Comparison::LessThanThreshold | Comparison::LessThanOrEqualToThreshold)
}

/// `3 out of the last 3 datapoints [61.2, 58.0, 66.7] (each 10 s) were greater than the threshold (50)`.
fn reason(rule: &Rule, values: &[Option<f64>], over: usize) -> String {
    let count = values.len();
    let span = if rule.period < MINUTE || rule.period % MINUTE != 0 {
        format!("{} s", rule.period)
    } else {
        format!("{} min", rule.period / MINUTE)
    };
    if values.iter().all(Option::is_none) {
        return format!("no datapoint of the last {count} (each {span}) is known");
    }
    let shown: Vec<String> = values.iter().rev().take(6).map(|v| v.map_or("-".to_owned(), number)).collect();
    let more = if count > shown.len() { ", …" } else { "" };
    let than = match rule.comparison {
        Comparison::GreaterThanOrEqualToThreshold => "greater than or equal to",
        Comparison::GreaterThanThreshold | Comparison::Unspecified => "greater than",
        Comparison::LessThanThreshold => "less than",
        Comparison::LessThanOrEqualToThreshold => "less than or equal to",
    };
    format!(
        "{over} out of the last {count} datapoints [{}{more}] (each {span}, newest first) were {than} the threshold ({})",
        shown.join(", "),
        number(rule.threshold)
    )
}

/// A number as people read it: three digits, or what is before the point.
pub fn number(value: f64) -> String {
    let magnitude = value.abs();
    let text = if !(1e-9..100.0).contains(&magnitude) {
        format!("{value:.0}")
    } else if magnitude >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// The alarm with the state that it is in now; `None`: it was in it.
pub fn with_verdict(object: &Object, verdict: &Verdict, now: Timestamp) -> Option<Object> {
    let alarm = object.as_alarm()?;
    let old = alarm.status.clone().unwrap_or_default();
    if old.state_value() == verdict.state {
        return None;
    }
    let status = changed(&old, verdict.state, &verdict.reason, now);
    let mut object = object.clone();
    object.kind = Some(Alarm { spec: alarm.spec.clone(), status: Some(status) }.into());
    Some(object)
}

/// A status with another state.
pub fn changed(old: &AlarmStatus, state: State, reason: &str, now: Timestamp) -> AlarmStatus {
    let item =
        AlarmHistoryItem { timestamp: Some(now.into()), state_value: state.into(), state_reason: reason.to_owned() };
    let history = std::iter::once(item).chain(old.history.iter().cloned()).take(HISTORY).collect();
    AlarmStatus {
        state_value: state.into(),
        state_reason: reason.to_owned(),
        state_updated_at: Some(now.into()),
        history,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::{Point, Row};

    const NOW: Timestamp = Timestamp(1_000_000);

    fn rule(missing: Missing) -> Rule {
        Rule {
            statistic: Statistic::Average,
            period: 10,
            evaluated: 3,
            to_alarm: 2,
            threshold: 50.0,
            comparison: Comparison::GreaterThanThreshold,
            missing,
            per_target: false,
            is_percent: false,
            is_counted: true,
        }
    }

    /// Periods up to now, oldest first.
    fn data(values: &[Option<f64>]) -> Data {
        let first = 100 - values.len() as i64;
        let known = values.iter().enumerate().filter_map(|(i, v)| Some((first + i as i64, Point::of((*v)?))));
        Data::from_rows(known.collect::<Row>(), Row::new())
    }

    fn state(missing: Missing, was: State, values: &[Option<f64>]) -> State {
        // The last period ended long enough ago to be known.
        let now = Timestamp(NOW.0 + 9_999);
        let values: Vec<Option<f64>> = values.to_vec();
        let rule = rule(missing);
        let shifted = data(&values);
        judge(&rule, &shifted, now, was).state
    }

    #[test]
    fn an_alarm_is_raised_by_enough_of_its_periods() {
        let high = Some(60.0);
        let low = Some(40.0);
        assert_eq!(state(Missing::Missing, State::Ok, &[high, low, high]), State::Alarm);
        assert_eq!(state(Missing::Missing, State::Alarm, &[low, low, high]), State::Ok);
        assert_eq!(state(Missing::Missing, State::Ok, &[high, high, low, low]), State::Ok, "older ones do not count");
    }

    #[test]
    fn what_is_missing_raises_nothing_unless_it_is_said_to() {
        let (high, low) = (Some(60.0), Some(40.0));
        for was in [State::Ok, State::InsufficientData] {
            assert_eq!(state(Missing::Missing, was, &[high, None, low]), was);
            assert_eq!(state(Missing::Ignore, was, &[None, None, low]), was);
        }
        assert_eq!(state(Missing::Missing, State::Alarm, &[None, low, low]), State::Ok);
        assert_eq!(state(Missing::Missing, State::Alarm, &[None, None, low]), State::Ok);
        assert_eq!(state(Missing::Breaching, State::Ok, &[None, None, low]), State::Alarm);
        assert_eq!(state(Missing::NotBreaching, State::Alarm, &[high, None, None]), State::Ok);
    }

    #[test]
    fn without_data_nothing_is_known() {
        let late = Timestamp(NOW.0 + 60_000);
        let data = data(&[Some(60.0), Some(60.0), Some(60.0)]);
        assert_eq!(judge(&rule(Missing::Missing), &data, late, State::Alarm).state, State::InsufficientData);
        assert_eq!(judge(&rule(Missing::Ignore), &data, late, State::Alarm).state, State::Alarm);
        assert_eq!(judge(&rule(Missing::Breaching), &data, late, State::Ok).state, State::Alarm);
    }

    #[test]
    fn a_period_that_has_just_ended_is_waited_for() {
        let data = data(&[Some(60.0), Some(60.0), Some(60.0)]);
        let verdict = judge(&rule(Missing::Missing), &data, Timestamp(NOW.0 + 10_500), State::Ok);
        assert_eq!((verdict.state, verdict.periods), (State::Alarm, (97, 100)));
        assert!(verdict.reason.starts_with("3 out of the last 3 datapoints [60, 60, 60]"), "{}", verdict.reason);
    }

    #[test]
    fn requests_are_shared_by_as_many_targets_as_there_were_then() {
        let point = |targets: f64| Point { expected: 1.0, targets, ..Point::of(600.0) };
        let row = Row::from([(97, point(1.0)), (98, point(3.0)), (99, point(0.0))]);
        let minute = Row::from([(16, Point { targets: 12.0, ..Point::of(600.0) })]);
        let each = Rule { per_target: true, statistic: Statistic::Sum, ..rule(Missing::Missing) };
        let data = Data::from_rows(row, minute);
        let verdict = judge(&each, &data, NOW, State::Ok);
        assert!(verdict.reason.contains("[600, 200, 600]"), "{}", verdict.reason);
        let minute = Rule { period: 60, evaluated: 1, ..each };
        let verdict = judge(&minute, &data, Timestamp(NOW.0 + 50_000), State::Ok);
        assert_eq!(verdict.value, Some(300.0));
    }

    #[test]
    fn tasks_that_are_silent_raise_no_alarm_either_way() {
        let point = Point { expected: 2.0, ..Point::of(80.0) };
        let row: Row = (97..100).map(|index| (index, point)).collect();
        let data = Data::from_rows(row, Row::new());
        let high = Rule { is_percent: true, ..rule(Missing::Missing) };
        let low = Rule { comparison: Comparison::LessThanThreshold, threshold: 60.0, ..high.clone() };
        // One is at 80 %: both together are at 40 % at least, and at 90 % at most.
        assert_eq!(judge(&high, &data, NOW, State::Ok).state, State::Ok);
        assert_eq!(judge(&low, &data, NOW, State::Ok).state, State::Ok);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([0.0, 0.5, 12.0, 66.66, 1234.5].map(number), ["0", "0.5", "12", "66.7", "1234"]);
    }
}
