//! How large an inner packet may be.

use std::net::IpAddr;

use crate::consts::{MIN_MTU, OVERHEAD_V4, OVERHEAD_V6};

/// The largest MTU a link can have (an IP packet's length field).
const MAX_MTU: u32 = 65_535;
/// The underlay's MTU where nothing better is known: Ethernet's.
pub const DEFAULT_UNDERLAY_MTU: u32 = 1500;

/// The largest inner packet in bytes that fits one outer packet to `endpoint` on an underlay of
/// `underlay_mtu_bytes`, never under 1280: below that IPv6 does not work at all, and the outer
/// packet is fragmented instead.
pub fn inner_mtu(underlay_mtu_bytes: u32, endpoint: IpAddr) -> u32 {
    let overhead = if endpoint.is_ipv4() {
        OVERHEAD_V4
    } else {
        OVERHEAD_V6
    };
    // Loopback's 65,536 is not a size that an IP packet can have.
    underlay_mtu_bytes
        .min(MAX_MTU)
        .saturating_sub(overhead)
        .max(MIN_MTU)
}

/// The outer packet in bytes that carries the smallest inner MTU to `endpoint`: on a narrower
/// underlay it leaves in fragments.
pub fn needed(endpoint: IpAddr) -> u32 {
    MIN_MTU
        + if endpoint.is_ipv4() {
            OVERHEAD_V4
        } else {
            OVERHEAD_V6
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn inner_mtu_leaves_room_for_the_outer_headers_and_stays_usable() {
        let v4 = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        let v6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
        assert_eq!(inner_mtu(1500, v4), 1440);
        assert_eq!(inner_mtu(1500, v6), 1420);
        assert_eq!(inner_mtu(9000, v6), 8920);
        assert_eq!(inner_mtu(1280, v6), 1280);
        assert_eq!(inner_mtu(0, v4), 1280);
        assert_eq!(inner_mtu(65_536, v4), 65_475);
    }
}
