//! What a packet on an underlay link may be, and the judgement of each.

use std::collections::VecDeque;
use std::fmt;

use ipnet::IpNet;
use memchr::memmem::Finder;

use super::parse::{FragmentId, Kind, LinkLayer, Walk};

/// How many fragmented WireGuard packets are remembered to know their later fragments.
const FRAGMENTS_MAX: usize = 256;

/// What a capture looks for.
#[derive(Debug, Clone, Default)]
pub struct ClearTextRules {
    /// Ranges no address in any header of any packet may be from.
    pub pod_ranges: Vec<IpNet>,
    /// Text no packet may contain; empty for none.
    pub marker: Vec<u8>,
    /// UDP ports of WireGuard; a packet to or from one must have the form of a WireGuard message.
    pub wireguard_ports: Vec<u16>,
    /// What else may pass; everything not listed is reported as unexpected.
    pub allow: Vec<Allow>,
}

/// Traffic that is allowed beside WireGuard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Allow {
    /// ARP.
    Arp,
    /// IPv6 router and neighbour discovery, with redirects.
    NeighborDiscovery,
    /// Multicast listener discovery.
    Mld,
    /// IGMP.
    Igmp,
    /// DHCP of either family.
    Dhcp,
    /// ICMP and ICMPv6 errors: too big, unreachable, time exceeded and the like.
    IcmpErrors,
    /// Echo requests and replies of either family.
    IcmpEcho,
    /// TCP from or to this port.
    Tcp(u16),
    /// UDP from or to this port.
    Udp(u16),
    /// Frames of this EtherType (below 1536: IEEE 802.3 frames of that length).
    EtherType(u16),
}

impl Allow {
    /// What every healthy underlay carries: ARP, neighbour discovery, MLD, IGMP and ICMP errors.
    pub fn usual() -> Vec<Self> {
        vec![
            Self::Arp,
            Self::NeighborDiscovery,
            Self::Mld,
            Self::Igmp,
            Self::IcmpErrors,
        ]
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arp => f.write_str("ARP"),
            Self::NeighborDiscovery => f.write_str("neighbour discovery"),
            Self::Mld => f.write_str("MLD"),
            Self::Igmp => f.write_str("IGMP"),
            Self::Dhcp => f.write_str("DHCP"),
            Self::IcmpErrors => f.write_str("ICMP errors"),
            Self::IcmpEcho => f.write_str("ICMP echo"),
            Self::Tcp(port) => write!(f, "TCP port {port}"),
            Self::Udp(port) => write!(f, "UDP port {port}"),
            Self::EtherType(number) => write!(f, "EtherType {number:#06x}"),
        }
    }
}

/// The family of an outer packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What distinguishes WireGuard packets in a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WireGuardKind {
    /// The family of the outer packet.
    pub family: Family,
    /// 1 initiation, 2 response, 3 cookie reply, 4 data; 0 for a later fragment.
    pub message: u8,
    /// The WireGuard port the packet went to or came from.
    pub port: u16,
}

/// The judgement of one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    WireGuard(WireGuardKind),
    Allowed(Allow),
    ClearText(String),
    Unexpected(String),
}

/// Judges frames; has the memory that fragments need.
#[derive(Debug)]
pub(crate) struct Judge {
    rules: ClearTextRules,
    finder: Option<Finder<'static>>,
    walk: Walk,
    fragments: VecDeque<(FragmentId, u16)>,
}

impl Judge {
    pub(crate) fn new(rules: ClearTextRules) -> Self {
        let marker = &rules.marker;
        let finder = (!marker.is_empty()).then(|| Finder::new(marker).into_owned());
        Self {
            rules,
            finder,
            walk: Walk::new(),
            fragments: VecDeque::new(),
        }
    }

    pub(crate) fn frame(&mut self, layer: LinkLayer, frame: &[u8]) -> Verdict {
        if let Some(at) = self.finder.as_ref().and_then(|f| f.find(frame)) {
            return Verdict::ClearText(format!("the marker at byte {at}"));
        }
        self.walk.frame(layer, frame);
        let ranges = &self.rules.pod_ranges;
        let hit = |address| ranges.iter().any(|range| range.contains(&address));
        if let Some(found) = self.walk.found.iter().find(|f| hit(f.address)) {
            let inside = match found.depth {
                0 => String::new(),
                depth => format!(", {depth} packets deep"),
            };
            let (place, address) = (found.place, found.address);
            return Verdict::ClearText(format!("pod address {address} as {place}{inside}"));
        }
        if let Some(what) = self.walk.malformed {
            return Verdict::Unexpected(format!("malformed: {what}"));
        }
        if let Some(verdict) = self.wireguard() {
            return verdict;
        }
        match self
            .rules
            .allow
            .iter()
            .find(|allow| allows(**allow, self.walk.kind))
        {
            Some(allow) => Verdict::Allowed(*allow),
            None => Verdict::Unexpected(format!("{:?}", self.walk.kind)),
        }
    }

