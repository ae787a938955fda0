//! Traffic between pods and hosts.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_lab::{Proc, Signal, Space, bin, patience};

/// What the payload of every test transfer is sprinkled with, and what no underlay packet may hold.
pub const MARKER: &str = "warren-clear-text-marker-7c1f";

/// The port that transfers use.
const TRANSFER_PORT: u16 = 5201;
/// The port that probes use.
const PROBE_PORT: u16 = 5202;
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a probe waits for what is under way when it ends, in milliseconds; a standstill of the
/// machine does not count. Less than the retry of a handshake: what came by that was lost before.
const LATE_MS: &str = "3000";
const TRANSFER_LIMIT: Duration = Duration::from_secs(120);

/// What pinging an address showed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ping {
    /// Packets sent.
    pub sent: u32,
    /// Replies received.
    pub received: u32,
    /// Mean round-trip time in milliseconds, if there was a reply.
    pub rtt_ms: Option<f64>,
}

impl Ping {
    /// Whether every packet was answered.
    pub fn lossless(&self) -> bool {
        self.sent > 0 && self.received == self.sent
    }
}

/// Pings `address` from `from` `count` times, half a second apart.
///
/// The interval is also what `ping` waits for the last answer once one has come: a shorter one takes
/// an answer that a busy machine delays for a lost one.
pub fn ping(from: &Space, address: &str, count: u32) -> Result<Ping> {
    let _: IpAddr = address
        .parse()
        .with_context(|| format!("{address} is no address"))?;
    let count_text = count.to_string();
    // An answer that an emulated machine delays is not a lost one.
    let wait = patience(Duration::from_secs(1))
        .as_secs()
        .max(2)
        .to_string();
    let out = from.try_run(&[
        "ping",
        "-n",
        "-q",
        "-c",
        &count_text,
        "-i",
        "0.5",
        "-W",
        &wait,
        address,
    ])?;
    let summary = out
        .stdout
        .lines()
        .find(|l| l.contains("packets transmitted"));
    let summary = summary.with_context(|| format!("ping printed {}{}", out.stdout, out.stderr))?;
    // "5 packets transmitted, 5 received, 0% packet loss, time 81ms"
    let number = |part: &str| {
        let field = summary.split(", ").find(|f| f.contains(part))?;
        field.split_whitespace().find_map(|w| w.parse::<u32>().ok())
    };
    let rtt = out
        .stdout
        .lines()
        .find_map(|l| l.strip_prefix("rtt ")?.split('/').nth(4)?.parse().ok());
    Ok(Ping {
        sent: number("transmitted").context("ping's summary has no count")?,
        received: number("received").context("ping's summary has no count of replies")?,
        rtt_ms: rtt,
    })
}

/// Pings many addresses, a dozen at a time, and gives the results in the order asked.
pub fn ping_each(pairs: &[(&Space, &str)], count: u32) -> Result<Vec<Ping>> {
    const AT_ONCE: usize = 12;
    let mut seen = Vec::with_capacity(pairs.len());
    for batch in pairs.chunks(AT_ONCE) {
        let results: Vec<Result<Ping>> = std::thread::scope(|scope| {
            let started: Vec<_> = batch
                .iter()
                .map(|(from, address)| scope.spawn(|| ping(from, address, count)))
                .collect();
            let panicked = |_| anyhow::anyhow!("a thread that pinged panicked");
            started
                .into_iter()
                .map(|thread| thread.join().map_err(panicked).flatten())
                .collect()
        });
        for result in results {
            seen.push(result?);
        }
    }
    Ok(seen)
}

/// A finished TCP transfer.
#[derive(Clone, Debug, PartialEq)]
pub struct Transfer {
    /// Bytes sent.
    pub bytes: u64,
    /// How fast, in Mbit/s of payload.
    pub mbit_per_s: f64,
    /// The digest that both ends computed.
    pub digest: String,
    /// The client's address as the server saw it.
    pub seen_by_server: IpAddr,
}

