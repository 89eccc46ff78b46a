//! The end of a process: Ctrl-C, SIGTERM.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::failure::Failure;

/// True once the process was asked to end. A second signal ends it at once.
pub(super) fn ending() -> Result<watch::Receiver<bool>, Failure> {
    let failed = |e: std::io::Error| Failure::failed(format!("signals cannot be caught: {e}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let (tell, ending) = watch::channel(false);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if tell.send_replace(true) {
                std::process::exit(130);
            }
        }
    });
    Ok(ending)
}
