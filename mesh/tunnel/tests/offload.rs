//! Super-packets cut and put together, compared with a naive model. What the kernel itself makes of
//! the same is compared in `offload_kernel.rs`.

#![allow(clippy::unwrap_used)] // helpers of tests

#[path = "support/naive_offload.rs"]
mod naive;
#[path = "support/offload_check.rs"]
mod offload_check;

use naive::{ACK, CWR, FIN, Ip, PSH, Packet, Transport};
use offload_check::{check_coalesced, coalesced, next_packet, segments};
use proptest::prelude::*;
use warren_tunnel::offload::{MAX_SEGMENTS, Offload, SplitKind};

fn ip() -> impl Strategy<Value = Ip> {
    let options = (0usize..=10).prop_flat_map(|n| prop::collection::vec(any::<u8>(), n * 4));
    let extension = (0usize..=3).prop_flat_map(|n| prop::collection::vec(any::<u8>(), n * 8 + 6));
    let options = prop_oneof![3 => Just(Vec::new()), 1 => options];
    let extensions = prop_oneof![
        3 => Just(Vec::new()),
        1 => prop::collection::vec(extension, 1..3),
    ];
    prop_oneof![
        (any::<(u8, u16, bool, u8)>(), any::<[[u8; 4]; 2]>(), options).prop_map(
            |((tos, id, dont_fragment, ttl), addresses, options)| Ip::V4 {
                tos,
                id,
                dont_fragment,
                ttl,
                addresses,
                options,
            }
        ),
        (
            0u32..1 << 28,
            any::<u8>(),
            any::<[[u8; 16]; 2]>(),
            extensions
        )
            .prop_map(
                |(class_and_label, hop_limit, addresses, extensions)| Ip::V6 {
                    class_and_label,
                    hop_limit,
                    addresses,
                    extensions,
                }
            ),
    ]
}

fn transport() -> impl Strategy<Value = Transport> {
    let options = (0usize..=10).prop_flat_map(|n| prop::collection::vec(any::<u8>(), n * 4));
    prop_oneof![
        (
            any::<([u16; 2], u32, u32)>(),
            any::<(u8, u8, u16, u16)>(),
            options
        )
            .prop_map(
                |((ports, sequence, ack), (reserved, flags, window, urgent), options)| {
                    Transport::Tcp {
                        ports,
                        sequence,
                        ack,
                        reserved: reserved & 0xf,
                        flags,
                        window,
                        urgent,
                        options,
                    }
                }
            ),
        any::<[u16; 2]>().prop_map(|ports| Transport::Udp { ports }),
    ]
}

fn packet(payload: std::ops::Range<usize>) -> impl Strategy<Value = Packet> {
    let payload = prop::collection::vec(any::<u8>(), payload);
    (ip(), transport(), payload).prop_map(|(ip, transport, payload)| Packet {
        ip,
        transport,
        payload,
    })
}

proptest! {
    #[test]
    fn segments_are_those_of_the_naive_model(packet in packet(0..9000), segment_len in 8u16..2000) {
        let (bytes, offload) = packet.offloaded(Some(segment_len));
        let expected = packet.split(segment_len.into());
        prop_assume!(expected.len() <= MAX_SEGMENTS);
        let expected: Vec<_> = expected.iter().map(Packet::bytes).collect();
        prop_assert_eq!(segments(&bytes, offload), Some(expected));
    }

    #[test]
    fn a_checksum_that_was_left_to_us_is_computed(packet in packet(0..3000)) {
        let (bytes, offload) = packet.offloaded(None);
        let whole = packet.bytes();
        let made = segments(&bytes, offload).unwrap();
        // As the kernel does, whose software writes no zero for any protocol.
        let at = usize::from(offload.checksum.unwrap().start + offload.checksum.unwrap().offset);
        let mut expected = whole.clone();
        if expected[at..at + 2] == [0, 0] {
            expected[at..at + 2].fill(0xff);
        }
        prop_assert_eq!(made, vec![expected]);
        prop_assert_eq!(segments(&whole, Offload::default()), Some(vec![whole]));
    }

    #[test]
    fn nothing_that_is_read_makes_it_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        header in any::<[u8; 10]>(),
        version in prop_oneof![Just(0x45u8), Just(0x4f), Just(0x60), any::<u8>()],
    ) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = version;
        }
        if let Some(offload) = Offload::parse(&header) {
            segments(&bytes, offload);
        }
    }

    #[test]
    fn what_was_put_together_comes_apart_into_the_same(packets in stream(), udp: bool) {
        let bytes: Vec<_> = packets.iter().map(Packet::bytes).collect();
        check_coalesced(&bytes, udp);
    }
}

