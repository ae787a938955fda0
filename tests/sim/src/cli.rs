//! `make sim`: many scenarios, on all processors.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;

use crate::{Census, Failure, Outcome, Setup, play};

/// Plays random scenarios of Warren's agent and tunnel in a simulated cluster.
#[derive(Clone, Debug, Parser)]
pub struct Args {
    /// Plays this seed only.
    #[arg(long)]
    seed: Option<u64>,
    /// Prints the story of that seed.
    #[arg(long, requires = "seed")]
    story: bool,
    /// The first seed of many; without it, one of the time.
    #[arg(long)]
    first: Option<u64>,
    /// How many scenarios.
    #[arg(long, default_value_t = 10_000)]
    count: u64,
    /// Ends after so many seconds, whatever the count.
    #[arg(long)]
    seconds: Option<u64>,
    /// How many nodes; by chance without it.
    #[arg(long)]
    nodes: Option<usize>,
}

/// Plays what is asked for.
pub fn run(args: &Args) -> ExitCode {
    let setup = |seed| Setup {
        seed,
        nodes: args.nodes,
        mutation: None,
        print: args.story,
    };
    if let Some(seed) = args.seed {
        return match play(setup(seed)) {
            Ok(outcome) => {
                println!("sim: seed {seed}: {outcome:?}");
                ExitCode::SUCCESS
            }
            Err(failure) => {
                report(&failure, args);
                ExitCode::FAILURE
            }
        };
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let first = args
        .first
        .unwrap_or_else(|| now.map_or(0, |t| t.as_secs()) * 1_000_000);
    let began = Instant::now();
    let limit = args.seconds.map(Duration::from_secs);
    let next = AtomicU64::new(0);
    let total = Mutex::new((0u64, 0u64, Census::default(), Vec::<Failure>::new()));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    // The thread's own clock is the last scenario's: the time is asked of another.
                    let elapsed = std::thread::scope(|s| {
                        s.spawn(|| began.elapsed()).join().unwrap_or_default()
                    });
                    if number >= args.count || limit.is_some_and(|limit| elapsed > limit) {
                        return;
                    }
                    let played = play(setup(first + number));
                    let Ok(mut total) = total.lock() else { return };
                    total.0 += 1;
                    match played {
                        Ok(outcome) => add(&mut total, &outcome),
                        Err(failure) => {
                            report(&failure, args);
                            total.3.push(failure);
                            next.store(args.count, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let Ok((count, real, census, failures)) = total.into_inner() else {
        return ExitCode::FAILURE;
    };
    println!(
        "sim: {count} scenarios from seed {first} in {:.0?}, {real} of them with real handshakes: {} \
         packets delivered, {} unreachable, dropped {:?}; {} failures",
        began.elapsed(),
        census.delivered,
        census.unreachable,
        census.dropped,
        failures.len()
    );
    ExitCode::from(u8::from(!failures.is_empty()))
}

fn add(total: &mut (u64, u64, Census, Vec<Failure>), outcome: &Outcome) {
    total.1 += u64::from(outcome.real);
    total.2.delivered += outcome.census.delivered;
    total.2.unreachable += outcome.census.unreachable;
    let dropped: &BTreeMap<&str, u64> = &outcome.census.dropped;
    for (reason, count) in dropped {
        *total.2.dropped.entry(reason).or_default() += count;
    }
}

fn report(failure: &Failure, args: &Args) {
    let nodes = args
        .nodes
        .map(|n| format!(" NODES={n}"))
        .unwrap_or_default();
    println!(
        "{}\nsim: seed {} fails: {}\nsim: again with: make sim SEED={}{nodes}",
        failure.tail, failure.seed, failure.fault, failure.seed
    );
}
