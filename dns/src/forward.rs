//! Asks somebody else.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hickory_server::net::xfer::Protocol;
use hickory_server::proto::op::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// How long each may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Largest answer over UDP, bytes.
const DATAGRAM: usize = 4096;

/// The answer of the first that gives one, asked as it was asked here.
pub(crate) async fn ask(servers: &[SocketAddr], question: &[u8], protocol: Protocol) -> Option<Message> {
    for server in servers {
        let asking = async {
            if protocol == Protocol::Udp {
                by_datagram(*server, question).await
            } else {
                by_stream(*server, question).await
            }
        };
        match tokio::time::timeout(PATIENCE, asking).await {
            Ok(Ok(answer)) => match Message::from_vec(&answer) {
                Ok(message) => return Some(message),
                Err(error) => tracing::debug!(%server, %error, "an answer that is none"),
            },
            Ok(Err(error)) => tracing::debug!(%server, %error, "no answer"),
            Err(_) => tracing::debug!(%server, "no answer in time"),
        }
    }
    None
}

async fn by_datagram(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut answer = vec![0; DATAGRAM];
    loop {
        let count = socket.recv(&mut answer).await?;
        // What answers another question is nobody's.
        if count >= 2 && answer[..2] == question[..2] {
            answer.truncate(count);
            return Ok(answer);
        }
    }
}

async fn by_stream(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], question].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}
