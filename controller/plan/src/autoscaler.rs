//! The autoscaler: how many tasks services that scale are to have, and how alarms are.
//!
//! Of a service it writes `desiredCount` and nothing else. Everything is worked out from what is stored: metrics, bounds, what was done
//! last. What is not known scales nothing.

mod forecast;
mod step;
mod tracking;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod traces;

use std::collections::BTreeMap;
use std::time::Duration;

use steady_core::alarm::{self, Verdict};
use steady_core::metric::{Data, Metric, PERIOD};
use steady_core::scaling;
use steady_core::schedule::Schedule;
use steady_core::v1::alarm_state::Value as AlarmState;
use steady_core::v1::policy_type::Value as PolicyType;
use steady_core::v1::rollout_state::Value as Rollout;
use steady_core::v1::severity::Value as Severity;
use steady_core::v1::{
    CapacityChange, Object, PredictiveScalingPolicyConfiguration, ScalableTarget, ScalableTargetSpec,
    ScalableTargetStatus, ScalingActivity, ScalingPolicySpec, ScheduledAction, ServiceSpec, ServiceStatus, object,
};
use steady_core::{Change, Event, Key, Kind, Plan, Revision, Timestamp, View, Waiting, derived_id, service};

/// Activities that are remembered.
const ACTIVITIES: usize = 20;
/// How long after a period its metrics are known, at the latest.
const LATE: i64 = 12_000;
/// Most times of one schedule that are caught up with.
const CAUGHT_UP: usize = 1000;

/// Queries that a Prometheus did not answer, and why.
pub type Silent = BTreeMap<Metric, String>;

/// What to do about a scalable target, or about an alarm that watches a metric.
pub fn plan(view: &View, key: &Key, now: Timestamp, silent: &Silent) -> Plan {
    match key.kind {
        Kind::Alarm => watch(view, key, now),
        _ => scale(view, key, now, silent),
    }
}

/// Metrics that are asked of a Prometheus for a key.
pub fn queries(view: &View, key: &Key) -> Vec<steady_core::v1::PrometheusQuery> {
    let Some(found) = view.get(key) else { return Vec::new() };
    if let Some(alarm) = found.as_alarm() {
        return alarm.spec.iter().filter_map(|spec| spec.prometheus.clone()).collect();
    }
    let policies = policies(view, key);
    let own = policies.filter_map(|(_, spec)| {
        let tracking = spec.target_tracking_scaling_policy_configuration.as_ref()?;
        tracking.customized_metric_specification.as_ref()?.prometheus.clone()
    });
    own.collect()
}

fn policies<'a>(view: &'a View, target: &'a Key) -> impl Iterator<Item = (&'a Object, &'a ScalingPolicySpec)> {
    view.in_cluster(Kind::ScalingPolicy, &target.cluster).filter_map(move |object| {
        let spec = object.as_scaling_policy()?.spec.as_ref()?;
        (scaling::target_of(spec).as_ref() == Some(target) && !object.is_deleting()).then_some((&**object, spec))
    })
}

/// An alarm of the user's.
fn watch(view: &View, key: &Key, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(found) = view.get(key) else { return plan };
    let Some(spec) = found.as_alarm().and_then(|alarm| alarm.spec.as_ref()) else { return plan };
    let is_own = found.meta().owner.as_ref().is_some_and(|owner| owner.kind() == Kind::ScalingPolicy);
    let Some(metric) = alarm::metric(spec).filter(|_| !is_own) else { return plan };
    let rule = alarm::rule(spec, &metric);
    let verdict = alarm::judge(&rule, &Data::of(view, &key.cluster, &metric.kept()), now, state(found));
    tell(&mut plan, found, &verdict, now);
    plan.wake(next_look(now));
    plan
}

/// Writes the state that an alarm is in, if it is another one, and tells of it.
fn tell(plan: &mut Plan, found: &Object, verdict: &Verdict, now: Timestamp) {
    let Some(object) = alarm::with_verdict(found, verdict, now) else { return };
    plan.push(Change::PutStatus { object, expect: Revision(found.meta().revision) });
    let raised = verdict.state == AlarmState::Alarm;
    plan.events.push(Event {
        about: found.reference(),
        reason: "ALARM_STATE_CHANGE",
        message: format!("(alarm {}) is {}: {}", found.name(), verdict.state.as_str_name(), verdict.reason),
        severity: if raised { Severity::Warn } else { Severity::Info },
    });
}

