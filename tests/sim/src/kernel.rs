//! What a node's kernel does with a packet: its routes, rules and filter, looked up as Linux does.

use std::net::IpAddr;

use ipnet::IpNet;
use warren_core::ObservedState;
use warren_core::consts::{MAIN_TABLE, NODE_TABLE};
use warren_core::state::{Packets, RouteKey, RouteTarget};

use crate::oracle::within;

/// Where a packet of a pod goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To a pod of this node.
    Local,
    /// Into the tunnel's interface.
    Tunnel,
    /// Nowhere; the pod is told.
    Unreachable,
    /// Onto the underlay, where the filter drops it.
    Filtered,
    /// Onto the underlay, with the node's address, to somebody outside the mesh.
    Outside,
    /// Onto the underlay in clear.
    Clear,
}

/// Looks a packet up: the rules' table first, then the main one, at last the default route.
pub fn way(state: &ObservedState, own: &[IpNet], cluster: &[IpNet], ends: (IpAddr, IpAddr)) -> Way {
    let (source, to) = ends;
    let ruled = state.rules.iter().any(|rule| {
        let chosen = match &rule.packets {
            Packets::From(net) => within(net, source),
            Packets::To(net) => within(net, to),
        };
        chosen && rule.table == NODE_TABLE
    });
    let found = ruled.then(|| lookup(state, NODE_TABLE, to)).flatten();
    if found.is_none() && own.iter().any(|net| within(net, to)) {
        return Way::Local;
    }
    match found.or_else(|| lookup(state, MAIN_TABLE, to)) {
        Some(RouteTarget::Tunnel { .. }) => return Way::Tunnel,
        Some(RouteTarget::Unreachable) => return Way::Unreachable,
        Some(RouteTarget::Foreign) | None => {}
    }
    let to_pod = cluster.iter().any(|net| within(net, to));
    match &state.filter {
        // Postrouting after source NAT: what goes to a pod is dropped, and at the forward hook what
        // a pod sends to a peer.
        Some(filter) if filter.pod_ranges.iter().any(|net| within(net, to)) => Way::Filtered,
        Some(filter) if filter.peer_addresses.iter().any(|net| within(net, to)) => Way::Filtered,
        Some(filter) if filter.masquerade && !to_pod => Way::Outside,
        _ => Way::Clear,
    }
}

/// The longest prefix, then the lowest metric. A route into a link that is down is passed over.
fn lookup(state: &ObservedState, table: u32, to: IpAddr) -> Option<RouteTarget> {
    let up = state.link.as_ref().is_some_and(|link| link.up);
    let full = IpNet::from(to).prefix_len();
    for length in (0..=full).rev() {
        let destination = IpNet::new(to, length).ok()?.trunc();
        let key = |metric| RouteKey {
            table,
            destination,
            metric,
        };
        let mut metrics = state.routes.range(key(0)..=key(u32::MAX));
        let usable = |target: &RouteTarget| up || !matches!(target, RouteTarget::Tunnel { .. });
        if let Some((_, target)) = metrics.find(|(_, target)| usable(target)) {
            return Some(target.clone());
        }
    }
    None
}
