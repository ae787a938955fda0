//! Routes of other programs into the mesh's pod ranges.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use warren_core::consts::{MAIN_TABLE, PROTOCOL_AGENT, PROTOCOL_CNI};
use warren_netlink::{Netlink, NetlinkError, Route, RouteKind};

/// The most routes that are named one by one.
const MAX_NAMED: usize = 5;

/// Reads the main table and returns what others put there for a part of the ranges, in words for
/// `ip route del`.
pub(super) async fn read(
    netlink: &Netlink,
    ranges: &BTreeSet<IpNet>,
) -> Result<Vec<String>, NetlinkError> {
    let mut foreign = netlink.routes_in(MAIN_TABLE, None).await?;
    foreign.retain(|route| is_foreign(route, ranges));
    if foreign.is_empty() {
        return Ok(Vec::new());
    }
    let links = netlink.links().await?;
    let names: BTreeMap<u32, String> = links.into_iter().map(|l| (l.index, l.name)).collect();
    let more = foreign.len().saturating_sub(MAX_NAMED);
    let mut out: Vec<String> = foreign
        .iter()
        .take(MAX_NAMED)
        .map(|route| problem(route, &names))
        .collect();
    if more > 0 {
        out.push(format!(
            "{more} more routes of other programs lead pod ranges elsewhere"
        ));
    }
    Ok(out)
}

fn is_foreign(route: &Route, ranges: &BTreeSet<IpNet>) -> bool {
    let ours = [PROTOCOL_AGENT, PROTOCOL_CNI].contains(&route.protocol);
    // What refuses leads nothing astray.
    let leads = !matches!(route.kind, RouteKind::Unreachable | RouteKind::Blackhole);
    !ours && leads && ranges.iter().any(|range| range.contains(&route.dst))
}

/// What is wrong and the exact command that ends it.
fn problem(route: &Route, names: &BTreeMap<u32, String>) -> String {
    let command = if route.dst.addr().is_ipv6() {
        "ip -6 route del"
    } else {
        "ip route del"
    };
    let mut words = route.dst.to_string();
    if let Some(gateway) = route.gateway {
        words.push_str(&format!(" via {gateway}"));
    }
    if let Some(name) = route.oif.and_then(|index| names.get(&index)) {
        words.push_str(&format!(" dev {name}"));
    }
    if route.metric != 0 {
        words.push_str(&format!(" metric {}", route.metric));
    }
    format!(
        "another program's route leads pods of the mesh elsewhere; their traffic takes the tunnel all \
         the same, or is dropped; remove it with: {command} {words}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_routes_of_others_that_lead_into_the_ranges_are_named() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let ranges = BTreeSet::from([net("10.244.0.0/16"), net("fd00:244::/48")]);
        let names = BTreeMap::from([(7, "eth0".to_owned())]);
        let gateway = "192.0.2.254".parse().unwrap();
        let stray = Route::by_gateway(MAIN_TABLE, net("10.244.2.128/25"), 7, gateway, 3);
        assert!(is_foreign(&stray, &ranges));
        let text = problem(&stray, &names);
        let command = "ip route del 10.244.2.128/25 via 192.0.2.254 dev eth0";
        assert!(text.ends_with(command), "{text}");
        let v6 = Route::on_link(MAIN_TABLE, net("fd00:244:0:2::/64"), 7, 4);
        let text = problem(&v6, &names);
        let command = "ip -6 route del fd00:244:0:2::/64 dev eth0 metric 1024";
        assert!(text.ends_with(command), "{text}");
        for fine in [
            Route::on_link(MAIN_TABLE, net("10.244.2.0/24"), 7, PROTOCOL_AGENT),
            Route::on_link(MAIN_TABLE, net("10.244.1.5/32"), 7, PROTOCOL_CNI),
            Route::on_link(MAIN_TABLE, net("10.0.0.0/8"), 7, 3),
            Route::on_link(MAIN_TABLE, net("192.0.2.0/24"), 7, 2),
            Route::unreachable(MAIN_TABLE, net("10.244.9.0/24"), 1, 3),
        ] {
            assert!(!is_foreign(&fine, &ranges), "{fine}");
        }
    }
}
