//! The status document, and the reasons for not being ready.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use warren_core::degraded::DegradedCause;
use warren_core::mtu;
use warren_core::peer_path::PeerPath;
use warren_core::plan::PlannedNode;
use warren_core::status::{
    AgentStatus, DegradedStatus, NodeState, PeerState, PeerStatus, RejectStatus,
};
use warren_core::uapi::Peer;
use warren_core::{NodeName, NodeNotice};
use warren_keyring::PublicKey;

use crate::config::Config;
use crate::dataplane::DeviceState;
use crate::registry::NotReady;
use crate::snapshot::Snapshot;
use crate::tunnel_socket::TunnelReport;

/// What is said of a node that has no pod ranges.
pub const NO_POD_CIDR: &str = "this node's Node object has no valid podCIDR; does kube-controller-manager \
                               allocate them (--allocate-node-cidrs), inside cluster-cidrs?";

/// The tunnel as it is now, which may be newer than the snapshot.
#[derive(Clone, Copy, Debug)]
pub struct TunnelView<'a> {
    /// The device; `None` when it does not answer.
    pub device: Option<&'a DeviceState>,
    /// What the tunnel tells on its own socket.
    pub report: &'a TunnelReport,
}

/// Makes the status of a snapshot.
pub fn build(
    config: &Config,
    snapshot: &Snapshot,
    tunnel: &TunnelView<'_>,
    now: SystemTime,
) -> AgentStatus {
    let in_tunnel: BTreeMap<&PublicKey, &Peer> = tunnel
        .device
        .iter()
        .flat_map(|d| &d.peers)
        .map(|peer| (&peer.public_key, peer))
        .collect();
    let plan = snapshot.plan.read();
    let notices = &plan.notices;
    let peers = plan.accepted.iter().map(|(name, node)| {
        let mut status = peer(
            name,
            node,
            in_tunnel.get(&node.record.public_key).copied(),
            now,
        );
        if let Some(notice) = notices.get(name) {
            status.notice = Some(notice.to_string());
            if let NodeNotice::KeyHeld { published, .. } = notice {
                status.untrusted_key = Some(*published);
            }
        }
        if status.state != PeerState::Unknown
            && let Some(cause) = cause(snapshot, node, &status, &tunnel.report.paths)
        {
            status.state = PeerState::Degraded;
            status.degraded = Some(DegradedStatus::from(&cause));
        }
        status
    });
    let rejected = plan.rejects.iter().map(|(name, reject)| RejectStatus {
        node: name.clone(),
        reason: reject.reason().into(),
        message: reject.to_string(),
        waiting: reject.is_waiting(),
    });
    let down = snapshot.underlay.down.iter().map(|device| {
        let device = device.clone();
        DegradedStatus::from(&DegradedCause::LinkDown { device })
    });
    let mut status = AgentStatus {
        version: env!("CARGO_PKG_VERSION").into(),
        node: config.node_name.to_string(),
        state: NodeState::Ok,
        degraded: down.collect(),
        data_plane: snapshot.data_plane,
        tunnel_version: tunnel.report.version.clone(),
        public_key: snapshot.public_key,
        key_age_seconds: tunnel.report.key_written.map(|at| age_seconds(at, now)),
        interface: config.interface.clone(),
        endpoints: snapshot.endpoints.clone(),
        pod_cidrs: snapshot.pod_cidrs.iter().copied().collect(),
        cluster_cidrs: config.cluster_cidrs.iter().copied().collect(),
        protected: snapshot.protected,
        tunnel: snapshot.tunnel.clone(),
        registry: snapshot.registry.clone(),
        synced: snapshot.synced,
        problems: snapshot.problems.clone(),
        peers: peers.collect(),
        rejected: rejected.collect(),
        filter_drops: snapshot.filter_drops.clone(),
    };
    status.state = status.judge();
    status
}

