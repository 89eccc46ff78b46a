//! The logger: takes a container's output off containerd's shim and keeps it, also while no agent is there. A process of its own for each
//! start of a container; containerd starts it (`binary://`).

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock, inotify};

use super::files::is_over;
use crate::runtime::output;

/// Most bytes that are taken at once.
const PIECE: usize = 64 * 1024;
/// Nanoseconds for which more output is waited for once the container has ended.
const LAST: i64 = 20_000_000;
/// How much is written between two looks at a file's size.
const ROTATION: usize = 1024 * 1024;

fn lock_of(directory: &Path) -> PathBuf {
    directory.join("lock")
}

/// Whether a container's output is still being taken.
pub(super) fn is_busy(directory: &Path) -> bool {
    let Ok(file) = File::open(lock_of(directory)) else { return false };
    flock(&file, FlockOperation::NonBlockingLockExclusive).is_err()
}

/// Where the shim is to send the output: its `binary://` address.
pub(super) fn address(program: &Path, directory: &Path) -> String {
    let escaped = |path: &Path| {
        let bytes = path.display().to_string().into_bytes();
        bytes.into_iter().fold(String::new(), |text, byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => {
                text + &char::from(byte).to_string()
            }
            _ => format!("{text}%{byte:02X}"),
        })
    };
    format!("binary://{}?__log={}", escaped(program), escaped(directory))
}

/// Keeps the output of the shim that started this process: from its third and fourth file into the container's directory. Its
/// fifth is told when that has begun. Returns the process' exit code.
pub fn run_logger(directory: &Path) -> i32 {
    match keep(directory) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("steady: {}: {error}", directory.display());
            1
        }
    }
}

fn keep(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let lock = File::options().create(true).truncate(false).write(true).open(lock_of(directory))?;
    // That of the start before is about to end.
    flock(&lock, FlockOperation::LockExclusive)?;
    let open = |stderr| File::options().create(true).append(true).open(output::file(directory, stderr));
    let pipe = |at: u32| File::open(format!("/proc/self/fd/{at}"));
    let mut copies = [
        Copy { from: pipe(3)?, to: open(false)?, path: output::file(directory, false), since: 0, ended: false },
        Copy { from: pipe(4)?, to: open(true)?, path: output::file(directory, true), since: 0, ended: false },
    ];
    let changes = watch(directory)?;
    File::options().write(true).open("/proc/self/fd/5")?.write_all(b"1")?;
    // The shim holds the pipes open until what has ended is removed: that it has ended is seen in the directory.
    // A directory whose files are open is not told to be gone; its files are.
    let kept = output::file(directory, false);
    let over = || !kept.exists() || is_over(directory);
    loop {
        let last = over();
        let moved = copy(&mut copies, &changes, last)?;
        if copies.iter().all(|copy| copy.ended) || (last && !moved) {
            return Ok(());
        }
    }
}

/// Tells when a container's end was written down, or it is removed.
fn watch(directory: &Path) -> io::Result<OwnedFd> {
    let changes = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&changes, directory, inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::DELETE)?;
    Ok(changes)
}

/// One kind of output.
struct Copy {
    from: File,
    to: File,
    path: PathBuf,
    /// Bytes since the file's size was looked at.
    since: usize,
    ended: bool,
}

impl Copy {
    /// What cannot be kept, as on a disk that is full, is dropped: the container must not wait for it.
    fn once(&mut self) {
        let mut piece = vec![0; PIECE];
        match self.from.read(&mut piece) {
            Ok(0) => self.ended = true,
            Ok(count) => {
                let _ = self.to.write_all(&piece[..count]);
                self.since += count;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.ended = true,
        }
        if self.since > ROTATION {
            output::rotate(&self.path);
            self.since = 0;
        }
    }
}

/// Waits for output, or for a change in the directory, and takes what is there. Whether there was any output.
fn copy(copies: &mut [Copy; 2], changes: &OwnedFd, is_last: bool) -> io::Result<bool> {
    let limit = is_last.then_some(Timespec { tv_sec: 0, tv_nsec: LAST });
    let ready = {
        // One that has ended is always ready.
        let mut watched = vec![PollFd::new(changes, PollFlags::IN)];
        watched.extend(copies.iter().filter(|copy| !copy.ended).map(|copy| PollFd::new(&copy.from, PollFlags::IN)));
        match poll(&mut watched, limit.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(true),
            polled => polled?,
        };
        watched.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<_>>()
    };
    if ready[0] {
        // What changed is looked at, not told.
        let _ = rustix::io::read(changes, &mut [0_u8; 4096]);
    }
    let mut moved = false;
    for (copy, ready) in copies.iter_mut().filter(|copy| !copy.ended).zip(&ready[1..]) {
        if *ready {
            copy.once();
            moved = true;
        }
    }
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn what_goes_with_its_container_ends_the_wait() {
        let base = tempfile::tempdir().expect("a directory");
        let directory = base.path().join("c");
        fs::create_dir(&directory).expect("made");
        let changes = watch(&directory).expect("watched");
        let (reader, _writer) = rustix::pipe::pipe().expect("a pipe");
        let (other, _other_writer) = rustix::pipe::pipe().expect("a pipe");
        let open = |stderr| File::create(output::file(&directory, stderr)).expect("made");
        let copy_of = |from, stderr| Copy {
            from: File::from(from),
            to: open(stderr),
            path: output::file(&directory, stderr),
            since: 0,
            ended: false,
        };
        let mut copies = [copy_of(reader, false), copy_of(other, true)];
        let gone = directory.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            fs::remove_dir_all(gone).expect("removed");
        });
        let began = Instant::now();
        while output::file(&directory, false).exists() {
            copy(&mut copies, &changes, false).expect("looked");
            assert!(began.elapsed() < Duration::from_secs(10));
        }
    }

    #[test]
    fn its_address_names_program_and_directory() {
        let address = address(Path::new("/opt/my steady/steady"), Path::new("/d/a.b"));
        assert_eq!(address, "binary:///opt/my%20steady/steady?__log=/d/a.b");
    }
}
