//! What is made of what is there and what is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use warren_agent::reconcile::Touched;
use warren_agent::snapshot::Snapshot;
use warren_agent::status;
use warren_core::consts::annotation;
use warren_core::files::NodeFile;
use warren_core::state::RouteTarget;
use warren_core::{Change, NodeUid, NodeView, RegistryEvent};
use warren_keyring::PublicKey;

use crate::node::{Node, assert_tells, peer};

#[tokio::test]
async fn protection_comes_with_neither_tunnel_nor_registry() {
    let mut node = Node::new();
    let snapshot = node.reconcile().await;
    assert!(snapshot.protected, "{:?}", snapshot.problems);
    assert!(!snapshot.tunnel.ok && !snapshot.synced);
    assert!(!status::not_ready(Some(&snapshot)).is_empty());
    let done = node.done();
    assert!(
        matches!(done[0], Change::SetFilter { .. }),
        "the filter comes first"
    );
    let unreachable = |c: &&Change| {
        matches!(
            c,
            Change::SetRoute {
                new: RouteTarget::Unreachable,
                ..
            }
        )
    };
    assert_eq!(done.iter().filter(unreachable).count(), 2);
    assert!(!node.has_cni_config() && node.shared.world().published.is_empty());
    assert!(node.read::<NodeFile>("state/node.json").is_some());
    assert!(node.reconcile().await.settled && node.done().is_empty());
}

#[tokio::test]
async fn peers_wait_for_the_nodes_own_key() {
    let mut node = Node::new();
    let (view, _) = peer(2);
    node.event(RegistryEvent::Synced(vec![view]));
    let snapshot = node.reconcile().await;
    assert!(snapshot.protected && snapshot.plan.read().accepted.is_empty());
}

#[tokio::test]
async fn a_tunnel_that_answers_is_published_and_gets_its_peers() {
    let mut node = Node::new();
    node.reconcile().await;
    let (view, key) = peer(2);
    node.event(RegistryEvent::Synced(vec![view]));
    let own_key = node.start_tunnel();
    let snapshot = node.reconcile().await;
    assert!(snapshot.problems.is_empty(), "{:?}", snapshot.problems);
    assert!(status::not_ready(Some(&snapshot)).is_empty());
    assert_eq!(node.peers(), BTreeSet::from([key]));
    assert!(node.has_cni_config());
    let published = node.shared.world().published.last().cloned().unwrap();
    assert_eq!(published.public_key, own_key);
    assert_eq!(
        published.endpoints.to_string(),
        "192.0.2.1:51871,[2001:db8::1]:51871"
    );
    let config: serde_json::Value = node.read("cni/10-warren.conflist").unwrap();
    assert_eq!(config["plugins"][0]["type"], "warren-cni");
    assert_eq!(config["cniVersion"], "1.0.0");
    assert_eq!(
        config["cniVersions"],
        serde_json::json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
    );
}

#[tokio::test]
async fn node_json_says_what_the_plugin_needs() {
    let mut node = Node::new();
    node.start_tunnel();
    node.event(RegistryEvent::Synced(Vec::new()));
    node.reconcile().await;
    let file: NodeFile = node.read("state/node.json").unwrap();
    assert_eq!(file.name.as_str(), "node-1");
    assert_eq!(file.cluster_cidrs.len(), 2);
    let addresses: Vec<String> = file
        .tunnel_addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(addresses, ["10.244.1.1", "fd00:10:244:1::1"]);
    assert!(file.mtu_bytes >= 1280);
}

#[tokio::test]
async fn the_cni_configuration_waits_for_the_tunnels_addresses_and_stays() {
    let mut node = Node::new();
    node.shared.world().refuse = Some(|change| matches!(change, Change::AddAddress(_)));
    node.start_tunnel();
    node.reconcile().await;
    assert!(!node.has_cni_config());
    node.shared.world().refuse = None;
    node.reconcile().await;
    assert!(node.has_cni_config());
    {
        let mut world = node.shared.world();
        world.state.link = None;
        world.device = None;
    }
    node.reconcile().await;
    assert!(node.has_cni_config());
}

#[tokio::test]
async fn a_restart_changes_nothing_but_the_filter() {
    let mut node = Node::new();
    node.start_tunnel();
    let (view, _) = peer(2);
    node.event(RegistryEvent::Synced(vec![view.clone()]));
    node.reconcile().await;
    // A new process knows no listing to compare the filter with.
    node.shared.world().state.filter = None;
    let mut node = node.restart();
    node.reconcile().await;
    node.event(RegistryEvent::Synced(vec![view]));
    node.reconcile().await;
    let done = node.done();
    assert!(
        matches!(done.as_slice(), [Change::SetFilter { .. }]),
        "{done:?}"
    );
}

#[tokio::test]
async fn a_restart_without_the_registry_keeps_the_peers() {
    let mut node = Node::new();
    node.start_tunnel();
    let (view, key) = peer(2);
    node.event(RegistryEvent::Synced(vec![view]));
    node.reconcile().await;
    let mut node = node.restart();
    let snapshot = node.reconcile().await;
    assert!(!snapshot.synced);
    assert_eq!(node.peers(), BTreeSet::from([key]));
    assert_eq!(snapshot.plan.read().accepted.len(), 1);
}

