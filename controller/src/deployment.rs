//! The deployment controller: keyed by service.

use std::future::ready;

use futures::future::{BoxFuture, join_all};
use steady_core::v1::{Object, ServiceSpec};
use steady_core::{Clock, Key, Kind, Plan, Timestamp, View, service};
use steady_runtime::Controller;

use crate::hook;

/// Rollouts.
pub(crate) struct Deployments;

impl Controller for Deployments {
    const NAME: &'static str = "deployment";

    fn watches() -> &'static [Kind] {
        &[
            Kind::Service,
            Kind::Deployment,
            Kind::Task,
            Kind::ContainerInstance,
            Kind::Alarm,
            Kind::TaskSet,
            Kind::TaskDefinition,
        ]
    }

    fn keys(&self, changed: &Object, view: &View) -> Vec<Key> {
        if changed.kind() == Kind::ContainerInstance {
            // A DAEMON service has a task on each of them, and task sets say whether theirs drain.
            let counts = |spec: &ServiceSpec| service::is_daemon(spec) || service::is_external(spec);
            return crate::services(view, changed.cluster(), counts).collect();
        }
        if changed.kind() == Kind::Alarm {
            let heeds = |spec: &ServiceSpec| service::alarms(spec).iter().any(|name| name == changed.name());
            return crate::services(view, changed.cluster(), heeds).collect();
        }
        crate::service_of(changed).into_iter().collect()
    }

    fn act<'a>(&'a self, view: &'a View, key: &'a Key, clock: &'a dyn Clock) -> BoxFuture<'a, Plan> {
        // Nobody is asked while there is something to do: time runs out, alarms are raised, users change their minds.
        let plan = self.plan(view, key, clock.now());
        let calls = steady_plan::deployment::calls(view, key, clock.now());
        if calls.is_empty() || !plan.groups.is_empty() {
            return Box::pin(ready(plan));
        }
        Box::pin(async move {
            let answers = join_all(calls.iter().map(hook::ask)).await;
            let answers: Vec<_> = calls.iter().map(|call| call.hook_id.clone()).zip(answers).collect();
            steady_plan::deployment::answered(view, key, &answers, clock.now())
        })
    }

    fn plan(&self, view: &View, key: &Key, now: Timestamp) -> Plan {
        steady_plan::deployment::plan(view, key, now)
    }
}
