//! `make bench-scale`: the real daemons of one node beside an API server with many Nodes.
//!
//! ```text
//!   control-plane 192.0.2.250: etcd, kube-apiserver      node1 192.0.2.1: warren-tunnel, warren-agent
//!   ==========================================================+== lan
//! ```
//!
//! Measured: the time from the change of a Node's annotation to the peer in the tunnel, the time of a
//! start with all of them, and what both daemons take at rest. Prints one table; asserts nothing about
//! time. The other nodes are objects only: nobody answers handshakes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use warren_apiserver::{ControlPlane, Identity, Options, block_on, skip_reason};
use warren_core::consts::annotation;
use warren_core::uapi::{Device, GET};
use warren_keyring::PrivateKey;
use warren_lab::{Host, Lab, Proc, bin};

/// How many nodes join one after the other.
const JOINS: usize = 100;
/// How long rest is looked at.
const REST: Duration = Duration::from_secs(60);
/// The resolution of times until a peer is there.
const LOOK: Duration = Duration::from_millis(5);
const LIMIT: Duration = Duration::from_secs(300);
/// Requests at once while Nodes are made.
const AT_ONCE: usize = 8;

fn main() -> Result<()> {
    if let Some(reason) = skip_reason() {
        bail!("{reason}");
    }
    let nodes: usize = match std::env::args().nth(1) {
        Some(text) => text.parse().context("usage: warren-bench-scale [NODES]")?,
        None => 1000,
    };
    ensure!((1..=20_000).contains(&nodes), "1 to 20000 nodes");
    let mut bench = Bench::start(nodes)?;
    println!("{nodes} Nodes");
    let started = Instant::now();
    bench.start_daemons()?;
    bench.until_peers(nodes)?;
    println!(
        "start until all are peers: {:.2} s",
        started.elapsed().as_secs_f64()
    );
    let mut times = Vec::new();
    for number in 0..JOINS {
        times.push(bench.join(nodes + number)?);
    }
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "annotation to peer, {JOINS} joins: p50 {:.0} ms, p99 {:.0} ms, longest {:.0} ms",
        at(0.5),
        at(0.99),
        at(1.0)
    );
    bench.rest()
}

struct Bench {
    plane: ControlPlane,
    host: Host,
    audit_log: PathBuf,
    tunnel: Option<Proc>,
    agent: Option<Proc>,
    _lab: Lab,
}

impl Bench {
    /// Makes the cluster and its Nodes, and those that join later, which have no key yet.
    fn start(nodes: usize) -> Result<Self> {
        let lab = Lab::new("bench-scale")?;
        let lan = lab.bridge("lan")?;
        let (server, host) = (lab.host("control-plane")?, lab.host("node1")?);
        let end = server.end("eth0").addr("192.0.2.250/24").via("192.0.2.1");
        lab.connect(end, lan.port())?;
        let end = host.end("eth0").addr("192.0.2.1/24").via("192.0.2.250");
        lab.connect(end, lan.port())?;
        let audit_log = server.dir().join("audit.log");
        let policy = server.dir().join("audit-policy.json");
        fs::write(&policy, audit_policy().to_string())?;
        let options = Options {
            controllers: vec!["namespace-controller"],
            identities: vec![agent()],
            apiserver_flags: vec![
                format!("--audit-policy-file={}", policy.display()),
                format!("--audit-log-path={}", audit_log.display()),
            ],
            ..Options::default()
        };
        let plane = ControlPlane::start(&server, options)?;
        let bench = Self {
            plane,
            host,
            audit_log,
            tunnel: None,
            agent: None,
            _lab: lab,
        };
        bench.admin(async |client| {
            let api: Api<Node> = Api::all(client);
            let own = json!({
                "metadata": {"name": "node1"},
                "spec": {"podCIDR": "10.255.0.0/24", "podCIDRs": ["10.255.0.0/24"]},
                "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
            });
            api.create(&PostParams::default(), &serde_json::from_value(own)?)
                .await?;
            let made = stream::iter((0..nodes + JOINS).map(|number| {
                let api = api.clone();
                async move {
                    let node = serde_json::from_value(node(number, number < nodes)?)?;
                    api.create(&PostParams::default(), &node).await?;
                    anyhow::Ok(())
                }
            }));
            made.buffer_unordered(AT_ONCE).try_collect::<()>().await
        })?;
        Ok(bench)
    }

    fn start_daemons(&mut self) -> Result<()> {
        let state = self.host.dir().join("state");
        let mut command = Command::new(bin("warren-tunnel")?);
        command.arg("--state-dir").arg(&state);
        self.tunnel = Some(self.host.spawn(&mut command)?);
        let kubeconfig = self.plane.write_kubeconfig("agent", &agent().token())?;
        let mut command = Command::new(bin("warren-agent")?);
        command
            .args([
                "--registry",
                "kubernetes",
                "--node-name",
                "node1",
                "--kubeconfig",
            ])
            .arg(kubeconfig)
            .args(["--cluster-cidrs", "10.0.0.0/8", "--cni-conf-dir", ""])
            .arg("--state-dir")
            .arg(&state);
        self.agent = Some(self.host.spawn(&mut command)?);
        Ok(())
    }

    fn until_peers(&self, count: usize) -> Result<()> {
        self.until(|device| device.peers.len() >= count)?;
        Ok(())
    }

