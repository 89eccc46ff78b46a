//! Why a command failed, as its last sentence and its exit code.
//!
//! Exit codes are a promise to scripts: 0 ok, 1 failed or different, 2 usage or bad manifest, 3 timed out,
//! 4 denied, 130 interrupted.

use std::io;

use tonic::{Code, Status};

/// The command failed, or an object differs.
pub const FAILED: u8 = 1;
/// The command line or a manifest is wrong.
pub const USAGE: u8 = 2;
/// Time ran out.
pub const TIMED_OUT: u8 = 3;
/// The caller may not do this.
pub const DENIED: u8 = 4;
/// Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// A command's end other than success.
#[derive(Debug)]
pub struct Failure {
    /// Exit code of the process.
    pub exit: u8,
    /// For people; empty when everything was said already.
    pub message: String,
    /// The server's answer, when it was one.
    pub status: Option<Box<Status>>,
}

impl Failure {
    fn new(exit: u8, message: impl Into<String>) -> Self {
        Failure { exit, message: message.into(), status: None }
    }

    /// It did not work.
    pub fn failed(message: impl Into<String>) -> Self {
        Failure::new(FAILED, message)
    }

    /// The person asked for what there is not.
    pub fn usage(message: impl Into<String>) -> Self {
        Failure::new(USAGE, message)
    }

    /// It did not happen in time.
    pub fn timed_out(message: impl Into<String>) -> Self {
        Failure::new(TIMED_OUT, message)
    }

    /// Ends with this code and says nothing more.
    pub fn quiet(exit: u8) -> Self {
        Failure::new(exit, "")
    }

    /// What the server at `address` answered, as a sentence and what to do next.
    pub fn of_status(status: &Status, address: &str) -> Self {
        let said = status.message();
        let (exit, message) = match status.code() {
            Code::Unavailable => (FAILED, unreachable(address, said)),
            Code::NotFound => (FAILED, format!("{said}; `steady get KIND --all-clusters` lists what there is")),
            Code::AlreadyExists | Code::FailedPrecondition | Code::OutOfRange => (FAILED, said.to_owned()),
            Code::Aborted => (FAILED, format!("{said}; someone changed it at the same time: run the command again")),
            Code::InvalidArgument => (USAGE, said.to_owned()),
            Code::DeadlineExceeded => {
                (TIMED_OUT, format!("{address} did not answer in time; a longer --timeout gives it more"))
            }
            Code::Cancelled if said.contains("Timeout") => {
                (TIMED_OUT, format!("{address} did not answer in time; a longer --timeout gives it more"))
            }
            Code::PermissionDenied => (DENIED, format!("denied: {said}")),
            Code::Unauthenticated => (DENIED, format!("{address} does not know you: {said}")),
            Code::ResourceExhausted => (FAILED, format!("refused: {said}")),
            Code::Unimplemented => {
                (FAILED, format!("{address} cannot do this: {said}; is it older than this `steady`?"))
            }
            code => (FAILED, format!("{address} failed ({code:?}): {said}")),
        };
        Failure { exit, message, status: Some(Box::new(status.clone())) }
    }

    /// Whether the server answered with this code.
    pub fn is(&self, code: Code) -> bool {
        self.status.as_ref().is_some_and(|status| status.code() == code)
    }
}

/// Nobody answers at `address`.
pub fn unreachable(address: &str, detail: &str) -> String {
    let detail = match detail {
        "" | "transport error" | "tcp connect error" => String::new(),
        detail => format!(" ({detail})"),
    };
    format!("cannot reach {address}{detail}: is `steady up` running there? Else say where with --server HOST:PORT")
}

impl From<io::Error> for Failure {
    /// A reader that has seen enough (`| head`) is no failure.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Failure::quiet(0) } else { Failure::failed(error.to_string()) }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure::failed(format!("{error:#}"))
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: Code) -> u8 {
        Failure::of_status(&Status::new(code, "x"), "http://a:1").exit
    }

    #[test]
    fn every_answer_of_a_server_has_its_documented_exit_code() {
        assert_eq!(exit(Code::NotFound), FAILED);
        assert_eq!(exit(Code::Unavailable), FAILED);
        assert_eq!(exit(Code::InvalidArgument), USAGE);
        assert_eq!(exit(Code::DeadlineExceeded), TIMED_OUT);
        assert_eq!(exit(Code::PermissionDenied), DENIED);
        assert_eq!(exit(Code::Unauthenticated), DENIED);
    }

    #[test]
    fn a_server_that_is_not_there_is_answered_with_what_to_do_next() {
        let failure = Failure::of_status(&Status::unavailable("transport error"), "http://127.0.0.1:7443");
        assert_eq!(
            failure.message,
            "cannot reach http://127.0.0.1:7443: is `steady up` running there? Else say where with --server HOST:PORT"
        );
    }

    #[test]
    fn a_closed_pipe_ends_quietly_and_well() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((failure.exit, failure.message.as_str()), (0, ""));
    }
}
