//! `HAProxy`'s command line: the master's socket, and through it every process that there is, also those that end.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Commands that are sent at once: what it reads fits into 16 KiB.
const AT_ONCE: usize = 50;

/// The master's socket.
#[derive(Debug)]
pub(crate) struct Master(PathBuf);

/// Its processes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Processes {
    pub(crate) master: u32,
    /// The one that accepts connections.
    pub(crate) worker: Option<u32>,
    /// Those before it, which end with their connections.
    pub(crate) former: Vec<u32>,
    /// Reloads that failed since it was started.
    pub(crate) failed: u64,
}

/// What one process says of a server, or of a frontend.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) proxy: String,
    /// `FRONTEND`, or the name of a server.
    pub(crate) name: String,
    /// Requests or connections that go on, or wait.
    pub(crate) sessions: u64,
    pub(crate) weight: u16,
    /// It gets requests.
    pub(crate) on: bool,
    /// Since it began: requests or connections, and answers by the first digit of their status.
    pub(crate) total: u64,
    pub(crate) answers: [u64; 6],
    /// Connections that failed, and answers that broke off.
    pub(crate) failures: u64,
    pub(crate) retries: u64,
}

impl Master {
    pub(crate) fn at(directory: &Path) -> Self {
        Master(directory.join("master.sock"))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// What it answers.
    pub(crate) async fn ask(&self, commands: &str) -> io::Result<String> {
        let asking = async {
            let mut stream = UnixStream::connect(&self.0).await?;
            stream.write_all(commands.as_bytes()).await?;
            stream.write_all(b"\n").await?;
            stream.shutdown().await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer)
        };
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {PATIENCE:?}"));
        tokio::time::timeout(PATIENCE, asking).await.map_err(|_| late())?
    }

    /// Its processes; `None`: it is not there.
    pub(crate) async fn there(&self) -> io::Result<Option<Processes>> {
        match self.ask("show proc").await {
            Ok(answer) => Ok(Some(processes(&answer))),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Gives a process commands. What it says against them.
    pub(crate) async fn tell(&self, pid: u32, commands: &[String]) -> io::Result<Vec<String>> {
        let mut complaints = Vec::new();
        for part in commands.chunks(AT_ONCE) {
            let answer = self.ask(&format!("@!{pid}\n{}", part.join("\n"))).await?;
            complaints.extend(answer.lines().filter(|line| !is_good(line)).map(str::to_owned));
        }
        Ok(complaints)
    }

    /// What a process says of its servers and frontends.
    pub(crate) async fn look(&self, pid: u32) -> io::Result<Vec<Row>> {
        // 1: frontends, 4: servers.
        let answer = self.ask(&format!("@!{pid} show stat -1 5 -1")).await?;
        rows(&answer).ok_or_else(|| io::Error::other(answer.lines().next().unwrap_or("no answer").to_owned()))
    }
}

fn is_good(line: &str) -> bool {
    matches!(line.trim(), "" | "New server registered." | "Server deleted.")
}

fn processes(answer: &str) -> Processes {
    let mut all = Processes::default();
    let mut old = false;
    for line in answer.lines() {
        old |= line.starts_with("# old workers");
        let mut words = line.split_whitespace();
        let (Some(Ok(pid)), Some(kind)) = (words.next().map(str::parse), words.next()) else { continue };
        match kind {
            "master" => {
                all.master = pid;
                let failed = line.split("[failed:").nth(1).and_then(|rest| rest.split(']').next());
                all.failed = failed.and_then(|failed| failed.trim().parse().ok()).unwrap_or(0);
            }
            "worker" if old => all.former.push(pid),
            "worker" => all.worker = Some(pid),
            _ => {}
        }
    }
    all
}

/// Of CSV whose first line names its columns. `None`: it is something else.
fn rows(answer: &str) -> Option<Vec<Row>> {
    let mut lines = answer.lines().filter(|line| !line.is_empty());
    let header: Vec<&str> = lines.next()?.strip_prefix("# ")?.split(',').collect();
    let column = |name: &str| header.iter().position(|column| *column == name);
    let (proxy, name, status, weight) = (column("pxname")?, column("svname")?, column("status")?, column("uweight")?);
    let (queued, sessions, total) = (column("qcur")?, column("scur")?, column("stot")?);
    let classes = ["hrsp_other", "hrsp_1xx", "hrsp_2xx", "hrsp_3xx", "hrsp_4xx", "hrsp_5xx"].map(column);
    let (refused, broken) = (column("econ")?, column("eresp")?);
    let (retried, redirected) = (column("wretr")?, column("wredis")?);
    let row = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        Row {
            proxy: fields.get(proxy).copied().unwrap_or_default().to_owned(),
            name: fields.get(name).copied().unwrap_or_default().to_owned(),
            sessions: number(queued) + number(sessions),
            weight: number(weight) as u16,
            on: !fields.get(status).is_some_and(|status| status.starts_with("MAINT")),
            total: number(total),
            answers: classes.map(|class| class.map_or(0, number)),
            failures: number(refused) + number(broken) + number(redirected),
            retries: number(retried) + number(redirected),
        }
    };
    Some(lines.map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_told_apart() {
        let answer = "#<PID>          <type>          <reloads>       <uptime>        <version>      \n\
            28015           master          2 [failed: 1]   0d00h00m02s     2.6.12-1+deb12u4\n# workers\n\
            28233           worker          0               0d00h00m00s     2.6.12-1+deb12u4\n# old workers\n\
            28018           worker          1               0d00h00m09s     2.6.12-1+deb12u4\n# programs\n\n";
        let all = processes(answer);
        assert_eq!((all.master, all.worker, all.former, all.failed), (28015, Some(28233), vec![28018], 1));
    }

    #[test]
    fn rows_are_read_by_their_columns() {
        let answer = "# pxname,svname,qcur,scur,stot,econ,eresp,wretr,wredis,status,hrsp_1xx,hrsp_2xx,hrsp_3xx,hrsp_4xx,hrsp_5xx,hrsp_other,uweight,\n\
            b,s1,1,2,30,1,2,3,4,MAINT,0,20,0,5,4,1,128,\n";
        let row = &rows(answer).expect("rows")[0];
        assert_eq!(
            (row.proxy.as_str(), row.name.as_str(), row.sessions, row.weight, row.on),
            ("b", "s1", 3, 128, false)
        );
        assert_eq!((row.answers, row.failures, row.retries), ([1, 0, 20, 0, 5, 4], 7, 7));
        assert!(rows("Unknown command").is_none());
    }
}
