//! `steady.v1.Tasks`.

use std::pin::Pin;

use steady_core::v1::tasks_server::Tasks;
use steady_core::v1::{
    LogsRequest, LogsResponse, RunTaskRequest, RunTaskResponse, StopTaskRequest, StopTaskResponse,
    UpdateTaskProtectionRequest, UpdateTaskProtectionResponse,
};
use steady_core::{Key, Kind, task};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{LogRouter, status};
use crate::registry::{Registry, cluster};

/// Serves tasks.
pub(crate) struct TasksService {
    pub(crate) registry: Registry,
    pub(crate) logs: LogRouter,
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
        let output = self.logs.read(&instance, request, containers).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(output))))
    }
}
