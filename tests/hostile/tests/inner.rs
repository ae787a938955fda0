//! Inner packets that lie, sealed by a peer that holds good keys.
//!
//! ```text
//!   liar 192.0.2.9 (boringtun) ------ 192.0.2.1 node1, 10.1.0.1
//!        allowed 10.9.0.0/16, fd09::/64
//! ```

#![allow(clippy::unwrap_used)] // tests

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

use anyhow::{Result, ensure};
use warren_hostile::node::{Node, PATIENCE};
use warren_hostile::sealer::Sealer;
use warren_keyring::PrivateKey;
use warren_lab::{Lab, poll_until, require};

const OWN: &str = "10.9.0.1";
const OWN_V6: &str = "fd09::1";

/// An honest packet, to be made a lie of.
fn v4(source: &str) -> Vec<u8> {
    let mut packet = vec![0; 60];
    packet[0] = 0x45;
    packet[3] = 60;
    packet[8] = 64;
    packet[9] = 17;
    packet[12..16].copy_from_slice(&source.parse::<Ipv4Addr>().unwrap().octets());
    packet[16..20].copy_from_slice(&[10, 1, 0, 1]);
    packet
}

fn v6(source: &str) -> Vec<u8> {
    let mut packet = vec![0; 60];
    packet[0] = 0x60;
    packet[5] = 20;
    packet[6] = 59;
    packet[7] = 64;
    packet[8..24].copy_from_slice(&source.parse::<Ipv6Addr>().unwrap().octets());
    packet[24..40].copy_from_slice(&"fd01::1".parse::<Ipv6Addr>().unwrap().octets());
    packet
}

fn with(mut packet: Vec<u8>, bytes: &[(usize, u8)]) -> Vec<u8> {
    for (at, byte) in bytes {
        packet[*at] = *byte;
    }
    packet
}

/// The lie, its bytes, and the counter that must grow by one.
fn lies() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let malformed = "drop_inner_malformed";
    let (martian, wrong) = ("drop_martian_source", "drop_wrong_source");
    let cut = |mut packet: Vec<u8>, len| {
        packet.truncate(len);
        packet
    };
    vec![
        ("version 0", with(v4(OWN), &[(0, 0x05)]), malformed),
        ("version 5", with(v4(OWN), &[(0, 0x55)]), malformed),
        ("version 15", with(v6(OWN_V6), &[(0, 0xf0)]), malformed),
        (
            "IPv4 that calls itself IPv6",
            with(v4(OWN), &[(0, 0x60), (4, 1)]),
            malformed,
        ),
        (
            "IPv4 longer than it is",
            with(v4(OWN), &[(2, 1)]),
            malformed,
        ),
        (
            "IPv4 of length 65535",
            with(v4(OWN), &[(2, 255), (3, 255)]),
            malformed,
        ),
        ("IPv4 of length 0", with(v4(OWN), &[(3, 0)]), malformed),
        (
            "IPv4 shorter than a header",
            with(v4(OWN), &[(3, 19)]),
            malformed,
        ),
        ("half an IPv4 header", cut(v4(OWN), 10), malformed),
        ("one byte", cut(v4(OWN), 1), malformed),
        (
            "IPv6 longer than it is",
            with(v6(OWN_V6), &[(4, 1)]),
            malformed,
        ),
        (
            "IPv6 of length 65535",
            with(v6(OWN_V6), &[(4, 255), (5, 255)]),
            malformed,
        ),
        ("half an IPv6 header", cut(v6(OWN_V6), 20), malformed),
        (
            "header length below 20",
            with(v4(OWN), &[(0, 0x44)]),
            malformed,
        ),
        (
            "header length beyond the packet",
            with(v4(OWN), &[(0, 0x4f), (3, 40)]),
            malformed,
        ),
        ("the tunnel's own source", v4("10.1.0.1"), wrong),
        ("another peer's source", v4("10.2.0.1"), wrong),
        ("nobody's source", v4("203.0.113.7"), wrong),
        ("a narrower prefix of another peer", v4("10.9.77.1"), wrong),
        ("nobody's IPv6 source", v6("2001:db8::7"), wrong),
        ("a link-local source", v6("fe80::1"), wrong),
        (
            "a first fragment of another's",
            with(v4("10.2.0.1"), &[(6, 0x20)]),
            wrong,
        ),
        (
            "a later fragment of another's",
            with(v4("10.2.0.1"), &[(6, 0x20), (7, 9)]),
            wrong,
        ),
        (
            "an IPv6 fragment of another's",
            with(v6("fd02::1"), &[(6, 44)]),
            wrong,
        ),
        ("an unspecified source", v4("0.0.0.0"), martian),
        ("this network", v4("0.1.2.3"), martian),
        ("a loopback source", v4("127.0.0.1"), martian),
        ("a multicast source", v4("224.0.0.1"), martian),
        ("the broadcast address", v4("255.255.255.255"), martian),
        ("an unspecified IPv6 source", v6("::"), martian),
        ("an IPv6 loopback source", v6("::1"), martian),
        ("an IPv6 multicast source", v6("ff02::1"), martian),
        ("an IPv4-mapped source", v6("::ffff:10.9.0.1"), martian),
        ("an IPv4-mapped loopback", v6("::ffff:127.0.0.1"), martian),
    ]
}

