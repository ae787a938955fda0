//! One run: packets of a flow that follow one another.

use crate::offload::checksum::Sum;
use crate::offload::fields::*;
use crate::offload::virtio::{Offload, PartialChecksum, Split, SplitKind};

/// The longest super-packet: the length field of IPv4.
const MAX_LEN: usize = 65_535;
/// The most packets in one: segments of 512 bytes in 64 KB. Each is a part of one write, of which the
/// kernel takes 1,024.
pub(crate) const MAX_PACKETS: usize = 128;
/// The most datagrams in one: what the kernel puts together itself, and what sockets with UDP_GRO are
/// prepared for.
const MAX_UDP_PACKETS: u32 = 64;

/// Don't-Fragment, and what fragments have: More-Fragments and an offset.
const DF: u16 = 0x4000;
const FRAGMENT: u16 = 0x3fff;

/// A packet that is in no flow that runs are made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unknown {
    /// It may belong to any flow there is, so that none may pass it.
    pub(super) may_be_of_any_flow: bool,
}

/// What a packet of TCP or UDP says of its flow, which can be seen without options or extension
/// headers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    kind: Kind,
    payload_at: usize,
    payload_len: usize,
    flags: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp4,
    Tcp6,
    Udp4,
    Udp6,
}

impl Kind {
    fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Tcp6)
    }

    fn is_v4(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Udp4)
    }

    /// Where the transport's header begins.
    fn transport(self) -> usize {
        match self.is_v4() {
            true => IPV4_HEADER,
            false => IPV6_HEADER,
        }
    }

    /// The source and the destination, which the ports follow.
    fn addresses(self) -> usize {
        match self.is_v4() {
            true => 12,
            false => 8,
        }
    }
}

impl Flow {
    #[inline]
    pub(super) fn parse(packet: &[u8], udp: bool) -> Result<Self, Unknown> {
        let any = Unknown {
            may_be_of_any_flow: true,
        };
        let other = Unknown {
            may_be_of_any_flow: false,
        };
        let v4 = packet.first().is_some_and(|first| first >> 4 == 4);
        let protocol = if v4 {
            let header: &[u8; IPV4_HEADER] = packet.first_chunk().ok_or(any)?;
            // A bad checksum would become a good one.
            let is_good = Sum::default().plus(header).checksum() == 0;
            if header[0] != 0x45 || get_u16(header, 6) & FRAGMENT != 0 || !is_good {
                return Err(any);
            }
            header[9]
        } else {
            let header: &[u8; IPV6_HEADER] = packet.first_chunk().ok_or(any)?;
            header[6]
        };
        let (kind, header_len, flags) = match protocol {
            TCP => {
                let kind = if v4 { Kind::Tcp4 } else { Kind::Tcp6 };
                let header = packet[kind.transport()..].first_chunk().ok_or(other)?;
                let len = tcp_header_len(header);
                if len < TCP_HEADER {
                    return Err(any);
                }
                (kind, len, header[TCP_FLAGS])
            }
            UDP if udp => (if v4 { Kind::Udp4 } else { Kind::Udp6 }, UDP_HEADER, 0),
            // Extension headers: what is behind them is not looked for.
            0 | 43 | 44 | 50 | 51 | 60 | 135 | 139 | 140 if !v4 => return Err(any),
            _ => return Err(other),
        };
        let payload_at = kind.transport() + header_len;
        let payload_len = packet.len().checked_sub(payload_at).ok_or(any)?;
        Ok(Self {
            kind,
            payload_at,
            payload_len,
            flags,
        })
    }

    #[inline]
    pub(super) fn hash(&self, packet: &[u8]) -> u64 {
        let addresses = &packet[self.kind.addresses()..self.kind.transport() + 4];
        let words = addresses.as_chunks::<4>().0.iter();
        let mixed = words.fold(self.kind as u64, |hash, word| {
            (hash ^ u64::from(u32::from_ne_bytes(*word))).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        });
        mixed >> 32
    }

    /// Whether the packet is the next one of the run, which begins with `head`.
    #[inline]
    pub(super) fn follows(&self, packet: &[u8], run: &Run, head: &[u8]) -> bool {
        if Some(self.kind) != run.kind
            || self.payload_len == 0
            || self.payload_len > run.segment_len
            || run.len + self.payload_len > MAX_LEN
            || run.packets as usize >= MAX_PACKETS
        {
            return false;
        }
        let transport = self.kind.transport();
        let ip_same = if self.kind.is_v4() {
            packet[1] == head[1]
                && packet[6..9] == head[6..9]
                && packet[12..20] == head[12..20]
                && run.id_step_to(packet, head).is_some()
        } else {
            packet[..4] == head[..4] && packet[7..40] == head[7..40]
        };
        let (packet, head) = (&packet[transport..], &head[transport..]);
        let same = |range: std::ops::Range<usize>| packet[range.clone()] == head[range];
        ip_same
            && same(0..4)
            && if self.kind.is_tcp() {
                let headers = self.payload_at - transport;
                // Of the flags the end's may come, and the head's CWR may be missing.
                let flags = (self.flags | CWR) ^ (head[TCP_FLAGS] | CWR);
                get_u32(packet, 4) == run.next_sequence
                    && same(8..13)
                    && flags & !(FIN | PSH) == 0
                    && self.flags & CWR == 0
                    && same(14..16)
                    && same(18..TCP_HEADER)
                    && run.payload_at == self.payload_at
                    && same(TCP_HEADER..headers)
            } else {
                self.is_good_udp(packet) && run.packets < MAX_UDP_PACKETS
            }
    }

