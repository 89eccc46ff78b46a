//! `steady.v1.Objects`.

use std::pin::Pin;

use steady_core::v1::objects_server::Objects;
use steady_core::v1::{
    ApplyRequest, ApplyResponse, CommitRequest, CommitResponse, DeleteRequest, DeleteResponse, GetRequest, GetResponse,
    ListRequest, ListResponse, Object, WatchRequest, WatchResponse,
};
use steady_core::{Key, Kind, KindExt};
use tonic::{Request, Response, Status};

use super::watch::Watches;
use super::{selects, status, watch};
use crate::registry::{Registry, shown};

/// Most objects of one page.
const MAX_PAGE: usize = 1000;

/// Serves the objects.
pub(crate) struct ObjectsService {
    pub(crate) registry: Registry,
    pub(crate) watches: Watches,
}

#[tonic::async_trait]
impl Objects for ObjectsService {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let reference = request.into_inner().r#ref.ok_or_else(|| Status::invalid_argument("ref is missing"))?;
        let view = self.registry.fresh_view().await.map_err(status::of)?;
        let key = Key::of_ref(&reference);
        let object = view.get(&key).filter(|o| reference.uid.is_empty() || o.meta().uid == reference.uid);
        let object = object.ok_or_else(|| Status::not_found(format!("there is no {key}")))?;
        Ok(Response::new(GetResponse { object: Some(shown(object)), revision: view.revision().0 }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let request = request.into_inner();
        let kind = request.kind();
        if kind == Kind::Unspecified {
            return Err(Status::invalid_argument("kind is missing or unknown"));
        }
        let limit = if request.limit <= 0 { MAX_PAGE } else { (request.limit as usize).min(MAX_PAGE) };
        let selector = request.selector.unwrap_or_default();
        let view = self.registry.fresh_view().await.map_err(status::of)?;
        let after = match request.after.as_str() {
            "" => None,
            after => Some(Key::parse_path(after).ok().filter(|key| key.kind == kind).ok_or_else(|| {
                Status::invalid_argument(format!("after: `{after}` is not the `next` of a page of {}", kind.plural()))
            })?),
        };
        let found = view.of_kind_after(kind, after.as_ref()).filter(|object| selects(&selector, object));
        let mut items: Vec<Object> = found.take(limit + 1).map(|object| shown(object)).collect();
        let more = items.len() > limit;
        items.truncate(limit);
        let next = if more { items.last().map(|o| Key::of(o).to_path()).unwrap_or_default() } else { String::new() };
        Ok(Response::new(ListResponse { items, next, revision: view.revision().0 }))
    }

    type WatchStream = Pin<Box<dyn futures::Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        // A snapshot is never older than what the caller may have seen elsewhere.
        self.registry.fresh_view().await.map_err(status::of)?;
        let server = self.registry.server();
        if request.server != 0 && request.server != server {
            return Err(Status::out_of_range("another API server told that revision; list again"));
        }
        let watch = self.watches.enter().ok_or_else(|| {
            Status::resource_exhausted("this API server serves as many watches as it can; use another one, or end some")
        })?;
        Ok(Response::new(Box::pin(watch::stream(self.registry.cache().clone(), server, request, watch))))
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let request = request.into_inner();
        let (results, revision) = self.registry.apply(request.objects, request.dry_run).await.map_err(status::of)?;
        Ok(Response::new(ApplyResponse { results, revision: revision.0 }))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let reference = request.into_inner().r#ref.ok_or_else(|| Status::invalid_argument("ref is missing"))?;
        let (object, revision) = self.registry.delete(&reference).await.map_err(status::of)?;
        Ok(Response::new(DeleteResponse { object: object.as_ref().map(shown), revision: revision.0 }))
    }

    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        Ok(Response::new(self.registry.commit(request.into_inner()).await.map_err(status::of)?))
    }
}
