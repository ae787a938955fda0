//! Underlays that lose, reorder and block: told as degraded with the cause, and over by itself.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use warren_e2e::{
    Mesh, Node, Probe, assert_captured, ping, reason, transfer, wait_back, wait_degraded, wait_well,
};
use warren_lab::{Direction, bin, poll_until, require};

/// In so long a fault must be told.
const TOLD: Duration = Duration::from_secs(20);
/// Long enough for all else on a slow, shared machine.
const LIMIT: Duration = Duration::from_secs(60);
/// A retry of the handshake (5 s), and slack for a shared machine.
const BACK: Duration = Duration::from_secs(30);
const PROBE_INTERVAL: Duration = Duration::from_millis(50);
/// How late a busy machine may read the last answer before a fault.
const LATE: Duration = Duration::from_secs(1);
/// The silence in which nothing is under way any more.
const QUIET: Duration = Duration::from_secs(3);
/// How long the port is blocked; the long form is that of the requirement.
const BLOCKED: Duration = Duration::from_secs(40);
const BLOCKED_LONG: Duration = Duration::from_secs(300);

/// Topology: node1 on one subnet, node3 behind the router, which drops the tunnel's UDP. Node2
/// beside node1 is not concerned.
fn blocked_port(name: &str, time: Duration) -> Result<()> {
    let mesh = Mesh::start(name, 3)?;
    let (node1, node3) = (mesh.node(1), mesh.node(3));
    let (a, b) = (node1.attach("a")?, node3.attach("b")?);
    let capture = mesh.capture(&[])?;
    let probe = Probe::start(&a.pod, &b.pod, &b.v4, PROBE_INTERVAL)?;
    let other = Probe::start(
        &mesh.node(2).attach("c")?.pod,
        &a.pod,
        &a.v6,
        PROBE_INTERVAL,
    )?;
    mesh.router.sh(
        "nft 'add table inet block; add chain inet block f { type filter hook forward priority 0; }; \
         add rule inet block f meta l4proto udp drop'",
    )?;
    let start = Instant::now();
    wait_degraded(node1, node3, &["no-answer"], TOLD)?;
    assert_eq!(reason(node1, mesh.node(2))?, None);
    // It stays told as long as it lasts: also over the end of the session's keys and of an attempt.
    while start.elapsed() < time {
        assert_eq!(reason(node1, node3)?.as_deref(), Some("no-answer"));
        std::thread::sleep(Duration::from_secs(1));
    }
    mesh.router.sh("nft delete table inet block")?;
    let back = wait_back(&a.pod, &[&b.v4, &b.v6], BACK)?;
    println!("traffic is back {back:?} after a block of {time:?}");
    for node in &mesh.nodes {
        wait_well(node, LIMIT)?;
    }
    std::thread::sleep(Duration::from_secs(1));
    let (seen, other) = (probe.stop()?, other.stop()?);
    assert!(
        seen.longest_gap + LATE > time && seen.received > 5,
        "{seen:?}"
    );
    assert!(other.sent > 100 && other.lost() == 0, "{other:?}");
    assert_captured(capture, 500);
    Ok(())
}

#[test]
fn a_blocked_port_is_told_and_traffic_is_back_once_it_is_open() -> Result<()> {
    require!();
    blocked_port("block", BLOCKED)
}

#[test]
#[ignore = "the long form: five minutes; run by make soak"]
fn a_port_blocked_for_five_minutes_is_told_and_traffic_is_back_once_it_is_open() -> Result<()> {
    require!();
    blocked_port("blocklong", BLOCKED_LONG)
}