    /// A length of its own, or no checksum, cannot be made again.
    fn is_good_udp(&self, transport: &[u8]) -> bool {
        usize::from(get_u16(transport, 4)) == UDP_HEADER + self.payload_len
            && get_u16(transport, UDP_CHECKSUM) != 0
    }
}

/// Packets that follow one another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    kind: Option<Kind>,
    pub(super) head: u32,
    pub(super) tail: u32,
    pub(super) packets: u32,
    /// The length of the super-packet in bytes.
    len: usize,
    payload_at: usize,
    segment_len: usize,
    next_sequence: u32,
    /// FIN and PSH of the last packet.
    end_flags: u8,
    /// By how much the identification grows from packet to packet, once there are two.
    id_step: Option<u16>,
    grows: bool,
}

impl Run {
    /// A packet that nothing can follow.
    pub(super) fn single(number: u32) -> Self {
        Self {
            kind: None,
            head: number,
            tail: number,
            packets: 1,
            len: 0,
            payload_at: 0,
            segment_len: 0,
            next_sequence: 0,
            end_flags: 0,
            id_step: None,
            grows: false,
        }
    }

    #[inline]
    pub(super) fn begin(flow: &Flow, packet: &[u8], number: u32) -> Self {
        let transport = &packet[flow.kind.transport()..];
        let (next_sequence, grows) = if flow.kind.is_tcp() {
            let next = get_u32(transport, 4).wrapping_add(flow.payload_len as u32);
            // All other flags are for the receiver to see at once.
            (next, flow.flags & !(ACK | ECE | CWR) == 0)
        } else {
            (0, flow.is_good_udp(transport))
        };
        Self {
            kind: Some(flow.kind),
            len: packet.len(),
            payload_at: flow.payload_at,
            segment_len: flow.payload_len,
            next_sequence,
            grows: grows && flow.payload_len > 0,
            ..Self::single(number)
        }
    }

    #[inline]
    pub(super) fn append(&mut self, flow: &Flow, packet: &[u8], head: &[u8], number: u32) {
        if flow.kind.is_v4() {
            self.id_step = self.id_step_to(packet, head);
        }
        self.tail = number;
        self.packets += 1;
        self.len += flow.payload_len;
        self.next_sequence = self.next_sequence.wrapping_add(flow.payload_len as u32);
        self.end_flags = flow.flags & (FIN | PSH);
        self.grows = flow.payload_len == self.segment_len && self.end_flags == 0;
    }

    pub(super) fn may_grow(&self) -> bool {
        self.grows
    }

    pub(super) fn payload_at(&self) -> usize {
        self.payload_at
    }

    /// By how much the IPv4 identification has grown with every packet, this one included: by one,
    /// or not at all, where nobody may fragment and it says nothing (RFC 6864).
    #[inline]
    fn id_step_to(&self, packet: &[u8], head: &[u8]) -> Option<u16> {
        let grown = get_u16(packet, 4).wrapping_sub(get_u16(head, 4));
        let step = if u32::from(grown) == self.packets {
            1
        } else if grown == 0 && get_u16(packet, 6) & DF != 0 {
            0
        } else {
            return None;
        };
        self.id_step
            .is_none_or(|before| before == step)
            .then_some(step)
    }

    /// See [`super::Coalescer::finish`].
    #[inline]
    pub(super) fn finish(&self, head: &mut [u8]) -> (Offload, u16) {
        let Some(kind) = self.kind.filter(|_| self.packets > 1) else {
            return (Offload::default(), 0);
        };
        let start = kind.transport();
        let transport_len = (self.len - start) as u16;
        if kind.is_v4() {
            put_u16(head, 2, self.len as u16);
            put_u16(head, 10, 0);
            let checksum = Sum::default().plus(&head[..IPV4_HEADER]).checksum();
            put_u16(head, 10, checksum);
        } else {
            put_u16(head, 4, transport_len);
        }
        let addresses = Sum::default().plus(&head[kind.addresses()..start]);
        let transport = &mut head[start..];
        let (split, protocol, offset, ecn) = if kind.is_tcp() {
            transport[TCP_FLAGS] |= self.end_flags;
            let split = match kind {
                Kind::Tcp4 => SplitKind::Tcp4,
                _ => SplitKind::Tcp6,
            };
            (split, TCP, TCP_CHECKSUM, transport[TCP_FLAGS] & CWR != 0)
        } else {
            put_u16(transport, 4, transport_len);
            (SplitKind::Udp, UDP, UDP_CHECKSUM, false)
        };
        let pseudo = addresses.plus_u16(protocol.into()).plus_u16(transport_len);
        put_u16(transport, offset, pseudo.fold());
        let offload = Offload {
            checksum: Some(PartialChecksum {
                start: start as u16,
                offset: offset as u16,
            }),
            split: Some(Split {
                kind: split,
                segment_len: self.segment_len as u16,
                ecn,
            }),
        };
        (offload, self.payload_at as u16)
    }
}
