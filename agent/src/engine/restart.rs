//! Restarting a container that ended, by its restart policy: nobody is asked, so that it works without the control plane.

use std::sync::Arc;

use super::model::Phase;
use super::{Engine, effects};
use crate::runtime::{ContainerId, Exit, RuntimeError};

impl Engine {
    /// Starts a container again that has ended; `None`: that was decided in a former life of the agent.
    pub(super) fn restart(&mut self, id: &ContainerId, exit: Option<Exit>) {
        let Some(entry) = self.tasks.get_mut(&id.task) else { return };
        let Some(container) = entry.state.container_mut(&id.name) else { return };
        match exit {
            Some(exit) => container.restarts_after(exit),
            None => container.phase = Phase::Restarting,
        }
        tracing::info!(container = %id, restart = container.restarts.count, "starting it again");
        entry.record.restarts.insert(id.name.clone(), container.restarts.clone());
        // Without the record the next agent would decide the same once more.
        self.records.note(&entry.record);
        effects::restart(Arc::clone(&self.runtime), self.inputs.clone(), id.clone());
    }

    pub(super) fn restarted(&mut self, id: &ContainerId, result: Result<String, RuntimeError>) {
        let mut ended = None;
        self.with(id, |container, now| match result {
            Ok(runtime_id) if container.phase == Phase::Restarting => {
                container.runtime_id = runtime_id;
                effects::runs(container, now);
                ended = container.exit.take();
            }
            Err(error) if container.phase == Phase::Restarting => {
                let exit = container.restarts.answered.take();
                if let Some(exit) = exit {
                    effects::ended(container, exit);
                }
                container.phase = Phase::Stopped;
                container.reason = error.to_string();
            }
            _ => {}
        });
        // It may have ended before its start was known here.
        if let Some(exit) = ended {
            self.exited(id, exit);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use steady_core::v1::desired_status::Value as Desired;
    use steady_core::v1::{
        Assignment, Container, ContainerDefinition, Object, RestartPolicy, Task, TaskDefinitionSpec, TaskSpec,
        TaskStatus, task_last_status::Value as Status,
    };
    use steady_core::{SystemClock, Timestamp};
    use tokio::sync::{mpsc, watch};

    use super::*;
    use crate::engine::{Input, Outgoing, Place};
    use crate::record::Records;
    use crate::runtime::{Hollow, HollowBehaviour, Runtime};

    struct Agent {
        inputs: mpsc::UnboundedSender<Input>,
        outgoing: watch::Receiver<Outgoing>,
    }

    impl Agent {
        async fn start(hollow: &Hollow, directory: &Path) -> Self {
            let (inputs, taken) = mpsc::unbounded_channel();
            let (told, outgoing) = watch::channel(Outgoing::default());
            let place = Place { cluster: "default".into(), uid: "i".into(), ..Place::default() };
            let records = Records::open(Some(directory)).expect("records");
            let clock = Arc::new(SystemClock);
            let runtime = Arc::new(hollow.clone());
            let engine = Engine::adopt(place, runtime, records, clock, inputs.clone(), told).await.expect("adopts");
            tokio::spawn(engine.run(taken));
            Agent { inputs, outgoing }
        }

        async fn exits(&self, code: i32, at: i64) {
            let id = ContainerId { task: "t".into(), name: "web".into() };
            let exit = Exit { code: Some(code), out_of_memory: false, at: Timestamp(at) };
            self.inputs.send(Input::Exited(id, exit)).expect("taken");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }

        fn container(&self) -> Container {
            let outgoing = self.outgoing.borrow();
            let status = outgoing.reports[0].1.status.as_ref().expect("a status");
            status.containers[0].clone()
        }
    }

    fn assignment() -> Assignment {
        let policy = RestartPolicy { enabled: true, ignored_exit_codes: vec![7], restart_attempt_period: Some(60) };
        let web = ContainerDefinition { name: "web".into(), restart_policy: Some(policy), ..<_>::default() };
        let definition = TaskDefinitionSpec { container_definitions: vec![web], ..<_>::default() };
        let status = TaskStatus { desired_status: Desired::Running.into(), ..<_>::default() };
        let task = Task { spec: Some(TaskSpec::default()), status: Some(status) };
        Assignment { task: Some(Object::new("default", "t", task)), definition: Some(definition), ..<_>::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_container_that_ran_long_enough_is_started_again_and_an_end_counts_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let hollow = Hollow::new(1, HollowBehaviour::default());
        let agent = Agent::start(&hollow, directory.path()).await;
        agent.inputs.send(Input::Snapshot(vec![assignment()])).expect("taken");
        tokio::time::sleep(Duration::from_secs(61)).await;
        agent.exits(1, 1000).await;
        agent.exits(1, 1000).await;
        let container = agent.container();
        assert_eq!((container.restart_count, container.last_status()), (1, Status::Running));
        tokio::time::sleep(Duration::from_secs(30)).await;
        agent.exits(1, 2000).await;
        let container = agent.container();
        let found = (container.restart_count, container.last_status(), container.exit_code);
        assert_eq!(found, (1, Status::Stopped, Some(1)), "it ran for less than the period");
    }

    #[tokio::test(start_paused = true)]
    async fn an_exit_code_that_is_ignored_and_a_task_that_is_to_stop_are_no_cause_for_a_restart() {
        for stops in [false, true] {
            let directory = tempfile::tempdir().expect("a directory");
            let hollow = Hollow::new(1, HollowBehaviour::default());
            let agent = Agent::start(&hollow, directory.path()).await;
            agent.inputs.send(Input::Snapshot(vec![assignment()])).expect("taken");
            tokio::time::sleep(Duration::from_secs(61)).await;
            if stops {
                let mut stopped = assignment();
                let task = stopped.task.as_mut().expect("a task");
                let mut status = steady_core::task::of(task).expect("a task").status.clone();
                status.set_desired_status(Desired::Stopped);
                *task = Object::new("default", "t", Task { spec: Some(TaskSpec::default()), status: Some(status) });
                agent.inputs.send(Input::Changed(vec![stopped])).expect("taken");
            }
            agent.exits(if stops { 1 } else { 7 }, 1000).await;
            let container = agent.container();
            assert_eq!((container.restart_count, container.last_status()), (0, Status::Stopped));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_was_to_stop_is_stopped_by_the_next_agent_without_being_told_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let hollow = Hollow::new(1, HollowBehaviour::default());
        let agent = Agent::start(&hollow, directory.path()).await;
        agent.inputs.send(Input::Snapshot(vec![assignment()])).expect("taken");
        tokio::time::sleep(Duration::from_secs(61)).await;
        agent.inputs.send(Input::StopAll).expect("taken");
        tokio::time::sleep(Duration::from_secs(1)).await;
        // As if the agent had died before its container ended.
        let id = ContainerId { task: "t".into(), name: "web".into() };
        hollow.restart(&id).await.expect("runs");
        let next = Agent::start(&hollow, directory.path()).await;
        tokio::time::sleep(Duration::from_secs(61)).await;
        let container = next.container();
        assert_eq!((container.restart_count, container.last_status()), (0, Status::Stopped));
    }

    #[tokio::test(start_paused = true)]
    async fn a_restart_that_the_agent_did_not_live_to_see_is_done_by_the_next_one_and_counted_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let slow = HollowBehaviour { start_delay: 1000..=1000, ..HollowBehaviour::default() };
        let hollow = Hollow::new(1, slow);
        let agent = Agent::start(&hollow, directory.path()).await;
        agent.inputs.send(Input::Snapshot(vec![assignment()])).expect("taken");
        tokio::time::sleep(Duration::from_secs(65)).await;
        let id = ContainerId { task: "t".into(), name: "web".into() };
        hollow.stop(&id, Duration::ZERO).await.expect("ended");
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(agent.container().restart_count, 1);
        // The first agent's restart takes a second: the next one finds the container ended.
        let next = Agent::start(&hollow, directory.path()).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let container = next.container();
        assert_eq!((container.restart_count, container.last_status()), (1, Status::Running));
    }
}
