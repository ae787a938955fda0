//! A node that starts with a thousand peers, all of which are there: `make bench-cold-start`.
//!
//! ```text
//!   node1 192.0.2.1 ------- crowd 192.0.2.2: a port and a key for each peer
//! ```
//!
//! No time is asserted, but that all of them are up in the end.

use std::fmt::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use warren_hostile::crowd;
use warren_hostile::node::{Node, PATIENCE};
use warren_lab::{Lab, bin, require};

const PEERS: u16 = 1000;
const LIMIT: Duration = Duration::from_secs(120);

#[test]
#[ignore = "a benchmark: make bench-cold-start"]
fn a_thousand_peers_that_answer_are_up_soon_after_a_start() -> Result<()> {
    require!();
    let lab = Lab::new("coldstart")?;
    let mut node = Node::start(&lab, 1)?;
    let host = lab.host("crowd")?;
    let _cable = lab.connect(
        node.host.end("eth0").addr("192.0.2.1/24"),
        host.end("eth0").addr("192.0.2.2/24"),
    )?;
    let mut command = Command::new(bin("hostile-crowd")?);
    command.args(["192.0.2.2", "--count", &PEERS.to_string()]);
    command.args(["--key", &node.public_key()?.to_string()]);
    let crowd = host.spawn(&mut command)?;
    crowd.wait_log("the crowd is there", PATIENCE)?;

    let mut config = String::new();
    for n in 0..PEERS {
        let key = crowd::key(n)?.public_key();
        let (high, low, port) = (n / 250, n % 250 + 1, crowd::port(n));
        writeln!(
            config,
            "[Peer]\nPublicKey = {key}\nEndpoint = 192.0.2.2:{port}\n\
             AllowedIPs = 10.{}.{low}.0/24",
            100 + high
        )?;
    }
    let path = node.host.dir().join("peers");
    std::fs::write(&path, config)?;
    let all_up = |node: &Node, what: &str, start: Instant| -> Result<()> {
        let mut half = None;
        loop {
            let shown = node
                .host
                .run(&["wg", "show", "warren0", "latest-handshakes"])?;
            let lines = shown.stdout.lines();
            let up = lines.filter(|line| !line.ends_with("\t0")).count();
            let took = start.elapsed();
            if up >= usize::from(PEERS) / 2 {
                half.get_or_insert(took);
            }
            if up == usize::from(PEERS) {
                println!(
                    "{what}: half of {PEERS} peers up after {:.2?}, all after {took:.2?}",
                    half.unwrap_or(took)
                );
                return Ok(());
            }
            ensure!(took < LIMIT, "{what}: {up} of {PEERS} up after {took:.1?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    // A tunnel begins a handshake with each peer of its saved state.
    node.host
        .sh(&format!("wg addconf warren0 {}", path.display()))?;
    node.tunnel.signal(warren_lab::Signal::SIGTERM);
    node.tunnel.wait_timeout(PATIENCE)?;
    for what in ["first start", "started anew"] {
        let start = Instant::now();
        node.restart()?;
        all_up(&node, what, start)?;
        println!("{what}: {} KiB resident", node.memory_kib()?.0);
        // Killed, not ended.
        node.tunnel.signal(warren_lab::Signal::SIGKILL);
        node.tunnel.wait_timeout(PATIENCE)?;
    }
    Ok(())
}
