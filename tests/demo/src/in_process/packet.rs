//! The inner packets that pods exchange: IPv4 or IPv6 with ICMP echo or UDP.

use std::net::IpAddr;

use anyhow::{Result, bail};

const ICMP: u8 = 1;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const HOPS: u8 = 64;

/// A packet between two pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inner<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) body: Body<'a>,
}

/// What it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body<'a> {
    EchoRequest {
        id: u16,
        sequence: u16,
        data: &'a [u8],
    },
    EchoReply {
        id: u16,
        sequence: u16,
        data: &'a [u8],
    },
    Udp {
        source_port: u16,
        destination_port: u16,
        data: &'a [u8],
    },
}

impl<'a> Inner<'a> {
    /// Reads a packet; `None` for anything that a pod would not have sent, or not so.
    pub(super) fn parse(packet: &'a [u8]) -> Option<Self> {
        let (source, destination, protocol, body) = split(packet)?;
        let pseudo = match protocol {
            ICMP => 0,
            _ => pseudo_header(source, destination, protocol, body.len()),
        };
        if checksum(pseudo, body) != 0 {
            return None;
        }
        let data = body.get(8..)?;
        let body = match (protocol, body[0]) {
            (ICMP, 8) | (ICMPV6, 128) => Body::EchoRequest {
                id: u16_at(body, 4)?,
                sequence: u16_at(body, 6)?,
                data,
            },
            (ICMP, 0) | (ICMPV6, 129) => Body::EchoReply {
                id: u16_at(body, 4)?,
                sequence: u16_at(body, 6)?,
                data,
            },
            (UDP, _) if usize::from(u16_at(body, 4)?) == body.len() => Body::Udp {
                source_port: u16_at(body, 0)?,
                destination_port: u16_at(body, 2)?,
                data,
            },
            _ => return None,
        };
        Some(Self {
            source,
            destination,
            body,
        })
    }

    /// Writes the packet with its checksums.
    ///
    /// # Errors
    /// Addresses of different families, and more data than a packet can hold.
    pub(super) fn to_bytes(self) -> Result<Vec<u8>> {
        let (head, checksum_at, data) = self.body_head()?;
        let body_len = head.len() + data.len();
        let protocol = match (self.body, self.source) {
            (Body::Udp { .. }, _) => UDP,
            (_, IpAddr::V4(_)) => ICMP,
            (_, IpAddr::V6(_)) => ICMPV6,
        };
        let mut packet = self.ip_header(protocol, body_len)?;
        let body_at = packet.len();
        packet.extend_from_slice(&head);
        packet.extend_from_slice(data);
        let pseudo = match protocol {
            ICMP => 0,
            _ => pseudo_header(self.source, self.destination, protocol, body_len),
        };
        let sum = match checksum(pseudo, &packet[body_at..]) {
            // RFC 768: zero would say that there is none.
            0 if protocol == UDP => u16::MAX,
            sum => sum,
        };
        let at = body_at + checksum_at;
        packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        Ok(packet)
    }

    /// The eight bytes before the data, where in them the checksum goes, and the data.
    fn body_head(&self) -> Result<([u8; 8], usize, &'a [u8])> {
        let mut head = [0; 8];
        let ipv6 = self.source.is_ipv6();
        Ok(match self.body {
            Body::EchoRequest { id, sequence, data } | Body::EchoReply { id, sequence, data } => {
                let request = matches!(self.body, Body::EchoRequest { .. });
                head[0] = match (ipv6, request) {
                    (false, true) => 8,
                    (false, false) => 0,
                    (true, true) => 128,
                    (true, false) => 129,
                };
                head[4..6].copy_from_slice(&id.to_be_bytes());
                head[6..].copy_from_slice(&sequence.to_be_bytes());
                (head, 2, data)
            }
            Body::Udp {
                source_port,
                destination_port,
                data,
            } => {
                let len = u16::try_from(data.len() + 8)?;
                head[..2].copy_from_slice(&source_port.to_be_bytes());
                head[2..4].copy_from_slice(&destination_port.to_be_bytes());
                head[4..6].copy_from_slice(&len.to_be_bytes());
                (head, 6, data)
            }
        })
    }

