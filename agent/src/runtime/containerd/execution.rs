//! Commands in containers: processes that the shim starts beside the container's own, talked to by named pipes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::{
    CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, KillRequest, ResizePtyRequest, StartRequest, WaitRequest,
};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe::{self, Sender};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::api::{Api, Failed, LOOK, call, failed};
use super::process;
use crate::runtime::output::pieces;
use crate::runtime::{Command, CommandInput, CommandOutput, ContainerId, Execution, LogPiece, RuntimeError, Terminal};

/// Pieces of output or input that may wait.
const PENDING: usize = 64;
/// How long output is read on after a command has ended.
const DRAIN: Duration = Duration::from_millis(500);
/// How often it is tried to have a command that ended forgotten.
const DELETES: usize = 10;

/// A command's names.
#[derive(Debug, Clone)]
struct Names {
    api: Api,
    container: String,
    exec: String,
}

impl Names {
    async fn resize(&self, size: Terminal) {
        let request = ResizePtyRequest {
            container_id: self.container.clone(),
            exec_id: self.exec.clone(),
            width: size.columns.into(),
            height: size.rows.into(),
        };
        // A terminal of the wrong size is one all the same.
        let _ = call("resize", LOOK, self.api.tasks().resize_pty(request)).await;
    }

    async fn close_input(&self) {
        let request = CloseIoRequest { container_id: self.container.clone(), exec_id: self.exec.clone(), stdin: true };
        let _ = call("close input", LOOK, self.api.tasks().close_io(request)).await;
    }

    async fn kill(&self) {
        let (container_id, exec_id) = (self.container.clone(), self.exec.clone());
        let request = KillRequest { container_id, exec_id, signal: 9, all: false };
        let _ = call("kill", LOOK, self.api.tasks().kill(request)).await;
    }

    async fn delete(&self) {
        let request = || DeleteProcessRequest { container_id: self.container.clone(), exec_id: self.exec.clone() };
        for _ in 0..DELETES {
            match call("delete exec", LOOK, self.api.tasks().delete_process(request())).await {
                Err(Failed::Refused(_) | Failed::Silent(_)) => tokio::time::sleep(DRAIN).await,
                _ => break,
            }
        }
    }
}

/// A command that runs: it is killed when this is dropped, and what was made for it is removed.
struct Running {
    names: Names,
    /// It leads a group of its own. `None` once it has ended, or before it began.
    group: Option<Pid>,
    has_ended: bool,
    pipes: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.pipes);
        if let Some(group) = self.group {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let (names, has_ended) = (self.names.clone(), self.has_ended);
        tokio::spawn(async move {
            if !has_ended {
                names.kill().await;
            }
            names.delete().await;
        });
    }
}

fn other(error: &std::io::Error) -> RuntimeError {
    RuntimeError::Other(format!("the command's pipes: {error}"))
}

fn named(directory: &Path, name: &str) -> Result<PathBuf, RuntimeError> {
    let path = directory.join(name);
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).map_err(|e| other(&e.into()))?;
    Ok(path)
}

