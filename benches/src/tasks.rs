//! The tasks of a run: declared over the API, and followed on one watch as any user could.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use steady_core::v1::desired_status::Value as Desired;
use steady_core::v1::task_last_status::Value as Status;
use steady_core::v1::watch_response::Phase;
use steady_core::v1::{
    ApplyRequest, ContainerDefinition, DeleteRequest, Object, ObjectRef, Selector, Service, ServiceSpec, Task,
    TaskDefinition, TaskDefinitionSpec, WatchRequest, WatchResponse,
};

use steady_core::{DEFAULT_CLUSTER, Kind};
use steady_runtime::Client;
use tonic::Streaming;

use crate::engine::IMAGE;

/// Longest wait for tasks to get where they should.
const PATIENCE: Duration = Duration::from_secs(120);
/// Family of the task definition that every benchmark uses.
pub(crate) const FAMILY: &str = "bench";

/// Declares the task definition: one small container.
pub(crate) async fn define(client: &Client) -> anyhow::Result<()> {
    let container = ContainerDefinition {
        name: "main".into(),
        image: IMAGE.into(),
        command: vec!["sleep".into(), "100000".into()],
        cpu: 10,
        memory: 16,
        stop_timeout: Some(2),
        ..ContainerDefinition::default()
    };
    let spec = TaskDefinitionSpec {
        family: FAMILY.into(),
        container_definitions: vec![container],
        ..TaskDefinitionSpec::default()
    };
    let definition = TaskDefinition { spec: Some(spec), ..TaskDefinition::default() };
    apply(client, Object::new("", FAMILY, definition)).await
}

/// Declares a service with this many tasks.
pub(crate) async fn service(client: &Client, name: &str, count: u32) -> anyhow::Result<()> {
    let spec = ServiceSpec {
        task_definition: FAMILY.into(),
        desired_count: Some(i32::try_from(count)?),
        ..ServiceSpec::default()
    };
    apply(client, Object::new(DEFAULT_CLUSTER, name, Service { spec: Some(spec), ..Service::default() })).await
}

async fn apply(client: &Client, object: Object) -> anyhow::Result<()> {
    let what = object.name().to_owned();
    let request = ApplyRequest { objects: vec![object], dry_run: false };
    client.objects().apply(request).await.with_context(|| format!("{what} was not applied"))?;
    Ok(())
}