fn state(alarm: &Object) -> AlarmState {
    alarm
        .as_alarm()
        .and_then(|alarm| alarm.status.as_ref())
        .map_or(AlarmState::Unspecified, steady_core::v1::AlarmStatus::state_value)
}

/// When what is not told by then counts as missing.
fn next_look(now: Timestamp) -> Timestamp {
    let period = PERIOD * 1000;
    Timestamp((now.0 - LATE).div_euclid(period) * period + period + LATE)
}

/// What a policy wants.
#[derive(Debug, Clone, PartialEq)]
struct Wish {
    policy: String,
    count: i32,
    /// What made it want that.
    cause: String,
    /// How it was worked out.
    details: String,
}

/// What a policy says to fewer tasks.
#[derive(Debug, Clone, PartialEq)]
enum Fewer {
    /// It has no say.
    Whatever,
    /// Not now, for this reason.
    No(String),
    Yes(Wish),
}

/// What a policy says.
#[derive(Debug, Clone, PartialEq)]
struct Opinion {
    more: Option<Wish>,
    fewer: Fewer,
}

/// A scalable target and its service.
struct Scaled<'a> {
    view: &'a View,
    key: &'a Key,
    now: Timestamp,
    service: &'a Object,
    service_spec: &'a ServiceSpec,
    spec: ScalableTargetSpec,
    status: ScalableTargetStatus,
    /// Tasks that run.
    running: i32,
    /// The most that a forecast allows, beyond the target's own.
    forecast_most: i32,
    plan: Plan,
}

fn scale(view: &View, key: &Key, now: Timestamp, silent: &Silent) -> Plan {
    let mut plan = Plan::default();
    let Some((found, target)) = view.get(key).and_then(|found| Some((found, found.as_scalable_target()?))) else {
        return plan;
    };
    let service_key = Key::new(Kind::Service, &key.cluster, &key.name);
    let found_service = view.get(&service_key).filter(|service| !service.is_deleting());
    let Some((service, parts)) = found_service.and_then(|found| Some((found, found.as_service()?))) else {
        let message = format!("(scalable-target {}) has no service `{}`; apply it", key.name, key.name);
        plan.waiting.push(Waiting { about: key.clone(), reason: "SERVICE_NOT_FOUND", message, quiet: false });
        return plan;
    };
    let (Some(spec), Some(service_spec)) = (target.spec.clone(), parts.spec.as_ref()) else { return plan };
    if service::is_daemon(service_spec) || service::is_external(service_spec) {
        let message = format!("(service {}) has no desiredCount of its own: it is DAEMON or EXTERNAL", key.name);
        plan.waiting.push(Waiting { about: key.clone(), reason: "NOT_SCALABLE", message, quiet: false });
        return plan;
    }
    let status = parts.status.as_ref().map_or(0, ServiceStatus::running_count);
    let scaled = Scaled {
        view,
        key,
        now,
        service,
        service_spec,
        spec,
        status: target.status.clone().unwrap_or_default(),
        running: status,
        forecast_most: 0,
        plan,
    };
    scaled.run(found, silent)
}