/// Starts a command in a container whose process is `base`.
pub(super) async fn start(
    api: &Api,
    id: &ContainerId,
    container: &str,
    base: &Value,
    pipes: PathBuf,
    command: Command,
) -> Result<Execution, RuntimeError> {
    let exec = pipes.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    fs::create_dir_all(&pipes).map_err(|e| other(&e))?;
    let names = Names { api: api.clone(), container: container.to_owned(), exec: exec.clone() };
    let mut running = Running { names, group: None, has_ended: false, pipes };
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let (stdin, stdout) =
        (command.interactive.then(|| named(&running.pipes, "in")).transpose()?, named(&running.pipes, "out")?);
    let stderr = command.terminal.is_none().then(|| named(&running.pipes, "err")).transpose()?;
    // Opened before anybody writes: a writer needs a reader.
    let out = pipe::OpenOptions::new().open_receiver(&stdout).map_err(|e| other(&e))?;
    let err =
        stderr.as_ref().map(|path| pipe::OpenOptions::new().open_receiver(path)).transpose().map_err(|e| other(&e))?;
    let open = |path: &PathBuf| pipe::OpenOptions::new().read_write(true).open_sender(path);
    let input = stdin.as_ref().map(open).transpose().map_err(|e| other(&e))?;
    let mut spec = base.clone();
    spec["args"] = json!(command.words);
    spec["terminal"] = json!(command.terminal.is_some());
    if let Some(size) = command.terminal {
        spec["consoleSize"] = json!({ "height": size.rows, "width": size.columns });
    }
    let request = ExecProcessRequest {
        container_id: container.to_owned(),
        exec_id: exec.clone(),
        stdin: path(&stdin),
        stdout: path(&Some(stdout)),
        stderr: path(&stderr),
        terminal: command.terminal.is_some(),
        spec: Some(process(&spec)),
    };
    let refused = |failed: Failed| match failed {
        Failed::NotFound(_) => RuntimeError::NotFound(id.clone()),
        failed => failed.or(RuntimeError::Other),
    };
    call("exec", LOOK, api.tasks().exec(request)).await.map_err(refused)?;
    let request = StartRequest { container_id: container.to_owned(), exec_id: exec.clone() };
    let started = call("start exec", LOOK, api.tasks().start(request)).await.map_err(refused)?;
    running.group = Pid::from_raw(started.pid as i32);
    if let Some(size) = command.terminal {
        running.names.resize(size).await;
    }
    let (sender, inputs) = mpsc::channel(PENDING);
    let (to, output) = mpsc::channel(PENDING);
    let terminal = command.terminal.is_some();
    let feeding = tokio::spawn(feed(running.names.clone(), input, terminal, inputs));
    let read = stream::select(pieces(Some(out), false), pieces(err, true)).boxed();
    tokio::spawn(async move {
        pump(running, read, to).await;
        feeding.abort();
    });
    Ok(Execution { input: sender, output: ReceiverStream::new(output).boxed() })
}

/// Hands on what a command writes, and how it ends. What it left behind may hold its output open: that is not waited for
/// long.
async fn pump(
    mut running: Running,
    mut read: BoxStream<'static, LogPiece>,
    to: mpsc::Sender<Result<CommandOutput, RuntimeError>>,
) {
    let names = running.names.clone();
    let wait = async move {
        let request = WaitRequest { container_id: names.container.clone(), exec_id: names.exec.clone() };
        names.api.tasks().wait(request).await
    };
    let mut wait = std::pin::pin!(wait);
    let (mut exit, mut reads) = (None, true);
    let mut late = std::pin::pin!(tokio::time::sleep(Duration::from_secs(u64::from(u32::MAX))));
    while reads || exit.is_none() {
        tokio::select! {
            biased;
            piece = read.next(), if reads => match piece {
                Some(piece) => {
                    if to.send(Ok(CommandOutput::Piece(piece))).await.is_err() {
                        return;
                    }
                    if exit.is_some() {
                        late.as_mut().reset(tokio::time::Instant::now() + DRAIN);
                    }
                }
                None => reads = false,
            },
            ended = &mut wait, if exit.is_none() => {
                exit = Some(match ended {
                    Ok(ended) => {
                        // Its number may be another's from now on.
                        running.group = None;
                        running.has_ended = true;
                        Ok(CommandOutput::Exit(ended.into_inner().exit_status as i32))
                    }
                    Err(status) => Err(failed(&status).or(RuntimeError::Other)),
                });
                late.as_mut().reset(tokio::time::Instant::now() + DRAIN);
            }
            () = &mut late => break,
            () = to.closed() => return,
        }
    }
    if let Some(exit) = exit {
        let _ = to.send(exit).await;
    }
}

async fn feed(names: Names, mut to: Option<Sender>, terminal: bool, mut inputs: mpsc::Receiver<CommandInput>) {
    while let Some(input) = inputs.recv().await {
        match input {
            CommandInput::Data(data) => {
                if let Some(pipe) = &mut to
                    && pipe.write_all(&data).await.is_err()
                {
                    to = None;
                }
            }
            // A terminal's end is a character (Ctrl-D) that people type.
            CommandInput::End if terminal => {}
            CommandInput::End => {
                to = None;
                names.close_input().await;
            }
            CommandInput::Resize(size) => names.resize(size).await,
        }
    }
    if to.take().is_some() && !terminal {
        names.close_input().await;
    }
}
