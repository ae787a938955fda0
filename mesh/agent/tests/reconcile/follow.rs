//! The work that single nodes' news are.

use std::collections::BTreeMap;
use std::time::SystemTime;

use warren_agent::dataplane::set_request;
use warren_agent::reconcile::Followed;
use warren_agent::status;
use warren_core::consts::annotation;
use warren_core::status::PeerState;
use warren_core::{Change, NodeUid, NodeView, RegistryEvent};
use warren_keyring::PrivateKey;

use crate::node::{Node, Work, config, peer, tunnel};

/// Node `n` of a large cluster, in no other's way.
fn far(n: usize) -> NodeView {
    let key = PrivateKey::generate().unwrap().public_key();
    NodeView {
        name: format!("far-{n}"),
        uid: NodeUid(format!("life-{n}")),
        pod_cidrs: vec![
            format!("10.244.{}.{}/28", 100 + n / 16, n % 16 * 16),
            format!("fd00:10:244:{:x}::/64", 0x1000 + n),
        ],
        addresses: vec![format!("172.16.{}.{}", n / 250, n % 250 + 1)],
        annotations: BTreeMap::from([(annotation::PUBLIC_KEY.into(), key.to_base64())]),
    }
}

fn gone(view: &NodeView) -> RegistryEvent {
    RegistryEvent::Deleted {
        name: view.name.clone(),
        uid: view.uid.clone(),
    }
}

/// What one event costs: what is read, what is asked of the tunnel in bytes, the other changes, and the
/// bytes that the disk gets.
#[derive(Debug, PartialEq, Eq)]
struct Cost {
    work: Work,
    uapi_bytes: usize,
    changes: Vec<String>,
    kept_bytes: u64,
    view_written: bool,
}

/// Counted, not timed: a machine that is busy does not change it.
#[tokio::test]
async fn a_node_that_joins_changes_or_leaves_is_the_same_work_among_ten_peers_and_a_thousand() {
    let mut costs = Vec::new();
    let (joined, key) = peer(2);
    for peers in [10, 1000] {
        let mut node = Node::with_peers((0..peers).map(far).collect()).await;
        let mut moved = joined.clone();
        let endpoint = "192.0.2.22:51871".to_owned();
        moved
            .annotations
            .insert(annotation::ENDPOINT.into(), endpoint);
        let events = [
            RegistryEvent::Applied(joined.clone()),
            RegistryEvent::Applied(moved.clone()),
            gone(&moved),
        ];
        let file = |node: &Node, name: &str| {
            let path = node.dir.path().join("state").join(name);
            let file = std::fs::read(path).unwrap_or_default();
            (file.len() as u64, file)
        };
        let mut of_events = Vec::new();
        for event in events {
            node.shared.world().work = Work::default();
            let (whole, kept) = (
                file(&node, "view.json").1,
                file(&node, "view.json.changes").0,
            );
            node.event(event);
            assert_eq!(node.follow().await, Followed::Enough);
            let done = node.done();
            let brief = |change: &Change| format!("{change:?}");
            of_events.push(Cost {
                work: node.shared.world().work,
                uapi_bytes: set_request(&done).to_text().len(),
                changes: done.iter().map(brief).collect(),
                kept_bytes: file(&node, "view.json.changes").0 - kept,
                view_written: file(&node, "view.json").1 != whole,
            });
        }
        for cost in &of_events {
            assert!(!cost.changes.is_empty() && !cost.view_written, "{cost:?}");
            assert!(
                !cost.changes.iter().any(|c| c.contains("SetFilter")),
                "{cost:?}"
            );
            assert_eq!(
                cost.work.kernel_dumps + cost.work.tunnel_dumps,
                0,
                "{cost:?}"
            );
        }
        assert_eq!(of_events[0].work.look_ups, 1);
        assert!(!node.peers().contains(&key));
        costs.push(of_events);
        // And the whole look finds nothing left to do.
        assert!(node.reconcile().await.settled);
        assert_eq!(node.done(), []);
    }
    assert_eq!(costs[0], costs[1]);
}

