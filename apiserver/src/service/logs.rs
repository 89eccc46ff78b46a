//! Leads output of containers from the agent's session to whoever asked for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use steady_core::Key;
use steady_core::v1::session_response::Message;
use steady_core::v1::{LogChunk, LogClose, LogOpen, LogsRequest, LogsResponse, SessionResponse};
use tokio::sync::mpsc;
use tonic::Status;

/// Where messages to an agent go.
pub(super) type ToAgent = mpsc::Sender<Result<SessionResponse, Status>>;
type Reader = mpsc::Sender<Result<LogsResponse, Status>>;

/// Pieces that may wait for a slow reader; then the agent's other messages wait too, so the reader is cut off.
const PENDING: usize = 256;

#[derive(Default)]
struct Routes {
    agents: HashMap<Key, (i64, ToAgent)>,
    readers: HashMap<i64, (Key, Reader)>,
}

/// Sessions and readers. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct LogRouter {
    routes: Arc<Mutex<Routes>>,
    last: Arc<AtomicI64>,
}

impl LogRouter {
    fn lock(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> i64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// An agent's session is open; the number closes it.
    pub(super) fn opened(&self, instance: &Key, agent: ToAgent) -> i64 {
        let session = self.next();
        self.lock().agents.insert(instance.clone(), (session, agent));
        session
    }

    /// How many sessions are open.
    pub(super) fn sessions(&self) -> usize {
        self.lock().agents.len()
    }

    /// The session is over; its readers hear that their output ends.
    pub(super) fn closed(&self, instance: &Key, session: i64) {
        let mut routes = self.lock();
        if routes.agents.get(instance).is_some_and(|(open, _)| *open == session) {
            routes.agents.remove(instance);
            routes.readers.retain(|_, (of, reader)| {
                if of == instance {
                    let _ = reader.try_send(Err(Status::unavailable("the agent's session ended; ask again")));
                }
                of != instance
            });
        }
    }

    /// Asks an instance for output.
    pub(super) async fn read(
        &self,
        instance: &Key,
        request: LogsRequest,
        containers: Vec<String>,
    ) -> Result<mpsc::Receiver<Result<LogsResponse, Status>>, Status> {
        let agent = self.lock().agents.get(instance).map(|(_, agent)| agent.clone());
        let Some(agent) = agent else {
            let message =
                format!("the agent of {instance} is not connected to this API server; try again, or another one");
            return Err(Status::unavailable(message));
        };
        let (reader, output) = mpsc::channel(PENDING);
        let id = self.next();
        self.lock().readers.insert(id, (instance.clone(), reader));
        let open =
            SessionResponse { message: Some(Message::LogOpen(LogOpen { id, request: Some(request), containers })) };
        if agent.send(Ok(open)).await.is_err() {
            self.lock().readers.remove(&id);
            return Err(Status::unavailable("the agent's session ended; ask again"));
        }
        Ok(output)
    }

    /// A piece from an agent. When nobody reads it any more, the agent is told so.
    pub(super) fn chunk(&self, instance: &Key, chunk: LogChunk) {
        let mut routes = self.lock();
        let Some((of, reader)) = routes.readers.get(&chunk.id) else { return };
        if of != instance {
            return;
        }
        let mut over = chunk.end;
        if !chunk.error.is_empty() {
            let _ = reader.try_send(Err(Status::not_found(chunk.error)));
            over = true;
        } else if let Some(piece) = chunk.chunk
            && reader.try_send(Ok(piece)).is_err()
        {
            let _ = reader.try_send(Err(Status::resource_exhausted("the reader is too slow")));
            let close = SessionResponse { message: Some(Message::LogClose(LogClose { id: chunk.id })) };
            if let Some((_, agent)) = routes.agents.get(instance) {
                let _ = agent.try_send(Ok(close));
            }
            over = true;
        }
        if over {
            routes.readers.remove(&chunk.id);
        }
    }
}
