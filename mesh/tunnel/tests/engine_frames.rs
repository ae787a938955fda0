//! Super-packets given to the engine: each packet of them is treated as any other.

#![allow(clippy::unwrap_used)] // helpers of tests

#[path = "support/naive_offload.rs"]
mod naive;
mod support;

use naive::{ACK, Ip, Packet, Transport};
use support::{carry, connected, pair};
use warren_tunnel::offload::Offload;
use warren_tunnel::{DropReason, Now};

fn whole(destination: [u8; 4], payload: usize) -> Packet {
    Packet {
        ip: Ip::V4 {
            tos: 0,
            id: 7,
            dont_fragment: true,
            ttl: 64,
            addresses: [[10, 1, 0, 1], destination],
            options: Vec::new(),
        },
        transport: Transport::Tcp {
            ports: [1, 2],
            sequence: 1,
            ack: 1,
            reserved: 0,
            flags: ACK,
            window: 1,
            urgent: 0,
            options: Vec::new(),
        },
        payload: (0..payload).map(|n| n as u8).collect(),
    }
}

fn segments(packet: &Packet, segment_len: usize) -> Vec<Vec<u8>> {
    packet
        .split(segment_len)
        .iter()
        .map(Packet::bytes)
        .collect()
}

#[test]
fn every_segment_arrives_in_a_datagram_of_its_own() {
    let now = Now::read();
    let (mut a, mut b) = connected(now);
    let before = a.engine.counters().clone();
    let packet = whole([10, 2, 0, 1], 10_001);
    let (mut frame, offload) = packet.offloaded(Some(1000));
    a.engine
        .handle_tun_frame(now, &mut frame, Some(offload), &mut a.out);
    let sent = a.take();
    assert_eq!(sent.len(), 11);
    carry(now, &mut [&mut a, &mut b], 0, sent);
    assert_eq!(b.delivered, segments(&packet, 1000));
    let after = a.engine.counters();
    assert_eq!(after.tun_rx_packets - before.tun_rx_packets, 11);
    assert_eq!(after.udp_tx_datagrams - before.udp_tx_datagrams, 11);
}

#[test]
fn segments_that_wait_for_a_handshake_arrive_after_it_in_order() {
    let now = Now::read();
    let (mut a, mut b) = pair(now);
    let packet = whole([10, 2, 0, 1], 9_500);
    let (mut frame, offload) = packet.offloaded(Some(1000));
    a.engine
        .handle_tun_frame(now, &mut frame, Some(offload), &mut a.out);
    let initiation = a.take();
    assert_eq!(initiation.len(), 1);
    carry(now, &mut [&mut a, &mut b], 0, initiation);
    assert_eq!(b.delivered, segments(&packet, 1000));
}

#[test]
fn a_dropped_super_packet_counts_as_what_it_is_made_of() {
    let now = Now::read();
    let (mut a, _) = connected(now);
    let (mut frame, offload) = whole([10, 3, 0, 1], 10_001).offloaded(Some(1000));
    a.engine
        .handle_tun_frame(now, &mut frame, Some(offload), &mut a.out);
    assert_eq!(a.drops(DropReason::NoRoute), 11);
    assert!(a.take().is_empty());
}

#[test]
fn what_cannot_be_split_is_dropped_as_malformed() {
    let now = Now::read();
    let (mut a, _) = connected(now);
    let (frame, offload) = whole([10, 2, 0, 1], 10_001).offloaded(Some(1000));
    let mut udp = offload;
    udp.split.as_mut().unwrap().kind = warren_tunnel::offload::SplitKind::Udp;
    let mut beyond = offload;
    beyond.checksum.as_mut().unwrap().start = 60_000;
    for (n, offload) in [None, Some(udp), Some(beyond)].into_iter().enumerate() {
        let mut frame = frame.clone();
        a.engine
            .handle_tun_frame(now, &mut frame, offload, &mut a.out);
        assert_eq!(a.drops(DropReason::TunMalformed), 1 + n as u64);
    }
    for len in [0, 1, 19] {
        let mut short = frame[..len].to_vec();
        a.engine
            .handle_tun_frame(now, &mut short, Some(Offload::default()), &mut a.out);
    }
    assert_eq!(a.drops(DropReason::TunMalformed), 6);
    assert!(a.take().is_empty());
}
