//! Rules of nftables in a task's network namespace.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use steady_core::resources::capability;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::Semaphore;

use super::RuntimeError;

/// What enters a namespace, and what changes rules there.
const PROGRAMS: [&str; 2] = ["nsenter", "nft"];
/// How long it may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Those that run at once.
static PLACES: Semaphore = Semaphore::const_new(4);

/// Where programs are looked for: a user's own path may not lead to the system's.
pub(super) fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// What a machine with CNI's plug-ins can do for tasks.
pub(super) fn capabilities() -> Vec<String> {
    let (path, mut all) = (path(), vec![capability::TASK_ENI.to_owned()]);
    let is_there = |program: &&str| path.split(':').any(|directory| Path::new(directory).join(program).exists());
    if PROGRAMS.iter().all(is_there) {
        all.push(capability::SECURITY_GROUPS.to_owned());
    }
    all
}

/// What a program says that is given this, and how it ended.
pub(super) async fn fed(mut command: Command, input: &[u8], limit: Duration) -> Result<Output, String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let run = async {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that ends before it has read all says why.
            let _ = stdin.write_all(input).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(limit, run).await.map_err(|_| format!("no answer within {limit:?}"))?;
    output.map_err(|error| error.to_string())
}

/// Gives the network namespace that is found at a path rules, if it is there still once it is held: the process of that number
/// is then the container's own.
pub(super) async fn filter<F>(rules: &str, path: impl Fn() -> F) -> Result<(), RuntimeError>
where
    F: Future<Output = Result<PathBuf, RuntimeError>>,
{
    let found = path().await?;
    let namespace = open(&found).map_err(RuntimeError::Resource)?;
    if path().await? != found {
        return Err(RuntimeError::Resource(format!("{} is another's by now", found.display())));
    }
    replace(&namespace, rules).await.map_err(RuntimeError::Resource)
}

/// Holds a namespace.
fn open(namespace: &Path) -> Result<File, String> {
    File::open(namespace).map_err(|error| format!("{}: {error}", namespace.display()))
}

/// Gives a namespace these rules.
async fn replace(namespace: &File, rules: &str) -> Result<(), String> {
    let _place = PLACES.acquire().await;
    // Of this process, which holds it: whoever opens the path is another one.
    let held = format!("--net=/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
    let mut command = Command::new("nsenter");
    command.env("PATH", path()).args([held.as_str(), "nft", "-f", "-"]);
    let output = fed(command, rules.as_bytes(), LIMIT).await.map_err(|error| format!("nft: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("nft: {}", said.lines().next().unwrap_or("it failed")))
}
