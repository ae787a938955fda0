//! What becomes of a known node's changed key.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

mod common;

use common::{key, local, settings, view};
use warren_core::consts::annotation;
use warren_core::files::SavedView;
use warren_core::{
    KeyChange, NodeName, NodeNotice, NodeUid, NodeView, Pinning, Planner, RegistryEvent, Settings,
};
use warren_keyring::PublicKey;

fn planner(pinning: Pinning, saved: SavedView) -> Planner {
    let settings = Settings {
        pinning,
        ..settings()
    };
    Planner::new(settings, local(), saved)
}

/// A planner that knows nodes 2 and 3.
fn knowing(pinning: Pinning) -> Planner {
    let mut planner = planner(pinning, SavedView::default());
    planner.handle_event(RegistryEvent::Synced(vec![view(2), view(3)]));
    assert_eq!(planner.poll_plan().accepted.len(), 2);
    planner
}

fn with_key(node: u8, public_key: PublicKey) -> NodeView {
    let mut view = view(node);
    let text = public_key.to_base64();
    view.annotations.insert(annotation::PUBLIC_KEY.into(), text);
    view
}

fn name(node: u8) -> NodeName {
    NodeName::new(format!("node{node}")).unwrap()
}

fn held(node: u8, published: PublicKey) -> NodeNotice {
    NodeNotice::KeyHeld {
        node: name(node),
        held: key(node),
        published,
    }
}

#[test]
fn a_changed_key_is_believed_and_told_once() {
    let mut planner = knowing(Pinning::Warn);
    planner.handle_event(RegistryEvent::Applied(with_key(2, key(20))));
    let plan = planner.poll_plan();
    assert!(plan.desired.peers.contains_key(&key(20)) && plan.notices.is_empty());
    let (old, new) = (key(2), key(20));
    assert_eq!(plan.key_changes, [(name(2), KeyChange { old, new })].into());
    assert!(planner.poll_plan().key_changes.is_empty());
}

#[test]
fn a_key_that_changed_while_nobody_looked_is_told_of_the_saved_view() {
    let saved = knowing(Pinning::Warn).saved_view();
    let mut planner = planner(Pinning::Warn, saved);
    planner.handle_event(RegistryEvent::Synced(vec![with_key(2, key(20)), view(3)]));
    assert_eq!(planner.poll_plan().key_changes.len(), 1);
}

#[test]
fn a_strictly_pinned_key_is_held_over_restarts_and_all_else_follows() {
    let mut planner = knowing(Pinning::Strict);
    let mut changed = with_key(2, key(20));
    let endpoint = "198.51.100.2:4000".to_owned();
    changed
        .annotations
        .insert(annotation::ENDPOINT.into(), endpoint);
    planner.handle_event(RegistryEvent::Applied(changed.clone()));
    for _ in 0..2 {
        let plan = planner.poll_plan();
        assert_eq!(plan.notices, [(name(2), held(2, key(20)))].into());
        assert!(plan.key_changes.is_empty());
        let peer = &plan.desired.peers[&key(2)];
        assert_eq!(peer.endpoint, "198.51.100.2:4000".parse().unwrap());
        assert!(!plan.desired.peers.contains_key(&key(20)));
        planner = self::planner(Pinning::Strict, planner.saved_view());
        planner.handle_event(RegistryEvent::Synced(vec![changed.clone(), view(3)]));
    }
}

#[test]
fn a_trusted_key_takes_the_held_ones_place_for_good() {
    let mut planner = knowing(Pinning::Strict);
    assert!(
        !planner.handle_trust(&name(2), key(20)),
        "it is not published"
    );
    planner.handle_event(RegistryEvent::Applied(with_key(2, key(20))));
    planner.poll_plan();
    assert!(!planner.handle_trust(&name(2), key(21)), "nor is that one");
    assert!(planner.handle_trust(&name(2), key(20)));
    assert!(planner.is_dirty());
    let plan = planner.poll_plan();
    assert!(plan.desired.peers.contains_key(&key(20)) && plan.notices.is_empty());
    assert!(!planner.handle_trust(&name(2), key(20)), "it is done");
    // The old one is a stranger's by now.
    planner.handle_event(RegistryEvent::Applied(view(2)));
    assert!(planner.poll_plan().desired.peers.contains_key(&key(20)));
}

#[test]
fn another_life_of_a_node_is_not_held_to_the_key_of_the_last_one() {
    let mut planner = knowing(Pinning::Strict);
    let mut reborn = with_key(2, key(20));
    reborn.uid = NodeUid("another".into());
    planner.handle_event(RegistryEvent::Applied(reborn));
    let plan = planner.poll_plan();
    assert!(plan.desired.peers.contains_key(&key(20)) && plan.notices.is_empty());
}

#[test]
fn a_pinned_node_that_publishes_another_ones_key_harms_nobody_trusted_or_not() {
    let mut planner = knowing(Pinning::Strict);
    planner.handle_event(RegistryEvent::Applied(with_key(2, key(3))));
    assert!(!planner.handle_trust(&name(2), key(3)), "node 3 has it");
    let plan = planner.poll_plan();
    assert!(plan.rejects.is_empty(), "{:?}", plan.rejects);
    let keys: Vec<_> = plan.desired.peers.keys().collect();
    assert!(keys.contains(&&key(2)) && keys.contains(&&key(3)));
    assert_eq!(plan.notices, [(name(2), held(2, key(3)))].into());
}
