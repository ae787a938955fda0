//! Walks every header of a frame and collects every network address in it.
//!
//! The walker is strict where a frame is whole (what it cannot follow makes the frame *malformed*,
//! which a capture reports as unexpected) and lenient in packets quoted by ICMP errors, which are
//! cut off by nature.

mod icmp;
mod ip;
mod transport;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Deepest nesting followed; deeper is malformed.
const DEPTH_MAX: u8 = 8;

/// 802.1Q, 802.1ad and the old stacked form.
const VLAN_TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];
const VLAN_TAGS_MAX: u8 = 4;

pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_ARP: u16 = 0x0806;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;

/// An address and the header it was in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) address: IpAddr,
    pub(crate) place: &'static str,
    /// How many packets are around that header.
    pub(crate) depth: u8,
}

/// What the outermost packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Neither ARP nor IP.
    Ether(u16),
    Arp,
    Udp {
        source: u16,
        destination: u16,
    },
    Tcp {
        source: u16,
        destination: u16,
    },
    Icmp {
        kind: u8,
    },
    IcmpV6 {
        kind: u8,
    },
    Igmp,
    /// A fragment that is not the first, of a packet of the given protocol.
    Fragment {
        protocol: u8,
    },
    /// Another IP protocol.
    Ip(u8),
}

/// Identifies the fragments of one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FragmentId {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) id: u32,
}

/// What a walk found; reused from frame to frame.
#[derive(Debug)]
pub(crate) struct Walk {
    pub(crate) found: Vec<Found>,
    pub(crate) kind: Kind,
    /// Whether the outermost network header is IPv6.
    pub(crate) v6: bool,
    /// First bytes of the outermost UDP payload and that payload's length.
    pub(crate) udp_head: [u8; 4],
    pub(crate) udp_len: usize,
    /// Set when the outermost packet is fragmented.
    pub(crate) fragment: Option<FragmentId>,
    pub(crate) malformed: Option<&'static str>,
}

/// Where the walk is.
#[derive(Debug, Clone, Copy)]
struct At {
    depth: u8,
    /// The packet may be cut off.
    lenient: bool,
}

impl At {
    fn inside(self) -> Self {
        Self {
            depth: self.depth + 1,
            ..self
        }
    }

    fn quoted(self) -> Self {
        Self {
            depth: self.depth + 1,
            lenient: true,
        }
    }
}

/// How a frame begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkLayer {
    /// By an Ethernet header.
    Ethernet,
    /// By an IP header, as on a TUN interface.
    Ip,
}

impl Walk {
    pub(crate) fn new() -> Self {
        Self {
            found: Vec::with_capacity(16),
            kind: Kind::Ether(0),
            v6: false,
            udp_head: [0; 4],
            udp_len: 0,
            fragment: None,
            malformed: None,
        }
    }

    /// Walks one frame; the result is in the fields.
    pub(crate) fn frame(&mut self, layer: LinkLayer, frame: &[u8]) {
        self.found.clear();
        *self = Self {
            found: std::mem::take(&mut self.found),
            ..Self::new()
        };
        let at = At {
            depth: 0,
            lenient: false,
        };
        match layer {
            LinkLayer::Ethernet => self.ethernet(frame, at),
            LinkLayer::Ip => self.by_version(frame, at),
        }
    }

    fn ethernet(&mut self, frame: &[u8], at: At) {
        match be16(frame, 12) {
            Some(ethertype) => self.network(ethertype, from(frame, 14), at),
            None => self.cut_off("Ethernet header", at),
        }
    }

