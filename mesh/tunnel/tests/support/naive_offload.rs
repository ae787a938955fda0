//! Splitting and putting together as one would write it down first, field by field and without
//! regard for cost: what the real ones are compared with.
#![allow(dead_code, unreachable_pub)] // each binary uses a part of it

use warren_tunnel::offload::{Offload, PartialChecksum, Split, SplitKind};

/// A whole packet by its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub ip: Ip,
    pub transport: Transport,
    pub payload: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ip {
    V4 {
        tos: u8,
        id: u16,
        dont_fragment: bool,
        ttl: u8,
        addresses: [[u8; 4]; 2],
        /// A multiple of 4 bytes, at most 40.
        options: Vec<u8>,
    },
    V6 {
        /// Traffic class and flow label.
        class_and_label: u32,
        hop_limit: u8,
        addresses: [[u8; 16]; 2],
        /// Destination options, one header for each: their bytes without the first two, 8n + 6.
        extensions: Vec<Vec<u8>>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp {
        ports: [u16; 2],
        sequence: u32,
        ack: u32,
        /// The bits between the header's length and the flags.
        reserved: u8,
        flags: u8,
        window: u16,
        urgent: u16,
        /// A multiple of 4 bytes, at most 40.
        options: Vec<u8>,
    },
    Udp {
        ports: [u16; 2],
    },
}

pub const FIN: u8 = 1;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;
pub const CWR: u8 = 128;

impl Packet {
    fn is_tcp(&self) -> bool {
        matches!(self.transport, Transport::Tcp { .. })
    }

    fn transport_at(&self) -> usize {
        match &self.ip {
            Ip::V4 { options, .. } => 20 + options.len(),
            Ip::V6 { extensions, .. } => {
                40 + extensions
                    .iter()
                    .map(|bytes| 2 + bytes.len())
                    .sum::<usize>()
            }
        }
    }

    /// The packet as on a wire.
    pub fn bytes(&self) -> Vec<u8> {
        let mut transport = self.transport_bytes();
        let checksum = !self.sum(&transport, true);
        let checksum = if checksum == 0 && !self.is_tcp() {
            0xffff
        } else {
            checksum
        };
        let at = if self.is_tcp() { 16 } else { 6 };
        transport[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        [self.ip_bytes(transport.len()), transport].concat()
    }

    /// The packet as the kernel hands it to a device that computes checksums, and that splits it
    /// where `segment_len` is given.
    pub fn offloaded(&self, segment_len: Option<u16>) -> (Vec<u8>, Offload) {
        let mut transport = self.transport_bytes();
        let pseudo = self.sum(&transport, false);
        let offset: u16 = if self.is_tcp() { 16 } else { 6 };
        let at = usize::from(offset);
        transport[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        let kind = match (&self.ip, &self.transport) {
            (_, Transport::Udp { .. }) => SplitKind::Udp,
            (Ip::V4 { .. }, _) => SplitKind::Tcp4,
            (Ip::V6 { .. }, _) => SplitKind::Tcp6,
        };
        let split = segment_len.map(|segment_len| Split {
            kind,
            segment_len,
            ecn: matches!(self.transport, Transport::Tcp { flags, .. } if flags & CWR != 0),
        });
        let checksum = Some(PartialChecksum {
            start: self.transport_at() as u16,
            offset,
        });
        let bytes = [self.ip_bytes(transport.len()), transport].concat();
        (bytes, Offload { checksum, split })
    }

    /// The packets that the kernel makes of this one.
    pub fn split(&self, segment_len: usize) -> Vec<Self> {
        let chunks: Vec<&[u8]> = match self.payload.is_empty() {
            true => vec![&[]],
            false => self.payload.chunks(segment_len).collect(),
        };
        let last = chunks.len() - 1;
        let make = |(n, chunk): (usize, &&[u8])| {
            let mut packet = self.clone();
            packet.payload = chunk.to_vec();
            if let Ip::V4 { id, .. } = &mut packet.ip {
                *id = id.wrapping_add(n as u16);
            }
            if let Transport::Tcp {
                sequence, flags, ..
            } = &mut packet.transport
            {
                *sequence = sequence.wrapping_add((n * segment_len) as u32);
                if n != 0 {
                    *flags &= !CWR;
                }
                if n != last {
                    *flags &= !(FIN | PSH);
                }
            }
            packet
        };
        chunks.iter().enumerate().map(make).collect()
    }

    fn ip_bytes(&self, transport_len: usize) -> Vec<u8> {
        let protocol = if self.is_tcp() { 6 } else { 17 };
        match &self.ip {
            Ip::V4 {
                tos,
                id,
                dont_fragment,
                ttl,
                addresses,
                options,
            } => {
                let header_len = 20 + options.len();
                let mut header = vec![0x40 | (header_len / 4) as u8, *tos];
                header.extend(((header_len + transport_len) as u16).to_be_bytes());
                header.extend(id.to_be_bytes());
                header.extend([
                    if *dont_fragment { 0x40 } else { 0 },
                    0,
                    *ttl,
                    protocol,
                    0,
                    0,
                ]);
                header.extend(addresses.concat());
                header.extend(options);
                let checksum = !fold(words(&header));
                header[10..12].copy_from_slice(&checksum.to_be_bytes());
                header
            }
            Ip::V6 {
                class_and_label,
                hop_limit,
                addresses,
                extensions,
            } => {
                let mut header = (6 << 28 | class_and_label).to_be_bytes().to_vec();
                let len = self.transport_at() - 40 + transport_len;
                header.extend((len as u16).to_be_bytes());
                const DESTINATION_OPTIONS: u8 = 60;
                let next = |n: usize| match n < extensions.len() {
                    true => DESTINATION_OPTIONS,
                    false => protocol,
                };
                header.extend([next(0), *hop_limit]);
                header.extend(addresses.concat());
                for (n, bytes) in extensions.iter().enumerate() {
                    assert_eq!(bytes.len() % 8, 6);
                    header.extend([next(n + 1), (bytes.len() / 8) as u8]);
                    header.extend(bytes);
                }
                header
            }
        }
    }

    /// Header and payload, the checksum zero.
    fn transport_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match &self.transport {
            Transport::Tcp {
                ports,
                sequence,
                ack,
                reserved,
                flags,
                window,
                urgent,
                options,
            } => {
                bytes.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
                bytes.extend(sequence.to_be_bytes());
                bytes.extend(ack.to_be_bytes());
                let header_len = 20 + options.len();
                bytes.extend([((header_len / 4) << 4) as u8 | reserved & 0xf, *flags]);
                bytes.extend(window.to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(urgent.to_be_bytes());
                bytes.extend(options);
            }
            Transport::Udp { ports } => {
                bytes.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
                bytes.extend(((8 + self.payload.len()) as u16).to_be_bytes());
                bytes.extend([0, 0]);
            }
        }
        bytes.extend(&self.payload);
        bytes
    }

    /// The sum of the pseudo-header, and of the rest.
    fn sum(&self, transport: &[u8], whole: bool) -> u16 {
        let addresses = match &self.ip {
            Ip::V4 { addresses, .. } => addresses.concat(),
            Ip::V6 { addresses, .. } => addresses.concat(),
        };
        let protocol = if self.is_tcp() { 6 } else { 17 };
        let mut sum = words(&addresses) + protocol + transport.len() as u64;
        if whole {
            sum += words(transport);
        }
        fold(sum)
    }
}

/// Cuts what was put together, from its bytes alone.
pub fn cut(frame: &[u8], offload: Offload) -> Vec<Vec<u8>> {
    let Some(split) = offload.split else {
        return vec![frame.to_vec()];
    };
    let transport = usize::from(offload.checksum.expect("splits have one").start);
    let is_tcp = split.kind != SplitKind::Udp;
    let header_len = match is_tcp {
        true => usize::from(frame[transport + 12] >> 4) * 4,
        false => 8,
    };
    let (headers, payload) = frame.split_at(transport + header_len);
    let chunks: Vec<&[u8]> = match payload.is_empty() {
        true => vec![&[]],
        false => payload.chunks(split.segment_len.into()).collect(),
    };
    let last = chunks.len() - 1;
    let make = |(n, chunk): (usize, &&[u8])| {
        let mut packet = [headers, *chunk].concat();
        let len = packet.len();
        let v4 = packet[0] >> 4 == 4;
        if v4 {
            packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            let id = u16::from_be_bytes([packet[4], packet[5]]).wrapping_add(n as u16);
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            packet[10..12].fill(0);
            let checksum = !fold(words(&packet[..transport]));
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        }
        let addresses = if v4 { 12..20 } else { 8..40 };
        let checksum_at = transport + if is_tcp { 16 } else { 6 };
        if is_tcp {
            let at = transport + 4..transport + 8;
            let mut sequence = 0u32;
            for byte in &packet[at.clone()] {
                sequence = sequence << 8 | u32::from(*byte);
            }
            let sequence = sequence.wrapping_add((n * usize::from(split.segment_len)) as u32);
            packet[at].copy_from_slice(&sequence.to_be_bytes());
            if n != 0 {
                packet[transport + 13] &= !CWR;
            }
            if n != last {
                packet[transport + 13] &= !(FIN | PSH);
            }
        } else {
            let len = (len - transport) as u16;
            packet[transport + 4..transport + 6].copy_from_slice(&len.to_be_bytes());
        }
        packet[checksum_at..checksum_at + 2].fill(0);
        let protocol = if is_tcp { 6 } else { 17 };
        let sum = words(&packet[addresses])
            + words(&packet[transport..])
            + protocol
            + (len - transport) as u64;
        let checksum = match !fold(sum) {
            0 if !is_tcp => 0xffff,
            checksum => checksum,
        };
        packet[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());
        packet
    };
    chunks.iter().enumerate().map(make).collect()
}

/// Writes into the checksum's field what the kernel leaves there: the sum of the pseudo-header.
pub fn put_pseudo_sum(frame: &mut [u8], protocol: u8, partial: PartialChecksum) {
    let start = usize::from(partial.start);
    let addresses = match frame[0] >> 4 {
        4 => &frame[12..20],
        _ => &frame[8..40],
    };
    let sum = words(addresses) + u64::from(protocol) + (frame.len() - start) as u64;
    let field = start + usize::from(partial.offset);
    frame[field..field + 2].copy_from_slice(&fold(sum).to_be_bytes());
}

fn words(bytes: &[u8]) -> u64 {
    let pairs = bytes.chunks(2);
    pairs
        .map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low)))
        .sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
