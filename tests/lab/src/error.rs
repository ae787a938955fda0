//! What can go wrong in a lab.

use std::path::PathBuf;
use std::time::Duration;

/// The lab could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The machine allows neither root's nor unprivileged namespaces, or a program is missing.
    #[error("cannot make network hosts on this machine: {missing}")]
    Privilege {
        /// What is missing, for a person.
        missing: String,
    },
    /// A namespace holder could not be started; `stage` names the step that failed.
    #[error("cannot make the namespaces of {name}: {stage}: {source}")]
    Namespaces {
        /// The lab, host or pod.
        name: String,
        /// The step that failed.
        stage: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A command ended with another code than 0.
    #[error("`{command}` on {host} failed with {status}\n{output}\nto look around: {enter}")]
    Command {
        /// The host or pod it ran on.
        host: String,
        /// The command with its arguments.
        command: String,
        /// How it ended.
        status: String,
        /// Its standard output and error.
        output: String,
        /// The command line that enters the host.
        enter: String,
    },
    /// A command did not end in time and was killed.
    #[error(
        "`{command}` on {host} did not end within {limit:?} and was killed\n{output}\nto look around: {enter}"
    )]
    CommandTimeout {
        /// The host or pod it ran on.
        host: String,
        /// The command with its arguments.
        command: String,
        /// The limit it passed.
        limit: Duration,
        /// What it had printed.
        output: String,
        /// The command line that enters the host.
        enter: String,
    },
    /// A program could not be started at all.
    #[error("cannot start `{command}` on {host}: {source} (is the program installed or built?)")]
    Start {
        /// The host or pod.
        host: String,
        /// The command with its arguments.
        command: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The host, pod or lab is no longer there.
    #[error("{name} is gone: it was destroyed, its host rebooted, or its lab ended")]
    Gone {
        /// The host or pod.
        name: String,
    },
    /// A name is used twice or is not usable as a name.
    #[error("the name {name:?} cannot be used: {why}")]
    Name {
        /// The refused name.
        name: String,
        /// Why.
        why: &'static str,
    },
    /// A condition did not come true in time.
    #[error("{what}: not within {limit:?}{detail}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// The limit.
        limit: Duration,
        /// More for the reader, such as the tail of a log; may be empty.
        detail: String,
    },
    /// A built program was not found.
    #[error("the program {name} is not built: {} does not exist (build it with `cargo build --bin {name}` or set WARREN_BIN_DIR)", path.display())]
    Program {
        /// The program's name.
        name: String,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A capture could not be started or read.
    #[error("capture on {tap}: {what}: {source}")]
    Capture {
        /// The link or interface.
        tap: String,
        /// The step that failed.
        what: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A capture is not clean; the text is the report for a person.
    #[error("{0}")]
    NotClean(String),
    /// Some other operation on the machine failed.
    #[error("{what}: {source}")]
    Io {
        /// The operation and its subject.
        what: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

impl LabError {
    /// Names the operation beside the kernel's answer.
    pub(crate) fn io(what: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::Io {
            what: what.into(),
            source: source.into(),
        }
    }
}

/// The lab's result.
pub type Result<T, E = LabError> = std::result::Result<T, E>;
