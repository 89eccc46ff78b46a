//! `steady.v1.Traffic`.

use steady_core::v1::traffic_server::Traffic;
use steady_core::v1::{
    GetCertificatesRequest, GetCertificatesResponse, ReportTargetHealthRequest, ReportTargetHealthResponse,
};
use tonic::{Request, Response, Status};

use super::status;
use crate::registry::Registry;

/// Serves load balancers.
pub(crate) struct TrafficService {
    pub(crate) registry: Registry,
}

#[tonic::async_trait]
impl Traffic for TrafficService {
    async fn report_target_health(
        &self,
        request: Request<ReportTargetHealthRequest>,
    ) -> Result<Response<ReportTargetHealthResponse>, Status> {
        self.registry.report_target_health(&request.into_inner()).await.map_err(status::of)?;
        Ok(Response::new(ReportTargetHealthResponse {}))
    }

    async fn get_certificates(
        &self,
        request: Request<GetCertificatesRequest>,
    ) -> Result<Response<GetCertificatesResponse>, Status> {
        let request = request.into_inner();
        self.registry.certificates(&request.cluster, &request.certificates).map(Response::new).map_err(status::of)
    }
}
