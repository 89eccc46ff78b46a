//! The program `steady`; all it does is in the library beside it.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    steady::run(std::env::args_os()).await
}
