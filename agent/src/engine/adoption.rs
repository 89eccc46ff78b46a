//! What an agent of a former life left behind.

use std::sync::Arc;

use steady_core::guard::{self, Guard};
use steady_core::resources::capability;
use steady_core::task;
use steady_core::v1::network_mode::Value as NetworkMode;
use steady_core::v1::task_last_status::Value as Status;
use steady_core::v1::{ContainerDefinition, Object, Task, TaskDefinitionSpec};

use super::model::{ContainerState, Phase, TaskState};
use super::{Engine, Entry, effects, firewall, id};
use crate::record::Record;
use crate::runtime::{Exit, Found, PAUSE, State};

impl Engine {
    /// A task of a former life: its containers are as they were found; one that was launched and is not there has ended.
    pub(super) fn remember(&mut self, record: Record, found: &[&Found]) {
        let now = self.now();
        let mut state = TaskState::new(record.task.clone(), record.definition.clone(), now.at);
        state.stop.clone_from(&record.stop);
        let wanted = state.wants_to_run();
        let attachable = self.runtime.attributes().contains_key(capability::TASK_ENI);
        let own = state.definition.network_mode() == NetworkMode::Awsvpc;
        let mut attaches = None;
        let mut restarts = Vec::new();
        for container in &mut state.containers {
            let name = container.definition.name.clone();
            container.restarts = record.restarts.get(&name).cloned().unwrap_or_default();
            let there = found.iter().find(|f| f.id.name == name);
            match there {
                Some(found) => {
                    container.runtime_id.clone_from(&found.runtime_id);
                    container.ports.clone_from(&found.ports);
                    container.address.clone_from(&found.address);
                    match &found.state {
                        // It was about to be started again.
                        State::Created if wanted && container.restarts.answered.is_some() => {
                            container.started_at = Some(now.at);
                            restarts.push((found.id.clone(), None));
                        }
                        State::Created => {}
                        // The agent ended before it had an address.
                        State::Running if own && name == PAUSE && found.address.is_none() && attachable => {
                            container.phase = Phase::Starting;
                            attaches = Some((found.id.clone(), found.runtime_id.clone()));
                        }
                        State::Running => {
                            effects::runs(container, now);
                            // The machine runs longer than its containers.
                            container.running_since = now.instant.checked_sub(found.ran).or(Some(now.instant));
                        }
                        State::Exited(_) if !guard::stands(Guard::Exited) => effects::runs(container, now),
                        State::Exited(exit) => {
                            container.started_at = Some(exit.at - found.ran);
                            if wanted && container.restarts.has_answered(exit) {
                                restarts.push((found.id.clone(), None));
                            } else if wanted && container.is_restarted_after(exit, found.ran) {
                                restarts.push((found.id.clone(), Some(exit.clone())));
                            } else {
                                effects::ended(container, exit.clone());
                            }
                        }
                    }
                }
                None if record.launched.contains(&name) && guard::stands(Guard::Launched) => {
                    let exit = Exit { code: None, out_of_memory: false, at: now.at };
                    container.started_at = Some(now.at);
                    effects::ended(container, exit);
                    "ContainerVanishedError: it was gone when the agent came back".clone_into(&mut container.reason);
                }
                None => {}
            }
        }
        if state.containers.iter().all(|c| c.started_at.is_some()) {
            state.started_at = Some(now.at);
        }
        state.host_ports().for_each(|port| self.ports.take(port.host, port.udp));
        let name = state.name().to_owned();
        let rules = attaches.is_some().then(|| firewall::rules(&state, &self.groups)).flatten();
        record.gpus.values().for_each(|gpus| self.gpus.take(&name, gpus));
        tracing::info!(task = name, containers = found.len(), "adopted");
        self.insert(state, record);
        self.touched.insert(name);
        if let Some((id, runtime_id)) = attaches {
            effects::attach(Arc::clone(&self.runtime), self.inputs.clone(), id, runtime_id, rules);
        }
        for (id, exit) in restarts {
            self.restart(&id, exit);
        }
    }

    /// Containers of tasks that nobody remembers: kept until the control plane says that they are gone.
    pub(super) fn take_strays(&mut self, found: &[Found]) {
        for stray in found.iter().filter(|f| !self.tasks.contains_key(&f.id.task)).cloned().collect::<Vec<_>>() {
            tracing::warn!(container = %stray.id, "a container of a task that is not remembered; asking about it");
            let now = self.now();
            let entry = self.tasks.entry(stray.id.task.clone()).or_insert_with(|| {
                let mut task = Object::new(&self.place.cluster, &stray.id.task, Task::default());
                task.meta_mut().uid.clone_from(&stray.id.task);
                let state = TaskState::new(task.clone(), <_>::default(), now.at);
                let record = Record::new(task, <_>::default());
                Entry::new(state, record)
            });
            let mut container =
                ContainerState::new(ContainerDefinition { name: stray.id.name.clone(), ..<_>::default() });
            container.runtime_id.clone_from(&stray.runtime_id);
            container.ports.clone_from(&stray.ports);
            stray.ports.iter().for_each(|port| self.ports.take(port.host, port.udp));
            self.gpus.take(&stray.id.task, &stray.gpus);
            match stray.state.clone() {
                State::Exited(exit) => effects::ended(&mut container, exit),
                State::Running | State::Created => effects::runs(&mut container, now),
            }
            entry.state.containers.push(container);
            self.strays.entry(stray.id.task.clone()).or_default().push(stray);
        }
    }

    /// A stray's task is known after all: its record was lost, and is made anew of what was found. What was seen of its containers
    /// since then is seen once more.
    pub(super) fn restore(&mut self, task: &Object, definition: &TaskDefinitionSpec) {
        let Some(found) = self.strays.remove(task.name()) else { return };
        let Some(lost) = self.tasks.remove(task.name()) else { return };
        lost.state.host_ports().for_each(|port| self.ports.release(port.host, port.udp));
        let mut record = Record::new(task.clone(), definition.clone());
        record.launched = found.iter().map(|f| f.id.name.clone()).collect();
        if task::of(task).is_some_and(|told| told.status.last_status() >= Status::Running) {
            // All of them were: what is not there has ended, and is not to begin again.
            let all = TaskState::new(task.clone(), definition.clone(), self.clock.now()).containers;
            record.launched.extend(all.into_iter().map(|container| container.definition.name));
        }
        // Only that the agent ends can have stopped it until now.
        record.stop.clone_from(&lost.state.stop);
        record.gpus = found.iter().map(|f| (f.id.name.clone(), f.gpus.clone())).collect();
        self.records.note(&record);
        tracing::warn!(task = task.name(), "the record of a task was lost; made anew of its containers");
        self.remember(record, &found.iter().collect::<Vec<_>>());
        for container in lost.state.containers {
            if let Some(exit) = container.exit {
                self.exited(&id(task.name(), &container.definition.name), exit);
            }
        }
    }
}
