//! P15: `steady up` on an empty directory, with a manifest of plain processes: until its API answers, and until a
//! task answers HTTP. The yardstick is the bundled etcd alone on an empty directory.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use steady_core::v1::Object;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::args::Scale;
use crate::machine::Others;
use crate::report::{Report, Target};
use crate::sample::{Sample, millis};
use crate::store::Store;
use crate::subject::Subject;
use crate::tasks::Tasks;
use crate::workspace::Workspace;

/// Longest wait for a task's program to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures.
pub(crate) async fn run(workspace: &Workspace, scale: Scale) -> anyhow::Result<Report> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/manifests/hello.yaml");
    let manifest = manifest.canonicalize().with_context(|| manifest.display().to_string())?;
    let others = Others::watch(&[]);
    let mut found = <[Sample; 5]>::default();
    for round in 1..=scale.rounds {
        let began = Instant::now();
        let store = Store::start(&workspace.directory(&format!("etcd-{round}"))?, &workspace.steady).await?;
        found[0].push(millis(began.elapsed()));
        store.stop().await;
        let times = once(&workspace.steady, workspace.directory(&format!("steady-{round}"))?, &manifest).await?;
        for (sample, time) in found[1..].iter_mut().zip(times) {
            sample.push(millis(time));
        }
    }
    let mut report = Report::new("startup", "P15", scale);
    report.others(&others);
    let [etcd, api, running, http, ended] = found;
    report.yardstick("bundled etcd alone answers", "ms", etcd);
    report.goal("steady up to API answers", "ms", api, Target::AtMost(1000.0));
    report.figure("to the first hello task RUNNING", "ms", running);
    report.goal("to hello answers HTTP", "ms", http, Target::AtMost(3000.0));
    report.figure("until steady had ended, a watch open", "ms", ended);
    Ok(report)
}

/// One start: API, RUNNING, HTTP, each since the start; and how long the end took.
async fn once(steady: &Path, directory: PathBuf, manifest: &Path) -> anyhow::Result<[Duration; 4]> {
    let (manifest, data) = (manifest.display().to_string(), directory.join("data").display().to_string());
    let mut subject =
        Subject::spawn(steady, &directory, &["up", "--data-dir", &data, "--runtime", "process", &manifest])?;
    let began = subject.began;
    let api = subject.answers().await?;
    let mut watch = Tasks::follow(&subject.client).await?;
    let task = watch.running(|_| true).await?;
    let running = began.elapsed();
    let address = address(&task).context("the task has no address")?;
    let http = answer(&address, began).await?;
    Ok([api, running, http, subject.stop().await?])
}

fn address(task: &Object) -> Option<String> {
    let containers = &task.as_task()?.status.as_ref()?.containers;
    let port = containers.iter().flat_map(|container| &container.network_bindings).next()?.host_port;
    Some(format!("127.0.0.1:{port}"))
}

/// Waits until an address answers HTTP with 200.
async fn answer(address: &str, began: Instant) -> anyhow::Result<Duration> {
    let waiting = Instant::now();
    loop {
        let last = match get(address).await {
            Ok(line) if line.starts_with("HTTP/1.1 200") => return Ok(began.elapsed()),
            Ok(line) => line,
            Err(error) => error.to_string(),
        };
        if waiting.elapsed() > PATIENCE {
            bail!("http://{address} did not answer for {PATIENCE:?}: {last}");
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn get(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
