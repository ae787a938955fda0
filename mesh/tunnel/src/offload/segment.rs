//! Cuts a super-packet into the packets that the kernel would have made of it.

use super::checksum::Sum;
use super::fields::*;
use super::virtio::{Offload, PartialChecksum, Split, SplitKind};

/// The most packets that one super-packet may become. TCP with the smallest segments that Linux
/// makes of 64 KB stays below it; what is beyond was forged, to make one call cost as much as ten
/// thousand.
pub const MAX_SEGMENTS: usize = 2048;

/// The packets of what was read from the TUN in one piece, one after the other.
///
/// They are made in place: the headers of each go before its payload, over the end of the packet
/// before, which its user is done with by then.
///
/// ```text
/// super-packet    | headers | payload 1 | payload 2 | payload 3 |
/// first segment   | headers | payload 1 |
/// second segment             | headers  | payload 2 |
/// ```
#[derive(Debug)]
pub struct Segments<'a> {
    frame: &'a mut [u8],
    cut: Option<Cut>,
    count: usize,
    made: usize,
}

/// How a super-packet is cut, and what its packets have in common.
#[derive(Clone, Copy, Debug)]
struct Cut {
    is_tcp: bool,
    /// Where the transport's header begins.
    transport: usize,
    /// Where the payload begins.
    payload: usize,
    segment_len: usize,
    /// The TCP flags of the super-packet.
    flags: u8,
    /// The sum of the pseudo-header without the length.
    pseudo: Sum,
}

impl<'a> Segments<'a> {
    /// Takes what was read. `None` where `offload` does not fit the packet, or asks for more than
    /// [`MAX_SEGMENTS`].
    #[inline]
    pub fn new(frame: &'a mut [u8], offload: Offload) -> Option<Self> {
        let (cut, count) = match offload.split {
            None => {
                if let Some(partial) = offload.checksum {
                    complete_checksum(frame, partial)?;
                }
                (None, 1)
            }
            Some(split) => {
                let cut = Cut::of(frame, split, offload.checksum)?;
                let payload = frame.len() - cut.payload;
                (Some(cut), payload.div_ceil(cut.segment_len).max(1))
            }
        };
        (count <= MAX_SEGMENTS).then_some(Self {
            frame,
            cut,
            count,
            made: 0,
        })
    }

    /// Returns how many packets there are in all.
    #[inline]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Makes the next packet; it is gone when the one after it is made.
    #[inline]
    pub fn next_segment(&mut self) -> Option<&[u8]> {
        if self.made == self.count {
            return None;
        }
        let made = self.made;
        self.made += 1;
        let Some(cut) = self.cut else {
            return Some(self.frame);
        };
        let start = made * cut.segment_len;
        if let Some(before) = start.checked_sub(cut.segment_len) {
            self.frame.copy_within(before..before + cut.payload, start);
        }
        let end = (start + cut.payload + cut.segment_len).min(self.frame.len());
        let segment = &mut self.frame[start..end];
        cut.finish(segment, made == 0, self.made == self.count);
        Some(segment)
    }
}

impl Cut {
    fn of(frame: &[u8], split: Split, partial: Option<PartialChecksum>) -> Option<Self> {
        let is_tcp = split.kind != SplitKind::Udp;
        let (protocol, checksum_at) = match is_tcp {
            true => (TCP, TCP_CHECKSUM),
            false => (UDP, UDP_CHECKSUM),
        };
        let transport = match (frame.first()? >> 4, split.kind) {
            (4, SplitKind::Tcp4 | SplitKind::Udp) => {
                let header: &[u8; IPV4_HEADER] = frame.first_chunk()?;
                let len = usize::from(header[0] & 0xf) * 4;
                let fits = len >= IPV4_HEADER && header[9] == protocol;
                fits.then_some(len)?
            }
            (6, SplitKind::Tcp6 | SplitKind::Udp) => {
                let header: &[u8; IPV6_HEADER] = frame.first_chunk()?;
                match partial {
                    // Behind extension headers: the kernel knows how many.
                    Some(partial) => usize::from(partial.start).max(IPV6_HEADER),
                    None => (header[6] == protocol).then_some(IPV6_HEADER)?,
                }
            }
            _ => return None,
        };
        let header = frame.get(transport..)?;
        let (header_len, flags) = if is_tcp {
            let header: &[u8; TCP_HEADER] = header.first_chunk()?;
            (tcp_header_len(header), header[TCP_FLAGS])
        } else {
            (UDP_HEADER, 0)
        };
        let transport_len = u16::try_from(header.len()).ok()?;
        let least = if is_tcp { TCP_HEADER } else { UDP_HEADER };
        if !(least..=transport_len.into()).contains(&header_len) {
            return None;
        }
        let pseudo = match partial {
            Some(partial) => {
                let place = (usize::from(partial.start), usize::from(partial.offset));
                (place == (transport, checksum_at)).then_some(())?;
                // Over the addresses that the packet has at its end, whatever routing headers say.
                let sum = Sum::default().plus_u16(get_u16(header, checksum_at));
                sum.minus_u16(transport_len)
            }
            None => {
                let addresses = match frame[0] >> 4 {
                    4 => &frame[12..20],
                    _ => &frame[8..40],
                };
                Sum::default().plus(addresses).plus_u16(protocol.into())
            }
        };
        Some(Self {
            is_tcp,
            transport,
            payload: transport + header_len,
            segment_len: split.segment_len.max(1).into(),
            flags,
            pseudo,
        })
    }

    /// Makes a packet of headers, those of the packet before or of the super-packet, and payload.
    #[inline]
    fn finish(&self, segment: &mut [u8], first: bool, last: bool) {
        let len = segment.len();
        let (ip, transport) = segment.split_at_mut(self.transport);
        if ip[0] >> 4 == 4 {
            put_u16(ip, 2, len as u16);
            if !first {
                let id = get_u16(ip, 4);
                put_u16(ip, 4, id.wrapping_add(1));
            }
            put_u16(ip, 10, 0);
            let checksum = Sum::default().plus(ip).checksum();
            put_u16(ip, 10, checksum);
        } else {
            put_u16(ip, 4, (len - IPV6_HEADER) as u16);
        }
        let transport_len = transport.len() as u16;
        let sum = self.pseudo.plus_u16(transport_len);
        if self.is_tcp {
            if !first {
                let sequence = get_u32(transport, 4);
                put_u32(transport, 4, sequence.wrapping_add(self.segment_len as u32));
            }
            let mut flags = self.flags;
            if !first {
                flags &= !CWR;
            }
            if !last {
                flags &= !(FIN | PSH);
            }
            transport[TCP_FLAGS] = flags;
            put_u16(transport, TCP_CHECKSUM, 0);
            let checksum = sum.plus(transport).checksum();
            put_u16(transport, TCP_CHECKSUM, checksum);
        } else {
            put_u16(transport, 4, transport_len);
            put_u16(transport, UDP_CHECKSUM, 0);
            let checksum = sum.plus(transport).nonzero_checksum();
            put_u16(transport, UDP_CHECKSUM, checksum);
        }
    }
}

/// Computes the checksum that the kernel has left to a device.
#[inline]
fn complete_checksum(packet: &mut [u8], partial: PartialChecksum) -> Option<()> {
    let summed = packet.get_mut(partial.start.into()..)?;
    let field = usize::from(partial.offset);
    // The field holds the sum of the pseudo-header, and is summed up with the rest.
    let checksum = Sum::default().plus(summed).nonzero_checksum();
    let field = summed.get_mut(field..)?.first_chunk_mut::<2>()?;
    *field = checksum.to_be_bytes();
    Some(())
}
