//! A TCP connection's way, which can be cut: both ways, one way, or slowed down. What is cut is not closed: nothing comes
//! through, as behind a broken switch.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::runtime;

/// What a link does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It passes everything.
    Open,
    /// Nothing comes through.
    Cut,
    /// Nothing comes to the target; what it says comes back.
    Deaf,
    /// Nothing comes back from the target.
    Mute,
    /// Each piece is this late, each way.
    Late(Duration),
}

/// A way to a target.
pub struct Link {
    /// Where it begins.
    pub address: SocketAddr,
    way: watch::Sender<Way>,
    stopped: Arc<AtomicU64>,
}

impl Link {
    /// A way to `target`, which need not be there yet.
    pub fn to(target: SocketAddr) -> Self {
        let listener = runtime().block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (way, told) = watch::channel(Way::Open);
        let stopped = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&stopped);
        runtime().spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (told, counted) = (told.clone(), Arc::clone(&counted));
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(target).await else { return };
                    let _ = (near.set_nodelay(true), far.set_nodelay(true));
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    let there = pass(near_in, far_out, told.clone(), Arc::clone(&counted), Way::Deaf);
                    let back = pass(far_in, near_out, told, counted, Way::Mute);
                    // The end of one way is the end of both.
                    tokio::select! {
                        () = there => {}
                        () = back => {}
                    }
                });
            }
        });
        Link { address, way, stopped }
    }

    /// Changes what it does, for connections that are open too.
    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }

    /// How often something was held back: whether a fault really happened.
    pub fn stopped(&self) -> u64 {
        self.stopped.load(Ordering::Relaxed)
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut way: watch::Receiver<Way>,
    stopped: Arc<AtomicU64>,
    own: Way,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        let late = *way.borrow();
        if let Way::Late(by) = late {
            stopped.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(by).await;
        }
        let is_cut = |way: &Way| *way == Way::Cut || *way == own;
        if is_cut(&way.borrow()) {
            stopped.fetch_add(1, Ordering::Relaxed);
        }
        if way.wait_for(|way| !is_cut(way)).await.is_err() || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
