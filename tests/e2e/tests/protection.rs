//! Never in clear, and never accepted in clear.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use warren_e2e::{MARKER, Mesh, ping};
use warren_lab::{ClearTextRules, Space, Tap, bin, require};

/// Sends five marked datagrams that expect no answer.
fn send_marked(from: &Space, to: &str, source: Option<&str>) -> Result<()> {
    let target = std::net::SocketAddr::new(to.parse()?, 9).to_string();
    let mut command = Command::new(bin("lab-tool")?);
    command.args([
        "udp-ping",
        &target,
        "--count",
        "5",
        "--interval-ms",
        "5",
        "--wait-ms",
        "50",
    ]);
    command.args(["--marker", MARKER]);
    if let Some(source) = source {
        command.args([
            "--from",
            &std::net::SocketAddr::new(source.parse()?, 0).to_string(),
        ]);
    }
    from.output(&mut command, Duration::from_secs(5))?;
    Ok(())
}

/// How many marked packets pass a place while `work` runs.
fn marked_packets(mesh: &Mesh, tap: Tap, work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let rules = ClearTextRules {
        marker: MARKER.into(),
        ..ClearTextRules::default()
    };
    let capture = mesh.lab.capture(&[tap], rules)?;
    work()?;
    Ok(capture.stop().clear_text().frames)
}

#[test]
fn a_pod_of_an_unknown_node_is_unreachable_and_not_in_clear() -> Result<()> {
    require!();
    let mesh = Mesh::start("unknown", 2)?;
    let pod = mesh.node(2).attach("a")?;
    let capture = mesh.capture(&[])?;
    for address in ["10.244.77.5", "fd00:244:0:77::5"] {
        let out = pod
            .pod
            .try_run(&["ping", "-n", "-c2", "-i0.1", "-W1", address])?;
        assert!(!out.success());
        let text = out.stdout.to_lowercase();
        assert!(
            text.contains("unreachable") || text.contains("no route"),
            "{text}"
        );
        assert_eq!(
            ping(&mesh.node(2).host, address, 1).map_or(0, |p| p.received),
            0
        );
    }
    capture.stop().assert_clean();
    Ok(())
}

#[test]
fn protection_outlives_both_daemons_and_the_interface() -> Result<()> {
    require!();
    let mut mesh = Mesh::start("outlive", 3)?;
    let (a, b) = (mesh.node(2).attach("a")?, mesh.node(3).attach("b")?);
    let capture = mesh.capture(&[])?;
    let node = mesh.node_mut(2);
    node.agent.take().unwrap().kill();
    node.tunnel.take().unwrap().kill();
    let node = mesh.node(2);
    for step in ["true", "ip link set warren0 down", "ip link delete warren0"] {
        node.host.sh(step)?;
        for address in [
            b.v4.as_str(),
            b.v6.as_str(),
            "198.51.100.3",
            "2001:db8:b::3",
        ] {
            send_marked(&a.pod, address, None)?;
        }
    }
    capture.stop().assert_clean();
    Ok(())
}

#[test]
fn a_pod_reaches_another_nodes_address_by_the_tunnel_or_not_at_all() -> Result<()> {
    require!();
    let mut mesh = Mesh::start("pod-to-node", 3)?;
    let pod = mesh.node(2).attach("a")?;
    let send = || {
        ["198.51.100.3", "2001:db8:b::3"]
            .iter()
            .try_for_each(|address| send_marked(&pod.pod, address, None))
    };
    // Another program flushes what is not its own, and nothing repairs it.
    let agent = mesh.node_mut(2).agent.take().unwrap();
    agent.signal(warren_lab::Signal::SIGSTOP);
    let node = mesh.node(2);
    let capture = mesh.capture(&[])?;
    for step in [
        "while ip rule del pref 5187; do :; done; while ip -6 rule del pref 5187; do :; done",
        "ip route flush table 51871; ip -6 route flush table 51871",
        "ip route flush proto 151; ip -6 route flush proto 151",
    ] {
        node.host.sh(step)?;
        send()?;
    }
    capture.stop().assert_clean();
    // The positive control: without the filter the same packets leave in clear.
    agent.kill();
    node.host.sh("nft delete table inet warren")?;
    let leaked = marked_packets(&mesh, node.host.tap("eth0"), send)?;
    assert!(leaked > 0);
    Ok(())
}

