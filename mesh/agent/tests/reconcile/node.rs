//! A node whose kernel, tunnel and registry are in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use warren_agent::config::{Config, Surroundings, load};
use warren_agent::dataplane::{DataPlane, DataPlaneError, DeviceState};
use warren_agent::host::{Host, HostError, Underlay, UnderlayQuery};
use warren_agent::reconcile::{Followed, Reconciler};
use warren_agent::registry::{NodeRegistry, OwnRecord, RegistryError, RegistryReport};
use warren_agent::snapshot::Snapshot;
use warren_agent::status::TunnelView;
use warren_agent::tunnel_socket::TunnelReport;
use warren_agent::view_files::ViewFiles;
use warren_core::consts::annotation;
use warren_core::degraded::WayTrouble;
use warren_core::files::SavedView;
use warren_core::state::ObservedLink;
use warren_core::uapi::Peer;
use warren_core::{Change, NodeUid, NodeView, ObservedState, RegistryEvent};
use warren_keyring::{PrivateKey, PublicKey};

/// Everything outside the reconcile.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) state: ObservedState,
    pub(crate) device: Option<DeviceState>,
    pub(crate) done: Vec<Change>,
    /// Changes that fail.
    pub(crate) refuse: Option<fn(&Change) -> bool>,
    /// Changes that seem to work and do nothing.
    pub(crate) swallow: Option<fn(&Change) -> bool>,
    pub(crate) path_mtu: BTreeMap<IpAddr, u32>,
    pub(crate) no_default_route: bool,
    pub(crate) way_troubles: BTreeMap<IpAddr, WayTrouble>,
    /// The tunnel does what it is told, and the agent never hears of it.
    pub(crate) never_answers: bool,
    pub(crate) published: Vec<OwnRecord>,
    pub(crate) work: Work,
}

/// What was asked of the node, other than changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// How often all of the kernel was read: routes, rules, the filter.
    pub(crate) kernel_dumps: usize,
    /// How often all peers were read.
    pub(crate) tunnel_dumps: usize,
    /// How many routes of the underlay were looked up.
    pub(crate) look_ups: usize,
}

#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<World>>);

impl Shared {
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
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
    pub(crate) fn set_peers(&self, changes: &[Change]) -> bool {
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
pub(crate) struct Node {
    pub(crate) shared: Shared,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) reconciler: Reconciler<Shared, Shared>,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::start(
            tempfile::tempdir().unwrap(),
            Shared(Arc::default()),
            SavedView::default(),
        )
    }

    pub(crate) fn start(dir: tempfile::TempDir, shared: Shared, saved: SavedView) -> Self {
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
    pub(crate) fn restart(self) -> Self {
        let saved = ViewFiles::new(&self.dir.path().join("state")).load();
        let saved = saved.unwrap().unwrap_or_default();
        self.shared.world().done.clear();
        Self::start(self.dir, self.shared, saved)
    }

    pub(crate) async fn reconcile(&mut self) -> Snapshot {
        self.reconciler.reconcile(&mut self.shared).await
    }

    pub(crate) async fn follow(&mut self) -> Followed {
        self.reconciler.follow().await
    }

    /// A node that has its tunnel and these peers, and nothing left to do.
    pub(crate) async fn with_peers(views: Vec<NodeView>) -> Self {
        let mut node = Self::new();
        node.start_tunnel();
        node.event(RegistryEvent::Synced(views));
        node.reconcile().await;
        assert!(node.reconcile().await.settled);
        node.done();
        node
    }

    pub(crate) fn event(&mut self, event: RegistryEvent) {
        self.reconciler.handle_report(RegistryReport::Event(event));
    }

    pub(crate) fn read<T: serde::de::DeserializeOwned>(&self, path: &str) -> Option<T> {
        let text = std::fs::read(self.dir.path().join(path)).ok()?;
        Some(serde_json::from_slice(&text).unwrap())
    }

    pub(crate) fn has_cni_config(&self) -> bool {
        self.dir.path().join("cni/10-warren.conflist").exists()
    }

    pub(crate) fn start_tunnel(&self) -> PublicKey {
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

    pub(crate) fn done(&self) -> Vec<Change> {
        std::mem::take(&mut self.shared.world().done)
    }

    pub(crate) fn peers(&self) -> BTreeSet<PublicKey> {
        let world = self.shared.world();
        world
            .device
            .iter()
            .flat_map(|d| &d.peers)
            .map(|peer| peer.public_key)
            .collect()
    }
}

pub(crate) fn config(dir: &Path) -> Config {
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

pub(crate) fn peer(number: u8) -> (NodeView, PublicKey) {
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

/// That the node tells of a problem with these words.
pub(crate) fn assert_tells(snapshot: &Snapshot, words: &str) {
    let problems = &snapshot.problems;
    assert!(problems.iter().any(|p| p.contains(words)), "{problems:?}");
}

/// A tunnel that has nothing to tell on its own socket.
pub(crate) fn tunnel(device: Option<&DeviceState>) -> TunnelView<'_> {
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
