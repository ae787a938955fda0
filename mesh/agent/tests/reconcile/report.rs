//! What is told: status and metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use warren_agent::registry::RegistryReport;
use warren_agent::snapshot::Snapshot;
use warren_agent::status::{self, TunnelView};
use warren_agent::tunnel_socket::TunnelReport;
use warren_core::RegistryEvent;
use warren_core::degraded::WayTrouble;
use warren_core::peer_path::{Initiating, PeerPath, Unanswered};
use warren_core::status::{NodeState, PeerState};

use crate::node::{Node, config, peer, tunnel};

#[tokio::test]
async fn the_status_tells_the_tunnels_version_the_age_of_its_key_and_the_clusters_ranges() {
    let mut node = Node::new();
    node.start_tunnel();
    let snapshot = node.reconcile().await;
    let config = config(node.dir.path());
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let told = |written: Option<u64>| {
        let report = TunnelReport {
            version: Some("0.1.0".into()),
            key_written: written.map(Duration::from_secs),
            ..TunnelReport::default()
        };
        let view = TunnelView {
            device: None,
            report: &report,
        };
        status::build(&config, &snapshot, &view, now)
    };
    let status = told(Some(1_799_996_400));
    assert_eq!(status.tunnel_version.as_deref(), Some("0.1.0"));
    assert_eq!(status.key_age_seconds, Some(3600));
    assert_eq!(
        status.cluster_cidrs.into_iter().collect::<BTreeSet<_>>(),
        config.cluster_cidrs
    );
    // A file of the future, by a clock that was set, is new.
    assert_eq!(told(Some(1_900_000_000)).key_age_seconds, Some(0));
    assert_eq!(told(None).key_age_seconds, None);
}

#[tokio::test]
async fn the_status_has_peers_refusals_and_troubles() {
    let mut node = Node::new();
    node.start_tunnel();
    let (mut keyless, _) = peer(3);
    keyless.annotations.clear();
    node.event(RegistryEvent::Synced(vec![peer(2).0, keyless]));
    let trouble = "registry file node-4.json: garbage".to_owned();
    node.reconciler
        .handle_report(RegistryReport::Troubles(vec![trouble.clone()]));
    let snapshot = node.reconcile().await;
    let now = SystemTime::now();
    let mut device = snapshot.device.clone().unwrap();
    device.peers[0].last_handshake = now.duration_since(SystemTime::UNIX_EPOCH).ok();
    let config = config(node.dir.path());
    let status = status::build(&config, &snapshot, &tunnel(Some(&device)), now);
    assert_eq!(
        (status.peers[0].node.as_str(), status.peers[0].state),
        ("node-2", PeerState::Up)
    );
    assert_eq!(status.peers[0].handshake_age_seconds, Some(0));
    assert!(status.rejected[0].waiting && status.rejected[0].reason == "NoPublicKey");
    assert!(!status.registry.ok && status.registry.detail == trouble);
    let gone = status::build(&config, &snapshot, &tunnel(None), now);
    assert_eq!(gone.peers[0].state, PeerState::Unknown);
    let text = serde_json::to_string(&status).unwrap();
    assert_eq!(
        serde_json::from_str::<warren_core::status::AgentStatus>(&text).unwrap(),
        status
    );
}

#[tokio::test]
async fn a_narrow_place_that_only_the_tunnel_knows_of_lowers_the_routes_mtu() {
    let mut node = Node::new();
    node.start_tunnel();
    let (view, key) = peer(2);
    node.event(RegistryEvent::Synced(vec![view]));
    let mtu = |snapshot: &Snapshot| {
        snapshot
            .plan
            .read()
            .accepted
            .values()
            .next()
            .unwrap()
            .mtu_bytes
    };
    let wide = mtu(&node.reconcile().await);
    let device = |node: &mut Node, proven: Option<u32>| {
        let mut world = node.shared.world();
        let device = world.device.as_mut().unwrap();
        device.path_mtu = proven.map(|mtu| (key, mtu)).into_iter().collect();
    };
    device(&mut node, Some(1400));
    let narrow = mtu(&node.reconcile().await);
    assert_eq!(narrow, wide - 100);
    device(&mut node, None);
    assert_eq!(mtu(&node.reconcile().await), wide);
}

