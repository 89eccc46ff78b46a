//! `steady.v1.Admin`: looking after the control plane itself.

use std::pin::Pin;

use futures::{StreamExt, stream};
use steady_core::v1::admin_server::Admin;
use steady_core::v1::{
    BackupRequest, BackupResponse, CheckRequest, CheckResponse, MakeRoomRequest, MakeRoomResponse, StatusRequest,
    StatusResponse, StoreMember,
};
use tonic::{Request, Response, Status};

use super::watch::Watches;
use super::{Relay, status};
use crate::backup;
use crate::registry::Registry;
use crate::storage::{Alarm, Health, MemberHealth};

/// Serves those who look after it.
pub(crate) struct AdminService {
    pub(crate) registry: Registry,
    pub(crate) watches: Watches,
    pub(crate) relay: Relay,
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let health = self.registry.health().await.map_err(status::of)?;
        let revision = self.registry.fresh_view().await.map_err(status::of)?.revision();
        let cache = self.registry.cache();
        Ok(Response::new(StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: revision.0,
            cached_revision: cache.revision().0,
            epoch: self.registry.epoch(),
            objects: signed(cache.view().len() as u64),
            watchers: signed(self.watches.count() as u64),
            sessions: signed(self.relay.sessions() as u64),
            alarms: health.alarms.iter().map(|alarm| word(*alarm).to_owned()).collect(),
            members: health.members.into_iter().map(member).collect(),
            quarantine: cache.quarantine(),
        }))
    }

    async fn make_room(&self, _: Request<MakeRoomRequest>) -> Result<Response<MakeRoomResponse>, Status> {
        let size = |health: &Health| signed(health.members.iter().map(|member| member.size).sum());
        let before = self.registry.health().await.map_err(status::of)?;
        self.registry.make_room().await.map_err(status::of)?;
        let after = self.registry.health().await.map_err(status::of)?;
        Ok(Response::new(MakeRoomResponse { before: size(&before), after: size(&after) }))
    }

    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let checked = self.registry.check().await.map_err(status::of)?;
        let (revision, objects) = (checked.revision.0, signed(checked.objects as u64));
        Ok(Response::new(CheckResponse { revision, objects, findings: checked.findings }))
    }

    type BackupStream = Pin<Box<dyn futures::Stream<Item = Result<BackupResponse, Status>> + Send>>;

    async fn backup(&self, _: Request<BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let parts = backup::take(&self.registry).await.map_err(status::of)?;
        Ok(Response::new(stream::iter(parts.map(Ok)).boxed()))
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn word(alarm: Alarm) -> &'static str {
    match alarm {
        Alarm::NoSpace => "NOSPACE",
        Alarm::Other => "CORRUPT",
    }
}

fn member(member: MemberHealth) -> StoreMember {
    StoreMember {
        endpoint: member.endpoint,
        name: member.name,
        version: member.version,
        leads: member.leads,
        learner: member.learner,
        size: signed(member.size),
        in_use: signed(member.in_use),
        quota: signed(member.quota),
        error: member.error,
    }
}
