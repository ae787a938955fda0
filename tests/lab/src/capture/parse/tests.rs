//! Hand-made packets for every header kind. In each, the address in question is `10.244.7.7` or
//! `fd00:7::7`, and all others are from elsewhere.

use super::*;

const POD4: [u8; 4] = [10, 244, 7, 7];
const NODE4: [u8; 4] = [192, 0, 2, 1];
const OTHER4: [u8; 4] = [192, 0, 2, 2];

fn pod6() -> [u8; 16] {
    "fd00:7::7"
        .parse::<Ipv6Addr>()
        .expect("an address")
        .octets()
}

fn node6() -> [u8; 16] {
    "2001:db8::1"
        .parse::<Ipv6Addr>()
        .expect("an address")
        .octets()
}

fn ether(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&[2; 12][..], &ethertype.to_be_bytes(), payload].concat()
}

fn ipv4(protocol: u8, source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    ipv4_with(protocol, source, destination, &[], 0, payload)
}

fn ipv4_with(
    protocol: u8,
    source: [u8; 4],
    destination: [u8; 4],
    options: &[u8],
    fragment: u16,
    payload: &[u8],
) -> Vec<u8> {
    assert_eq!(options.len() % 4, 0);
    let words = (5 + options.len() / 4) as u8;
    let total = (usize::from(words) * 4 + payload.len()) as u16;
    let mut packet = vec![0x40 | words, 0];
    packet.extend_from_slice(&total.to_be_bytes());
    packet.extend_from_slice(&[0, 9]);
    packet.extend_from_slice(&fragment.to_be_bytes());
    packet.extend_from_slice(&[64, protocol, 0, 0]);
    [&packet[..], &source, &destination, options, payload].concat()
}

fn ipv6(next: u8, source: [u8; 16], destination: [u8; 16], payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16).to_be_bytes();
    [
        &[0x60, 0, 0, 0][..],
        &length,
        &[next, 64],
        &source,
        &destination,
        payload,
    ]
    .concat()
}

fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len() as u16).to_be_bytes();
    [
        &source.to_be_bytes()[..],
        &destination.to_be_bytes(),
        &length,
        &[0, 0],
        payload,
    ]
    .concat()
}

/// A packet from a pod, to be put into tunnels.
fn inner4() -> Vec<u8> {
    ipv4(17, POD4, OTHER4, &udp(1, 2, b"x"))
}

fn inner6() -> Vec<u8> {
    ipv6(17, pod6(), node6(), &udp(1, 2, b"x"))
}

fn walk(frame: &[u8]) -> Walk {
    let mut walk = Walk::new();
    walk.frame(LinkLayer::Ethernet, frame);
    walk
}

/// The places in which the walk found the pod's address.
fn places(frame: &[u8]) -> Vec<(&'static str, u8)> {
    let pods = [IpAddr::from(POD4), IpAddr::from(pod6())];
    let walk = walk(frame);
    walk.found
        .iter()
        .filter(|f| pods.contains(&f.address))
        .map(|f| (f.place, f.depth))
        .collect()
}

/// Asserts that the pod's address is found just there, and that the same frame with another
/// address in its place is followed to the end and gives nothing.
fn assert_found(frame: &[u8], place: &'static str, depth: u8) {
    assert_eq!(places(frame), [(place, depth)]);
    assert_eq!(walk(frame).malformed, None);
    let clean = replaced(&replaced(frame, &POD4, &OTHER4), &pod6(), &node6());
    assert_eq!(places(&clean), []);
    assert_eq!(walk(&clean).malformed, None);
}

fn replaced(frame: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    for at in 0..=frame.len().saturating_sub(from.len()) {
        if frame[at..at + from.len()] == *from {
            frame[at..at + from.len()].copy_from_slice(to);
        }
    }
    frame
}

#[test]
fn finds_ipv4_source_and_destination() {
    assert_found(
        &ether(0x0800, &ipv4(6, POD4, NODE4, &[0; 20])),
        "IPv4 source",
        0,
    );
    assert_found(
        &ether(0x0800, &ipv4(6, NODE4, POD4, &[0; 20])),
        "IPv4 destination",
        0,
    );
}

