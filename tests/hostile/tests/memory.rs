//! A thousand peers that never answer.
//!
//! ```text
//!   node1 192.0.2.1 ------- 192.0.2.2 hole, forwards nothing and says nothing
//!         198.51.100.1 ---- 198.51.100.2 node2, dead at first
//! ```

#![allow(clippy::unwrap_used)] // tests

use std::fmt::Write as _;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use warren_hostile::is_long;
use warren_hostile::node::{Node, PATIENCE};
use warren_keyring::PrivateKey;
use warren_lab::{Lab, Signal, require};

const PEERS: u32 = 1000;
const MEMORY_LIMIT_KIB: u64 = 256 << 10;
/// Less than the retry of a handshake (5 s).
const NO_RETRY: Duration = Duration::from_millis(4500);
/// Packets of 1,400 bytes a second, over all peers.
const RATE: u32 = 5000;

#[test]
fn peers_that_never_answer_hold_bounded_memory_and_one_that_comes_is_served_at_once() -> Result<()>
{
    require!();
    let lab = Lab::new("silence")?;
    let (node, mut late) = (Node::start(&lab, 1)?, Node::start(&lab, 2)?);
    let hole = lab.host("hole")?;
    lab.connect(
        node.host.end("eth0").addr("192.0.2.1/24").via("192.0.2.2"),
        hole.end("eth0").addr("192.0.2.2/24"),
    )?;
    lab.connect(
        node.host.end("eth1").addr("198.51.100.1/24"),
        late.host.end("eth0").addr("198.51.100.2/24"),
    )?;
    hole.sysctl("net.ipv4.ip_forward", "0")?;
    let endpoint = Some("198.51.100.1:51871");
    late.add_peer(&node.public_key()?, endpoint, &["10.1.0.0/16"])?;
    let late_key = late.public_key()?;
    // An orderly end: what it is to start from is saved.
    late.tunnel.signal(Signal::SIGTERM);
    late.tunnel.wait_timeout(PATIENCE)?;

    let mut config = String::new();
    for n in 0..PEERS {
        let key = PrivateKey::generate()?.public_key();
        let (high, low) = (n / 250, n % 250 + 1);
        writeln!(
            config,
            "[Peer]\nPublicKey = {key}\nEndpoint = 203.0.{high}.{low}:51871\n\
             AllowedIPs = 10.{}.{low}.0/24",
            100 + high
        )?;
    }
    let path = node.host.dir().join("peers");
    std::fs::write(&path, config)?;
    node.host.sh(&format!(
        "wg addconf warren0 {}\nip route add 10.64.0.0/10 dev warren0",
        path.display()
    ))?;
    node.add_peer(&late_key, Some("198.51.100.2:51871"), &["10.2.0.0/16"])?;

    let duration = Duration::from_secs(if is_long() { 600 } else { 10 });
    let socket = node.host.in_netns(|| UdpSocket::bind("0.0.0.0:0"))??;
    let start = Instant::now();
    let (mut sent, mut most_queued, mut most_kib) = (0u32, 0, 0);
    while start.elapsed() < duration {
        for _ in 0..RATE / 100 {
            let n = sent % (PEERS + 1);
            let to = match n {
                PEERS => "10.2.0.1:9".to_owned(),
                n => format!("10.{}.{}.1:9", 100 + n / 250, n % 250 + 1),
            };
            // A full queue of the device is the tunnel's way to slow us down.
            let _ = socket.send_to(&[0x57; 1372], to);
            sent += 1;
        }
        if sent.is_multiple_of(RATE) {
            most_queued = most_queued.max(node.count("queue_bytes")?);
            most_kib = most_kib.max(node.memory_kib()?.0);
        }
        let due = Duration::from_secs(1) * sent / RATE;
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    }
    let (_, peak_kib) = node.memory_kib()?;
    let refused = node.count("drop_queue_budget")?;
    let began = Instant::now();
    late.restart()?;
    let up = began.elapsed();
    let took = node.wait_ping("10.2.0.1", PATIENCE)?;
    println!(
        "{sent} packets to {PEERS} silent peers in {:?}: at most {most_queued} bytes queued, \
         {refused} refused by the cap, {most_kib} KiB resident (peak {peak_kib}); the late peer's \
         program was up after {up:?} and answered {took:?} later",
        start.elapsed()
    );
    node.ensure_running()?;
    ensure!(most_queued <= 8 << 20, "{most_queued} bytes queued");
    ensure!(refused > 0, "the cap was never reached");
    ensure!(peak_kib < MEMORY_LIMIT_KIB, "{peak_kib} KiB");
    ensure!(took < NO_RETRY, "the late peer waited {took:?}");
    Ok(())
}
