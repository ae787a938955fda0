//! How many tunnels a packet may pass one inside the other. Each takes hops from what is another WireGuard's datagram,
//! so that a circle of tunnels over several devices comes to an end.
//!
//! Only for peers that are reached by another tunnel: an observer of the network is not to see by the hops which
//! packets are a WireGuard's of their own.

const UDP: u8 = 17;
const IPV6_FRAGMENT: u8 = 44;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const FRAGMENT_HEADER: usize = 8;
const UDP_HEADER: usize = 8;
/// A data message's type and reserved bytes (WireGuard's paper, section 5.4.6).
const DATA: [u8; 4] = [4, 0, 0, 0];

/// The hops that each tunnel takes: of the 64 that datagrams begin with, enough for seven inside one another, as
/// many rounds as the kernel's WireGuard makes.
const HOPS_EACH: u8 = 8;

/// The hops that the datagram around this packet may have, where the packet is a WireGuard's data message; 0: it has
/// been through enough tunnels. Else `None`: as many as the kernel gives. Later fragments of a message do not count:
/// they are data messages again, with hops that do, once they were in a tunnel.
pub(crate) fn hops_left(packet: &[u8]) -> Option<u8> {
    let (hops, udp) = match packet.first()? >> 4 {
        4 => {
            let header = packet.first_chunk::<IPV4_HEADER>()?;
            let header_len = usize::from(header[0] & 0xf) * 4;
            let later = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
            let udp = (header[9] == UDP && !later).then_some(header_len)?;
            (header[8], udp)
        }
        6 => {
            let header = packet.first_chunk::<IPV6_HEADER>()?;
            let udp = match header[6] {
                UDP => IPV6_HEADER,
                IPV6_FRAGMENT => {
                    let fragment = packet[IPV6_HEADER..].first_chunk::<FRAGMENT_HEADER>()?;
                    let later = u16::from_be_bytes([fragment[2], fragment[3]]) >> 3 != 0;
                    (fragment[0] == UDP && !later).then_some(IPV6_HEADER + FRAGMENT_HEADER)?
                }
                _ => return None,
            };
            (header[7], udp)
        }
        _ => return None,
    };
    let message = packet.get(udp + UDP_HEADER..)?;
    message
        .starts_with(&DATA)
        .then(|| hops.saturating_sub(HOPS_EACH))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(hops: u8, fragment: u16, message: [u8; 4]) -> Vec<u8> {
        let mut packet = vec![0; 64];
        packet[0] = 0x45;
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet[8] = hops;
        packet[9] = UDP;
        packet[28..32].copy_from_slice(&message);
        packet
    }

    fn v6(hops: u8, fragment: Option<u16>, message: [u8; 4]) -> Vec<u8> {
        let mut packet = vec![0; 96];
        packet[0] = 0x60;
        packet[7] = hops;
        let mut at = IPV6_HEADER;
        packet[6] = UDP;
        if let Some(offset) = fragment {
            packet[6] = IPV6_FRAGMENT;
            packet[at] = UDP;
            packet[at + 2..at + 4].copy_from_slice(&offset.to_be_bytes());
            at += FRAGMENT_HEADER;
        }
        packet[at + UDP_HEADER..][..4].copy_from_slice(&message);
        packet
    }

    #[test]
    fn data_messages_lose_hops_and_nothing_else_does() {
        const INITIATION: [u8; 4] = [1, 0, 0, 0];
        // The flag "more fragments" is set in the first one.
        const MORE: u16 = 0x2000;
        assert_eq!(hops_left(&v4(64, 0, DATA)), Some(56));
        assert_eq!(hops_left(&v4(64, MORE, DATA)), Some(56));
        assert_eq!(hops_left(&v4(64, MORE | 1, DATA)), None);
        assert_eq!(hops_left(&v4(64, 0, INITIATION)), None);
        assert_eq!(hops_left(&v6(64, None, DATA)), Some(56));
        assert_eq!(hops_left(&v6(64, Some(1), DATA)), Some(56));
        assert_eq!(hops_left(&v6(64, Some(8), DATA)), None);
        assert_eq!(hops_left(&v6(64, None, INITIATION)), None);
        let mut tcp = v4(64, 0, DATA);
        tcp[9] = 6;
        assert_eq!(hops_left(&tcp), None);
    }

    #[test]
    fn after_enough_tunnels_no_hop_is_left() {
        let mut hops = 64;
        for round in 1..8 {
            hops = hops_left(&v4(hops, 0, DATA)).unwrap();
            assert!(hops > 0, "round {round}");
        }
        assert_eq!(hops_left(&v4(hops, 0, DATA)), Some(0));
        assert_eq!(hops_left(&v4(3, 0, DATA)), Some(0));
    }

    #[test]
    fn what_is_cut_short_is_nothing_special() {
        for whole in [v4(64, 0, DATA), v6(64, Some(1), DATA)] {
            let enough = if whole[0] == 0x45 { 32 } else { 60 };
            for len in 0..whole.len() {
                assert_eq!(hops_left(&whole[..len]).is_some(), len >= enough, "{len}");
            }
        }
    }
}
