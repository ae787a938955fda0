//! `kubectl warren`: the whole cluster's mesh on one page, and its doctor.
//!
//! ```text
//! API server --Nodes, Pods, DaemonSets, dry runs--> Facts --> status: Report --> page or JSON
//!            --exec in each agent's pod-----------/     \---> doctor: Finding --> page or JSON
//!               warren status --json, warren doctor --json
//! ```
//!
//! Job: ask the API server, and each agent through it ([`gather`]); compare what they say ([`status`]);
//! check the cluster as an operator would ([`doctor`]). What is compared and shown is pure, and made from
//! [`facts`] alone. An agent that cannot be asked is shown with the cause, and keeps nothing else from
//! being shown.
//!
//! It refuses to change anything: what it writes are dry runs that must be denied. It needs no network
//! but that to the API server.

#![forbid(unsafe_code)]

pub mod args;
pub mod client;
pub mod doctor;
mod exec;
pub mod facts;
pub mod gather;
pub mod status;

use serde::Serialize;
use warren_text::json::indent;

pub use args::Cli;
pub use warren_text::outcome::Outcome;

/// The exit code where nothing could be read.
const NOTHING_READ: u8 = 2;

/// Nothing could be read.
fn nothing_read(cause: &str) -> Outcome {
    let mut outcome = Outcome {
        code: NOTHING_READ,
        ..Outcome::default()
    };
    outcome.complain(&cause);
    outcome
}

/// A document for programs. What a terminal would act on is escaped.
fn document(document: &impl Serialize, code: u8) -> Outcome {
    let text = serde_json::to_string(document).and_then(|text| indent(&text));
    match text {
        Ok(stdout) => Outcome {
            stdout,
            code,
            ..Outcome::default()
        },
        Err(error) => nothing_read(&format!("write JSON: {error}")),
    }
}

/// Runs a command and returns what it prints and its exit code.
pub async fn run(cli: &Cli) -> Outcome {
    match &cli.command {
        args::Command::Status(args) => status::run(args).await,
        args::Command::Doctor(args) => doctor::run(args).await,
    }
}
