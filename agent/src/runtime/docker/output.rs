//! Output of containers: the engine's while they are there, a kept end of it afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptions;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use super::LOOK;
use super::mapping::name;
use crate::runtime::{ContainerId, LogPiece, LogRequest, RuntimeError};

/// How much is kept of a container that is removed, and for how long.
const KEPT: usize = 1024 * 1024;
const KEPT_FOR: Duration = Duration::from_secs(3 * 3600);

fn options(request: LogRequest) -> LogsOptions {
    LogsOptions {
        follow: request.follow,
        stdout: true,
        stderr: true,
        tail: if request.tail == 0 { "all".to_owned() } else { request.tail.to_string() },
        ..LogsOptions::default()
    }
}

pub(super) fn piece(output: LogOutput) -> LogPiece {
    match output {
        LogOutput::StdErr { message } => LogPiece { data: message, stderr: true },
        LogOutput::StdOut { message } | LogOutput::StdIn { message } | LogOutput::Console { message } => {
            LogPiece { data: message, stderr: false }
        }
    }
}

/// Output of a container that is there.
pub(super) fn read(
    engine: &Docker,
    id: &ContainerId,
    request: LogRequest,
) -> BoxStream<'static, Result<LogPiece, RuntimeError>> {
    let output = engine.logs(&name(id), Some(options(request)));
    output.map(|piece_or| piece_or.map(piece).map_err(|e| RuntimeError::Other(super::text(&e)))).boxed()
}

fn file(logs: &Path, id: &ContainerId, stderr: bool) -> PathBuf {
    logs.join(format!("{id}.{}", if stderr { "stderr" } else { "stdout" }))
}

/// Keeps the end of a container's output; what cannot be kept is not worth failing for.
pub(super) async fn keep(engine: &Docker, logs: &Path, id: &ContainerId) {
    let mut output = read(engine, id, LogRequest { follow: false, tail: 10_000 });
    let mut kept: [Vec<u8>; 2] = [Vec::new(), Vec::new()];
    let collected = async {
        while let Some(Ok(piece)) = output.next().await {
            kept[usize::from(piece.stderr)].extend_from_slice(&piece.data);
        }
    };
    let _ = tokio::time::timeout(LOOK, collected).await;
    if kept.iter().all(Vec::is_empty) {
        return;
    }
    let _ = fs::create_dir_all(logs);
    for (bytes, stderr) in kept.iter().zip([false, true]) {
        let end = &bytes[bytes.len().saturating_sub(KEPT)..];
        // Whoever reads it finds all of it.
        let (part, whole) = (file(logs, id, stderr).with_extension("part"), file(logs, id, stderr));
        let _ = fs::write(&part, end).and_then(|()| fs::rename(part, whole));
    }
    let old = |path: &Path| {
        let changed = fs::metadata(path).and_then(|m| m.modified()).ok();
        changed.and_then(|at| SystemTime::now().duration_since(at).ok()).is_some_and(|age| age > KEPT_FOR)
    };
    for entry in fs::read_dir(logs).into_iter().flatten().flatten().filter(|e| old(&e.path())) {
        let _ = fs::remove_file(entry.path());
    }
}

/// What was kept of a container that is gone.
pub(super) fn kept(
    logs: &Path,
    id: &ContainerId,
    request: LogRequest,
) -> Option<BoxStream<'static, Result<LogPiece, RuntimeError>>> {
    let read = |stderr| {
        let bytes = fs::read(file(logs, id, stderr)).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let skipped = if request.tail == 0 { 0 } else { lines.len().saturating_sub(request.tail) };
        Some(LogPiece { data: Bytes::from(lines[skipped..].concat()), stderr })
    };
    let pieces: Vec<_> = [false, true].into_iter().filter_map(read).map(Ok).collect();
    (!pieces.is_empty()).then(|| stream::iter(pieces).boxed())
}