    /// Publishes the key of a Node, and returns the time until it is a peer's.
    fn join(&self, number: usize) -> Result<Duration> {
        let key = PrivateKey::generate()?.public_key();
        let patch = json!({"metadata": {"annotations": {annotation::PUBLIC_KEY: key.to_base64()}}});
        let name = format!("other-{number}");
        let started = Instant::now();
        self.admin(async |client| {
            let api: Api<Node> = Api::all(client);
            api.patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                .await?;
            Ok(())
        })?;
        let at = self.until(|device| device.peers.iter().any(|peer| peer.public_key == key))?;
        // As nodes join: one by one, and not in the wake of the last one.
        std::thread::sleep(Duration::from_millis(300));
        Ok(at - started)
    }

    /// Tells what both daemons take while nothing happens.
    fn rest(&self) -> Result<()> {
        std::thread::sleep(Duration::from_secs(10));
        let writes = self.requests()?.1;
        let cpu =
            || -> Result<Vec<f64>> { self.pids().iter().map(|pid| cpu_seconds(*pid)).collect() };
        let before = cpu()?;
        std::thread::sleep(REST);
        let after = cpu()?;
        for (i, name) in ["warren-tunnel", "warren-agent"].iter().enumerate() {
            println!(
                "{name} at rest: {:.2} % of a processor, {} MiB resident, {} MiB at most",
                (after[i] - before[i]) / REST.as_secs_f64() * 100.0,
                memory_kib(self.pids()[i], "VmRSS:")? / 1024,
                memory_kib(self.pids()[i], "VmHWM:")? / 1024,
            );
        }
        let (reads, total) = self.requests()?;
        println!(
            "API writes at rest in {} s: {}",
            REST.as_secs(),
            total - writes
        );
        println!("API requests since the start: {reads} reads, {total} writes");
        Ok(())
    }

    /// The agent's reads and writes, as the API server counts them.
    fn requests(&self) -> Result<(usize, usize)> {
        let log = fs::read_to_string(&self.audit_log)?;
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut counts = (0, 0);
        for line in lines.filter(|line| line["user"]["username"] == agent().user) {
            match line["verb"].as_str() {
                Some("get" | "list" | "watch") => counts.0 += 1,
                _ => counts.1 += 1,
            }
        }
        Ok(counts)
    }

    fn pids(&self) -> Vec<i32> {
        let procs = [&self.tunnel, &self.agent];
        procs
            .iter()
            .filter_map(|p| Some(p.as_ref()?.pid()))
            .collect()
    }

    /// Waits until the tunnel's device is as wanted, and returns when that was seen.
    fn until(&self, done: impl Fn(&Device) -> bool) -> Result<Instant> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if self.device().is_ok_and(|device| done(&device)) {
                return Ok(Instant::now());
            }
            if Instant::now() > deadline {
                let log = self.agent.as_ref().map(Proc::describe).unwrap_or_default();
                bail!("not in time; {log}");
            }
            std::thread::sleep(LOOK);
        }
    }

    fn device(&self) -> Result<Device> {
        let pid = self.pids()[0];
        // Not by /var/run: as a symbolic link it would lead to this process's own.
        let path = format!("/proc/{pid}/root/run/wireguard/warren0.sock");
        let mut stream = UnixStream::connect(path)?;
        stream.write_all(GET.as_bytes())?;
        let mut answer = Vec::new();
        let mut chunk = [0; 65536];
        while !answer.ends_with(b"\n\n") {
            match stream.read(&mut chunk)? {
                0 => break,
                count => answer.extend_from_slice(&chunk[..count]),
            }
        }
        Ok(Device::parse(std::str::from_utf8(&answer)?)?)
    }

    fn admin<T: Send>(&self, call: impl AsyncFnOnce(Client) -> Result<T> + Send) -> Result<T> {
        let plane = &self.plane;
        block_on(plane.host(), async || call(plane.admin().await?).await)
    }
}

/// Whose requests are counted.
fn agent() -> Identity {
    Identity::new("agent", &["system:masters"])
}

fn audit_policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata"}],
    })
}

/// A Node as large as real ones are: kubelets fill up to 50 names of images.
fn node(number: usize, has_key: bool) -> Result<Value> {
    let (high, low) = (number / 250, number % 250);
    let pod_cidr = format!("10.{high}.{low}.0/24");
    let mut annotations = json!({});
    if has_key {
        let key = PrivateKey::generate()?.public_key().to_base64();
        annotations = json!({
            annotation::PUBLIC_KEY: key,
            annotation::ENDPOINT: format!("198.18.{high}.{}:51871", low + 1),
            annotation::MTU: "1500",
        });
    }
    let image = |n: usize| {
        let name = format!("registry.example/team/some-program@sha256:{n:064x}");
        json!({"names": [name], "sizeBytes": 123_456_789})
    };
    Ok(json!({
        "metadata": {"name": format!("other-{number}"), "annotations": annotations},
        "spec": {"podCIDR": pod_cidr, "podCIDRs": [pod_cidr]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": format!("198.18.{high}.{}", low + 1)}],
            "images": (0..50).map(image).collect::<Vec<_>>(),
        },
    }))
}

/// The time that a process has had of processors.
fn cpu_seconds(pid: i32) -> Result<f64> {
    /// `USER_HZ`, which is 100 on every architecture of Linux.
    const TICKS_A_SECOND: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(") ").context("a process's stat")?.1;
    // Fields 14 and 15, of which the first two are gone.
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.collect::<Result<Vec<_>, _>>()?.iter().sum::<f64>() / TICKS_A_SECOND)
}

fn memory_kib(pid: i32, key: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let value = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
    Ok(value.context("a process's memory")?.parse()?)
}
