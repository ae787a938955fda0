//! The agent's status: what its socket answers, and what `warren status` and `warren show` read.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use warren_keyring::PublicKey;

use crate::degraded::DegradedCause;

/// One document on the agent's socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Version of the agent.
    pub version: String,
    /// This node's name.
    pub node: String,
    /// How the node is as a whole; [`AgentStatus::judge`].
    #[serde(default)]
    pub state: NodeState,
    /// What all its peers suffer from.
    #[serde(default)]
    pub degraded: Vec<DegradedStatus>,
    /// Who encrypts.
    #[serde(default)]
    pub data_plane: DataPlaneKind,
    /// Version of the tunnel; absent while its own socket does not answer.
    #[serde(default)]
    pub tunnel_version: Option<String>,
    /// This node's key; absent until the tunnel has answered once.
    pub public_key: Option<PublicKey>,
    /// Age in seconds of the key's file, when the status was made; absent while the tunnel does not
    /// tell, or runs with another key than its file had.
    #[serde(default)]
    pub key_age_seconds: Option<u64>,
    /// Name of the tunnel's interface.
    pub interface: String,
    /// The endpoints that this node publishes.
    pub endpoints: Vec<SocketAddr>,
    /// This node's pod ranges.
    pub pod_cidrs: Vec<IpNet>,
    /// The cluster's pod ranges, as this agent is configured.
    #[serde(default)]
    pub cluster_cidrs: Vec<IpNet>,
    /// Whether no pod's packet can leave in clear: filter and unreachable routes are in place.
    pub protected: bool,
    /// Whether the tunnel answers.
    pub tunnel: Health,
    /// Whether the registry tells of nodes.
    pub registry: Health,
    /// Whether the whole view was received since the agent's start.
    pub synced: bool,
    /// What the last reconcile could not do, and what else needs attention.
    pub problems: Vec<String>,
    /// The nodes that are planned with.
    pub peers: Vec<PeerStatus>,
    /// The nodes that are refused: name and why.
    pub rejected: Vec<RejectStatus>,
    /// Packets that the filter dropped, by rule.
    #[serde(default)]
    pub filter_drops: BTreeMap<String, u64>,
}

/// Who encrypts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataPlaneKind {
    /// `warren-tunnel`.
    #[default]
    Userspace,
    /// The kernel's own WireGuard.
    Kernel,
}

impl DataPlaneKind {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::Userspace, Self::Kernel];

    /// Whether it asks peers how large packets may be, and answers them: the kernel's drops what is no
    /// IP packet.
    pub fn knows_path_probes(self) -> bool {
        self == Self::Userspace
    }

    /// Its word in configurations, in the status and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Userspace => "userspace",
            Self::Kernel => "kernel",
        }
    }
}

impl fmt::Display for DataPlaneKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a node is as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Nothing needs a person's attention.
    #[default]
    Ok,
    /// Something suffers; pods are protected and traffic goes as far as it can.
    Degraded,
    /// Pods are not protected, or nothing goes to other nodes.
    Failed,
}

/// Why traffic suffers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DegradedStatus {
    /// A stable word for the cause, of [`DegradedCause::REASONS`].
    pub reason: String,
    /// The cause for people.
    pub message: String,
}

impl From<&DegradedCause> for DegradedStatus {
    fn from(cause: &DegradedCause) -> Self {
        Self {
            reason: cause.reason().to_owned(),
            message: cause.to_string(),
        }
    }
}

impl AgentStatus {
    /// Judges the node by everything else that is told here. A peer that is refused or idle is no
    /// trouble of this node.
    pub fn judge(&self) -> NodeState {
        if !self.protected || !self.tunnel.ok {
            return NodeState::Failed;
        }
        let well = self.registry.ok
            && self.synced
            && self.problems.is_empty()
            && self.degraded.is_empty()
            && self.peers.iter().all(|peer| peer.degraded.is_none());
        if well {
            NodeState::Ok
        } else {
            NodeState::Degraded
        }
    }

    /// All that makes the node less than well, the worst first; nothing when it is well.
    pub fn causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        if !self.protected {
            causes.push("pods are not protected".to_owned());
        }
        if !self.tunnel.ok {
            causes.push(self.tunnel.detail.clone());
        }
        causes.extend(self.degraded.iter().map(|cause| cause.message.clone()));
        causes.extend(self.peers.iter().filter_map(|peer| {
            let cause = peer.degraded.as_ref()?;
            Some(format!("{}: {}", peer.node, cause.message))
        }));
        if !self.registry.ok {
            causes.push(format!("registry: {}", self.registry.detail));
        } else if !self.synced {
            causes.push("not all nodes are known yet".to_owned());
        }
        causes.extend(self.problems.iter().cloned());
        causes
    }
}

/// Whether something works, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether it works.
    pub ok: bool,
    /// What it is, or what is wrong.
    pub detail: String,
}

/// A peer as a person sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The node's name.
    pub node: String,
    /// Its key.
    pub public_key: PublicKey,
    /// How it is.
    pub state: PeerState,
    /// Where the tunnel sends to now.
    pub endpoint: Option<SocketAddr>,
    /// The endpoint that it published.
    pub published_endpoint: SocketAddr,
    /// Its pod ranges.
    pub pod_cidrs: Vec<IpNet>,
    /// Its own addresses that pods reach by the tunnel.
    pub addresses: Vec<IpAddr>,
    /// The largest inner packet to it, in bytes.
    pub mtu_bytes: u32,
    /// Unix time of its newest handshake in seconds, if there was one.
    pub latest_handshake: Option<u64>,
    /// Age of its newest handshake in seconds, when the status was made.
    pub handshake_age_seconds: Option<u64>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// What of it was not believed.
    pub notice: Option<String>,
    /// The key that it publishes and that is not trusted here, while another one is pinned.
    #[serde(default)]
    pub untrusted_key: Option<PublicKey>,
    /// Why traffic with it suffers, when its state is degraded.
    #[serde(default)]
    pub degraded: Option<DegradedStatus>,
}

/// How a peer is, judged by its handshake and by what traffic shows: no heartbeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerState {
    /// A session is up: the newest handshake is under 180 s old.
    Up,
    /// There was a session; nothing has been sent since it ran out.
    Idle,
    /// No handshake yet.
    Connecting,
    /// Traffic with it suffers; [`PeerStatus::degraded`] tells why.
    Degraded,
    /// The tunnel does not have it, or does not answer.
    Unknown,
}

impl PeerState {
    /// Every state.
    pub const ALL: [Self; 5] = [
        Self::Up,
        Self::Idle,
        Self::Connecting,
        Self::Degraded,
        Self::Unknown,
    ];

    /// Judges a peer by the age of its newest handshake.
    pub fn of_handshake_age(age_seconds: Option<u64>) -> Self {
        /// Reject-After-Time (WireGuard paper, section 6.1).
        const REJECT_AFTER_SECONDS: u64 = 180;
        match age_seconds {
            Some(age) if age < REJECT_AFTER_SECONDS => Self::Up,
            Some(_) => Self::Idle,
            None => Self::Connecting,
        }
    }

    /// The word for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Idle => "idle",
            Self::Connecting => "connecting",
            Self::Degraded => "degraded",
            Self::Unknown => "unknown",
        }
    }
}

/// A node that is not planned with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectStatus {
    /// Its name in the registry.
    pub node: String,
    /// A stable word for the cause.
    pub reason: String,
    /// The cause for people.
    pub message: String,
    /// Whether it is merely not ready yet.
    pub waiting: bool,
}
