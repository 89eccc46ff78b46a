//! A plan: what a controller decided, before anything is done about it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use smol_str::SmolStr;
use steady_proto::v1::{self, Object, ObjectRef};

use crate::condition::{self, Told};
use crate::{Key, Revision, Timestamp, View, derived_id};

/// Changes of a group that has events: a commit takes a hundred, of which a condition and its event may be two.
const MAX_TOLD: usize = 90;

/// One change of a plan, with what it expects.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Expects that there is no such object.
    Create(Object),
    /// Writes the spec's fields of these JSON names, or all of it when there are none.
    PutSpec {
        /// The object with its new spec.
        object: Object,
        /// JSON names of the fields to write.
        fields: &'static [&'static str],
        /// Revision it must have.
        expect: Revision,
    },
    /// Writes the whole status.
    PutStatus {
        /// The object with its new status.
        object: Object,
        /// Revision it must have.
        expect: Revision,
    },
    /// Removes it at once.
    Remove {
        /// Which object.
        key: Key,
        /// Revision it must have.
        expect: Revision,
    },
    /// Only compares.
    Check {
        /// Which object.
        key: Key,
        /// Revision it must have; 0: absent.
        expect: Revision,
    },
    /// Places tasks on one instance.
    Bind(Bind),
}

/// Tasks placed on one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Where.
    pub instance: Key,
    /// Revision that the instance's Reservation must have, 0 where there is none yet; none: it is for the API server to
    /// say whether there is room, whatever was bound there meanwhile.
    pub reservation: Option<Revision>,
    /// Who places.
    pub scheduler: String,
    /// Names of the tasks, and the revision that each must have.
    pub tasks: Vec<(SmolStr, Revision)>,
}

impl Change {
    /// How many changes it counts as.
    pub fn size(&self) -> usize {
        match self {
            Change::Bind(bind) => bind_size(bind.tasks.len()),
            _ => 1,
        }
    }
}

/// How many changes a Bind of so many tasks counts as: it compares the tasks, the instance and its Reservation.
pub fn bind_size(tasks: usize) -> usize {
    2 + tasks
}

/// Why nothing happens to an object though something should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Whom it is about.
    pub about: Key,
    /// One word for programs.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
    /// No event: another object's tells it. Then a message whose numbers change is also written seldom.
    pub quiet: bool,
}

/// Something that people should hear of.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Whom it is about.
    pub about: ObjectRef,
    /// One word for programs, ECS's where it has one.
    pub reason: &'static str,
    /// ECS's text where it has one.
    pub message: String,
    /// How bad it is.
    pub severity: v1::severity::Value,
}

/// What a controller wants done about one key.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Changes; those of one group are committed together, groups in order.
    pub groups: Vec<Vec<Change>>,
    /// Whom the plan can do nothing for, and why.
    pub waiting: Vec<Waiting>,
    /// Plan again at this time even if nothing changes.
    pub wake_at: Option<Timestamp>,
    /// Told in the same commit as the first group.
    pub events: Vec<Event>,
}