/// Some flows whose packets mostly follow one another.
fn stream() -> impl Strategy<Value = Vec<Packet>> {
    let flow = (0usize..3, 0u8..12, 1usize..200);
    (
        prop::collection::vec(packet(100..101), 3),
        prop::collection::vec(flow, 0..120),
    )
        .prop_map(|(mut flows, steps)| {
            for flow in &mut flows {
                if let Transport::Tcp { flags, .. } = &mut flow.transport {
                    *flags = ACK | *flags & CWR;
                }
            }
            steps
                .into_iter()
                .map(|(n, what, len)| next_packet(&mut flows[n], what, len))
                .collect()
        })
}

fn tcp(sequence: u32, payload: usize, flags: u8) -> Packet {
    Packet {
        ip: Ip::V4 {
            tos: 0,
            id: sequence as u16 / 100,
            dont_fragment: true,
            ttl: 64,
            addresses: [[10, 0, 0, 1], [10, 0, 0, 2]],
            options: Vec::new(),
        },
        transport: Transport::Tcp {
            ports: [1, 2],
            sequence,
            ack: 9,
            reserved: 0,
            flags,
            window: 500,
            urgent: 0,
            options: vec![1; 12],
        },
        payload: vec![7; payload],
    }
}

fn udp(id: u16, payload: usize) -> Packet {
    let mut packet = tcp(u32::from(id) * 100, payload, 0);
    packet.transport = Transport::Udp { ports: [1, 2] };
    packet
}

fn counts(packets: &[Packet]) -> Vec<usize> {
    let bytes: Vec<_> = packets.iter().map(Packet::bytes).collect();
    check_coalesced(&bytes, true);
    let frames = coalesced(&bytes, true);
    frames
        .iter()
        .map(|(frame, offload)| naive::cut(frame, *offload).len())
        .collect()
}

#[test]
fn a_flow_without_gaps_is_one_frame_and_the_shorter_packet_is_its_end() {
    assert_eq!(
        counts(&(0..40).map(|n| tcp(n * 100, 100, ACK)).collect::<Vec<_>>()),
        [40]
    );
    let ends = [
        tcp(0, 100, ACK),
        tcp(100, 99, ACK),
        tcp(199, 100, ACK),
        tcp(299, 100, ACK),
    ];
    assert_eq!(counts(&ends), [2, 2]);
    let grows = [tcp(0, 99, ACK), tcp(99, 100, ACK), tcp(199, 100, ACK)];
    assert_eq!(counts(&grows), [1, 2]);
}

#[test]
fn a_push_or_an_end_closes_the_frame_and_is_kept() {
    for flag in [PSH, FIN] {
        let packets = [
            tcp(0, 100, ACK),
            tcp(100, 100, ACK | flag),
            tcp(200, 100, ACK),
        ];
        assert_eq!(counts(&packets), [2, 1]);
        let first = [tcp(0, 100, ACK | flag), tcp(100, 100, ACK)];
        assert_eq!(counts(&first), [1, 1]);
    }
}

#[test]
fn gaps_repeats_and_bare_acknowledgements_stand_alone() {
    assert_eq!(counts(&[tcp(0, 100, ACK), tcp(200, 100, ACK)]), [1, 1]);
    assert_eq!(counts(&[tcp(0, 100, ACK), tcp(0, 100, ACK)]), [1, 1]);
    assert_eq!(counts(&[tcp(0, 0, ACK), tcp(0, 0, ACK)]), [1, 1]);
    assert_eq!(
        counts(&[tcp(0, 100, ACK), tcp(100, 0, ACK), tcp(100, 100, ACK)]),
        [1, 1, 1]
    );
}

