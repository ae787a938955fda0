//! `make demo`: the whole mesh on one machine, from nothing to nothing.
//!
//! On network namespaces where the machine allows them (as root, or in a user namespace), else in
//! one process. What it shows is measured while it runs; whatever is not as promised ends it with
//! an error.

mod clean;
mod in_process;
mod matrix;
mod steps;

use std::time::Instant;

use clap::Parser;
use warren_lab::{Privilege, privilege};

/// Shows Warren's mesh on this machine.
#[derive(Debug, Parser)]
struct Options {
    /// Leave the mesh up and print how to look at it and how to take it down
    #[arg(long)]
    keep: bool,
    /// Show the mesh in one process even where namespaces are allowed
    #[arg(long, conflicts_with = "keep")]
    in_process: bool,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let start = Instant::now();
    match privilege() {
        _ if options.in_process => in_process::run()?,
        Privilege::None { missing } => {
            println!("No network namespaces here: {missing}.");
            println!(
                "The same mesh in one process instead: sessions over UDP on loopback, pods in memory."
            );
            in_process::run()?;
        }
        _ => {
            warren_lab::enter_user_namespace_if_needed()?;
            steps::run(options.keep)?;
        }
    }
    println!("\ndone in {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}
