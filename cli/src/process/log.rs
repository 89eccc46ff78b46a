//! Where processes write what they do. `STEADY_LOG` filters it (`info`, `steady_runtime=debug`).

use std::fs::File;
use std::io::IsTerminal;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;

fn filter(default: &str) -> EnvFilter {
    EnvFilter::try_from_env("STEADY_LOG").unwrap_or_else(|_| EnvFilter::new(default))
}

/// To standard error; in colours on a terminal, unless `NO_COLOR` says otherwise.
pub(super) fn to_stderr() {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let log = tracing_subscriber::fmt().with_env_filter(filter("info"));
    let log = log.with_ansi(!plain && std::io::stderr().is_terminal());
    let _ = log.with_writer(std::io::stderr).try_init();
}

/// To a file.
pub(super) fn to_file(file: File) {
    let log = tracing_subscriber::fmt().with_env_filter(filter("info")).with_ansi(false);
    let _ = log.with_writer(Mutex::new(file)).try_init();
}
