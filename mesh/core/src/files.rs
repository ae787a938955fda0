//! The files that the programs leave for one another, as types. Reading and writing them is the
//! programs' matter.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use warren_keyring::PublicKey;

use crate::consts;
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

/// How the name of a trusted key's document ends: `<node>.json` in the directory of trusted keys
/// (0700) is the key in base64, as JSON text (0600), written by `warren trust`.
pub const TRUSTED_SUFFIX: &str = ".json";

/// What the daemons and the plugin keep in the state directory. A name that goes on after one of
/// these is a damaged file that was set aside.
const STATE: [&str; 9] = [
    "private.key",
    "tunnel.state",
    "node-uid",
    consts::VIEW_FILE,
    consts::NODE_FILE,
    consts::EVENTS_FILE,
    consts::TRUSTED_DIR,
    IPAM_DIR,
    ".tmp-",
];

/// Whether a file or directory of this name, in the state directory, is of Warren's making.
pub fn is_state(name: &str) -> bool {
    STATE.iter().any(|ours| name.starts_with(ours))
}

/// Directory of the address stores (`<network>.json`, 0600), in the state directory.
pub const IPAM_DIR: &str = "ipam";
/// How the name of an address store's document ends.
pub const IPAM_SUFFIX: &str = ".json";

/// What others than the CNI plugin read of an address store's document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamFile {
    /// The network's name.
    pub network: String,
    /// The boot that the reservations are of.
    #[serde(rename = "bootId")]
    pub boot_id: String,
    /// Who has which address.
    pub reservations: Vec<Reservation>,
}

/// One attachment's addresses, at most one of each family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reservation {
    /// The container; empty when its interface was found without a name to it.
    #[serde(rename = "containerId")]
    pub container_id: String,
    /// The interface inside it; empty when it is not known, after the store was lost.
    pub ifname: String,
    /// The attachment's interface on the node: while it exists, the attachment lives.
    #[serde(rename = "hostInterface")]
    pub host_interface: String,
    /// The Kubernetes pod, `namespace/name`; for people only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Unix time in seconds of the reservation; none when it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
}
