//! What a verb knows of the cluster: objects that it listed, or keeps up to date by watching.

use std::collections::BTreeSet;
use std::sync::Arc;

use steady_core::{Clock, Key, Kind, SystemClock, Timestamp, View};
use steady_proto::v1::{Object, Selector};

use crate::client::Client;
use crate::failure::Failure;
use crate::watch::{Seen, Watch};

/// Objects at hand.
#[derive(Debug, Default)]
pub struct World {
    /// The objects, indexed.
    pub view: View,
}

/// One object that came, changed or went.
#[derive(Debug, Clone)]
pub struct Changed {
    /// As it is now; of a deleted one, as it was.
    pub object: Arc<Object>,
    /// It is gone.
    pub deleted: bool,
}

/// The machine's time.
pub fn now() -> Timestamp {
    SystemClock.now()
}

impl World {
    /// Lists every object of these kinds in a cluster; in all of them when it is empty.
    pub async fn list(client: &Client, kinds: &[Kind], cluster: &str) -> Result<Self, Failure> {
        let mut world = World::default();
        for kind in kinds {
            let selector = Selector { cluster: cluster.to_owned(), ..Selector::default() };
            world.add(client.list(*kind, selector).await?);
        }
        Ok(world)
    }

    /// Adds objects.
    pub fn add(&mut self, objects: Vec<Object>) {
        for object in objects {
            self.view.put(Arc::new(object));
        }
    }

    /// Waits for the watch's next news and takes them in. What is new to this world comes back, in order.
    pub async fn follow(&mut self, watch: &mut Watch) -> Result<Vec<Changed>, Failure> {
        let seen = watch.next().await?;
        Ok(self.take(seen))
    }

    /// Takes in what a watch delivered.
    pub fn take(&mut self, seen: Seen) -> Vec<Changed> {
        match seen {
            Seen::Snapshot(objects) => self.replace(objects),
            Seen::Changes(events) => events
                .into_iter()
                .filter_map(|event| {
                    let object = Arc::new(event.object?);
                    if event.deleted {
                        self.view.remove(&Key::of(&object));
                    } else {
                        self.view.put(object.clone());
                    }
                    Some(Changed { object, deleted: event.deleted })
                })
                .collect(),
        }
    }

    /// A new snapshot in place of the old one: only what differs is news.
    fn replace(&mut self, objects: Vec<Object>) -> Vec<Changed> {
        let there: BTreeSet<Key> = objects.iter().map(Key::of).collect();
        let gone: Vec<Key> = self.view.range(..).map(|(key, _)| key.clone()).filter(|k| !there.contains(k)).collect();
        let mut changed: Vec<Changed> =
            gone.iter().filter_map(|key| Some(Changed { object: self.view.remove(key)?, deleted: true })).collect();
        for object in objects {
            let key = Key::of(&object);
            if self.view.get(&key).is_none_or(|old| old.meta() != object.meta()) {
                let object = Arc::new(object);
                self.view.put(object.clone());
                changed.push(Changed { object, deleted: false });
            }
        }
        changed
    }

    /// One object.
    pub fn get(&self, kind: Kind, cluster: &str, name: &str) -> Option<&Arc<Object>> {
        self.view.get(&Key::new(kind, cluster, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_proto::v1::{Cluster, WatchEvent};

    fn object(name: &str, revision: i64) -> Object {
        let mut object = Object::new("", name, Cluster::default());
        object.meta_mut().revision = revision;
        object
    }

    fn told(changed: &[Changed]) -> Vec<(String, bool)> {
        changed.iter().map(|c| (c.object.name().to_owned(), c.deleted)).collect()
    }

    #[test]
    fn a_second_snapshot_tells_only_what_differs() {
        let mut world = World::default();
        let first = world.take(Seen::Snapshot(vec![object("a", 1), object("b", 2), object("c", 3)]));
        assert_eq!(first.len(), 3);
        let second = world.take(Seen::Snapshot(vec![object("a", 1), object("b", 5)]));
        assert_eq!(told(&second), [("c".to_owned(), true), ("b".to_owned(), false)]);
    }

    #[test]
    fn changes_are_told_in_order() {
        let mut world = World::default();
        let event = |name: &str, deleted| WatchEvent { object: Some(object(name, 1)), deleted };
        let changed = world.take(Seen::Changes(vec![event("a", false), event("b", false), event("a", true)]));
        assert_eq!(told(&changed), [("a".into(), false), ("b".into(), false), ("a".into(), true)]);
        assert!(world.get(Kind::Cluster, "", "a").is_none());
    }
}
