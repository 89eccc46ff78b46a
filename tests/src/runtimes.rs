//! What every runtime keeps to: one suite for all of them.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use steady_agent::runtime::{
    Command, CommandInput, CommandOutput, ContainerId, ContainerSpec, Execution, Exit, LogRequest, Runtime,
    RuntimeError, State, Terminal,
};
use steady_core::v1::{ContainerDefinition, network_mode};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A runtime under test.
pub struct Subject<'a> {
    /// Another one on the same containers at each call, as after a restart of the agent.
    pub open: &'a (dyn Fn() -> Arc<dyn Runtime> + Sync),
    /// An image with `sh` and busybox's commands.
    pub image: &'a str,
    /// Containers run commands; else they are simulated.
    pub is_real: bool,
    /// Limits of memory are kept.
    pub limits: bool,
}

/// Told exits of one runtime.
struct Exits(UnboundedReceiver<(ContainerId, Exit)>);

impl Exits {
    /// The next end of a container that is not of this time.
    async fn next(&mut self, id: &ContainerId, not: Option<&Exit>) -> Exit {
        let next = async {
            loop {
                let (of, exit) = self.0.recv().await.expect("exits are told");
                if of == *id && not.is_none_or(|known| known.at != exit.at) {
                    return exit;
                }
            }
        };
        timeout(PATIENCE, next).await.unwrap_or_else(|_| panic!("the end of {id} is told"))
    }
}

/// All that a command writes, and how it ends.
async fn read(running: &mut Execution) -> (String, String, i32) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let read = async {
        loop {
            match running.output.next().await.expect("goes on").expect("is not lost") {
                CommandOutput::Piece(piece) if piece.stderr => err.extend_from_slice(&piece.data),
                CommandOutput::Piece(piece) => out.extend_from_slice(&piece.data),
                CommandOutput::Exit(code) => return code,
            }
        }
    };
    let code = timeout(PATIENCE, read).await.expect("ends");
    (String::from_utf8_lossy(&out).into_owned(), String::from_utf8_lossy(&err).into_owned(), code)
}

fn id(task: &str) -> ContainerId {
    ContainerId { task: format!("{task:0<32}"), name: "main".into() }
}

