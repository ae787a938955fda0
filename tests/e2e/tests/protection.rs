//! Never in clear, and never accepted in clear.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use warren_e2e::{MARKER, Mesh, assert_check_can_fail, marked_packets, ping, send_marked};
use warren_lab::{bin, poll_for, poll_until, require};

/// Long enough for a slow, shared machine.
const LIMIT: Duration = Duration::from_secs(60);

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
fn what_a_node_sent_to_a_pod_that_is_gone_does_not_come_back_quoted_in_clear() -> Result<()> {
    require!();
    let mut mesh = Mesh::start("quoted", 3)?;
    // From the node's own address, as a service of it answers pods; there is no such pod any more.
    let ways = [
        ("10.244.3.99", "192.0.2.2"),
        ("fd00:244:0:3::99", "2001:db8:a::2"),
    ];
    let send = |mesh: &Mesh, (to, from)| {
        send_marked(&mesh.node(2).host, to, Some(from))?;
        // A kernel limits how many errors it sends to one address.
        std::thread::sleep(Duration::from_millis(1100));
        Ok(())
    };
    // In IPv6 the answer's source is the tunnel's address, which leads into the tunnel; in IPv4 it is the
    // node's own.
    let dropped = |mesh: &Mesh, table: &str| {
        mesh.node(3).host.sh(&format!(
            "nft list table inet {table} | grep egress-quote-v4 | grep -qv 'packets 0 '"
        ))
    };
    let capture = mesh.capture(&[])?;
    ways.iter().try_for_each(|way| send(&mesh, *way))?;
    dropped(&mesh, "warren")?;
    // The same while the filter is flushed, by the table that nobody else can flush.
    let agent = mesh.node_mut(3).agent.take().unwrap();
    agent.signal(warren_lab::Signal::SIGSTOP);
    mesh.node(3).host.sh("nft flush ruleset")?;
    ways.iter().try_for_each(|way| send(&mesh, *way))?;
    dropped(&mesh, "warren-guard")?;
    capture.stop().assert_clean();
    // The positive control: without the filters node 3 answers from its own address, in clear.
    agent.kill();
    let tap = || mesh.node(3).host.tap("eth0");
    let leaks = || marked_packets(&mesh, tap(), || send(&mesh, ways[0])).is_ok_and(|n| n > 0);
    poll_until(LIMIT, "a quoted packet in clear", leaks)?;
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
    poll_until(LIMIT, "the drops to be counted", || {
        let status = node.status().unwrap_or_default();
        let drops = status["filter_drops"].as_object();
        drops.is_some_and(|drops| drops.values().any(|packets| packets.as_u64() > Some(0)))
    })?;
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

/// Topology: one pod on node2. The node has services on loopback and on link-local addresses: of
/// its own `lo`, as a DNS cache has it, and of the pod's own veth.
#[test]
fn a_pod_does_not_reach_loopback_or_link_local_services_of_its_node() -> Result<()> {
    require!();
    let mesh = Mesh::start("local", 2)?;
    let node = mesh.node(2);
    let pod = node.attach("a")?;
    let veth = pod.host_interface().unwrap();
    let mac = node
        .host
        .sh(&format!("cat /sys/class/net/{veth}/address"))?;
    let mac = mac.stdout.trim();
    node.host.sh(&format!(
        "ip addr add 169.254.20.10/32 dev lo; ip addr add 169.254.169.254/32 dev lo
         ip addr add fe80::1/64 dev {veth} nodad
         sysctl -qw net.ipv4.conf.{veth}.route_localnet=1"
    ))?;
    // Services of the node, on every address it has.
    let mut serve = Command::new(bin("lab-tool")?);
    let serve = node.host.spawn(serve.args(["udp-echo", "--port", "9"]))?;
    serve.wait_log("listening", LIMIT)?;
    pod.pod.sh(&format!(
        "ip addr flush dev lo; ip route flush table local dev lo; ip -6 addr flush dev lo
         ip route add 127.0.0.0/8 via 169.254.1.1 dev eth0 src {v4}
         ip -6 route add fe80::/64 dev eth0
         ip -6 neigh replace fe80::1 lladdr {mac} dev eth0 nud permanent",
        v4 = pod.v4
    ))?;
    let capture = mesh.capture(&[])?;
    let answers = |to: &str, from: &str| -> Result<u64> {
        let mut command = Command::new(bin("lab-tool")?);
        command.args(["udp-ping", to, "--count", "5", "--interval-ms", "5"]);
        command.args(["--wait-ms", "300", "--marker", MARKER, "--from", from]);
        let out = pod.pod.output(&mut command, LIMIT)?;
        // A refused socket sends nothing, and so reaches nothing.
        Ok(out
            .json()
            .map_or(0, |seen| seen["received"].as_u64().unwrap_or(0)))
    };
    let (v4, v6) = (format!("{}:0", pod.v4), format!("[{}]:0", pod.v6));
    let index = pod.pod.sh("cat /sys/class/net/eth0/ifindex")?;
    let gateway = format!("[fe80::1%{}]:9", index.stdout.trim());
    let targets = [
        ("169.254.20.10:9", &v4),
        ("169.254.169.254:9", &v4),
        ("127.0.0.1:9", &v4),
        (gateway.as_str(), &v6),
    ];
    for (to, from) in targets {
        assert_eq!(answers(to, from)?, 0, "{to}");
    }
    // What no socket sends.
    let source: std::net::Ipv6Addr = pod.v6.parse()?;
    for to in ["::1", "::ffff:127.0.0.1"] {
        let to: std::net::Ipv6Addr = to.parse()?;
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let header = "6000000000081140";
        let packet = format!(
            "{header}{}{}0009000900080000",
            hex(&source.octets()),
            hex(&to.octets())
        );
        let tool = bin("lab-tool")?;
        let tool = tool.to_str().unwrap();
        pod.pod.run(&[
            tool, "send-raw", "eth0", &packet, "--layer", "ip", "--to", mac,
        ])?;
    }
    let drops = node.host.sh("nft list chain inet warren ingress")?.stdout;
    let counted = |comment: &str| {
        let line = drops.lines().find(|line| line.contains(comment));
        line.is_some_and(|line| !line.contains("packets 0 "))
    };
    for comment in [
        "warren:pod-loopback",
        "warren:pod-mapped",
        "warren:pod-to-link-local-v4",
        "warren:pod-to-link-local-v6",
    ] {
        assert!(counted(comment), "{comment}: {drops}");
    }
    capture.stop().assert_clean();
    // The positive control: without the filter each of the services answers.
    node.agent.as_ref().unwrap().kill();
    node.host.sh("nft delete table inet warren")?;
    for (to, from) in targets {
        poll_until(LIMIT, to, || answers(to, from).is_ok_and(|count| count > 0))?;
    }
    assert_check_can_fail(&mesh)
}

/// Topology: a liar and its neighbour on node2. The liar answers for the gateway, for its neighbour
/// and for a pod elsewhere, and advertises itself as a router, in both families.
#[test]
fn a_pod_that_answers_for_others_or_plays_a_router_changes_nothing() -> Result<()> {
    require!();
    let mesh = Mesh::start("liar", 2)?;
    let node = mesh.node(2);
    let (liar, neighbour) = (node.attach("liar")?, node.attach("neighbour")?);
    let far = mesh.node(1).attach("far")?;
    let veth = liar.host_interface().unwrap();
    let capture = mesh.capture(&[])?;
    let tables = "ip route; ip -6 route; ip neigh show nud permanent; \
                  ip -6 neigh show nud permanent; ip -6 route show table 51871";
    // The kernel's own lifetimes are no change.
    let state = || -> Result<[String; 2]> {
        Ok([
            node.host.sh(tables)?.stdout,
            neighbour
                .pod
                .sh("ip route; ip -6 route; ip neigh; ip -6 neigh")?
                .stdout,
        ])
    };
    // The kernel puts off the news of a new carrier, and with it link-local routes.
    let (mut before, mut since) = (state()?, Instant::now());
    poll_until(LIMIT, "the tables to settle", || {
        let now = state().unwrap_or_default();
        if std::mem::replace(&mut before, now.clone()) != now {
            since = Instant::now();
        }
        since.elapsed() > Duration::from_secs(3)
    })?;
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let mac = "02beef000001";
    let tool = bin("lab-tool")?;
    let send = |frame: String| {
        let tool = tool.to_str().unwrap();
        liar.pod
            .run(&[tool, "send-raw", "eth0", &frame, "--count", "3"])
            .map(drop)
    };
    for address in ["169.254.1.1", &neighbour.v4, &far.v4, "192.0.2.254"] {
        let address: std::net::Ipv4Addr = address.parse()?;
        let ip = hex(&address.octets());
        // Both a gratuitous request and an answer.
        for operation in ["0001", "0002"] {
            send(format!(
                "ffffffffffff{mac}0806000108000604{operation}{mac}{ip}ffffffffffff{ip}"
            ))?;
        }
    }
    let icmp = |source: &str, to: &str, body: &[u8]| -> Result<String> {
        let (source, to): (std::net::Ipv6Addr, std::net::Ipv6Addr) = (source.parse()?, to.parse()?);
        let length = (body.len() as u32).to_be_bytes();
        let pseudo: Vec<u8> = [
            &source.octets()[..],
            &to.octets(),
            &length,
            &[0, 0, 0, 58],
            body,
        ]
        .concat();
        let sum = pseudo.chunks(2).fold(0u32, |sum, pair| {
            let low = pair.get(1).copied().unwrap_or(0);
            sum + u32::from(u16::from_be_bytes([pair[0], low]))
        });
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
        let mut body = body.to_vec();
        body[2..4].copy_from_slice(&sum.to_be_bytes());
        Ok(format!(
            "33330000 0001{mac}86dd60000000{:04x}3aff{}{}{}",
            body.len(),
            hex(&source.octets()),
            hex(&to.octets()),
            hex(&body)
        ))
    };
    let link_address = [2, 1, 2, 0xbe, 0xef, 0, 0, 1];
    for address in ["fe80::1", &neighbour.v6, &far.v6, "2001:db8:a::ff"] {
        let target: std::net::Ipv6Addr = address.parse()?;
        let advertisement = [
            &[136, 0, 0, 0, 0xa0, 0, 0, 0][..],
            &target.octets(),
            &link_address,
        ]
        .concat();
        send(icmp(address, "ff02::1", &advertisement)?)?;
        send(icmp(&liar.v6, "ff02::1", &advertisement)?)?;
    }
    // A router for 1,800 s, with an autonomous prefix.
    let prefix: std::net::Ipv6Addr = "2001:db8:bad::".parse()?;
    let router = [
        &[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..],
        &[3, 4, 64, 0xc0, 0, 0, 7, 8, 0, 0, 7, 8, 0, 0, 0, 0],
        &prefix.octets(),
    ]
    .concat();
    for source in ["fe80::bad", &liar.v6] {
        send(icmp(source, "ff02::1", &router)?)?;
    }
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(state()?, before);
    for address in [&neighbour.v4, &neighbour.v6] {
        assert!(ping(&far.pod, address, 2)?.lossless());
        assert!(ping(&node.host, address, 2)?.lossless());
    }
    capture.stop().assert_clean();
    // The positive control: a node that listens takes the same advertisement.
    node.agent.as_ref().unwrap().kill();
    node.host.sh(&format!(
        "nft delete table inet warren; sysctl -qw net.ipv6.conf.{veth}.accept_ra=2"
    ))?;
    send(icmp("fe80::bad", "ff02::1", &router)?)?;
    poll_until(LIMIT, "the router to be believed", || {
        let routes = node.host.sh("ip -6 route");
        routes.is_ok_and(|out| out.stdout.contains("fe80::bad"))
    })?;
    assert_check_can_fail(&mesh)
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
    let attached = poll_for(LIMIT, "a pod to be accepted", || {
        node.attach("late")
            .map_err(|e| refused = e.to_string())
            .ok()
    });
    assert!(attached.is_ok(), "{refused}");
    Ok(())
}