    fn wireguard(&mut self) -> Option<Verdict> {
        let Walk {
            kind,
            v6,
            udp_head,
            udp_len,
            fragment,
            ..
        } = self.walk;
        let family = if v6 { Family::V6 } else { Family::V4 };
        if let (Kind::Fragment { .. }, Some(id)) = (kind, fragment) {
            // Two processors may swap fragments: one that comes before its first counts with those of
            // the same pair of addresses. The headers and the marker are judged in any case.
            let of_packet = self.fragments.iter().find(|(known, _)| *known == id);
            let of_pair = || {
                let pair = |known: &FragmentId| (known.source, known.destination);
                let same = |(known, _): &&(FragmentId, u16)| pair(known) == pair(&id);
                self.fragments.iter().find(same)
            };
            let port = of_packet.or_else(of_pair)?.1;
            return Some(Verdict::WireGuard(WireGuardKind {
                family,
                message: 0,
                port,
            }));
        }
        let Kind::Udp {
            source,
            destination,
        } = kind
        else {
            return None;
        };
        let ours = |port: &u16| self.rules.wireguard_ports.contains(port);
        let port = [destination, source].into_iter().find(ours)?;
        let [message, 0, 0, 0] = udp_head else {
            return Some(Verdict::Unexpected(format!(
                "not WireGuard on UDP port {port}"
            )));
        };
        // A data message has a header of 16 bytes and a tag of 16; super-packets hold several, so
        // no more can be said of the length.
        let well_formed = match message {
            1 => udp_len == 148,
            2 => udp_len == 92,
            3 => udp_len == 64,
            4 => udp_len >= 32 || fragment.is_some(),
            _ => false,
        };
        if !well_formed {
            let what = format!("message {message} of {udp_len} bytes on WireGuard port {port}");
            return Some(Verdict::Unexpected(what));
        }
        if let Some(id) = fragment {
            if self.fragments.len() == FRAGMENTS_MAX {
                self.fragments.pop_front();
            }
            self.fragments.push_back((id, port));
        }
        Some(Verdict::WireGuard(WireGuardKind {
            family,
            message,
            port,
        }))
    }
}