#[tokio::test]
async fn nothing_is_removed_before_the_first_full_view() {
    let mut node = Node::new();
    node.start_tunnel();
    let (view, key) = peer(2);
    node.event(RegistryEvent::Synced(vec![view]));
    node.reconcile().await;
    std::fs::remove_file(node.dir.path().join("state/view.json")).unwrap();
    let mut node = node.restart();
    node.reconcile().await;
    assert_eq!(node.peers(), BTreeSet::from([key]));
    node.event(RegistryEvent::Synced(Vec::new()));
    node.reconcile().await;
    assert_eq!(node.peers(), BTreeSet::new());
}

/// The plan of before the view takes nothing away in its name.
#[tokio::test]
async fn a_repair_between_the_first_full_view_and_its_plan_removes_nothing() {
    let mut node = Node::new();
    node.start_tunnel();
    let (view, _) = peer(2);
    node.event(RegistryEvent::Synced(vec![view.clone()]));
    node.reconcile().await;
    std::fs::remove_file(node.dir.path().join("state/view.json")).unwrap();
    let mut node = node.restart();
    node.reconcile().await;
    node.event(RegistryEvent::Synced(vec![view]));
    node.done();
    let touched = Touched {
        network: true,
        ..Touched::default()
    };
    node.reconciler.repair(touched).await;
    assert_eq!(node.done(), []);
}

#[tokio::test]
async fn a_roamed_endpoint_is_left_alone_until_a_new_one_is_published() {
    let mut node = Node::new();
    node.start_tunnel();
    let (mut view, key) = peer(2);
    node.event(RegistryEvent::Synced(vec![view.clone()]));
    node.reconcile().await;
    let roamed = "203.0.113.9:9999".parse().unwrap();
    let set_endpoint = |node: &Node, endpoint| {
        node.shared.world().device.as_mut().unwrap().peers[0].endpoint = endpoint;
    };
    set_endpoint(&node, Some(roamed));
    let mut node = node.restart();
    node.event(RegistryEvent::Synced(vec![view.clone()]));
    node.reconcile().await;
    assert!(node.done().is_empty(), "also over a restart of the agent");
    view.annotations
        .insert(annotation::ENDPOINT.into(), "192.0.2.22:1".into());
    node.event(RegistryEvent::Applied(view));
    node.reconcile().await;
    let Change::UpdatePeer {
        public_key, delta, ..
    } = &node.done()[0]
    else {
        panic!()
    };
    assert_eq!(
        (*public_key, delta.endpoint),
        (key, Some("192.0.2.22:1".parse().unwrap()))
    );
    // A tunnel that forgot it gets it again.
    set_endpoint(&node, None);
    node.reconcile().await;
    assert_eq!(node.done().len(), 1);
}

#[tokio::test]
async fn an_endpoint_given_by_an_agent_that_was_killed_at_it_does_not_outlive_the_plan() {
    let mut node = Node::new();
    node.start_tunnel();
    let (view, key) = peer(2);
    node.event(RegistryEvent::Synced(vec![view.clone()]));
    node.reconcile().await;
    let endpoint = |node: &Node| {
        let world = node.shared.world();
        let peers = world.device.iter().flat_map(|device| &device.peers);
        let found = peers.clone().find(|peer| peer.public_key == key);
        found.and_then(|peer| peer.endpoint)
    };
    let before = endpoint(&node);
    let mut moved = view.clone();
    moved
        .annotations
        .insert(annotation::ENDPOINT.into(), "192.0.2.22:1".into());
    node.event(RegistryEvent::Applied(moved));
    node.shared.world().never_answers = true;
    let killed = tokio::time::timeout(Duration::from_secs(1), node.reconcile()).await;
    assert!(killed.is_err());
    assert_ne!(endpoint(&node), before);
    node.shared.world().never_answers = false;

    let mut node = node.restart();
    node.event(RegistryEvent::Synced(vec![view]));
    node.reconcile().await;
    assert_eq!(endpoint(&node), before);
}

#[tokio::test]
async fn what_others_change_is_repaired() {
    let mut node = Node::new();
    node.start_tunnel();
    node.event(RegistryEvent::Synced(vec![peer(2).0]));
    node.reconcile().await;
    let good = node.shared.world().state.clone();
    {
        let mut world = node.shared.world();
        world.state.filter = None;
        world.state.routes.clear();
        world.state.rules.clear();
        world.state.addresses.clear();
        world.device.as_mut().unwrap().peers.clear();
    }
    let snapshot = node.reconcile().await;
    assert!(snapshot.protected && snapshot.settled);
    assert_eq!(node.shared.world().state, good);
}

