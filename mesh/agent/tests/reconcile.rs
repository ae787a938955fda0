//! The reconcile against a world of state that changes are done to, as the kernel would.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use warren_agent::config::{Config, Surroundings, load};
use warren_agent::dataplane::{DataPlane, DataPlaneError, DeviceState, set_request};
use warren_agent::host::{Host, HostError, Underlay, UnderlayQuery};
use warren_agent::reconcile::{Followed, Reconciler, Touched};
use warren_agent::registry::{NodeRegistry, OwnRecord, RegistryError, RegistryReport};
use warren_agent::snapshot::Snapshot;
use warren_agent::status::{self, TunnelView};
use warren_agent::tunnel_socket::TunnelReport;
use warren_agent::view_files::ViewFiles;
use warren_core::consts::annotation;
use warren_core::degraded::WayTrouble;
use warren_core::files::{NodeFile, SavedView};
use warren_core::peer_path::{Initiating, PeerPath, Unanswered};
use warren_core::state::{ObservedLink, RouteTarget};
use warren_core::status::{NodeState, PeerState};
use warren_core::uapi::Peer;
use warren_core::{Change, NodeUid, NodeView, ObservedState, RegistryEvent};
use warren_keyring::{PrivateKey, PublicKey};

/// Everything outside the reconcile.
#[derive(Default)]
struct World {
    state: ObservedState,
    device: Option<DeviceState>,
    done: Vec<Change>,
    /// Changes that fail.
    refuse: Option<fn(&Change) -> bool>,
    /// Changes that seem to work and do nothing.
    swallow: Option<fn(&Change) -> bool>,
    path_mtu: BTreeMap<IpAddr, u32>,
    no_default_route: bool,
    way_troubles: BTreeMap<IpAddr, WayTrouble>,
    /// The tunnel does what it is told, and the agent never hears of it.
    never_answers: bool,
    published: Vec<OwnRecord>,
    work: Work,
}

/// What was asked of the node, other than changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Work {
    /// How often all of the kernel was read: routes, rules, the filter.
    kernel_dumps: usize,
    /// How often all peers were read.
    tunnel_dumps: usize,
    /// How many routes of the underlay were looked up.
    look_ups: usize,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<World>>);

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }
}

fn refused(change: &Change) -> HostError {
    HostError::NotMine {
        change: format!("{change:?}"),
    }
}

impl Host for Shared {
    fn prepare(&mut self) -> Vec<String> {
        Vec::new()
    }

    async fn observe(&mut self) -> Result<ObservedState, HostError> {
        self.world().work.kernel_dumps += 1;
        Ok(ObservedState {
            peers: None,
            ..self.world().state.clone()
        })
    }

    async fn apply(&mut self, change: &Change) -> Result<(), HostError> {
        let mut world = self.world();
        world.done.push(change.clone());
        if world.refuse.is_some_and(|refuse| refuse(change)) {
            return Err(refused(change));
        }
        if !world.swallow.is_some_and(|swallow| swallow(change)) {
            world.state.apply(change);
        }
        Ok(())
    }

    async fn underlay(&mut self, query: &UnderlayQuery) -> Result<Underlay, HostError> {
        let mut world = self.world();
        world.work.look_ups += query.endpoints.len();
        let known = |e: &&IpAddr| query.endpoints.contains(*e);
        let path_mtu = world.path_mtu.iter().filter(|(e, _)| known(e));
        let addresses: &[&str] = if world.no_default_route {
            &[]
        } else {
            &["192.0.2.1", "2001:db8::1"]
        };
        Ok(Underlay {
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            mtu_bytes: 1500,
            path_mtu: path_mtu.map(|(e, mtu)| (*e, *mtu)).collect(),
            troubles: world.way_troubles.clone(),
            down: BTreeSet::new(),
        })
    }

    fn filter_drops(&self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }
}

