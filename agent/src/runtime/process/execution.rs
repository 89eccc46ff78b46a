//! Commands in a container: beside its own command, with its environment, directory and cgroups. They end with the agent.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command as Program, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process_group, setsid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::directory::Directory;
use super::launch::Launch;
use super::shim;
use crate::runtime::output::pieces;
use crate::runtime::{Command, CommandInput, CommandOutput, Execution, RuntimeError, State, Terminal};

/// Pieces of input that may wait for the command.
const PENDING: usize = 64;
/// How long output is read on after a command has ended.
const DRAIN: Duration = Duration::from_secs(2);
/// How often it is seen whether the container still runs.
const LOOK: Duration = Duration::from_millis(500);

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// Kills the command and its process group.
struct Kill(Option<Pid>);

impl Drop for Kill {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

pub(super) fn start(
    program: &Path,
    directory: &Directory,
    launch: &Launch,
    command: &Command,
) -> Result<Execution, RuntimeError> {
    open(program, directory, launch, command).map_err(|e| RuntimeError::Other(e.to_string()))
}

fn open(program: &Path, directory: &Directory, launch: &Launch, command: &Command) -> io::Result<Execution> {
    let name = command.words.first().cloned().unwrap_or_default();
    let missing = || io::Error::other(format!("there is no executable `{name}` on this machine"));
    let resolved = launch.resolve(&name).ok_or_else(missing)?;
    let terminal = command.terminal.map(Pty::open).transpose()?;
    let mut child = Program::new(program);
    child.arg("__inside").arg(directory.path()).arg(terminal.as_ref().map_or(Path::new("-"), |pty| &pty.name));
    child.arg(resolved).args(command.words.iter().skip(1));
    child.env_clear().envs(launch.environment()?).current_dir(&launch.cwd);
    let piped = |wanted: bool| if wanted { Stdio::piped() } else { Stdio::null() };
    let without = terminal.is_none();
    child.stdin(piped(without && command.interactive)).stdout(piped(without)).stderr(piped(without));
    // With a terminal it begins a session of its own, which is a group too.
    if without {
        child.process_group(0);
    }
    let mut child = spawn(child)?;
    let kill = Kill(child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)));
    let (input, inputs) = mpsc::channel(PENDING);
    let (reader, errors): (Option<Reader>, Option<Reader>) = if let Some(pty) = terminal {
        let writer: Writer = Box::new(pty.file()?);
        let reader: Reader = Box::new(pty.file()?);
        tokio::spawn(feed(Some(writer), Some(pty.controller), inputs));
        (Some(reader), None)
    } else {
        let writer = child.stdin.take().map(|stdin| Box::new(stdin) as Writer);
        tokio::spawn(feed(writer, None, inputs));
        (child.stdout.take().map(|out| Box::new(out) as Reader), child.stderr.take().map(|err| Box::new(err) as Reader))
    };
    let read = stream::select(pieces(reader, false), pieces(errors, true)).map(CommandOutput::Piece).boxed();
    let (to, output) = mpsc::channel(PENDING);
    tokio::spawn(pump(read, child, kill, directory.clone(), to));
    Ok(Execution { input, output: ReceiverStream::new(output).boxed() })
}

/// Starts a process from a thread that lives as long as the agent: to the kernel its parent is that thread, and the process
/// is killed when the thread ends.
fn spawn(command: Program) -> io::Result<Child> {
    type Job = Box<dyn FnOnce() + Send>;
    static SPAWNER: LazyLock<std::sync::mpsc::Sender<Job>> = LazyLock::new(|| {
        let (jobs, taken) = std::sync::mpsc::channel::<Job>();
        std::thread::spawn(move || taken.into_iter().for_each(|job| job()));
        jobs
    });
    let (done, spawned) = std::sync::mpsc::sync_channel(1);
    let runtime = tokio::runtime::Handle::current();
    let job: Job = Box::new(move || {
        let _inside = runtime.enter();
        let _ = done.send(tokio::process::Command::from(command).spawn());
    });
    SPAWNER.send(job).map_err(|_| io::Error::other("the thread that starts commands ended"))?;
    spawned.recv().map_err(io::Error::other)?
}

