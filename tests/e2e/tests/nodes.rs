//! Nodes that come back changed, and nodes that claim what others have: with traffic running, and
//! every cable of the underlay watched. That the check of the captures can fail is shown in
//! connectivity.rs.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use warren_e2e::{Mesh, MeshPod, Node, Probe, ping, wait_back};
use warren_keyring::PrivateKey;
use warren_lab::{Capture, poll_until, require};

/// Long enough for a slow, shared machine.
const LIMIT: Duration = Duration::from_secs(60);
const PROBE_INTERVAL: Duration = Duration::from_millis(20);

/// Both directions and both families.
fn reach_each_other(a: &MeshPod, b: &MeshPod) -> bool {
    let pairs = [(a, &b.v4), (b, &a.v4), (a, &b.v6), (b, &a.v6)];
    pairs
        .iter()
        .all(|(from, to)| ping(&from.pod, to, 1).is_ok_and(|p| p.lossless()))
}

fn wait_reach(what: &str, a: &MeshPod, b: &MeshPod) -> Result<()> {
    poll_until(LIMIT, what, || reach_each_other(a, b))?;
    Ok(())
}

fn assert_undisturbed(probe: Probe) -> Result<()> {
    // On a fast machine all else was over before a disturbance could have shown.
    std::thread::sleep(60 * PROBE_INTERVAL);
    let seen = probe.stop()?;
    assert!(seen.sent > 50 && seen.lost() == 0, "{seen:?}");
    Ok(())
}

/// No clear text, and the capture was not blind.
fn assert_encrypted(capture: Capture) {
    let report = capture.stop();
    report.assert_clean();
    assert!(report.wireguard_total().frames > 50);
}

/// The peers, routes, rules and filter of a node, as text.
fn network_of(node: &Node) -> Result<String> {
    let script = "wg showconf warren0; ip route show table all; ip -6 route show table all; \
                  ip rule; nft list table inet warren";
    Ok(node.host.sh(script)?.stdout)
}

/// The reason and message of a node that `node` refuses.
fn refusal(node: &Node, of: &str) -> Option<(String, String)> {
    let status = node.status().ok()?;
    let list = status["rejected"].as_array()?;
    let found = list.iter().find(|r| r["node"] == of)?;
    let text = |key: &str| found[key].as_str().map(str::to_owned);
    Some((text("reason")?, text("message")?))
}

fn is_refused(node: &Node, of: &str, reason: &str) -> bool {
    refusal(node, of).is_some_and(|(found, _)| found == reason)
}

fn problems(node: &Node) -> String {
    node.status()
        .map_or_else(|e| e.to_string(), |s| s["problems"].to_string())
}

/// A node's record as its agent would write it, with a key of its own.
fn record(name: &str, pod_cidr: &str, endpoint: &str) -> Result<Value> {
    let key = PrivateKey::generate()?.public_key().to_base64();
    Ok(json!({
        "name": name, "uid": format!("uid-of-{name}"),
        "podCIDRs": [pod_cidr], "addresses": [],
        "annotations": { "warren.network/public-key": key, "warren.network/endpoint": endpoint },
    }))
}

fn publish(mesh: &Mesh, record: &Value) -> Result<()> {
    let name = record["name"].as_str().unwrap();
    let hidden = mesh.registry().join(format!(".tmp-{name}"));
    std::fs::write(&hidden, record.to_string())?;
    Ok(std::fs::rename(
        hidden,
        mesh.registry().join(format!("{name}.json")),
    )?)
}

/// Topology: node1 and node2 on one subnet, node3 behind the router; a probe between pods of node1
/// and node2 all along. Node3's tunnel comes back with a new key.
#[test]
fn a_node_returns_with_a_new_key() -> Result<()> {
    require!();
    let mut mesh = Mesh::start("new-key", 3)?;
    let (a, b) = (mesh.node(1).attach("a")?, mesh.node(2).attach("b")?);
    let c = mesh.node(3).attach("c")?;
    wait_reach("traffic at the start", &a, &c)?;
    let capture = mesh.capture(&[])?;
    let probe = Probe::start(&a.pod, &b.pod, &b.v4, PROBE_INTERVAL)?;
    let old = mesh.node(3).status()?["public_key"]
        .as_str()
        .unwrap()
        .to_owned();
    mesh.node_mut(3).renew_key()?;
    poll_until(LIMIT, "the new key", || {
        let status = mesh.node(3).status();
        status.is_ok_and(|s| s["public_key"].as_str().is_some_and(|key| key != old))
    })?;
    wait_reach("traffic with the new key, node1", &a, &c)?;
    wait_reach("traffic with the new key, node2", &b, &c)?;
    for number in [1, 2] {
        poll_until(LIMIT, "the old key to be gone", || {
            network_of(mesh.node(number)).is_ok_and(|network| !network.contains(&old))
        })?;
    }
    assert_undisturbed(probe)?;
    assert_encrypted(capture);
    Ok(())
}

