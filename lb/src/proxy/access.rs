//! The access log: a line of JSON for each request, written by a thread of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;
use steady_core::Timestamp;

/// Lines that may wait to be written. What comes beyond them is counted, and lost: clients do not wait for a disk.
const WAITING: usize = 10_000;
/// How long a line may wait.
const FLUSH: Duration = Duration::from_millis(200);

/// Writes lines.
#[derive(Clone)]
pub(crate) struct AccessLog {
    lines: SyncSender<String>,
    lost: Arc<AtomicU64>,
}

impl AccessLog {
    /// Appends to a file, `-` for standard output.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut out: Box<dyn Write + Send> = if path == Path::new("-") {
            Box::new(io::stdout())
        } else {
            let file: File = OpenOptions::new().create(true).append(true).open(path)?;
            Box::new(BufWriter::with_capacity(64 * 1024, file))
        };
        let (lines, waiting) = sync_channel::<String>(WAITING);
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            loop {
                match waiting.recv_timeout(FLUSH) {
                    Ok(line) => {
                        let _ = out.write_all(line.as_bytes());
                    }
                    Err(RecvTimeoutError::Timeout) => {
                        let _ = out.flush();
                    }
                    Err(RecvTimeoutError::Disconnected) => {
                        let _ = out.flush();
                        return;
                    }
                }
            }
        })?;
        Ok(AccessLog { lines, lost: Arc::default() })
    }

    /// Lines that nobody could write in time.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn write(&self, line: String) {
        if self.lines.try_send(line).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A request that goes on. Written when it is over.
pub(crate) struct Entry {
    pub(crate) log: AccessLog,
    pub(crate) began: Instant,
    pub(crate) listener: String,
    pub(crate) client: SocketAddr,
    pub(crate) method: String,
    pub(crate) host: String,
    pub(crate) uri: String,
    pub(crate) status: u16,
    pub(crate) target: Option<SocketAddr>,
    pub(crate) task: String,
    pub(crate) tries: usize,
    pub(crate) bytes: u64,
    pub(crate) error: String,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let line = json!({
            "time": Timestamp::from(SystemTime::now()).to_string(), "listener": self.listener, "client": self.client.to_string(),
            "method": self.method, "host": self.host, "uri": self.uri, "status": self.status,
            "target": self.target.map(|at| at.to_string()), "task": self.task, "tries": self.tries, "bytes": self.bytes,
            "seconds": self.began.elapsed().as_secs_f64(), "error": self.error,
        });
        self.log.write(format!("{line}\n"));
    }
}
