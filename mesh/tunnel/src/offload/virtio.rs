//! What stands before a packet at the TUN: `struct virtio_net_hdr` of linux/virtio_net.h, in the
//! machine's own byte order.

/// The header's length in bytes.
pub const VIRTIO_HEADER_LEN: usize = 10;

const F_NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// What is left to be done with a packet before it can be one on a wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The checksum that is not computed yet.
    pub checksum: Option<PartialChecksum>,
    /// How the packet is to be split.
    pub split: Option<Split>,
}

/// A checksum that is to be computed from `start` to the packet's end; its field holds the sum of
/// what else belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// The transport header's offset in the packet, in bytes.
    pub start: u16,
    /// The field's offset from there, in bytes.
    pub offset: u16,
}

/// How a super-packet is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// What it carries.
    pub kind: SplitKind,
    /// The payload of each packet but the last in bytes; never 0.
    pub segment_len: u16,
    /// Its first packet says that the congestion window was reduced.
    pub ecn: bool,
}

/// The transport of a super-packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either.
    Udp,
}

impl Offload {
    /// Reads a header; `None` for what was not asked of the kernel.
    #[inline]
    pub fn parse(header: &[u8; VIRTIO_HEADER_LEN]) -> Option<Self> {
        let number = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let kind = match header[1] & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(SplitKind::Tcp4),
            GSO_TCPV6 => Some(SplitKind::Tcp6),
            GSO_UDP_L4 => Some(SplitKind::Udp),
            _ => return None,
        };
        let split = match kind {
            Some(_) if number(4) == 0 => return None,
            Some(kind) => Some(Split {
                kind,
                segment_len: number(4),
                ecn: header[1] & GSO_ECN != 0,
            }),
            None => None,
        };
        let checksum = (header[0] & F_NEEDS_CSUM != 0).then(|| PartialChecksum {
            start: number(6),
            offset: number(8),
        });
        Some(Self { checksum, split })
    }

    /// Writes the header; `headers_len` is the length of all headers of the packet in bytes.
    #[inline]
    pub fn to_bytes(self, headers_len: u16) -> [u8; VIRTIO_HEADER_LEN] {
        let mut header = [0; VIRTIO_HEADER_LEN];
        let mut put = |at: usize, number: u16| {
            header[at..at + 2].copy_from_slice(&number.to_ne_bytes());
        };
        if let Some(split) = self.split {
            put(2, headers_len);
            put(4, split.segment_len);
        }
        if let Some(checksum) = self.checksum {
            put(6, checksum.start);
            put(8, checksum.offset);
            header[0] = F_NEEDS_CSUM;
        }
        if let Some(split) = self.split {
            header[1] = match split.kind {
                SplitKind::Tcp4 => GSO_TCPV4,
                SplitKind::Tcp6 => GSO_TCPV6,
                SplitKind::Udp => GSO_UDP_L4,
            };
            if split.ecn {
                header[1] |= GSO_ECN;
            }
        }
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let checksum = Some(PartialChecksum {
            start: 20,
            offset: 16,
        });
        for kind in [SplitKind::Tcp4, SplitKind::Tcp6, SplitKind::Udp] {
            for ecn in [false, true] {
                let split = Some(Split {
                    kind,
                    segment_len: 1380,
                    ecn,
                });
                for offload in [
                    Offload { checksum, split },
                    Offload {
                        checksum: None,
                        split,
                    },
                    Offload {
                        checksum,
                        split: None,
                    },
                ] {
                    assert_eq!(Offload::parse(&offload.to_bytes(40)), Some(offload));
                }
            }
        }
        assert_eq!(Offload::default().to_bytes(40), [0; VIRTIO_HEADER_LEN]);
    }

    #[test]
    fn unknown_kinds_and_segments_of_nothing_are_refused() {
        let mut header = [0; VIRTIO_HEADER_LEN];
        header[4] = 1;
        for kind in [2, 3, 6, 0x20] {
            header[1] = kind;
            assert_eq!(Offload::parse(&header), None, "kind {kind}");
        }
        let mut header = [0; VIRTIO_HEADER_LEN];
        header[1] = GSO_TCPV4;
        assert_eq!(Offload::parse(&header), None);
    }
}