/// Hands on what a command writes, and how it ends. What it left behind may hold its output open: that is not waited for
/// long. It ends with its container, too.
async fn pump(
    mut read: BoxStream<'static, CommandOutput>,
    mut child: Child,
    mut kill: Kill,
    directory: Directory,
    to: mpsc::Sender<Result<CommandOutput, RuntimeError>>,
) {
    let mut look = tokio::time::interval(LOOK);
    let (mut exit, mut reads) = (None, true);
    let late = tokio::time::sleep(Duration::from_secs(u64::from(u32::MAX)));
    let mut late = std::pin::pin!(late);
    while reads || exit.is_none() {
        tokio::select! {
            biased;
            piece = read.next(), if reads => match piece {
                Some(piece) => {
                    if to.send(Ok(piece)).await.is_err() {
                        return;
                    }
                    // What the command left behind is waited for, not whoever reads.
                    if exit.is_some() {
                        late.as_mut().reset(tokio::time::Instant::now() + DRAIN);
                    }
                }
                None => reads = false,
            },
            status = child.wait(), if exit.is_none() => {
                exit = Some(status);
                // Its number may be another's from now on.
                kill.0 = None;
                late.as_mut().reset(tokio::time::Instant::now() + DRAIN);
            }
            () = &mut late => break,
            _ = look.tick(), if exit.is_none() => {
                if directory.state() != State::Running {
                    drop(Kill(kill.0));
                }
            }
            () = to.closed() => return,
        }
    }
    let code = match exit {
        Some(Ok(status)) => status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1),
        _ => -1,
    };
    let _ = to.send(Ok(CommandOutput::Exit(code))).await;
}

async fn feed(mut to: Option<Writer>, terminal: Option<OwnedFd>, mut inputs: mpsc::Receiver<CommandInput>) {
    while let Some(input) = inputs.recv().await {
        match input {
            CommandInput::Data(data) => {
                let Some(writer) = &mut to else { continue };
                if writer.write_all(&data).await.and(writer.flush().await).is_err() {
                    to = None;
                }
            }
            // A terminal's end is a character (Ctrl-D) that people type.
            CommandInput::End if terminal.is_some() => {}
            CommandInput::End => to = None,
            CommandInput::Resize(size) => {
                if let Some(terminal) = &terminal {
                    let _ = tcsetwinsize(terminal, winsize(size));
                }
            }
        }
    }
}

fn winsize(size: Terminal) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// A new terminal: this side of it, and the name of the command's.
struct Pty {
    controller: OwnedFd,
    name: PathBuf,
}

impl Pty {
    fn open(size: Terminal) -> io::Result<Self> {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&controller)?;
        unlockpt(&controller)?;
        let name = ptsname(&controller, Vec::new())?;
        tcsetwinsize(&controller, winsize(size))?;
        Ok(Pty { controller, name: Path::new(std::ffi::OsStr::from_bytes(name.as_bytes())).to_owned() })
    }

    fn file(&self) -> io::Result<File> {
        Ok(File::from_std(std::fs::File::from(self.controller.try_clone()?)))
    }
}

/// Becomes a command in a container: tied to the agent, in its cgroups, and on its terminal. Only returns when that fails.
pub fn run_inside(path: &Path, terminal: &str, program: &Path, args: &[String]) -> i32 {
    if let Err(message) = shim::enter(path).and_then(|_| take_terminal(terminal).map_err(|e| e.to_string())) {
        eprintln!("steady: {message}");
        return 126;
    }
    let error = Program::new(program).args(args).exec();
    eprintln!("steady: {}: {error}", program.display());
    126
}

fn take_terminal(name: &str) -> io::Result<()> {
    if name == "-" {
        return Ok(());
    }
    setsid()?;
    // The first terminal that a session's leader opens is its own.
    let terminal = rustix::fs::open(name, OFlags::RDWR, Mode::empty())?;
    rustix::stdio::dup2_stdin(&terminal)?;
    rustix::stdio::dup2_stdout(&terminal)?;
    rustix::stdio::dup2_stderr(&terminal)?;
    Ok(())
}