fn allows(allow: Allow, kind: Kind) -> bool {
    let one_of = |ports: [u16; 2], allowed: &[u16]| ports.iter().any(|p| allowed.contains(p));
    match (allow, kind) {
        (Allow::Arp, Kind::Arp)
        | (Allow::NeighborDiscovery, Kind::IcmpV6 { kind: 133..=137 })
        | (
            Allow::Mld,
            Kind::IcmpV6 {
                kind: 130..=132 | 143,
            },
        )
        | (Allow::Igmp, Kind::Igmp)
        | (
            Allow::IcmpErrors,
            Kind::Icmp {
                kind: 3..=5 | 11 | 12,
            },
        )
        | (Allow::IcmpErrors, Kind::IcmpV6 { kind: 1..=4 })
        | (Allow::IcmpEcho, Kind::Icmp { kind: 0 | 8 })
        | (Allow::IcmpEcho, Kind::IcmpV6 { kind: 128 | 129 }) => true,
        (
            Allow::Dhcp,
            Kind::Udp {
                source,
                destination,
            },
        ) => one_of([source, destination], &[67, 68, 546, 547]),
        (
            Allow::Udp(port),
            Kind::Udp {
                source,
                destination,
            },
        )
        | (
            Allow::Tcp(port),
            Kind::Tcp {
                source,
                destination,
            },
        ) => one_of([source, destination], &[port]),
        (Allow::EtherType(number), Kind::Ether(seen)) => number == seen,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> ClearTextRules {
        ClearTextRules {
            pod_ranges: vec![
                "10.244.0.0/16".parse().unwrap(),
                "fd00::/16".parse().unwrap(),
            ],
            marker: b"plain-marker".to_vec(),
            wireguard_ports: vec![51871],
            allow: Allow::usual(),
        }
    }

    fn packet(source: [u8; 4], protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![2; 12];
        packet.extend_from_slice(&[8, 0, 0x45, 0]);
        packet.extend_from_slice(&(20 + payload.len() as u16).to_be_bytes());
        packet.extend_from_slice(&[0, 9]);
        packet.extend_from_slice(&fragment.to_be_bytes());
        packet.extend_from_slice(&[64, protocol, 0, 0]);
        [&packet[..], &source, &[192, 0, 2, 2], payload].concat()
    }

    fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
        let length = (8 + payload.len() as u16).to_be_bytes();
        [&[9, 9][..], &port.to_be_bytes(), &length, &[0, 0], payload].concat()
    }

    fn wireguard(message: u8, length: usize) -> Vec<u8> {
        let mut payload = vec![0xaa; length];
        payload[..4].copy_from_slice(&[message, 0, 0, 0]);
        udp(51871, &payload)
    }

    const NODE: [u8; 4] = [192, 0, 2, 1];

    #[test]
    fn wireguard_messages_are_told_by_type_and_length() {
        let mut judge = Judge::new(rules());
        for (message, length, good) in [
            (1, 148, true),
            (1, 149, false),
            (2, 92, true),
            (3, 64, true),
            (4, 32, true),
            (4, 31, false),
            (4, 60_000, true),
            (5, 148, false),
        ] {
            let frame = packet(NODE, 17, 0, &wireguard(message, length));
            let verdict = judge.frame(LinkLayer::Ethernet, &frame);
            let kind = WireGuardKind {
                family: Family::V4,
                message,
                port: 51871,
            };
            assert_eq!(
                verdict == Verdict::WireGuard(kind),
                good,
                "{message} {length}: {verdict:?}"
            );
            assert!(good || matches!(verdict, Verdict::Unexpected(_)));
        }
    }

    #[test]
    fn a_pod_address_outside_of_wireguard_is_clear_text() {
        let frame = packet([10, 244, 1, 2], 17, 0, &udp(53, b"query"));
        let verdict = Judge::new(rules()).frame(LinkLayer::Ethernet, &frame);
        assert!(
            matches!(verdict, Verdict::ClearText(r) if r.contains("10.244.1.2 as IPv4 source"))
        );
        // Even where the packet has WireGuard's form: its outer source must be the node's.
        let frame = packet([10, 244, 1, 2], 17, 0, &wireguard(4, 64));
        let verdict = Judge::new(rules()).frame(LinkLayer::Ethernet, &frame);
        assert!(matches!(verdict, Verdict::ClearText(_)));
    }

    #[test]
    fn the_marker_is_clear_text_wherever_it_is() {
        let mut payload = wireguard(4, 200);
        payload.extend_from_slice(b"..plain-marker..");
        let frame = packet(NODE, 17, 0, &payload);
        let verdict = Judge::new(rules()).frame(LinkLayer::Ethernet, &frame);
        assert!(matches!(verdict, Verdict::ClearText(r) if r.starts_with("the marker")));
    }

    #[test]
    fn later_fragments_of_wireguard_packets_are_known_and_others_not() {
        let mut judge = Judge::new(rules());
        let later = packet(NODE, 17, 2, &[7; 16]);
        assert!(matches!(
            judge.frame(LinkLayer::Ethernet, &later),
            Verdict::Unexpected(_)
        ));
        let first = packet(NODE, 17, 0x2000, &wireguard(4, 40));
        let kind = |message| WireGuardKind {
            family: Family::V4,
            message,
            port: 51871,
        };
        assert_eq!(
            judge.frame(LinkLayer::Ethernet, &first),
            Verdict::WireGuard(kind(4))
        );
        assert_eq!(
            judge.frame(LinkLayer::Ethernet, &later),
            Verdict::WireGuard(kind(0))
        );
    }

    #[test]
    fn only_what_is_allowed_is_allowed() {
        let tcp = packet(NODE, 6, 0, &[0, 22, 0x13, 0x88, 0, 0, 0, 0]);
        let echo = packet(NODE, 1, 0, &[8, 0, 0, 0, 0, 0, 0, 0]);
        let dns = packet(NODE, 17, 0, &udp(53, b"query"));
        for (frame, allow) in [
            (tcp, Allow::Tcp(22)),
            (echo, Allow::IcmpEcho),
            (dns, Allow::Udp(53)),
        ] {
            let mut judge = Judge::new(rules());
            assert!(matches!(
                judge.frame(LinkLayer::Ethernet, &frame),
                Verdict::Unexpected(_)
            ));
            let mut wider = rules();
            wider.allow.push(allow);
            let verdict = Judge::new(wider).frame(LinkLayer::Ethernet, &frame);
            assert_eq!(verdict, Verdict::Allowed(allow));
        }
    }

    #[test]
    fn malformed_frames_are_unexpected() {
        let frame = packet(NODE, 17, 0, &wireguard(4, 64));
        let verdict = Judge::new(rules()).frame(LinkLayer::Ethernet, &frame[..60]);
        assert!(matches!(verdict, Verdict::Unexpected(r) if r.starts_with("malformed")));
    }
}
