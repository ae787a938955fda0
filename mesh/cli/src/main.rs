//! The program `warren`: wires the library to the process.

use std::process::ExitCode;

use clap::Parser;
use warren_cli::{Cli, Environment, uninstall};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = warren_cli::run(&cli, &Environment::of_process());
    let code = outcome.print();
    if outcome.code == 0 && uninstall::stays(&cli) {
        uninstall::stay();
    }
    code
}
