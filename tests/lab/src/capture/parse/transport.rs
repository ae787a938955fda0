//! What IP carries: UDP and TCP, IGMP, and tunnels with packets inside.

use super::{At, Kind, Walk, be16, from};

const VXLAN_PORTS: [u16; 2] = [4789, 8472];
const GENEVE_PORT: u16 = 6081;
const TEREDO_PORT: u16 = 3544;
const BOOTP_PORTS: [u16; 2] = [67, 68];

impl Walk {
    pub(super) fn transport(&mut self, protocol: u8, data: &[u8], at: At) {
        match protocol {
            1 => self.icmp(data, at),
            2 => self.igmp(data, at),
            4 => self.network(super::ETHERTYPE_IPV4, data, at.inside()),
            6 => self.tcp(data, at),
            17 => self.udp(data, at),
            41 => self.network(super::ETHERTYPE_IPV6, data, at.inside()),
            47 => self.gre(data, at),
            51 => {
                // AH in IPv4; in IPv6 it is walked as an extension header.
                let header = data.get(1).map_or(0, |l| (usize::from(*l) + 2) * 4);
                match data.first().filter(|_| data.len() >= header) {
                    Some(51) => self.malform("AH in AH"),
                    Some(&next) => self.transport(next, from(data, header), at),
                    None => self.cut_off("AH header", at),
                }
            }
            58 => self.icmpv6(data, at),
            // Ethernet directly in IP (RFC 3378, RFC 8986).
            97 => self.ethernet(from(data, 2), at.inside()),
            143 => self.ethernet(data, at.inside()),
            137 => self.network(0x8847, data, at.inside()),
            _ => {}
        }
    }

    fn tcp(&mut self, data: &[u8], at: At) {
        let (Some(source), Some(destination)) = (be16(data, 0), be16(data, 2)) else {
            return self.cut_off("TCP header", at);
        };
        if at.depth == 0 {
            self.kind = Kind::Tcp {
                source,
                destination,
            };
        }
    }

    fn udp(&mut self, data: &[u8], at: At) {
        let (Some(source), Some(destination)) = (be16(data, 0), be16(data, 2)) else {
            return self.cut_off("UDP header", at);
        };
        let payload = from(data, 8);
        if at.depth == 0 {
            self.kind = Kind::Udp {
                source,
                destination,
            };
            self.udp_len = payload.len();
            if let Some(head) = payload.first_chunk() {
                self.udp_head = *head;
            }
        }
        let uses = |port| source == port || destination == port;
        if VXLAN_PORTS.into_iter().any(uses) {
            if payload.len() < 8 {
                return self.cut_off("VXLAN header", at);
            }
            self.ethernet(from(payload, 8), at.inside());
        } else if uses(GENEVE_PORT) {
            let (Some(&first), Some(inner)) = (payload.first(), be16(payload, 2)) else {
                return self.cut_off("Geneve header", at);
            };
            let header = 8 + usize::from(first & 0x3f) * 4;
            self.network(inner, from(payload, header), at.inside());
        } else if uses(TEREDO_PORT) && payload.first().is_some_and(|b| b >> 4 == 6) {
            self.network(super::ETHERTYPE_IPV6, payload, at.inside());
        } else if BOOTP_PORTS.into_iter().any(uses) {
            for (offset, place) in [
                (12, "DHCP client address"),
                (16, "DHCP offered address"),
                (20, "DHCP server address"),
                (24, "DHCP relay address"),
            ] {
                self.v4_at(payload, offset, place, at);
            }
        }
    }

    /// RFC 2784 and RFC 2890; version 1 (PPTP) carries PPP.
    fn gre(&mut self, data: &[u8], at: At) {
        let (Some(flags), Some(protocol)) = (be16(data, 0), be16(data, 2)) else {
            return self.cut_off("GRE header", at);
        };
        if flags & 0x4007 != 0 {
            return self.malform("GRE with source routes or of version 1");
        }
        let optional = [0x8000, 0x2000, 0x1000]
            .into_iter()
            .filter(|bit| flags & bit != 0)
            .count();
        let data = from(data, 4 + optional * 4);
        match protocol {
            // ERSPAN type I has no header of its own, type II one of eight bytes.
            0x88be => {
                let header = if flags & 0x1000 == 0 { 0 } else { 8 };
                self.ethernet(from(data, header), at.inside());
            }
            _ => self.network(protocol, data, at.inside()),
        }
    }

    /// RFC 2236 and RFC 3376.
    fn igmp(&mut self, data: &[u8], at: At) {
        if at.depth == 0 {
            self.kind = Kind::Igmp;
        }
        let sources = |this: &mut Self, data: &[u8], count: usize| {
            for source in data.chunks_exact(4).take(count) {
                this.v4_at(source, 0, "IGMP source", at);
            }
        };
        match data.first() {
            Some(0x22) => {
                let mut records = from(data, 8);
                for _ in 0..be16(data, 6).unwrap_or(0) {
                    let Some(count) = be16(records, 2) else {
                        return self.cut_off("IGMP record", at);
                    };
                    self.v4_at(records, 4, "IGMP group", at);
                    sources(self, from(records, 8), count.into());
                    let auxiliary = records.get(1).map_or(0, |l| usize::from(*l) * 4);
                    records = from(records, 8 + usize::from(count) * 4 + auxiliary);
                }
            }
            Some(_) => {
                self.v4_at(data, 4, "IGMP group", at);
                if let Some(count) = be16(data, 10) {
                    sources(self, from(data, 12), count.into());
                }
            }
            None => self.cut_off("IGMP header", at),
        }
    }
}
