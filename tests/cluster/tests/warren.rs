//! Warren on a real Kubernetes of three nodes: all of [`warren_cluster::scenarios`] on one cluster, one
//! result for each.
//!
//!   cargo test -p warren-cluster --test warren -- [PART OF A NAME]... [--keep]
//!
//! With `--keep` the cluster stays up in the end, and it is said how to enter it.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use warren_cluster::scenarios::{SCENARIOS, Scenario, World};
use warren_cluster::{places, warren};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let keep = arguments.iter().any(|argument| argument == "--keep")
        || std::env::var_os("KEEP").is_some_and(|value| !value.is_empty());
    let parts: Vec<&str> = arguments
        .iter()
        .map(String::as_str)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    if arguments.iter().any(|argument| argument == "--list") {
        for scenario in SCENARIOS {
            println!("{}: test", scenario.name);
        }
        return ExitCode::SUCCESS;
    }
    if let Some(reason) = places::skip_reason().or_else(warren::skip_reason) {
        println!("skipped: {reason}");
        return ExitCode::from(u8::from(std::env::var_os("CI").is_some()));
    }
    let is_chosen =
        |s: &&Scenario| s.needed || parts.is_empty() || parts.iter().any(|p| s.name.contains(p));
    let chosen: Vec<&Scenario> = SCENARIOS.iter().filter(is_chosen).collect();
    match run(&chosen, keep) {
        Ok(failed) if failed.is_empty() => ExitCode::SUCCESS,
        Ok(failed) => {
            println!("\nfailed: {}", failed.join(", "));
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("\n{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs scenarios and returns the names of those that failed.
fn run(scenarios: &[&Scenario], keep: bool) -> Result<Vec<&'static str>> {
    let start = Instant::now();
    let mut world = World::start().context("start the cluster")?;
    println!("cluster: up after {:.1} s", start.elapsed().as_secs_f64());
    let (mut passed, mut failed) = (0, Vec::new());
    for scenario in scenarios {
        let began = Instant::now();
        let result = (scenario.run)(&mut world);
        let took = began.elapsed().as_secs_f64();
        let Err(error) = result else {
            passed += 1;
            println!("test {} ... ok ({took:.1} s)", scenario.name);
            continue;
        };
        println!(
            "test {} ... FAILED ({took:.1} s)\n{error:#}\n",
            scenario.name
        );
        println!("{}", world.cluster.picture());
        failed.push(scenario.name);
        if scenario.needed {
            println!("what comes after it cannot be tried");
            break;
        }
    }
    println!(
        "{passed} passed, {} failed, in {:.0} s",
        failed.len(),
        start.elapsed().as_secs_f64()
    );
    if keep {
        println!("{}", world.cluster.how_to_enter());
        let detached = world.cluster.detach()?;
        println!("to take it down: {}", detached.take_down);
    } else if !failed.is_empty() {
        println!("logs are kept in {}", world.cluster.keep_logs()?.display());
    }
    Ok(failed)
}
