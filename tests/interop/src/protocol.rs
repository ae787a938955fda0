//! What the tests and the agent inside the virtual machine say to each other: a connection a
//! command, one line of JSON each way. A client that closes early ends its command.

use serde::{Deserialize, Serialize};

/// The TCP port of the agent.
pub const PORT: u16 = 1;

/// A command to run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// The program and its arguments.
    pub argv: Vec<String>,
}

/// What came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// The exit code; none when a signal ended the command.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}