/// Sends `bytes` of marked data from `client` to `server` at `address` and compares the digests.
pub fn transfer(client: &Space, server: &Space, address: &str, bytes: u64) -> Result<Transfer> {
    let tool = bin("lab-tool")?;
    let port = TRANSFER_PORT.to_string();
    let serve = server.spawn(Command::new(&tool).args(["tcp-serve", "--port", &port]))?;
    serve.wait_log("listening", START_LIMIT)?;
    let target = SocketAddr::new(address.parse()?, TRANSFER_PORT).to_string();
    let mut send = Command::new(&tool);
    send.args([
        "tcp-send",
        &target,
        "--bytes",
        &bytes.to_string(),
        "--marker",
        MARKER,
    ]);
    let out = client.output(&mut send, TRANSFER_LIMIT)?;
    let sent = client.check(&send, out)?.json()?;
    let text = |key: &str| {
        sent[key]
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("no {key} in {sent}"))
    };
    ensure!(sent["digest_equal"] == true, "the digests differ: {sent}");
    ensure!(
        sent["server_saw_bytes"] == bytes,
        "bytes are missing: {sent}"
    );
    let seen: SocketAddr = text("server_saw_peer")?.parse()?;
    Ok(Transfer {
        bytes,
        mbit_per_s: sent["mbit_per_s"].as_f64().context("no mbit_per_s")?,
        digest: text("digest")?,
        seen_by_server: seen.ip(),
    })
}

/// A stream of numbered datagrams that runs while something happens to the mesh.
#[derive(Debug)]
pub struct Probe {
    echo: Proc,
    ping: Proc,
}

/// What a [`Probe`] saw.
#[derive(Clone, Debug)]
pub struct ProbeResult {
    /// Datagrams sent.
    pub sent: u64,
    /// Answers that came back.
    pub received: u64,
    /// The longest time without an answer.
    pub longest_gap: Duration,
}

impl ProbeResult {
    /// Datagrams without an answer.
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }
}

impl Probe {
    /// Starts sending from `client` to `server` at `address` every `interval`.
    pub fn start(
        client: &Space,
        server: &Space,
        address: &str,
        interval: Duration,
    ) -> Result<Self> {
        let tool = bin("lab-tool")?;
        let port = PROBE_PORT.to_string();
        let echo = server.spawn(Command::new(&tool).args(["udp-echo", "--port", &port]))?;
        echo.wait_log("listening", START_LIMIT)?;
        let ip: IpAddr = address.parse()?;
        let interval = interval.as_millis().to_string();
        let target = SocketAddr::new(ip, PROBE_PORT).to_string();
        let mut command = Command::new(&tool);
        command.args(["udp-ping", &target, "--count", "0", "--marker", MARKER]);
        command.args(["--interval-ms", &interval, "--wait-ms", LATE_MS]);
        let ping = client.spawn(&mut command)?;
        ping.wait_log("sending", START_LIMIT)?;
        Ok(Self { echo, ping })
    }

    /// Ends it and tells what it saw, answers included that were under way.
    pub fn stop(self) -> Result<ProbeResult> {
        self.ping.signal(Signal::SIGTERM);
        self.ping.wait_timeout(START_LIMIT)?;
        self.echo.kill();
        let log = self.ping.log();
        let line = log.lines().find(|l| l.starts_with('{'));
        let line = line.with_context(|| format!("the probe printed {log}"))?;
        let value: serde_json::Value = serde_json::from_str(line)?;
        let number = |key: &str| {
            value[key]
                .as_f64()
                .with_context(|| format!("no {key} in {value}"))
        };
        Ok(ProbeResult {
            sent: number("sent")? as u64,
            received: number("received")? as u64,
            longest_gap: Duration::from_secs_f64(number("longest_gap_ms")? / 1000.0),
        })
    }
}
