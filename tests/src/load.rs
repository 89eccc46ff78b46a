//! Requests without end, of which none may fail.

use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// Requests for as long as it is there.
pub struct Load(Child);

impl Load {
    pub fn start(url: &str) -> Self {
        let args = ["-t1", "-c8", "-d", "900s", "--timeout", "10s", url];
        Load(Command::new("wrk").args(args).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// How many there were. None of them failed.
    pub fn end(self, what: &str) -> u64 {
        let _ = kill_process(Pid::from_child(&self.0), Signal::INT);
        let said = String::from_utf8(self.0.wait_with_output().unwrap().stdout).unwrap();
        assert!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{what}: {said}");
        let line = said.lines().find(|line| line.contains("requests in")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}
