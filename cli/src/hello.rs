//! `steady hello`: a small web server for the examples, so that a first service needs no image.

use std::time::Duration;

use clap::Args;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Most bytes that a request's head may have.
const MAX_HEAD: u64 = 16 * 1024;
/// Most connections at a time.
const MAX_CONNECTIONS: usize = 512;
/// Longest that a connection may be silent.
const IDLE: Duration = Duration::from_secs(60);
/// Longest that open requests may take once the server was told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Arguments of `steady hello`.
#[derive(Debug, Args)]
#[command(after_long_help = "Answers any GET with one line about the task it runs in, and /health with 200.

Examples:
  steady hello --port 8080
  PORT=9000 steady hello")]
pub struct Hello {
    /// Port to listen on, on every address.
    #[arg(long, env = "PORT", default_value_t = 8080, hide_env_values = true)]
    pub port: u16,
    /// Serve nothing: ask the one that listens on this port whether it is well. For health checks.
    #[arg(long)]
    pub check: bool,
}

/// Asks a server on this machine for /health.
async fn check(port: u16) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.take(MAX_HEAD).read_to_string(&mut answer).await?;
    anyhow::ensure!(
        answer.starts_with("HTTP/1.1 200"),
        "port {port} answers {}",
        answer.lines().next().unwrap_or("nothing")
    );
    Ok(())
}

/// Serves until SIGTERM or Ctrl-C; requests that are being answered are finished.
///
/// # Errors
/// When the port cannot be listened on, or what listens there is not well.
pub async fn run(args: &Hello) -> anyhow::Result<()> {
    if args.check {
        return check(args.port).await;
    }
    let listener = TcpListener::bind(("0.0.0.0", args.port))
        .await
        .map_err(|error| anyhow::anyhow!("cannot listen on port {}: {error}", args.port))?;
    crate::out::note(&format!("hello: listening on {}", listener.local_addr()?));
    let mut terminate = signal(SignalKind::terminate())?;
    serve(listener, async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    })
    .await;
    Ok(())
}

async fn serve(listener: TcpListener, stop: impl Future<Output = ()>) {
    let (stopping, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(converse(stream, stopped.clone()));
                }
                // Out of file descriptors, for example: others may close theirs.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
        }
    }
    drop(listener);
    let _ = stopping.send(true);
    let _ = tokio::time::timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
}

/// Answers one connection's requests, one after the other. A connection that breaks is nobody's loss.
async fn converse(mut stream: TcpStream, mut stopped: watch::Receiver<bool>) {
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read);
    loop {
        let head = tokio::select! {
            head = tokio::time::timeout(IDLE, head(&mut read)) => head,
            _ = stopped.changed() => return,
        };
        let Ok(Ok(Some(request))) = head else { return };
        let close = request.close || *stopped.borrow();
        if answer(&mut write, &request, close).await.is_err() || close {
            return;
        }
    }
}

/// What matters of a request.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    method: String,
    path: String,
    close: bool,
}

/// Reads the head of a request; `None` when there is none, or it is none.
async fn head(read: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<Request>> {
    let mut limited = read.take(MAX_HEAD);
    let mut line = String::new();
    if limited.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (Some(method), Some(path), Some(version)) = (words.next(), words.next(), words.next()) else {
        return Ok(None);
    };
    let mut request = Request { method: method.into(), path: path.into(), close: version == "HTTP/1.0" };
    loop {
        let mut field = String::new();
        if limited.read_line(&mut field).await? == 0 {
            return Ok(None);
        }
        let field = field.trim().to_ascii_lowercase();
        if field.is_empty() {
            return Ok(Some(request));
        }
        // A body is not read: what follows it on the connection cannot be told from it.
        let body = field.starts_with("transfer-encoding:")
            || field.strip_prefix("content-length:").is_some_and(|length| length.trim() != "0");
        request.close |= body || field.strip_prefix("connection:").is_some_and(|how| how.trim() == "close");
    }
}

async fn answer(write: &mut (impl AsyncWrite + Unpin), request: &Request, close: bool) -> std::io::Result<()> {
    let path = request.path.split('?').next().unwrap_or_default();
    let (status, body) = match (request.method.as_str(), path) {
        ("GET" | "HEAD", "/health") => ("200 OK", "ok\n".to_owned()),
        ("GET" | "HEAD", _) => ("200 OK", greeting()),
        _ => ("405 Method Not Allowed", "only GET\n".to_owned()),
    };
    let connection = if close { "close" } else { "keep-alive" };
    let length = body.len();
    let mut text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n"
    );
    if request.method != "HEAD" {
        text.push_str(&body);
    }
    write.write_all(text.as_bytes()).await?;
    write.flush().await
}

fn greeting() -> String {
    let task = std::env::var("STEADY_TASK").ok().filter(|task| !task.is_empty()).unwrap_or_else(host);
    format!("Hello from steady: task {task} pid {}\n", std::process::id())
}

fn host() -> String {
    let name =
        std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::fs::read_to_string("/etc/hostname"));
    name.map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(request: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, async move {
            let _ = stopped.await;
        }));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // Hung up on with bytes unread, a connection is reset: no answer either.
        let _ = stream.read_to_string(&mut answer).await;
        stop.send(()).unwrap();
        server.await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_get_is_answered_with_the_task_and_the_process() {
        let answer = ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("\r\n\r\nHello from steady: task "), "{answer}");
        assert!(answer.ends_with(&format!(" pid {}\n", std::process::id())), "{answer}");
    }

    #[tokio::test]
    async fn connections_are_kept_for_the_next_request() {
        let answer = ask("GET /health HTTP/1.1\r\n\r\nGET /health HTTP/1.0\r\n\r\n").await;
        assert_eq!(answer.matches("200 OK").count(), 2, "{answer}");
        assert!(answer.ends_with("\r\n\r\nok\n"), "{answer}");
    }

    #[tokio::test]
    async fn what_is_no_request_or_too_large_is_hung_up_on() {
        assert_eq!(ask("nonsense\r\n\r\n").await, "");
        assert_eq!(ask(&format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(20_000))).await, "");
    }
}