/// Deletes a service, and waits until it is gone.
pub(crate) async fn delete(client: &Client, name: &str) -> anyhow::Result<Duration> {
    let service = ObjectRef {
        kind: Kind::Service.into(),
        cluster: DEFAULT_CLUSTER.into(),
        name: name.into(),
        ..ObjectRef::default()
    };
    let began = Instant::now();
    client.objects().delete(DeleteRequest { r#ref: Some(service.clone()) }).await?;
    loop {
        let request = steady_core::v1::GetRequest { r#ref: Some(service.clone()) };
        match client.objects().get(request).await {
            Err(status) if status.code() == tonic::Code::NotFound => return Ok(began.elapsed()),
            Err(status) => return Err(status.into()),
            Ok(_) if began.elapsed() > PATIENCE => bail!("service {name} is still there after {PATIENCE:?}"),
            Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Since a change was asked for, until its last task was seen there.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Course {
    /// The first task: created (up) or asked to stop (down).
    pub(crate) first: Duration,
    /// Every task: created (up) or asked to stop (down).
    pub(crate) decided: Duration,
    /// Every task: placed (up only).
    pub(crate) placed: Duration,
    /// Every task: RUNNING (up) or STOPPED (down).
    pub(crate) done: Duration,
    /// When the API had answered the request.
    pub(crate) answered: Duration,
}

/// Every task, as a watch tells.
pub(crate) struct Tasks {
    stream: Streaming<WatchResponse>,
    tasks: HashMap<String, Object>,
}

fn status(task: &Task) -> Status {
    task.status.as_ref().map_or(Status::Unspecified, steady_core::v1::TaskStatus::last_status)
}

fn told_to_stop(task: &Task) -> bool {
    task.status.as_ref().is_some_and(|status| status.desired_status() == Desired::Stopped)
}

impl Tasks {
    /// Follows from now on.
    pub(crate) async fn follow(client: &Client) -> anyhow::Result<Self> {
        let request = WatchRequest {
            kinds: vec![Kind::Task.into()],
            selector: Some(Selector { cluster: DEFAULT_CLUSTER.into(), ..Selector::default() }),
            ..WatchRequest::default()
        };
        let stream = client.objects().watch(request).await?.into_inner();
        let mut tasks = Tasks { stream, tasks: HashMap::new() };
        while tasks.step(Instant::now()).await?.0 != Phase::InitDone {}
        Ok(tasks)
    }

    /// Takes the next message; its phase, and the tasks that it tells of.
    async fn step(&mut self, began: Instant) -> anyhow::Result<(Phase, Vec<String>)> {
        let left = PATIENCE.saturating_sub(began.elapsed());
        let message = match tokio::time::timeout(left, self.stream.next()).await {
            Ok(Some(message)) => message.context("the watch failed")?,
            Ok(None) => bail!("the watch ended"),
            Err(_) => bail!("not there after {PATIENCE:?}: {}", self.standing()),
        };
        let phase = message.phase();
        let mut names = Vec::new();
        for event in message.events {
            let Some(object) = event.object else { continue };
            if event.deleted {
                self.tasks.remove(object.name());
            } else {
                names.push(object.name().to_owned());
                self.tasks.insert(object.name().to_owned(), object);
            }
        }
        Ok((phase, names))
    }

    /// How many tasks stand where.
    fn standing(&self) -> String {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for task in self.tasks.values().filter_map(Object::as_task) {
            *counts.entry(status(task).as_str_name()).or_default() += 1;
        }
        format!("{counts:?}")
    }

    fn count(&self, service: &str, holds: impl Fn(&Task) -> bool) -> usize {
        self.tasks.values().filter_map(Object::as_task).filter(|t| spec_service(t) == service && holds(t)).count()
    }

    /// Gives a new service this many tasks, until all of them run.
    pub(crate) async fn up(&mut self, client: &Client, name: &str, count: u32) -> anyhow::Result<Course> {
        let (began, applied) = ask(client, name, count);
        let mut course = Course::default();
        let count = count as usize;
        loop {
            self.step(began).await?;
            let now = began.elapsed();
            mark(&mut course.first, now, || self.count(name, |_| true) > 0);
            mark(&mut course.decided, now, || self.count(name, |_| true) >= count);
            mark(&mut course.placed, now, || self.count(name, placed) >= count);
            mark(&mut course.done, now, || self.count(name, |t| status(t) == Status::Running) >= count);
            if !course.done.is_zero() {
                course.answered = applied.await??;
                return Ok(course);
            }
        }
    }

    /// Takes every task from a service, until all of them have stopped.
    pub(crate) async fn down(&mut self, client: &Client, name: &str) -> anyhow::Result<Course> {
        let (began, applied) = ask(client, name, 0);
        let mut course = Course::default();
        loop {
            self.step(began).await?;
            let now = began.elapsed();
            mark(&mut course.first, now, || self.count(name, told_to_stop) > 0);
            mark(&mut course.decided, now, || self.count(name, |t| !told_to_stop(t)) == 0);
            mark(&mut course.done, now, || self.count(name, |t| status(t) != Status::Stopped) == 0);
            if !course.done.is_zero() {
                course.answered = applied.await??;
                return Ok(course);
            }
        }
    }

    /// Waits until so many tasks that satisfy the condition run.
    pub(crate) async fn all_running(&mut self, count: usize, wanted: impl Fn(&Task) -> bool) -> anyhow::Result<()> {
        let began = Instant::now();
        let runs = |object: &&Object| object.as_task().is_some_and(|t| status(t) == Status::Running && wanted(t));
        while self.tasks.values().filter(runs).count() < count {
            self.step(began).await?;
        }
        Ok(())
    }

    /// Waits until a task has stopped.
    pub(crate) async fn stopped(&mut self, name: &str) -> anyhow::Result<()> {
        let began = Instant::now();
        let stopped = |object: &Object| object.as_task().is_some_and(|t| status(t) == Status::Stopped);
        while self.tasks.get(name).is_some_and(|object| !stopped(object)) {
            self.step(began).await?;
        }
        Ok(())
    }

    /// Waits until a task that satisfies the condition runs, if none does yet.
    pub(crate) async fn running(&mut self, wanted: impl Fn(&Task) -> bool) -> anyhow::Result<Object> {
        let began = Instant::now();
        let runs = |object: &&Object| object.as_task().is_some_and(|t| status(t) == Status::Running && wanted(t));
        if let Some(object) = self.tasks.values().find(runs) {
            return Ok(object.clone());
        }
        loop {
            let (_, names) = self.step(began).await?;
            if let Some(object) = names.iter().filter_map(|name| self.tasks.get(name)).find(runs) {
                return Ok(object.clone());
            }
        }
    }
}

/// Applies while the watch is read: what follows may be faster than the answer.
fn ask(client: &Client, name: &str, count: u32) -> (Instant, tokio::task::JoinHandle<anyhow::Result<Duration>>) {
    let (client, name, began) = (client.clone(), name.to_owned(), Instant::now());
    let applied = tokio::spawn(async move {
        service(&client, &name, count).await?;
        Ok(began.elapsed())
    });
    (began, applied)
}

fn spec_service(task: &Task) -> &str {
    task.spec.as_ref().map_or("", |spec| spec.service.as_str())
}

fn placed(task: &Task) -> bool {
    task.spec.as_ref().is_some_and(|spec| !spec.container_instance.is_empty())
}

/// Notes when something held for the first time.
fn mark(at: &mut Duration, now: Duration, holds: impl FnOnce() -> bool) {
    if at.is_zero() && holds() {
        *at = now;
    }
}