/// Why traffic with a peer suffers, if it does.
fn cause(
    snapshot: &Snapshot,
    node: &PlannedNode,
    status: &PeerStatus,
    paths: &BTreeMap<PublicKey, PeerPath>,
) -> Option<DegradedCause> {
    let endpoint = status.endpoint.unwrap_or(status.published_endpoint);
    let way = snapshot.underlay.troubles.get(&endpoint.ip());
    let path = paths.get(&status.public_key);
    DegradedCause::judge(way, path).or_else(|| too_narrow(snapshot, node, endpoint, path))
}

/// Whether a way is narrower than the smallest packet that the tunnel can do with.
fn too_narrow(
    snapshot: &Snapshot,
    node: &PlannedNode,
    endpoint: SocketAddr,
    path: Option<&PeerPath>,
) -> Option<DegradedCause> {
    let ours = snapshot.underlay.path_mtu.get(&endpoint.ip()).copied();
    let proven = path.and_then(|path| path.path_mtu_bytes);
    let path_mtu_bytes = ours
        .into_iter()
        .chain(node.record.mtu)
        .chain(proven)
        .min()?;
    let needed_bytes = mtu::needed(endpoint.ip());
    (path_mtu_bytes < needed_bytes).then_some(DegradedCause::PathMtu {
        path_mtu_bytes,
        needed_bytes,
    })
}

/// Why the node is not ready for pods; nothing when it is.
pub fn not_ready(snapshot: Option<&Snapshot>) -> Vec<String> {
    let Some(snapshot) = snapshot else {
        return vec!["starting: nothing has been set up yet".into()];
    };
    let mut reasons: Vec<String> = causes(snapshot).into_iter().map(|c| c.message).collect();
    if !reasons.is_empty() {
        reasons.extend(snapshot.problems.iter().cloned());
    }
    reasons
}

/// The first of the reasons of [`not_ready`], such as a Node's condition can hold it.
pub fn first_cause(snapshot: &Snapshot) -> Option<NotReady> {
    causes(snapshot).into_iter().next()
}

fn causes(snapshot: &Snapshot) -> Vec<NotReady> {
    let mut causes = Vec::new();
    let mut note = |reason, message: &str| {
        causes.push(NotReady {
            reason,
            message: message.to_owned(),
        });
    };
    if !snapshot.protected {
        let message = "not protected: the filter or an unreachable route is missing";
        note("WarrenNotProtected", message);
    }
    if !snapshot.tunnel.ok {
        note("WarrenTunnelDown", &snapshot.tunnel.detail);
    }
    if snapshot.pod_cidrs.is_empty() {
        note("WarrenNoPodCIDR", NO_POD_CIDR);
    }
    causes
}

fn peer(
    name: &NodeName,
    node: &PlannedNode,
    in_tunnel: Option<&Peer>,
    now: SystemTime,
) -> PeerStatus {
    let handshake = in_tunnel.and_then(|peer| peer.last_handshake);
    let age = handshake.map(|at| age_seconds(at, now));
    let state = match in_tunnel {
        Some(_) => PeerState::of_handshake_age(age),
        None => PeerState::Unknown,
    };
    PeerStatus {
        node: name.to_string(),
        public_key: node.record.public_key,
        state,
        endpoint: in_tunnel.and_then(|peer| peer.endpoint),
        published_endpoint: node.endpoint,
        pod_cidrs: node.record.pod_cidrs.iter().copied().collect(),
        addresses: node.addresses.clone(),
        mtu_bytes: node.mtu_bytes,
        latest_handshake: handshake.map(|at| at.as_secs()),
        handshake_age_seconds: age,
        rx_bytes: in_tunnel.map_or(0, |peer| peer.rx_bytes),
        tx_bytes: in_tunnel.map_or(0, |peer| peer.tx_bytes),
        notice: None,
        untrusted_key: None,
        degraded: None,
    }
}

/// How long ago a Unix time was; none of the future.
fn age_seconds(at: Duration, now: SystemTime) -> u64 {
    let now = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    now.saturating_sub(at).as_secs()
}
