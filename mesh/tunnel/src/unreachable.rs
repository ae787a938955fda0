//! Tells whoever sent a packet that there is no way for it, by ICMP, as the kernel's WireGuard does.
//!
//! The error seems to come from the packet's own destination: what a TUN device hands over must not have an
//! address of this host, and the way back to that destination is by this device. Where the packet was
//! translated on its way into the device, the kernel undoes that by what the error quotes.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::inner::InnerHeader;
use crate::offload::Sum;
use crate::outbox::Outbox;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const ICMP_HEADER: usize = 8;
/// Sizes that every way takes: RFC 1812, section 4.3.2.3, and RFC 4443, section 3.1.
const LARGEST_V4: usize = 576;
const LARGEST_V6: usize = 1280;
/// Room for either.
const ERROR_ROOM: usize = LARGEST_V6;
/// Host unreachable (RFC 792), and address unreachable (RFC 4443, section 3.1).
const HOST_UNREACHABLE: [u8; 2] = [3, 1];
const ADDRESS_UNREACHABLE: [u8; 2] = [1, 3];
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const HOP_LIMIT: u8 = 64;
/// Those of IPv6 after which something else decides whether an error may be sent: options, routing header,
/// fragment, destination options.
const MORE_HEADERS: [u8; 4] = [0, 43, 44, 60];

/// How many errors are sent in a second at most: a flood into nowhere must not become a second one.
const MOST_A_SECOND: u32 = 100;

/// The errors of this second.
#[derive(Debug, Default)]
pub(crate) struct Told {
    second: Option<Instant>,
    errors: u32,
}

impl Told {
    /// Puts the error about a packet into the outbox, unless there were too many lately.
    #[cold]
    pub(crate) fn tell(&mut self, now: Instant, packet: &[u8], out: &mut Outbox) {
        if let Some(room) = out.packets.room(ERROR_ROOM)
            && let Some(len) = error_about(packet, room)
            && self.may_tell(now)
        {
            out.packets.commit(len, ());
        }
    }

    /// Whether one more may be sent; it counts then.
    fn may_tell(&mut self, now: Instant) -> bool {
        let over = self
            .second
            .is_none_or(|at| now.saturating_duration_since(at) >= Duration::from_secs(1));
        if over {
            self.second = Some(now);
            self.errors = 0;
        }
        self.errors += 1;
        self.errors <= MOST_A_SECOND
    }
}

/// Writes the error about a packet into a room of [`ERROR_ROOM`] bytes and returns its length; `None` about
/// what no error may be sent about: errors, later fragments, multicast, sources that nobody has.
fn error_about(packet: &[u8], room: &mut [u8]) -> Option<usize> {
    let header = InnerHeader::parse(packet)?;
    let packet = &packet[..header.len];
    if header.has_martian_source() || is_for_many(header.destination) {
        return None;
    }
    match header.destination {
        IpAddr::V4(_) => about_v4(packet, room),
        IpAddr::V6(_) => about_v6(packet, room),
    }
}

fn is_for_many(destination: IpAddr) -> bool {
    match destination {
        IpAddr::V4(address) => {
            address.is_multicast() || address.is_broadcast() || address.is_unspecified()
        }
        IpAddr::V6(address) => address.is_multicast() || address.is_unspecified(),
    }
}

