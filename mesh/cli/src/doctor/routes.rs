//! Routes of others for the pods' ranges.

use warren_core::consts::{PROTOCOL_AGENT, PROTOCOL_CNI};
use warren_netlink::{Route, RouteKind};

use super::facts::Facts;
use super::finding::{Check, Finding};

/// The kernel's table of this node's own addresses (`RT_TABLE_LOCAL`, linux/rtnetlink.h).
const LOCAL_TABLE: u32 = 255;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut check = Check::new("routes");
    let ranges = facts.pod_ranges();
    let Ok(net) = &facts.net else {
        return Vec::new();
    };
    let tunnel = facts.tunnel_link().map(|link| link.index);
    let foreign = |route: &&Route| {
        let ours = [PROTOCOL_AGENT, PROTOCOL_CNI].contains(&route.protocol);
        let refuses = matches!(route.kind, RouteKind::Unreachable | RouteKind::Blackhole);
        let by_tunnel = tunnel.is_some() && route.oif == tunnel;
        !ours
            && !refuses
            && !by_tunnel
            && route.table != LOCAL_TABLE
            && ranges.iter().any(|range| range.contains(&route.dst))
    };
    for route in net.routes.iter().filter(foreign) {
        let family = if route.dst.addr().is_ipv6() {
            " -6"
        } else {
            ""
        };
        let device = net.link_name(route.oif).unwrap_or("?");
        let gateway = route
            .gateway
            .map(|g| format!(" via {g}"))
            .unwrap_or_default();
        check.error(
            format!(
                "route {}{gateway} dev {device} table {} (protocol {}) lies in the pods' ranges",
                route.dst, route.table, route.protocol
            ),
            "packets to these pods leave the tunnel's way, and the filter drops them",
            format!(
                "ip{family} route del {}{gateway} dev {device} table {}; then find who sets it: \
                 another CNI, a bridge with that address, or a VPN",
                route.dst, route.table
            ),
        );
    }
    check.done("no route of others lies in the pods' ranges")
}
