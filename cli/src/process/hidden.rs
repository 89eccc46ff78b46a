//! Subcommands that Steady's own processes use and no person does. They run before any thread is started.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use rustix::process::{Signal, WaitOptions, getppid, set_parent_process_death_signal};
use steady_agent::runtime::{run_exec, run_inside, run_logger, run_shim};

/// Runs a hidden subcommand, if the arguments are of one.
pub fn hidden(args: &[OsString]) -> Option<ExitCode> {
    let words: Vec<&str> = args.iter().skip(1).map(|word| word.to_str().unwrap_or_default()).collect();
    match words.as_slice() {
        ["__shim", directory] => Some(code(run_shim(Path::new(directory)))),
        ["__exec", directory, program] => Some(code(run_exec(Path::new(directory), Path::new(program)))),
        ["__inside", directory, terminal, program, args @ ..] => {
            let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
            Some(code(run_inside(Path::new(directory), terminal, Path::new(program), &args)))
        }
        ["__log", directory] => Some(code(run_logger(Path::new(directory)))),
        ["__pause"] => pause(),
        ["__guard", parent, program, ..] => Some(guard(parent, program, args.get(4..).unwrap_or_default())),
        _ => None,
    }
}

fn code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Holds a task's namespaces: does nothing until it is killed, but for taking note of processes that nobody else waits for.
fn pause() -> ! {
    loop {
        if rustix::process::wait(WaitOptions::empty()).is_err() {
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

/// How [`guard`] is called: to be followed by a program and its arguments.
pub(super) fn guard_words() -> std::io::Result<Vec<String>> {
    let program = std::env::current_exe()?;
    Ok(vec![program.display().to_string(), "__guard".to_owned(), std::process::id().to_string()])
}

/// Becomes another program that is killed when its parent ends, however that ends.
fn guard(parent: &str, program: &str, args: &[OsString]) -> ExitCode {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        eprintln!("steady: {program} cannot be tied to its parent: {error}");
        return ExitCode::FAILURE;
    }
    // The parent may have ended before it could be tied to.
    if getppid().map(|pid| pid.as_raw_nonzero().to_string()).as_deref() != Some(parent) {
        return ExitCode::FAILURE;
    }
    let error = Command::new(program).args(args).exec();
    eprintln!("steady: {program}: {error}");
    ExitCode::FAILURE
}
