//! Attaches and detaches pods by a plugin, at a rate, until it is killed: for tests that pull the plug meanwhile.
//!
//!   warren-churn CONFLIST PLUGIN RATE
//!
//! RATE is ADDs and DELs a second together. About each second a line tells how many there were in how many seconds, and
//! of all so far how many failed, with the first failure's answer if there was one:
//!
//!   {"calls": 100, "seconds": 1.0, "failed": 0, "failure": null}

use std::collections::VecDeque;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use warren_storm::{Plugin, Pod};

/// How many calls may be under way at once: a node's kubelet makes about as many.
const WORKERS: usize = 16;
/// How many pods there are once it runs.
const PODS: usize = 40;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [conflist, plugin, rate] = arguments.as_slice() else {
        anyhow::bail!("usage: warren-churn CONFLIST PLUGIN RATE");
    };
    let text = std::fs::read_to_string(conflist).with_context(|| format!("read {conflist}"))?;
    let list: Value = serde_json::from_str(&text).with_context(|| format!("read {conflist}"))?;
    let mut conf = list["plugins"][0].clone();
    let fields = conf.as_object_mut().context("the plugin is no object")?;
    // As libcni builds it.
    fields.insert("name".into(), list["name"].clone());
    fields.insert("cniVersion".into(), list["cniVersion"].clone());
    let plugin = Plugin {
        program: plugin.into(),
        conf,
    };
    let rate: u32 = rate.parse().context("RATE is a number")?;
    Churn::new(plugin, Duration::from_secs(1) / rate.max(1)).run()
}

struct Churn {
    plugin: Plugin,
    interval: Duration,
    /// When the next call is due, and the number of the next pod.
    next: Mutex<(Instant, u64)>,
    pods: Mutex<VecDeque<(String, Pod)>>,
    /// Namespaces without a pod. To make one costs a slow machine as much as an ADD.
    spare: Mutex<Vec<Pod>>,
    calls: AtomicU64,
    failed: AtomicU64,
    failure: Mutex<Option<String>>,
}

impl Churn {
    fn new(plugin: Plugin, interval: Duration) -> Self {
        Self {
            plugin,
            interval,
            next: Mutex::new((Instant::now(), 0)),
            pods: Mutex::default(),
            spare: Mutex::default(),
            calls: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            failure: Mutex::default(),
        }
    }

    fn run(&self) -> Result<()> {
        std::thread::scope(|scope| {
            for _ in 0..WORKERS {
                scope.spawn(|| {
                    loop {
                        if let Err(e) = self.step() {
                            self.fail(format!("{e:#}"));
                        }
                    }
                });
            }
            self.tell()
        })
    }

    fn tell(&self) -> Result<()> {
        let mut since = Instant::now();
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let seconds = since.elapsed().as_secs_f64();
            since = Instant::now();
            let line = json!({
                "calls": self.calls.swap(0, Ordering::Relaxed),
                "seconds": seconds,
                "failed": self.failed.load(Ordering::Relaxed),
                "failure": *lock(&self.failure),
            });
            let mut out = std::io::stdout();
            writeln!(out, "{line}").context("tell the calls")?;
            out.flush().context("tell the calls")?;
        }
    }

    /// Makes one call when it is due: a DEL of the oldest pod where there are enough, else an ADD.
    fn step(&self) -> Result<()> {
        let number = {
            let mut next = lock(&self.next);
            let now = Instant::now();
            // What could not be done in time is not made up for.
            let due = next.0.max(now.checked_sub(self.interval).unwrap_or(now));
            *next = (due + self.interval, next.1 + 1);
            std::thread::sleep(due.saturating_duration_since(now));
            next.1
        };
        let oldest = {
            let mut pods = lock(&self.pods);
            (pods.len() >= PODS).then(|| pods.pop_front()).flatten()
        };
        let outcome = match oldest {
            Some((name, pod)) => {
                let outcome = self.plugin.call("DEL", &name, Some(&pod.path()))?;
                lock(&self.spare).push(pod);
                outcome
            }
            None => {
                let spare = lock(&self.spare).pop();
                let pod = spare.map_or_else(Pod::new, Ok)?;
                let name = format!("churn{number}");
                let outcome = self.plugin.call("ADD", &name, Some(&pod.path()))?;
                if outcome.status.success() {
                    lock(&self.pods).push_back((name, pod));
                }
                outcome
            }
        };
        self.calls.fetch_add(1, Ordering::Relaxed);
        if !outcome.status.success() {
            self.fail(format!("{}{}", outcome.stdout, outcome.stderr));
        }
        Ok(())
    }

    fn fail(&self, failure: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        lock(&self.failure).get_or_insert(failure);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
