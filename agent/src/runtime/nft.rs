//! Rules of nftables in a task's network namespace.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use steady_core::resources::capability;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::Semaphore;

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

/// Holds a namespace.
pub(super) fn open(namespace: &Path) -> Result<File, String> {
    File::open(namespace).map_err(|error| format!("{}: {error}", namespace.display()))
}

/// Gives a namespace these rules.
pub(super) async fn replace(namespace: &File, rules: &str) -> Result<(), String> {
    let _place = PLACES.acquire().await;
    // Of this process, which holds it: whoever opens the path is another one.
    let held = format!("--net=/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
    let mut command = Command::new("nsenter");
    command.env("PATH", path()).args([held.as_str(), "nft", "-f", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let run = async {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that ends before it has read all says why.
            let _ = stdin.write_all(rules.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(LIMIT, run).await.map_err(|_| format!("nft: no answer within {LIMIT:?}"))?;
    let output = output.map_err(|error| format!("nsenter: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("nft: {}", said.lines().next().unwrap_or("it failed")))
}
