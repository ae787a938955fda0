//! Echo requests of a given size, to many addresses at once.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

/// How often a request that nobody answered is sent again.
const AGAIN: Duration = Duration::from_secs(1);
/// ICMP's echo header (RFC 792, RFC 4443).
const HEADER: usize = 8;

/// A request: to whom, and how large its IP packet is in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Echo {
    pub(super) to: IpAddr,
    pub(super) packet_bytes: u32,
}

/// Sends each request, again every second, until all are answered or the time is up; returns those
/// that were answered.
///
/// # Errors
/// When no raw socket can be had: that needs root.
pub(super) fn ping(requests: &BTreeSet<Echo>, limit: Duration) -> io::Result<BTreeSet<Echo>> {
    let mut sockets = BTreeMap::new();
    for request in requests {
        let is_ipv6 = request.to.is_ipv6();
        if let std::collections::btree_map::Entry::Vacant(entry) = sockets.entry(is_ipv6) {
            entry.insert(open(is_ipv6)?);
        }
    }
    let id = std::process::id() as u16;
    let numbered: Vec<Echo> = requests.iter().copied().collect();
    let mut answered = BTreeSet::new();
    let (start, mut next) = (Instant::now(), Instant::now());
    while answered.len() < numbered.len() && start.elapsed() < limit {
        if Instant::now() >= next {
            next += AGAIN;
            let missing = numbered.iter().enumerate();
            for (number, echo) in missing.filter(|(_, echo)| !answered.contains(*echo)) {
                if let Some(socket) = sockets.get(&echo.to.is_ipv6()) {
                    let to = SocketAddr::new(echo.to, 0);
                    // No way there is as good as no answer.
                    let _ = socket.send_to(&request(echo, id, number as u16), &to.into());
                }
            }
        }
        for (is_ipv6, socket) in &sockets {
            let mut buffer = vec![0; 65_536];
            // A raw socket sees all of the host's ICMP: a flood of it must not hold the check up.
            while start.elapsed() < limit
                && let Ok(length) = (&*socket).read(&mut buffer)
            {
                let number = answer(&buffer[..length], *is_ipv6, id);
                let echo = number.and_then(|number| numbered.get(usize::from(number)));
                answered.extend(echo.filter(|echo| echo.to.is_ipv6() == *is_ipv6));
            }
        }
    }
    Ok(answered)
}

fn open(is_ipv6: bool) -> io::Result<Socket> {
    let (domain, protocol) = if is_ipv6 {
        (Domain::IPV6, Protocol::ICMPV6)
    } else {
        (Domain::IPV4, Protocol::ICMPV4)
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    Ok(socket)
}

fn request(echo: &Echo, id: u16, number: u16) -> Vec<u8> {
    let (kind, ip_header) = if echo.to.is_ipv6() {
        (128, 40)
    } else {
        (8, 20)
    };
    let length = (echo.packet_bytes as usize)
        .saturating_sub(ip_header)
        .max(HEADER);
    let mut packet = vec![0; length];
    packet[0] = kind;
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&number.to_be_bytes());
    if !echo.to.is_ipv6() {
        // For ICMPv6 the kernel does it.
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// The number of the request that a packet answers, if it is of ours.
fn answer(packet: &[u8], is_ipv6: bool, id: u16) -> Option<u16> {
    let (icmp, reply) = if is_ipv6 {
        (packet, 129)
    } else {
        // A raw IPv4 socket gives the IP header too.
        let header = usize::from(packet.first()? & 0x0f) * 4;
        (packet.get(header..)?, 0)
    };
    let header = icmp.get(..HEADER)?;
    let ours = header[0] == reply && header[4..6] == id.to_be_bytes();
    ours.then(|| u16::from_be_bytes([header[6], header[7]]))
}

/// The internet checksum (RFC 1071).
fn checksum(packet: &[u8]) -> u16 {
    let words = packet.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or(0);
        u32::from(u16::from_be_bytes([pair[0], low]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_size_asked_for_and_a_checksum_that_holds() {
        let to = "192.0.2.1".parse().unwrap_or(IpAddr::from([0, 0, 0, 0]));
        for packet_bytes in [28, 1399, 1440] {
            let packet = request(&Echo { to, packet_bytes }, 7, 9);
            assert_eq!(packet.len() as u32 + 20, packet_bytes);
            assert_eq!(
                checksum(&packet),
                0,
                "with its checksum in it, the sum is zero"
            );
        }
    }

    #[test]
    fn only_answers_to_our_own_requests_count() {
        let reply = [0, 0, 0, 0, 0, 7, 0, 9];
        let packet = [&[0x45; 20][..], &reply].concat();
        assert_eq!(answer(&packet, false, 7), Some(9));
        assert_eq!(answer(&packet, false, 8), None);
        let request = [&[0x45; 20][..], &[8, 0, 0, 0, 0, 7, 0, 9]].concat();
        assert_eq!(answer(&request, false, 7), None);
        assert_eq!(answer(&[129, 0, 0, 0, 0, 7, 0, 9], true, 7), Some(9));
        for length in 0..packet.len() {
            assert_eq!(answer(&packet[..length], false, 7), None);
        }
    }
}
