//! Properties of the difference: it leads from any state to any other, in a safe order.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::key;
use ipnet::IpNet;
use proptest::prelude::*;
use warren_core::state::{
    Change, DesiredPeer, DesiredState, FilterSpec, ObservedLink, ObservedPeer, ObservedState,
    Packets, RouteKey, RouteTarget, Rule,
};
use warren_core::{Removals, diff};

fn prefix(n: u8) -> IpNet {
    format!("10.244.{n}.0/24").parse().unwrap()
}

fn any_routes() -> impl Strategy<Value = BTreeMap<RouteKey, RouteTarget>> {
    let route = (0u8..4, 0u8..4, 0u8..3).prop_map(|(n, metric, kind)| {
        let key = RouteKey {
            table: 254,
            destination: prefix(n),
            metric: u32::from(metric),
        };
        let target = match kind {
            0 => RouteTarget::Unreachable,
            1 => RouteTarget::Tunnel {
                src: None,
                mtu_bytes: Some(1420),
            },
            _ => RouteTarget::Tunnel {
                src: None,
                mtu_bytes: Some(1280),
            },
        };
        (key, target)
    });
    prop::collection::vec(route, 0..8).prop_map(|v| v.into_iter().collect())
}

/// Peers whose prefixes are disjoint, as the tunnel and the planner both guarantee.
fn any_owners() -> impl Strategy<Value = BTreeMap<u8, BTreeSet<IpNet>>> {
    let owners = prop::collection::btree_map(0u8..6, 1u8..5, 0..6);
    (owners, prop::collection::btree_set(1u8..5, 0..4)).prop_map(|(owners, empty)| {
        let mut out: BTreeMap<u8, BTreeSet<IpNet>> = empty
            .into_iter()
            .map(|peer| (peer, BTreeSet::new()))
            .collect();
        for (n, peer) in owners {
            out.entry(peer).or_default().insert(prefix(n));
        }
        out
    })
}

fn endpoint(port: u16) -> std::net::SocketAddr {
    std::net::SocketAddr::from(([192, 0, 2, 9], port))
}

fn any_desired() -> impl Strategy<Value = DesiredState> {
    (
        any_routes(),
        any_owners(),
        prop::collection::btree_set(0u8..3, 0..3),
        prop::collection::btree_set(0u8..3, 0..3),
        any::<bool>(),
        1u16..4,
        prop::collection::btree_set(0u8..4, 0..2),
    )
        .prop_map(
            |(routes, owners, addresses, rules, masquerade, port, own)| DesiredState {
                filter: FilterSpec {
                    masquerade,
                    own_pod_cidrs: own.into_iter().map(prefix).collect(),
                    ..FilterSpec::default()
                },
                mtu_bytes: 1400 + u32::from(port),
                addresses: addresses.into_iter().map(prefix).collect(),
                rules: rules
                    .into_iter()
                    .map(|n| Rule {
                        priority: 5187,
                        packets: Packets::From(prefix(n)),
                        table: 51871,
                    })
                    .collect(),
                routes,
                peers: owners
                    .into_iter()
                    .map(|(peer, allowed_ips)| {
                        let endpoint = endpoint(port);
                        (
                            key(peer),
                            DesiredPeer {
                                endpoint,
                                allowed_ips,
                                persistent_keepalive: port,
                                path_probes: port.is_multiple_of(2),
                            },
                        )
                    })
                    .collect(),
            },
        )
}

/// Any state of the node, also one that no desired state ever was: roamed endpoints, foreign routes.
fn any_observed() -> impl Strategy<Value = ObservedState> {
    (
        any_desired(),
        any::<bool>(),
        any::<bool>(),
        prop::option::of(1u16..4),
    )
        .prop_map(|(state, filter, up, applied)| ObservedState {
            filter: filter.then_some(state.filter),
            link: Some(ObservedLink {
                mtu_bytes: state.mtu_bytes,
                up,
            }),
            addresses: state.addresses,
            rules: state.rules,
            routes: state
                .routes
                .into_iter()
                .map(|(k, t)| (k, if up { t } else { RouteTarget::Foreign }))
                .collect(),
            peers: Some(
                state
                    .peers
                    .into_iter()
                    .map(|(k, p)| {
                        let peer = ObservedPeer {
                            endpoint: Some(endpoint(40_000)),
                            applied_endpoint: applied.map(endpoint),
                            allowed_ips: p.allowed_ips,
                            persistent_keepalive: p.persistent_keepalive,
                            path_probes: p.path_probes,
                        };
                        (k, peer)
                    })
                    .collect(),
            ),
        })
}

