//! `steady.v1.Leases`.

use std::pin::Pin;

use futures::StreamExt;
use steady_core::v1::leases_server::Leases;
use steady_core::v1::{
    AcquireRequest, AcquireResponse, KeepAliveRequest, KeepAliveResponse, ReleaseRequest, ReleaseResponse,
    RevisionRequest, RevisionResponse,
};
use tonic::{Request, Response, Status, Streaming};

use super::status;
use crate::registry::Registry;

/// Serves leadership.
pub(crate) struct LeasesService {
    pub(crate) registry: Registry,
}

#[tonic::async_trait]
impl Leases for LeasesService {
    async fn acquire(&self, request: Request<AcquireRequest>) -> Result<Response<AcquireResponse>, Status> {
        let request = request.into_inner();
        let taken = self.registry.acquire(&request.name, &request.holder, request.ttl_seconds).await;
        let taken = taken.map_err(status::of)?;
        Ok(Response::new(AcquireResponse { epoch: taken.epoch.0, revision: taken.revision.0 }))
    }

    type KeepAliveStream = Pin<Box<dyn futures::Stream<Item = Result<KeepAliveResponse, Status>> + Send>>;

    async fn keep_alive(
        &self,
        request: Request<Streaming<KeepAliveRequest>>,
    ) -> Result<Response<Self::KeepAliveStream>, Status> {
        let registry = self.registry.clone();
        let answers = request.into_inner().then(move |request| {
            let registry = registry.clone();
            async move {
                let request = request?;
                let renewed = registry.keep_alive(&request.name, &request.holder, request.status).await;
                let ttl_seconds = renewed.map_err(status::of)?;
                Ok(KeepAliveResponse { ttl_seconds })
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn revision(&self, _: Request<RevisionRequest>) -> Result<Response<RevisionResponse>, Status> {
        let revision = self.registry.revision().await.map_err(status::of)?;
        Ok(Response::new(RevisionResponse { revision: revision.0 }))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        let request = request.into_inner();
        self.registry.release(&request.name, &request.holder).await.map_err(status::of)?;
        Ok(Response::new(ReleaseResponse {}))
    }
}