    /// Follows an EtherType.
    fn network(&mut self, mut ethertype: u16, mut data: &[u8], at: At) {
        if at.depth > DEPTH_MAX {
            self.malform("headers nested too deeply");
            return;
        }
        let mut tags = 0;
        while VLAN_TAGS.contains(&ethertype) {
            match be16(data, 2) {
                Some(inner) if tags < VLAN_TAGS_MAX => ethertype = inner,
                _ => return self.malform("VLAN tags"),
            }
            data = from(data, 4);
            tags += 1;
        }
        if at.depth == 0 {
            self.kind = Kind::Ether(ethertype);
        }
        match ethertype {
            ETHERTYPE_IPV4 => self.ipv4(data, at),
            ETHERTYPE_IPV6 => self.ipv6(data, at),
            ETHERTYPE_ARP => self.arp(data, at),
            // Transparent Ethernet bridging, as inside GRE and Geneve.
            0x6558 => self.ethernet(data, at),
            // MPLS: labels up to the one with the bottom-of-stack bit.
            0x8847 | 0x8848 => {
                let bottom = data.chunks_exact(4).position(|label| label[2] & 1 == 1);
                match bottom {
                    Some(labels) => self.by_version(from(data, (labels + 1) * 4), at.inside()),
                    None => self.cut_off("MPLS labels", at),
                }
            }
            // PPPoE session: six bytes, then PPP's protocol number.
            0x8864 => match be16(data, 6) {
                Some(0x0021) => self.ipv4(from(data, 8), at.inside()),
                Some(0x0057) => self.ipv6(from(data, 8), at.inside()),
                Some(_) => {}
                None => self.cut_off("PPPoE header", at),
            },
            _ => {}
        }
    }

    fn by_version(&mut self, data: &[u8], at: At) {
        match data.first().map(|b| b >> 4) {
            Some(4) => self.network(ETHERTYPE_IPV4, data, at),
            Some(6) => self.network(ETHERTYPE_IPV6, data, at),
            Some(_) => self.malform("neither IPv4 nor IPv6"),
            None => self.cut_off("IP header", at),
        }
    }

    fn arp(&mut self, data: &[u8], at: At) {
        if at.depth == 0 {
            self.kind = Kind::Arp;
        }
        let (Some(protocol), Some(&hardware_len), Some(&protocol_len)) =
            (be16(data, 2), data.get(4), data.get(5))
        else {
            return self.cut_off("ARP header", at);
        };
        if protocol != ETHERTYPE_IPV4 || protocol_len != 4 {
            return self.malform("ARP for another protocol than IPv4");
        }
        let sender = 8 + usize::from(hardware_len);
        let target = sender + 4 + usize::from(hardware_len);
        self.v4_at(data, sender, "ARP sender", at);
        self.v4_at(data, target, "ARP target", at);
    }

    fn v4_at(&mut self, data: &[u8], offset: usize, place: &'static str, at: At) {
        match data
            .get(offset..offset + 4)
            .and_then(|b| <[u8; 4]>::try_from(b).ok())
        {
            Some(bytes) => self.note(Ipv4Addr::from(bytes).into(), place, at),
            None => self.cut_off(place, at),
        }
    }

    fn v6_at(&mut self, data: &[u8], offset: usize, place: &'static str, at: At) {
        match v6(data, offset) {
            Some(address) => self.note(address.into(), place, at),
            None => self.cut_off(place, at),
        }
    }

    fn note(&mut self, address: IpAddr, place: &'static str, at: At) {
        self.found.push(Found {
            address,
            place,
            depth: at.depth,
        });
        if let IpAddr::V6(v6) = address
            && let Some(mapped) = v6.to_ipv4_mapped()
        {
            self.found.push(Found {
                address: mapped.into(),
                place,
                depth: at.depth,
            });
        }
    }

    fn cut_off(&mut self, what: &'static str, at: At) {
        if !at.lenient {
            self.malform(what);
        }
    }

    fn malform(&mut self, what: &'static str) {
        self.malformed.get_or_insert(what);
    }
}

fn be16(data: &[u8], offset: usize) -> Option<u16> {
    data.get(offset..offset + 2)?
        .try_into()
        .ok()
        .map(u16::from_be_bytes)
}

fn be32(data: &[u8], offset: usize) -> Option<u32> {
    data.get(offset..offset + 4)?
        .try_into()
        .ok()
        .map(u32::from_be_bytes)
}

fn v6(data: &[u8], offset: usize) -> Option<Ipv6Addr> {
    <[u8; 16]>::try_from(data.get(offset..offset + 16)?)
        .ok()
        .map(Ipv6Addr::from)
}

/// The rest of the data; empty when it is shorter.
fn from(data: &[u8], offset: usize) -> &[u8] {
    data.get(offset..).unwrap_or_default()
}

#[cfg(test)]
mod tests;
