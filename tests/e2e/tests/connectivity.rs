//! Who reaches whom, by which way, and what the underlay sees of it.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use warren_e2e::{MARKER, Mesh, MeshPod, ping, ping_each, transfer};
use warren_lab::{Allow, Family, Space, bin, poll_until, require};

const TRANSFER_BYTES: u64 = 2 << 20;
/// Long enough for a slow, shared machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Two pods on each of three nodes; the topology is drawn in the crate's documentation.
fn mesh_with_pods(name: &str) -> Result<(Mesh, Vec<MeshPod>)> {
    let mesh = Mesh::start(name, 3)?;
    let mut pods = Vec::new();
    for node in &mesh.nodes {
        for pod in ["a", "b"] {
            pods.push(node.attach(pod)?);
        }
    }
    Ok((mesh, pods))
}

fn assert_all_reached(pairs: &[(&MeshPod, &str)]) -> Result<()> {
    let spaces: Vec<(&Space, &str)> = pairs.iter().map(|(pod, a)| (&*pod.pod, *a)).collect();
    for ((from, address), seen) in pairs.iter().zip(ping_each(&spaces, 2)?) {
        assert!(seen.lossless(), "{} to {address}: {seen:?}", from.name);
    }
    Ok(())
}

#[test]
fn every_pod_reaches_every_pod_in_both_families_and_nothing_is_in_clear() -> Result<()> {
    require!();
    let (mesh, pods) = mesh_with_pods("matrix")?;
    let capture = mesh.capture(&[])?;
    let mut pairs = Vec::new();
    for from in &pods {
        for to in &pods {
            pairs.extend(to.addresses().map(|address| (from, address)));
        }
    }
    assert_all_reached(&pairs)?;
    // One pod of each node to one of every node, its own included: TCP, no NAT in between.
    for from in pods.iter().filter(|p| p.name.ends_with("/a")) {
        for to in pods.iter().filter(|p| p.name.ends_with("/b")) {
            for (address, own) in to.addresses().into_iter().zip(from.addresses()) {
                let done = transfer(&from.pod, &to.pod, address, TRANSFER_BYTES)?;
                assert_eq!(
                    done.seen_by_server.to_string(),
                    own,
                    "{} to {}",
                    from.name,
                    to.name
                );
            }
        }
    }
    let report = capture.stop();
    report.assert_clean();
    // Not frames, of which a fast machine makes few large ones. In IPv6 outside are four transfers.
    for family in [Family::V4, Family::V6] {
        let bytes = report.wireguard_of(family).bytes;
        assert!(bytes > 4 * TRANSFER_BYTES, "{report}");
    }
    for (a, b, ipv6) in [(1, 2, false), (1, 3, false), (2, 3, true)] {
        let (a, b) = (mesh.node(a), mesh.node(b));
        for (from, to) in [(a, b), (b, a)] {
            let peer = from.peer_status(to)?;
            let endpoint: std::net::SocketAddr = peer["endpoint"].as_str().unwrap().parse()?;
            assert_eq!(
                endpoint.is_ipv6(),
                ipv6,
                "{} to {}: {endpoint}",
                from.name(),
                to.name()
            );
        }
    }
    Ok(())
}

#[test]
fn the_clear_text_check_sees_what_leaks_once_protection_is_gone() -> Result<()> {
    require!();
    let (mut mesh, pods) = mesh_with_pods("control")?;
    // Without its agent to repair it, take away the filter and send a pod's packets by the router.
    mesh.node_mut(1).agent.take().unwrap().kill();
    let node = mesh.node(1);
    node.host.sh(
        "nft delete table inet warren; ip route replace 10.244.3.0/24 via 192.0.2.254 table 51871 metric 1",
    )?;
    let capture = mesh.capture(&[])?;
    let mut send = Command::new(bin("lab-tool")?);
    let to = format!("{}:9", pods[4].v4);
    send.args([
        "udp-ping",
        &to,
        "--count",
        "5",
        "--interval-ms",
        "10",
        "--wait-ms",
        "50",
    ]);
    pods[0].pod.output(send.args(["--marker", MARKER]), LIMIT)?;
    let report = capture.stop();
    assert!(report.clear_text().frames >= 5, "{report}");
    assert!(report.check().is_err());
    // And once the agent is back, so is the protection.
    mesh.node_mut(1).start_agent()?;
    let node = mesh.node(1);
    poll_until(LIMIT, "the filter to be back", || {
        node.host.sh("nft list table inet warren").is_ok()
    })?;
    poll_until(LIMIT, "the detour to be gone", || {
        let table = node.host.sh("ip route show table 51871");
        table.is_ok_and(|table| !table.stdout.contains("192.0.2.254"))
    })?;
    let capture = mesh.capture(&[])?;
    assert!(ping(&pods[0].pod, &pods[4].v4, 3)?.lossless());
    capture.stop().assert_clean();
    Ok(())
}