impl From<Change> for v1::Change {
    /// As `Commit` takes it.
    fn from(change: Change) -> Self {
        use v1::change::Change as Wire;
        let expect = |revision: Revision| Some(v1::Expect { revision: revision.0 });
        let change = match change {
            Change::Create(object) => Wire::Create(object),
            Change::PutSpec { object, fields, expect: at } => Wire::PutSpec(v1::PutSpec {
                object: Some(object),
                fields: fields.iter().map(|field| (*field).to_owned()).collect(),
                expect: expect(at),
            }),
            Change::PutStatus { object, expect: at } => {
                Wire::PutStatus(v1::PutStatus { object: Some(object), expect: expect(at) })
            }
            Change::Remove { key, expect: at } => {
                Wire::Remove(v1::Remove { r#ref: Some(key.reference()), expect: expect(at) })
            }
            Change::Check { key, expect: at } => {
                Wire::Check(v1::Check { r#ref: Some(key.reference()), expect: expect(at) })
            }
            Change::Bind(bind) => {
                let task = |(name, at): (SmolStr, Revision)| v1::BoundTask { name: name.into(), expect: expect(at) };
                Wire::Bind(v1::Bind {
                    cluster: bind.instance.cluster.into(),
                    container_instance: bind.instance.name.into(),
                    reservation: bind.reservation.and_then(expect),
                    scheduler: bind.scheduler,
                    tasks: bind.tasks.into_iter().map(task).collect(),
                })
            }
        };
        v1::Change { change: Some(change) }
    }
}

impl Plan {
    /// Adds a change that may be committed apart from the others.
    pub fn push(&mut self, change: Change) {
        self.groups.push(vec![change]);
    }

    /// Asks to be planned again at `at`, or earlier.
    pub fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Every change, in order.
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.groups.iter().flatten()
    }

    /// Turns what the plan says into writes: `waiting` into conditions (and an event where it is news),
    /// events into objects. `subject` is the object that the plan's key stands for: it waits no longer
    /// when the plan does not say so.
    pub fn publish(mut self, view: &View, subject: Option<&Key>, source: &str, now: Timestamp) -> Vec<Vec<Change>> {
        // What is written because of what is waited for, and the event that tells it where it is news.
        let mut statuses: BTreeMap<Key, (Object, Option<Event>)> = BTreeMap::new();
        // An object has one condition of a controller: what was said first is what it waits for.
        let mut named = BTreeSet::new();
        self.waiting.retain(|waiting| named.insert(waiting.about.clone()));
        let planned = planned(&self.groups);
        let planned = |key: &Key| match planned.get(key) {
            Some(planned) => planned.cloned(),
            None => view.get(key).map(|object| Object::clone(object)),
        };
        for waiting in &self.waiting {
            let Some(mut object) = planned(&waiting.about) else { continue };
            let Some(conditions) = object.conditions_mut() else { continue };
            let told = condition::told(conditions, source, waiting.reason, &waiting.message, now);
            if matches!(told, Told::Recently(_)) && waiting.quiet {
                continue;
            }
            // The same again after a long time is told again; other numbers are not.
            let again = condition::waiting_for(conditions, source).is_some_and(|c| c.message == waiting.message);
            let news = again || condition::is_news(conditions, source, waiting.reason, &waiting.message);
            if condition::set_waiting(conditions, source, waiting.reason, &waiting.message, now) {
                let event = (news && !waiting.quiet).then(|| Event {
                    about: object.reference(),
                    reason: waiting.reason,
                    message: waiting.message.clone(),
                    severity: v1::severity::Value::Warn,
                });
                statuses.insert(waiting.about.clone(), (object, event));
            }
        }
        if let Some(subject) = subject.filter(|s| !self.waiting.iter().any(|w| w.about == **s))
            && let Some(mut object) = planned(subject)
            && !object.conditions().is_empty()
            && object.conditions_mut().is_some_and(|conditions| condition::clear_waiting(conditions, source))
        {
            statuses.insert(subject.clone(), (object, None));
        }
        if !self.events.is_empty() {
            let told: Vec<Change> =
                self.events.iter().map(|event| Change::Create(event_object(event, view, source, now))).collect();
            self.tell(told);
        }
        self.put_statuses(view, statuses, source, now);
        self.groups
    }

    /// Puts events beside the first group. Those for which one commit has no room come after everything else.
    fn tell(&mut self, mut told: Vec<Change>) {
        let first: usize = self.groups.first().map_or(0, |group| group.iter().map(Change::size).sum());
        let rest = told.split_off(told.len().min(MAX_TOLD.saturating_sub(first)));
        match self.groups.first_mut() {
            Some(group) => group.extend(told),
            None => self.groups.push(told),
        }
        self.groups.extend(rest.chunks(MAX_TOLD).map(<[Change]>::to_vec));
    }

    /// Writes statuses, each in the group that writes it already or in one of its own, with its event beside it.
    fn put_statuses(
        &mut self,
        view: &View,
        mut statuses: BTreeMap<Key, (Object, Option<Event>)>,
        source: &str,
        now: Timestamp,
    ) {
        let tell = |event: Option<Event>| event.map(|event| Change::Create(event_object(&event, view, source, now)));
        for group in &mut self.groups {
            let mut told = Vec::new();
            for change in group.iter_mut() {
                if let Change::PutStatus { object, .. } = change
                    && let Some((new, event)) = statuses.remove(&Key::of(object))
                {
                    *object = new;
                    told.extend(tell(event));
                }
            }
            group.extend(told);
        }
        for (key, (object, event)) in statuses {
            let expect = view.get(&key).map_or(Revision(0), revision_of);
            let put = Change::PutStatus { object, expect };
            self.groups.push(std::iter::once(put).chain(tell(event)).collect());
        }
    }
}

/// Objects whose status these changes write, as they leave them; `None` of those that they remove.
fn planned(groups: &[Vec<Change>]) -> BTreeMap<Key, Option<&Object>> {
    let written = groups.iter().flatten().filter_map(|change| match change {
        Change::PutStatus { object, .. } => Some((Key::of(object), Some(object))),
        Change::Remove { key, .. } => Some((key.clone(), None)),
        _ => None,
    });
    written.collect()
}

fn revision_of(object: &Arc<Object>) -> Revision {
    Revision(object.meta().revision)
}

/// The event as an object. Its name is derived from what it tells and from the revision of whom it tells
/// it about: telling it again, because an answer was lost, is telling it once. Revisions begin anew with each epoch of the
/// store: what is told after a restoration is not what the backup was told.
fn event_object(event: &Event, view: &View, source: &str, now: Timestamp) -> Object {
    let about = &event.about;
    let seen = view.get(&Key::of_ref(about)).map_or(0, |o| o.meta().revision).to_string();
    let epoch = view.epoch().to_string();
    let name = derived_id(&[&about.uid, &about.name, event.reason, &event.message, &seen, &epoch]);
    let cluster = if about.cluster.is_empty() { crate::DEFAULT_CLUSTER } else { &about.cluster };
    let spec = v1::EventSpec {
        about: Some(about.clone()),
        reason: event.reason.to_owned(),
        message: event.message.clone(),
        severity: event.severity.into(),
        source: source.to_owned(),
        at: Some(now.into()),
    };
    Object::new(cluster, &name, v1::Event { spec: Some(spec) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use steady_proto::v1::Sequencer;

    #[test]
    fn more_events_than_one_commit_takes_are_told_in_several() {
        let about = Object::new("default", "pool", v1::CapacityProvider::default());
        let (key, reference) = (Key::of(&about), about.reference());
        let event = |number: usize| Event {
            about: reference.clone(),
            reason: "TOLD",
            message: format!("event {number}"),
            severity: v1::severity::Value::Info,
        };
        let sizes = |changes: usize, events: usize| {
            let group = vec![Change::Remove { key: key.clone(), expect: Revision(1) }; changes];
            let groups = if changes == 0 { vec![] } else { vec![group] };
            let plan = Plan { groups, events: (0..events).map(event).collect(), ..Plan::default() };
            let groups = plan.publish(&View::default(), None, "capacity", Timestamp(0));
            groups.iter().map(Vec::len).collect::<Vec<usize>>()
        };
        assert_eq!(sizes(1, 2), [3]);
        assert_eq!(sizes(1, 250), [90, 90, 71]);
        assert_eq!(sizes(0, 250), [90, 90, 70]);
        assert_eq!(sizes(98, 3), [98, 3], "changes that go together stay together");
    }

    #[test]
    fn what_is_told_after_a_restoration_is_not_taken_for_what_the_backup_was_told() {
        let about = Object::new("default", "hello", v1::Service::default());
        let event = Event {
            about: about.reference(),
            reason: "SERVICE_STEADY_STATE",
            message: "has reached a steady state.".into(),
            severity: v1::severity::Value::Info,
        };
        let mut view = View::default();
        view.put(Arc::new(about));
        let name = |view: &View| event_object(&event, view, "service", Timestamp(0)).name().to_owned();
        let before = name(&view);
        assert_eq!(before, name(&view), "told twice is told once");
        view.put(Arc::new(Object::new("", &Key::epoch().name, Sequencer { count: 7 })));
        assert_ne!(before, name(&view));
    }
}
