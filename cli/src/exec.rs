//! `steady exec`: a command in a running container, with this terminal if it wants one.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::time::Duration;

use clap::Args;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use steady_core::{Key, Kind, task};
use steady_proto::v1::exec_request::Message as Asked;
use steady_proto::v1::task_last_status::Value as Status;
use steady_proto::v1::{EndOfInput, ExecRequest, ExecStart, TerminalSize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::args::Global;
use crate::client::Client;
use crate::columns;
use crate::failure::Failure;
use crate::out::{Out, note};
use crate::target;
use crate::world::World;

/// How long a command may take to begin.
const BEGINS: Duration = Duration::from_secs(45);
/// Most bytes of one piece of input.
const PIECE: usize = 16 * 1024;

/// Arguments of `steady exec`.
#[derive(Debug, Args)]
#[command(
    after_long_help = "With neither -i nor -t, both are taken when standard input and output are a terminal. The exit code is the
command's. Of a service, one of its running tasks is chosen.

Examples:
  steady exec service/web                         a shell in one of its tasks
  steady exec task/3fa8c1 --container db -- psql -U app
  steady exec -i task/3fa8c1 -- tar x -C /data < data.tar"
)]
pub struct Exec {
    /// task/ID, service/NAME, or the id of a task.
    #[arg(value_name = "TASK|SERVICE")]
    pub what: String,
    /// The container [default: the first essential one].
    #[arg(long, value_name = "NAME", default_value = "")]
    pub container: String,
    /// Give it standard input.
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal.
    #[arg(short, long)]
    pub tty: bool,
    /// The command and its arguments [default: /bin/sh].
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// `steady exec`.
pub async fn run(args: Exec, global: &Global, _: &mut Out) -> Result<(), Failure> {
    let client = global.connect().await?;
    let key = task_of(&client, &args.what, &global.cluster).await?;
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let chosen = args.interactive || args.tty;
    let (interactive, tty) = if chosen { (args.interactive, args.tty) } else { (terminal, terminal) };
    if tty && !std::io::stdin().is_terminal() {
        return Err(Failure::usage("-t needs a terminal, and standard input is none; leave it out".to_owned()));
    }
    let command = if args.command.is_empty() { vec!["/bin/sh".to_owned()] } else { args.command };
    let start = ExecStart {
        cluster: key.cluster.to_string(),
        task: key.name.to_string(),
        container: args.container,
        command,
        interactive,
        terminal: tty.then(size),
    };
    let (asks, asked) = mpsc::channel(16);
    ask(&asks, Asked::Start(start)).await;
    let mut answers = client.exec(asked).await?;
    // The first answer says that it has begun; until then Ctrl-C is this program's.
    let first = tokio::time::timeout(BEGINS, client.next_answer(&mut answers)).await;
    let mut next = first.map_err(|_| {
        let message = format!("the task's agent did not answer within {BEGINS:?}; is it of an older version?");
        Failure::failed(message)
    })??;
    // Keys that nobody reads would be lost, Ctrl-C among them.
    let raw = if tty && interactive { Some(Raw::enter()?) } else { None };
    if interactive {
        let asks = asks.clone();
        // A read of standard input cannot be given up: a thread of its own, which ends with the process.
        std::thread::spawn(move || read_input(&asks));
    }
    if tty {
        tokio::spawn(follow_size(asks.clone()));
    }
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    let failed = |e: std::io::Error| Failure::failed(e.to_string());
    let mut terminated = signal(SignalKind::terminate()).map_err(failed)?;
    let mut hung_up = signal(SignalKind::hangup()).map_err(failed)?;
    let code = loop {
        let answer = next.take().ok_or_else(|| Failure::failed("the command was lost".to_owned()))?;
        if answer.stderr {
            err.write_all(&answer.data)?;
        } else {
            out.write_all(&answer.data).and_then(|()| out.flush())?;
        }
        if let Some(code) = answer.exit_code {
            break code;
        }
        // The terminal is given back, however this ends.
        next = tokio::select! {
            answer = client.next_answer(&mut answers) => answer?,
            _ = terminated.recv() => break 143,
            _ = hung_up.recv() => break 129,
        };
    };
    drop(raw);
    match code {
        0 => Ok(()),
        code => Err(Failure::quiet(u8::try_from(code).unwrap_or(1))),
    }
}

/// The task that is meant: of a service, one that runs.
async fn task_of(client: &Client, what: &str, cluster: &str) -> Result<Key, Failure> {
    let Some(service) = target::service_of(client, cluster, what).await? else {
        return target::task(client, cluster, &target::name_of(Kind::Task, what)?).await;
    };
    let mut world = World::default();
    world.add(client.list(Kind::Task, target::in_cluster(cluster)).await?);
    let mut running = world
        .view
        .of_service(Kind::Task, cluster, &service.name)
        .filter(|object| task::of(object).is_some_and(|task| task.status.last_status() == Status::Running));
    let Some(first) = running.next() else {
        let message = format!("{service} has no task that runs; `steady describe {service}` tells why");
        return Err(Failure::failed(message));
    };
    let others = running.count();
    if others > 0 {
        note(&format!("in {}, one of {} tasks", columns::short_reference(&first.reference()), others + 1));
    }
    Ok(Key::of(first))
}

async fn ask(to: &mpsc::Sender<ExecRequest>, message: Asked) -> bool {
    to.send(ExecRequest { message: Some(message) }).await.is_ok()
}

fn read_input(to: &mpsc::Sender<ExecRequest>) {
    let send = |message| to.blocking_send(ExecRequest { message: Some(message) }).is_ok();
    let (mut input, mut piece) = (std::io::stdin(), vec![0; PIECE]);
    loop {
        match input.read(&mut piece) {
            Ok(0) | Err(_) => {
                send(Asked::EndOfInput(EndOfInput {}));
                return;
            }
            Ok(count) if send(Asked::Input(piece[..count].to_vec())) => {}
            Ok(_) => return,
        }
    }
}

fn size() -> TerminalSize {
    match tcgetwinsize(std::io::stdout()) {
        Ok(size) => TerminalSize { rows: size.ws_row.into(), columns: size.ws_col.into() },
        Err(_) => TerminalSize { rows: 24, columns: 80 },
    }
}

async fn follow_size(to: mpsc::Sender<ExecRequest>) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    while changes.recv().await.is_some() && ask(&to, Asked::Resize(size())).await {}
}

/// The terminal hands on every key as it is, until this is dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Result<Self, Failure> {
        let failed = |e: rustix::io::Errno| Failure::failed(format!("the terminal: {e}"));
        let before = tcgetattr(std::io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.0);
    }
}
