//! Leads output of containers, and what commands in them say, from the agent's session to whoever asked for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use steady_core::Key;
use steady_core::v1::session_response::Message;
use steady_core::v1::{
    ContainerName, ContainerUsage, ExecChunk, LogChunk, LogClose, LogOpen, LogsRequest, LogsResponse, SessionResponse,
    UsageAsked, UsageTold,
};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use super::exec::Talk;

/// Where messages to an agent go.
pub(super) type ToAgent = mpsc::Sender<Result<SessionResponse, Status>>;
type Reader = mpsc::Sender<Result<LogsResponse, Status>>;

/// Pieces that may wait for a slow reader; then the agent's other messages wait too, so the reader is cut off.
const PENDING: usize = 256;
/// How long an agent may take to say what its containers take.
const ANSWER: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Routes {
    agents: HashMap<Key, (i64, ToAgent)>,
    readers: HashMap<i64, (Key, Reader)>,
    talks: HashMap<i64, Talk>,
    questions: HashMap<i64, (Key, oneshot::Sender<Vec<ContainerUsage>>)>,
}

fn elsewhere(instance: &Key) -> Status {
    let message =
        format!("the agent of {instance} is not connected to this API server; name another one with --server");
    Status::aborted(message)
}

impl Routes {
    /// Whoever waits for something of an instance's session hears that it is over.
    fn end(&mut self, instance: &Key) {
        self.readers.retain(|_, (of, reader)| {
            if of == instance {
                let _ = reader.try_send(Err(Status::aborted("the agent's session ended; ask again")));
            }
            of != instance
        });
        self.questions.retain(|_, (of, _)| of != instance);
        self.talks.retain(|_, talk| {
            if talk.instance == *instance {
                talk.lost();
            }
            talk.instance != *instance
        });
    }
}

/// Sessions and readers. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Relay {
    routes: Arc<Mutex<Routes>>,
    last: Arc<AtomicI64>,
}

impl Relay {
    fn lock(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> i64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// An agent's session is open; the number closes it. One before it is over, whether that was noticed or not.
    pub(super) fn opened(&self, instance: &Key, agent: ToAgent) -> i64 {
        let session = self.next();
        let mut routes = self.lock();
        if routes.agents.insert(instance.clone(), (session, agent)).is_some() {
            routes.end(instance);
        }
        session
    }

    /// How many sessions are open.
    pub(crate) fn sessions(&self) -> usize {
        self.lock().agents.len()
    }

    /// The session is over; its readers hear that their output ends. False: another one has taken its place.
    pub(super) fn closed(&self, instance: &Key, session: i64) -> bool {
        let mut routes = self.lock();
        let last = routes.agents.get(instance).is_some_and(|(open, _)| *open == session);
        if last {
            routes.agents.remove(instance);
            routes.end(instance);
        }
        last
    }

    /// Where messages to an instance go.
    pub(super) fn agent(&self, instance: &Key) -> Result<ToAgent, Status> {
        let agent = self.lock().agents.get(instance).map(|(_, agent)| agent.clone());
        agent.ok_or_else(|| elsewhere(instance))
    }

    /// A command begins: its number, and where messages to its instance go.
    pub(super) fn add_talk(&self, talk: Talk) -> Result<(i64, ToAgent), Status> {
        let id = self.next();
        let mut routes = self.lock();
        let agent = routes.agents.get(&talk.instance).map(|(_, agent)| agent.clone());
        let agent = agent.ok_or_else(|| elsewhere(&talk.instance))?;
        routes.talks.insert(id, talk);
        Ok((id, agent))
    }

    /// Nobody is interested in a command any more; whether it has not ended.
    pub(super) fn forget_talk(&self, id: i64) -> bool {
        self.lock().talks.remove(&id).is_some()
    }

    /// Something of a command from an agent.
    pub(super) fn of_command(&self, instance: &Key, chunk: ExecChunk) {
        let mut routes = self.lock();
        let id = chunk.id;
        let over = routes.talks.get(&id).is_some_and(|talk| talk.instance == *instance && talk.take(chunk));
        if over {
            routes.talks.remove(&id);
        }
    }

    /// Asks an instance what containers take; `None`: it does not say.
    pub(super) async fn usage(&self, instance: &Key, containers: Vec<ContainerName>) -> Option<Vec<ContainerUsage>> {
        let agent = self.agent(instance).ok()?;
        let (answer, answered) = oneshot::channel();
        let id = self.next();
        self.lock().questions.insert(id, (instance.clone(), answer));
        let asked = SessionResponse { message: Some(Message::UsageAsked(UsageAsked { id, containers })) };
        let asking = async {
            agent.send(Ok(asked)).await.ok()?;
            answered.await.ok()
        };
        let told = tokio::time::timeout(ANSWER, asking).await.ok().flatten();
        self.lock().questions.remove(&id);
        told
    }

    /// What an instance's containers take.
    pub(super) fn told(&self, instance: &Key, told: UsageTold) {
        let mut routes = self.lock();
        if routes.questions.get(&told.id).is_some_and(|(of, _)| of == instance)
            && let Some((_, answer)) = routes.questions.remove(&told.id)
        {
            let _ = answer.send(told.containers);
        }
    }

    /// Asks an instance for output.
    pub(super) async fn read(
        &self,
        instance: &Key,
        request: LogsRequest,
        containers: Vec<String>,
    ) -> Result<mpsc::Receiver<Result<LogsResponse, Status>>, Status> {
        let agent = self.agent(instance)?;
        let (reader, output) = mpsc::channel(PENDING);
        let id = self.next();
        self.lock().readers.insert(id, (instance.clone(), reader));
        let open =
            SessionResponse { message: Some(Message::LogOpen(LogOpen { id, request: Some(request), containers })) };
        if agent.send(Ok(open)).await.is_err() {
            self.lock().readers.remove(&id);
            return Err(Status::aborted("the agent's session ended; ask again"));
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
