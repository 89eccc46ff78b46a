//! The program `steady`; all it does is in the library beside it.

use std::process::ExitCode;

/// Views are trees of small pieces that are made and dropped all the time, on every thread: with the C library's own
/// allocator that is a third of an API server's work.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    // Helpers of the other processes, before anything starts a thread.
    if let Some(code) = steady::process::hidden(&args) {
        return code;
    }
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(steady::run(args)),
        Err(error) => {
            eprintln!("steady: cannot start its threads: {error}");
            ExitCode::FAILURE
        }
    }
}