impl DataPlane for Shared {
    async fn observe(&mut self) -> Result<DeviceState, DataPlaneError> {
        let mut world = self.world();
        world.work.tunnel_dumps += 1;
        world.device.clone().ok_or_else(|| DataPlaneError::Connect {
            path: "/nowhere".into(),
            source: std::io::ErrorKind::NotFound.into(),
        })
    }

    async fn apply(&mut self, changes: &[Change]) -> Result<(), DataPlaneError> {
        if self.set_peers(changes) {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

impl Shared {
    /// Returns whether the tunnel says nothing to that.
    fn set_peers(&self, changes: &[Change]) -> bool {
        let mut world = self.world();
        world.done.extend_from_slice(changes);
        let World { state, device, .. } = &mut *world;
        let device = device
            .as_mut()
            .expect("no peer is set on a tunnel that does not answer");
        changes.iter().for_each(|change| state.apply(change));
        device.peers = state
            .peers
            .iter()
            .flatten()
            .map(|(key, peer)| Peer {
                endpoint: peer.endpoint,
                allowed_ips: peer.allowed_ips.iter().copied().collect(),
                persistent_keepalive: peer.persistent_keepalive,
                path_probes: peer.path_probes,
                ..Peer::new(*key)
            })
            .collect();
        world.never_answers
    }
}

impl NodeRegistry for Shared {
    async fn next(&mut self) -> RegistryReport {
        std::future::pending().await
    }

    async fn publish(&mut self, own: &OwnRecord) -> Result<bool, RegistryError> {
        let mut world = self.world();
        let differs = world.published.last() != Some(own);
        world.published.push(own.clone());
        Ok(differs)
    }
}

/// A node with its directories.
struct Node {
    shared: Shared,
    dir: tempfile::TempDir,
    reconciler: Reconciler<Shared, Shared>,
}

impl Node {
    fn new() -> Self {
        Self::start(
            tempfile::tempdir().unwrap(),
            Shared(Arc::default()),
            SavedView::default(),
        )
    }

    fn start(dir: tempfile::TempDir, shared: Shared, saved: SavedView) -> Self {
        let uid = NodeUid("own".into());
        let config = config(dir.path());
        let reconciler =
            Reconciler::new(config, uid, shared.clone(), shared.clone(), saved).unwrap();
        Self {
            shared,
            dir,
            reconciler,
        }
    }

    /// The agent starts again: the kernel, the tunnel and the files are as they were.
    fn restart(self) -> Self {
        let saved = ViewFiles::new(&self.dir.path().join("state")).load();
        let saved = saved.unwrap().unwrap_or_default();
        self.shared.world().done.clear();
        Self::start(self.dir, self.shared, saved)
    }

    async fn reconcile(&mut self) -> Snapshot {
        self.reconciler.reconcile(&mut self.shared).await
    }

    async fn follow(&mut self) -> Followed {
        self.reconciler.follow().await
    }

    /// A node that has its tunnel and these peers, and nothing left to do.
    async fn with_peers(views: Vec<NodeView>) -> Self {
        let mut node = Self::new();
        node.start_tunnel();
        node.event(RegistryEvent::Synced(views));
        node.reconcile().await;
        assert!(node.reconcile().await.settled);
        node.done();
        node
    }

    fn event(&mut self, event: RegistryEvent) {
        self.reconciler.handle_report(RegistryReport::Event(event));
    }

    fn read<T: serde::de::DeserializeOwned>(&self, path: &str) -> Option<T> {
        let text = std::fs::read(self.dir.path().join(path)).ok()?;
        Some(serde_json::from_slice(&text).unwrap())
    }

    fn has_cni_config(&self) -> bool {
        self.dir.path().join("cni/10-warren.conflist").exists()
    }

    fn start_tunnel(&self) -> PublicKey {
        let key = PrivateKey::generate().unwrap().public_key();
        let mut world = self.shared.world();
        world.device = Some(DeviceState {
            public_key: Some(key),
            listen_port: 51871,
            peers: Vec::new(),
            path_mtu: BTreeMap::new(),
        });
        world.state.link = Some(ObservedLink {
            mtu_bytes: 1500,
            up: false,
        });
        key
    }

    fn done(&self) -> Vec<Change> {
        std::mem::take(&mut self.shared.world().done)
    }

    fn peers(&self) -> BTreeSet<PublicKey> {
        let world = self.shared.world();
        world
            .device
            .iter()
            .flat_map(|d| &d.peers)
            .map(|peer| peer.public_key)
            .collect()
    }
}

fn config(dir: &Path) -> Config {
    let args = [
        "warren-agent".to_owned(),
        "--node-name=node-1".into(),
        "--cluster-cidrs=10.244.0.0/16,fd00:10:244::/48".into(),
        "--pod-cidrs=10.244.1.0/24,fd00:10:244:1::/64".into(),
        format!("--state-dir={}", dir.join("state").display()),
        format!("--run-dir={}", dir.join("run").display()),
        format!("--cni-conf-dir={}", dir.join("cni").display()),
    ];
    std::fs::create_dir_all(dir.join("state")).unwrap();
    load(
        args.map(OsString::from),
        &BTreeMap::new(),
        &Surroundings::default(),
    )
    .unwrap()
    .config
}

fn peer(number: u8) -> (NodeView, PublicKey) {
    let key = PrivateKey::generate().unwrap().public_key();
    let view = NodeView {
        name: format!("node-{number}"),
        uid: NodeUid(format!("uid-{number}")),
        pod_cidrs: vec![
            format!("10.244.{number}.0/24"),
            format!("fd00:10:244:{number}::/64"),
        ],
        addresses: vec![format!("192.0.2.{number}"), format!("2001:db8::{number}")],
        annotations: BTreeMap::from([(annotation::PUBLIC_KEY.into(), key.to_base64())]),
    };
    (view, key)
}

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
    assert!(
        snapshot
            .problems
            .iter()
            .any(|p| p.contains("does not stay as set"))
    );
}

#[tokio::test]
async fn a_force_endpoint_of_this_node_decides_its_family() {
    let mut node = Node::new();
    let own_key = node.start_tunnel();
    let (mut own, _) = peer(1);
    own.annotations
        .insert(annotation::PUBLIC_KEY.into(), own_key.to_base64());
    own.annotations.insert(
        annotation::FORCE_ENDPOINT.into(),
        "[2001:db8::1]:51871".into(),
    );
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
    let (mut own, _) = peer(1);
    own.annotations
        .insert(annotation::PUBLIC_KEY.into(), own_key.to_base64());
    own.annotations.insert(
        annotation::FORCE_ENDPOINT.into(),
        "[2001:db8::1]:51871".into(),
    );
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
    assert!(
        snapshot
            .problems
            .iter()
            .any(|p| p.contains("the other nodes refuse this one")),
        "{:?}",
        snapshot.problems
    );
}

#[tokio::test]
async fn a_node_without_an_address_is_protected_and_says_what_is_missing() {
    let mut node = Node::new();
    node.shared.world().no_default_route = true;
    let snapshot = node.reconcile().await;
    assert!(snapshot.protected);
    assert!(
        snapshot
            .problems
            .iter()
            .any(|p| p.contains("set node-addresses"))
    );
}

#[tokio::test]
async fn a_tunnel_on_another_port_is_a_problem() {
    let mut node = Node::new();
    node.start_tunnel();
    node.shared.world().device.as_mut().unwrap().listen_port = 51820;
    let snapshot = node.reconcile().await;
    assert!(snapshot.problems.iter().any(|p| p.contains("port 51820")));
}

/// A tunnel that has nothing to tell on its own socket.
fn tunnel(device: Option<&DeviceState>) -> TunnelView<'_> {
    static NOTHING: TunnelReport = TunnelReport {
        version: None,
        key_written: None,
        drops: BTreeMap::new(),
        offload: None,
        fragmented: 0,
        shards: 0,
        tun_queues: 0,
        paths: BTreeMap::new(),
    };
    TunnelView {
        device,
        report: &NOTHING,
    }
}

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
