//! Captures see what passes, in both directions, and judge it.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use warren_lab::{
    Allow, ClearTextRules, Family, Host, Lab, LabError, Link, Privilege, Report, poll_until,
    privilege, require,
};

const MARKER: &str = "warren-lab-plain-marker";
/// Long enough for a slow, shared machine.
const LIMIT: Duration = Duration::from_secs(30);

/// ```text
/// node1 10.0.1.1 ──cable── lan ── 10.0.1.2 node2
/// ```
fn two_hosts(lab: &Lab) -> Result<(Host, Host, Link), LabError> {
    let (node1, node2, lan) = (lab.host("node1")?, lab.host("node2")?, lab.bridge("lan")?);
    let end = node1
        .end("eth0")
        .addr("10.0.1.1/24")
        .addr("10.244.1.1/24")
        .addr("fd01::1/64");
    let cable = lab.connect(end, lan.port())?;
    let end = node2
        .end("eth0")
        .addr("10.0.1.2/24")
        .addr("10.244.1.2/24")
        .addr("fd01::2/64");
    lab.connect(end, lan.port())?;
    Ok((node1, node2, cable))
}

fn rules() -> ClearTextRules {
    ClearTextRules {
        pod_ranges: vec!["10.244.0.0/16".parse().expect("a prefix")],
        marker: MARKER.into(),
        wireguard_ports: vec![51871],
        allow: Allow::usual(),
    }
}

fn send(host: &Host, from: &str, to: &str, payload: &[u8]) -> Result<(), LabError> {
    let socket = host.in_netns(|| UdpSocket::bind(from))?.expect("bind");
    assert_eq!(socket.send_to(payload, to).expect("send"), payload.len());
    Ok(())
}

fn data_message(length: usize) -> Vec<u8> {
    let mut message = vec![0x5a; length];
    message[..4].copy_from_slice(&[4, 0, 0, 0]);
    message
}

#[test]
fn a_clean_capture_is_clean_and_counts_each_direction_and_family() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("clean")?;
    let (node1, node2, cable) = two_hosts(&lab)?;
    let capture = lab.capture(&[cable.tap(), node2.tap("eth0")], rules())?;
    // Bound once: a port stays taken for a moment when another test forks meanwhile.
    let flows = [
        (&node1, "10.0.1.1:51871", "10.0.1.2:51871", 96),
        (&node2, "10.0.1.2:51871", "10.0.1.1:51871", 96),
        (&node1, "[fd01::1]:51871", "[fd01::2]:51871", 128),
    ];
    for (host, from, to, length) in flows {
        let socket = host.in_netns(|| UdpSocket::bind(from))?.expect("bind");
        for _ in 0..5 {
            socket.send_to(&data_message(length), to).expect("send");
        }
    }
    poll_until(LIMIT, "live counts", || {
        capture.snapshot().wireguard_total().frames == 30
    })?;
    let report = capture.stop();
    report.assert_clean();
    assert_eq!(report.per_link().len(), 2);
    for link in report.per_link() {
        assert_eq!(link.wireguard_of(Family::V4).frames, 10);
        assert_eq!(link.wireguard_of(Family::V6).frames, 5);
        assert_eq!(link.messages(4).frames, 15);
        // Ethernet, IP and UDP headers around the messages.
        assert_eq!(link.wireguard_of(Family::V4).bytes, 10 * (14 + 20 + 8 + 96));
        assert!(link.allowed.contains_key(&Allow::Arp), "{link:?}");
    }
    Ok(())
}

/// Whether tcpdump can read the kept file: inside a user namespace it fails to drop its rights.
fn tcpdump_works() -> bool {
    privilege() == Privilege::Root
}