#[tokio::test]
async fn a_failing_change_is_a_problem_and_stops_no_other() {
    let mut node = Node::new();
    node.start_tunnel();
    let (view, key) = peer(2);
    node.event(RegistryEvent::Synced(vec![view]));
    node.shared.world().refuse = Some(|change| matches!(change, Change::AddRule(_)));
    let snapshot = node.reconcile().await;
    assert!(!snapshot.settled && !snapshot.problems.is_empty());
    assert!(snapshot.protected);
    assert_eq!(node.peers(), BTreeSet::from([key]));
    assert!(!node.shared.world().state.routes.is_empty());
    assert_eq!(snapshot.stats.failed, 1);
}

#[tokio::test]
async fn a_filter_that_cannot_be_loaded_is_no_protection() {
    let mut node = Node::new();
    node.start_tunnel();
    node.shared.world().refuse = Some(|change| matches!(change, Change::SetFilter { .. }));
    let snapshot = node.reconcile().await;
    assert!(!snapshot.protected && !node.has_cni_config());
}

#[tokio::test]
async fn changes_that_do_not_stay_end_and_are_told() {
    let mut node = Node::new();
    node.start_tunnel();
    node.shared.world().swallow = Some(|change| matches!(change, Change::AddRule(_)));
    let snapshot = node.reconcile().await;
    assert!(!snapshot.settled);
    assert_tells(&snapshot, "does not stay as set");
}

/// The node itself with its key, to be reached by IPv6.
fn own_by_ipv6(key: &PublicKey) -> NodeView {
    let (mut own, _) = peer(1);
    own.annotations
        .insert(annotation::PUBLIC_KEY.into(), key.to_base64());
    own.annotations.insert(
        annotation::FORCE_ENDPOINT.into(),
        "[2001:db8::1]:51871".into(),
    );
    own
}

#[tokio::test]
async fn a_force_endpoint_of_this_node_decides_its_family() {
    let mut node = Node::new();
    let own_key = node.start_tunnel();
    let own = own_by_ipv6(&own_key);
    node.event(RegistryEvent::Synced(vec![own, peer(2).0]));
    let snapshot = node.reconcile().await;
    let planned: Vec<_> = snapshot
        .plan
        .read()
        .accepted
        .values()
        .map(|node| node.endpoint)
        .collect();
    assert_eq!(planned, ["[2001:db8::2]:51871".parse().unwrap()]);
    // What the agent itself found stays published beside it.
    assert_eq!(snapshot.endpoints.len(), 2);
}

#[tokio::test]
async fn the_end_of_an_earlier_life_of_this_node_does_not_take_its_present_entry() {
    let mut node = Node::new();
    let own_key = node.start_tunnel();
    let mut own = own_by_ipv6(&own_key);
    let ended = |uid: &NodeUid| RegistryEvent::Deleted {
        name: "node-1".into(),
        uid: uid.clone(),
    };
    let before = std::mem::replace(&mut own.uid, NodeUid("uid-again".into()));
    node.event(RegistryEvent::Synced(vec![own.clone(), peer(2).0]));
    node.event(ended(&before));
    let families = |snapshot: &Snapshot| -> Vec<bool> {
        let plan = snapshot.plan.read();
        let planned = plan.accepted.values();
        planned.map(|node| node.endpoint.is_ipv6()).collect()
    };
    assert_eq!(families(&node.reconcile().await), [true]);
    node.event(ended(&own.uid));
    assert_eq!(families(&node.reconcile().await), [false]);
}

#[tokio::test]
async fn the_mtu_of_a_peers_route_is_that_of_the_way_to_it() {
    let mut node = Node::new();
    node.start_tunnel();
    node.shared.world().path_mtu = BTreeMap::from([("192.0.2.2".parse().unwrap(), 1400)]);
    node.event(RegistryEvent::Synced(vec![peer(2).0, peer(3).0]));
    let snapshot = node.reconcile().await;
    let mtus: Vec<u32> = snapshot
        .plan
        .read()
        .accepted
        .values()
        .map(|node| node.mtu_bytes)
        .collect();
    assert_eq!(mtus, [1340, 1440]);
}

#[tokio::test]
async fn what_peers_would_refuse_of_this_node_is_told_here() {
    let mut node = Node::new();
    node.start_tunnel();
    let (mut own, _) = peer(1);
    own.annotations
        .insert(annotation::FORCE_ENDPOINT.into(), "gateway:51871".into());
    node.event(RegistryEvent::Synced(vec![own]));
    let snapshot = node.reconcile().await;
    assert_tells(&snapshot, "the other nodes refuse this one");
}

#[tokio::test]
async fn a_node_without_an_address_is_protected_and_says_what_is_missing() {
    let mut node = Node::new();
    node.shared.world().no_default_route = true;
    let snapshot = node.reconcile().await;
    assert!(snapshot.protected);
    assert_tells(&snapshot, "set node-addresses");
}

#[tokio::test]
async fn a_tunnel_on_another_port_is_a_problem() {
    let mut node = Node::new();
    node.start_tunnel();
    node.shared.world().device.as_mut().unwrap().listen_port = 51820;
    let snapshot = node.reconcile().await;
    assert_tells(&snapshot, "port 51820");
}
