//! How ends of containers are noticed: by containerd's events, and by looking at all of them from time to time.

use std::time::Duration;

use containerd_client::events::TaskExit;
use containerd_client::services::v1::SubscribeRequest;
use futures::stream;
use futures::{StreamExt as _, TryStreamExt as _};
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::Response;

use super::api::NAMESPACE;
use super::{Containerd, id_of};
use crate::runtime::{ContainerId, Exit, RuntimeError, State};

/// How often every container is looked at, should an event be lost.
const RELIST: Duration = Duration::from_secs(10);

impl Containerd {
    /// Tells of ends for as long as somebody listens.
    pub(super) async fn follow(self, exits: mpsc::UnboundedSender<(ContainerId, Exit)>) {
        let filters = vec![format!("topic==\"/tasks/exit\",namespace=={NAMESPACE}")];
        while !exits.is_closed() {
            let request = SubscribeRequest { filters: filters.clone() };
            let api = self.api.clone();
            // It answers with the first event: what is looked at meanwhile must not wait for that.
            let events = stream::once(async move { api.events().subscribe(request).await.map(Response::into_inner) });
            let mut events = std::pin::pin!(events.try_flatten());
            let mut relist = tokio::time::interval(RELIST);
            loop {
                let envelope = tokio::select! {
                    biased;
                    event = events.next() => match event {
                        Some(Ok(envelope)) => envelope,
                        _ => break,
                    },
                    _ = relist.tick() => {
                        if let Err(error) = self.tell_ended(&exits, None).await {
                            tracing::warn!(%error, "containers could not be listed");
                        }
                        continue;
                    }
                };
                let exit = envelope.event.and_then(|event| TaskExit::decode(event.value.as_slice()).ok());
                // Of a command in a container nobody is told here.
                let Some(exit) = exit.filter(|exit| exit.id == exit.container_id) else { continue };
                let _ = self.tell_ended(&exits, Some(&exit.container_id)).await;
            }
            tracing::warn!("containerd's events ended; following them again");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Tells of every container that has ended, or of one. Telling it again does no harm.
    async fn tell_ended(
        &self,
        exits: &mpsc::UnboundedSender<(ContainerId, Exit)>,
        only: Option<&str>,
    ) -> Result<(), RuntimeError> {
        let containers = match only {
            None => self.containers().await?,
            Some(id) => {
                let found = self.get(id.to_owned()).await?;
                found.into_iter().filter(|container| self.is_own(container)).collect()
            }
        };
        for container in containers {
            let Some(id) = id_of(&container) else { continue };
            match self.state(&id).await {
                Ok(State::Exited(exit)) => drop(exits.send((id, exit))),
                Ok(_) => {}
                // One that says nothing does not hide the others.
                Err(error) => tracing::warn!(container = %id, %error, "it is not known whether it runs"),
            }
        }
        Ok(())
    }
}
