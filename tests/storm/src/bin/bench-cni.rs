//! `make bench-cni`: ADD and DEL beside the reference plugins, in one run.
//!
//! Two nodes side by side, each a namespace: on one `warren-cni` with all its protection, on the
//! other `ptp` with `host-local`. Calls of the two alternate, so that what disturbs the machine
//! disturbs both. Prints one table; asserts nothing about time.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use warren_storm::{Node, Outcome, Plugin, Pod};

/// Calls of each plugin one after the other.
const ALONE: usize = 100;
/// Calls at once, and how often.
const AT_ONCE: usize = 32;
const ROUNDS: usize = 6;
/// Each node's disk: large enough never to be full.
const DISK_KIB: u32 = 64 * 1024;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [warren, reference] = arguments.as_slice() else {
        bail!("usage: warren-bench-cni WARREN-CNI FOLDER-OF-THE-REFERENCE-PLUGINS");
    };
    ensure!(
        nix::unistd::geteuid().is_root(),
        "it makes network namespaces, which needs root"
    );
    let warren = PathBuf::from(warren).canonicalize().context("warren-cni")?;
    let size = std::fs::metadata(&warren)?.len();
    let ptp = PathBuf::from(reference).join("ptp");
    ensure!(
        ptp.exists(),
        "{} is missing: apt-get install containernetworking-plugins",
        ptp.display()
    );
    let contenders = [
        Contender::start(
            "warren-cni, IPv4 + IPv6, masquerade, filter",
            warren,
            warren_conf,
        )?,
        Contender::start("ptp + host-local, IPv4, masquerade", ptp, reference_conf)?,
    ];
    let mut tables = [Table::default(), Table::default()];
    // Their programs are read from the disk, and modules loaded.
    for contender in &contenders {
        contender.run(|bench| bench.burst(4))?;
    }
    for i in 0..ALONE {
        for turn in 0..2 {
            let which = (i + turn) % 2;
            let measured = contenders[which].run(|bench| bench.burst(1))?;
            tables[which].alone.extend(measured);
        }
    }
    for round in 0..ROUNDS {
        for turn in 0..2 {
            let which = (round + turn) % 2;
            let measured = contenders[which].run(|bench| bench.burst(AT_ONCE))?;
            tables[which].at_once.extend(measured);
        }
    }
    let [ours, theirs] = &tables;
    println!(
        "{ALONE} calls alone, {ROUNDS} times {AT_ONCE} at once; times in milliseconds, p50 / p99\n"
    );
    println!(
        "| | {} | {} | ratio |",
        contenders[0].name, contenders[1].name
    );
    println!("|---|---|---|---|");
    for (what, pick) in [
        (
            "ADD alone",
            (|t| series(&t.alone, 0)) as fn(&Table) -> Vec<f64>,
        ),
        ("DEL alone", |t| series(&t.alone, 1)),
        ("ADD, 32 at once", |t| series(&t.at_once, 0)),
        ("DEL, 32 at once", |t| series(&t.at_once, 1)),
        ("ADD alone, its own processor time", |t| {
            processor(&t.alone, 0)
        }),
        ("DEL alone, its own processor time", |t| {
            processor(&t.alone, 1)
        }),
    ] {
        let (a, b) = (pick(ours), pick(theirs));
        println!(
            "| {what} | {:.2} / {:.2} | {:.2} / {:.2} | {:.2} / {:.2} |",
            quantile(&a, 50),
            quantile(&a, 99),
            quantile(&b, 50),
            quantile(&b, 99),
            quantile(&a, 50) / quantile(&b, 50),
            quantile(&a, 99) / quantile(&b, 99),
        );
    }
    let memory = |t: &Table| {
        let all = t.alone.iter().chain(&t.at_once).flatten();
        all.map(|outcome| outcome.max_rss_kib).max().unwrap_or(0)
    };
    println!(
        "| most memory of a call, KiB | {} | {} | |",
        memory(ours),
        memory(theirs)
    );
    println!("| size of the program, KiB | {} | | |", size / 1024);
    Ok(())
}

/// ADD's and DEL's outcome of one pod.
type Measured = [Outcome; 2];