#[test]
fn clear_text_from_the_underlay_is_not_delivered_to_a_pod() -> Result<()> {
    require!();
    let mesh = Mesh::start("inject", 2)?;
    let node = mesh.node(2);
    let pod = node.attach("victim")?;
    let veth = pod.host_interface().unwrap().to_owned();
    // The router plays a pod of node1, and an outsider that knows the pod's address.
    mesh.router.sh(
        "ip addr add 10.244.1.77/32 dev lo; ip addr add fd00:244:0:1::77/128 dev lo nodad
         ip route add 10.244.2.0/24 via 192.0.2.2; ip route add fd00:244:0:2::/64 via 2001:db8:a::2",
    )?;
    let cases = [
        (&pod.v4, Some("10.244.1.77")),
        (&pod.v6, Some("fd00:244:0:1::77")),
        (&pod.v4, Some("192.0.2.254")),
        (&pod.v6, Some("2001:db8:a::ff")),
    ];
    let delivered = marked_packets(&mesh, node.host.tap(&veth), || {
        cases
            .iter()
            .try_for_each(|(to, source)| send_marked(&mesh.router, to, *source))
    })?;
    assert_eq!(delivered, 0);
    let drops = node.status()?["filter_drops"].to_string();
    assert!(drops.chars().any(|c| ('1'..='9').contains(&c)), "{drops}");
    // The positive control: without the agent and the filter the same packets arrive.
    node.agent.as_ref().unwrap().kill();
    node.host.sh("nft delete table inet warren")?;
    let delivered = marked_packets(&mesh, node.host.tap(&veth), || {
        cases
            .iter()
            .try_for_each(|(to, source)| send_marked(&mesh.router, to, *source))
    })?;
    assert!(delivered >= 20, "{delivered}");
    Ok(())
}

#[test]
fn a_pod_cannot_send_from_an_address_that_is_not_its_own() -> Result<()> {
    require!();
    let mesh = Mesh::start("forge", 2)?;
    let node = mesh.node(2);
    let (liar, neighbour) = (node.attach("liar")?, node.attach("neighbour")?);
    let veth = neighbour.host_interface().unwrap().to_owned();
    let foreign = ["10.244.2.200", "10.244.1.5", "192.0.2.2"];
    let foreign_v6 = ["fd00:244:0:2::200", "fd00:244:0:1::5", "2001:db8:a::2"];
    for address in foreign.iter().chain(&foreign_v6) {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        liar.pod
            .sh(&format!("ip addr add {address} dev lo {nodad}"))?;
    }
    let send = |sources: &[&str], to: &str| {
        sources
            .iter()
            .try_for_each(|source| send_marked(&liar.pod, to, Some(source)))
    };
    let delivered = marked_packets(&mesh, node.host.tap(&veth), || {
        send(&foreign, &neighbour.v4)?;
        send(&foreign_v6, &neighbour.v6)
    })?;
    assert_eq!(delivered, 0);
    // The positive control: its own addresses pass.
    let delivered = marked_packets(&mesh, node.host.tap(&veth), || {
        send(&[&liar.v4], &neighbour.v4)?;
        send(&[&liar.v6], &neighbour.v6)
    })?;
    // Each of the ten may come back quoted in an ICMP error.
    assert!(delivered >= 10, "{delivered}");
    Ok(())
}

#[test]
fn a_pod_is_refused_while_the_node_is_not_protected() -> Result<()> {
    require!();
    let mesh = Mesh::start("unprotected", 1)?;
    let node = mesh.node(1);
    node.agent
        .as_ref()
        .unwrap()
        .signal(warren_lab::Signal::SIGSTOP);
    node.host.sh("nft flush chain inet warren egress")?;
    let refused = node.attach("early").unwrap_err().to_string();
    assert!(
        refused.contains("\"code\":11") || refused.contains("\"code\": 11"),
        "{refused}"
    );
    let links = node
        .host
        .sh("ip -br link; ip route show proto 152; ip -6 route show proto 152")?;
    assert!(!links.stdout.contains("wrn"), "{}", links.stdout);
    node.agent
        .as_ref()
        .unwrap()
        .signal(warren_lab::Signal::SIGCONT);
    let mut refused = String::new();
    let attached = warren_lab::poll_for(Duration::from_secs(10), "a pod to be accepted", || {
        node.attach("late")
            .map_err(|e| refused = e.to_string())
            .ok()
    });
    assert!(attached.is_ok(), "{refused}");
    Ok(())
}
