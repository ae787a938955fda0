//! ICMP and ICMPv6: quoted packets, redirects, neighbour discovery, multicast listeners.

use super::{At, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Kind, Walk, be16, from};

impl Walk {
    pub(super) fn icmp(&mut self, data: &[u8], at: At) {
        let Some(&kind) = data.first() else {
            return self.cut_off("ICMP header", at);
        };
        if at.depth == 0 {
            self.kind = Kind::Icmp { kind };
        }
        match kind {
            3 | 4 | 11 | 12 => self.network(ETHERTYPE_IPV4, from(data, 8), at.quoted()),
            5 => {
                self.v4_at(data, 4, "ICMP redirect gateway", at);
                self.network(ETHERTYPE_IPV4, from(data, 8), at.quoted());
            }
            // Router advertisement (RFC 1256): pairs of address and preference.
            9 => {
                for entry in from(data, 8).chunks_exact(8) {
                    self.v4_at(entry, 0, "ICMP router advertisement", at);
                }
            }
            _ => {}
        }
    }

    pub(super) fn icmpv6(&mut self, data: &[u8], at: At) {
        let Some(&kind) = data.first() else {
            return self.cut_off("ICMPv6 header", at);
        };
        if at.depth == 0 {
            self.kind = Kind::IcmpV6 { kind };
        }
        match kind {
            1..=4 => self.network(ETHERTYPE_IPV6, from(data, 8), at.quoted()),
            130..=132 => {
                self.v6_at(data, 8, "MLD group", at);
                if let (130, Some(count)) = (kind, be16(data, 26)) {
                    self.mld_sources(from(data, 28), count, at);
                }
            }
            133 => self.nd_options(from(data, 8), at),
            134 => self.nd_options(from(data, 16), at),
            135 | 136 => {
                self.v6_at(data, 8, "neighbour discovery target", at);
                self.nd_options(from(data, 24), at);
            }
            137 => {
                self.v6_at(data, 8, "redirect target", at);
                self.v6_at(data, 24, "redirect destination", at);
                self.nd_options(from(data, 40), at);
            }
            143 => self.mld_report(data, at),
            _ => {}
        }
    }

    /// RFC 4861, section 4.6, with RFC 4191 and RFC 8106.
    fn nd_options(&mut self, mut options: &[u8], at: At) {
        while let Some(&kind) = options.first() {
            let length = options.get(1).map_or(0, |l| usize::from(*l) * 8);
            let Some(option) = options.get(..length).filter(|o| !o.is_empty()) else {
                return self.cut_off("neighbour discovery option", at);
            };
            match kind {
                3 => self.v6_at(option, 16, "router advertisement prefix", at),
                4 => self.network(ETHERTYPE_IPV6, from(option, 8), at.quoted()),
                24 => {
                    // The prefix may be cut to its significant half.
                    let mut whole = [0; 16];
                    for (to, byte) in whole.iter_mut().zip(from(option, 8)) {
                        *to = *byte;
                    }
                    self.v6_at(&whole, 0, "router advertisement route", at);
                }
                25 => {
                    for server in from(option, 8).chunks_exact(16) {
                        self.v6_at(server, 0, "router advertisement DNS server", at);
                    }
                }
                _ => {}
            }
            options = from(options, length);
        }
    }

    /// RFC 3810, section 5.2.
    fn mld_report(&mut self, data: &[u8], at: At) {
        let mut records = from(data, 8);
        for _ in 0..be16(data, 6).unwrap_or(0) {
            let Some(count) = be16(records, 2) else {
                return self.cut_off("MLD record", at);
            };
            self.v6_at(records, 4, "MLD group", at);
            self.mld_sources(from(records, 20), count, at);
            let auxiliary = records.get(1).map_or(0, |l| usize::from(*l) * 4);
            records = from(records, 20 + usize::from(count) * 16 + auxiliary);
        }
    }

    fn mld_sources(&mut self, data: &[u8], count: u16, at: At) {
        for source in data.chunks_exact(16).take(count.into()) {
            self.v6_at(source, 0, "MLD source", at);
        }
    }
}
