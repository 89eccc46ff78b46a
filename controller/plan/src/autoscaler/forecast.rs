//! Predictive scaling: what the load of the next two days will be like, by what that of the last fourteen was.
//!
//! An hour will be as the same hour of the week was, where a week is known, else as the same hour of the day; all of it a little more or
//! less, as the last day was more or less than that.

use steady_core::alarm::number;
use steady_core::metric::{Data, MINUTE, Metric, PERIOD};
use steady_core::v1::max_capacity_breach_behavior::Value as Breach;
use steady_core::v1::predictive_scaling_mode::Value as Mode;
use steady_core::v1::{Object, PredictiveScalingPolicyConfiguration, ScalingPolicyStatus, object};
use steady_core::{Change, Revision, Timestamp};

/// Hours that are remembered.
const REMEMBERED: usize = 14 * 24;
/// Hours that have to be known.
const LEAST: usize = 24;
/// Hours that are forecast.
const AHEAD: usize = 48;
/// Between forecasts, hours.
const EVERY: i64 = 6;
/// Minutes that are taken at once: fewer than the metric's window.
const TAKEN: i64 = 20;
const WEEK: i64 = 7 * 24;
const HOUR: i64 = 3_600_000;

/// What comes of a look at a policy.
pub(super) struct Looked {
    /// Its status, if it is another one.
    pub(super) put: Option<Change>,
    /// Tasks that there have to be now, and that in words.
    pub(super) count: Option<(i32, String)>,
    /// Why there is no forecast.
    pub(super) waits: Option<String>,
    pub(super) wake_at: Timestamp,
}

/// More than its most, if a policy may have that.
pub(super) fn most(config: &PredictiveScalingPolicyConfiguration, wanted: i32) -> Option<i32> {
    let exceeds =
        config.mode() == Mode::ForecastAndScale && config.max_capacity_breach_behavior() == Breach::IncreaseMaxCapacity;
    let buffer = i64::from(wanted) * i64::from(config.max_capacity_buffer) / 100;
    exceeds.then(|| i32::try_from(i64::from(wanted) + buffer).unwrap_or(i32::MAX))
}

pub(super) fn look(
    policy: &Object,
    config: &PredictiveScalingPolicyConfiguration,
    metric: &Metric,
    target: f64,
    data: &Data,
    now: Timestamp,
) -> Looked {
    let found = policy.as_scaling_policy();
    let old = found.and_then(|policy| policy.status.clone()).unwrap_or_default();
    let mut status = old.clone();
    let named = metric.to_string();
    if status.metric != named {
        // What was learned was of something else.
        status = ScalingPolicyStatus { metric: named, ..ScalingPolicyStatus::default() };
    }
    take(&mut status, metric, data, now);
    let hour = now.0.div_euclid(HOUR);
    let known = status.load.iter().filter(|load| **load >= 0.0).count();
    let made = status.forecast_at.as_ref().map(|at| Timestamp::from(at).0.div_euclid(HOUR));
    let is_other = (status.target_value - target).abs() > 1e-9;
    if known >= LEAST && (is_other || made.is_none_or(|made| hour - made >= EVERY)) {
        status.target_value = target;
        let load: Vec<f64> = (hour..hour + AHEAD as i64).map(|hour| forecast(&status, hour)).collect();
        status.capacity_forecast = load.iter().map(|load| (load / target - 1e-6).ceil().max(0.0) as i32).collect();
        status.load_forecast = load.into_iter().map(|load| load as f32).collect();
        (status.forecast_from, status.forecast_at) = (hour, Some(now.into()));
    }
    let at = |time: Timestamp| {
        let place = usize::try_from(time.0.div_euclid(HOUR) - status.forecast_from).ok()?;
        Some((*status.capacity_forecast.get(place)?, *status.load_forecast.get(place)?))
    };
    let buffer = std::time::Duration::from_secs(u64::from(config.scheduling_buffer_time().unsigned_abs()));
    let soon = at(now).into_iter().chain(at(now + buffer)).max_by_key(|(count, _)| *count);
    let count = soon.filter(|_| config.mode() == Mode::ForecastAndScale).map(|(count, load)| {
        (count, format!("a load of {} is forecast, {} for each task", number(f64::from(load)), number(target)))
    });
    let waits = (known < LEAST).then(|| format!("knows the load of {known} hours, and needs {LEAST} for a forecast"));
    let put = (status != old).then(|| {
        let mut object = policy.clone();
        if let Some(object::Kind::ScalingPolicy(policy)) = &mut object.kind {
            policy.status = Some(status.clone());
        }
        Change::PutStatus { object, expect: Revision(policy.meta().revision) }
    });
    // When the next minutes are due, or the next hour's tasks.
    let next_hour = Timestamp((hour + 1) * HOUR) - buffer;
    let due = Timestamp((status.taken_until + TAKEN) * MINUTE * 1000 + HOUR / 60);
    let due = if due > now { due } else { now + std::time::Duration::from_secs(60) };
    let wake_at = if next_hour > now { due.min(next_hour) } else { due };
    Looked { put, count, waits, wake_at }
}

