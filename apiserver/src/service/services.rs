//! `steady.v1.Services`.

use steady_core::v1::services_server::Services;
use steady_core::v1::{
    ContinueServiceDeploymentRequest, ContinueServiceDeploymentResponse, SetAlarmStateRequest, SetAlarmStateResponse,
};
use tonic::{Request, Response, Status};

use super::status;
use crate::registry::Registry;

/// Serves what is asked of deployments.
pub(crate) struct ServicesService {
    pub(crate) registry: Registry,
}

#[tonic::async_trait]
impl Services for ServicesService {
    async fn continue_service_deployment(
        &self,
        request: Request<ContinueServiceDeploymentRequest>,
    ) -> Result<Response<ContinueServiceDeploymentResponse>, Status> {
        let deployment = self.registry.continue_deployment(&request.into_inner()).await.map_err(status::of)?;
        Ok(Response::new(ContinueServiceDeploymentResponse { deployment: Some(deployment) }))
    }

    async fn set_alarm_state(
        &self,
        request: Request<SetAlarmStateRequest>,
    ) -> Result<Response<SetAlarmStateResponse>, Status> {
        let alarm = self.registry.set_alarm_state(&request.into_inner()).await.map_err(status::of)?;
        Ok(Response::new(SetAlarmStateResponse { alarm: Some(alarm) }))
    }
}