/// Whether `observed` is all that `desired` asks for, and nothing else.
fn assert_reached(observed: &ObservedState, desired: &DesiredState) {
    assert_eq!(observed.filter.as_ref(), Some(&desired.filter));
    assert_eq!(
        observed.link,
        Some(ObservedLink {
            mtu_bytes: desired.mtu_bytes,
            up: true
        })
    );
    assert_eq!(observed.addresses, desired.addresses);
    assert_eq!(observed.rules, desired.rules);
    assert_eq!(observed.routes, desired.routes);
    let peers = observed.peers.as_ref().unwrap();
    assert_eq!(
        peers.keys().collect::<Vec<_>>(),
        desired.peers.keys().collect::<Vec<_>>()
    );
    for (k, want) in &desired.peers {
        let have = &peers[k];
        assert_eq!(have.applied_endpoint, Some(want.endpoint));
        assert_eq!(have.allowed_ips, want.allowed_ips);
        assert_eq!(have.persistent_keepalive, want.persistent_keepalive);
    }
}

fn position(changes: &[Change], wanted: impl Fn(&Change) -> bool) -> Vec<usize> {
    changes
        .iter()
        .enumerate()
        .filter(|(_, c)| wanted(c))
        .map(|(i, _)| i)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn applying_the_difference_reaches_the_desired_state(
        mut observed in any_observed(),
        desired in any_desired(),
    ) {
        for change in diff(&observed, &desired, Removals::Allowed) {
            observed.apply(&change);
        }
        assert_reached(&observed, &desired);
        prop_assert_eq!(diff(&observed, &desired, Removals::Allowed), vec![]);
    }

    #[test]
    fn peers_come_before_their_routes_and_go_after_them(
        observed in any_observed(),
        desired in any_desired(),
    ) {
        let changes = diff(&observed, &desired, Removals::Allowed);
        let peers_set = position(&changes, |c| {
            matches!(c, Change::AddPeer { .. } | Change::UpdatePeer { .. })
        });
        let peers_gone = position(&changes, |c| matches!(c, Change::RemovePeer { .. }));
        let routes_set = position(&changes, |c| {
            matches!(c, Change::SetRoute { new: RouteTarget::Tunnel { .. }, .. })
        });
        let routes_gone = position(&changes, |c| {
            matches!(c, Change::RemoveRoute { old, .. } if *old != RouteTarget::Unreachable)
        });
        let before = |a: &[usize], b: &[usize]| a.iter().max() < b.iter().min() || a.is_empty() || b.is_empty();
        prop_assert!(before(&peers_set, &routes_set));
        prop_assert!(before(&routes_gone, &peers_gone));
        prop_assert!(before(&peers_set, &peers_gone));
    }

    #[test]
    fn protection_comes_first_and_is_taken_away_last(
        observed in any_observed(),
        desired in any_desired(),
    ) {
        let changes = diff(&observed, &desired, Removals::Allowed);
        let protect = position(&changes, |c| {
            matches!(c, Change::SetFilter { .. } | Change::SetRoute { new: RouteTarget::Unreachable, .. })
        });
        prop_assert_eq!(protect.clone(), (0..protect.len()).collect::<Vec<_>>());
        let gone = position(&changes, |c| {
            matches!(c, Change::RemoveRoute { old: RouteTarget::Unreachable, .. })
        });
        let from = changes.len() - gone.len();
        prop_assert_eq!(gone, (from..changes.len()).collect::<Vec<_>>());
    }

    #[test]
    fn a_prefix_that_moves_is_never_without_an_owner(
        mut observed in any_observed(),
        desired in any_desired(),
    ) {
        let owned = |state: &ObservedState| -> BTreeSet<IpNet> {
            state.peers.iter().flatten().flat_map(|(_, p)| p.allowed_ips.clone()).collect()
        };
        let wanted: BTreeSet<IpNet> =
            desired.peers.values().flat_map(|p| p.allowed_ips.clone()).collect();
        let kept: BTreeSet<IpNet> = owned(&observed).intersection(&wanted).copied().collect();
        for change in diff(&observed, &desired, Removals::Allowed) {
            observed.apply(&change);
            prop_assert!(owned(&observed).is_superset(&kept), "{:?}", change);
        }
    }

    #[test]
    fn held_removals_take_nothing_away_but_routes_for_own_pods(
        observed in any_observed(),
        desired in any_desired(),
    ) {
        let own = |key: &RouteKey| desired.filter.own_pod_cidrs.contains(&key.destination);
        for change in diff(&observed, &desired, Removals::Held) {
            match change {
                Change::RemoveRoute { ref key, ref old } => {
                    prop_assert!(own(key) && *old != RouteTarget::Unreachable, "{:?}", change);
                }
                Change::RemovePeer { .. } | Change::RemoveRule(_) | Change::RemoveAddress(_) => {
                    prop_assert!(false, "{:?}", change);
                }
                Change::UpdatePeer { delta, .. } => {
                    prop_assert!(delta.remove_allowed_ips.is_empty());
                }
                _ => {}
            }
        }
    }
}

