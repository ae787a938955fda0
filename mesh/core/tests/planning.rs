//! What planning believes, refuses and makes.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

mod common;

use std::collections::BTreeMap;
use std::net::IpAddr;

use common::{key, local, nets, settings, view, views};
use proptest::prelude::*;
use warren_core::consts::{MAIN_TABLE, NODE_TABLE, TUNNEL_METRIC, UNREACHABLE_METRIC, annotation};
use warren_core::files::SavedView;
use warren_core::node::NodeView;
use warren_core::state::{Packets, RouteKey, RouteTarget};
use warren_core::status::DataPlaneKind;
use warren_core::{
    LocalNode, NodeName, NodeRecord, NodeReject, NodeUid, Plan, PlanInput, Planner, RegistryEvent,
    Removals, plan,
};

fn plan_of(list: &[NodeView], incumbents: &BTreeMap<NodeName, NodeRecord>) -> Plan {
    plan(&PlanInput {
        settings: &settings(),
        local: &local(),
        views: &views(list.iter().cloned()),
        incumbents,
        path_mtu: &BTreeMap::new(),
    })
}

fn incumbents(list: &[NodeView]) -> BTreeMap<NodeName, NodeRecord> {
    list.iter()
        .map(|v| NodeRecord::parse(v, &settings().ranges).unwrap())
        .map(|r| (r.name.clone(), r))
        .collect()
}

fn refused(plan: &Plan) -> Vec<(&str, &str)> {
    plan.rejects
        .iter()
        .map(|(n, r)| (n.as_str(), r.reason()))
        .collect()
}

fn with_annotation(n: u8, key: &str, value: &str) -> NodeView {
    let mut v = view(n);
    v.annotations.insert(key.into(), value.into());
    v
}

#[test]
fn a_node_becomes_a_peer_with_routes_and_own_entry_is_ignored() {
    let plan = plan_of(&[view(1), view(2)], &BTreeMap::new());
    assert!(plan.rejects.is_empty(), "{:?}", plan.rejects);
    let peer = &plan.desired.peers[&key(2)];
    assert_eq!(plan.desired.peers.len(), 1);
    assert_eq!(peer.endpoint, "192.0.2.2:51871".parse().unwrap());
    assert_eq!(
        peer.allowed_ips,
        nets(&[
            "10.244.2.0/24",
            "fd00:244:2::/64",
            "192.0.2.2/32",
            "2001:db8::2/128"
        ])
    );
    let route = |table, net: &str, metric| {
        let key = RouteKey {
            table,
            destination: net.parse().unwrap(),
            metric,
        };
        plan.desired.routes.get(&key)
    };
    let tunnel = |src: &str| RouteTarget::Tunnel {
        src: Some(src.parse().unwrap()),
        mtu_bytes: Some(1440),
    };
    assert_eq!(
        route(MAIN_TABLE, "10.244.2.0/24", TUNNEL_METRIC),
        Some(&tunnel("10.244.1.1"))
    );
    assert_eq!(
        route(MAIN_TABLE, "fd00:244:2::/64", TUNNEL_METRIC),
        Some(&tunnel("fd00:244:1::1"))
    );
    assert_eq!(
        route(NODE_TABLE, "192.0.2.2/32", TUNNEL_METRIC),
        Some(&tunnel("10.244.1.1"))
    );
    let unreachable = Some(&RouteTarget::Unreachable);
    assert_eq!(
        route(NODE_TABLE, "192.0.2.2/32", UNREACHABLE_METRIC),
        unreachable
    );
    assert_eq!(
        route(MAIN_TABLE, "10.244.0.0/16", UNREACHABLE_METRIC),
        unreachable
    );
    assert_eq!(
        route(MAIN_TABLE, "fd00:244::/32", UNREACHABLE_METRIC),
        unreachable
    );
    assert_eq!(
        plan.desired.addresses,
        nets(&["10.244.1.1/32", "fd00:244:1::1/128"])
    );
    // Ahead of the main table too, so that nobody's route there leads astray.
    assert_eq!(
        route(NODE_TABLE, "10.244.2.0/24", TUNNEL_METRIC),
        Some(&tunnel("10.244.1.1"))
    );
    assert_eq!(
        route(NODE_TABLE, "fd00:244:2::/64", TUNNEL_METRIC),
        Some(&tunnel("fd00:244:1::1"))
    );
    let rules: Vec<Packets> = plan.desired.rules.iter().map(|rule| rule.packets).collect();
    let prefix = |net: &str| net.parse().unwrap();
    assert_eq!(
        rules,
        [
            Packets::From(prefix("10.244.1.0/24")),
            Packets::From(prefix("fd00:244:1::/64")),
            Packets::To(prefix("10.244.0.0/16")),
            Packets::To(prefix("fd00:244::/32")),
        ]
    );
}

