//! IPv4 with its options, IPv6 with its extension headers.

use super::{At, FragmentId, Kind, Walk, be16, be32, from, v6};
use std::net::IpAddr;

/// Extension headers that share the layout next header, length in 8 bytes beyond the first.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

impl Walk {
    pub(super) fn ipv4(&mut self, data: &[u8], at: At) {
        self.v4_at(data, 12, "IPv4 source", at);
        self.v4_at(data, 16, "IPv4 destination", at);
        let (Some(&first), Some(length), Some(id), Some(fragment), Some(&protocol)) = (
            data.first(),
            be16(data, 2),
            be16(data, 4),
            be16(data, 6),
            data.get(9),
        ) else {
            return self.cut_off("IPv4 header", at);
        };
        if at.depth == 0 {
            self.v6 = false;
            self.kind = Kind::Ip(protocol);
        }
        let header = usize::from(first & 0x0f) * 4;
        if first >> 4 != 4 || header < 20 {
            return self.malform("IPv4 header");
        }
        let Some(options) = data.get(20..header) else {
            return self.cut_off("IPv4 options", at);
        };
        self.ipv4_options(options, at);
        let data = self.trim(data, header, usize::from(length), at);
        let (offset, more) = (fragment & 0x1fff, fragment & 0x2000 != 0);
        if at.depth == 0 && (offset > 0 || more) && self.found.len() >= 2 {
            let (source, destination) = (self.found[0].address, self.found[1].address);
            self.fragment = Some(FragmentId {
                source,
                destination,
                id: id.into(),
            });
        }
        if offset > 0 {
            if at.depth == 0 {
                self.kind = Kind::Fragment { protocol };
            }
            return;
        }
        self.transport(
            protocol,
            data,
            At {
                lenient: at.lenient || more,
                ..at
            },
        );
    }

    /// RFC 791, section 3.1: record route, both source routes and timestamps hold addresses.
    fn ipv4_options(&mut self, mut options: &[u8], at: At) {
        while let Some(&kind) = options.first() {
            let length = match kind {
                0 => return,
                1 => 1,
                _ => options.get(1).map_or(0, |l| usize::from(*l)),
            };
            let Some(option) = options.get(..length).filter(|_| kind == 1 || length >= 2) else {
                return self.malform("IPv4 option");
            };
            let place = match kind {
                7 => "IPv4 record route option",
                131 | 137 => "IPv4 source route option",
                68 => "IPv4 timestamp option",
                _ => "",
            };
            let entries = match (kind, option.get(3).map(|b| b & 0x0f)) {
                (7 | 131 | 137, _) => from(option, 3).chunks_exact(4),
                (68, Some(1 | 3)) => from(option, 4).chunks_exact(8),
                _ => [].chunks_exact(4),
            };
            for entry in entries {
                self.v4_at(entry, 0, place, at);
            }
            options = from(options, length);
        }
    }

    pub(super) fn ipv6(&mut self, data: &[u8], at: At) {
        self.v6_at(data, 8, "IPv6 source", at);
        self.v6_at(data, 24, "IPv6 destination", at);
        let (Some(&first), Some(length), Some(&next)) = (data.first(), be16(data, 4), data.get(6))
        else {
            return self.cut_off("IPv6 header", at);
        };
        if at.depth == 0 {
            self.v6 = true;
            self.kind = Kind::Ip(next);
        }
        if first >> 4 != 6 {
            return self.malform("IPv6 header");
        }
        if data.len() < 40 {
            return self.cut_off("IPv6 header", at);
        }
        let total = if length == 0 {
            0
        } else {
            40 + usize::from(length)
        };
        let ends = v6(data, 8)
            .zip(v6(data, 24))
            .map(|(s, d)| (IpAddr::V6(s), IpAddr::V6(d)));
        let data = self.trim(data, 40, total, at);
        self.extensions(next, data, ends, at);
    }

    fn extensions(
        &mut self,
        mut next: u8,
        mut data: &[u8],
        ends: Option<(IpAddr, IpAddr)>,
        mut at: At,
    ) {
        loop {
            let header = match next {
                FRAGMENT => 8,
                AUTHENTICATION => data.get(1).map_or(0, |l| (usize::from(*l) + 2) * 4),
                HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY | HIP | SHIM6 => {
                    data.get(1).map_or(0, |l| (usize::from(*l) + 1) * 8)
                }
                _ => return self.transport(next, data, at),
            };
            let Some(extension) = data.get(..header).filter(|e| !e.is_empty()) else {
                // Of a cut-off routing header, what is there still counts.
                if next == ROUTING {
                    self.routing(
                        data,
                        At {
                            lenient: true,
                            ..at
                        },
                    );
                }
                return self.cut_off("IPv6 extension header", at);
            };
            let after = extension[0];
            match next {
                ROUTING => self.routing(extension, at),
                HOP_BY_HOP | DESTINATION_OPTIONS => self.ipv6_options(from(extension, 2), at),
                FRAGMENT => {
                    let (position, id) = (be16(extension, 2).unwrap_or(0), be32(extension, 4));
                    if let (0, Some(id), Some((source, destination))) = (at.depth, id, ends) {
                        self.fragment = Some(FragmentId {
                            source,
                            destination,
                            id,
                        });
                    }
                    if position & 0xfff8 != 0 {
                        if at.depth == 0 {
                            self.kind = Kind::Fragment { protocol: after };
                        }
                        return;
                    }
                    at.lenient |= position & 1 != 0;
                }
                _ => {}
            }
            if at.depth == 0 {
                self.kind = Kind::Ip(after);
            }
            next = after;
            data = from(data, header);
        }
    }

    /// Types 0 (RFC 2460), 2 (RFC 6275) and 4, segment routing (RFC 8754) list whole addresses.
    fn routing(&mut self, header: &[u8], at: At) {
        let list = from(header, 8);
        let entries = match (header.get(2), header.get(4)) {
            (Some(0 | 2), _) => list.len() / 16,
            (Some(4), Some(last)) => (usize::from(*last) + 1).min(list.len() / 16),
            _ => return self.malform("IPv6 routing header of an unknown type"),
        };
        for entry in list.chunks_exact(16).take(entries) {
            self.v6_at(entry, 0, "IPv6 routing header", at);
        }
    }

    fn ipv6_options(&mut self, mut options: &[u8], at: At) {
        while let Some(&kind) = options.first() {
            if kind == 0 {
                options = from(options, 1);
                continue;
            }
            let Some(&length) = options.get(1) else {
                return self.cut_off("IPv6 option", at);
            };
            // Home address (RFC 6275, section 6.3).
            if kind == 0xc9 {
                self.v6_at(options, 2, "IPv6 home address option", at);
            }
            options = from(options, 2 + usize::from(length));
        }
    }

    /// The payload without link-layer padding. A total of 0 is a super-packet of more than 64 KB.
    fn trim<'a>(&mut self, data: &'a [u8], header: usize, total: usize, at: At) -> &'a [u8] {
        let total = if total == 0 { data.len() } else { total };
        if total > data.len() || total < header {
            self.cut_off("IP packet shorter than its length field", at);
        }
        data.get(header..total.min(data.len())).unwrap_or_default()
    }
}
