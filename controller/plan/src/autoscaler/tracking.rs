//! Target tracking: as many tasks as keep a metric at its target.

use steady_core::alarm::{self, Rule, Verdict, number};
use steady_core::metric::{Data, MINUTE, Metric, PERIOD};
use steady_core::scaling;
use steady_core::v1::alarm_state::Value as AlarmState;
use steady_core::v1::{Alarm, AlarmSpec, Object, ScalingPolicySpec};
use steady_core::{Change, Key, Kind, Revision};

use super::{Fewer, Opinion, Scaled, Silent, Wish, next_look, state, tell};

/// What is measured, as tasks that are at the target would share it.
struct Load {
    /// Tasks that it needs.
    needed: f64,
    /// In words.
    details: String,
}

impl Scaled<'_> {
    pub(super) fn track(
        &mut self,
        policy: &Object,
        spec: &ScalingPolicySpec,
        current: i32,
        silent: &Silent,
    ) -> Opinion {
        let nothing = Opinion { more: None, fewer: Fewer::Whatever };
        let Some(config) = spec.target_tracking_scaling_policy_configuration.as_ref() else { return nothing };
        let (cluster, name) = (&self.key.cluster, &self.key.name);
        let Some(tracked) = scaling::tracked(cluster, name, self.service_spec, config) else {
            let message = format!("(scaling-policy {}) has no target group to count requests of", policy.name());
            self.wait("NO_TARGET_GROUP", message);
            return Opinion { fewer: Fewer::No("a policy has nothing to count".into()), ..nothing };
        };
        let data = Data::of(self.view, cluster, &tracked.metric);
        let [high_name, low_name] = scaling::alarm_names(policy.name());
        let (high_rule, high) = self.judge(policy, &high_name, &tracked.high, &data);
        let (low_rule, low) = self.judge(policy, &low_name, &tracked.low, &data);
        self.plan.wake(next_look(self.now));
        if high.value.is_none() && (self.running > 0 || current > 0) {
            let why = silent.get(&tracked.metric).map_or_else(|| high.reason.clone(), Clone::clone);
            self.wait("INSUFFICIENT_DATA", format!("(scaling-policy {}) knows nothing: {why}", policy.name()));
        }
        let cause = |alarm: &str| format!("alarm {alarm} in state ALARM triggered policy {}", policy.name());
        let wish = |load: Load, alarm: &str| Wish {
            policy: policy.name().to_owned(),
            count: ceiling(load.needed),
            cause: cause(alarm),
            details: load.details,
        };
        let target = config.target_value;
        let cooling = self.cooling(self.status.last_scale_out.as_ref(), config.scale_out_cooldown());
        let from = cooling.map(|(last, _)| last.from);
        let more = high.breaches.then(|| {
            let index = high.periods.1 - 1;
            self.load(&data, &tracked.metric, &high_rule, index, target, from, false).map(|load| wish(load, &high_name))
        });
        let fewer = if config.disable_scale_in {
            Fewer::Whatever
        } else if !low.breaches {
            Fewer::No(format!("policy {} does not agree: {}", policy.name(), low.reason))
        } else if let Some(why) = self.too_early(config.scale_out_cooldown(), config.scale_in_cooldown()) {
            Fewer::No(why)
        } else {
            // As many as its busiest period needs.
            let (from, to) = low.periods;
            let loads =
                (from..to).filter_map(|index| self.load(&data, &tracked.metric, &low_rule, index, target, None, true));
            loads
                .max_by(|a, b| a.needed.total_cmp(&b.needed))
                .map_or(Fewer::No("nothing is known".to_owned()), |load| Fewer::Yes(wish(load, &low_name)))
        };
        Opinion { more: more.flatten(), fewer }
    }

    /// How an alarm of a policy is. It is made, and kept as it has to be.
    fn judge(&mut self, policy: &Object, name: &str, spec: &AlarmSpec, data: &Data) -> (Rule, Verdict) {
        let key = Key::new(Kind::Alarm, &self.key.cluster, name);
        let found = self.view.get(&key);
        let metric = alarm::metric(spec).unwrap_or_else(|| Metric::new("", "", &[]));
        let rule = alarm::rule(spec, &metric);
        let verdict = alarm::judge(&rule, data, self.now, found.map_or(AlarmState::Unspecified, |found| state(found)));
        if let Some(found) = found {
            let is_other = found.as_alarm().and_then(|alarm| alarm.spec.as_ref()) != Some(spec);
            if is_other {
                let mut object = Object::clone(found);
                let status = found.as_alarm().and_then(|alarm| alarm.status.clone());
                object.kind = Some(Alarm { spec: Some(spec.clone()), status }.into());
                let expect = Revision(found.meta().revision);
                self.plan.push(Change::PutSpec { object, fields: &[], expect });
            } else {
                tell(&mut self.plan, found, &verdict, self.now);
            }
        } else {
            let status = alarm::changed(&<_>::default(), verdict.state, &verdict.reason, self.now);
            let alarm = Alarm { spec: Some(spec.clone()), status: Some(status) };
            let mut object = Object::new(&key.cluster, name, alarm);
            object.meta_mut().owner = Some(policy.reference());
            let (key, expect) = (Key::of(policy), Revision(policy.meta().revision));
            self.plan.groups.push(vec![Change::Create(object), Change::Check { key, expect }]);
        }
        (rule, verdict)
    }

    /// How many tasks a period needs. `from`: as many as there were before the last ones were added, while those still count as
    /// capacity that is on its way.
    #[expect(clippy::too_many_arguments, reason = "each is a part of one sum")]
    fn load(
        &self,
        data: &Data,
        metric: &Metric,
        rule: &Rule,
        index: i64,
        target: f64,
        from: Option<i32>,
        most: bool,
    ) -> Option<Load> {
        let point = data.point(rule.period, index)?;
        let (low, high) = point.bounds(rule.statistic, rule.is_percent);
        let value = if most { high } else { low }?;
        let parts = if rule.period < MINUTE { rule.period / PERIOD } else { MINUTE / PERIOD * (rule.period / MINUTE) };
        let shown = number(target);
        if metric.target_group().is_some() {
            let a_minute = value * MINUTE as f64 / rule.period as f64;
            let details = format!("{} requests a minute, {shown} for each task", number(a_minute));
            return Some(Load { needed: a_minute / target, details });
        }
        if rule.is_percent {
            // As many as were measured: not those that have come since.
            let mut tasks = point.expected.max(point.samples) / parts as f64;
            if self.deploys() {
                // Those of both deployments do not add up to what there is to be.
                tasks = tasks.min(f64::from(self.service_spec.desired_count()));
            }
            let base = from.map_or(tasks, |from| tasks.min(f64::from(from)));
            let details = format!("{} tasks at {} %, to be at {shown} %", number(base), number(value));
            return Some(Load { needed: base * value / target, details });
        }
        let tasks = from.map_or(self.there(), |from| from.min(self.there()));
        let details = format!("{tasks} tasks at {}, to be at {shown}", number(value));
        Some(Load { needed: f64::from(tasks) * value / target, details })
    }
}

/// Whole tasks; a hair's breadth more than a number is that number.
fn ceiling(needed: f64) -> i32 {
    (needed - 1e-6).ceil().clamp(0.0, f64::from(i32::MAX)) as i32
}
