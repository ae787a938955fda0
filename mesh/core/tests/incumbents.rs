//! Incumbents over many plans. The first was found by the simulator (tests/sim, seeds 32 and 40), the
//! second while its reference model was written, the fourth again by the simulator (seed 11811).
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

mod common;

use common::{key, local, settings, view};
use warren_core::consts::{NODE_TABLE, UNREACHABLE_METRIC, annotation};
use warren_core::files::SavedView;
use warren_core::state::{RouteKey, RouteTarget};
use warren_core::{NodeView, Plan, Planner, RegistryEvent};

/// A planner that knows these nodes as peers.
fn planner(nodes: &[NodeView]) -> Planner {
    let mut planner = Planner::new(settings(), local(), SavedView::default());
    planner.handle_event(RegistryEvent::Synced(nodes.to_vec()));
    assert!(planner.poll_plan().rejects.is_empty());
    planner
}

fn refused(plan: &Plan) -> Vec<&str> {
    plan.rejects.keys().map(String::as_str).collect()
}

#[test]
fn an_address_that_a_newcomer_claims_stays_the_incumbents_in_every_plan() {
    let mut planner = planner(&[view(2)]);
    let mut thief = view(3);
    let endpoint = "192.0.2.3:51871".to_string();
    thief
        .annotations
        .insert(annotation::ENDPOINT.into(), endpoint);
    thief.addresses = view(2).addresses;
    planner.handle_event(RegistryEvent::Applied(thief));
    for round in 0..3 {
        let plan = planner.poll_plan();
        let owned = &plan.desired.peers[&key(2)].allowed_ips;
        assert!(
            owned.contains(&"192.0.2.2/32".parse().unwrap()),
            "plan {round}"
        );
        assert_eq!(
            plan.desired.peers[&key(3)].allowed_ips.len(),
            2,
            "plan {round}"
        );
        assert_eq!(plan.notices.len(), 1, "plan {round}");
    }
}

#[test]
fn what_a_refused_incumbent_gave_up_is_another_ones_once_that_has_it() {
    let mut planner = planner(&[view(2), view(4), view(5)]);
    let with_range = |node: u8, range: u8| NodeView {
        pod_cidrs: vec![format!("10.244.{range}.0/24")],
        ..view(node)
    };
    // Node 2 claims what is node 5's, and is refused; its own range is taken by node 4.
    planner.handle_event(RegistryEvent::Applied(with_range(2, 5)));
    assert_eq!(refused(&planner.poll_plan()), ["node2"]);
    planner.handle_event(RegistryEvent::Applied(with_range(4, 2)));
    assert_eq!(refused(&planner.poll_plan()), ["node2"]);
    // It wants its range back: node 4 is the incumbent now.
    planner.handle_event(RegistryEvent::Applied(view(2)));
    let plan = planner.poll_plan();
    assert_eq!(refused(&plan), ["node2"], "{:?}", plan.rejects);
    assert!(plan.desired.peers.contains_key(&key(4)));
}

#[test]
fn a_refused_incumbent_keeps_what_nobody_else_has() {
    let mut planner = planner(&[view(2), view(5)]);
    let mut greedy = view(2);
    greedy.pod_cidrs.push("10.244.5.0/25".into());
    planner.handle_event(RegistryEvent::Applied(greedy));
    assert_eq!(refused(&planner.poll_plan()), ["node2"]);
    let mut thief = view(3);
    thief.pod_cidrs = view(2).pod_cidrs;
    planner.handle_event(RegistryEvent::Applied(thief));
    assert_eq!(refused(&planner.poll_plan()), ["node2", "node3"]);
    planner.handle_event(RegistryEvent::Applied(view(2)));
    assert_eq!(refused(&planner.poll_plan()), ["node3"]);
}