/// Topology: node1 and node2 on one subnet. A filter of node1 refuses the tunnel's datagrams: the
/// kernel says so to whoever sends.
#[test]
fn a_filter_of_the_node_itself_is_named() -> Result<()> {
    require!();
    let mesh = Mesh::start("refuse", 2)?;
    let (node1, node2) = (mesh.node(1), mesh.node(2));
    let (a, b) = (node1.attach("a")?, node2.attach("b")?);
    let capture = mesh.capture(&[])?;
    let probe = Probe::start(&a.pod, &b.pod, &b.v6, PROBE_INTERVAL)?;
    node1.host.sh(
        "nft 'add table inet block; add chain inet block f { type filter hook output priority 0; }; \
         add rule inet block f udp sport 51871 drop'",
    )?;
    wait_degraded(node1, node2, &["send-failed"], TOLD)?;
    let told = node1.peer_status(node2)?["degraded"]["message"].to_string();
    assert!(told.contains("packet filter of this node"), "{told}");
    node1.host.sh("nft delete table inet block")?;
    wait_back(&a.pod, &[&b.v4, &b.v6], BACK)?;
    wait_well(node1, LIMIT)?;
    let seen = probe.stop()?;
    assert!(seen.received > 0 && seen.received < seen.sent, "{seen:?}");
    assert_captured(capture, 8);
    Ok(())
}

/// Topology: node1 on one subnet, node3 behind the router, which drops what node1's tunnel sends and
/// lets pass what it is sent. Both have something to say.
#[test]
fn loss_in_one_direction_is_told_at_both_ends() -> Result<()> {
    require!();
    let mesh = Mesh::start("oneway", 3)?;
    let (node1, node3) = (mesh.node(1), mesh.node(3));
    let (a, b) = (node1.attach("a")?, node3.attach("b")?);
    let capture = mesh.capture(&[])?;
    let probe = Probe::start(&b.pod, &a.pod, &a.v4, PROBE_INTERVAL)?;
    mesh.router.sh(
        "nft 'add table inet block; add chain inet block f { type filter hook forward priority 0; }; \
         add rule inet block f ip saddr 192.0.2.1 udp sport 51871 drop'",
    )?;
    let start = Instant::now();
    // Node3 hears nothing; node1 hears node3's handshakes and is not heard.
    wait_degraded(node3, node1, &["no-answer"], TOLD)?;
    wait_degraded(
        node1,
        node3,
        &["not-heard"],
        TOLD.saturating_sub(start.elapsed()),
    )?;
    println!("both ends tell after {:?}", start.elapsed());
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(reason(node1, node3)?.as_deref(), Some("not-heard"));
    assert_eq!(reason(node3, node1)?.as_deref(), Some("no-answer"));
    let blocked = start.elapsed();
    mesh.router.sh("nft delete table inet block")?;
    let back = wait_back(&b.pod, &[&a.v4, &a.v6], BACK)?;
    println!("traffic is back {back:?} after the block ended");
    for node in &mesh.nodes {
        wait_well(node, LIMIT)?;
    }
    let seen = probe.stop()?;
    assert!(
        seen.received > 0 && seen.longest_gap + LATE > blocked,
        "{seen:?} of a block of {blocked:?}"
    );
    assert_captured(capture, 100);
    Ok(())
}

/// Topology: node1 and node2 on one subnet; from node1's cable nothing gets to the switch, neighbour
/// discovery included. Only node2 can know: to node1 the other is merely silent.
#[test]
fn a_cable_that_is_dead_in_one_direction_is_told() -> Result<()> {
    require!();
    let mesh = Mesh::start("halfdead", 2)?;
    let (node1, node2) = (mesh.node(1), mesh.node(2));
    let (a, b) = (node1.attach("a")?, node2.attach("b")?);
    let capture = mesh.capture(&[])?;
    let probe = Probe::start(&b.pod, &a.pod, &a.v6, PROBE_INTERVAL)?;
    node1.link.cut_one_way(Direction::AToB)?;
    let start = Instant::now();
    wait_degraded(node2, node1, &["no-answer"], TOLD)?;
    let cut = start.elapsed();
    node1.link.restore()?;
    wait_back(&b.pod, &[&a.v4, &a.v6], BACK)?;
    for node in [node1, node2] {
        wait_well(node, LIMIT)?;
    }
    let seen = probe.stop()?;
    assert!(
        seen.received > 0 && seen.longest_gap + LATE > cut,
        "{seen:?} of a cut of {cut:?}"
    );
    assert_captured(capture, 50);
    Ok(())
}