#[test]
fn protection_is_planned_before_any_node_is_known() {
    let plan = plan_of(&[], &BTreeMap::new());
    assert_eq!(
        plan.desired.filter.pod_ranges,
        settings().ranges.cluster_cidrs
    );
    assert_eq!(plan.desired.routes.len(), 2);
    assert_eq!(plan.desired.mtu_bytes, 1420);
}

#[test]
fn bad_fields_are_refused_by_name_and_disturb_nobody_else() {
    let good = view(3);
    let low_order = "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let zero = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let cidrs = |list: &[&str]| {
        let mut v = view(2);
        v.pod_cidrs = list.iter().map(|s| (*s).into()).collect();
        v
    };
    let addresses = |list: &[&str]| {
        let mut v = view(2);
        v.addresses = list.iter().map(|s| (*s).into()).collect();
        v
    };
    let no_key = {
        let mut v = view(2);
        v.annotations.clear();
        v
    };
    for (bad, reason, text) in [
        (no_key, "NoPublicKey", "no public key"),
        (
            with_annotation(2, annotation::PUBLIC_KEY, "short"),
            "InvalidPublicKey",
            "public-key",
        ),
        (
            with_annotation(2, annotation::PUBLIC_KEY, zero),
            "InvalidPublicKey",
            "public-key",
        ),
        (
            with_annotation(2, annotation::PUBLIC_KEY, low_order),
            "InvalidPublicKey",
            "public-key",
        ),
        (
            with_annotation(2, annotation::ENDPOINT, "example:1"),
            "InvalidEndpoint",
            "not ip:port",
        ),
        (
            with_annotation(2, annotation::ENDPOINT, "10.244.9.9:51871"),
            "InvalidEndpoint",
            "pod ranges",
        ),
        (
            with_annotation(2, annotation::ENDPOINT, &"1".repeat(1025)),
            "AnnotationTooLong",
            "1025 bytes",
        ),
        (
            with_annotation(2, annotation::MTU, "12"),
            "InvalidMtu",
            "576 to 65535",
        ),
        (cidrs(&[]), "NoPodCIDR", "no podCIDR"),
        (cidrs(&["10.244.2.1/24"]), "InvalidPodCIDR", "host bits"),
        (cidrs(&["10.99.2.0/24"]), "InvalidPodCIDR", "outside"),
        (cidrs(&["0.0.0.0/0"]), "InvalidPodCIDR", "every address"),
        (
            cidrs(&["::ffff:10.244.2.0/120"]),
            "InvalidPodCIDR",
            "IPv4-mapped",
        ),
        (cidrs(&["10.244.2.0/31"]), "InvalidPodCIDR", "too small"),
        (
            cidrs(&["10.244.2.0/24", "10.244.2.128/25"]),
            "InvalidPodCIDR",
            "same node",
        ),
        (
            cidrs(&["garbage"]),
            "InvalidPodCIDR",
            "not an address prefix",
        ),
        (addresses(&["10.244.7.7"]), "InvalidAddress", "pod ranges"),
        (addresses(&["127.0.0.1"]), "InvalidAddress", "loopback"),
        (
            addresses(&["::ffff:192.0.2.7"]),
            "InvalidAddress",
            "IPv4-mapped",
        ),
        (addresses(&[]), "NoEndpoint", "no endpoint"),
    ] {
        let plan = plan_of(&[bad.clone(), good.clone()], &BTreeMap::new());
        assert_eq!(refused(&plan), [("node2", reason)], "{bad:?}");
        let message = plan.rejects["node2"].to_string();
        assert!(message.contains(text), "{message} lacks {text}");
        assert!(plan.desired.peers.contains_key(&key(3)));
    }
}