/// Whether pods' packets to this address are refused where no tunnel route leads them.
#[test]
fn what_an_incumbent_gives_up_is_granted_in_the_same_plan() {
    let mut planner = planner(&[view(2), view(5)]);
    let with_key = |node: u8, of: u8| {
        let mut view = view(node);
        let text = key(of).to_base64();
        view.annotations.insert(annotation::PUBLIC_KEY.into(), text);
        view
    };
    let mut in_its_range = view(4);
    in_its_range.pod_cidrs = vec!["10.244.2.0/25".into()];
    planner.handle_event(RegistryEvent::Applied(in_its_range));
    planner.handle_event(RegistryEvent::Applied(with_key(3, 2)));
    assert_eq!(refused(&planner.poll_plan()), ["node3", "node4"]);
    // Node 2 leaves its key, by which it is an incumbent, to node 3, and is refused for another's.
    planner.handle_event(RegistryEvent::Applied(with_key(2, 5)));
    let plan = planner.poll_plan();
    assert_eq!(refused(&plan), ["node2"], "{:?}", plan.rejects);
    assert_eq!(planner.poll_plan(), plan, "and nothing moves any more");
}

fn is_refused(plan: &Plan, address: &str) -> bool {
    let net = format!("{address}/{}", if address.contains(':') { 128 } else { 32 });
    let destination = net.parse().unwrap();
    let key = RouteKey {
        table: NODE_TABLE,
        destination,
        metric: UNREACHABLE_METRIC,
    };
    let unreachable = plan.desired.routes.get(&key) == Some(&RouteTarget::Unreachable);
    unreachable && plan.desired.filter.peer_addresses.contains(&destination)
}

#[test]
fn pods_reach_a_refused_incumbents_addresses_not_at_all_and_never_in_clear() {
    let mut planner = planner(&[view(2), view(3)]);
    let mut broken = view(2);
    let garbage = "x".repeat(1 << 20);
    broken
        .annotations
        .insert(annotation::ENDPOINT.into(), garbage);
    planner.handle_event(RegistryEvent::Applied(broken));
    for round in 0..3 {
        let plan = planner.poll_plan();
        assert_eq!(refused(&plan), ["node2"]);
        assert!(!plan.desired.peers.contains_key(&key(2)));
        for address in ["192.0.2.2", "2001:db8::2", "192.0.2.3", "2001:db8::3"] {
            assert!(is_refused(&plan, address), "plan {round}: {address}");
        }
        assert!(!is_refused(&plan, "192.0.2.1"), "this node's own");
    }
    // One that left is outside the mesh.
    let (name, uid) = (view(2).name, view(2).uid);
    planner.handle_event(RegistryEvent::Deleted { name, uid });
    assert!(!is_refused(&planner.poll_plan(), "192.0.2.2"));
}

#[test]
fn a_node_that_must_be_silent_sends_its_peers_nothing_in_clear_either() {
    let mut planner = Planner::new(settings(), local(), SavedView::default());
    let mut original = view(2);
    let own = key(1).to_string();
    original
        .annotations
        .insert(annotation::PUBLIC_KEY.into(), own);
    planner.handle_event(RegistryEvent::Synced(vec![original, view(3)]));
    let plan = planner.poll_plan();
    assert!(plan.desired.peers.is_empty());
    assert!(is_refused(&plan, "192.0.2.3"), "{:?}", plan.desired.filter);
}

#[test]
fn the_revision_tells_whether_there_is_anything_new_to_save() {
    let mut planner = planner(&[view(2)]);
    let (revision, saved) = (planner.revision(), planner.saved_view());
    planner.handle_event(RegistryEvent::Applied(view(2)));
    planner.poll_plan();
    assert_eq!(planner.revision(), revision);
    assert_eq!(planner.saved_view(), saved);
    planner.handle_event(RegistryEvent::Applied(view(3)));
    let heard = planner.revision();
    assert_ne!(heard, revision, "another node");
    planner.poll_plan();
    let planned = planner.revision();
    assert_ne!(planned, heard, "another incumbent");
    planner.handle_event(RegistryEvent::Deleted {
        name: view(3).name,
        uid: view(3).uid,
    });
    assert_ne!(planner.revision(), planned, "a node less");
    // A start from what was saved has nothing to save until it hears something new.
    let mut again = Planner::new(settings(), local(), saved);
    again.handle_event(RegistryEvent::Synced(vec![view(2)]));
    again.poll_plan();
    assert_eq!(again.revision(), 0);
}