/// Topology: node1 and node2 on one subnet; nothing passes, and nobody says anything.
#[test]
fn a_silent_pair_stays_as_it_is_whatever_the_underlay_does() -> Result<()> {
    require!();
    let mesh = Mesh::start("silent", 2)?;
    let (node1, node2) = (mesh.node(1), mesh.node(2));
    let sent = |node: &Node, other: &Node| -> Result<u64> {
        Ok(node.peer_status(other)?["tx_bytes"].as_u64().unwrap_or(0))
    };
    let both = || -> Result<[u64; 2]> { Ok([sent(node1, node2)?, sent(node2, node1)?]) };
    let (mut before, mut since) = (both()?, Instant::now());
    poll_until(LIMIT, "the handshakes to be over", || {
        let now = both().unwrap_or_default();
        if std::mem::replace(&mut before, now) != now {
            since = Instant::now();
        }
        since.elapsed() > QUIET
    })?;
    node1.link.cut()?;
    std::thread::sleep(TOLD);
    for (node, other) in [(node1, node2), (node2, node1)] {
        assert_eq!(reason(node, other)?, None);
        assert_eq!(node.peer_status(other)?["state"], "up");
    }
    assert_eq!(both()?, before, "no heartbeat");
    Ok(())
}

/// Sets what an operator would: an endpoint in a node's record.
fn force_endpoint(mesh: &Mesh, node: &Node, endpoint: &str) -> Result<()> {
    let path = mesh.registry().join(format!("{}.json", node.name()));
    let mut record: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
    record["annotations"]["warren.network/force-endpoint"] = json!(endpoint);
    std::fs::write(&path, record.to_string())?;
    Ok(())
}

/// Topology: node1 and node2 on one subnet with a relay between them that delivers one datagram in
/// twenty late; besides, each cable loses 1% in each direction.
#[test]
fn loss_of_1_percent_and_reordering_cost_a_transfer_nothing() -> Result<()> {
    require!();
    let mut mesh = Mesh::start("lossy", 2)?;
    let relay = mesh.lab.host("relay")?;
    let end = relay.end("eth0").addr("192.0.2.50/24");
    let link = mesh.lab.connect(end, mesh.lan_a_port())?;
    mesh.watch(link);
    let mut command = Command::new(bin("hostile-relay")?);
    command.args([
        "--listen-a",
        "192.0.2.50:41001",
        "--listen-b",
        "192.0.2.50:41002",
    ]);
    command.args(["--a", "192.0.2.1:51871", "--b", "192.0.2.2:51871"]);
    let relaying = relay.spawn(&mut command)?;
    relaying.wait_log("relaying", LIMIT)?;
    let (node1, node2) = (mesh.node(1), mesh.node(2));
    let (a, b) = (node1.attach("a")?, node2.attach("b")?);
    let capture = mesh.capture(&[])?;
    force_endpoint(&mesh, node2, "192.0.2.50:41001")?;
    force_endpoint(&mesh, node1, "192.0.2.50:41002")?;
    poll_until(LIMIT, "both to use the relay", || {
        let at = |node: &Node, other: &Node, endpoint: &str| {
            node.peer_status(other)
                .is_ok_and(|peer| peer["endpoint"] == *endpoint)
        };
        let _ = ping(&a.pod, &b.v4, 1);
        at(node1, node2, "192.0.2.50:41001") && at(node2, node1, "192.0.2.50:41002")
    })?;
    for node in [node1, node2] {
        node.link.lossy(1.0)?;
    }
    let probe = Probe::start(&a.pod, &b.pod, &b.v6, Duration::from_millis(10))?;
    for (from, to, address) in [(&a, &b, &b.v4), (&b, &a, &a.v6)] {
        let moved = transfer(&from.pod, &to.pod, address, 8 << 20)?;
        println!("{:.0} Mbit/s", moved.mbit_per_s);
    }
    for (node, other) in [(node1, node2), (node2, node1)] {
        assert_eq!(
            reason(node, other)?,
            None,
            "loss that traffic bears is not told"
        );
    }
    // So many that not to lose one of them is out of the question.
    std::thread::sleep(Duration::from_secs(5));
    let seen = probe.stop()?;
    println!("{seen:?}");
    let lost = seen.sent - seen.received;
    assert!(lost > 0 && lost * 5 < seen.sent, "{seen:?}");
    assert!(seen.longest_gap < BACK, "{seen:?}");
    assert_captured(capture, 10_000);
    Ok(())
}
