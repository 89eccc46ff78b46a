//! Step scaling: by how much an alarm's threshold is exceeded says what changes.

use steady_core::Kind;
use steady_core::alarm::{self, number};
use steady_core::metric::Data;
use steady_core::v1::adjustment_type::Value as Adjustment;
use steady_core::v1::alarm_state::Value as AlarmState;
use steady_core::v1::{Object, ScalingPolicySpec, StepScalingPolicyConfiguration};
use steady_core::validate::step_interval;

use super::{Fewer, Opinion, Scaled, Wish, next_look, state};

impl Scaled<'_> {
    pub(super) fn step(&mut self, policy: &str, spec: &ScalingPolicySpec) -> Opinion {
        let nothing = Opinion { more: None, fewer: Fewer::Whatever };
        let Some(config) = spec.step_scaling_policy_configuration.as_ref() else { return nothing };
        let view = self.view;
        let names = |alarm: &&std::sync::Arc<Object>| {
            let spec = alarm.as_alarm().and_then(|alarm| alarm.spec.as_ref());
            spec.is_some_and(|spec| spec.alarm_actions.iter().any(|name| name == policy))
        };
        let mut opinion = nothing;
        for found in view.in_cluster(Kind::Alarm, &self.key.cluster).filter(names) {
            let Some((by, upper, shown)) = self.exceeds(found) else { continue };
            let Some(step) = config.step_adjustments.iter().find(|step| holds(step_interval(step), by, upper)) else {
                continue;
            };
            let cooldown = config.cooldown();
            let cooling = self.cooling(self.status.last_scale_out.as_ref(), cooldown);
            let there = self.there();
            let base = cooling.map_or(there, |(last, _)| last.from.min(there));
            if let Some((_, over)) = cooling {
                self.plan.wake(over);
            }
            let wanted = adjusted(base, step.scaling_adjustment, config);
            let wish = |count: i32, base: i32| Wish {
                policy: policy.to_owned(),
                count,
                cause: format!("alarm {} in state ALARM triggered policy {policy}", found.name()),
                details: format!(
                    "{shown}; {} of {} from {base} tasks",
                    config.adjustment_type().as_str_name(),
                    step.scaling_adjustment
                ),
            };
            // What an exact count wants depends on what there is.
            if wanted > there {
                opinion.more = opinion.more.into_iter().chain([wish(wanted, base)]).max_by_key(|wish| wish.count);
            } else {
                let fewer = adjusted(there, step.scaling_adjustment, config);
                if fewer >= there {
                    continue;
                }
                // Of several alarms the one that takes least away.
                opinion.fewer = match (self.too_early(cooldown, cooldown), opinion.fewer) {
                    (Some(why), _) => Fewer::No(why),
                    (None, Fewer::Yes(other)) if other.count >= fewer => Fewer::Yes(other),
                    (None, _) => Fewer::Yes(wish(fewer, there)),
                };
            }
        }
        opinion
    }

    /// By how much a raised alarm's threshold is exceeded, and that in words.
    fn exceeds(&mut self, found: &Object) -> Option<(f64, bool, String)> {
        let spec = found.as_alarm()?.spec.as_ref()?;
        let Some(metric) = alarm::metric(spec) else {
            // Whoever raised it did not say by how much.
            return (state(found) == AlarmState::Alarm).then(|| (0.0, true, "it was raised by hand".to_owned()));
        };
        self.plan.wake(next_look(self.now));
        let rule = alarm::rule(spec, &metric);
        let data = Data::of(self.view, &self.key.cluster, &metric.kept());
        let verdict = alarm::judge(&rule, &data, self.now, state(found));
        let value = verdict.breach.filter(|_| verdict.breaches)?;
        let upper = alarm::is_upper(rule.comparison);
        let shown = format!("{} and the threshold {}", number(value), number(rule.threshold));
        Some((value - rule.threshold, upper, shown))
    }
}

/// Whether a range has a number: above the threshold with its lower bound and without its upper one, below it the other way round. The
/// threshold itself is on the side that raises the alarm.
fn holds((from, to): (f64, f64), by: f64, upper: bool) -> bool {
    if by > 0.0 || (by >= 0.0 && upper) { from <= by && by < to } else { from < by && by <= to }
}

/// How many tasks an adjustment makes of so many.
fn adjusted(base: i32, by: i32, config: &StepScalingPolicyConfiguration) -> i32 {
    let count = match config.adjustment_type() {
        Adjustment::ExactCapacity => i64::from(by),
        Adjustment::PercentChangeInCapacity => {
            let share = f64::from(base) * f64::from(by) / 100.0;
            // Towards what there is; but something, where something was asked for.
            let whole = if share > 1.0 {
                share.floor()
            } else if share > 0.0 {
                1.0
            } else if (-1.0..0.0).contains(&share) {
                -1.0
            } else {
                share.ceil()
            };
            let least = f64::from(config.min_adjustment_magnitude);
            let whole = if by == 0 { 0.0 } else { whole.abs().max(least) * f64::from(by.signum()) };
            i64::from(base) + whole as i64
        }
        Adjustment::ChangeInCapacity | Adjustment::Unspecified => i64::from(base) + i64::from(by),
    };
    i32::try_from(count.max(0)).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_the_bound_that_is_nearer_to_the_threshold() {
        let (above, below) = (|range, by| holds(range, by, true), |range, by| holds(range, by, false));
        assert!(above((0.0, 10.0), 0.0) && !above((0.0, 10.0), 10.0) && above((10.0, f64::INFINITY), 10.0));
        assert!(below((-10.0, 0.0), -5.0) && !below((-10.0, 0.0), -10.0) && below((f64::NEG_INFINITY, -10.0), -10.0));
        assert!(below((f64::NEG_INFINITY, 0.0), 0.0) && !above((f64::NEG_INFINITY, 0.0), 0.0));
    }

    #[test]
    fn percents_are_whole_tasks_and_never_none() {
        let config = |kind: Adjustment, least: i32| StepScalingPolicyConfiguration {
            adjustment_type: kind.into(),
            min_adjustment_magnitude: least,
            ..StepScalingPolicyConfiguration::default()
        };
        let percent = config(Adjustment::PercentChangeInCapacity, 0);
        let made = [(10, 25), (10, 5), (10, -5), (10, -25), (10, 0), (3, -100)];
        assert_eq!(made.map(|(base, by)| adjusted(base, by, &percent)), [12, 11, 9, 8, 10, 0]);
        assert_eq!(adjusted(10, 5, &config(Adjustment::PercentChangeInCapacity, 3)), 13);
        assert_eq!(adjusted(2, -3, &config(Adjustment::ChangeInCapacity, 0)), 0);
        assert_eq!(adjusted(2, 7, &config(Adjustment::ExactCapacity, 0)), 7);
    }
}
