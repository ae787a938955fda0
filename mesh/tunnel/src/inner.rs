//! What the tunnel reads of an inner packet: version, length, source, destination.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// The header fields of an inner packet that was checked for its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InnerHeader {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// The packet's length by its header, never more than the bytes given.
    pub(crate) len: usize,
}

impl InnerHeader {
    /// Reads the header of a packet that may be followed by padding.
    #[inline]
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => {
                let header: &[u8; IPV4_HEADER] = packet.first_chunk()?;
                let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
                let header_len = usize::from(header[0] & 0xf) * 4;
                if header_len < IPV4_HEADER || len < header_len || len > packet.len() {
                    return None;
                }
                let source: [u8; 4] = *header[12..].first_chunk()?;
                let destination: [u8; 4] = *header[16..].first_chunk()?;
                Some(Self {
                    source: Ipv4Addr::from(source).into(),
                    destination: Ipv4Addr::from(destination).into(),
                    len,
                })
            }
            6 => {
                let header: &[u8; IPV6_HEADER] = packet.first_chunk()?;
                let len = usize::from(u16::from_be_bytes([header[4], header[5]])) + IPV6_HEADER;
                if len > packet.len() {
                    return None;
                }
                let source: [u8; 16] = *header[8..].first_chunk()?;
                let destination: [u8; 16] = *header[24..].first_chunk()?;
                Some(Self {
                    source: Ipv6Addr::from(source).into(),
                    destination: Ipv6Addr::from(destination).into(),
                    len,
                })
            }
            _ => None,
        }
    }

    /// Whether the source is one that no host can have. An IPv4-mapped one could slip past filters
    /// that know the address only in its IPv4 form.
    #[inline]
    pub(crate) fn has_martian_source(&self) -> bool {
        match self.source {
            IpAddr::V4(source) => {
                source.octets()[0] == 0
                    || source.is_loopback()
                    || source.is_multicast()
                    || source.is_broadcast()
            }
            IpAddr::V6(source) => {
                source.is_unspecified()
                    || source.is_loopback()
                    || source.is_multicast()
                    || source.to_ipv4_mapped().is_some()
            }
        }
    }
}

/// The length that a packet is padded to: a multiple of 16, but never beyond the inner MTU, so that
/// padding alone never makes the outer packet fragment (wireguard-go's `calculatePaddingSize`).
#[inline]
pub(crate) fn padded_len(len: usize, inner_mtu: usize) -> usize {
    len.next_multiple_of(16).min(inner_mtu).max(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(total: u16, given: usize, source: [u8; 4]) -> Vec<u8> {
        let mut packet = vec![0; given];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[12..16].copy_from_slice(&source);
        packet
    }

    fn v6(payload: u16, given: usize, source: &str) -> Vec<u8> {
        let mut packet = vec![0; given];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&payload.to_be_bytes());
        packet[8..24].copy_from_slice(&source.parse::<Ipv6Addr>().unwrap().octets());
        packet
    }

    #[test]
    fn padding_after_the_inner_length_is_cut_off() {
        let header = InnerHeader::parse(&v4(30, 32, [10, 0, 0, 1])).unwrap();
        assert_eq!(header.len, 30);
        assert_eq!(header.source, "10.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(InnerHeader::parse(&v6(5, 48, "fd00::1")).unwrap().len, 45);
    }

    #[test]
    fn a_length_beyond_the_bytes_or_below_the_header_is_refused() {
        assert_eq!(InnerHeader::parse(&v4(33, 32, [10, 0, 0, 1])), None);
        assert_eq!(InnerHeader::parse(&v4(19, 32, [10, 0, 0, 1])), None);
        assert_eq!(InnerHeader::parse(&v6(9, 48, "fd00::1")), None);
        assert_eq!(InnerHeader::parse(&v6(u16::MAX, 48, "fd00::1")), None);
        let mut options = v4(24, 32, [10, 0, 0, 1]);
        for (first, is_packet) in [(0x44, false), (0x45, true), (0x46, true), (0x47, false)] {
            options[0] = first;
            assert_eq!(InnerHeader::parse(&options).is_some(), is_packet);
        }
        assert_eq!(InnerHeader::parse(&[0x45; 19]), None);
        assert_eq!(InnerHeader::parse(&[0x60; 39]), None);
        assert_eq!(InnerHeader::parse(&[0x50; 64]), None);
        assert_eq!(InnerHeader::parse(&[]), None);
    }

    #[test]
    fn martian_sources_are_recognised_in_both_families() {
        for source in [
            [0, 0, 0, 0],
            [0, 1, 2, 3],
            [127, 0, 0, 1],
            [224, 0, 0, 5],
            [255; 4],
        ] {
            assert!(
                InnerHeader::parse(&v4(20, 20, source))
                    .unwrap()
                    .has_martian_source()
            );
        }
        for source in ["::", "::1", "ff02::1", "::ffff:10.0.0.1"] {
            assert!(
                InnerHeader::parse(&v6(0, 40, source))
                    .unwrap()
                    .has_martian_source()
            );
        }
        assert!(
            !InnerHeader::parse(&v4(20, 20, [10, 0, 0, 1]))
                .unwrap()
                .has_martian_source()
        );
        assert!(
            !InnerHeader::parse(&v6(0, 40, "fd00::1"))
                .unwrap()
                .has_martian_source()
        );
    }

    #[test]
    fn padding_stops_at_the_inner_mtu() {
        assert_eq!(padded_len(1, 1420), 16);
        assert_eq!(padded_len(16, 1420), 16);
        assert_eq!(padded_len(1409, 1420), 1420);
        assert_eq!(padded_len(1420, 1420), 1420);
        assert_eq!(padded_len(1500, 1420), 1500);
        assert_eq!(padded_len(0, 1420), 0);
    }
}