impl Subject<'_> {
    fn spec(&self, task: &str, script: &str) -> ContainerSpec {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        ContainerSpec {
            definition: ContainerDefinition {
                name: "main".into(),
                image: self.image.into(),
                command,
                ..Default::default()
            },
            ..ContainerSpec::new(id(task), "default", "instance", network_mode::Value::Host)
        }
    }

    async fn start(&self, runtime: &dyn Runtime, spec: &ContainerSpec) {
        runtime.pull(&spec.definition.image, None).await.expect("pulled");
        runtime.create(spec).await.expect("made");
        runtime.start(&spec.id).await.expect("started");
    }

    /// Everything that a runtime has to keep to.
    pub async fn conforms(&self) {
        self.a_container_is_made_started_stopped_and_removed_once().await;
        self.one_that_ended_starts_again_only_when_it_is_restarted().await;
        if self.is_real {
            self.how_it_ended_is_told_also_to_the_next_agent().await;
            self.one_that_does_not_heed_its_signal_is_killed().await;
            self.what_it_takes_is_told_while_it_runs().await;
            self.commands_run_in_it_and_are_given_up_in_time().await;
            self.its_output_is_read_also_when_it_is_gone().await;
            self.what_cannot_be_started_says_why().await;
        }
        if self.limits {
            self.containers_of_a_task_share_its_cpu().await;
            self.one_that_takes_too_much_memory_is_killed_and_says_so().await;
        }
    }

    async fn a_container_is_made_started_stopped_and_removed_once(&self) {
        let runtime = (self.open)();
        let mut exits = Exits(runtime.exits());
        let spec = self.spec("once", "trap 'exit 0' TERM; while :; do sleep 0.1; done");
        let id = &spec.id;
        assert!(matches!(runtime.start(id).await, Err(RuntimeError::NotFound(_))));
        for _ in 0..2 {
            self.start(&*runtime, &spec).await;
            let found = runtime.list().await.expect("listed");
            let own: Vec<_> = found.iter().filter(|f| f.id == *id).collect();
            assert_eq!((own.len(), &own[0].state), (1, &State::Running));
        }
        // Its shell has to have come to the trap.
        tokio::time::sleep(Duration::from_millis(if self.is_real { 500 } else { 0 })).await;
        runtime.stop(id, Duration::from_secs(10)).await.expect("stopped");
        runtime.stop(id, Duration::from_secs(10)).await.expect("has ended already");
        let exit = exits.next(id, None).await;
        assert_eq!(exit.code, Some(if self.is_real { 0 } else { 143 }));
        for _ in 0..2 {
            runtime.remove(id).await.expect("removed");
            assert!(runtime.list().await.expect("listed").iter().all(|f| f.id != *id));
        }
        runtime.stop(id, Duration::ZERO).await.expect("is not there");
    }

    async fn one_that_ended_starts_again_only_when_it_is_restarted(&self) {
        let runtime = (self.open)();
        let mut exits = Exits(runtime.exits());
        let spec = self.spec("again", "sleep 1000");
        let id = &spec.id;
        self.start(&*runtime, &spec).await;
        runtime.stop(id, Duration::ZERO).await.expect("stopped");
        let first = exits.next(id, None).await;
        let _ = runtime.start(id).await;
        let state = || async {
            let found = runtime.list().await.expect("listed");
            found.into_iter().find(|f| f.id == *id).expect("is there").state
        };
        assert_eq!(state().await, State::Exited(first.clone()), "and the time of its end stays the same");
        tokio::time::sleep(Duration::from_millis(5)).await;
        for _ in 0..2 {
            runtime.restart(id).await.expect("restarted");
            assert_eq!(state().await, State::Running);
        }
        runtime.stop(id, Duration::ZERO).await.expect("stopped");
        exits.next(id, Some(&first)).await;
        runtime.remove(id).await.expect("removed");
        assert!(matches!(runtime.restart(id).await, Err(RuntimeError::NotFound(_))));
    }

    async fn how_it_ended_is_told_also_to_the_next_agent(&self) {
        let spec = self.spec("code", "sleep 1; exit 3");
        self.start(&*(self.open)(), &spec).await;
        let next = (self.open)();
        let mut exits = Exits(next.exits());
        let found = next.list().await.expect("listed");
        assert!(found.iter().any(|f| f.id == spec.id && f.state == State::Running), "{found:?}");
        let exit = exits.next(&spec.id, None).await;
        assert_eq!((exit.code, exit.out_of_memory), (Some(3), false));
        let last = (self.open)();
        let found = last.list().await.expect("listed").into_iter().find(|f| f.id == spec.id).expect("is there");
        assert_eq!(found.state, State::Exited(exit));
        assert!((800..30_000).contains(&found.ran.as_millis()), "{:?}", found.ran);
        last.remove(&spec.id).await.expect("removed");
    }

    async fn one_that_does_not_heed_its_signal_is_killed(&self) {
        let runtime = (self.open)();
        let mut exits = Exits(runtime.exits());
        let spec = self.spec("deaf", "trap '' TERM; while :; do sleep 0.1; done");
        self.start(&*runtime, &spec).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        runtime.stop(&spec.id, Duration::from_secs(1)).await.expect("stopped");
        assert_eq!(exits.next(&spec.id, None).await.code, Some(137));
        runtime.remove(&spec.id).await.expect("removed");
    }

    async fn what_it_takes_is_told_while_it_runs(&self) {
        let runtime = (self.open)();
        let spec = self.spec("usage", "while :; do :; done");
        self.start(&*runtime, &spec).await;
        let first = runtime.usage(&spec.id).await.expect("told");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let second = runtime.usage(&spec.id).await.expect("told");
        let spent = second.cpu_nanoseconds - first.cpu_nanoseconds;
        assert!((100_000_000..3_000_000_000).contains(&spent), "{first:?} {second:?}");
        assert!(second.processes >= 1 && second.memory_bytes > 10_000, "{second:?}");
        runtime.stop(&spec.id, Duration::ZERO).await.expect("stopped");
        assert!(matches!(runtime.usage(&spec.id).await, Err(RuntimeError::NotFound(_))));
        runtime.remove(&spec.id).await.expect("removed");
    }

    async fn commands_run_in_it_and_are_given_up_in_time(&self) {
        let runtime = (self.open)();
        let spec = self.spec("exec", "sleep 1000");
        self.start(&*runtime, &spec).await;
        let run = |words: &[&str], limit: Duration| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let (runtime, id) = (Arc::clone(&runtime), spec.id.clone());
            async move { runtime.execute(&id, Command { words, ..Command::default() }).await?.wait(limit).await }
        };
        assert_eq!(run(&["sh", "-c", "exit 4"], PATIENCE).await.expect("ran"), 4);
        assert_eq!(run(&["true"], PATIENCE).await.expect("ran"), 0);
        let mark = "sleep 61.25";
        assert!(run(&["sh", "-c", mark], Duration::from_millis(500)).await.is_err());
        let gone = async {
            while run(&["sh", "-c", "cat /proc/[0-9]*/cmdline | grep -q 61.2[5]"], PATIENCE).await.expect("ran") == 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, gone).await.expect("a command that took too long is killed");
        self.a_command_is_talked_to(&*runtime, &spec.id).await;
        runtime.remove(&spec.id).await.expect("removed while it runs");
        assert!(run(&["true"], PATIENCE).await.is_err());
    }

    async fn a_command_is_talked_to(&self, runtime: &dyn Runtime, id: &ContainerId) {
        let sh = |script: &str| ["sh", "-c", script].map(str::to_owned).to_vec();
        // Its input, both outputs and its exit code.
        let words = sh("read line; echo got $line; echo oops >&2; cat; exit 5");
        let command = Command { words, interactive: true, terminal: None };
        let mut running = runtime.execute(id, command).await.expect("runs");
        for input in [CommandInput::Data("one\n".into()), CommandInput::Data("two".into()), CommandInput::End] {
            running.input.send(input).await.expect("taken");
        }
        assert_eq!(read(&mut running).await, ("got one\ntwo".into(), "oops\n".into(), 5));
        // A terminal: its size, also when it changes, and what is typed is shown.
        let words = sh("test -t 0 && test -t 1 && sleep 0.3 && stty size; read line; stty size; exit 6");
        let terminal = Some(Terminal { rows: 33, columns: 77 });
        let mut running = runtime.execute(id, Command { words, interactive: true, terminal }).await.expect("runs");
        let mut shown = Vec::new();
        while !shown.ends_with(b"\n") {
            let output = timeout(PATIENCE, running.output.next()).await.expect("goes on").expect("goes on");
            let Ok(CommandOutput::Piece(piece)) = output else { panic!("{output:?} after {shown:?}") };
            shown.extend_from_slice(&piece.data);
        }
        assert_eq!(String::from_utf8_lossy(&shown), "33 77\r\n");
        let size = CommandInput::Resize(Terminal { rows: 44, columns: 88 });
        for input in [size, CommandInput::Data("typed\n".into())] {
            running.input.send(input).await.expect("taken");
        }
        let (out, _, code) = read(&mut running).await;
        assert_eq!((out.as_str(), code), ("typed\r\n44 88\r\n", 6));
        // What a command left behind does not keep it from ending.
        let words = sh("sleep 1000 & echo done; exit 8");
        let mut running = runtime.execute(id, Command { words, ..Command::default() }).await.expect("runs");
        assert_eq!(read(&mut running).await, ("done\n".into(), String::new(), 8));
    }

    async fn its_output_is_read_also_when_it_is_gone(&self) {
        let runtime = (self.open)();
        let spec = self.spec("output", "echo one; echo two >&2; sleep 1; echo three");
        self.start(&*runtime, &spec).await;
        let read = |follow, tail| {
            let (runtime, id) = (Arc::clone(&runtime), spec.id.clone());
            let read = async move {
                let mut pieces = runtime.logs(&id, LogRequest { follow, tail }).await.expect("output");
                let (mut out, mut err) = (String::new(), String::new());
                while let Some(piece) = pieces.next().await {
                    let piece = piece.expect("a piece");
                    let text = String::from_utf8_lossy(&piece.data).into_owned();
                    if piece.stderr { err.push_str(&text) } else { out.push_str(&text) }
                }
                (out, err)
            };
            async move { timeout(PATIENCE, read).await.expect("ends with the container") }
        };
        assert_eq!(read(true, 0).await, ("one\nthree\n".into(), "two\n".into()), "followed until it ended");
        assert_eq!(read(false, 1).await.0, "three\n");
        runtime.remove(&spec.id).await.expect("removed");
        let (out, err) = read(false, 0).await;
        assert_eq!((out.as_str(), err.as_str()), ("one\nthree\n", "two\n"), "and after it was removed");
    }

    async fn what_cannot_be_started_says_why(&self) {
        let runtime = (self.open)();
        let mut spec = self.spec("missing", "");
        spec.definition.command = vec!["no-such-program".into()];
        runtime.pull(&spec.definition.image, None).await.expect("pulled");
        let started = match runtime.create(&spec).await {
            Ok(_) => runtime.start(&spec.id).await,
            Err(error) => Err(error),
        };
        let error = started.expect_err("is not there").to_string();
        assert!(error.starts_with("Cannot") && error.contains("no-such-program"), "{error}");
        runtime.remove(&spec.id).await.expect("removed");
    }

    async fn containers_of_a_task_share_its_cpu(&self) {
        let runtime = (self.open)();
        let specs = ["a", "b"].map(|name| {
            let mut spec = self.spec("cpu", "trap 'times; exit' TERM; while :; do :; done");
            name.clone_into(&mut spec.id.name);
            spec.cpu_limit = Some(256);
            spec
        });
        for spec in &specs {
            self.start(&*runtime, spec).await;
        }
        let began = tokio::time::Instant::now();
        tokio::time::sleep(Duration::from_secs(4)).await;
        let mut used = 0.0;
        for spec in &specs {
            runtime.stop(&spec.id, Duration::from_secs(10)).await.expect("stopped");
        }
        let ran = began.elapsed().as_secs_f64();
        for spec in &specs {
            let mut pieces = runtime.logs(&spec.id, LogRequest { follow: false, tail: 0 }).await.expect("output");
            let mut text = String::new();
            while let Some(Ok(piece)) = pieces.next().await {
                text.push_str(&String::from_utf8_lossy(&piece.data));
            }
            // `0m1.230s 0m0.010s`: of the shell itself.
            let first = text.lines().next().unwrap_or_default();
            used += first
                .split_whitespace()
                .filter_map(|t| t.split_once('m')?.1.trim_end_matches('s').parse::<f64>().ok())
                .sum::<f64>();
            runtime.remove(&spec.id).await.expect("removed");
        }
        // A quarter of a core together; without the cap both cores were theirs.
        assert!(used > 0.1 && used < 0.25 * ran * 1.3 + 0.1, "{used} s of cpu in {ran} s");
    }

    async fn one_that_takes_too_much_memory_is_killed_and_says_so(&self) {
        let runtime = (self.open)();
        let mut exits = Exits(runtime.exits());
        // Doubles a string until there is no room for it.
        let mut spec = self.spec("memory", "x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done");
        spec.memory_limit = Some(16);
        self.start(&*runtime, &spec).await;
        let exit = exits.next(&spec.id, None).await;
        assert_eq!((exit.code, exit.out_of_memory), (Some(137), true));
        runtime.remove(&spec.id).await.expect("removed");
    }
}
