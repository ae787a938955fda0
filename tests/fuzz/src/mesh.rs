//! A mesh that knows a good node, and what must hold whatever else a registry tells it.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use warren_core::consts::annotation;
use warren_core::files::SavedView;
use warren_core::status::DataPlaneKind;
use warren_core::{
    Endpoints, LocalNode, NodeName, NodeRecord, NodeUid, NodeView, Pinning, Planner, RegistryEvent,
    Settings,
};
use warren_keyring::{PrivateKey, PublicKey};

/// The name of the good node.
pub const GOOD: &str = "node2";

/// The key of node `n`, of 1 to 3: the same in every run.
pub fn key(n: u8) -> PublicKey {
    // Making a key takes longer than all that is tested with it.
    static KEYS: LazyLock<[PublicKey; 4]> = LazyLock::new(|| {
        std::array::from_fn(|n| {
            let mut secret = [n as u8; 32];
            secret[0] = 0x40;
            let private = PrivateKey::from_bytes(secret).expect("not zero");
            private.public_key()
        })
    });
    KEYS[usize::from(n)]
}

/// Node `n`: 192.0.2.n, pods in 10.244.n.0/24.
pub fn view(n: u8) -> NodeView {
    NodeView {
        name: format!("node{n}"),
        uid: NodeUid(format!("uid-{n}")),
        pod_cidrs: vec![format!("10.244.{n}.0/24")],
        addresses: vec![format!("192.0.2.{n}")],
        annotations: BTreeMap::from([(annotation::PUBLIC_KEY.into(), key(n).to_base64())]),
    }
}

fn settings(pinning: Pinning) -> Settings {
    let cluster = ["10.244.0.0/16", "fd00:244::/48"].map(|net| net.parse().expect("a prefix"));
    Settings {
        pinning,
        ..Settings::new(cluster.into())
    }
}

fn planner(pinning: Pinning) -> Planner {
    let addresses = vec!["192.0.2.1".parse().expect("an address")];
    let local = LocalNode {
        name: NodeName::new("node1").expect("a name"),
        uid: NodeUid("uid-1".into()),
        public_key: key(1),
        pod_cidrs: ["10.244.1.0/24".parse().expect("a prefix")].into(),
        endpoints: Endpoints::from_addresses(&addresses, 51871),
        addresses,
        underlay_mtu_bytes: 1500,
        data_plane: DataPlaneKind::Userspace,
    };
    Planner::new(settings(pinning), local, SavedView::default())
}

/// Lets a registry tell of one more node, twice, and panics when that harms the good one, this one,
/// or what people are shown.
pub fn meet(stranger: &NodeView) {
    let ranges = settings(Pinning::Warn).ranges;
    match NodeRecord::parse(stranger, &ranges) {
        Ok(record) => {
            let text = record.endpoints.to_string();
            let again: Endpoints = text.parse().expect("what was accepted is written as such");
            assert_eq!(again, record.endpoints);
            let inside = |net| ranges.cluster_cidrs.iter().any(|c| c.contains(net));
            assert!(record.pod_cidrs.iter().all(inside));
        }
        Err(reject) => {
            let text = reject.to_string();
            assert!(text.len() < 1024, "{} bytes", text.len());
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
    }
    for pinning in [Pinning::Warn, Pinning::Strict] {
        let mut planner = planner(pinning);
        planner.handle_event(RegistryEvent::Synced(vec![view(2)]));
        planner.poll_plan();
        for _ in 0..2 {
            // Under the good node's own name it may change what is the good node's.
            if stranger.name == GOOD {
                return;
            }
            planner.handle_event(RegistryEvent::Applied(stranger.clone()));
            let plan = planner.poll_plan();
            let peer = plan
                .desired
                .peers
                .get(&key(2))
                .expect("the incumbent stays");
            for net in ["10.244.2.0/24", "192.0.2.2/32"] {
                let net = net.parse().expect("a prefix");
                assert!(peer.allowed_ips.contains(&net), "{net} was taken");
            }
            assert!(!plan.desired.peers.contains_key(&key(1)));
            let own = "10.244.1.0/24".parse().expect("a prefix");
            let takes = |peer: &warren_core::state::DesiredPeer| {
                let overlaps = |net| warren_core::node::overlap(net, &own);
                peer.allowed_ips.iter().any(overlaps)
            };
            assert!(!plan.desired.peers.values().any(takes));
            assert!(plan.own_reject.is_none() || stranger.name != "node1");
        }
    }
}