#[derive(Default)]
struct Table {
    alone: Vec<Measured>,
    at_once: Vec<Measured>,
}

fn series(measured: &[Measured], which: usize) -> Vec<f64> {
    sorted(measured.iter().map(|pair| pair[which].elapsed))
}

fn processor(measured: &[Measured], which: usize) -> Vec<f64> {
    sorted(
        measured
            .iter()
            .map(|pair| pair[which].cpu.0 + pair[which].cpu.1),
    )
}

fn sorted(times: impl Iterator<Item = Duration>) -> Vec<f64> {
    let mut all: Vec<f64> = times.map(|time| time.as_secs_f64() * 1e3).collect();
    all.sort_by(f64::total_cmp);
    all
}

fn quantile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(rank).copied().unwrap_or(f64::NAN)
}

/// A plugin on a node of its own: a thread that lives as long as the value and does what it is
/// told, for the node is the namespaces of a thread.
struct Contender {
    name: &'static str,
    orders: std::sync::mpsc::Sender<usize>,
    reports: std::sync::mpsc::Receiver<Result<Vec<Measured>>>,
}

struct Bench {
    plugin: Plugin,
    next: usize,
}

/// What is asked of a contender.
struct Orders<'a>(&'a Contender);

impl Contender {
    fn start(name: &'static str, program: PathBuf, conf: fn(&Node) -> Value) -> Result<Self> {
        let (orders, ordered) = std::sync::mpsc::channel::<usize>();
        let (report, reports) = std::sync::mpsc::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let node = match Node::new(DISK_KIB) {
                Ok(node) => node,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let conf = conf(&node);
            let mut bench = Bench {
                plugin: Plugin { program, conf },
                next: 0,
            };
            // Who started this thread waits for it.
            let _ = ready.send(Ok(()));
            for pods in ordered {
                let _ = report.send(bench.burst(pods));
            }
        });
        is_ready.recv().context("the node's thread ended")??;
        Ok(Self {
            name,
            orders,
            reports,
        })
    }

    fn run(
        &self,
        order: impl FnOnce(Orders<'_>) -> Result<Vec<Measured>>,
    ) -> Result<Vec<Measured>> {
        order(Orders(self))
    }
}

impl Orders<'_> {
    fn burst(self, pods: usize) -> Result<Vec<Measured>> {
        self.0
            .orders
            .send(pods)
            .context("the node's thread ended")?;
        self.0.reports.recv().context("the node's thread ended")?
    }
}

impl Bench {
    /// Adds so many pods at once, and removes them at once.
    fn burst(&mut self, count: usize) -> Result<Vec<Measured>> {
        let mut pods = Vec::new();
        for _ in 0..count {
            self.next += 1;
            pods.push((format!("bench-{}", self.next), Pod::new()?));
        }
        let added = self.all("ADD", &pods)?;
        let removed = self.all("DEL", &pods)?;
        Ok(added
            .into_iter()
            .zip(removed)
            .map(|(a, d)| [a, d])
            .collect())
    }

    fn all(&self, verb: &str, pods: &[(String, Pod)]) -> Result<Vec<Outcome>> {
        let call = |(container, pod): &(String, Pod)| -> Result<Outcome> {
            let outcome = self.plugin.call(verb, container, Some(&pod.path()))?;
            ensure!(outcome.status.success(), "{verb}: {outcome:?}");
            Ok(outcome)
        };
        if let [only] = pods {
            return Ok(vec![call(only)?]);
        }
        thread::scope(|scope| {
            let calls: Vec<_> = pods
                .iter()
                .map(|pod| scope.spawn(move || call(pod)))
                .collect();
            let joined = calls.into_iter().map(|call| call.join());
            joined
                .map(|outcome| outcome.unwrap_or_else(|_| bail!("a call's thread panicked")))
                .collect()
        })
    }
}

fn warren_conf(node: &Node) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "warren", "type": "warren-cni", "stateDir": node.state(),
    })
}

fn reference_conf(node: &Node) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "reference", "type": "ptp", "ipMasq": true, "mtu": 1400,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.88.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": node.state().join("host-local"),
        },
    })
}
