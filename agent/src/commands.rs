//! Commands in containers that somebody talks to over the session (`steady exec`).

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use steady_core::v1::exec_request::Message as Asked;
use steady_core::v1::session_request::Message as Up;
use steady_core::v1::{EXEC_WINDOW, ExecChunk, ExecMessage, ExecResponse, ExecStart, SessionRequest, TerminalSize};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use crate::runtime::{Command, CommandInput, CommandOutput, ContainerId, Runtime, RuntimeError, Terminal};

/// Commands that run, of one session; they end with it.
#[derive(Default)]
pub(crate) struct Commands(BTreeMap<i64, Talk>);

struct Talk {
    inputs: mpsc::UnboundedSender<CommandInput>,
    /// Pieces of output that the other side still takes.
    window: Arc<Semaphore>,
    running: JoinHandle<()>,
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Commands {
    /// Does what a message says.
    pub(crate) fn obey(
        &mut self,
        message: ExecMessage,
        runtime: &Arc<dyn Runtime>,
        sender: &mpsc::Sender<SessionRequest>,
    ) {
        let id = message.id;
        self.0.retain(|_, talk| !talk.running.is_finished());
        if message.close {
            self.0.remove(&id);
            return;
        }
        let asked = message.request.and_then(|request| request.message);
        if let Some(Asked::Start(start)) = asked {
            let (inputs, taken) = mpsc::unbounded_channel();
            let window = Arc::new(Semaphore::new(EXEC_WINDOW));
            let running = run(id, start, Arc::clone(runtime), sender.clone(), taken, Arc::clone(&window));
            self.0.insert(id, Talk { inputs, window, running: tokio::spawn(running) });
            return;
        }
        let Some(talk) = self.0.get(&id) else { return };
        talk.window.add_permits(usize::try_from(message.read).unwrap_or(0).min(EXEC_WINDOW));
        let input = match asked {
            Some(Asked::Input(data)) => CommandInput::Data(data.into()),
            Some(Asked::EndOfInput(_)) => CommandInput::End,
            Some(Asked::Resize(size)) => CommandInput::Resize(terminal(size)),
            Some(Asked::Start(_)) | None => return,
        };
        let _ = talk.inputs.send(input);
    }
}

fn terminal(size: TerminalSize) -> Terminal {
    let within = |count: i32| u16::try_from(count).unwrap_or(0);
    Terminal { rows: within(size.rows), columns: within(size.columns) }
}

async fn run(
    id: i64,
    start: ExecStart,
    runtime: Arc<dyn Runtime>,
    sender: mpsc::Sender<SessionRequest>,
    inputs: mpsc::UnboundedReceiver<CommandInput>,
    window: Arc<Semaphore>,
) {
    let container = ContainerId { task: start.task, name: start.container };
    let command =
        Command { words: start.command, interactive: start.interactive, terminal: start.terminal.map(terminal) };
    let mut running = match runtime.execute(&container, command).await {
        Ok(running) => running,
        Err(error) => return say(&sender, failed(id, &error)).await,
    };
    // It has begun.
    if let Ok(permit) = window.acquire().await {
        permit.forget();
        say(&sender, ExecChunk { id, chunk: Some(ExecResponse::default()), ..ExecChunk::default() }).await;
    }
    // A command that does not read must not hold up what it writes.
    let mut feeding = tokio::task::JoinSet::new();
    feeding.spawn(feed(id, inputs, running.input, sender.clone()));
    while let Ok(permit) = window.acquire().await {
        let Some(output) = running.output.next().await else {
            return say(&sender, failed(id, &RuntimeError::Other("the command was lost".into()))).await;
        };
        permit.forget();
        let chunk = match output {
            Ok(CommandOutput::Piece(piece)) => {
                ExecResponse { data: piece.data.to_vec(), stderr: piece.stderr, exit_code: None }
            }
            Ok(CommandOutput::Exit(code)) => ExecResponse { exit_code: Some(code), ..ExecResponse::default() },
            Err(error) => return say(&sender, failed(id, &error)).await,
        };
        let over = chunk.exit_code.is_some();
        say(&sender, ExecChunk { id, chunk: Some(chunk), ..ExecChunk::default() }).await;
        if over {
            return;
        }
    }
}

async fn feed(
    id: i64,
    mut inputs: mpsc::UnboundedReceiver<CommandInput>,
    to: mpsc::Sender<CommandInput>,
    sender: mpsc::Sender<SessionRequest>,
) {
    while let Some(input) = inputs.recv().await {
        // One that reads no more swallows the rest.
        let _ = to.send(input).await;
        say(&sender, ExecChunk { id, taken: 1, ..ExecChunk::default() }).await;
    }
}

fn failed(id: i64, error: &RuntimeError) -> ExecChunk {
    ExecChunk { id, error: error.to_string(), ..ExecChunk::default() }
}

async fn say(sender: &mpsc::Sender<SessionRequest>, chunk: ExecChunk) {
    let _ = sender.send(SessionRequest { message: Some(Up::ExecChunk(chunk)) }).await;
}
