//! Underlays whose packets get smaller and larger, with and without a word about it.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_e2e::{
    Mesh, Node, Probe, assert_captured, transfer, wait_back, wait_degraded, wait_well,
};
use warren_lab::{Family, Host, poll_until, require};

const LIMIT: Duration = Duration::from_secs(60);
const PROBE_INTERVAL: Duration = Duration::from_millis(50);

/// The MTU of the routes to a peer's pod ranges, IPv4 first, and of `warren0`.
fn mtus(node: &Node, other: &Node) -> Result<[u32; 3]> {
    let [v4, v6] = other.pod_cidrs();
    let number = |text: String, word: &str| -> Result<u32> {
        let mut words = text.split_whitespace();
        let found = words.by_ref().find(|w| *w == word).and(words.next());
        Ok(found
            .with_context(|| format!("no {word} in {text}"))?
            .parse()?)
    };
    let show = |command: String| Ok::<_, anyhow::Error>(node.host.sh(&command)?.stdout);
    Ok([
        number(show(format!("ip route show {v4} dev warren0"))?, "mtu")?,
        number(show(format!("ip -6 route show {v6} dev warren0"))?, "mtu")?,
        number(show("ip link show warren0".to_owned())?, "mtu")?,
    ])
}

/// Waits until a node has its addresses and routes.
fn wait_addressed(node: &Node, other: &Node) -> Result<()> {
    let mut seen = Ok(());
    let waited = poll_until(LIMIT, "addresses and routes", || {
        seen = check_addressed(node, other);
        seen.is_ok()
    });
    waited.map(drop).map_err(|e| match seen {
        Err(trouble) => trouble.context(e.to_string()),
        Ok(()) => e.into(),
    })
}

/// `warren0` has both its addresses, and the routes of both families lead into it.
fn check_addressed(node: &Node, other: &Node) -> Result<()> {
    let shown = node.host.sh("ip address show dev warren0")?.stdout;
    for address in node.tunnel_addresses() {
        ensure!(
            shown.contains(&format!(" {address}/")),
            "{address} is not in\n{shown}"
        );
    }
    let peer = other.tunnel_addresses();
    for (address, family) in [(&peer[0], "-4"), (&peer[1], "-6")] {
        let way = node
            .host
            .sh(&format!("ip {family} route get {address}"))?
            .stdout;
        ensure!(way.contains("dev warren0"), "{way}");
    }
    Ok(())
}

/// Topology: node1 and node2 on one subnet (IPv4 outside, for node1 has no IPv6); the whole
/// underlay's MTU goes from 1500 to 1280, to 9000 and back.
#[test]
fn routes_follow_the_underlays_mtu_down_and_up() -> Result<()> {
    require!();
    let mesh = Mesh::start("mtu", 3)?;
    let (node1, node2, node3) = (mesh.node(1), mesh.node(2), mesh.node(3));
    let (a, b, c) = (node1.attach("a")?, node2.attach("b")?, node3.attach("c")?);
    let capture = mesh.capture(&[])?;
    let probe = Probe::start(&a.pod, &b.pod, &b.v4, PROBE_INTERVAL)?;
    assert_eq!(mtus(node1, node2)?, [1440; 3]);
    assert_eq!(mtus(node2, node3)?, [1420, 1420, 1440]);
    for (underlay, v4_pair, v6_pair) in [(1280, 1280, 1280), (9000, 8940, 8920), (1500, 1440, 1420)]
    {
        for link in mesh.underlay_links() {
            link.set_mtu(underlay)?;
        }
        poll_until(
            LIMIT,
            &format!("the MTUs on an underlay of {underlay}"),
            || {
                let have = |node, other, mtu: u32| {
                    mtus(node, other)
                        .is_ok_and(|[v4, v6, link]| v4 == mtu && v6 == mtu && link >= mtu)
                };
                have(node1, node2, v4_pair)
                    && have(node2, node1, v4_pair)
                    && have(node2, node3, v6_pair)
                    && have(node3, node2, v6_pair)
            },
        )?;
        for (node, other) in [(node1, node2), (node2, node3), (node3, node1)] {
            wait_addressed(node, other)?;
        }
        wait_back(&a.pod, &[&b.v4, &b.v6, &c.v4, &c.v6], LIMIT)?;
        transfer(&a.pod, &b.pod, &b.v4, 2 << 20)?;
        transfer(&b.pod, &c.pod, &c.v6, 2 << 20)?;
        if underlay == 1280 {
            // The smallest inner packet that IPv6 allows does not fit: fragments, and said so.
            wait_degraded(node1, node2, &["path-mtu"], LIMIT)?;
            wait_degraded(node2, node3, &["path-mtu"], LIMIT)?;
        } else {
            for node in &mesh.nodes {
                wait_well(node, LIMIT)?;
            }
        }
    }
    let seen = probe.stop()?;
    assert!(seen.sent - seen.received < seen.sent / 5, "{seen:?}");
    assert_captured(capture, 1000);
    Ok(())
}

