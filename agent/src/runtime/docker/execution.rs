//! Commands in containers. The engine has no call that ends one: they are killed by their process number.

use std::pin::Pin;

use bollard::Docker;
use bollard::errors::Error;
use bollard::exec::{ResizeExecOptions, StartExecOptions, StartExecResults};
use bollard::models::ExecConfig;
use futures::StreamExt;
use futures::stream;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::{LOOK, failed, mapping, output, status, text, within};
use crate::runtime::{Command, CommandInput, CommandOutput, ContainerId, Execution, RuntimeError, Terminal};

/// Pieces of input that may wait for the command.
const PENDING: usize = 64;

fn other(error: &Error) -> RuntimeError {
    failed(error, RuntimeError::Other)
}

/// Kills a command that nobody reads any more.
struct Kill {
    engine: Docker,
    exec: String,
    ended: bool,
}

impl Drop for Kill {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (engine, exec) = (self.engine.clone(), std::mem::take(&mut self.exec));
        tokio::spawn(async move {
            let Ok(Ok(found)) = within("inspect exec", LOOK, engine.inspect_exec(&exec)).await else { return };
            let pid = found.pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
            if let Some(pid) = pid.filter(|_| found.running == Some(true)) {
                // It leads a group of its own: what it started goes with it.
                let _ = kill_process_group(pid, Signal::KILL);
            }
        });
    }
}

pub(super) async fn start(engine: &Docker, id: &ContainerId, command: Command) -> Result<Execution, RuntimeError> {
    let tty = command.terminal.is_some();
    let config = ExecConfig {
        cmd: Some(command.words),
        attach_stdin: Some(command.interactive),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(tty),
        // Engines before 24 pass it over: there the terminal has its size a moment later.
        console_size: command.terminal.map(|size| vec![size.rows.into(), size.columns.into()]),
        ..ExecConfig::default()
    };
    let made = within("exec", LOOK, engine.create_exec(&mapping::name(id), config)).await?;
    let exec = made.map_err(|error| match status(&error) {
        // It is not there, or does not run.
        Some(404 | 409) => RuntimeError::NotFound(id.clone()),
        _ => other(&error),
    })?;
    let kill = Kill { engine: engine.clone(), exec: exec.id.clone(), ended: false };
    let options = StartExecOptions { detach: false, tty, output_capacity: None };
    let started = within("start exec", LOOK, engine.start_exec(&exec.id, Some(options))).await?;
    let StartExecResults::Attached { output, input } = started.map_err(|e| other(&e))? else {
        return Err(RuntimeError::Other("Docker did not attach to the command".into()));
    };
    if let Some(size) = command.terminal {
        resize(engine, &exec.id, size).await;
    }
    let (sender, inputs) = mpsc::channel(PENDING);
    tokio::spawn(feed(engine.clone(), exec.id.clone(), input, inputs));
    let output = stream::unfold(Some((output, kill)), |open| async move {
        let (mut output, mut kill) = open?;
        match output.next().await {
            Some(Ok(piece)) => Some((Ok(CommandOutput::Piece(output::piece(piece))), Some((output, kill)))),
            Some(Err(error)) => Some((Err(other(&error)), None)),
            None => {
                kill.ended = true;
                Some((exit(&kill.engine, &kill.exec).await.map(CommandOutput::Exit), None))
            }
        }
    });
    Ok(Execution { input: sender, output: output.boxed() })
}

async fn exit(engine: &Docker, exec: &str) -> Result<i32, RuntimeError> {
    let found = within("inspect exec", LOOK, engine.inspect_exec(exec)).await?.map_err(|e| other(&e))?;
    Ok(found.exit_code.and_then(|code| i32::try_from(code).ok()).unwrap_or(-1))
}

async fn resize(engine: &Docker, exec: &str, size: Terminal) {
    let options = ResizeExecOptions { height: size.rows, width: size.columns };
    // A terminal of the wrong size is one all the same.
    if let Ok(Err(error)) = within("resize", LOOK, engine.resize_exec(exec, options)).await {
        tracing::debug!(error = text(&error), "a terminal kept its size");
    }
}

async fn feed(
    engine: Docker,
    exec: String,
    mut to: Pin<Box<dyn AsyncWrite + Send>>,
    mut inputs: mpsc::Receiver<CommandInput>,
) {
    while let Some(input) = inputs.recv().await {
        match input {
            CommandInput::Data(data) => {
                if to.write_all(&data).await.and(to.flush().await).is_err() {
                    return;
                }
            }
            CommandInput::End => {
                let _ = to.shutdown().await;
            }
            CommandInput::Resize(size) => resize(&engine, &exec, size).await,
        }
    }
    let _ = to.shutdown().await;
}
