//! What the control plane says of this instance's tasks: which are its, which are not any more.

use std::collections::BTreeSet;

use steady_core::guard::{self, Guard};
use steady_core::task;
use steady_core::v1::Assignment;
use steady_core::v1::stop_code::Value as StopCode;
use steady_core::v1::task_last_status::Value as Status;

use super::Engine;
use super::environment::Secrets;
use super::model::{Phase, Stop, TaskState};
use crate::record::Record;

impl Engine {
    pub(super) fn snapshot(&mut self, assignments: Vec<Assignment>) {
        let named: BTreeSet<String> =
            assignments.iter().filter_map(|a| a.task.as_ref()).map(|t| t.name().to_owned()).collect();
        for (name, entry) in &mut self.tasks {
            entry.missing = !named.contains(name);
            // What was not stored in the session before is told again.
            self.touched.insert(name.clone());
        }
        for assignment in assignments {
            self.assign(assignment);
        }
    }

    pub(super) fn assign(&mut self, mut assignment: Assignment) {
        let secrets = Secrets::of(&mut assignment);
        let Some(object) = assignment.task else { return };
        let Some(told) = task::of(&object) else { return };
        let name = object.name().to_owned();
        self.touched.insert(name.clone());
        match &assignment.definition {
            Some(definition) => self.restore(&object, definition),
            // Nobody can say any more what it is.
            None => drop(self.strays.remove(&name)),
        }
        if let Some(entry) = self.tasks.get_mut(&name) {
            entry.missing = false;
            entry.state.confirmed = true;
            entry.state.secrets = secrets.after(&entry.state.secrets);
            entry.state.object = object;
            return;
        }
        if !told.is_live() || self.stopping {
            return;
        }
        let now = self.clock.now();
        let mut state = TaskState::new(object.clone(), assignment.definition.clone().unwrap_or_default(), now);
        state.confirmed = true;
        state.secrets = secrets;
        let over = self.over.contains(&name) && guard::stands(Guard::Over);
        let ran = over || told.status.last_status() > Status::Pending;
        if ran || assignment.definition.is_none() {
            // It ran here once, and nothing of it is left; or nobody can say what it is. It never starts again.
            let reason = if ran {
                "ContainerVanishedError: nothing of the task was left when the agent came back"
            } else {
                "TaskFailedToStart: its task definition is gone"
            };
            let code = if ran { StopCode::InfrastructureHealth } else { StopCode::TaskFailedToStart };
            state.stop = Some(Stop { code, reason: reason.into(), since: now });
            state.containers.iter_mut().for_each(|c| c.phase = Phase::Stopped);
            state.stopped_at = Some(now);
        }
        let definition = assignment.definition.unwrap_or_default();
        let record = Record::new(object, definition);
        self.records.note(&record);
        self.insert(state, record);
    }

    pub(super) fn stop_all(&mut self) {
        self.stopping = true;
        let since = self.clock.now();
        for name in self.tasks.keys().cloned().collect::<Vec<_>>() {
            let Some(entry) = self.tasks.get_mut(&name) else { continue };
            let reason = "The agent of its container instance was stopped".to_owned();
            entry.state.stop.get_or_insert(Stop { code: StopCode::TerminationNotice, reason, since });
            entry.record.stop.clone_from(&entry.state.stop);
            self.note(&name);
            self.touched.insert(name);
        }
    }

    pub(super) fn absent(&mut self, names: &[String]) {
        let now = self.clock.now();
        for name in names {
            let Some(entry) = self.tasks.get_mut(name).filter(|e| e.missing) else { continue };
            tracing::warn!(task = name, "the control plane does not know this task; stopping what is left of it");
            entry.state.forgotten = true;
            let reason = "the task is gone".to_owned();
            entry.state.stop.get_or_insert(Stop { code: StopCode::UserInitiated, reason, since: now });
            entry.record.stop.clone_from(&entry.state.stop);
            self.note(name);
            self.touched.insert(name.clone());
        }
    }
}
