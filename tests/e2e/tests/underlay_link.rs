//! Cables that come out, addresses that change, and MTUs: traffic runs all along.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use warren_e2e::{Mesh, Node, Probe, assert_captured, ping, wait_back, wait_degraded, wait_well};
use warren_lab::{poll_until, require};

/// In so long a fault must be told.
const TOLD: Duration = Duration::from_secs(20);
/// Long enough for all else on a slow, shared machine.
const LIMIT: Duration = Duration::from_secs(60);
/// A retry of the handshake, and slack for a shared machine.
const BACK: Duration = Duration::from_secs(30);
const PROBE_INTERVAL: Duration = Duration::from_millis(50);

/// Topology: node1 and node2 on one subnet, node3 behind the router; probes between the pods of
/// node1 and node2. Node1's cable is taken out; then its device is switched off and on, with all
/// routes lost, as `ip link set` and an operator's slip would have it.
#[test]
fn a_link_that_goes_down_is_told_and_traffic_is_back_when_it_is_up() -> Result<()> {
    require!();
    let mesh = Mesh::start("linkdown", 3)?;
    let (node1, node2) = (mesh.node(1), mesh.node(2));
    let (a, b) = (node1.attach("a")?, node2.attach("b")?);
    let capture = mesh.capture(&[])?;
    let probe = Probe::start(&b.pod, &a.pod, &a.v4, PROBE_INTERVAL)?;
    let keys = session_keys(node2)?;

    node1.link.down()?;
    let took = wait_degraded(node1, node2, &["link-down"], TOLD)?;
    println!("a cable that is out is told after {took:?}");
    let status = node1.status()?;
    assert_eq!(status["degraded"][0]["reason"], "link-down");
    wait_degraded(node2, node1, &["no-answer"], TOLD)?;
    // The others are not touched.
    assert!(ping(&b.pod, &mesh.node(3).tunnel_addresses()[0], 2)?.lossless());
    node1.link.restore()?;
    let back = wait_back(&b.pod, &[&a.v4, &a.v6], BACK)?;
    println!("traffic is back {back:?} after the cable");
    for node in [node1, node2] {
        wait_well(node, LIMIT)?;
    }

    node1.host.sh("ip link set eth0 down")?;
    wait_degraded(node1, node2, &["no-route", "link-down"], TOLD)?;
    node1
        .host
        .sh("ip link set eth0 up && ip route replace default via 192.0.2.254")?;
    let back = wait_back(&b.pod, &[&a.v4, &a.v6], BACK)?;
    println!("traffic is back {back:?} after the device");
    for node in [node1, node2] {
        wait_well(node, LIMIT)?;
    }
    assert_eq!(session_keys(node2)?, keys, "no peer was taken away");
    let seen = probe.stop()?;
    assert!(seen.received > 20, "{seen:?}");
    assert_captured(capture, 100);
    Ok(())
}

fn session_keys(node: &Node) -> Result<Vec<String>> {
    let status = node.status()?;
    let peers = status["peers"].as_array().cloned().unwrap_or_default();
    Ok(peers.iter().map(|p| p["public_key"].to_string()).collect())
}

/// Topology: node1 and node2 on one subnet; node2's agent finds its address out. The address
/// changes as by a new DHCP lease, while probes run in both directions.
#[test]
fn a_changed_address_is_published_and_followed() -> Result<()> {
    require!();
    let mut mesh = Mesh::start("dhcp", 1)?;
    let host = mesh.lab.host("node2")?;
    let end = host.end("eth0").addr("192.0.2.20/24").via("192.0.2.254");
    let link = mesh.lab.connect(end, mesh.lan_a_port())?;
    mesh.adopt(host, 2, &[], link).start()?;
    mesh.wait_connected(LIMIT)?;
    let (node1, node2) = (mesh.node(1), mesh.node(2));
    let (a, b) = (node1.attach("a")?, node2.attach("b")?);
    let capture = mesh.capture(&[])?;
    let there = Probe::start(&a.pod, &b.pod, &b.v4, PROBE_INTERVAL)?;

    // Both families of pods, and each end as the one that speaks.
    for (address, old) in [("192.0.2.77", "192.0.2.20"), ("192.0.2.99", "192.0.2.77")] {
        node2.host.sh(&format!(
            "ip address del {old}/24 dev eth0; ip address add {address}/24 dev eth0 && \
             ip route replace default via 192.0.2.254"
        ))?;
        let back = wait_back(&a.pod, &[&b.v4, &b.v6], BACK)?;
        println!("traffic is back {back:?} after the address changed to {address}");
        wait_back(&b.pod, &[&a.v4, &a.v6], BACK)?;
        let endpoint = format!("{address}:51871");
        poll_until(LIMIT, "the new endpoint to be published", || {
            let published = node1
                .peer_status(node2)
                .map(|p| p["published_endpoint"].clone());
            published.is_ok_and(|published| published == *endpoint)
        })?;
        let record: Value =
            serde_json::from_str(&node2.read(&mesh.registry().join("node2.json"))?)?;
        assert_eq!(record["annotations"]["warren.network/endpoint"], *endpoint);
        poll_until(LIMIT, "the new endpoint to be used", || {
            let peer = node1.peer_status(node2);
            peer.is_ok_and(|peer| peer["endpoint"] == *endpoint)
        })?;
        // A pod of node1 reaches the node itself at its new address, by the tunnel.
        wait_back(&a.pod, &[address], LIMIT)?;
    }
    for node in [node1, node2] {
        wait_well(node, LIMIT)?;
    }
    let seen = there.stop()?;
    println!("{seen:?}");
    assert!(seen.longest_gap < BACK, "{seen:?}");
    assert_captured(capture, 100);
    Ok(())
}
