//! What thousands of peers at rest take, each with a session.
//!
//! ```text
//!   node 192.0.2.1 ------- 192.0.2.2 crowd: a key and a port for each peer, answers handshakes
//! ```

use std::fmt::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use warren_hostile::crowd;
use warren_lab::{Host, Lab, Proc, bin, poll_until};

use crate::contender::Contender;
use crate::measure::{cpu_seconds, resident_kib, wait_idle};
use crate::scene;

const PATIENCE: Duration = Duration::from_secs(30);
/// How long the handshakes of all peers may take.
const UP_LIMIT: Duration = Duration::from_secs(300);
/// How many peers there are when memory is looked at.
const COUNTS: [u16; 4] = [0, 1_000, 3_000, 5_000];
/// Data that nobody answers makes a WireGuard shake hands once more, 15 s later.
const ONCE_MORE: Duration = Duration::from_secs(25);
/// How long the idle cost is watched.
const WATCHED: Duration = Duration::from_secs(30);

/// Figures of one program alone.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Memory {
    /// Whose they are.
    pub(crate) contender: Contender,
    /// Numbers of peers, and the KiB of resident memory with so many.
    pub(crate) resident_kib: Vec<(u32, f64)>,
    /// The share of a core that the most peers take at rest, in per cent.
    pub(crate) idle_percent: f64,
}

impl Memory {
    /// KiB for each peer between 1,000 of them and the most.
    pub(crate) fn kib_a_peer(&self) -> Option<f64> {
        let few = self
            .resident_kib
            .iter()
            .find(|(peers, _)| *peers == 1_000)?;
        let many = self.resident_kib.last()?;
        (many.0 > few.0).then(|| (many.1 - few.1) / f64::from(many.0 - few.0))
    }
}

/// Gives a tunnel thousands of peers, and looks at it when all have a session and nothing to say.
pub(crate) fn measure(contender: Contender) -> Result<Memory> {
    let lab = Lab::new(&format!("benchmemory{}", contender.short()))?;
    let (host, other) = (lab.host("node")?, lab.host("crowd")?);
    let _cable = lab.connect(
        host.end("eth0").addr("192.0.2.1/24"),
        other.end("eth0").addr("192.0.2.2/24"),
    )?;
    let tunnel = start(&host, contender)?;
    host.sh("ip link set warren0 up && ip route add 10.0.0.0/8 dev warren0")?;
    let key = host.run(&["wg", "show", "warren0", "public-key"])?.stdout;
    let most = COUNTS.into_iter().max().unwrap_or_default();
    let mut command = Command::new(bin("hostile-crowd")?);
    command.args(["192.0.2.2", "--count", &most.to_string()]);
    command.args(["--key", key.trim()]);
    let crowd = other.spawn(&mut command)?;
    crowd.wait_log("the crowd is there", PATIENCE)?;

    let pids = [tunnel.pid()];
    let mut resident = Vec::new();
    let mut have = 0;
    for count in COUNTS {
        if count > have {
            let path = host.dir().join("peers.conf");
            std::fs::write(&path, configuration(have..count)?)?;
            host.sh(&format!("wg addconf warren0 {}", path.display()))?;
            have = count;
            wait_sessions(&host, contender, count)?;
        }
        wait_idle(&pids)?;
        resident.push((count.into(), resident_kib(pids[0])?));
    }
    if begins_with_data(contender) {
        std::thread::sleep(ONCE_MORE);
        wait_idle(&pids)?;
    }
    let (before, start) = (cpu_seconds(&pids)?[0], Instant::now());
    std::thread::sleep(WATCHED);
    let used = cpu_seconds(&pids)?[0] - before;
    Ok(Memory {
        contender,
        resident_kib: resident,
        idle_percent: 100.0 * used / start.elapsed().as_secs_f64(),
    })
}

fn start(host: &Host, contender: Contender) -> Result<Proc> {
    if contender.program().is_some() {
        let process = scene::start(host, contender)?;
        host.sh("wg genkey | wg set warren0 private-key /dev/stdin")?;
        return Ok(process);
    }
    let mut command = Command::new(bin("warren-tunnel")?);
    command.arg("--ephemeral").envs(contender.env());
    let tunnel = host.spawn(&mut command)?;
    tunnel.wait_log("the tunnel is up", PATIENCE)?;
    Ok(tunnel)
}

/// warren-tunnel begins a session with each new peer by itself; others where there is something to
/// send.
fn begins_with_data(contender: Contender) -> bool {
    contender.program().is_some()
}

/// The address inside the tunnel of a peer of the crowd.
fn inner(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, high, low, 1)
}

/// Peers as a node of a cluster has them: two pod ranges and an address each.
fn configuration(numbers: std::ops::Range<u16>) -> Result<String> {
    let mut text = String::new();
    for n in numbers {
        let key = crowd::key(n)?.public_key();
        let [high, low] = n.to_be_bytes();
        writeln!(
            text,
            "[Peer]\nPublicKey = {key}\nEndpoint = 192.0.2.2:{}\n\
             AllowedIPs = 10.{high}.{low}.0/24, fd00:{n:x}::/64, 172.16.{high}.{low}/32",
            crowd::port(n)
        )?;
    }
    Ok(text)
}

/// Waits until each peer has a session.
fn wait_sessions(host: &Host, contender: Contender, count: u16) -> Result<()> {
    let socket = host.in_netns(|| UdpSocket::bind("0.0.0.0:0"))??;
    let mut up = 0;
    poll_until(UP_LIMIT, "sessions with all peers", || {
        if begins_with_data(contender) {
            for n in 0..count {
                // What is lost is sent again with the next look.
                let _ = socket.send_to(&[7], (inner(n), 9));
            }
        }
        std::thread::sleep(Duration::from_secs(1));
        let shown = host.run(&["wg", "show", "warren0", "latest-handshakes"]);
        up = shown.map_or(0, |shown| {
            shown
                .stdout
                .lines()
                .filter(|line| !line.ends_with("\t0"))
                .count()
        });
        up == usize::from(count)
    })
    .with_context(|| format!("{up} of {count} peers have a session"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_from_a_thousand_peers_to_the_most() {
        let mut memory = Memory {
            contender: Contender::Warren,
            resident_kib: vec![(0, 5_000.0), (1_000, 25_000.0), (5_000, 105_000.0)],
            idle_percent: 0.0,
        };
        assert_eq!(memory.kib_a_peer(), Some(20.0));
        memory.resident_kib.pop();
        assert_eq!(memory.kib_a_peer(), None);
    }
}
