//! Load balancers: they look at targets, tell how they are, and when the last request of one that drains is over. What goes on
//! at a target is chance.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use steady_core::v1::target_state::Value as State;
use steady_core::v1::{ReportTargetHealthRequest, TargetHealth, TargetReport};
use steady_core::{Kind, task, traffic};
use steady_runtime::{Reflector, presence};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::World;
use super::life::Life;
use super::net;

/// The target group that services are behind, and seconds that requests of its targets may take to end.
pub(crate) const GROUP: &str = "g";
pub(crate) const DELAY: i32 = 40;

/// Looks at targets for as long as it lives. `name` is this process', and no other one's.
pub(crate) async fn run(world: Arc<World>, life: Arc<Life>, name: String) {
    let client = net::client(&world, &life);
    let mut beside = JoinSet::new();
    let lease = traffic::lease("default", traffic::DEFAULT_LOAD_BALANCER, &name);
    beside.spawn(presence(client.clone(), lease, name.clone()));
    let own = format!("{}.{name}", traffic::DEFAULT_LOAD_BALANCER);
    let reflector = Reflector::start(client.clone(), &BTreeSet::from([Kind::Task]));
    // When the last request of those that drain is over.
    let mut over: BTreeMap<String, Instant> = BTreeMap::new();
    loop {
        tokio::time::sleep(world.between(20, 700)).await;
        let view = reflector.view();
        let mut targets = Vec::new();
        for task in view.of_kind(Kind::Task).filter_map(|object| task::of(object)).filter(task::View::is_live) {
            let name = task.object.name();
            for target in &task.status.targets {
                let drains = !task.is_wanted() || target.state() == State::Draining;
                let state = if drains {
                    let ends = Instant::now() + world.between(0, 4000);
                    let over = *over.entry(name.to_owned()).or_insert(ends) <= Instant::now();
                    if over { State::Draining } else { continue }
                } else {
                    State::Healthy
                };
                let known = target.reports.iter().find(|report| report.load_balancer == own);
                if known.is_some_and(|report| report.state() == state) || world.chance(0.2) {
                    continue;
                }
                let load_balancer = own.clone();
                let report = TargetReport { load_balancer, state: state.into(), ..TargetReport::default() };
                targets.push(TargetHealth {
                    task: name.to_owned(),
                    target_group: target.target_group.clone(),
                    container_port: target.container_port,
                    report: Some(report),
                });
            }
        }
        over.retain(|name, _| view.get(&steady_core::Key::new(Kind::Task, "default", name)).is_some());
        if targets.is_empty() {
            continue;
        }
        let request = ReportTargetHealthRequest { cluster: "default".into(), targets };
        let (mut told, place) = (client.traffic(), client.place());
        if !matches!(tokio::time::timeout(super::PATIENCE, told.report_target_health(request)).await, Ok(Ok(_))) {
            client.rotate(place);
        }
    }
}
