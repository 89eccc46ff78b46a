//! Output that is kept in files of a container's directory, `stdout.log` and `stderr.log`: kept small while it runs, and for a
//! while after it is removed.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::{ContainerId, LogPiece, LogRequest, RuntimeError};

/// A log that is larger is cut to its last half.
const MOST: u64 = 10 * 1024 * 1024;
/// How much of it is kept once the container is removed, and for how long.
const KEPT: u64 = 1024 * 1024;
const KEPT_FOR: Duration = Duration::from_secs(3 * 3600);
/// Most bytes of one piece of what a command writes.
const COMMAND_PIECE: usize = 16 * 1024;
/// How often new output is looked for.
const POLL: Duration = Duration::from_millis(100);
/// Most bytes of one piece.
const PIECE: usize = 64 * 1024;

/// The file of one kind of output.
pub(crate) fn file(directory: &Path, stderr: bool) -> PathBuf {
    directory.join(if stderr { "stderr.log" } else { "stdout.log" })
}

/// Cuts a log that has grown too large. Whoever writes appends, and so goes on at the new end.
pub(crate) fn rotate(path: &Path) {
    if fs::metadata(path).is_ok_and(|m| m.len() > MOST)
        && let Ok(kept) = last_bytes(path, MOST / 2)
        && let Ok(file) = File::options().write(true).open(path)
    {
        let _ = file.set_len(0);
        let _ = fs::write(path, kept);
    }
}

fn last_bytes(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    if length > most
        && let Some(line) = bytes.iter().position(|b| *b == b'\n')
    {
        bytes.drain(..=line);
    }
    Ok(bytes)
}

fn kept(base: &Path, id: &ContainerId, stderr: bool) -> PathBuf {
    base.join("logs").join(format!("{id}.{}", if stderr { "stderr" } else { "stdout" }))
}

/// Keeps the end of a container's output after it is gone, and forgets what was kept for long.
pub(crate) fn keep(base: &Path, id: &ContainerId, directory: &Path) {
    let logs = base.join("logs");
    let _ = fs::create_dir_all(&logs);
    for stderr in [false, true] {
        if let Ok(bytes) = last_bytes(&file(directory, stderr), KEPT) {
            let _ = fs::write(kept(base, id, stderr), bytes);
        }
    }
    let old = |path: &Path| {
        let changed = fs::metadata(path).and_then(|m| m.modified()).ok();
        changed.and_then(|at| SystemTime::now().duration_since(at).ok()).is_some_and(|age| age > KEPT_FOR)
    };
    for entry in fs::read_dir(logs).into_iter().flatten().flatten() {
        if old(&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether nothing more is written.
pub(crate) type IsOver = Arc<dyn Fn() -> bool + Send + Sync>;

/// A container's output, of which there are two kinds: in its directory, or what was kept when it was removed (`None`).
pub(crate) fn read(
    base: &Path,
    id: &ContainerId,
    directory: Option<&(PathBuf, IsOver)>,
    request: LogRequest,
) -> Result<BoxStream<'static, Result<LogPiece, RuntimeError>>, RuntimeError> {
    let path = |stderr| directory.map_or_else(|| kept(base, id, stderr), |(path, _)| file(path, stderr));
    if directory.is_none() && !path(false).exists() {
        return Err(RuntimeError::NotFound(id.clone()));
    }
    let streams = [false, true].map(|stderr| {
        let path = path(stderr);
        let start = start(&path, request.tail);
        let reader = Reader {
            path,
            at: start,
            stderr,
            over: directory.filter(|_| request.follow).map(|(_, over)| Arc::clone(over)),
        };
        stream::unfold(reader, |mut reader| async move { reader.next().await.map(|piece| (Ok(piece), reader)) }).boxed()
    });
    Ok(if request.follow { stream::select_all(streams).boxed() } else { stream::iter(streams).flatten().boxed() })
}

/// Where the last lines begin.
fn start(path: &Path, lines: usize) -> u64 {
    if lines == 0 {
        return 0;
    }
    let bytes = fs::read(path).unwrap_or_default();
    let ends: Vec<usize> = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1).collect();
    let whole = ends.len() + usize::from(ends.last().is_none_or(|end| *end < bytes.len()));
    let skipped = whole.saturating_sub(lines);
    skipped.checked_sub(1).and_then(|i| ends.get(i)).map_or(0, |end| *end as u64)
}

struct Reader {
    path: PathBuf,
    at: u64,
    stderr: bool,
    /// What is waited for.
    over: Option<IsOver>,
}

impl Reader {
    async fn next(&mut self) -> Option<LogPiece> {
        loop {
            // Looked at before reading: what was written before the end is read after it.
            let over = self.over.as_ref().is_none_or(|is_over| is_over());
            let data = self.read().unwrap_or_default();
            if !data.is_empty() {
                self.at += data.len() as u64;
                return Some(LogPiece { data: Bytes::from(data), stderr: self.stderr });
            }
            if over {
                return None;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut file = File::open(&self.path)?;
        if file.metadata()?.len() < self.at {
            // It was cut.
            self.at = 0;
        }
        file.seek(SeekFrom::Start(self.at))?;
        let mut bytes = vec![0; PIECE];
        let count = file.read(&mut bytes)?;
        bytes.truncate(count);
        if count == PIECE
            && let Some(line) = bytes.iter().rposition(|b| *b == b'\n')
        {
            bytes.truncate(line + 1);
        }
        Ok(bytes)
    }
}

/// Pieces of what a command writes, until it has ended, or nobody has it open any more.
pub(crate) fn pieces<R: AsyncRead + Send + Unpin + 'static>(
    from: Option<R>,
    stderr: bool,
) -> BoxStream<'static, LogPiece> {
    stream::unfold(from, move |from| async move {
        let mut from = from?;
        let mut piece = vec![0; COMMAND_PIECE];
        // A terminal that nobody has open any more answers with an error.
        let count = from.read(&mut piece).await.ok().filter(|count| *count > 0)?;
        piece.truncate(count);
        Some((LogPiece { data: Bytes::from(piece), stderr }, Some(from)))
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_found() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        fs::write(&path, "one\ntwo\nthree\n").expect("written");
        assert_eq!(start(&path, 0), 0);
        assert_eq!(start(&path, 1), 8);
        assert_eq!(start(&path, 2), 4);
        assert_eq!(start(&path, 9), 0);
        fs::write(&path, "one\ntwo\nthr").expect("written");
        assert_eq!(start(&path, 1), 8);
        assert_eq!(last_bytes(&path, 6).expect("read"), b"thr");
    }
}
