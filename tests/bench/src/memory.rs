//! What thousands of idle peers take.

use std::fmt::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use warren_lab::{Lab, bin};

use crate::measure::{cpu_seconds, resident_kib, wait_idle};

const PATIENCE: Duration = Duration::from_secs(30);
const FEW: u32 = 1_000;
const MANY: u32 = 5_000;
/// How long the idle cost is watched.
const WATCHED: Duration = Duration::from_secs(30);

/// Figures of `warren-tunnel` alone.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Memory {
    /// KiB of resident memory for each peer between 1,000 and 5,000 of them.
    pub(crate) kib_a_peer: f64,
    /// The share of a core that 5,000 peers at rest take, in per cent.
    pub(crate) idle_percent: f64,
}

/// Gives a tunnel thousands of peers with sessions of their own, nobody behind any.
pub(crate) fn measure() -> Result<Memory> {
    let lab = Lab::new("benchmemory")?;
    let host = lab.host("node")?;
    let mut command = Command::new(bin("warren-tunnel")?);
    command.args(["--ephemeral"]);
    let tunnel = host.spawn(&mut command)?;
    tunnel.wait_log("the tunnel is up", PATIENCE)?;
    let pids = [tunnel.pid()];
    let mut resident = Vec::new();
    for count in [FEW, MANY] {
        let path = host.dir().join("peers.conf");
        std::fs::write(&path, configuration(count))?;
        host.sh(&format!("wg addconf warren0 {}", path.display()))?;
        // Handshakes that nobody answers are given up after 90 s; what a session takes is there at once.
        wait_idle(&pids)?;
        resident.push(resident_kib(pids[0])?);
    }
    // Until the handshakes are given up.
    std::thread::sleep(Duration::from_secs(95));
    let (before, start) = (cpu_seconds(&pids)?[0], Instant::now());
    std::thread::sleep(WATCHED);
    let used = cpu_seconds(&pids)?[0] - before;
    Ok(Memory {
        kib_a_peer: (resident[1] - resident[0]) / f64::from(MANY - FEW),
        idle_percent: 100.0 * used / start.elapsed().as_secs_f64(),
    })
}

fn configuration(count: u32) -> String {
    let mut text = String::new();
    for n in 0..count {
        let mut key = [0x42; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        let [_, a, b, c] = n.to_be_bytes();
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "[Peer]\nPublicKey = {}\nEndpoint = 127.{a}.{b}.{c}:9\nAllowedIPs = 10.{a}.{b}.{c}/32\n",
            STANDARD.encode(key)
        );
    }
    text
}