#[test]
fn reserved_ranges_are_nobodys() {
    let mut settings = settings();
    settings.ranges.reserved_cidrs = nets(&["10.244.2.128/25", "192.0.2.2/32"]);
    let reject = NodeRecord::parse(&view(2), &settings.ranges).unwrap_err();
    assert!(
        matches!(reject, NodeReject::ReservedPodCidr { .. }),
        "{reject}"
    );
    settings.ranges.reserved_cidrs = nets(&["192.0.2.2/32"]);
    let reject = NodeRecord::parse(&view(2), &settings.ranges).unwrap_err();
    assert!(matches!(reject, NodeReject::BadAddress { .. }), "{reject}");
}

#[test]
fn force_endpoint_wins_over_endpoint_and_address() {
    let mut v = with_annotation(2, annotation::ENDPOINT, "198.51.100.2:7");
    assert_eq!(
        plan_of(&[v.clone()], &BTreeMap::new()).desired.peers[&key(2)].endpoint,
        "198.51.100.2:7".parse().unwrap()
    );
    v.annotations
        .insert(annotation::FORCE_ENDPOINT.into(), "203.0.113.2:8".into());
    assert_eq!(
        plan_of(&[v], &BTreeMap::new()).desired.peers[&key(2)].endpoint,
        "203.0.113.2:8".parse().unwrap()
    );
}

#[test]
fn newcomers_that_clash_are_both_refused() {
    let mut same_key = view(3);
    same_key
        .annotations
        .insert(annotation::PUBLIC_KEY.into(), key(2).to_string());
    let mut overlapping = view(3);
    overlapping.pod_cidrs = vec!["10.244.2.128/25".into()];
    let same_endpoint = with_annotation(3, annotation::ENDPOINT, "192.0.2.2:51871");
    for (other, reason) in [
        (same_key, "DuplicateKey"),
        (overlapping, "PodCIDROverlap"),
        (same_endpoint, "EndpointConflict"),
    ] {
        let plan = plan_of(&[view(2), other, view(4)], &BTreeMap::new());
        assert_eq!(refused(&plan), [("node2", reason), ("node3", reason)]);
        assert_eq!(plan.desired.peers.keys().collect::<Vec<_>>(), [&key(4)]);
    }
}

#[test]
fn an_incumbent_keeps_what_it_has_and_the_newcomer_is_refused() {
    let mut thief = view(3);
    thief
        .annotations
        .insert(annotation::PUBLIC_KEY.into(), key(2).to_string());
    thief.pod_cidrs = vec!["10.244.2.0/25".into()];
    let known = incumbents(&[view(2)]);
    let plan = plan_of(&[view(2), thief.clone()], &known);
    assert_eq!(refused(&plan), [("node3", "DuplicateKey")]);
    assert!(plan.desired.peers.contains_key(&key(2)));
    // A node made again under the same name is another node: it has no rights from before.
    let mut reborn = view(2);
    reborn.uid = NodeUid("another".into());
    let plan = plan_of(&[reborn, thief], &known);
    assert_eq!(refused(&plan).len(), 2);
}

#[test]
fn a_newcomer_refused_for_an_incumbent_drags_nobody_down() {
    let mut thief = view(3);
    thief.pod_cidrs = vec!["10.244.2.0/24".into(), "fd00:244:4::/64".into()];
    let plan = plan_of(&[view(2), thief, view(4)], &incumbents(&[view(2)]));
    assert_eq!(refused(&plan), [("node3", "PodCIDROverlap")]);
    assert!(plan.desired.peers.contains_key(&key(4)));
}

#[test]
fn nobody_may_claim_what_this_node_has() {
    let mut own_key = view(2);
    own_key
        .annotations
        .insert(annotation::PUBLIC_KEY.into(), key(1).to_string());
    assert_eq!(
        refused(&plan_of(&[own_key], &BTreeMap::new())),
        [("node2", "DuplicateKey")]
    );
    let mut own_range = view(2);
    own_range.pod_cidrs = vec!["10.244.1.0/25".into()];
    assert_eq!(
        refused(&plan_of(&[own_range], &BTreeMap::new())),
        [("node2", "PodCIDROverlap")]
    );
    let own_endpoint = with_annotation(2, annotation::ENDPOINT, "192.0.2.1:51871");
    assert_eq!(
        refused(&plan_of(&[own_endpoint], &BTreeMap::new())),
        [("node2", "EndpointConflict")]
    );
}