/// Topology: as above. Node3's agent comes back with other pod ranges while a pod runs there.
#[test]
fn a_node_returns_with_other_pod_cidrs() -> Result<()> {
    require!();
    let mut mesh = Mesh::start("new-cidr", 3)?;
    let (a, b) = (mesh.node(1).attach("a")?, mesh.node(2).attach("b")?);
    let stranded = mesh.node(3).attach("old")?;
    wait_reach("traffic at the start", &a, &stranded)?;
    let capture = mesh.capture(&[])?;
    let probe = Probe::start(&a.pod, &b.pod, &b.v6, PROBE_INTERVAL)?;
    let node = mesh.node_mut(3);
    node.agent.take().unwrap().kill();
    node.pod_cidrs = ["10.244.33.0/24".into(), "fd00:244:0:33::/64".into()];
    node.start_agent()?;
    let node = mesh.node(3);
    poll_until(LIMIT, "the old range to be gone from the peers", || {
        [1, 2].iter().all(|number| {
            let network = network_of(mesh.node(*number)).unwrap_or_default();
            network.contains("10.244.33.0/24") && !network.contains("10.244.3.0/24")
        })
    })?;
    let fresh = node.attach("new")?;
    assert!(fresh.v4.starts_with("10.244.33.") && fresh.v6.starts_with("fd00:244:0:33:"));
    wait_reach("traffic with the new range, node1", &a, &fresh)?;
    wait_reach("traffic with the new range, node2", &b, &fresh)?;
    wait_reach(
        "traffic between both, which are on this node",
        &stranded,
        &fresh,
    )?;
    // The pod with an address of the old range: nobody reaches it, it still reaches the mesh by the
    // node's own address, and nothing of it leaves the mesh, in clear or otherwise.
    assert_eq!(ping(&a.pod, &stranded.v4, 1)?.received, 0);
    wait_back(&stranded.pod, &[&a.v4, &a.v6], LIMIT)?;
    assert_eq!(ping(&stranded.pod, "192.0.2.254", 1)?.received, 0);
    let expected = format!("pod address {}", stranded.v4);
    poll_until(LIMIT, "the node to tell of its stranded pod", || {
        let told = problems(node);
        told.contains(&expected) && told.contains("make these pods anew")
    })?;
    assert_eq!(node.warren(&["status"])?.0, 1);
    // Made anew, it is a pod like any other, and the trouble is over.
    stranded.detach(node)?;
    poll_until(LIMIT, "the problem to clear", || problems(node) == "[]")?;
    let again = node.attach("old")?;
    wait_reach("traffic of the pod made anew", &a, &again)?;
    assert_undisturbed(probe)?;
    assert_encrypted(capture);
    Ok(())
}

/// Topology: as above. Node2 gets other addresses on its cable, as of a new lease.
#[test]
fn a_node_returns_with_another_address() -> Result<()> {
    require!();
    let mut mesh = Mesh::start("new-address", 3)?;
    let (a, b) = (mesh.node(1).attach("a")?, mesh.node(2).attach("b")?);
    let c = mesh.node(3).attach("c")?;
    wait_reach("traffic at the start", &a, &b)?;
    let capture = mesh.capture(&[])?;
    let probe = Probe::start(&a.pod, &c.pod, &c.v4, PROBE_INTERVAL)?;
    let node = mesh.node_mut(2);
    node.agent.take().unwrap().kill();
    node.host.sh(
        "ip addr del 192.0.2.2/24 dev eth0; ip addr del 2001:db8:a::2/64 dev eth0
         ip addr add 192.0.2.22/24 dev eth0; ip addr add 2001:db8:a::22/64 dev eth0 nodad
         ip route replace default via 192.0.2.254
         ip -6 route replace default via 2001:db8:a::ff",
    )?;
    node.addresses = vec!["2001:db8:a::22".into(), "192.0.2.22".into()];
    node.start_agent()?;
    for number in [1, 3] {
        poll_until(LIMIT, "the new address at the peers", || {
            let network = network_of(mesh.node(number)).unwrap_or_default();
            network.contains("192.0.2.22") && !network.contains("192.0.2.2 ")
        })?;
    }
    wait_reach("traffic by the new address, node1", &a, &b)?;
    wait_reach("traffic by the new address, node3", &c, &b)?;
    // Pods reach the node itself by the tunnel, at its new address.
    for (pod, address) in [(&a, "192.0.2.22"), (&c, "2001:db8:a::22")] {
        wait_back(&pod.pod, &[address], LIMIT)?;
    }
    assert_undisturbed(probe)?;
    assert_encrypted(capture);
    Ok(())
}

