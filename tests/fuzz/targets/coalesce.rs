//! Packets for the TUN, of which each two bytes make the next one of some flows, as it should be or
//! with something about it that must be seen. What is put together comes apart into the same.
#![no_main]

#[path = "../../../mesh/tunnel/tests/support/naive_offload.rs"]
mod naive;
#[path = "../../../mesh/tunnel/tests/support/offload_check.rs"]
mod offload_check;

use libfuzzer_sys::fuzz_target;
use naive::{Ip, Packet, Transport};
use offload_check::{check_coalesced, next_packet};

fuzz_target!(|input: &[u8]| {
    let (steps, _) = input.as_chunks::<2>();
    let mut flows: Vec<Packet> = (0..8).map(flow).collect();
    let packets: Vec<Vec<u8>> = steps
        .iter()
        .take(256)
        .map(|[what, more]| {
            let packet = next_packet(
                &mut flows[usize::from(what % 8)],
                what / 8,
                *more as usize + 1,
            );
            let mut bytes = packet.bytes();
            if what / 8 == 30 {
                // A fragment, or something else that only looks like the next one. The rest of the
                // packet is under a checksum, which is taken for good.
                let at = usize::from(*more) % if bytes[0] >> 4 == 4 { 20 } else { 8 };
                bytes[at] ^= 0x20;
            }
            bytes
        })
        // As the engine hands them on: whole packets, of either version.
        .filter(|bytes| is_whole(bytes))
        .collect();
    check_coalesced(&packets, steps.len() % 2 == 0);
});

fn is_whole(packet: &[u8]) -> bool {
    match packet[0] >> 4 {
        4 => {
            let header = usize::from(packet[0] & 0xf) * 4;
            let len = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            header >= 20 && header <= len && len == packet.len()
        }
        6 => usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40 == packet.len(),
        _ => false,
    }
}

fn flow(n: u8) -> Packet {
    let ip = if n & 1 == 0 {
        Ip::V4 {
            tos: 0,
            id: 65_000,
            dont_fragment: n & 4 == 0,
            ttl: 64,
            addresses: [[10, 0, 0, n], [10, 0, 0, 1]],
            options: Vec::new(),
        }
    } else {
        Ip::V6 {
            class_and_label: 0,
            hop_limit: 64,
            addresses: [[n; 16], [1; 16]],
            extensions: Vec::new(),
        }
    };
    let transport = if n & 2 == 0 {
        Transport::Tcp {
            ports: [1, 2],
            sequence: u32::MAX - 5000,
            ack: 1,
            reserved: 0,
            flags: naive::ACK,
            window: 100,
            urgent: 0,
            options: vec![1; 12],
        }
    } else {
        Transport::Udp { ports: [1, 2] }
    };
    Packet {
        ip,
        transport,
        payload: vec![n; 100],
    }
}