    fn ip_header(&self, protocol: u8, body_len: usize) -> Result<Vec<u8>> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = vec![0; 20];
                header[0] = 0x45;
                header[2..4].copy_from_slice(&u16::try_from(body_len + 20)?.to_be_bytes());
                header[8] = HOPS;
                header[9] = protocol;
                header[12..16].copy_from_slice(&source.octets());
                header[16..].copy_from_slice(&destination.octets());
                let sum = checksum(0, &header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                Ok(header)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut header = vec![0; 40];
                header[0] = 0x60;
                header[4..6].copy_from_slice(&u16::try_from(body_len)?.to_be_bytes());
                header[6] = protocol;
                header[7] = HOPS;
                header[8..24].copy_from_slice(&source.octets());
                header[24..].copy_from_slice(&destination.octets());
                Ok(header)
            }
            (source, destination) => bail!("no packet goes from {source} to {destination}"),
        }
    }
}

/// Source, destination, protocol and body of a packet whose header is sound.
fn split(packet: &[u8]) -> Option<(IpAddr, IpAddr, u8, &[u8])> {
    match packet.first()? {
        0x45 => {
            let (header, body) = packet.split_first_chunk::<20>()?;
            if usize::from(u16_at(header, 2)?) != packet.len() || checksum(0, header) != 0 {
                return None;
            }
            let source: [u8; 4] = header[12..16].try_into().ok()?;
            let destination: [u8; 4] = header[16..].try_into().ok()?;
            Some((source.into(), destination.into(), header[9], body))
        }
        0x60 => {
            let (header, body) = packet.split_first_chunk::<40>()?;
            if usize::from(u16_at(header, 4)?) != body.len() {
                return None;
            }
            let source: [u8; 16] = header[8..24].try_into().ok()?;
            let destination: [u8; 16] = header[24..].try_into().ok()?;
            Some((source.into(), destination.into(), header[6], body))
        }
        _ => None,
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The sum over the pseudo header (RFC 768; RFC 8200, section 8.1).
fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u64 {
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => words(&address.octets()),
        IpAddr::V6(address) => words(&address.octets()),
    };
    address(source) + address(destination) + u64::from(protocol) + len as u64
}

/// The Internet checksum (RFC 1071); over bytes that contain theirs it is zero.
fn checksum(start: u64, bytes: &[u8]) -> u16 {
    let mut sum = start + words(bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn words(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets() -> Vec<Inner<'static>> {
        let data = b"odd".as_slice();
        let bodies = [
            Body::EchoRequest {
                id: 7,
                sequence: 9,
                data,
            },
            Body::EchoReply {
                id: 7,
                sequence: 9,
                data,
            },
            Body::Udp {
                source_port: 1,
                destination_port: 2,
                data,
            },
        ];
        let pairs = [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")];
        let of_pair = |(source, destination): (&str, &str)| {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            bodies.map(|body| Inner {
                source,
                destination,
                body,
            })
        };
        pairs.into_iter().flat_map(of_pair).collect()
    }

    #[test]
    fn packets_come_back_as_they_were_written() {
        for packet in packets() {
            let bytes = packet.to_bytes().unwrap();
            assert_eq!(Inner::parse(&bytes), Some(packet));
        }
    }

    #[test]
    fn a_changed_byte_is_noticed_in_all_that_a_checksum_covers() {
        for packet in packets() {
            let bytes = packet.to_bytes().unwrap();
            for at in 0..bytes.len() {
                // IPv6 has no checksum over the traffic class, flow label and hop limit.
                if packet.source.is_ipv6() && [1, 2, 3, 7].contains(&at) {
                    continue;
                }
                let mut changed = bytes.clone();
                changed[at] ^= 0x11;
                assert_eq!(Inner::parse(&changed), None, "byte {at} of {packet:?}");
            }
        }
    }

    #[test]
    fn a_known_header_has_its_known_checksum() {
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0x00, 0x00, 0xc0, 0xa8,
            0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert_eq!(checksum(0, &header), 0xb861);
    }
}
