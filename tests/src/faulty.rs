//! A registry that fails in ways that a real one does not at command.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::docker::busybox_files;

/// What it does with a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Half of it, and then nothing more.
    Truncated,
    /// As many bytes, but others.
    Wrong,
    /// A little at a time.
    Slow,
    /// Half of it the first time, all of it afterwards.
    OnceTruncated,
}

/// Serves one image, `box:1`, until the test ends; where, and how often a layer was asked for.
pub fn registry(fault: Fault) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let files = busybox_files();
    let layer = digest(&files);
    let config = format!(
        "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{{}},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"{layer}\"]}}}}"
    );
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let manifest = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{kind}\",\"config\":{{\"mediaType\":\"application/vnd.docker.container.image.v1+json\",\
         \"size\":{},\"digest\":\"{}\"}},\"layers\":[{{\"mediaType\":\"application/vnd.docker.image.rootfs.diff.tar\",\"size\":{},\
         \"digest\":\"{layer}\"}}]}}",
        config.len(),
        digest(config.as_bytes()),
        files.len()
    );
    let content = Arc::new(Content { files, layer, config, manifest, kind, fault, asked: Arc::default() });
    let asked = Arc::clone(&content.asked);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let content = Arc::clone(&content);
            std::thread::spawn(move || content.talk(stream));
        }
    });
    (address, asked)
}

struct Content {
    files: Vec<u8>,
    layer: String,
    config: String,
    manifest: String,
    kind: &'static str,
    fault: Fault,
    asked: Arc<AtomicUsize>,
}

impl Content {
    /// One request a connection.
    fn talk(&self, mut stream: TcpStream) {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_exact(&mut byte).is_err() {
                return;
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut words = head.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (body, kind): (&[u8], &str) = match path {
            "/v2/" => (b"{}", "application/json"),
            _ if path.contains("/manifests/") => (self.manifest.as_bytes(), self.kind),
            _ if path.ends_with(&self.layer) => (&self.files, "application/octet-stream"),
            _ if path.contains("/blobs/") => (self.config.as_bytes(), "application/octet-stream"),
            _ => (b"", ""),
        };
        let status = if kind.is_empty() { "404 Not Found" } else { "200 OK" };
        let begin = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nDocker-Content-Digest: {}\r\nConnection: close\r\n\r\n",
            body.len(),
            digest(body)
        );
        let _ = stream.write_all(begin.as_bytes());
        if method == "HEAD" {
            return;
        }
        let _ = if path.ends_with(&self.layer) { self.layer(&mut stream) } else { stream.write_all(body) };
    }

    fn layer(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        let count = self.asked.fetch_add(1, Ordering::SeqCst);
        let half = &self.files[..self.files.len() / 2];
        match self.fault {
            Fault::Truncated => stream.write_all(half),
            Fault::OnceTruncated if count == 0 => stream.write_all(half),
            Fault::OnceTruncated => stream.write_all(&self.files),
            Fault::Wrong => stream.write_all(&self.files.iter().map(|byte| byte ^ 1).collect::<Vec<_>>()),
            Fault::Slow => self.files.chunks(self.files.len() / 30 + 1).try_for_each(|piece| {
                std::thread::sleep(Duration::from_millis(100));
                stream.write_all(piece)
            }),
        }
    }
}

fn digest(bytes: &[u8]) -> String {
    use std::process::{Command, Stdio};
    let mut sum = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = sum.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writing = std::thread::spawn(move || stdin.write_all(&bytes));
    let output = sum.wait_with_output().unwrap();
    let _ = writing.join();
    format!("sha256:{}", String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default())
}
