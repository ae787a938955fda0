//! Plays scenarios, and prints how to play a failing one again.

use clap::Parser;

fn main() -> std::process::ExitCode {
    warren_sim::cli::run(&warren_sim::cli::Args::parse())
}