#[test]
fn the_sequence_number_may_wrap() {
    let start = u32::MAX - 149;
    let packets: Vec<_> = (0..3)
        .map(|n| {
            let mut packet = tcp(start.wrapping_add(n * 100), 100, ACK);
            if let Ip::V4 { id, .. } = &mut packet.ip {
                *id = 0xffff_u16.wrapping_add(n as u16);
            }
            packet
        })
        .collect();
    assert_eq!(counts(&packets), [3]);
}

#[test]
fn a_reduced_window_begins_a_frame_and_is_told_as_such() {
    let packets = [
        tcp(0, 100, ACK),
        tcp(100, 100, ACK | CWR),
        tcp(200, 100, ACK),
    ];
    assert_eq!(counts(&packets), [1, 2]);
    let bytes: Vec<_> = packets.iter().map(Packet::bytes).collect();
    let frames = coalesced(&bytes, false);
    assert!(frames[1].1.split.unwrap().ecn);
}

#[test]
fn datagrams_are_put_together_by_the_64_and_only_where_that_is_allowed() {
    let packets: Vec<_> = (0..130).map(|n| udp(n, 100)).collect();
    assert_eq!(counts(&packets), [64, 64, 2]);
    let bytes: Vec<_> = packets.iter().map(Packet::bytes).collect();
    check_coalesced(&bytes, false);
    assert_eq!(coalesced(&bytes, false).len(), 130);
    assert_eq!(
        coalesced(&bytes, true)[0].1.split.unwrap().kind,
        SplitKind::Udp
    );
}

#[test]
fn segments_are_put_together_by_the_128_for_a_write_takes_a_thousand_parts() {
    let packets: Vec<_> = (0..300).map(|n| tcp(n * 100, 100, ACK)).collect();
    assert_eq!(counts(&packets), [128, 128, 44]);
}

#[test]
fn a_datagram_without_a_checksum_stands_alone() {
    let mut bytes: Vec<_> = (0..3).map(|n| udp(n, 100).bytes()).collect();
    bytes[1][26..28].fill(0);
    check_coalesced(&bytes, true);
    assert_eq!(coalesced(&bytes, true).len(), 3);
}

#[test]
fn no_packet_of_a_flow_passes_its_fragments() {
    let mut bytes: Vec<_> = (0..4).map(|n| udp(n, 100).bytes()).collect();
    // The second is a first fragment: the ports of the flow, and more to come.
    bytes[1][6] = 0x20;
    let frames = coalesced(&bytes, true);
    let lengths: Vec<usize> = frames.iter().map(|(frame, _)| frame.len()).collect();
    assert_eq!(lengths, [128, 128, 228]);
}

#[test]
fn flows_that_alternate_are_two_frames_in_the_order_of_their_beginnings() {
    let packets: Vec<_> = (0..20)
        .map(|n| {
            let mut packet = tcp(n / 2 * 100, 100, ACK);
            if n % 2 == 1
                && let Transport::Tcp { ports, .. } = &mut packet.transport
            {
                *ports = [3, 4];
            }
            packet
        })
        .collect();
    assert_eq!(counts(&packets), [10, 10]);
}

#[test]
fn the_largest_frame_is_what_ipv4_can_say() {
    let packets: Vec<_> = (0..60)
        .map(|n| tcp(n * 1400, 1400, ACK))
        .map(|mut packet| {
            if let Ip::V4 { id, .. } = &mut packet.ip {
                *id = 0
            }
            packet
        })
        .collect();
    // 52 bytes of headers and 46 times 1400 bytes: a 47th does not fit.
    assert_eq!(counts(&packets), [46, 14]);
}

#[test]
fn a_super_packet_of_too_many_segments_is_refused() {
    let packet = tcp(0, 8 * MAX_SEGMENTS, ACK);
    let (bytes, offload) = packet.offloaded(Some(8));
    assert_eq!(
        segments(&bytes, offload).map(|made| made.len()),
        Some(MAX_SEGMENTS)
    );
    let packet = tcp(0, 8 * MAX_SEGMENTS + 1, ACK);
    let (bytes, offload) = packet.offloaded(Some(8));
    assert_eq!(segments(&bytes, offload), None);
}