/// The report's text and, where possible, what tcpdump makes of the kept file.
fn not_clean(report: &Report) -> String {
    let text = report
        .check()
        .expect_err("the capture is not clean")
        .to_string();
    let path = text
        .rsplit("kept in ")
        .next()
        .expect("the file is named")
        .to_owned();
    let output = Command::new("tcpdump")
        .args(["-nr", &path])
        .output()
        .expect("tcpdump runs");
    std::fs::remove_dir_all(std::path::Path::new(&path).parent().expect("a directory"))
        .expect("remove the kept file");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    format!(
        "{text}\n{printed}{}",
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn planted_clear_text_is_found_kept_and_readable() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("planted")?;
    let (node1, _node2, cable) = two_hosts(&lab)?;
    let capture = lab.capture(&[cable.tap()], rules())?;
    send(&node1, "10.244.1.1:4000", "10.244.1.2:4001", b"from a pod")?;
    let report = capture.stop();
    // The neighbour look-up names the pod's address as well.
    assert!(report.clear_text().frames >= 2, "{report}");
    assert!(
        report
            .violations()
            .iter()
            .any(|v| v.reason.contains("as ARP sender"))
    );
    let text = not_clean(&report);
    assert!(
        text.contains("pod address 10.244.1.1 as IPv4 source"),
        "{text}"
    );
    assert!(
        !tcpdump_works() || text.contains("IP 10.244.1.1.4000 > 10.244.1.2.4001: UDP"),
        "{text}"
    );
    Ok(())
}

#[test]
fn a_marker_in_a_super_packet_is_found() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("marker")?;
    let (node1, node2, cable) = two_hosts(&lab)?;
    let mut rules = rules();
    rules.allow.push(Allow::Tcp(4001));
    let capture = lab.capture(&[cable.tap()], rules)?;
    let listener = node2
        .in_netns(|| std::net::TcpListener::bind("10.0.1.2:4001"))?
        .expect("bind");
    let stream = node1
        .in_netns(|| std::net::TcpStream::connect("10.0.1.2:4001"))?
        .expect("connect");
    let mut payload = vec![b'.'; 2_000_000];
    let end = payload.len() - MARKER.len();
    payload[end..].copy_from_slice(MARKER.as_bytes());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut accepted, _) = listener.accept().expect("accept");
            std::io::copy(&mut accepted, &mut std::io::sink()).expect("read")
        });
        let mut stream = stream;
        std::io::Write::write_all(&mut stream, &payload).expect("write");
    });
    let report = capture.stop();
    // A busy machine may send the last segment twice.
    assert!(report.clear_text().frames >= 1, "{report}");
    assert_eq!(report.unexpected().frames, 0, "{report}");
    assert!(report.per_link()[0].total.bytes > 2_000_000);
    let frames = report.per_link()[0].total.frames;
    assert!(
        frames < 1000,
        "super-packets are seen whole: {frames} frames"
    );
    assert!(not_clean(&report).contains("the marker at byte"));
    Ok(())
}

#[test]
fn what_no_rule_allows_is_unexpected() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("unexpected")?;
    let (node1, _node2, cable) = two_hosts(&lab)?;
    let capture = lab.capture(&[cable.tap()], rules())?;
    send(
        &node1,
        "10.0.1.1:4000",
        "10.0.1.2:4001",
        b"not a pod, not WireGuard",
    )?;
    send(
        &node1,
        "10.0.1.1:51871",
        "10.0.1.2:51871",
        b"not WireGuard on its port",
    )?;
    let report = capture.stop();
    assert_eq!(report.clear_text().frames, 0);
    // The second one is refused by a port nobody listens on; that ICMP error is allowed.
    assert_eq!(report.unexpected().frames, 2, "{report}");
    assert!(not_clean(&report).contains("not WireGuard on UDP port 51871"));
    Ok(())
}

/// ```text
/// node1 ──cable── lan ── node2      (node1 reboots)
/// ```
#[test]
fn a_capture_on_a_link_goes_on_after_the_hosts_reboot() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("recapture")?;
    let (node1, _node2, cable) = two_hosts(&lab)?;
    let capture = lab.capture(&[cable.tap()], rules())?;
    send(
        &node1,
        "10.0.1.1:51871",
        "10.0.1.2:51871",
        &data_message(96),
    )?;
    poll_until(LIMIT, "the first packet", || {
        capture.snapshot().wireguard_total().frames == 1
    })?;
    node1.reboot()?;
    send(
        &node1,
        "10.0.1.1:51871",
        "10.0.1.2:51871",
        &data_message(96),
    )?;
    poll_until(LIMIT, "the packet after the reboot", || {
        capture.snapshot().wireguard_total().frames == 2
    })?;
    capture.stop().assert_clean();
    Ok(())
}

/// ```text
/// node1 (capture on its TUN interface, which has no Ethernet header)
/// ```
#[test]
fn a_tun_interface_is_captured_without_ethernet_headers() -> Result<(), LabError> {
    require!();
    let lab = Lab::new("tun")?;
    let node1 = lab.host("node1")?;
    node1.sh(
        "ip tuntap add dev t0 mode tun && ip addr add 10.9.0.1/24 dev t0 && ip link set t0 up",
    )?;
    // A TUN interface without a reader has no carrier and sends nothing, so somebody must read.
    let reader = "exec socat -u TUN,tun-name=t0,iff-up,iff-no-pi OPEN:/dev/null,wronly";
    let _reader = node1.spawn_argv(&["sh", "-c", reader])?;
    poll_until(LIMIT, "a carrier", || {
        node1
            .run(&["cat", "/sys/class/net/t0/carrier"])
            .is_ok_and(|o| o.stdout.trim() == "1")
    })?;
    let rules = ClearTextRules {
        pod_ranges: vec!["10.9.0.9/32".parse().expect("a prefix")],
        allow: vec![Allow::NeighborDiscovery, Allow::Mld],
        ..ClearTextRules::default()
    };
    let capture = lab.capture(&[node1.tap("t0")], rules)?;
    send(&node1, "10.9.0.1:4000", "10.9.0.9:4001", b"x")?;
    let report = capture.stop();
    assert_eq!(
        report.clear_text().frames,
        1,
        "{report} {:?}",
        report.unexpected_packets()
    );
    let text = not_clean(&report);
    assert!(
        text.contains("pod address 10.9.0.9 as IPv4 destination"),
        "{text}"
    );
    assert!(
        !tcpdump_works() || text.contains("IP 10.9.0.1.4000 > 10.9.0.9.4001"),
        "{text}"
    );
    Ok(())
}
