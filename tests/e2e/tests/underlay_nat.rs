//! Nodes behind NAT routers: mappings that change, and sites that share their private range.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use warren_e2e::{Mesh, Node, Probe, assert_captured, transfer, wait_back, wait_well};
use warren_lab::{NatRouter, poll_for, poll_until, require};

const LIMIT: Duration = Duration::from_secs(60);
/// A retry of the handshake (5 s), and slack for a shared machine.
const BACK: Duration = Duration::from_secs(30);
const PROBE_INTERVAL: Duration = Duration::from_millis(50);
/// The time between two reconciles, and some.
const RECONCILES: Duration = Duration::from_secs(12);

/// Puts node `number` behind a NAT router of its own at `outside` on the first subnet.
fn behind_nat(mesh: &mut Mesh, number: u8, inside: &str, outside: &str) -> Result<NatRouter> {
    let nat = mesh.lab.nat_router(&format!("nat{number}"), "wan")?;
    let host = mesh.lab.host(&format!("node{number}"))?;
    let gateway = "10.0.0.254";
    let end = host.end("eth0").addr(&format!("{inside}/24")).via(gateway);
    let lan = nat.end("lan").addr(&format!("{gateway}/24"));
    let link = mesh.lab.connect(end, lan)?;
    let wan = nat
        .end("wan")
        .addr(&format!("{outside}/24"))
        .via("192.0.2.254");
    let port = mesh.lan_a_port();
    let uplink = mesh.lab.connect(wan, port)?;
    mesh.watch(uplink);
    mesh.adopt(host, number, &[inside], link);
    Ok(nat)
}

fn endpoint(node: &Node, other: &Node) -> Option<SocketAddr> {
    let peer = node.peer_status(other).ok()?;
    peer["endpoint"].as_str()?.parse().ok()
}

/// Topology: node1 on the first subnet; node2 at 10.0.0.1 behind a NAT router at 192.0.2.102. Node1
/// learns where node2 is from its packets.
#[test]
fn a_nat_mapping_that_changes_its_port_is_followed_and_not_reset() -> Result<()> {
    require!();
    let mut mesh = Mesh::start("remap", 1)?;
    let nat = behind_nat(&mut mesh, 2, "10.0.0.1", "192.0.2.102")?;
    mesh.node_mut(2).start()?;
    mesh.wait_connected(LIMIT)?;
    let (node1, node2) = (mesh.node(1), mesh.node(2));
    let (a, b) = (node1.attach("a")?, node2.attach("b")?);
    let capture = mesh.capture(&[])?;
    let probe = Probe::start(&b.pod, &a.pod, &a.v4, PROBE_INTERVAL)?;
    wait_back(&a.pod, &[&b.v4], LIMIT)?;
    let mut last = endpoint(node1, node2);
    for _ in 0..2 {
        nat.remap()?;
        let back = wait_back(&a.pod, &[&b.v4, &b.v6], BACK)?;
        println!("traffic is back {back:?} after the mapping changed");
        last = poll_for(LIMIT, "the new mapping to be learned", || {
            let learned = endpoint(node1, node2)?;
            let is_new = Some(learned) != last && learned.ip().to_string() == "192.0.2.102";
            is_new.then_some(Some(learned))
        })?;
    }
    // The agent looks at everything twice, and leaves what was learned.
    std::thread::sleep(RECONCILES);
    assert_eq!(endpoint(node1, node2), last);
    assert_eq!(
        node1.peer_status(node2)?["published_endpoint"],
        "10.0.0.1:51871"
    );
    for node in [node1, node2] {
        wait_well(node, LIMIT)?;
    }
    let seen = probe.stop()?;
    println!("{seen:?}");
    assert!(seen.longest_gap < BACK, "{seen:?}");
    assert_captured(capture, 500);
    Ok(())
}

/// Topology: node1 and node2 are both 10.0.0.1, each behind a NAT router that forwards UDP port
/// 51871 to it: 192.0.2.101 and 192.0.2.102. Node4 is on the subnet between them.
#[test]
fn sites_with_the_same_private_range_meet_by_force_endpoint() -> Result<()> {
    require!();
    let mut mesh = Mesh::underlay("sites")?;
    for (number, outside) in [(1, "192.0.2.101"), (2, "192.0.2.102")] {
        let nat = behind_nat(&mut mesh, number, "10.0.0.1", outside)?;
        nat.sh("nft 'add table ip forward-in; \
             add chain ip forward-in in { type nat hook prerouting priority dstnat; }; \
             add rule ip forward-in in iifname wan udp dport 51871 dnat to 10.0.0.1:51871'")?;
        // What an operator sets, before the node's first start.
        let record = json!({
            "name": format!("node{number}"),
            "annotations": { "warren.network/force-endpoint": format!("{outside}:51871") },
        });
        let path = mesh.registry().join(format!("node{number}.json"));
        std::fs::write(path, record.to_string())?;
    }
    mesh.add_node(4)?;
    for number in [1, 2, 4] {
        mesh.node_mut(number).start()?;
    }
    mesh.wait_connected(LIMIT)?;
    let (node1, node2, node4) = (mesh.node(1), mesh.node(2), mesh.node(4));
    let (a, b, c) = (node1.attach("a")?, node2.attach("b")?, node4.attach("c")?);
    let capture = mesh.capture(&[])?;
    let probe = Probe::start(&a.pod, &b.pod, &b.v6, PROBE_INTERVAL)?;
    for (from, to) in [(&a, &b), (&b, &a), (&a, &c), (&c, &b), (&b, &c)] {
        wait_back(&from.pod, &[&to.v4, &to.v6], LIMIT)?;
    }
    transfer(&a.pod, &b.pod, &b.v4, 4 << 20)?;
    // What the operator set stays through restarts of the agent.
    mesh.node_mut(1).agent.take().unwrap().kill();
    mesh.node_mut(1).start_agent()?;
    let node1 = mesh.node(1);
    poll_until(LIMIT, "the agent to be back", || {
        node1.status().is_ok_and(|status| status["synced"] == true)
    })?;
    let path = mesh.registry().join("node1.json");
    let record: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let annotations = &record["annotations"];
    assert_eq!(
        annotations["warren.network/force-endpoint"],
        "192.0.2.101:51871"
    );
    assert_eq!(annotations["warren.network/endpoint"], "10.0.0.1:51871");
    let peer = mesh.node(2).peer_status(mesh.node(1))?;
    assert_eq!(peer["published_endpoint"], "192.0.2.101:51871");
    for node in &mesh.nodes {
        let status = node.status()?;
        assert!(
            status["rejected"].as_array().is_some_and(Vec::is_empty),
            "{status}"
        );
        wait_well(node, LIMIT)?;
    }
    let seen = probe.stop()?;
    assert!(seen.sent - seen.received <= seen.sent / 10, "{seen:?}");
    assert_captured(capture, 300);
    Ok(())
}