impl Scaled<'_> {
    fn run(mut self, found: &Object, silent: &Silent) -> Plan {
        let before = self.status.clone();
        let current = self.service_spec.desired_count();
        let bounded = self.bounds();
        let wish = bounded.or_else(|| self.dynamic(silent, current));
        if let Some((dynamic, wish)) = wish {
            self.set(current, &wish, dynamic);
        }
        if self.status != before {
            let mut object = found.clone();
            let target = ScalableTarget { spec: Some(self.spec.clone()), status: Some(self.status.clone()) };
            object.kind = Some(object::Kind::ScalableTarget(target));
            let put = Change::PutStatus { object, expect: Revision(found.meta().revision) };
            // Beside the count, if that is written: both, or none.
            match self.plan.groups.first_mut().filter(
                |group| matches!(group.first(), Some(Change::PutSpec { object, .. }) if object.kind() == Kind::Service),
            ) {
                Some(group) => group.push(put),
                None => self.plan.push(put),
            }
        }
        self.plan
    }

    fn about(&self) -> String {
        format!("(service {})", self.key.name)
    }

    fn wait(&mut self, reason: &'static str, message: String) {
        self.plan.waiting.push(Waiting { about: self.key.clone(), reason, message, quiet: true });
    }

    fn min(&self) -> i32 {
        scaling::bounds(&self.spec, &self.status).0
    }

    fn max(&self) -> i32 {
        scaling::bounds(&self.spec, &self.status).1
    }

    /// Takes bounds that are new, of the spec or of an action whose time has come, and what follows from that: the service is within
    /// them at once.
    fn bounds(&mut self) -> Option<(bool, Wish)> {
        let mut cause = None;
        let declared = (self.spec.min_capacity, self.spec.max_capacity);
        let service = &self.service.meta().uid;
        let another = !self.status.service_uid.is_empty() && self.status.service_uid != *service;
        self.status.service_uid.clone_from(service);
        if another {
            (self.status.last_scale_out, self.status.last_scale_in) = (None, None);
        }
        if another || (self.status.declared_min_capacity, self.status.declared_max_capacity) != declared {
            (self.status.declared_min_capacity, self.status.declared_max_capacity) = declared;
            (self.status.min_capacity, self.status.max_capacity) = declared;
            cause = Some(("scalable target".to_owned(), "its bounds were set".to_owned()));
        }
        if let Some(fired) = self.fire() {
            cause = Some(fired);
        }
        let (policy, cause) = cause?;
        let current = self.service_spec.desired_count();
        let count = current.clamp(self.min(), self.max());
        let details = format!("between {} and {} tasks", self.min(), self.max());
        (count != current).then_some((false, Wish { policy, count, cause, details }))
    }

    /// Has actions whose time has come set the bounds, the last one last. What was before an action was there, or while it was suspended, is
    /// over.
    fn fire(&mut self) -> Option<(String, String)> {
        let suspended = self.spec.suspended_state.unwrap_or_default().scheduled_scaling_suspended;
        let actions: Vec<(String, ScheduledAction)> = if suspended {
            Vec::new()
        } else {
            self.spec.scheduled_actions.iter().map(|action| (digest(action), action.clone())).collect()
        };
        let until = self.status.scheduled_until.as_ref().map_or(self.now, Timestamp::from).min(self.now);
        let mut fired = Vec::new();
        let mut next_at: Option<Timestamp> = None;
        for (digest, action) in &actions {
            let Ok(schedule) = Schedule::parse(&action.schedule, &action.timezone) else { continue };
            let at = |time: &Option<_>| time.as_ref().map(Timestamp::from);
            let start = at(&action.start_time).unwrap_or_default();
            let since = if self.status.known_actions.contains(digest) { until } else { self.now };
            // `start` itself is a time that counts.
            let mut after = since.max(start - Duration::from_millis(1));
            for _ in 0..CAUGHT_UP {
                let over = |time: &Timestamp| at(&action.end_time).is_some_and(|end| *time > end);
                let Some(next) = schedule.next(after, start).filter(|next| !over(next)) else { break };
                if next > self.now {
                    next_at = Some(next_at.map_or(next, |known| known.min(next)));
                    break;
                }
                fired.push((next, action.scheduled_action_name.clone(), action.scalable_target_action));
                after = next;
            }
        }
        let known: Vec<String> = actions.into_iter().map(|(digest, _)| digest).collect();
        if known != self.status.known_actions || !fired.is_empty() {
            self.status.known_actions = known;
            self.status.scheduled_until = Some(self.now.into());
        }
        if let Some(at) = next_at {
            self.plan.wake(at);
        }
        fired.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        for (_, _, to) in &fired {
            let to = to.unwrap_or_default();
            self.status.min_capacity = to.min_capacity.or(self.status.min_capacity);
            self.status.max_capacity = to.max_capacity.or(self.status.max_capacity);
        }
        let (at, name, _) = fired.pop()?;
        Some((name.clone(), format!("scheduled action {name} of {at}")))
    }

    /// What is measured, and what follows from that.
    fn dynamic(&mut self, silent: &Silent, current: i32) -> Option<(bool, Wish)> {
        let mut more: Vec<Wish> = Vec::new();
        let mut fewer: Vec<Wish> = Vec::new();
        let mut vetoes: Vec<String> = Vec::new();
        let mut floor = 0;
        let policies: Vec<(&Object, &ScalingPolicySpec)> = policies(self.view, self.key).collect();
        for (object, policy) in policies {
            let opinion = match policy.policy_type() {
                PolicyType::TargetTrackingScaling => self.track(object, policy, current, silent),
                PolicyType::StepScaling => self.step(object.name(), policy),
                PolicyType::PredictiveScaling => {
                    let config = policy.predictive_scaling_policy_configuration.clone().unwrap_or_default();
                    let wish = self.predict(object, &config);
                    floor = floor.max(wish.as_ref().map_or(0, |wish| wish.count));
                    Opinion { more: wish, fewer: Fewer::Whatever }
                }
                PolicyType::Unspecified => continue,
            };
            more.extend(opinion.more);
            match opinion.fewer {
                Fewer::Whatever => {}
                Fewer::No(why) => vetoes.push(why),
                Fewer::Yes(wish) => fewer.push(wish),
            }
        }
        let suspended = self.spec.suspended_state.unwrap_or_default();
        // The largest wins.
        let largest = more.into_iter().max_by_key(|wish| wish.count).filter(|wish| wish.count > current);
        if let Some(wish) = largest {
            if suspended.dynamic_scaling_out_suspended {
                let message = format!("{} would have {} tasks, and scaling out is suspended", self.about(), wish.count);
                self.wait("SUSPENDED", message);
                return None;
            }
            let most = self.most();
            if current >= most {
                let (about, count) = (self.about(), wish.count);
                let message = format!("{about} would have {count} tasks, and {most} are its most: {}", wish.cause);
                self.wait("AlreadyAtMaxCapacity", message);
                return None;
            }
            return Some((true, wish));
        }
        if fewer.is_empty() {
            return None;
        }
        // All have to agree, and then the largest wins again.
        let mut wish = fewer.into_iter().max_by_key(|wish| wish.count)?;
        wish.count = wish.count.max(floor).max(self.min()).min(self.most());
        if wish.count >= current {
            return None;
        }
        let held = if !vetoes.is_empty() {
            Some(("HELD", vetoes.join("; ")))
        } else if suspended.dynamic_scaling_in_suspended {
            Some(("SUSPENDED", "scaling in is suspended".to_owned()))
        } else if self.deploys() {
            Some(("HELD", "a deployment is under way".to_owned()))
        } else {
            None
        };
        if let Some((reason, why)) = held {
            self.wait(reason, format!("{} would have {} tasks, and {why}", self.about(), wish.count));
            return None;
        }
        Some((true, wish))
    }

    /// Tasks that run, as many as there are to be at most: those of two deployments do not add up.
    fn there(&self) -> i32 {
        if self.deploys() { self.running.min(self.service_spec.desired_count()) } else { self.running }
    }

    /// Whether the service is being deployed: then nothing is taken away.
    fn deploys(&self) -> bool {
        let mut deployments = self.view.of_service(Kind::Deployment, &self.key.cluster, &self.key.name);
        deployments.any(|object| {
            let status = object.as_deployment().and_then(|deployment| deployment.status.as_ref());
            status.is_some_and(|status| status.rollout_state() == Rollout::InProgress)
        })
    }

    /// The most there may be: a forecast may be allowed more than the target's own.
    fn most(&self) -> i32 {
        self.max().max(self.forecast_most)
    }

    /// Whether the last change in a direction is not longer ago than its cooldown.
    fn cooling<'b>(&self, last: Option<&'b CapacityChange>, seconds: i32) -> Option<(&'b CapacityChange, Timestamp)> {
        let last = last?;
        let over = last.at.as_ref().map(Timestamp::from)? + Duration::from_secs(u64::from(seconds.unsigned_abs()));
        (over > self.now).then_some((last, over))
    }

    /// Why nothing may be taken away yet.
    fn too_early(&self, out: i32, inward: i32) -> Option<String> {
        // The direction changes once in a cooldown at most.
        let last_out = self.cooling(self.status.last_scale_out.as_ref(), out.max(inward));
        let last_in = self.cooling(self.status.last_scale_in.as_ref(), inward);
        let (_, over) = last_out.into_iter().chain(last_in).max_by_key(|(_, over)| *over)?;
        Some(format!("cooldown lasts until {over}"))
    }

    /// The longest cooldowns of its policies: out, and in.
    fn cooldowns(&self) -> (i32, i32) {
        let each = policies(self.view, self.key).map(|(_, policy)| {
            let tracking = policy.target_tracking_scaling_policy_configuration.as_ref();
            let tracking = tracking.map_or((0, 0), |config| (config.scale_out_cooldown(), config.scale_in_cooldown()));
            let step = policy
                .step_scaling_policy_configuration
                .as_ref()
                .map_or(0, steady_core::v1::StepScalingPolicyConfiguration::cooldown);
            (tracking.0.max(step), tracking.1.max(step))
        });
        each.fold((0, 0), |all, one| (all.0.max(one.0), all.1.max(one.1)))
    }

    /// Sets the count.
    fn set(&mut self, current: i32, wish: &Wish, dynamic: bool) {
        let most = if dynamic { self.most() } else { self.max() };
        let to = wish.count.clamp(self.min(), most);
        if to == current {
            return;
        }
        let mut object = Object::clone(self.service);
        if let Some(object::Kind::Service(service)) = &mut object.kind {
            service.spec.get_or_insert_default().desired_count = Some(to);
        }
        let put = Change::PutSpec { object, fields: &["desiredCount"], expect: Revision(self.service.meta().revision) };
        self.plan.groups.insert(0, vec![put]);
        // While what was added before is on its way, whoever added it, the count from before that stays the base.
        let (out, _) = self.cooldowns();
        let patience = Duration::from_secs(u64::from(out.unsigned_abs()));
        let last = self.cooling(self.status.last_scale_out.as_ref(), out).map(|(last, _)| last);
        let chain = last.and_then(|last| Some((last.from, Timestamp::from(last.base_at.as_ref()?))));
        // Not for ever: what was added a cooldown ago is there.
        let chain = chain.filter(|(_, at)| *at + patience > self.now);
        let (from, base_at) = chain.map_or((current, self.now), |(from, at)| (from.min(current), at));
        let change = CapacityChange {
            at: Some(self.now.into()),
            from,
            to,
            policy: wish.policy.clone(),
            base_at: Some(base_at.into()),
        };
        // Schedules and bounds know no cooldowns.
        if dynamic && to > current {
            self.status.last_scale_out = Some(change);
            // What had to be waited for before something is taken away begins anew.
            self.status.last_scale_in = None;
        } else if dynamic {
            self.status.last_scale_in = Some(change);
            self.status.last_scale_out = None;
        }
        let activity = ScalingActivity {
            start_time: Some(self.now.into()),
            description: format!("Setting desired count to {to}."),
            cause: wish.cause.clone(),
            details: wish.details.clone(),
            from: current,
            to,
        };
        self.status.activities.insert(0, activity);
        self.status.activities.truncate(ACTIVITIES);
        self.plan.events.push(Event {
            about: self.service.reference(),
            reason: "SERVICE_DESIRED_COUNT_UPDATED",
            message: format!(
                "{} is to have {to} tasks, not {current}: {} ({})",
                self.about(),
                wish.cause,
                wish.details
            ),
            severity: Severity::Info,
        });
    }

    fn predict(&mut self, object: &Object, config: &PredictiveScalingPolicyConfiguration) -> Option<Wish> {
        let (cluster, name) = (&self.key.cluster, &self.key.name);
        let Some((metric, target)) = scaling::predicted(cluster, name, self.service_spec, config) else {
            let message = format!("(scaling-policy {}) has no target group to count requests of", object.name());
            self.wait("NO_TARGET_GROUP", message);
            return None;
        };
        let data = Data::of(self.view, cluster, &metric);
        let looked = forecast::look(object, config, &metric, target, &data, self.now);
        if let Some(put) = looked.put {
            self.plan.push(put);
        }
        if let Some(why) = looked.waits {
            self.wait("INSUFFICIENT_DATA", format!("(scaling-policy {}) {why}", object.name()));
        }
        self.plan.wake(looked.wake_at);
        let (count, details) = looked.count?;
        if let Some(most) = forecast::most(config, count) {
            self.forecast_most = self.forecast_most.max(most.min(scaling::MAX_CAPACITY));
        }
        let (policy, cause) = (object.name().to_owned(), format!("forecast of policy {}", object.name()));
        Some(Wish { policy, count, cause, details })
    }
}

/// Stands for an action: another one for any other.
fn digest(action: &ScheduledAction) -> String {
    let to = action.scalable_target_action.unwrap_or_default();
    let at = |time: &Option<_>| time.as_ref().map_or_else(String::new, |at| Timestamp::from(at).0.to_string());
    let bound = |bound: Option<i32>| bound.map_or_else(String::new, |bound| bound.to_string());
    let (start, end) = (at(&action.start_time), at(&action.end_time));
    let (min, max) = (bound(to.min_capacity), bound(to.max_capacity));
    derived_id(&[&action.scheduled_action_name, &action.schedule, &action.timezone, &start, &end, &min, &max])
}
