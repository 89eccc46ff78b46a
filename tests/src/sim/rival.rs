//! Another scheduler: it leads nothing and is fenced by nothing, as anybody's own scheduler over `Watch` and `Commit`
//! would be. What it binds conflicts with what the product's scheduler binds at the same moment.

use std::collections::BTreeSet;
use std::sync::Arc;

use steady_core::v1::{self, CommitRequest};
use steady_core::{Clock, DEFAULT_CLUSTER, Key, Kind};
use steady_runtime::Reflector;

use super::World;
use super::life::Life;
use super::net;

/// Places tasks for as long as it is asked to.
pub(crate) async fn run(world: Arc<World>, life: Arc<Life>) {
    let client = net::client(&world, &life);
    let kinds = BTreeSet::from([Kind::Task, Kind::ContainerInstance, Kind::Reservation]);
    let reflector = Reflector::start(client.clone(), &kinds);
    let cluster = Key::new(Kind::Cluster, "", DEFAULT_CLUSTER);
    loop {
        tokio::time::sleep(world.between(1, 400)).await;
        let mut view = reflector.view();
        // It takes some of the tasks and leaves the others.
        let waiting: Vec<Key> = view.unplaced(DEFAULT_CLUSTER).map(|task| Key::of(task)).collect();
        for key in waiting.iter().filter(|_| world.flip()) {
            view.remove(key);
        }
        let plan = steady_plan::scheduler::plan(&view, &cluster, life.now());
        for changes in plan.groups {
            let changes = changes.into_iter().map(v1::Change::from).collect();
            let request = CommitRequest { changes, fence: None, sequencer: None };
            let (mut objects, place) = (client.objects(), client.place());
            if tokio::time::timeout(super::PATIENCE, objects.commit(request)).await.is_err() {
                client.rotate(place);
            }
        }
    }
}
