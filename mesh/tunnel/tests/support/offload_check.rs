//! What holds for every super-packet that is cut and for all packets that are put together, whatever
//! they are: checked by properties, and by fuzz targets.
#![allow(dead_code, unreachable_pub)] // each binary uses a part of it

use warren_tunnel::offload::{Coalescer, Offload, Segments};

use super::naive::{self, CWR, Ip, Packet, Transport};

/// The packets that are made of a super-packet.
pub fn segments(bytes: &[u8], offload: Offload) -> Option<Vec<Vec<u8>>> {
    let mut frame = bytes.to_vec();
    let mut segments = Segments::new(&mut frame, offload)?;
    let count = segments.count();
    let mut made = Vec::new();
    while let Some(segment) = segments.next_segment() {
        made.push(segment.to_vec());
    }
    assert_eq!(made.len(), count);
    Some(made)
}

/// What is written to the TUN for these packets: super-packets and what says so.
pub fn coalesced(packets: &[Vec<u8>], udp: bool) -> Vec<(Vec<u8>, Offload)> {
    let mut coalescer = Coalescer::new();
    for packet in packets {
        coalescer.push(packet, udp, |n| &packets[n as usize]);
    }
    let frames = (0..coalescer.len()).map(|number| {
        let frame = coalescer.frame(number);
        let mut bytes = packets[frame.head as usize].clone();
        let (offload, headers_len) = coalescer.finish(&frame, &mut bytes);
        let mut count = 1;
        for (n, payload_at) in coalescer.followers(&frame) {
            assert_eq!(payload_at, usize::from(headers_len));
            bytes.extend(&packets[n as usize][payload_at..]);
            count += 1;
        }
        assert_eq!(count, frame.packets);
        assert_eq!(offload.split.is_some(), count > 1);
        assert!(bytes.len() <= 65_535);
        (bytes, offload)
    });
    frames.collect()
}

/// The next packet of a flow, now and then with something about it that must be seen.
pub fn next_packet(flow: &mut Packet, what: u8, len: usize) -> Packet {
    if what == 0 {
        flow.payload = vec![len as u8; len];
    }
    let mut packet = flow.clone();
    match (&mut packet.transport, &mut packet.ip) {
        (Transport::Tcp { flags, .. }, _) if what == 1 => *flags |= 1 << (len % 8),
        (Transport::Tcp { window, .. }, _) if what == 2 => *window ^= 1,
        (Transport::Tcp { ack, .. }, _) if what == 3 => *ack ^= 1,
        (Transport::Tcp { sequence, .. }, _) if what == 4 => *sequence ^= 1 << (len % 32),
        (_, Ip::V4 { id, .. }) if what == 5 => *id ^= 1 << (len % 16),
        (_, Ip::V4 { tos, .. }) if what == 6 => *tos ^= 1,
        (_, Ip::V6 { hop_limit, .. }) if what == 6 => *hop_limit ^= 1,
        (Transport::Tcp { options, .. }, _) if what == 7 && !options.is_empty() => options[0] ^= 1,
        _ => {}
    }
    if let Transport::Tcp {
        sequence, flags, ..
    } = &mut flow.transport
    {
        *sequence = sequence.wrapping_add(flow.payload.len() as u32);
        *flags &= !CWR;
    }
    if let Ip::V4 { id, .. } = &mut flow.ip {
        *id = id.wrapping_add(1);
    }
    packet
}

/// Puts packets together, takes them apart by the naive model and the real one, and looks whether
/// they are the same, and in order.
pub fn check_coalesced(packets: &[Vec<u8>], udp: bool) {
    let frames = coalesced(packets, udp);
    let mut apart = Vec::new();
    for (frame, offload) in &frames {
        let cut = naive::cut(frame, *offload);
        // The real one agrees.
        assert_eq!(segments(frame, *offload).as_ref(), Some(&cut));
        apart.extend(cut);
    }
    assert_eq!(apart.len(), packets.len());
    // Which packet each one was: of equal ones the first.
    let mut taken = vec![false; packets.len()];
    let was: Vec<usize> = apart
        .iter()
        .map(|packet| {
            let found = (0..packets.len())
                .find(|n| !taken[*n] && same_but_for_free_id(&packets[*n], packet))
                .unwrap_or_else(|| panic!("nobody has sent {packet:02x?}"));
            taken[found] = true;
            found
        })
        .collect();
    for (at, n) in was.iter().enumerate() {
        for later in &was[at + 1..] {
            assert!(
                n < later || !may_be_one_flow(&packets[*n], &packets[*later]),
                "packet {later} was passed by {n}"
            );
        }
    }
}

/// The identification says nothing where nobody may fragment.
fn same_but_for_free_id(one: &[u8], other: &[u8]) -> bool {
    let free = one[0] >> 4 == 4 && one[6] & 0x40 != 0;
    match free {
        false => one == other,
        true => one[..4] == other[..4] && one[6..10] == other[6..10] && one[12..] == other[12..],
    }
}

/// By addresses and ports, where both can be seen.
fn may_be_one_flow(one: &[u8], other: &[u8]) -> bool {
    let addresses = |packet: &[u8]| match packet[0] >> 4 {
        4 => packet[12..20].to_vec(),
        _ => packet[8..40].to_vec(),
    };
    let ports = |packet: &[u8]| match (packet[0], packet[6]) {
        (0x45, _) => Some((packet[9], packet[20..24].to_vec())),
        (0x60..=0x6f, protocol @ (6 | 17)) => Some((protocol, packet[40..44].to_vec())),
        // Behind an extension header anything may follow.
        (0x60..=0x6f, 0 | 43 | 44 | 50 | 51 | 60 | 135 | 139 | 140) => None,
        (0x60..=0x6f, protocol) => Some((protocol, Vec::new())),
        _ => None,
    };
    let same_ports = match (ports(one), ports(other)) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    };
    addresses(one) == addresses(other) && same_ports
}
