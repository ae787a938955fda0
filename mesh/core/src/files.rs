//! The files that the programs leave for one another, as types. Reading and writing them is the
//! programs' matter.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use warren_keyring::PublicKey;

use crate::node::{NodeName, NodeRecord, NodeView};

/// The agent's last view of the mesh (`view.json`, 0600): a start without the registry plans from
/// it, and conflicts are decided by it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedView {
    /// Every node that the registry told of.
    #[serde(default)]
    pub views: Vec<NodeView>,
    /// The records that were accepted.
    #[serde(default)]
    pub incumbents: Vec<NodeRecord>,
    /// The published endpoint that each peer was last given.
    #[serde(default)]
    pub applied_endpoints: BTreeMap<PublicKey, SocketAddr>,
}

/// This node's record for the CNI plugin (`node.json`, 0600), written by the agent before the CNI
/// configuration appears.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFile {
    /// The node's name.
    pub name: NodeName,
    /// Name of the tunnel's interface.
    pub interface: String,
    /// The cluster's pod ranges: each must have its `unreachable` route before a pod is made.
    #[serde(rename = "clusterCIDRs")]
    pub cluster_cidrs: BTreeSet<IpNet>,
    /// The node's pod ranges, which pods get their addresses from.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: BTreeSet<IpNet>,
    /// The addresses of the tunnel's interface: the `src` of pod routes.
    #[serde(rename = "tunnelAddresses")]
    pub tunnel_addresses: BTreeSet<IpAddr>,
    /// The MTU that new pods get, in bytes.
    #[serde(rename = "mtu")]
    pub mtu_bytes: u32,
}