/// Topology: node1 and node2 on one subnet, node3 behind the router; node4 joins with a copy of
/// node2's key, and node5 joins when both are there.
#[test]
fn a_machine_with_a_copied_key_disturbs_nobody_and_is_told() -> Result<()> {
    require!();
    let mut mesh = Mesh::start("copied-key", 3)?;
    let (a, b) = (mesh.node(1).attach("a")?, mesh.node(2).attach("b")?);
    let c = mesh.node(3).attach("c")?;
    wait_reach("traffic at the start", &b, &c)?;
    let capture = mesh.capture(&[])?;
    let to_incumbent = Probe::start(&a.pod, &b.pod, &b.v4, PROBE_INTERVAL)?;
    let key = std::fs::read(mesh.node(2).state_dir().join("private.key"))?;
    let copy = mesh.add_node(4)?;
    copy.host
        .sh(&format!("mkdir -m 0700 -p {}", copy.state_dir().display()))?;
    let path = copy.state_dir().join("private.key");
    std::fs::write(&path, key)?;
    copy.host.sh(&format!("chmod 0600 {}", path.display()))?;
    copy.start()?;
    for number in [1, 3] {
        poll_until(LIMIT, "the copy to be refused", || {
            is_refused(mesh.node(number), "node4", "DuplicateKey")
        })?;
        let (_, message) = refusal(mesh.node(number), "node4").unwrap();
        assert!(
            message.contains("is also published by node node2"),
            "{message}"
        );
    }
    poll_until(LIMIT, "node2 to refuse its copy", || {
        is_refused(mesh.node(2), "node4", "DuplicateKey")
    })?;
    poll_until(LIMIT, "node4 to say that it is a copy", || {
        let told = problems(mesh.node(4));
        told.contains("the other nodes refuse this one") && told.contains("cloned")
    })?;
    // Agents that restart keep what they know, with and without the registry.
    let away = mesh.lab.dir().join("away");
    for registry_is_away in [false, true] {
        if registry_is_away {
            std::fs::rename(mesh.registry(), &away)?;
        }
        for number in [1, 2, 4] {
            let node = mesh.node_mut(number);
            node.agent.take().unwrap().kill();
            node.start_agent()?;
        }
        poll_until(LIMIT, "the agents to be back", || {
            [1, 2, 4].iter().all(|number| {
                let status = mesh.node(*number).status();
                status.is_ok_and(|s| s["synced"] == !registry_is_away)
            })
        })?;
        poll_until(LIMIT, "all to say again what they know", || {
            let refused = [1, 2, 3]
                .iter()
                .all(|number| is_refused(mesh.node(*number), "node4", "DuplicateKey"));
            refused && problems(mesh.node(4)).contains("the other nodes refuse this one")
        })?;
    }
    std::fs::rename(&away, mesh.registry())?;
    wait_reach("traffic of the incumbent, node3", &b, &c)?;
    wait_reach("traffic of the incumbent, node1", &a, &b)?;
    // Whoever knew neither before grants the key to neither.
    mesh.add_node(5)?.start()?;
    poll_until(LIMIT, "both to be refused by who knew neither", || {
        ["node2", "node4"]
            .iter()
            .all(|name| is_refused(mesh.node(5), name, "DuplicateKey"))
    })?;
    assert_undisturbed(to_incumbent)?;
    // With a key of its own the copy is a node like any other, and node2 is believed everywhere.
    let copy = mesh.node_mut(4);
    copy.tunnel.take().unwrap().kill();
    std::fs::remove_file(&path)?;
    copy.start_tunnel()?;
    mesh.wait_connected(LIMIT)?;
    let d = mesh.node(4).attach("d")?;
    wait_reach("traffic of the former copy", &d, &b)?;
    poll_until(LIMIT, "node4 to have no problem", || {
        problems(mesh.node(4)) == "[]"
    })?;
    assert_encrypted(capture);
    Ok(())
}

