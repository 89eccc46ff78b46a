//! Requests through a load balancer of one thread, beside `HAProxy` and nginx of one thread each, to targets that are alike (nginx): how many
//! for a second of the proxy's processor time, and how long they take. In alternation, small answers and 100 KiB.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use steady_core::manifest;
use steady_core::v1::ApplyRequest;
use tokio::process::Command;

use crate::args::Scale;
use crate::machine::{Others, used};
use crate::report::{Report, Target};
use crate::sample::Sample;
use crate::store::Store;
use crate::subject::{Child, Subject};
use crate::workspace::Workspace;

/// Connections of clients.
const CONNECTIONS: &str = "64";
/// What is asked for: its name, its path, and with what.
const ANSWERS: [(&str, &str, Client); 4] = [
    ("12 bytes", "/", Client::Wrk),
    ("100 KiB", "/big", Client::Wrk),
    ("12 bytes, HTTP/2", "/", Client::H2load),
    ("100 KiB, HTTP/2", "/big", Client::H2load),
];
const BIG: usize = 100 * 1024;
/// How long is measured.
const SECONDS: &str = "4s";
/// Longest wait for something to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Client {
    /// HTTP/1.1.
    Wrk,
    /// HTTP/2 without TLS, ten requests at once over each connection.
    H2load,
}

/// What is measured.
#[derive(Clone, Copy)]
struct Proxy {
    name: &'static str,
    pid: u32,
    port: u16,
}

