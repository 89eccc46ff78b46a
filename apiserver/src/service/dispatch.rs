//! Tells each agent's session the changes of its own tasks. One reader of the cache does so for all of them: if every
//! session looked at every change, a change would cost more with every instance of the cluster.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use steady_core::{Key, Kind, Revision, task};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::cache::{Cache, Changed};

/// Changes that may wait for a session. One that has more of them to come begins with a snapshot again.
const PENDING: usize = 1_000;
/// Changes read at once.
const MAX_CHANGES: usize = 500;

type Sender = mpsc::Sender<Arc<Changed>>;

/// Sessions by instance; while an agent connects anew, two of the same.
#[derive(Clone, Default)]
struct Sessions(Arc<Mutex<HashMap<Key, Vec<Sender>>>>);

/// Ends its reader when it goes.
pub(super) struct Dispatch {
    sessions: Sessions,
    reader: AbortHandle,
}

impl Drop for Dispatch {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Dispatch {
    /// Reads a cache from now on.
    pub(super) fn of(cache: Cache) -> Self {
        let sessions = Sessions::default();
        let reader = tokio::spawn(sessions.clone().read(cache)).abort_handle();
        Dispatch { sessions, reader }
    }

    /// The tasks of an instance, as they change: whatever the cache's view does not show yet, and perhaps some that it
    /// does. It ends when more changes than a session may be behind: then a new one is due, and the view with it.
    pub(super) fn follow(&self, instance: &Key) -> mpsc::Receiver<Arc<Changed>> {
        let (sender, receiver) = mpsc::channel(PENDING);
        let mut sessions = self.sessions.lock();
        let there = sessions.entry(instance.clone()).or_default();
        there.retain(|other| !other.is_closed());
        there.push(sender);
        receiver
    }
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Vec<Sender>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(self, cache: Cache) {
        let mut progress = cache.progress();
        let mut at = Revision(0);
        while progress.wait_for(|revision| *revision > at).await.is_ok() {
            if let Ok((changes, reached)) = cache.changes(at, MAX_CHANGES) {
                self.tell(&changes);
                at = reached;
            } else {
                // What happened meanwhile is not known: everybody has to look for themselves.
                at = cache.revision();
                self.lock().clear();
            }
        }
    }

    fn tell(&self, changes: &[Arc<Changed>]) {
        let mut sessions = self.lock();
        for change in changes.iter().filter(|change| !change.deleted) {
            let Some(task) = task::of(&change.object) else { continue };
            let instance = Key::new(Kind::ContainerInstance, change.object.cluster(), &task.spec.container_instance);
            if let Some(there) = sessions.get_mut(&instance) {
                there.retain(|session| session.try_send(Arc::clone(change)).is_ok());
                if there.is_empty() {
                    sessions.remove(&instance);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use steady_core::v1::{Object, Task, TaskSpec};

    use super::*;

    fn change(instance: &str) -> Arc<Changed> {
        let spec = TaskSpec { container_instance: instance.into(), ..TaskSpec::default() };
        let object = Arc::new(Object::new("default", "t", Task { spec: Some(spec), ..Task::default() }));
        Arc::new(Changed { revision: Revision(1), object, previous: None, deleted: false })
    }

    fn dispatch() -> Dispatch {
        Dispatch { sessions: Sessions::default(), reader: tokio::spawn(async {}).abort_handle() }
    }

    #[tokio::test]
    async fn a_session_hears_of_its_own_tasks_alone() {
        let dispatch = dispatch();
        let (mut a, mut again) = (dispatch.follow(&instance("a")), dispatch.follow(&instance("a")));
        let mut b = dispatch.follow(&instance("b"));
        dispatch.sessions.tell(&[change("a"), change("c")]);
        assert!(a.try_recv().is_ok() && again.try_recv().is_ok() && b.try_recv().is_err());
        drop((a, again, b));
        dispatch.sessions.tell(&[change("a"), change("b")]);
        assert!(dispatch.sessions.lock().is_empty(), "those that went are forgotten");
    }

    #[tokio::test]
    async fn a_session_that_is_too_far_behind_hears_its_end() {
        let dispatch = dispatch();
        let mut slow = dispatch.follow(&instance("a"));
        for _ in 0..=PENDING {
            dispatch.sessions.tell(&[change("a")]);
        }
        for _ in 0..PENDING {
            assert!(slow.try_recv().is_ok());
        }
        assert_eq!(slow.try_recv().err(), Some(mpsc::error::TryRecvError::Disconnected));
    }

    fn instance(name: &str) -> Key {
        Key::new(Kind::ContainerInstance, "default", name)
    }
}