/// A planner of node 1 that has heard of these nodes.
fn planner_with(saved: SavedView, list: Vec<NodeView>) -> Planner {
    let mut planner = Planner::new(settings(), local(), saved);
    planner.handle_event(RegistryEvent::Synced(list));
    planner
}

/// A clone of node 1's key under another name.
fn clone_of_node1() -> NodeView {
    with_annotation(2, annotation::PUBLIC_KEY, &key(1).to_string())
}

#[test]
fn a_newcomer_with_the_key_of_another_node_stays_silent_and_is_told() {
    let mut planner = planner_with(SavedView::default(), vec![clone_of_node1(), view(3)]);
    let plan = planner.poll_plan();
    assert!(plan.accepted.is_empty() && plan.desired.peers.is_empty());
    let told = plan.own_reject.unwrap().to_string();
    assert!(told.contains("also published by node node2"), "{told}");
    // Its own entry in the registry and a restart do not make it the incumbent.
    let list = vec![view(1), clone_of_node1(), view(3)];
    planner.handle_event(RegistryEvent::Synced(list.clone()));
    assert!(planner.poll_plan().desired.peers.is_empty());
    let mut planner = planner_with(planner.saved_view(), list);
    assert!(planner.poll_plan().desired.peers.is_empty());
    // When the other one goes, it is alone with the key.
    planner.handle_event(RegistryEvent::Deleted {
        name: "node2".into(),
        uid: view(2).uid,
    });
    let plan = planner.poll_plan();
    assert_eq!((plan.accepted.len(), plan.own_reject), (1, None));
}

#[test]
fn a_node_that_had_its_key_first_keeps_its_peers_over_restarts() {
    let mut planner = planner_with(SavedView::default(), vec![view(3)]);
    assert_eq!(planner.poll_plan().accepted.len(), 1);
    let list = vec![view(1), clone_of_node1(), view(3)];
    planner.handle_event(RegistryEvent::Synced(list.clone()));
    for _ in 0..2 {
        let plan = planner.poll_plan();
        assert_eq!((plan.accepted.len(), &plan.own_reject), (1, &None));
        assert_eq!(refused(&plan), [("node2", "DuplicateKey")]);
        planner = planner_with(planner.saved_view(), list.clone());
    }
}

#[test]
fn a_newcomer_with_the_range_or_endpoint_of_another_node_is_told_so() {
    let mut thief = view(2);
    thief.pod_cidrs = vec!["10.244.1.128/25".into()];
    let told = planner_with(SavedView::default(), vec![thief, view(3)]).poll_plan();
    assert_eq!(told.own_reject.unwrap().reason(), "PodCIDROverlap");
    assert_eq!(told.accepted.len(), 1);
    let thief = with_annotation(2, annotation::ENDPOINT, "192.0.2.1:51871");
    let told = planner_with(SavedView::default(), vec![thief]).poll_plan();
    assert_eq!(told.own_reject.unwrap().reason(), "EndpointConflict");
}

#[test]
fn a_shared_node_address_is_not_routed_but_the_nodes_work() {
    // Two sites with the same private range, each behind its own NAT router.
    let mut a = with_annotation(2, annotation::FORCE_ENDPOINT, "203.0.113.2:1");
    let mut b = with_annotation(3, annotation::FORCE_ENDPOINT, "203.0.113.3:1");
    a.addresses = vec!["192.168.1.10".into()];
    b.addresses = vec!["192.168.1.10".into()];
    let plan = plan_of(&[a, b], &BTreeMap::new());
    assert!(plan.rejects.is_empty(), "{:?}", plan.rejects);
    assert_eq!(plan.notices.len(), 2);
    assert_eq!(
        plan.desired.peers[&key(2)].allowed_ips,
        nets(&["10.244.2.0/24", "fd00:244:2::/64"])
    );
}