#[tokio::test]
async fn what_was_followed_is_in_the_status_at_once() {
    let mut node = Node::with_peers(vec![peer(3).0]).await;
    let snapshot = node.reconcile().await;
    let (view, key) = peer(2);
    node.event(RegistryEvent::Applied(view));
    assert_eq!(node.follow().await, Followed::Enough);
    let config = config(node.dir.path());
    let device = node.shared.world().device.clone();
    let status = status::build(
        &config,
        &snapshot,
        &tunnel(device.as_ref()),
        SystemTime::now(),
    );
    assert_eq!(status.peers[0].public_key, key);
    assert_ne!(status.peers[0].state, PeerState::Unknown);
}

#[tokio::test]
async fn what_is_not_a_single_nodes_matter_is_left_to_a_whole_reconcile() {
    // Nothing is followed before the first full view, and nothing before the node was seen to be well.
    let mut node = Node::new();
    node.start_tunnel();
    node.event(RegistryEvent::Applied(peer(2).0));
    assert_eq!(node.follow().await, Followed::Not);
    node.reconcile().await;
    node.event(RegistryEvent::Applied(peer(3).0));
    assert_eq!(node.follow().await, Followed::Not);
    node.event(RegistryEvent::Synced(vec![peer(3).0]));
    assert_eq!(node.follow().await, Followed::Not);

    let mut node = Node::with_peers(vec![peer(3).0]).await;
    let mut thief = peer(2).0;
    thief.pod_cidrs = vec!["10.244.3.0/25".into()];
    node.event(RegistryEvent::Applied(thief));
    assert_eq!(node.follow().await, Followed::Not);
    assert_eq!(node.done(), []);
    let snapshot = node.reconcile().await;
    assert_eq!(snapshot.plan.read().rejects.len(), 1);
    // This node's own entry concerns every peer.
    node.event(RegistryEvent::Applied(peer(1).0));
    assert_eq!(node.follow().await, Followed::Not);
}

#[tokio::test]
async fn a_change_that_fails_while_following_is_made_good_by_a_whole_reconcile() {
    let mut node = Node::with_peers(vec![peer(3).0]).await;
    node.shared.world().refuse = Some(|change| matches!(change, Change::SetRoute { .. }));
    let (view, key) = peer(2);
    node.event(RegistryEvent::Applied(view));
    assert_eq!(node.follow().await, Followed::Failed);
    node.shared.world().refuse = None;
    // Until a whole reconcile has looked at the node, nothing more is followed.
    node.event(RegistryEvent::Applied(peer(4).0));
    assert_eq!(node.follow().await, Followed::Not);
    let snapshot = node.reconcile().await;
    assert!(snapshot.settled && snapshot.protected);
    assert!(node.peers().contains(&key) && node.peers().len() == 3);
    assert!(node.reconcile().await.settled);
    node.done();
    node.event(RegistryEvent::Applied(peer(5).0));
    assert_eq!(node.follow().await, Followed::Enough);
}

/// The agent is killed before anything but the line of what it followed is on the disk.
#[tokio::test]
async fn a_node_that_was_followed_is_an_incumbent_after_a_crash() {
    let mut node = Node::with_peers(vec![peer(3).0]).await;
    let (view, key) = peer(2);
    node.event(RegistryEvent::Applied(view.clone()));
    assert_eq!(node.follow().await, Followed::Enough);
    let mut node = node.restart();
    let mut thief = peer(4).0;
    thief.pod_cidrs.clone_from(&view.pod_cidrs);
    node.reconcile().await;
    assert!(node.peers().contains(&key));
    node.event(RegistryEvent::Synced(vec![view, thief, peer(3).0]));
    let snapshot = node.reconcile().await;
    let plan = snapshot.plan.read();
    assert!(plan.desired.peers.contains_key(&key));
    assert!(plan.rejects.contains_key("node-4"), "{:?}", plan.rejects);
}