#[test]
fn finds_ipv6_source_and_destination() {
    assert_found(
        &ether(0x86dd, &ipv6(6, pod6(), node6(), &[0; 20])),
        "IPv6 source",
        0,
    );
    assert_found(
        &ether(0x86dd, &ipv6(6, node6(), pod6(), &[0; 20])),
        "IPv6 destination",
        0,
    );
}

#[test]
fn finds_an_ipv4_address_mapped_into_ipv6() {
    let mapped = Ipv4Addr::from(POD4).to_ipv6_mapped().octets();
    assert_found(
        &ether(0x86dd, &ipv6(59, mapped, node6(), &[])),
        "IPv6 source",
        0,
    );
}

#[test]
fn walks_through_vlan_tags() {
    let tagged = [&[0, 5, 0x81, 0, 0, 6, 0x08, 0][..], &inner4()].concat();
    assert_found(&ether(0x88a8, &tagged), "IPv4 source", 0);
}

#[test]
fn finds_arp_sender_and_target() {
    let arp = |sender: [u8; 4], target: [u8; 4]| {
        let head = [0, 1, 8, 0, 6, 4, 0, 1];
        ether(
            0x0806,
            &[&head[..], &[2; 6], &sender, &[0; 6], &target].concat(),
        )
    };
    assert_found(&arp(POD4, NODE4), "ARP sender", 0);
    assert_found(&arp(NODE4, POD4), "ARP target", 0);
    assert_eq!(walk(&arp(NODE4, OTHER4)).kind, Kind::Arp);
}

#[test]
fn finds_ipv4_options() {
    let mut route = vec![1, 7, 11, 4];
    route.extend_from_slice(&NODE4);
    route.extend_from_slice(&POD4);
    let packet = |options: &[u8]| ether(0x0800, &ipv4_with(1, NODE4, OTHER4, options, 0, &[8; 8]));
    assert_found(&packet(&route), "IPv4 record route option", 0);
    for kind in [131, 137] {
        let option = [&[kind, 7, 4][..], &POD4, &[0]].concat();
        assert_found(&packet(&option), "IPv4 source route option", 0);
    }
    let time = [&[68, 12, 13, 1][..], &POD4, &[0; 4]].concat();
    assert_found(&packet(&time), "IPv4 timestamp option", 0);
    assert_eq!(
        walk(&packet(&[7, 1, 0, 0])).malformed,
        Some("IPv4 option"),
        "no endless loop"
    );
}

#[test]
fn finds_ipv6_routing_headers() {
    for (kind, last) in [(0, 0), (2, 0), (4, 1)] {
        let header = [&[59, 4, kind, 1, last, 0, 0, 0][..], &node6(), &pod6()].concat();
        let packet = ether(0x86dd, &ipv6(43, node6(), node6(), &header));
        assert_found(&packet, "IPv6 routing header", 0);
    }
    let unknown = ether(
        0x86dd,
        &ipv6(43, node6(), node6(), &[59, 0, 99, 0, 0, 0, 0, 0]),
    );
    assert!(walk(&unknown).malformed.is_some());
}

#[test]
fn finds_the_home_address_option() {
    let option = [&[59, 2, 1, 2, 0, 0, 0xc9, 16][..], &pod6()].concat();
    assert_found(
        &ether(0x86dd, &ipv6(60, node6(), node6(), &option)),
        "IPv6 home address option",
        0,
    );
}

#[test]
fn walks_extension_headers_up_to_the_transport() {
    let data = udp(5, 6, b"hello");
    let destination = [&[17, 0, 1, 4, 0, 0, 0, 0][..], &data].concat();
    let hop = [&[60, 0, 1, 4, 0, 0, 0, 0][..], &destination].concat();
    let walk = walk(&ether(0x86dd, &ipv6(0, node6(), node6(), &hop)));
    assert_eq!(
        walk.kind,
        Kind::Udp {
            source: 5,
            destination: 6
        }
    );
    assert_eq!(walk.malformed, None);
    assert_eq!((walk.udp_len, walk.udp_head), (5, *b"hell"));
}