/// ```text
/// node1 -- lan-a -- router -- router2 -- far -- node5      all IPv4, or all IPv6 outside
///             1500        narrow        1500
/// ```
///
/// Neither router tells anything by ICMP, and no link of a node is narrow: nobody is told.
fn black_hole(name: &str, outer_v6: bool, narrow_bytes: u32) -> Result<(Mesh, Host)> {
    let mut mesh = Mesh::underlay(name)?;
    let router2 = mesh.lab.router("router2")?;
    let (a, b) = if outer_v6 {
        ("2001:db8:c::1", "2001:db8:c::2")
    } else {
        ("203.0.113.1", "203.0.113.2")
    };
    let bits = if outer_v6 { 64 } else { 24 };
    let narrow = mesh.lab.connect(
        mesh.router.end("narrow").addr(&format!("{a}/{bits}")),
        router2.end("narrow").addr(&format!("{b}/{bits}")),
    )?;
    narrow.set_mtu(narrow_bytes)?;
    mesh.watch(narrow);
    let (near, far, gateway) = if outer_v6 {
        ("2001:db8:a::6", "2001:db8:d::5", "2001:db8:d::ff")
    } else {
        ("192.0.2.6", "198.18.0.5", "198.18.0.254")
    };
    let family = if outer_v6 { "-6" } else { "-4" };
    let far_range = if outer_v6 {
        "2001:db8:d::/64"
    } else {
        "198.18.0.0/24"
    };
    let default = if outer_v6 { "::/0" } else { "0.0.0.0/0" };
    mesh.router
        .sh(&format!("ip {family} route add {far_range} via {b}"))?;
    router2.sh(&format!("ip {family} route add {default} via {a}"))?;
    for (number, address, via) in [
        (
            6,
            near,
            if outer_v6 {
                "2001:db8:a::ff"
            } else {
                "192.0.2.254"
            },
        ),
        (5, far, gateway),
    ] {
        let host = mesh.lab.host(&format!("node{number}"))?;
        let end = host.end("eth0").addr(&format!("{address}/{bits}")).via(via);
        let link = if number == 6 {
            mesh.lab.connect(end, mesh.lan_a_port())?
        } else {
            let port = router2.end("far").addr(&format!("{gateway}/{bits}"));
            mesh.lab.connect(end, port)?
        };
        mesh.adopt(host, number, &[address], link).start()?;
    }
    for router in [&mesh.router, &router2] {
        router.sh(
            "nft 'add table inet mute; add chain inet mute out { type filter hook output priority 0; }; \
             add rule inet mute out meta l4proto icmp drop; \
             add rule inet mute out icmpv6 type { packet-too-big, destination-unreachable, \
             time-exceeded, parameter-problem } drop'",
        )?;
    }
    mesh.wait_connected(LIMIT)?;
    Ok((mesh, router2))
}

/// How many datagrams the node's tunnel made that do not arrive in one piece, as a scrape tells.
fn fragmented(node: &Node) -> Result<u64> {
    let scrape = || -> Result<String> {
        let mut agent = TcpStream::connect("127.0.0.1:9151")?;
        agent.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        agent.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = node.host.in_netns(scrape)??;
    let name = "warren_tunnel_fragmented_datagrams_total ";
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    Ok(line.with_context(|| text.clone())?.parse()?)
}

fn flows_through_a_black_hole(name: &str, outer_v6: bool, narrow_bytes: u32) -> Result<()> {
    let (mesh, router2) = black_hole(name, outer_v6, narrow_bytes)?;
    let (node5, node6) = (mesh.node(5), mesh.node(6));
    let (a, b) = (node6.attach("a")?, node5.attach("b")?);
    let capture = mesh.capture(&[])?;
    let probe = Probe::start(&a.pod, &b.pod, &b.v4, PROBE_INTERVAL)?;
    for (from, to, address) in [(&a, &b, &b.v4), (&b, &a, &a.v6)] {
        let start = std::time::Instant::now();
        transfer(&from.pod, &to.pod, address, 4 << 20)?;
        println!("{name}: 4 MiB in {:?}", start.elapsed());
    }
    let muted = router2.sh("nft list ruleset")?.stdout;
    assert!(muted.contains("icmp drop"), "{muted}");
    // On a fast machine all else was over before the first probes were.
    std::thread::sleep(20 * PROBE_INTERVAL);
    let seen = probe.stop()?;
    assert!(seen.sent - seen.received < seen.sent / 5, "{seen:?}");
    if narrow_bytes < 1360 {
        // Not even the smallest inner packet's datagram passes in one piece: counted, and said.
        for (node, other) in [(node5, node6), (node6, node5)] {
            poll_until(LIMIT, "fragments to be counted", || {
                fragmented(node).is_ok_and(|count| count > 100)
            })?;
            if outer_v6 {
                wait_degraded(node, other, &["path-mtu"], LIMIT)?;
            }
        }
    }
    let report = capture.stop();
    report.assert_clean();
    let family = if outer_v6 { Family::V6 } else { Family::V4 };
    // Not frames, of which a fast machine makes few large ones: two transfers.
    assert!(report.wireguard_of(family).bytes > 8 << 20, "{report}");
    Ok(())
}

#[test]
fn tcp_flows_over_ipv4_where_too_big_is_swallowed() -> Result<()> {
    require!();
    flows_through_a_black_hole("hole4", false, 1400)
}

#[test]
fn tcp_flows_over_ipv6_where_too_big_is_swallowed() -> Result<()> {
    require!();
    flows_through_a_black_hole("hole6", true, 1400)
}

/// The tunnel's smallest packets, of 1,280 bytes inside, have 1,360 outside.
#[test]
fn tcp_flows_over_ipv6_whose_path_is_smaller_than_the_smallest_tunnel_packet() -> Result<()> {
    require!();
    flows_through_a_black_hole("hole6-small", true, 1300)
}
