//! A plan: what a controller decided, before anything is done about it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use steady_proto::v1::{self, Object, ObjectRef};

use crate::{Key, Revision, Timestamp, View, condition, derived_id};

/// How often the message of a quiet condition may change.
const QUIET: Duration = Duration::from_secs(10);

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
        let mut statuses: BTreeMap<Key, Object> = BTreeMap::new();
        for waiting in &self.waiting {
            let Some(mut object) = self.planned(view, &waiting.about) else { continue };
            let Some(conditions) = object.conditions_mut() else { continue };
            let told =
                condition::waiting_for(conditions, source).filter(|c| waiting.quiet && c.reason == waiting.reason);
            let told = told.and_then(|c| c.since.as_ref()).map(Timestamp::from);
            if told.is_some_and(|at| now.since(at) < QUIET) {
                continue;
            }
            let news = condition::set_waiting(conditions, source, waiting.reason, &waiting.message, now);
            if news && waiting.quiet {
                statuses.insert(waiting.about.clone(), object);
            } else if news {
                self.events.push(Event {
                    about: object.reference(),
                    reason: waiting.reason,
                    message: waiting.message.clone(),
                    severity: v1::severity::Value::Warn,
                });
                statuses.insert(waiting.about.clone(), object);
            }
        }
        if let Some(subject) = subject.filter(|s| !self.waiting.iter().any(|w| w.about == **s))
            && let Some(mut object) = self.planned(view, subject)
            && !object.conditions().is_empty()
            && object.conditions_mut().is_some_and(|conditions| condition::clear_waiting(conditions, source))
        {
            statuses.insert(subject.clone(), object);
        }
        for (key, object) in statuses {
            self.put_status(view, &key, object);
        }
        let mut first: Vec<Change> = self.groups.first().cloned().unwrap_or_default();
        for event in &self.events {
            first.push(Change::Create(event_object(event, view, source, now)));
        }
        match self.groups.first_mut() {
            Some(group) => *group = first,
            None if first.is_empty() => {}
            None => self.groups.push(first),
        }
        self.groups
    }

    /// The object as this plan leaves its status; `None` when it is not in the view or is removed.
    fn planned(&self, view: &View, key: &Key) -> Option<Object> {
        for change in self.changes() {
            match change {
                Change::PutStatus { object, .. } if Key::of(object) == *key => return Some(object.clone()),
                Change::Remove { key: removed, .. } if removed == key => return None,
                _ => {}
            }
        }
        view.get(key).map(|object| Object::clone(object))
    }

    fn put_status(&mut self, view: &View, key: &Key, new: Object) {
        for change in self.groups.iter_mut().flatten() {
            if let Change::PutStatus { object, .. } = change
                && Key::of(object) == *key
            {
                *object = new;
                return;
            }
        }
        let expect = view.get(key).map_or(Revision(0), revision_of);
        self.push(Change::PutStatus { object: new, expect });
    }
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