#[test]
fn finds_addresses_in_all_fragments() {
    for fragment in [0x2000, 0x2001, 0x0002] {
        let packet = ipv4_with(17, POD4, NODE4, &[], fragment, &udp(1, 2, &[0; 16]));
        assert_found(&ether(0x0800, &packet), "IPv4 source", 0);
    }
    let later = walk(&ether(
        0x0800,
        &ipv4_with(17, NODE4, OTHER4, &[], 2, &[0; 16]),
    ));
    assert_eq!(later.kind, Kind::Fragment { protocol: 17 });
    let (source, destination) = (NODE4.into(), OTHER4.into());
    assert_eq!(
        later.fragment,
        Some(FragmentId {
            source,
            destination,
            id: 9
        })
    );

    let header = [17, 0, 0, 9, 0, 0, 0, 7];
    let packet = ipv6(44, node6(), pod6(), &[&header[..], &[0; 8]].concat());
    assert_found(&ether(0x86dd, &packet), "IPv6 destination", 0);
    let walk = walk(&ether(0x86dd, &packet));
    assert_eq!(walk.kind, Kind::Fragment { protocol: 17 });
    assert_eq!(walk.fragment.map(|f| f.id), Some(7));
}

#[test]
fn finds_packets_quoted_by_icmp_errors() {
    for kind in [3, 4, 5, 11, 12] {
        let error = [&[kind, 0, 0, 0, 1, 1, 1, 1][..], &inner4()[..28]].concat();
        assert_found(
            &ether(0x0800, &ipv4(1, NODE4, OTHER4, &error)),
            "IPv4 source",
            1,
        );
    }
    for kind in 1..=4 {
        let error = [&[kind, 0, 0, 0, 0, 0, 5, 0][..], &inner6()[..41]].concat();
        assert_found(
            &ether(0x86dd, &ipv6(58, node6(), node6(), &error)),
            "IPv6 source",
            1,
        );
    }
}

#[test]
fn finds_icmp_redirects_and_router_advertisements() {
    let quoted = ipv4(17, NODE4, OTHER4, &udp(1, 2, &[]));
    let redirect = [&[5, 0, 0, 0][..], &POD4, &quoted].concat();
    assert_found(
        &ether(0x0800, &ipv4(1, NODE4, OTHER4, &redirect)),
        "ICMP redirect gateway",
        0,
    );
    let advertisement = [&[9, 0, 0, 0, 1, 2, 0, 9][..], &POD4, &[0; 4]].concat();
    let frame = ether(0x0800, &ipv4(1, NODE4, OTHER4, &advertisement));
    assert_found(&frame, "ICMP router advertisement", 0);
}

#[test]
fn finds_neighbour_discovery_targets_and_options() {
    let frame = |message: &[u8]| ether(0x86dd, &ipv6(58, node6(), node6(), message));
    for kind in [135, 136] {
        let link_layer = [1, 1, 2, 2, 2, 2, 2, 2];
        let message = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &pod6(), &link_layer].concat();
        assert_found(&frame(&message), "neighbour discovery target", 0);
    }
    let target = [&[137, 0, 0, 0, 0, 0, 0, 0][..], &pod6(), &node6()].concat();
    assert_found(&frame(&target), "redirect target", 0);
    let destination = [&[137, 0, 0, 0, 0, 0, 0, 0][..], &node6(), &pod6()].concat();
    assert_found(&frame(&destination), "redirect destination", 0);
    let redirected = [&[4, 7, 0, 0, 0, 0, 0, 0][..], &inner6()[..48]].concat();
    let head = [&[137, 0, 0, 0, 0, 0, 0, 0][..], &node6(), &node6()].concat();
    assert_found(&frame(&[head, redirected].concat()), "IPv6 source", 1);
}

