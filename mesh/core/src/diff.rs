//! The ordered steps from what is to what should be.
//!
//! ```text
//! filter, unreachable routes      protection before anything can flow
//! link, addresses                 a route's source must exist before the route
//! stale routes                    a route goes before its peer
//! new and changed peers           a prefix moves to its new peer in one step
//! stale peers
//! tunnel routes                   a peer is there before its route
//! rules, stale rules, stale addresses, stale unreachable routes
//! ```

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use warren_keyring::PublicKey;

use crate::node::overlap;
use crate::state::{
    Change, DesiredPeer, DesiredState, ObservedLink, ObservedPeer, ObservedState, PeerDelta,
    RouteKey, RouteTarget,
};

/// Whether a difference may take things away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removals {
    /// The plan knows the whole mesh: what it does not name is stale.
    Allowed,
    /// No full view yet: what the plan does not name may belong to a node not heard of yet. This
    /// node's own pod ranges do not: what leads their packets elsewhere goes in either case.
    Held,
}

/// What must be done, in order, to bring the node from `observed` to `desired`.
///
/// Nothing is put on an interface that does not exist, and peers are left alone when the tunnel
/// does not answer.
pub fn diff(observed: &ObservedState, desired: &DesiredState, removals: Removals) -> Vec<Change> {
    let mut out = Vec::new();
    if observed.filter.as_ref() != Some(&desired.filter) {
        out.push(Change::SetFilter {
            old: observed.filter.clone(),
            new: desired.filter.clone(),
        });
    }
    set_routes(observed, desired, &mut out, |t| {
        *t == RouteTarget::Unreachable
    });
    if let Some(link) = &observed.link {
        let new = ObservedLink {
            mtu_bytes: desired.mtu_bytes,
            up: true,
        };
        if *link != new {
            out.push(Change::SetLink {
                old: link.clone(),
                new,
            });
        }
        out.extend(
            desired
                .addresses
                .difference(&observed.addresses)
                .copied()
                .map(Change::AddAddress),
        );
    }
    // The pods' own routes are looked up after ours.
    let own_pods = &desired.filter.own_pod_cidrs;
    let astray = |key: &RouteKey| own_pods.iter().any(|own| overlap(own, &key.destination));
    remove_routes(observed, desired, &mut out, |key, t| {
        *t != RouteTarget::Unreachable && (removals == Removals::Allowed || astray(key))
    });
    if let Some(peers) = &observed.peers {
        diff_peers(peers, &desired.peers, removals, &mut out);
    }
    if observed.link.is_some() {
        set_routes(observed, desired, &mut out, |t| {
            *t != RouteTarget::Unreachable
        });
    }
    out.extend(
        desired
            .rules
            .difference(&observed.rules)
            .cloned()
            .map(Change::AddRule),
    );
    if removals == Removals::Allowed {
        out.extend(
            observed
                .rules
                .difference(&desired.rules)
                .cloned()
                .map(Change::RemoveRule),
        );
        let stale = observed.addresses.difference(&desired.addresses).copied();
        out.extend(stale.map(Change::RemoveAddress));
        remove_routes(observed, desired, &mut out, |_, t| {
            *t == RouteTarget::Unreachable
        });
    }
    out
}

fn set_routes(
    observed: &ObservedState,
    desired: &DesiredState,
    out: &mut Vec<Change>,
    wanted: impl Fn(&RouteTarget) -> bool,
) {
    for (key, new) in desired.routes.iter().filter(|(_, t)| wanted(t)) {
        let old = observed.routes.get(key);
        if old != Some(new) {
            out.push(Change::SetRoute {
                key: key.clone(),
                old: old.cloned(),
                new: new.clone(),
            });
        }
    }
}

fn remove_routes(
    observed: &ObservedState,
    desired: &DesiredState,
    out: &mut Vec<Change>,
    wanted: impl Fn(&RouteKey, &RouteTarget) -> bool,
) {
    for (key, old) in observed.routes.iter().filter(|(k, t)| wanted(k, t)) {
        if !desired.routes.contains_key(key) {
            out.push(Change::RemoveRoute {
                key: key.clone(),
                old: old.clone(),
            });
        }
    }
}

fn diff_peers(
    observed: &BTreeMap<PublicKey, ObservedPeer>,
    desired: &BTreeMap<PublicKey, DesiredPeer>,
    removals: Removals,
    out: &mut Vec<Change>,
) {
    // A prefix that another peer gains leaves its old one in that same step; removing it there too
    // would be a second step that could take it from the new owner.
    let moving: BTreeSet<IpNet> = desired
        .values()
        .flat_map(|peer| peer.allowed_ips.iter().copied())
        .collect();
    for (public_key, new) in desired {
        let Some(old) = observed.get(public_key) else {
            out.push(Change::AddPeer {
                public_key: *public_key,
                new: new.clone(),
            });
            continue;
        };
        let stale = old.allowed_ips.difference(&new.allowed_ips).copied();
        let endpoint_changed = old.applied_endpoint != Some(new.endpoint);
        let keepalive_changed = old.persistent_keepalive != new.persistent_keepalive;
        let probes_changed = old.path_probes != new.path_probes;
        let delta = PeerDelta {
            endpoint: endpoint_changed.then_some(new.endpoint),
            persistent_keepalive: keepalive_changed.then_some(new.persistent_keepalive),
            path_probes: probes_changed.then_some(new.path_probes),
            add_allowed_ips: new
                .allowed_ips
                .difference(&old.allowed_ips)
                .copied()
                .collect(),
            remove_allowed_ips: match removals {
                Removals::Allowed => stale.filter(|net| !moving.contains(net)).collect(),
                Removals::Held => BTreeSet::new(),
            },
        };
        if !delta.is_empty() {
            out.push(Change::UpdatePeer {
                public_key: *public_key,
                old: old.clone(),
                delta,
            });
        }
    }
    if removals == Removals::Allowed {
        for (public_key, old) in observed.iter().filter(|(k, _)| !desired.contains_key(*k)) {
            out.push(Change::RemovePeer {
                public_key: *public_key,
                old: old.clone(),
            });
        }
    }
}
