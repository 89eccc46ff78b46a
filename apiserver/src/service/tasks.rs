//! `steady.v1.Tasks`.

use std::collections::BTreeMap;
use std::pin::Pin;

use steady_core::v1::exec_request::Message as Asked;
use steady_core::v1::task_last_status::Value as LastStatus;
use steady_core::v1::tasks_server::Tasks;
use steady_core::v1::{
    ContainerName, ContainerUsage, ExecRequest, ExecResponse, LogsRequest, LogsResponse, RunTaskRequest,
    RunTaskResponse, StatsRequest, StatsResponse, StopTaskRequest, StopTaskResponse, UpdateTaskProtectionRequest,
    UpdateTaskProtectionResponse,
};
use steady_core::{Key, Kind, task};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Relay, status};
use crate::registry::{Registry, cluster};

/// Most tasks of one question.
const MAX_TASKS: usize = 100;

/// Serves tasks.
pub(crate) struct TasksService {
    pub(crate) registry: Registry,
    pub(crate) relay: Relay,
}

#[tonic::async_trait]
impl Tasks for TasksService {
    async fn run_task(&self, request: Request<RunTaskRequest>) -> Result<Response<RunTaskResponse>, Status> {
        let tasks = self.registry.run_task(&request.into_inner()).await.map_err(status::of)?;
        Ok(Response::new(RunTaskResponse { tasks }))
    }

    async fn stop_task(&self, request: Request<StopTaskRequest>) -> Result<Response<StopTaskResponse>, Status> {
        let (task, _) = self.registry.stop_task(&request.into_inner()).await.map_err(status::of)?;
        Ok(Response::new(StopTaskResponse { task: Some(task) }))
    }

    async fn update_task_protection(
        &self,
        request: Request<UpdateTaskProtectionRequest>,
    ) -> Result<Response<UpdateTaskProtectionResponse>, Status> {
        let protected_tasks = self.registry.protect(&request.into_inner()).await.map_err(status::of)?;
        Ok(Response::new(UpdateTaskProtectionResponse { protected_tasks }))
    }

    async fn stats(&self, request: Request<StatsRequest>) -> Result<Response<StatsResponse>, Status> {
        let request = request.into_inner();
        if request.tasks.is_empty() || request.tasks.len() > MAX_TASKS {
            let message = format!("tasks: {} of them; expected 1 to {MAX_TASKS}", request.tasks.len());
            return Err(Status::invalid_argument(message));
        }
        let view = self.registry.fresh_view().await.map_err(status::of)?;
        let mut asked: BTreeMap<Key, Vec<ContainerName>> = BTreeMap::new();
        for name in &request.tasks {
            let key = Key::new(Kind::Task, cluster(&request.cluster), name);
            let Some(found) = view.get(&key).and_then(|object| task::of(object)) else { continue };
            let instance = Key::new(Kind::ContainerInstance, &key.cluster, &found.spec.container_instance);
            let running = found.status.containers.iter().filter(|c| c.last_status() == LastStatus::Running);
            let names = running.map(|c| ContainerName { task: name.clone(), container: c.name.clone() });
            asked.entry(instance).or_default().extend(names);
        }
        asked.retain(|_, containers| !containers.is_empty());
        let asking = asked.into_iter().map(|(instance, containers)| async {
            let told = self.relay.usage(&instance, containers).await;
            (instance, told)
        });
        let mut response = StatsResponse::default();
        for (instance, told) in futures::future::join_all(asking).await {
            match told {
                Some(told) => response.containers.extend(
                    told.into_iter()
                        .map(|usage| ContainerUsage { container_instance: instance.name.to_string(), ..usage }),
                ),
                None => response.silent_instances.push(instance.name.to_string()),
            }
        }
        Ok(Response::new(response))
    }

    type ExecStream = Pin<Box<dyn futures::Stream<Item = Result<ExecResponse, Status>> + Send>>;

    async fn exec(&self, request: Request<Streaming<ExecRequest>>) -> Result<Response<Self::ExecStream>, Status> {
        let mut asked = request.into_inner();
        let Some(Asked::Start(mut start)) = asked.message().await?.and_then(|first| first.message) else {
            return Err(Status::invalid_argument("the first message says what to start"));
        };
        if start.command.first().is_none_or(String::is_empty) {
            return Err(Status::invalid_argument("command: is missing; expected a program and its arguments"));
        }
        let view = self.registry.fresh_view().await.map_err(status::of)?;
        let key = Key::new(Kind::Task, cluster(&start.cluster), &start.task);
        let found = view.get(&key).and_then(|object| task::of(object));
        let found = found.ok_or_else(|| Status::not_found(format!("there is no {key}")))?;
        let definition = view.get(&Key::new(Kind::TaskDefinition, "", &found.spec.task_definition));
        let definition = definition.and_then(|d| d.as_task_definition()?.spec.as_ref());
        if start.container.is_empty() {
            let essential = definition.and_then(|d| {
                d.container_definitions.iter().find(|c| c.essential.unwrap_or(true)).map(|c| c.name.clone())
            });
            start.container = essential.unwrap_or_default();
        }
        match found.status.containers.iter().find(|container| container.name == start.container) {
            Some(container) if container.last_status() == LastStatus::Running => {}
            Some(container) => {
                let status = container.last_status().as_str_name();
                let message = format!("container {} of {key} does not run: it is {status}", container.name);
                return Err(Status::failed_precondition(message));
            }
            None => {
                let known: Vec<&str> = found.status.containers.iter().map(|c| c.name.as_str()).collect();
                let known = if known.is_empty() { "none yet".to_owned() } else { known.join(", ") };
                let message = format!("{key} has no container `{}`; containers: {known}", start.container);
                return Err(Status::failed_precondition(message));
            }
        }
        let instance = Key::new(Kind::ContainerInstance, &key.cluster, &found.spec.container_instance);
        Ok(Response::new(Box::pin(self.relay.execute(&instance, start, asked)?)))
    }

    type LogsStream = Pin<Box<dyn futures::Stream<Item = Result<LogsResponse, Status>> + Send>>;

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let request = request.into_inner();
        let cluster = cluster(&request.cluster);
        let view = self.registry.fresh_view().await.map_err(status::of)?;
        let key = Key::new(Kind::Task, cluster, &request.task);
        let found = view.get(&key).and_then(|object| task::of(object));
        let found = found.ok_or_else(|| Status::not_found(format!("there is no {key}")))?;
        if found.spec.container_instance.is_empty() {
            return Err(Status::failed_precondition(format!("{key} has not been placed yet, so it has no output")));
        }
        let definition = view.get(&Key::new(Kind::TaskDefinition, "", &found.spec.task_definition));
        let definition = definition.and_then(|d| d.as_task_definition()?.spec.as_ref());
        let mut known: Vec<String> = found.status.containers.iter().map(|c| c.name.clone()).collect();
        if known.is_empty() {
            known = definition.into_iter().flat_map(|d| &d.container_definitions).map(|c| c.name.clone()).collect();
        }
        let containers = if request.container.is_empty() { known } else { vec![request.container.clone()] };
        let instance = Key::new(Kind::ContainerInstance, cluster, &found.spec.container_instance);
        let output = self.relay.read(&instance, request, containers).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(output))))
    }
}
