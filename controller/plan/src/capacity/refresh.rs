//! Another template: instances are replaced in batches, new ones before old ones, and the old template is gone back to when new ones fail.

use std::time::Duration;

use steady_core::v1::pool_instance_state::Value as State;
use steady_core::v1::severity::Value as Severity;
use steady_core::v1::{InstanceTemplate, PoolInstance};

use super::{Pool, digest, names};

impl Pool<'_> {
    /// The template of new instances: the spec's, or the one before it when instances of that failed.
    pub(super) fn template(&self) -> InstanceTemplate {
        let wanted = self.own.template.clone().unwrap_or_default();
        match &self.status.good_template {
            Some(good) if self.status.failed_template == digest(&wanted) => good.clone(),
            _ => wanted,
        }
    }

    /// Instances are there: their template is a good one.
    pub(super) fn arrived(&mut self, instances: &[PoolInstance]) {
        if instances.is_empty() {
            return;
        }
        let shown = names(instances.iter().map(|instance| instance.name.as_str()));
        self.tell("INSTANCE_IN_SERVICE", &format!("has {shown} in service"), Severity::Info);
        self.forget_failures();
        if instances.iter().any(|instance| instance.template.is_some() && instance.template == self.own.template) {
            self.status.good_template.clone_from(&self.own.template);
            self.status.failures = 0;
            self.status.failed_template.clear();
        }
    }

    /// Instances did not come.
    pub(super) fn failed(&mut self, instances: &[PoolInstance], warmup: Duration) {
        if instances.is_empty() {
            return;
        }
        let shown = names(instances.iter().map(|instance| instance.name.as_str()));
        let message = format!("gives {shown} up: no agent was connected within {} s", warmup.as_secs());
        self.tell("INSTANCE_FAILED", &message, Severity::Error);
        let count = i32::try_from(instances.len()).unwrap_or(i32::MAX);
        self.status.failed_launches = self.status.failed_launches.saturating_add(count);
        self.status.failed_at = Some(self.now.into());
        let failing = instances.iter().rev().find_map(|instance| instance.template.as_ref());
        self.status.failing_template = failing.map(digest).unwrap_or_default();
        let wanted = self.own.template.clone().unwrap_or_default();
        let new = instances.iter().filter(|instance| instance.template.as_ref() == Some(&wanted)).count();
        if new == 0 || self.status.good_template.as_ref().is_none_or(|good| *good == wanted) {
            // There is nothing to go back to.
            return;
        }
        self.status.failures = self.status.failures.saturating_add(i32::try_from(new).unwrap_or(i32::MAX));
        let refresh = self.own.refresh.unwrap_or_default();
        if self.status.failures >= refresh.failure_threshold.max(1) && self.status.failed_template.is_empty() {
            self.status.failed_template = digest(&wanted);
            self.forget_failures();
            let message = "goes back to the template before: instances of the new one fail";
            self.tell("INSTANCE_REFRESH_FAILED", message, Severity::Error);
        }
    }

    /// The next instance is made at once.
    fn forget_failures(&mut self) {
        (self.status.failed_launches, self.status.failed_at) = (0, None);
        self.status.failing_template.clear();
    }

    /// Replaces instances of other templates, some at a time.
    pub(super) fn refresh(&mut self, template: &InstanceTemplate) {
        let wanted = digest(template);
        if !self.status.failing_template.is_empty() && self.status.failing_template != wanted {
            self.forget_failures();
            self.status.failures = 0;
        }
        // Another template than the one that failed is tried.
        let own = digest(self.own.template.as_ref().unwrap_or(&InstanceTemplate::default()));
        if !self.status.failed_template.is_empty() && self.status.failed_template != own {
            self.status.failed_template.clear();
            self.status.failures = 0;
        }
        let is_new = |instance: &PoolInstance| instance.template.as_ref().is_some_and(|t| digest(t) == wanted);
        let refresh = self.own.refresh.unwrap_or_default();
        let batch = refresh.batch_size.max(1) as usize;
        // Those that never came are not waited for.
        for place in 0..self.status.instances.len() {
            let instance = &self.status.instances[place];
            if instance.state() == State::Pending && !is_new(instance) {
                self.leave(place, "the template is another one");
            }
        }
        let of = |pool: &Self, state: State, new: bool| -> Vec<usize> {
            let all = pool.status.instances.iter().enumerate();
            // Those that are silent are not moved from, and not counted on.
            let is_there = |i: &PoolInstance| state != State::InService || pool.is_connected(&i.name);
            all.filter(|(_, i)| i.state() == state && is_new(i) == new && is_there(i)).map(|(place, _)| place).collect()
        };
        let old = of(self, State::InService, false);
        if old.is_empty() {
            return;
        }
        // What no service moves keeps the others from nothing.
        let leaves = |i: &&PoolInstance| i.state() == State::Draining && !is_new(i) && self.alone(&i.name).is_empty();
        let leaving = self.status.instances.iter().filter(leaves).count();
        let (new, coming) = (of(self, State::InService, true).len(), of(self, State::Pending, true).len());
        let there = old.len() + new;
        // As many as before stay, or a part of them. What is beyond that may go; as many come before.
        // New ones are no more than the most, unless as many are replaced.
        let limit = (self.own.max_size.max(0) as usize).max(old.len());
        let size = (self.status.needed.max(self.own.min_size).max(1) as usize).min(limit).min(there);
        let percent = refresh.min_healthy_percentage.unwrap_or(100).clamp(0, 100) as usize;
        let floor = (size * percent).div_ceil(100);
        let may_go = there.saturating_sub(floor).min(batch.saturating_sub(leaving));
        if may_go > 0 && coming == 0 {
            let mut by_tasks: Vec<(usize, usize)> =
                old.iter().map(|place| (self.tasks(&self.status.instances[*place].name), *place)).collect();
            by_tasks.sort_unstable();
            let count = may_go.min(by_tasks.len());
            for (_, place) in by_tasks.into_iter().take(count) {
                self.leave(place, "the template is another one");
            }
            self.tell("INSTANCE_REFRESH", &format!("replaces {count} of {} old instances", old.len()), Severity::Info);
            self.drain();
        } else if may_go == 0 && coming == 0 && leaving < batch {
            if let Some(until) = self.backs_off() {
                self.plan.wake(until);
                return;
            }
            // More than its most, for as long as the old ones are there.
            let new = self.places(State::InService, &wanted).len();
            let surge = (batch - leaving).min(old.len()).min(limit.saturating_sub(new));
            if surge == 0 {
                return;
            }
            for _ in 0..surge {
                self.launch(template, None);
            }
            self.tell("INSTANCE_REFRESH", &format!("has {surge} new instances come for old ones"), Severity::Info);
        }
    }
}
