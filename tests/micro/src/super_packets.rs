//! Super-packets of about 64 KB for an inner MTU of 1,440 bytes.

use crate::naive::{ACK, Ip, Packet, Transport};

/// What is timed: a name, a whole super-packet, and the payload of each packet of it.
pub(crate) fn all() -> [(&'static str, Packet, u16); 3] {
    [
        ("TCP IPv4", of(v4(), tcp(1), 1388, 47), 1388),
        ("TCP IPv6", of(v6(), tcp(1), 1368, 47), 1368),
        ("UDP IPv4", of(v4(), udp(), 1412, 46), 1412),
    ]
}

/// As [`all`], of TCP over IPv4 from that port.
pub(crate) fn tcp4(port: u16, packets: usize) -> (Packet, u16) {
    (of(v4(), tcp(port), 1388, packets), 1388)
}

fn of(ip: Ip, transport: Transport, segment_len: usize, packets: usize) -> Packet {
    Packet {
        ip,
        transport,
        payload: (0..segment_len * packets).map(|n| n as u8).collect(),
    }
}

fn v4() -> Ip {
    Ip::V4 {
        tos: 0,
        id: 7,
        dont_fragment: true,
        ttl: 64,
        addresses: [[10, 1, 0, 1], [10, 2, 0, 1]],
        options: Vec::new(),
    }
}

fn v6() -> Ip {
    let address = |n| {
        let mut bytes = [0; 16];
        (bytes[0], bytes[1], bytes[15]) = (0xfd, n, 1);
        bytes
    };
    Ip::V6 {
        class_and_label: 0,
        hop_limit: 64,
        addresses: [address(1), address(2)],
        extensions: Vec::new(),
    }
}

fn udp() -> Transport {
    Transport::Udp { ports: [1, 2] }
}

/// With timestamps, as all Linux sends.
fn tcp(port: u16) -> Transport {
    Transport::Tcp {
        ports: [port, 2],
        sequence: 1,
        ack: 1,
        reserved: 0,
        flags: ACK,
        window: 1,
        urgent: 0,
        options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1],
    }
}
