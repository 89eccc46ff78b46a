//! Leads a command's input and output between whoever asked for it and the agent's session.
//!
//! Each side has a window of pieces that were not acknowledged yet: a reader that is slow, or a command that does not read,
//! holds up itself and nothing else that the session carries.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use steady_core::Key;
use steady_core::v1::exec_request::Message as Asked;
use steady_core::v1::session_response::Message;
use steady_core::v1::{
    EXEC_WINDOW, EndOfInput, ExecChunk, ExecMessage, ExecRequest, ExecResponse, ExecStart, SessionResponse,
};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tonic::{Status, Streaming};

use super::relay::{Relay, ToAgent};

/// Largest piece of input, bytes.
const PIECE: usize = 64 * 1024;

/// One command as the relay knows it.
pub(super) struct Talk {
    pub(super) instance: Key,
    reader: mpsc::Sender<Result<ExecResponse, Status>>,
    /// Pieces of input that the agent still takes.
    window: Arc<Semaphore>,
}

impl Talk {
    /// Something from the agent; whether that was the last of it.
    pub(super) fn take(&self, chunk: ExecChunk) -> bool {
        self.window.add_permits(usize::try_from(chunk.taken).unwrap_or(0).min(EXEC_WINDOW));
        if !chunk.error.is_empty() {
            let _ = self.reader.try_send(Err(Status::failed_precondition(chunk.error)));
            return true;
        }
        let Some(piece) = chunk.chunk else { return false };
        let over = piece.exit_code.is_some();
        // It never sends more than the window: there is room.
        over | self.reader.try_send(Ok(piece)).is_err()
    }

    pub(super) fn lost(&self) {
        let _ = self.reader.try_send(Err(Status::aborted("the agent's session ended, and the command with it")));
    }
}

fn message(id: i64, message: ExecMessage) -> SessionResponse {
    SessionResponse { message: Some(Message::ExecMessage(ExecMessage { id, ..message })) }
}

/// The output of a command. Dropped, the command ends.
pub(crate) struct Output {
    id: i64,
    relay: Relay,
    agent: ToAgent,
    pieces: mpsc::Receiver<Result<ExecResponse, Status>>,
    read: mpsc::UnboundedSender<()>,
    tasks: [AbortHandle; 2],
}

impl Stream for Output {
    type Item = Result<ExecResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.pieces.poll_recv(context);
        if let Poll::Ready(Some(Ok(_))) = &polled {
            let _ = self.read.send(());
        }
        polled
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        if self.relay.forget_talk(self.id) {
            let (agent, id) = (self.agent.clone(), self.id);
            tokio::spawn(
                async move { agent.send(Ok(message(id, ExecMessage { close: true, ..<_>::default() }))).await },
            );
        }
    }
}

impl Relay {
    /// Has an instance run a command.
    pub(super) fn execute(
        &self,
        instance: &Key,
        start: ExecStart,
        asked: Streaming<ExecRequest>,
    ) -> Result<Output, Status> {
        let (reader, pieces) = mpsc::channel(EXEC_WINDOW + 1);
        let window = Arc::new(Semaphore::new(EXEC_WINDOW));
        let (id, agent) = self.add_talk(Talk { instance: instance.clone(), reader, window: Arc::clone(&window) })?;
        let first = ExecRequest { message: Some(Asked::Start(start)) };
        let (read, acknowledged) = mpsc::unbounded_channel();
        let feeding = tokio::spawn(feed(id, first, asked, window, agent.clone())).abort_handle();
        let telling = tokio::spawn(tell(id, acknowledged, agent.clone())).abort_handle();
        Ok(Output { id, relay: self.clone(), agent, pieces, read, tasks: [feeding, telling] })
    }
}

/// Brings the start and then input to the agent, as much as it takes.
async fn feed(id: i64, first: ExecRequest, mut asked: Streaming<ExecRequest>, window: Arc<Semaphore>, agent: ToAgent) {
    let tell = |request| agent.send(Ok(message(id, ExecMessage { request: Some(request), ..<_>::default() })));
    if tell(first).await.is_err() {
        return;
    }
    loop {
        let asked = match asked.message().await {
            Ok(Some(ExecRequest { message: Some(asked) })) => asked,
            Ok(Some(ExecRequest { message: None })) => continue,
            // Whoever says no more has no more input.
            Ok(None) => {
                let end = ExecRequest { message: Some(Asked::EndOfInput(EndOfInput {})) };
                if let Ok(permit) = window.acquire().await {
                    permit.forget();
                    let _ = tell(end).await;
                }
                return;
            }
            Err(_) => return,
        };
        let pieces: Vec<Asked> = match asked {
            Asked::Start(_) => continue,
            Asked::Input(data) => data.chunks(PIECE).map(|piece| Asked::Input(piece.to_vec())).collect(),
            other => vec![other],
        };
        for piece in pieces {
            let Ok(permit) = window.acquire().await else { return };
            permit.forget();
            if tell(ExecRequest { message: Some(piece) }).await.is_err() {
                return;
            }
        }
    }
}

/// Tells the agent how much was read.
async fn tell(id: i64, mut acknowledged: mpsc::UnboundedReceiver<()>, agent: ToAgent) {
    while acknowledged.recv().await.is_some() {
        let mut read = 1;
        while acknowledged.try_recv().is_ok() {
            read += 1;
        }
        if agent.send(Ok(message(id, ExecMessage { read, ..<_>::default() }))).await.is_err() {
            return;
        }
    }
}