#[tokio::test]
async fn a_degraded_peer_is_told_with_its_cause_and_no_longer_than_it_lasts() {
    let mut node = Node::new();
    node.start_tunnel();
    let (view, key) = peer(2);
    node.event(RegistryEvent::Synced(vec![view]));
    let snapshot = node.reconcile().await;
    let config = config(node.dir.path());
    let seconds = Duration::from_secs;
    let path = PeerPath {
        unanswered: Some(Unanswered {
            first: seconds(17),
            last: seconds(1),
        }),
        initiating: Some(Initiating {
            initiations: 1,
            first: seconds(2),
        }),
        ..PeerPath::new(key)
    };
    let report = TunnelReport {
        paths: BTreeMap::from([(key, path)]),
        ..TunnelReport::default()
    };
    let view = TunnelView {
        device: snapshot.device.as_ref(),
        report: &report,
    };
    let status = status::build(&config, &snapshot, &view, SystemTime::now());
    assert_eq!(status.peers[0].state, PeerState::Degraded);
    let cause = status.peers[0].degraded.as_ref().unwrap();
    assert!(
        cause.reason == "no-answer" && cause.message.contains("17 s"),
        "{cause:?}"
    );
    assert_eq!(status.state, NodeState::Degraded);
    let text =
        warren_agent::metrics::encode(&status, &snapshot.stats, &TunnelReport::default()).unwrap();
    for line in [
        "warren_degraded_peers{reason=\"no-answer\"} 1",
        "warren_peers{state=\"degraded\"} 1",
        "warren_degraded 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
    let view = tunnel(snapshot.device.as_ref());
    let status = status::build(&config, &snapshot, &view, SystemTime::now());
    assert_eq!(status.peers[0].degraded, None);
    assert_eq!(status.state, NodeState::Ok);

    // A cable that is out: told at once, and nothing of the mesh is taken back.
    let endpoint = status.peers[0].published_endpoint.ip();
    let device = "eth0".to_owned();
    node.shared
        .world()
        .way_troubles
        .insert(endpoint, WayTrouble::LinkDown { device });
    node.shared.world().no_default_route = true;
    let published = node.shared.world().published.len();
    let snapshot = node.reconcile().await;
    let view = tunnel(snapshot.device.as_ref());
    let status = status::build(&config, &snapshot, &view, SystemTime::now());
    assert_eq!(
        status.peers[0].degraded.as_ref().unwrap().reason,
        "link-down"
    );
    assert!(!status.endpoints.is_empty());
    let world = node.shared.world();
    let later = &world.published[published..];
    assert!(later.iter().all(|own| !own.endpoints.is_empty()));
}

#[tokio::test]
async fn the_metrics_have_the_exporters_names_and_labels() {
    let mut node = Node::new();
    node.start_tunnel();
    let (view, key) = peer(2);
    node.event(RegistryEvent::Synced(vec![view]));
    let snapshot = node.reconcile().await;
    let mut device = snapshot.device.clone().unwrap();
    device.peers[0].tx_bytes = 77;
    let config = config(node.dir.path());
    let status = status::build(
        &config,
        &snapshot,
        &tunnel(Some(&device)),
        SystemTime::now(),
    );
    let drops = BTreeMap::from([("no_route".to_owned(), 3)]);
    let report = TunnelReport {
        drops,
        fragmented: 9,
        ..TunnelReport::default()
    };
    let text = warren_agent::metrics::encode(&status, &snapshot.stats, &report).unwrap();
    assert!(text.contains("\nwarren_tunnel_fragmented_datagrams_total 9\n"));
    let labels = format!("{{interface=\"warren0\",public_key=\"{key}\",friendly_name=\"node-2\"}}");
    for line in [
        format!("wireguard_sent_bytes_total{labels} 77"),
        format!("wireguard_received_bytes_total{labels} 0"),
        format!("wireguard_latest_handshake_seconds{labels} 0"),
        "warren_protected 1".into(),
        "warren_peers{state=\"connecting\"} 1".into(),
        format!("warren_peer_degraded{labels} 0"),
        "warren_degraded_peers{reason=\"no-answer\"} 0".into(),
        "warren_tunnel_drops_total{reason=\"no_route\"} 3".into(),
        "warren_reconciles_total 1".into(),
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
}
