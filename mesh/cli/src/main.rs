//! The program `warren`: wires the library to the process.

use std::process::ExitCode;

use clap::Parser;
use warren_cli::{Cli, Environment};

fn main() -> ExitCode {
    warren_cli::run(&Cli::parse(), &Environment::of_process()).print()
}