#[test]
fn each_lie_of_an_inner_packet_is_dropped_and_counted_by_its_reason() -> Result<()> {
    require!();
    let lab = Lab::new("lies")?;
    let node = Node::start(&lab, 1)?;
    let liar = lab.host("liar")?;
    lab.connect(
        node.host.end("eth0").addr("192.0.2.1/24"),
        liar.end("eth0").addr("192.0.2.9/24"),
    )?;
    let key = PrivateKey::generate()?;
    // The liar may speak for everything but what others have, and must not be believed beyond.
    node.add_peer(&key.public_key(), None, &["10.9.0.0/16", "fd09::/64"])?;
    let others = PrivateKey::generate()?.public_key();
    node.add_peer(&others, None, &["10.2.0.0/16", "10.9.77.0/24", "fd02::/64"])?;
    let socket = liar.in_netns(|| UdpSocket::bind("0.0.0.0:0"))??;
    let to = "192.0.2.1:51871".parse()?;
    let mut sealer = Sealer::connect(socket, to, &key, &node.public_key()?)?;

    // The honest packets that the lies are made of arrive, fragments too.
    let honest = [
        v4(OWN),
        v6(OWN_V6),
        with(v4(OWN), &[(6, 0x20)]),
        with(v4(OWN), &[(7, 9)]),
    ];
    let accepted = node.count("tun_tx_packets")?;
    for packet in &honest {
        sealer.send(packet)?;
    }
    sealer.receive()?;
    poll_until(PATIENCE, "the honest packets", || {
        let count = node.count("tun_tx_packets");
        count.is_ok_and(|count| count == accepted + honest.len() as u64)
    })?;

    let mut wrong = Vec::new();
    for (lie, packet, counter) in lies() {
        let before = node.status()?;
        sealer.send(&packet)?;
        sealer.receive()?;
        let mut grown: Vec<(String, u64)> = Vec::new();
        // A busy machine takes its time; what is judged wrongly is counted somewhere else.
        let _ = poll_until(PATIENCE, "the verdict", || {
            let after = node.status().unwrap_or_default();
            grown = after
                .iter()
                .filter(|(key, _)| key.starts_with("drop_") || *key == "tun_tx_packets")
                // What the node itself says on a new interface, such as router solicitations.
                .filter(|(key, _)| *key != "drop_no_route")
                .map(|(key, value)| (key.clone(), value - before[key]))
                .filter(|(_, by)| *by > 0)
                .collect();
            !grown.is_empty()
        });
        if grown != [(counter.to_owned(), 1)] {
            wrong.push(format!("{lie}: {grown:?} instead of {counter}"));
        }
    }
    println!("{} lies, {} judged wrongly", lies().len(), wrong.len());
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    node.ensure_running()
}