/// Measures.
pub(crate) async fn run(workspace: &Workspace, scale: Scale) -> anyhow::Result<Report> {
    let directory = workspace.directory("traffic")?;
    let others = Others::watch(&[]);
    let backends = [free_port()?, free_port()?];
    let _backends = backend(&directory, backends)?;
    let store = Store::start(&workspace.directory("etcd")?, &workspace.steady).await?;
    let subject = Subject::apiserver(workspace, &store).await?;
    let _controllers = Child::controllers(workspace, &subject)?;
    let data = directory.join("agent").display().to_string();
    let server = subject.address.clone();
    let args = ["agent", "--name", "m", "--runtime", "process", "--data-dir", &data, "--server", &server];
    let _agent = Child::spawn(
        &workspace.steady,
        &workspace.directory("agent")?,
        &[&args[..], &["--address", "127.0.0.1"]].concat(),
    )?;
    let ports = [free_port()?, free_port()?, free_port()?];
    let data = directory.join("lb").display().to_string();
    let args = ["lb", "--threads", "1", "--listen-address", "127.0.0.1", "--data-dir", &data, "--server", &server];
    let lb = Child::spawn(&workspace.steady, &workspace.directory("lb")?, &args)?;
    declare(&subject, ports[0], &directory, 2).await?;
    let haproxy = haproxy(workspace, &directory, ports[1], backends)?;
    let nginx = nginx(workspace, &directory, ports[2], backends)?;
    let proxies = [
        Proxy { name: "steady lb", pid: lb.pid, port: ports[0] },
        Proxy { name: "HAProxy", pid: haproxy.pid, port: ports[1] },
        Proxy { name: "nginx", pid: nginx.pid, port: ports[2] },
    ];
    for proxy in proxies {
        answers(proxy).await?;
    }
    let mut report = Report::new("lb", "P12", scale);
    for (what, path, client) in ANSWERS {
        let mut found = [(); 3].map(|()| (Sample::default(), Sample::default(), Sample::default()));
        let (mut to_haproxy, mut to_nginx, mut latency) = (Sample::default(), Sample::default(), Sample::default());
        for _ in 0..scale.rounds {
            let mut round = Vec::new();
            for (proxy, (rates, whole, slow)) in proxies.iter().zip(&mut found) {
                let one = load(*proxy, path, client).await?;
                rates.push(one.per_core);
                whole.push(one.rate);
                slow.push(one.p99);
                round.push(one);
            }
            to_haproxy.push(round[0].per_core / round[1].per_core);
            to_nginx.push(round[0].per_core / round[2].per_core);
            latency.push(round[0].p99 / round[1].p99);
        }
        for (proxy, (rates, whole, slow)) in proxies.iter().zip(found) {
            let metric = |figure: &str| format!("{what}, {}: {figure}", proxy.name);
            if proxy.name == "steady lb" {
                report.figure(&metric("requests for a second of processor time"), "1/s", rates);
                report.figure(&metric("requests a second"), "1/s", whole);
                report.figure(&metric("p99"), "ms", slow);
            } else {
                report.yardstick(&metric("requests for a second of processor time"), "1/s", rates);
                report.yardstick(&metric("requests a second"), "1/s", whole);
                report.yardstick(&metric("p99"), "ms", slow);
            }
        }
        report.goal(&format!("{what}: requests for a core over HAProxy's"), "x", to_haproxy, Target::AtLeast(0.9));
        report.goal(&format!("{what}: requests for a core over nginx'"), "x", to_nginx, Target::AtLeast(1.2));
        report.goal(&format!("{what}: p99 over HAProxy's"), "x", latency, Target::AtMost(1.0));
    }
    report.others(&others);
    report.note(
        "clients and targets share the machine; one thread each of steady lb, HAProxy and nginx; connections kept"
            .into(),
    );
    // Its tasks outlive an agent that is killed.
    declare(&subject, ports[0], &directory, 0).await?;
    let began = Instant::now();
    while answers_once(proxies[0]).await? {
        if began.elapsed() > PATIENCE {
            bail!("its tasks do not stop within {PATIENCE:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop((haproxy, nginx, lb));
    subject.stop().await?;
    store.stop().await;
    Ok(report)
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn nginx_configuration(directory: &Path, name: &str, servers: &str) -> anyhow::Result<PathBuf> {
    let path = directory.join(format!("{name}.conf"));
    let (at, user) = (directory.display(), if rustix::process::geteuid().is_root() { "user root;" } else { "" });
    let text = format!(
        "{user} worker_processes 1; daemon off; master_process off; pid {at}/{name}.pid; error_log {at}/{name}.err;
events {{ worker_connections 4096; }}
http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {at}/{name}-body; proxy_temp_path {at}/{name}-proxy;
fastcgi_temp_path {at}/{name}-f; uwsgi_temp_path {at}/{name}-u; scgi_temp_path {at}/{name}-s;
{servers} }}
"
    );
    std::fs::write(&path, text)?;
    Ok(path)
}

fn start_nginx(path: &Path, directory: &Path) -> anyhow::Result<Child> {
    let path = path.display().to_string();
    Child::spawn(Path::new("nginx"), directory, &["-c", &path]).context("is the package nginx-light installed?")
}

/// What all proxies lead to.
fn backend(directory: &Path, ports: [u16; 2]) -> anyhow::Result<Child> {
    let files = directory.join("www");
    std::fs::create_dir_all(&files)?;
    std::fs::write(files.join("big"), vec![b'x'; BIG])?;
    let server = |port: u16| {
        format!(
            "server {{ listen 127.0.0.1:{port}; location / {{ return 200 \"hello world\\n\"; }} location /big {{ root {}; }} }}\n",
            files.display()
        )
    };
    let servers: String = ports.into_iter().map(server).collect();
    let path = nginx_configuration(directory, "backend", &servers)?;
    start_nginx(&path, directory)
}

fn nginx(workspace: &Workspace, directory: &Path, port: u16, backends: [u16; 2]) -> anyhow::Result<Child> {
    let [a, b] = backends;
    let servers = format!(
        "upstream u {{ server 127.0.0.1:{a}; server 127.0.0.1:{b}; keepalive 128; }}
server {{ listen 127.0.0.1:{port}; listen 127.0.0.1:{} http2; location / {{ proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection \"\";
proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }}",
        port + 1
    );
    let path = nginx_configuration(directory, "nginx", &servers)?;
    start_nginx(&path, &workspace.directory("nginx")?)
}

fn haproxy(workspace: &Workspace, directory: &Path, port: u16, backends: [u16; 2]) -> anyhow::Result<Child> {
    let [a, b] = backends;
    let text = format!(
        "global\n  nbthread 1\n  maxconn 4096\ndefaults\n  mode http\n  timeout client 60s\n  timeout server 60s\n  timeout connect 3s\n  \
         option forwardfor\n  http-reuse always\nfrontend f\n  bind 127.0.0.1:{port}\n  default_backend b\nbackend b\n  balance \
         roundrobin\n  server a 127.0.0.1:{a}\n  server b 127.0.0.1:{b}\n"
    );
    let path = directory.join("haproxy.cfg");
    std::fs::write(&path, text)?;
    let path = path.display().to_string();
    let started = Child::spawn(Path::new("haproxy"), &workspace.directory("haproxy")?, &["-f", &path]);
    started.context("is the package haproxy installed?")
}

/// A service of two tasks that are nginx as the others' targets are, behind a listener at this port.
async fn declare(subject: &Subject, port: u16, directory: &Path, count: u32) -> anyhow::Result<()> {
    let template = nginx_configuration(
        directory,
        "task-PORT",
        &format!(
            "server {{ listen 127.0.0.1:PORT; location / {{ return 200 \"hello world\\n\"; }} location /big {{ root {}/www; }} }}",
            directory.display()
        ),
    )?;
    let (template, at) = (template.display(), directory.display());
    let run = format!("sed s/PORT/$PORT/g {template} > {at}/task-$PORT.conf; exec nginx -c {at}/task-$PORT.conf");
    let text = format!(
        "apiVersion: steady/v1
kind: TargetGroup
metadata: {{name: web}}
---
apiVersion: steady/v1
kind: Listener
metadata: {{name: http}}
spec: {{port: {port}, defaultActions: [{{type: forward, targetGroupArn: web}}]}}
---
apiVersion: steady/v1
kind: TaskDefinition
metadata: {{name: web}}
spec:
  containerDefinitions: [{{name: web, image: none, memory: 64, command: [sh, -c, '{run}'], portMappings: [{{containerPort: 80}}]}}]
---
apiVersion: steady/v1
kind: Service
metadata: {{name: web}}
spec: {{taskDefinition: web, desiredCount: {count}, loadBalancers: [{{targetGroupArn: web, containerName: web, containerPort: 80}}]}}
"
    );
    let parsed = manifest::parse("lb.yaml", text.as_bytes(), None);
    if let Some(fault) = parsed.faults.first() {
        bail!("{fault}");
    }
    let objects = parsed.documents.into_iter().map(|document| document.object).collect();
    subject.client.objects().apply(ApplyRequest { objects, dry_run: false }).await.context("nothing was applied")?;
    Ok(())
}

async fn answers(proxy: Proxy) -> anyhow::Result<()> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if answers_once(proxy).await? {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("{} does not answer within {PATIENCE:?}", proxy.name)
}

async fn answers_once(proxy: Proxy) -> anyhow::Result<bool> {
    let url = format!("http://127.0.0.1:{}/big", proxy.port);
    let output = Command::new("curl").args(["-s", "-m", "2", &url]).output().await.context("curl")?;
    Ok(output.stdout.len() == BIG)
}

/// What one load found.
struct Found {
    rate: f64,
    per_core: f64,
    /// Milliseconds.
    p99: f64,
}

async fn load(proxy: Proxy, path: &str, client: Client) -> anyhow::Result<Found> {
    // nginx takes HTTP/2 without TLS at a port of its own.
    let port = if client == Client::H2load && proxy.name == "nginx" { proxy.port + 1 } else { proxy.port };
    let url = format!("http://127.0.0.1:{port}{path}");
    let ask = async |time: &str| match client {
        Client::Wrk => wrk(&["--latency", "-d", time, &url]).await,
        Client::H2load => h2load(&["-D", time.trim_end_matches('s'), &url]).await,
    };
    ask("1s").await?;
    let (began, before) = (Instant::now(), used(proxy.pid)?.own);
    let said = ask(SECONDS).await?;
    let (took, busy) = (began.elapsed().as_secs_f64(), used(proxy.pid)?.own - before);
    let (requests, p99) = match client {
        Client::Wrk => of_wrk(&said),
        Client::H2load => of_h2load(&said),
    }
    .with_context(|| format!("{}: {said}", proxy.name))?;
    Ok(Found { rate: requests / took, per_core: requests / busy, p99 })
}

/// Requests, none of which failed, and the 99th percentile, milliseconds.
fn of_wrk(said: &str) -> Option<(f64, f64)> {
    if said.contains("Socket errors") || said.contains("Non-2xx") {
        return None;
    }
    let of = |what: &str| said.lines().find(|line| line.contains(what));
    let requests = of("requests in")?.split_whitespace().next()?.parse().ok()?;
    Some((requests, time(of("99%")?.split_whitespace().last()?)?))
}

/// The same, and of each connection's slowest: it tells no percentiles of requests but min, max, mean and spread.
fn of_h2load(said: &str) -> Option<(f64, f64)> {
    // requests: 88062 total, 88702 started, 88062 done, 88062 succeeded, 0 failed, 0 errored, 0 timeout
    let requests = said.lines().find(|line| line.starts_with("requests:"))?;
    let count = |what: &str| -> Option<f64> {
        requests
            .split(',')
            .find(|part| part.contains(what))?
            .trim_start_matches("requests:")
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    };
    if count("failed")? > 0.0 || count("errored")? > 0.0 {
        return None;
    }
    // time for request:      min       max      mean        sd    +/- sd
    let line = said.lines().find(|line| line.starts_with("time for request:"))?;
    let mut words = line.trim_start_matches("time for request:").split_whitespace().skip(2);
    let (mean, spread) = (time(words.next()?)?, time(words.next()?)?);
    // Of a normal distribution.
    Some((count("succeeded")?, 2.33f64.mul_add(spread, mean)))
}

/// Milliseconds.
fn time(text: &str) -> Option<f64> {
    let number = |unit: &str| text.strip_suffix(unit).and_then(|text| text.parse::<f64>().ok());
    number("us").map(|us| us / 1000.0).or_else(|| number("ms")).or_else(|| number("s").map(|s| s * 1000.0))
}

async fn h2load(args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("h2load").args(["-t1", "-m10", "-c", CONNECTIONS]).args(args).output().await;
    let output = output.context("is the package nghttp2-client installed?")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn wrk(args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("wrk").args(["-t1", "-c", CONNECTIONS]).args(args).output().await;
    let output = output.context("is the package wrk installed?")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
