//! A quarter of an hour of traffic over rekeys on a bad network.
//!
//! ```text
//!   node1 192.0.2.1 ----- 192.0.2.9 relay 198.51.100.9 ----- 198.51.100.2 node2
//!         10.1.0.1   0.5% lost   late, out of order   0.5% lost    10.2.0.1
//! ```

#![allow(clippy::unwrap_used)] // tests

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use warren_hostile::flow::{self, Flow};
use warren_hostile::node::{Node, PATIENCE};
use warren_lab::{Lab, require};

/// Longer than any rekey takes whose first message is lost (retry: 5.3 s) and then its second.
const DEAF: Duration = Duration::from_secs(12);
/// `WARREN_SOAK_SECONDS` sets another one.
const SOAK: Duration = Duration::from_secs(900);

fn duration() -> Duration {
    let set = std::env::var("WARREN_SOAK_SECONDS").ok();
    set.and_then(|s| s.parse().ok())
        .map_or(SOAK, Duration::from_secs)
}

fn soak(name: &str, both_ways: bool) -> Result<()> {
    let lab = Lab::new(name)?;
    let (node1, node2) = (Node::start(&lab, 1)?, Node::start(&lab, 2)?);
    let relay = lab.host("relay")?;
    for (node, own, far) in [
        (&node1, "192.0.2.1", "192.0.2.9"),
        (&node2, "198.51.100.2", "198.51.100.9"),
    ] {
        let link = lab.connect(
            node.host.end("eth0").addr(&format!("{own}/24")),
            relay
                .end(&format!("to-{}", node.host.name()))
                .addr(&format!("{far}/24")),
        )?;
        link.lossy(0.5)?;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_hostile-relay"));
    command
        .args(["--listen-a", "192.0.2.9:7000", "--a", "192.0.2.1:51871"])
        .args([
            "--listen-b",
            "198.51.100.9:7000",
            "--b",
            "198.51.100.2:51871",
        ]);
    let relaying = relay.spawn(&mut command)?;
    relaying.wait_log("relaying", PATIENCE)?;
    node1.add_peer(
        &node2.public_key()?,
        Some("192.0.2.9:7000"),
        &["10.2.0.0/16"],
    )?;
    node2.add_peer(
        &node1.public_key()?,
        Some("198.51.100.9:7000"),
        &["10.1.0.0/16"],
    )?;
    node1.wait_ping("10.2.0.1", PATIENCE)?;

    let (duration, interval) = (duration(), Duration::from_millis(5));
    let (there, back) = std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            let ends = (&node1.host, &node2.host);
            flow::run(ends, "10.2.0.1:9000".parse()?, 800, interval, duration)
        });
        let back = both_ways.then(|| {
            let ends = (&node2.host, &node1.host);
            flow::run(ends, "10.1.0.1:9000".parse()?, 800, interval, duration)
        });
        (there.join().unwrap(), back.transpose())
    });
    let handshakes = node1.count("handshakes")?;
    let flows: Vec<Flow> = [Some(there?), back?].into_iter().flatten().collect();
    for flow in &flows {
        println!(
            "{name}: {handshakes} handshakes in {duration:?}, {:.2}% lost, longest gap {:?}, {flow:?}",
            flow.loss_percent(),
            flow.longest_gap
        );
    }
    for node in [&node1, &node2] {
        let status = node.status()?;
        let drops: Vec<_> = status
            .iter()
            .filter(|(k, v)| k.starts_with("drop_") && **v > 0)
            .collect();
        println!("{name}: {}: {drops:?}", node.host.name());
        node.ensure_running()?;
    }
    for flow in &flows {
        ensure!(flow.reordered > 0, "nothing was reordered: {flow:?}");
        ensure!(flow.longest_gap < DEAF, "deaf for {:?}", flow.longest_gap);
        ensure!(
            flow.loss_percent() < 3.0,
            "{:.2}% lost",
            flow.loss_percent()
        );
    }
    // Each lasts two minutes, and the retry of one that is lost takes 5 s.
    let expected = 1 + duration.as_secs() / 140;
    ensure!(
        handshakes >= expected,
        "{handshakes} handshakes, not {expected}"
    );
    Ok(())
}

#[test]
#[ignore = "takes 15 minutes: make soak"]
fn one_way_traffic_goes_on_over_rekeys_with_loss_and_reordering() -> Result<()> {
    require!();
    soak("oneway", false)
}

#[test]
#[ignore = "takes 15 minutes: make soak"]
fn two_way_traffic_goes_on_over_rekeys_with_loss_and_reordering() -> Result<()> {
    require!();
    soak("twoway", true)
}