/// Topology: node1 and node2 on one subnet, node3 behind the router; node4 is configured with
/// node2's pod ranges, and others are records without a machine.
#[test]
fn ranges_and_endpoints_stay_with_the_incumbent_and_go_to_nobody_without_one() -> Result<()> {
    require!();
    let mut mesh = Mesh::start("claims", 3)?;
    let (a, b) = (mesh.node(1).attach("a")?, mesh.node(2).attach("b")?);
    let capture = mesh.capture(&[])?;
    let probe = Probe::start(&a.pod, &b.pod, &b.v6, PROBE_INTERVAL)?;
    let cidrs = mesh.node(2).pod_cidrs();
    let thief = mesh.add_node(4)?;
    thief.pod_cidrs = cidrs;
    thief.start()?;
    // A part of node3's range; node3's endpoint.
    publish(
        &mesh,
        &record("part", "10.244.3.128/25", "192.0.2.90:51871")?,
    )?;
    publish(
        &mesh,
        &record("same-endpoint", "10.244.91.0/24", "198.51.100.3:51871")?,
    )?;
    let expected = [
        ("node4", "PodCIDROverlap", "of node node2"),
        (
            "part",
            "PodCIDROverlap",
            "podCIDR 10.244.3.128/25 overlaps 10.244.3.0/24 of node node3",
        ),
        (
            "same-endpoint",
            "EndpointConflict",
            "is also published by node node3",
        ),
    ];
    let all_refused = |mesh: &Mesh| {
        let node = mesh.node(1);
        let told = |(name, reason, message): &(&str, &str, &str)| {
            refusal(node, name)
                .is_some_and(|(found, text)| found == *reason && text.contains(message))
        };
        expected.iter().all(told)
    };
    poll_until(LIMIT, "the claims to be refused", || all_refused(&mesh))?;
    poll_until(LIMIT, "the newcomer to be told", || {
        problems(mesh.node(4)).contains("give this node podCIDRs of its own")
    })?;
    let away = mesh.lab.dir().join("away");
    for registry_is_away in [false, true] {
        if registry_is_away {
            std::fs::rename(mesh.registry(), &away)?;
        }
        let node = mesh.node_mut(1);
        node.agent.take().unwrap().kill();
        node.start_agent()?;
        poll_until(LIMIT, "the same after a restart", || {
            let status = mesh.node(1).status();
            status.is_ok_and(|s| s["synced"] == !registry_is_away) && all_refused(&mesh)
        })?;
    }
    std::fs::rename(&away, mesh.registry())?;
    wait_reach("traffic of the incumbent", &a, &b)?;
    // Without an incumbent it is nobody's: node1 has heard of none of these before.
    let node = mesh.node_mut(1);
    node.agent.take().unwrap().kill();
    let newcomers = [
        (
            "range-a",
            "10.244.97.0/24",
            "192.0.2.97:51871",
            "PodCIDROverlap",
        ),
        (
            "range-b",
            "10.244.97.0/25",
            "192.0.2.98:51871",
            "PodCIDROverlap",
        ),
        (
            "endpoint-a",
            "10.244.98.0/24",
            "192.0.2.99:51871",
            "EndpointConflict",
        ),
        (
            "endpoint-b",
            "10.244.99.0/24",
            "192.0.2.99:51871",
            "EndpointConflict",
        ),
    ];
    for (name, range, endpoint, _) in newcomers {
        publish(&mesh, &record(name, range, endpoint)?)?;
    }
    mesh.node_mut(1).start_agent()?;
    poll_until(LIMIT, "all newcomers to be refused", || {
        let refused =
            |(name, _, _, reason): &(&str, _, _, &str)| is_refused(mesh.node(1), name, reason);
        newcomers.iter().all(refused)
    })?;
    let network = network_of(mesh.node(1))?;
    assert!(
        !newcomers
            .iter()
            .any(|(_, range, ..)| network.contains(range))
    );
    // One of each pair goes, and the other is alone with its claim.
    for name in ["range-a", "endpoint-a"] {
        std::fs::remove_file(mesh.registry().join(format!("{name}.json")))?;
    }
    poll_until(
        LIMIT,
        "the remaining ones to be granted their claims",
        || {
            let network = network_of(mesh.node(1)).unwrap_or_default();
            network.contains("10.244.97.0/25") && network.contains("10.244.99.0/24")
        },
    )?;
    assert_undisturbed(probe)?;
    assert_encrypted(capture);
    Ok(())
}
