//! Tells each agent's session the changes of its own tasks. One reader of the cache does so for all of them: if every
//! session looked at every change, a change would cost more with every instance of the cluster. It works out security groups, too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use steady_core::security::{self, Resolved};
use steady_core::v1::Object;
use steady_core::{Key, Kind, Revision, task};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::cache::{Cache, Changed};

/// Changes that may wait for a session. One that has more of them to come begins with a snapshot again.
const PENDING: usize = 1_000;
/// Changes read at once.
const MAX_CHANGES: usize = 500;
/// Changes of security groups are gathered for so long before they are told.
const GATHER: Duration = Duration::from_millis(50);

type Sender = mpsc::Sender<Arc<Changed>>;

/// Sessions by instance; while an agent connects anew, two of the same.
#[derive(Clone, Default)]
struct Sessions(Arc<Mutex<HashMap<Key, Vec<Sender>>>>);

/// Ends its reader when it goes.
pub(super) struct Dispatch {
    sessions: Sessions,
    groups: watch::Receiver<Arc<Resolved>>,
    readers: [AbortHandle; 2],
}

impl Drop for Dispatch {
    fn drop(&mut self) {
        self.readers.iter().for_each(AbortHandle::abort);
    }
}

impl Dispatch {
    /// Reads a cache from now on.
    pub(super) fn of(cache: Cache) -> Self {
        let sessions = Sessions::default();
        let (sender, touched) = watch::channel(());
        let (told, groups) = watch::channel(Arc::new(security::resolve(&cache.view())));
        let resolver = tokio::spawn(resolve(cache.clone(), touched, told)).abort_handle();
        let reader = tokio::spawn(sessions.clone().read(cache, sender)).abort_handle();
        Dispatch { sessions, groups, readers: [reader, resolver] }
    }

    /// Every security group, as it changes: at times a little later than the view.
    pub(super) fn security_groups(&self) -> watch::Receiver<Arc<Resolved>> {
        self.groups.clone()
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

/// Works security groups out whenever they may have changed.
async fn resolve(cache: Cache, mut changes: watch::Receiver<()>, told: watch::Sender<Arc<Resolved>>) {
    while changes.changed().await.is_ok() {
        let view = cache.view();
        let resolved = security::resolve(&view);
        drop(view);
        told.send_if_modified(|known| {
            let is_new = **known != resolved;
            if is_new {
                *known = Arc::new(resolved);
            }
            is_new
        });
        tokio::time::sleep(GATHER).await;
    }
}

/// Whether a change may be one of a security group's addresses or rules.
fn concerns_groups(change: &Changed) -> bool {
    let member = |object: &Object| {
        let task = task::of(object).filter(|task| security::is_member(task.spec) && task.is_live())?;
        security::address(task.status).map(str::to_owned)
    };
    let (before, now) = (change.previous.as_deref(), Some(&*change.object).filter(|_| !change.deleted));
    change.object.kind() == Kind::SecurityGroup || before.and_then(member) != now.and_then(member)
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Vec<Sender>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(self, cache: Cache, changed: watch::Sender<()>) {
        let mut progress = cache.progress();
        let mut at = Revision(0);
        while progress.wait_for(|revision| *revision > at).await.is_ok() {
            if let Ok((changes, reached)) = cache.changes(at, MAX_CHANGES) {
                self.tell(&changes);
                if changes.iter().any(|change| concerns_groups(change)) {
                    changed.send_replace(());
                }
                at = reached;
            } else {
                // What happened meanwhile is not known: everybody has to look for themselves.
                at = cache.revision();
                self.lock().clear();
                changed.send_replace(());
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
    use steady_core::v1::{Task, TaskSpec};

    use super::*;

    fn change(instance: &str) -> Arc<Changed> {
        let spec = TaskSpec { container_instance: instance.into(), ..TaskSpec::default() };
        let object = Arc::new(Object::new("default", "t", Task { spec: Some(spec), ..Task::default() }));
        Arc::new(Changed { revision: Revision(1), object, previous: None, deleted: false })
    }

    fn dispatch() -> Dispatch {
        let readers = [(); 2].map(|()| tokio::spawn(async {}).abort_handle());
        Dispatch { sessions: Sessions::default(), groups: watch::channel(Arc::default()).1, readers }
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
