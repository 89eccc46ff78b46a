//! Where processes write what they do. `STEADY_LOG` filters it (`info`, `steady_runtime=debug`).

use std::fs::File;
use std::io::IsTerminal;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;

use crate::out::is_plain;

fn filter(default: &str) -> EnvFilter {
    EnvFilter::try_from_env("STEADY_LOG").unwrap_or_else(|_| EnvFilter::new(default))
}

/// To standard error; in colours on a terminal, unless `NO_COLOR` says otherwise.
pub(super) fn to_stderr() {
    let log = tracing_subscriber::fmt().with_env_filter(filter("info"));
    let log = log.with_ansi(!is_plain() && std::io::stderr().is_terminal());
    let _ = log.with_writer(std::io::stderr).try_init();
}

/// To a file.
pub(super) fn to_file(file: File) {
    let log = tracing_subscriber::fmt().with_env_filter(filter("info")).with_ansi(false);
    let _ = log.with_writer(Mutex::new(file)).try_init();
}