fn about_v4(packet: &[u8], room: &mut [u8]) -> Option<usize> {
    let fragment_offset = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff;
    let inside = &packet[usize::from(packet[0] & 0xf) * 4..];
    // Echoes and the like are no errors; of an unknown kind nobody knows.
    let is_error = packet[9] == ICMP && !matches!(inside.first(), Some(0 | 8 | 13 | 14));
    if fragment_offset != 0 || is_error {
        return None;
    }
    let quoted = packet.len().min(LARGEST_V4 - IPV4_HEADER - ICMP_HEADER);
    let len = IPV4_HEADER + ICMP_HEADER + quoted;
    let error = room.get_mut(..len)?;
    error.fill(0);
    let (header, icmp) = error.split_at_mut(IPV4_HEADER);
    // Internetwork control (RFC 1812, section 4.3.2.5).
    header[..2].copy_from_slice(&[0x45, 0xc0]);
    header[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    header[8..10].copy_from_slice(&[HOP_LIMIT, ICMP]);
    header[12..16].copy_from_slice(&packet[16..20]);
    header[16..20].copy_from_slice(&packet[12..16]);
    let sum = Sum::default().plus(header).checksum();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    icmp[..2].copy_from_slice(&HOST_UNREACHABLE);
    icmp[ICMP_HEADER..].copy_from_slice(&packet[..quoted]);
    let sum = Sum::default().plus(icmp).checksum();
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(len)
}

fn about_v6(packet: &[u8], room: &mut [u8]) -> Option<usize> {
    let next = packet[6];
    // Errors have the lower half of the numbers.
    let is_error = next == ICMPV6 && packet.get(IPV6_HEADER).is_none_or(|kind| *kind < 128);
    if MORE_HEADERS.contains(&next) || is_error {
        return None;
    }
    let quoted = packet.len().min(LARGEST_V6 - IPV6_HEADER - ICMP_HEADER);
    let icmp_len = ICMP_HEADER + quoted;
    let error = room.get_mut(..IPV6_HEADER + icmp_len)?;
    error.fill(0);
    let (header, icmp) = error.split_at_mut(IPV6_HEADER);
    header[0] = 0x60;
    header[4..6].copy_from_slice(&(icmp_len as u16).to_be_bytes());
    header[6..8].copy_from_slice(&[ICMPV6, HOP_LIMIT]);
    header[8..24].copy_from_slice(&packet[24..40]);
    header[24..40].copy_from_slice(&packet[8..24]);
    icmp[..2].copy_from_slice(&ADDRESS_UNREACHABLE);
    icmp[ICMP_HEADER..].copy_from_slice(&packet[..quoted]);
    let pseudo = Sum::default()
        .plus(&header[8..40])
        .plus_u16(icmp_len as u16)
        .plus_u16(ICMPV6.into());
    let sum = pseudo.plus(icmp).checksum();
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(IPV6_HEADER + icmp_len)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM_V4: [u8; 4] = [10, 1, 0, 2];
    const TO_V4: [u8; 4] = [10, 9, 0, 2];

    fn v4(protocol: u8, inside: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; IPV4_HEADER];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&((IPV4_HEADER + inside.len()) as u16).to_be_bytes());
        packet[9] = protocol;
        packet[12..16].copy_from_slice(&FROM_V4);
        packet[16..20].copy_from_slice(&TO_V4);
        packet.extend(inside);
        packet
    }

    fn v6(next: u8, inside: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; IPV6_HEADER];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&(inside.len() as u16).to_be_bytes());
        packet[6] = next;
        packet[8..10].copy_from_slice(&[0xfd, 0]);
        packet[23] = 1;
        packet[24..26].copy_from_slice(&[0xfd, 0]);
        packet[39] = 2;
        packet.extend(inside);
        packet
    }

    fn error(packet: &[u8]) -> Option<Vec<u8>> {
        let mut room = vec![0xff; ERROR_ROOM];
        let len = error_about(packet, &mut room)?;
        Some(room[..len].to_vec())
    }

    #[test]
    fn an_error_of_ipv4_quotes_the_packet_and_comes_from_where_it_was_to_go() {
        let packet = v4(17, &[7; 1000]);
        let error = error(&packet).unwrap();
        assert_eq!(error.len(), LARGEST_V4);
        assert_eq!(InnerHeader::parse(&error).unwrap().len, LARGEST_V4);
        assert_eq!((&error[12..16], &error[16..20]), (&TO_V4[..], &FROM_V4[..]));
        assert_eq!(error[20..22], HOST_UNREACHABLE);
        assert_eq!(error[28..], packet[..LARGEST_V4 - 28]);
        // A sum over what holds its own complement is all ones.
        assert_eq!(Sum::default().plus(&error[..20]).fold(), 0xffff);
        assert_eq!(Sum::default().plus(&error[20..]).fold(), 0xffff);
    }

    #[test]
    fn an_error_of_ipv6_has_a_checksum_over_both_addresses() {
        let packet = v6(17, &[7; 9]);
        let error = error(&packet).unwrap();
        let icmp_len = ICMP_HEADER + packet.len();
        assert_eq!(error.len(), IPV6_HEADER + icmp_len);
        assert_eq!(
            (&error[8..24], &error[24..40]),
            (&packet[24..40], &packet[8..24])
        );
        assert_eq!(error[40..42], ADDRESS_UNREACHABLE);
        assert_eq!(error[48..], packet);
        let mut whole = (icmp_len as u32).to_be_bytes().to_vec();
        whole.extend([0, 0, 0, ICMPV6]);
        whole.extend(&error[8..]);
        assert_eq!(Sum::default().plus(&whole).fold(), 0xffff);
        let long = super::tests::error(&v6(17, &[7; 2000])).unwrap();
        assert_eq!(long.len(), LARGEST_V6);
    }

    #[test]
    fn nothing_is_said_about_errors_fragments_and_what_is_for_many() {
        assert!(error(&v4(ICMP, &[8; 8])).is_some(), "an echo");
        assert!(error(&v6(ICMPV6, &[128; 8])).is_some(), "an echo");
        assert_eq!(error(&v4(ICMP, &[3; 8])), None);
        assert_eq!(error(&v6(ICMPV6, &[1; 8])), None);
        assert_eq!(error(&v6(44, &[0; 8])), None);
        let mut later = v4(17, &[0; 8]);
        later[7] = 1;
        assert_eq!(error(&later), None);
        let mut to_many = v4(17, &[0; 8]);
        to_many[16] = 224;
        assert_eq!(error(&to_many), None);
        let mut to_many = v6(17, &[0; 8]);
        to_many[24] = 0xff;
        assert_eq!(error(&to_many), None);
        let mut from_nobody = v6(17, &[0; 8]);
        from_nobody[8..24].fill(0);
        assert_eq!(error(&from_nobody), None);
        assert_eq!(error(&[]), None);
        // A header without anything in it.
        assert_eq!(error(&v4(ICMP, &[])), None);
        assert_eq!(error(&v6(ICMPV6, &[])), None);
    }

    #[test]
    fn a_second_has_a_hundred_errors_at_most() {
        let (mut told, start) = (Told::default(), Instant::now());
        let tell = |told: &mut Told, at| (0..1000).filter(|_| told.may_tell(at)).count();
        assert_eq!(tell(&mut told, start), 100);
        assert_eq!(tell(&mut told, start + Duration::from_millis(999)), 0);
        assert_eq!(tell(&mut told, start + Duration::from_secs(1)), 100);
    }
}