#[test]
fn no_common_family_is_shown() {
    let mut v = view(2);
    v.addresses = vec!["2001:db8::2".into()];
    let mut me = local();
    me.endpoints = "192.0.2.1:51871".parse().unwrap();
    let plan = plan(&PlanInput {
        settings: &settings(),
        local: &me,
        views: &views([v]),
        incumbents: &BTreeMap::new(),
        path_mtu: &BTreeMap::new(),
    });
    assert_eq!(refused(&plan), [("node2", "NoCommonFamily")]);
}

#[test]
fn mtu_follows_the_path_and_what_the_peer_published() {
    let mut path_mtu: BTreeMap<IpAddr, u32> = BTreeMap::new();
    path_mtu.insert("192.0.2.2".parse().unwrap(), 9000);
    let plan = plan(&PlanInput {
        settings: &settings(),
        local: &local(),
        views: &views([view(2), with_annotation(3, annotation::MTU, "1400")]),
        incumbents: &BTreeMap::new(),
        path_mtu: &path_mtu,
    });
    let mtu = |n: &str| plan.accepted[&NodeName::new(n).unwrap()].mtu_bytes;
    assert_eq!((mtu("node2"), mtu("node3")), (8940, 1340));
    assert_eq!(plan.desired.mtu_bytes, 8940);
}

#[test]
fn a_planner_holds_removals_until_the_first_full_view() {
    let saved = {
        let mut planner = Planner::new(settings(), local(), SavedView::default());
        planner.handle_event(RegistryEvent::Synced(vec![view(1), view(2), view(3)]));
        planner.poll_plan();
        planner.saved_view()
    };
    let mut planner = Planner::new(settings(), local(), saved);
    assert_eq!(planner.removals(), Removals::Held);
    assert_eq!(planner.poll_plan().desired.peers.len(), 2);
    planner.handle_event(RegistryEvent::Applied(view(4)));
    assert_eq!(planner.poll_plan().desired.peers.len(), 3);
    assert_eq!(planner.removals(), Removals::Held);
    planner.handle_event(RegistryEvent::Synced(vec![view(2)]));
    assert_eq!(planner.removals(), Removals::Allowed);
    assert_eq!(planner.poll_plan().desired.peers.len(), 1);
}

#[test]
fn a_delete_of_an_earlier_life_is_ignored() {
    let mut planner = Planner::new(settings(), local(), SavedView::default());
    planner.handle_event(RegistryEvent::Synced(vec![view(2)]));
    let deleted = |uid: &str| RegistryEvent::Deleted {
        name: "node2".into(),
        uid: NodeUid(uid.into()),
    };
    planner.handle_event(deleted("uid-of-before"));
    assert_eq!(planner.poll_plan().desired.peers.len(), 1);
    planner.handle_event(deleted("uid-2"));
    assert_eq!(planner.poll_plan().desired.peers.len(), 0);
}

#[test]
fn a_slip_in_an_annotation_does_not_open_a_nodes_range_to_others() {
    let mut planner = Planner::new(settings(), local(), SavedView::default());
    planner.handle_event(RegistryEvent::Synced(vec![view(2)]));
    planner.poll_plan();
    planner.handle_event(RegistryEvent::Applied(with_annotation(
        2,
        annotation::MTU,
        "x",
    )));
    assert_eq!(planner.poll_plan().desired.peers.len(), 0);
    let mut thief = view(3);
    thief.pod_cidrs = vec!["10.244.2.0/24".into()];
    planner.handle_event(RegistryEvent::Applied(thief));
    planner.poll_plan();
    planner.handle_event(RegistryEvent::Applied(view(2)));
    let plan = planner.poll_plan();
    assert_eq!(refused(&plan), [("node3", "PodCIDROverlap")]);
}

/// Whether node 1 may ask node 2 about the path, when each has this data plane.
fn probes(own: DataPlaneKind, theirs: Option<&str>) -> bool {
    let node = match theirs {
        Some(text) => with_annotation(2, annotation::DATA_PLANE, text),
        None => view(2),
    };
    let local = LocalNode {
        data_plane: own,
        ..local()
    };
    let mut planner = Planner::new(settings(), local, SavedView::default());
    planner.handle_event(RegistryEvent::Synced(vec![node]));
    let plan = planner.poll_plan();
    assert!(plan.rejects.is_empty(), "{:?}", plan.rejects);
    plan.desired.peers[&key(2)].path_probes
}