#[test]
fn pods_and_nodes_reach_each_other_through_the_tunnel_both_ways() -> Result<()> {
    require!();
    let (mesh, pods) = mesh_with_pods("nodes")?;
    // Echo is not on the capture's list: in clear between pod and node it would be an offence.
    let capture = mesh.capture(&[])?;
    for node in &mesh.nodes {
        let addresses = [&node.addresses[..], &node.tunnel_addresses()].concat();
        let mut pairs: Vec<(&MeshPod, &str)> = Vec::new();
        for pod in &pods {
            pairs.extend(addresses.iter().map(|address| (pod, address.as_str())));
        }
        assert_all_reached(&pairs)?;
        let back: Vec<(&Space, &str)> = pods
            .iter()
            .flat_map(|pod| pod.addresses())
            .map(|a| (&*node.host, a))
            .collect();
        for ((_, address), seen) in back.iter().zip(ping_each(&back, 2)?) {
            assert!(seen.lossless(), "{} to {address}: {seen:?}", node.name());
        }
    }
    // A host-network server on another node sees the pod itself.
    let (pod, node) = (&pods[0], mesh.node(3));
    let done = transfer(&pod.pod, &node.host, "198.51.100.3", TRANSFER_BYTES)?;
    assert_eq!(done.seen_by_server.to_string(), pod.v4);
    // A pod sees the node behind a node's own connection as its tunnel address.
    let done = transfer(&node.host, &pod.pod, &pod.v6, TRANSFER_BYTES)?;
    assert_eq!(done.seen_by_server.to_string(), node.tunnel_addresses()[1]);
    capture.stop().assert_clean();
    Ok(())
}

#[test]
fn what_leaves_the_mesh_has_the_nodes_address() -> Result<()> {
    require!();
    let (mesh, pods) = mesh_with_pods("outside")?;
    let pod = &pods[2]; // on node2, which has both families
    for (outside, node) in [
        ("192.0.2.254", "192.0.2.2"),
        ("2001:db8:a::ff", "2001:db8:a::2"),
    ] {
        let done = transfer(&pod.pod, &mesh.router, outside, TRANSFER_BYTES)?;
        assert_eq!(done.seen_by_server.to_string(), node);
    }
    // The payload is in clear there, as SECURITY.md says; a pod's address still must not be.
    let capture = mesh.capture(&[Allow::IcmpEcho])?;
    for outside in ["192.0.2.254", "2001:db8:a::ff"] {
        assert!(ping(&pod.pod, outside, 3)?.lossless());
    }
    capture.stop().assert_clean();
    Ok(())
}

#[test]
fn a_detached_pod_is_gone_and_its_address_is_not_given_at_once_again() -> Result<()> {
    require!();
    let mesh = Mesh::start("detach", 2)?;
    let node = mesh.node(1);
    let first = node.attach("first")?;
    let veth = first.host_interface().unwrap().to_owned();
    let (v4, v6) = (first.v4.clone(), first.v6.clone());
    first.detach(node)?;
    assert!(node.host.sh(&format!("ip link show {veth}")).is_err());
    let second = node.attach("second")?;
    assert_ne!((second.v4.clone(), second.v6.clone()), (v4, v6));
    let other = mesh.node(2).attach("other")?;
    let seen = ping(&other.pod, &second.v4, 3)?;
    assert!(seen.lossless(), "{seen:?}");
    Ok(())
}
