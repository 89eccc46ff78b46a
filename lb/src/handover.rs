//! A restart that drops no connection: the next process gets the listening sockets of the one before, which takes no new connections
//! from then on and ends when its own are over. Connections that wait to be accepted wait for the next one.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// Most sockets that are handed over.
const MOST: usize = 200;
/// How long the other side may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Listening sockets by port.
pub(crate) type Sockets = BTreeMap<u16, Arc<TcpListener>>;

/// Asks the process that is there for its sockets; none is no error. It accepts, too, until it is told that they are in good
/// hands ([`confirm`]).
pub(crate) fn take(path: &Path) -> io::Result<(Sockets, Option<UnixStream>)> {
    let stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(error) => {
            if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
                tracing::warn!(path = %path.display(), %error, "no process can be asked for its sockets");
            }
            return Ok((Sockets::new(), None));
        }
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = [0; 2048];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(&stream, &mut [IoSliceMut::new(&mut text)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let messages = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds: Vec<OwnedFd> = messages.flatten().collect();
    let text = String::from_utf8_lossy(&text[..got.bytes]).into_owned();
    let ports = text.split_whitespace().filter_map(|port| port.parse::<u16>().ok());
    let sockets = ports.zip(fds).map(|(port, fd)| (port, Arc::new(TcpListener::from(fd)))).collect();
    Ok((sockets, Some(stream)))
}

/// From here on the sockets are this process': the one before ends.
pub(crate) fn confirm(mut before: &UnixStream) {
    if let Err(error) = before.write_all(b"mine") {
        tracing::warn!(%error, "the process before does not hear that its sockets are taken");
    }
}

/// Gives its sockets to whoever asks for them. Returns when they have been taken.
pub(crate) fn give(listener: &UnixListener, sockets: impl Fn() -> Sockets) {
    while let Ok((mut stream, _)) = listener.accept() {
        let sockets = sockets();
        let ports: Vec<String> = sockets.keys().map(u16::to_string).take(MOST).collect();
        let fds: Vec<BorrowedFd<'_>> = sockets.values().map(AsFd::as_fd).take(MOST).collect();
        let text = ports.join(" ") + "\n";
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
            continue;
        }
        if sendmsg(&stream, &[IoSlice::new(text.as_bytes())], &mut ancillary, SendFlags::empty()).is_err() {
            continue;
        }
        let mut answer = [0; 4];
        let _ = stream.set_read_timeout(Some(PATIENCE));
        if stream.read_exact(&mut answer).is_ok() && &answer == b"mine" {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_handed_over_with_the_connections_that_wait() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        assert!(take(&path).expect("nobody is there").1.is_none());
        let listener = UnixListener::bind(&path).expect("bound");
        let tcp = Arc::new(TcpListener::bind("127.0.0.1:0").expect("bound"));
        let port = tcp.local_addr().expect("an address").port();
        let _waits = std::net::TcpStream::connect(("127.0.0.1", port)).expect("connected");
        let given = Sockets::from([(port, tcp)]);
        let giving = std::thread::spawn(move || give(&listener, || given.clone()));
        let (taken, before) = take(&path).expect("taken");
        confirm(&before.expect("somebody is there"));
        giving.join().expect("given");
        assert_eq!(taken.keys().copied().collect::<Vec<_>>(), [port]);
        assert!(taken[&port].accept().is_ok(), "it was waiting");
    }
}
