//! `make bench`: `warren-tunnel` beside wireguard-go, boringtun-cli and a plain veth.
//!
//! ```text
//!  pod a ---veth--- node1 ---warren0~~~eth0=======eth0~~~warren0--- node2 ---veth--- pod b
//! ```
//!
//! Each contender gets a fresh pair of nodes on which Warren's own agent and plugin have made
//! veths, routes and filters; then the program that serves `warren0` is exchanged, and nothing
//! else (`scene.rs`). All contenders are measured in each round, in an order that turns; what counts
//! is the median over the rounds of the ratio to wireguard-go in the same round (`report.rs`). What was
//! written as JSON can be drawn (`plot.rs`).

mod contender;
mod measure;
mod memory;
mod plot;
mod report;
mod saved;
mod scene;
mod seal;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};

use contender::Contender;
use measure::Figures;
use report::Report;
use scene::Scene;

/// Measures the tunnel beside other userspace WireGuards.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    /// How many rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each figure is measured, in seconds.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Whom to measure, with commas between; wireguard-go is what the others are compared with.
    #[arg(long, value_delimiter = ',', default_values_t = Contender::USUAL)]
    only: Vec<Contender>,
    /// Measure warren-tunnel once more, polling for up to 60 microseconds before it sleeps.
    #[arg(long)]
    spin: bool,
    /// Where to write everything that was measured, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure the memory of thousands of peers of wireguard-go too.
    #[arg(long)]
    compare_memory: bool,
    /// Leave out the memory of thousands of peers.
    #[arg(long)]
    no_memory: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Draws what was measured before.
    Plot {
        /// What --json has written.
        file: PathBuf,
        /// Where the pictures go, as SVG.
        directory: PathBuf,
    },
}

fn main() -> Result<()> {
    let mut options = Options::parse();
    if let Some(Command::Plot { file, directory }) = &options.command {
        let report = saved::read(file)?;
        for path in plot::write(&report, directory)? {
            println!("{}", path.display());
        }
        return Ok(());
    }
    warren_lab::enter_user_namespace_if_needed()?;
    if options.spin && !options.only.contains(&Contender::Spinning) {
        options.only.push(Contender::Spinning);
    }
    if options.rounds == 0 || options.seconds == 0 || options.only.is_empty() {
        bail!("--rounds, --seconds and --only must each ask for something");
    }
    if let Some(missing) = options.only.iter().find_map(|c| c.missing()) {
        bail!("{} is missing; `make bench` prepares it", missing.display());
    }
    let mut report = Report::new(options.only.clone());
    for round in 0..options.rounds {
        let mut order = options.only.clone();
        order.rotate_left(round % options.only.len());
        for contender in order {
            let figures = measure_once(contender, round, &options)
                .with_context(|| format!("round {round}, {contender}"))?;
            eprintln!("round {}, {contender}: {figures}", round + 1);
            report.add(round, contender, figures);
        }
        report.seal_cpu_s_per_gb.push(seal::cpu_s_per_gb()?);
    }
    let measured = options.only.iter().copied().filter(|c| match c {
        Contender::Warren => true,
        Contender::WireguardGo => options.compare_memory,
        _ => false,
    });
    // The rounds are told and kept whatever becomes of the rest.
    let mut failed = Ok(());
    for contender in measured.filter(|_| !options.no_memory) {
        match memory::measure(contender).with_context(|| format!("memory, {contender}")) {
            Ok(memory) => {
                eprintln!("memory, {contender}: {memory:?}");
                report.memory.push(memory);
            }
            Err(error) => failed = Err(error),
        }
    }
    if let Some(path) = &options.json {
        saved::write(&report, path)?;
    }
    println!("{report}");
    failed
}

fn measure_once(contender: Contender, round: usize, options: &Options) -> Result<Figures> {
    let scene = Scene::new(&format!("bench{round}{}", contender.short()), contender)?;
    Figures::measure(&scene, Duration::from_secs(options.seconds))
}
