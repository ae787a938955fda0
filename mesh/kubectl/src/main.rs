//! The program `kubectl-warren`: wires the library to the process.

use std::process::ExitCode;

use clap::Parser;
use warren_kubectl::Cli;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    warren_kubectl::run(&Cli::parse()).await.print()
}