#[test]
fn only_tunnels_are_asked_about_the_path_and_only_by_tunnels() {
    use DataPlaneKind::{Kernel, Userspace};
    // Nodes of older versions say nothing, and have a tunnel.
    assert!(probes(Userspace, None) && probes(Userspace, Some("userspace")));
    for other in ["kernel", "", "Kernel", "of a later version"] {
        assert!(!probes(Userspace, Some(other)), "{other:?}");
    }
    for other in [None, Some("userspace"), Some("kernel")] {
        assert!(!probes(Kernel, other), "{other:?}");
    }
}

#[test]
fn a_record_saved_before_data_planes_were_told_is_one_with_a_tunnel() {
    let ranges = settings().ranges;
    let record = NodeRecord::parse(&view(2), &ranges).unwrap();
    let mut saved = serde_json::to_value(&record).unwrap();
    assert!(
        saved
            .as_object_mut()
            .unwrap()
            .remove("path_probes")
            .is_some()
    );
    assert_eq!(serde_json::from_value::<NodeRecord>(saved).unwrap(), record);
}

#[test]
fn saved_view_round_trips_as_json() {
    let mut planner = Planner::new(settings(), local(), SavedView::default());
    planner.handle_event(RegistryEvent::Synced(vec![view(2), view(3)]));
    let plan = planner.poll_plan();
    let mut saved = planner.saved_view();
    for (public_key, peer) in &plan.desired.peers {
        saved.applied_endpoints.insert(*public_key, peer.endpoint);
    }
    let text = serde_json::to_string(&saved).unwrap();
    assert_eq!(serde_json::from_str::<SavedView>(&text).unwrap(), saved);
}

/// A node whose fields are drawn from small pools, so that clashes are common.
fn any_view() -> impl Strategy<Value = NodeView> {
    (2u8..8, 2u8..8, 2u8..8, 2u8..8, 0u8..3, any::<bool>()).prop_map(|(n, k, p, e, len, old)| {
        let mut v = view(n);
        v.annotations
            .insert(annotation::PUBLIC_KEY.into(), key(k).to_string());
        v.pod_cidrs[0] = format!("10.244.{p}.0/{}", 24 + len);
        v.annotations
            .insert(annotation::ENDPOINT.into(), format!("192.0.2.{e}:51871"));
        v.uid = NodeUid(format!("uid-{n}-{old}"));
        v
    })
}

proptest! {
    #[test]
    fn planning_does_not_depend_on_the_order_of_events(
        list in prop::collection::vec(any_view(), 0..8),
        seed in any::<u64>(),
    ) {
        // One life of each node, told in two orders.
        let unique: Vec<NodeView> = views(list).into_values().collect();
        let mut shuffled = unique.clone();
        let mut state = seed;
        for i in (1..shuffled.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            shuffled.swap(i, (state >> 33) as usize % (i + 1));
        }
        let run = |events: &[NodeView]| {
            let mut planner = Planner::new(settings(), local(), SavedView::default());
            for v in events {
                planner.handle_event(RegistryEvent::Applied(v.clone()));
            }
            planner.poll_plan()
        };
        prop_assert_eq!(run(&unique), run(&shuffled));
    }

    #[test]
    fn accepted_nodes_never_share_a_key_a_prefix_or_an_endpoint(
        list in prop::collection::vec(any_view(), 0..8),
        known in prop::collection::vec(any_view(), 0..8),
    ) {
        let known: Vec<NodeView> = views(known).into_values().collect();
        let plan = plan_of(&views(list).into_values().collect::<Vec<_>>(), &incumbents(&known));
        let nodes: Vec<_> = plan.accepted.values().collect();
        for (i, a) in nodes.iter().enumerate() {
            for b in &nodes[i + 1..] {
                prop_assert_ne!(a.record.public_key, b.record.public_key);
                prop_assert_ne!(a.endpoint, b.endpoint);
                for x in &a.record.pod_cidrs {
                    for y in &b.record.pod_cidrs {
                        prop_assert!(!x.contains(y) && !y.contains(x));
                    }
                }
            }
        }
    }
}