#[test]
fn finds_what_router_advertisements_announce() {
    let announce = |option: &[u8]| {
        let message = [
            &[134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            option,
        ]
        .concat();
        ether(0x86dd, &ipv6(58, node6(), node6(), &message))
    };
    let prefix = [&[3, 4, 64, 0xc0][..], &[0; 12], &pod6()].concat();
    assert_found(&announce(&prefix), "router advertisement prefix", 0);
    let route = [&[24, 3, 128, 0, 0, 0, 0, 0][..], &pod6()].concat();
    assert_found(&announce(&route), "router advertisement route", 0);
    let servers = [&[25, 5, 0, 0, 0, 0, 0, 0][..], &node6(), &pod6()].concat();
    assert_found(&announce(&servers), "router advertisement DNS server", 0);
    let endless = announce(&[3, 0, 0, 0]);
    assert!(walk(&endless).malformed.is_some(), "no endless loop");
}

#[test]
fn finds_multicast_groups_and_sources() {
    let v2 = |next: u8, message: &[u8]| ether(0x86dd, &ipv6(next, node6(), node6(), message));
    let mld = [&[131, 0, 0, 0, 0, 0, 0, 0][..], &pod6()].concat();
    assert_found(&v2(58, &mld), "MLD group", 0);
    let report = [
        &[143, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 1][..],
        &node6(),
        &pod6(),
    ]
    .concat();
    assert_found(&v2(58, &report), "MLD source", 0);

    let v4 = |message: &[u8]| ether(0x0800, &ipv4(2, NODE4, OTHER4, message));
    assert_found(
        &v4(&[&[0x16, 0, 0, 0][..], &POD4].concat()),
        "IGMP group",
        0,
    );
    let report = [&[0x22, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 1][..], &NODE4, &POD4].concat();
    assert_found(&v4(&report), "IGMP source", 0);
}

#[test]
fn walks_into_ip_in_ip() {
    assert_found(
        &ether(0x0800, &ipv4(4, NODE4, OTHER4, &inner4())),
        "IPv4 source",
        1,
    );
    assert_found(
        &ether(0x0800, &ipv4(41, NODE4, OTHER4, &inner6())),
        "IPv6 source",
        1,
    );
    assert_found(
        &ether(0x86dd, &ipv6(4, node6(), node6(), &inner4())),
        "IPv4 source",
        1,
    );
    assert_found(
        &ether(0x86dd, &ipv6(41, node6(), node6(), &inner6())),
        "IPv6 source",
        1,
    );
    let twice = ipv4(4, NODE4, OTHER4, &ipv4(4, NODE4, OTHER4, &inner4()));
    assert_found(&ether(0x0800, &twice), "IPv4 source", 2);
}

#[test]
fn walks_into_gre_with_and_without_options() {
    for (flags, options) in [(0_u16, 0), (0x2000, 4), (0xb000, 12)] {
        let gre = [
            &flags.to_be_bytes()[..],
            &[8, 0],
            &vec![0; options],
            &inner4(),
        ]
        .concat();
        assert_found(
            &ether(0x0800, &ipv4(47, NODE4, OTHER4, &gre)),
            "IPv4 source",
            1,
        );
    }
    let bridged = [&[0, 0, 0x65, 0x58][..], &ether(0x86dd, &inner6())].concat();
    assert_found(
        &ether(0x0800, &ipv4(47, NODE4, OTHER4, &bridged)),
        "IPv6 source",
        1,
    );
}

#[test]
fn walks_into_vxlan_and_geneve() {
    for port in [4789, 8472] {
        let vxlan = [&[8, 0, 0, 0, 0, 0, 1, 0][..], &ether(0x0800, &inner4())].concat();
        let packet = ipv4(17, NODE4, OTHER4, &udp(9999, port, &vxlan));
        assert_found(&ether(0x0800, &packet), "IPv4 source", 1);
    }
    let geneve = [
        &[1, 0, 0x65, 0x58, 0, 0, 1, 0, 9, 9, 9, 9][..],
        &ether(0x0800, &inner4()),
    ]
    .concat();
    let packet = ipv6(17, node6(), node6(), &udp(9999, 6081, &geneve));
    assert_found(&ether(0x86dd, &packet), "IPv4 source", 1);
}

#[test]
fn walks_into_mpls_pppoe_and_ah() {
    let labels = [&[0, 1, 0, 64, 0, 2, 1, 64][..], &inner4()].concat();
    assert_found(&ether(0x8847, &labels), "IPv4 source", 1);
    let session = [&[0x11, 0, 0, 1, 0, 0, 0, 0x57][..], &inner6()].concat();
    assert_found(&ether(0x8864, &session), "IPv6 source", 1);
    let header = [4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let ah = [&header[..], &inner4()].concat();
    assert_found(
        &ether(0x0800, &ipv4(51, NODE4, OTHER4, &ah)),
        "IPv4 source",
        1,
    );
    let ah = [&[4, 1][..], &header[2..], &inner4()].concat();
    assert_found(
        &ether(0x86dd, &ipv6(51, node6(), node6(), &ah)),
        "IPv4 source",
        1,
    );
}

#[test]
fn finds_dhcp_addresses() {
    let mut message = vec![0; 240];
    message[16..20].copy_from_slice(&POD4);
    let packet = ipv4(17, NODE4, OTHER4, &udp(67, 68, &message));
    assert_found(&ether(0x0800, &packet), "DHCP offered address", 0);
}

#[test]
fn does_not_take_payload_for_headers() {
    let payload = [&POD4[..], &pod6()].concat();
    let packet = ipv4(17, NODE4, OTHER4, &udp(51871, 51871, &payload));
    assert_eq!(places(&ether(0x0800, &packet)), []);
}

#[test]
fn trailing_padding_is_no_header() {
    let mut frame = ether(
        0x0800,
        &ipv4(4, NODE4, OTHER4, &ipv4(17, NODE4, OTHER4, &udp(1, 2, &[]))),
    );
    frame.extend_from_slice(&inner4());
    assert_eq!(places(&frame), []);
    assert_eq!(walk(&frame).malformed, None);
}

#[test]
fn a_cut_off_packet_is_malformed_but_what_is_there_counts() {
    let whole = ether(0x0800, &ipv4(17, POD4, NODE4, &udp(1, 2, &[0; 32])));
    for length in 1..whole.len() {
        let walk = walk(&whole[..length]);
        assert!(walk.malformed.is_some(), "cut to {length}");
        assert_eq!(
            places(&whole[..length]).len(),
            usize::from(length >= 30),
            "cut to {length}"
        );
    }
}

#[test]
fn a_packet_without_ethernet_header_is_walked() {
    let mut walk = Walk::new();
    walk.frame(LinkLayer::Ip, &inner6());
    assert_eq!(walk.found[0].address, IpAddr::from(pod6()));
    assert_eq!(
        walk.kind,
        Kind::Udp {
            source: 1,
            destination: 2
        }
    );
}

#[test]
fn endless_nesting_ends() {
    let mut packet = inner4();
    for _ in 0..100 {
        packet = ipv4(4, NODE4, OTHER4, &packet);
    }
    assert_eq!(
        walk(&ether(0x0800, &packet)).malformed,
        Some("headers nested too deeply")
    );
    let tags = [0x81, 0].repeat(8000);
    assert!(walk(&ether(0x8100, &tags)).malformed.is_some());
    let headers = [51, 0, 0, 0, 0, 0, 0, 0].repeat(8000);
    assert!(
        walk(&ether(0x0800, &ipv4(51, NODE4, OTHER4, &headers)))
            .malformed
            .is_some()
    );
    let mut packet = inner6();
    for _ in 0..500 {
        packet = ipv6(17, node6(), node6(), &udp(1, 3544, &packet));
    }
    assert!(walk(&ether(0x86dd, &packet)).malformed.is_some());
}

#[test]
fn no_random_bytes_make_the_walker_panic() {
    let seeds = [
        ether(0x0800, &ipv4(47, NODE4, OTHER4, &[0; 64])),
        ether(0x86dd, &ipv6(43, node6(), node6(), &[4; 64])),
        ether(0x86dd, &ipv6(58, node6(), node6(), &[143; 64])),
        ether(0x0800, &ipv4(17, NODE4, OTHER4, &udp(1, 4789, &[0; 64]))),
    ];
    let mut state = 1_u64;
    for round in 0..200_000 {
        let mut frame = seeds[round % seeds.len()].clone();
        for _ in 0..4 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let at = (state >> 33) as usize % frame.len();
            frame[at] = (state >> 24) as u8;
        }
        frame.truncate((state >> 40) as usize % frame.len() + 1);
        assert!(walk(&frame).found.len() < 200);
    }
}