/// Our table is looked up before the pods' own routes: a route there would send what is for them
/// to the range's former owner.
#[test]
fn a_route_into_the_tunnel_for_this_nodes_own_pods_goes_before_the_first_full_view() {
    let into_tunnel = RouteTarget::Tunnel {
        src: None,
        mtu_bytes: Some(1420),
    };
    let route = |table: u32, destination: &str, metric: u32| RouteKey {
        table,
        destination: destination.parse().unwrap(),
        metric,
    };
    let (guard, other) = (
        route(254, "10.128.0.0/9", 9_000),
        route(51871, "10.128.9.0/24", 5),
    );
    let astray = [
        route(51871, "10.128.14.0/24", 5),
        route(254, "10.128.14.0/24", 5),
        route(51871, "10.128.12.0/22", 5),
        route(51871, "10.128.14.64/26", 5),
    ];
    let mut routes = BTreeMap::from([
        (guard.clone(), RouteTarget::Unreachable),
        (other, into_tunnel.clone()),
    ]);
    let kept = routes.clone();
    routes.extend(astray.iter().map(|key| (key.clone(), into_tunnel.clone())));
    let mut observed = ObservedState {
        routes,
        ..ObservedState::default()
    };
    let desired = DesiredState {
        filter: FilterSpec {
            own_pod_cidrs: BTreeSet::from(["10.128.14.0/24".parse().unwrap()]),
            ..FilterSpec::default()
        },
        routes: BTreeMap::from([(guard, RouteTarget::Unreachable)]),
        ..DesiredState::default()
    };
    for change in diff(&observed, &desired, Removals::Held) {
        observed.apply(&change);
    }
    assert_eq!(observed.routes, kept);
}

#[test]
fn a_roamed_endpoint_is_left_alone() {
    let (k, published) = (key(2), endpoint(1));
    let desired = DesiredState {
        peers: BTreeMap::from([(
            k,
            DesiredPeer {
                endpoint: published,
                allowed_ips: BTreeSet::new(),
                persistent_keepalive: 0,
                path_probes: true,
            },
        )]),
        ..DesiredState::default()
    };
    let observed = ObservedState {
        filter: Some(FilterSpec::default()),
        peers: Some(BTreeMap::from([(
            k,
            ObservedPeer {
                endpoint: Some(endpoint(40_000)),
                applied_endpoint: Some(published),
                allowed_ips: BTreeSet::new(),
                persistent_keepalive: 0,
                path_probes: true,
            },
        )])),
        ..ObservedState::default()
    };
    assert_eq!(diff(&observed, &desired, Removals::Allowed), vec![]);
}

#[test]
fn a_peer_that_came_to_know_nothing_of_probes_is_asked_no_more() {
    let desired = |path_probes| DesiredPeer {
        endpoint: endpoint(1),
        allowed_ips: BTreeSet::new(),
        persistent_keepalive: 0,
        path_probes,
    };
    let state = |path_probes| DesiredState {
        peers: BTreeMap::from([(key(2), desired(path_probes))]),
        ..DesiredState::default()
    };
    let mut observed = ObservedState {
        peers: Some(BTreeMap::new()),
        ..ObservedState::default()
    };
    for path_probes in [true, false, true] {
        let changes = diff(&observed, &state(path_probes), Removals::Allowed);
        changes.iter().for_each(|change| observed.apply(change));
        let told = &observed.peers.as_ref().unwrap()[&key(2)];
        assert_eq!(told.path_probes, path_probes, "{changes:?}");
        let again = diff(&observed, &state(path_probes), Removals::Allowed);
        assert_eq!(again, vec![]);
    }
}

#[test]
fn a_silent_tunnel_and_a_missing_interface_get_nothing() {
    let desired = DesiredState {
        addresses: BTreeSet::from([prefix(1)]),
        routes: BTreeMap::from([(
            RouteKey {
                table: 254,
                destination: prefix(2),
                metric: 1024,
            },
            RouteTarget::Tunnel {
                src: None,
                mtu_bytes: None,
            },
        )]),
        peers: BTreeMap::from([(
            key(2),
            DesiredPeer {
                endpoint: endpoint(1),
                allowed_ips: BTreeSet::new(),
                persistent_keepalive: 0,
                path_probes: true,
            },
        )]),
        ..DesiredState::default()
    };
    let changes = diff(&ObservedState::default(), &desired, Removals::Allowed);
    assert!(
        matches!(changes[..], [Change::SetFilter { .. }]),
        "{changes:?}"
    );
}