/// Takes the minutes that were not taken yet into their hours.
fn take(status: &mut ScalingPolicyStatus, metric: &Metric, data: &Data, now: Timestamp) {
    let end = now.0.div_euclid(MINUTE * 1000);
    if status.taken_until == 0 {
        status.taken_until = end;
        return;
    }
    if end - status.taken_until < TAKEN {
        return;
    }
    for minute in status.taken_until..end {
        let Some(point) = data.point(MINUTE, minute) else { continue };
        if point.samples + 1e-6 < point.expected {
            continue;
        }
        // Of percents a minute has one sum for each of its periods.
        let load = if metric.is_percent() { point.sum * PERIOD as f64 / MINUTE as f64 } else { point.sum };
        let hour = minute.div_euclid(60);
        if status.load.is_empty() {
            status.first_hour = hour;
        }
        let last = status.first_hour + status.load.len() as i64 - 1;
        if hour > last {
            let gap = usize::try_from(hour - last - 1).unwrap_or(0).min(REMEMBERED);
            status.load.extend(std::iter::repeat_n(-1.0, gap));
            status.load.push(0.0);
            (status.hour_sum, status.hour_minutes) = (0.0, 0);
            status.first_hour = hour + 1 - status.load.len() as i64;
        }
        status.hour_sum += load;
        status.hour_minutes += 1;
        if let Some(last) = status.load.last_mut() {
            *last = (status.hour_sum / f64::from(status.hour_minutes)) as f32;
        }
    }
    let surplus = status.load.len().saturating_sub(REMEMBERED);
    status.load.drain(..surplus);
    status.first_hour += surplus as i64;
    status.taken_until = end;
}

fn known(status: &ScalingPolicyStatus, hour: i64) -> Option<f64> {
    let place = usize::try_from(hour - status.first_hour).ok()?;
    status.load.get(place).map(|load| f64::from(*load)).filter(|load| *load >= 0.0)
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// What an hour is like that comes again every week, or else every day, by hours before `before`.
fn usual(status: &ScalingPolicyStatus, hour: i64, before: i64) -> Option<f64> {
    let every = |step: i64| {
        let earlier = (1..=15 * 24 / step).map(move |times| hour - times * step).filter(move |hour| *hour < before);
        mean(earlier.filter_map(|hour| known(status, hour)))
    };
    every(WEEK).or_else(|| every(24))
}

fn forecast(status: &ScalingPolicyStatus, hour: i64) -> f64 {
    let last = status.first_hour + status.load.len() as i64 - 1;
    // The hour that is not over is not known.
    let Some(usual_load) = usual(status, hour, last) else { return 0.0 };
    let pairs: Vec<(f64, f64)> =
        (last - 24..last).filter_map(|hour| Some((known(status, hour)?, usual(status, hour, hour)?))).collect();
    let (was, expected) = pairs.iter().fold((0.0, 0.0), |(a, b), (was, usual)| (a + was, b + usual));
    let trend = if expected > 0.0 { (was / expected).clamp(0.5, 2.0) } else { 1.0 };
    usual_load * trend
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many hours of a load that has its day and its quiet Sundays, from hour 0 on.
    fn history(hours: i64, load: impl Fn(i64) -> f64) -> ScalingPolicyStatus {
        let load = (0..=hours).map(|hour| load(hour) as f32).collect();
        ScalingPolicyStatus { first_hour: 0, load, ..ScalingPolicyStatus::default() }
    }

    fn daily(hour: i64) -> f64 {
        100.0 + 50.0 * f64::from(u8::from((8..18).contains(&(hour % 24))))
    }

    #[test]
    fn what_comes_every_day_comes_again() {
        let status = history(3 * 24, daily);
        for hour in 3 * 24 + 1..5 * 24 {
            assert!((forecast(&status, hour) - daily(hour)).abs() < 0.01, "hour {hour}");
        }
    }

    #[test]
    fn a_quiet_day_of_the_week_is_quiet_again_once_a_week_is_known() {
        let weekly = |hour: i64| if hour / 24 % 7 == 6 { 10.0 } else { daily(hour) };
        let status = history(13 * 24 + 12, weekly);
        for hour in 13 * 24 + 13..15 * 24 {
            let (found, right) = (forecast(&status, hour), weekly(hour));
            assert!((found - right).abs() / right < 0.01, "hour {hour}: {found} and not {right}");
        }
    }

    #[test]
    fn a_load_that_has_grown_goes_on_grown() {
        let grown = |hour: i64| daily(hour) * if hour >= 9 * 24 { 1.5 } else { 1.0 };
        let status = history(10 * 24, grown);
        let hour = 10 * 24 + 10;
        assert!((forecast(&status, hour) - 150.0 * 1.5).abs() < 1.0, "{}", forecast(&status, hour));
    }

    #[test]
    fn minutes_become_hours_and_what_is_missing_stays_unknown() {
        use steady_core::metric::{Point, Row};
        let metric = Metric::requests("web");
        let mut status = ScalingPolicyStatus::default();
        let at = |minute: i64| Timestamp(minute * 60_000);
        take(&mut status, &metric, &Data::default(), at(600));
        for end in [620, 640, 660, 800] {
            let row: Row = (end - 20..end).map(|minute| (minute, Point::of(30.0))).collect();
            take(&mut status, &metric, &Data::from_rows(Row::new(), row), at(end));
        }
        assert_eq!((status.first_hour, status.load.clone()), (10, vec![30.0, -1.0, -1.0, 30.0]));
        assert_eq!(status.taken_until, 800);
    }
}
