//! This node: what it is made of, and what it tells of itself.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use warren_core::consts::annotation;
use warren_core::node::{parse_addresses, parse_pod_cidrs};
use warren_core::status::DataPlaneKind;
use warren_core::{Endpoints, LocalNode, NodeRecord, NodeReject, NodeUid, NodeView};
use warren_keyring::PublicKey;

use crate::config::{Config, RegistryKind};
use crate::files::{self, FileError};
use crate::host::Underlay;
use crate::registry::OwnRecord;

/// Name of the file of the node's uid, in the state directory.
const UID_FILE: &str = "node-uid";
const UID_MODE: u32 = 0o600;
/// Longer than any uid that is made here.
const MAX_UID_LEN: u64 = 256;

/// The node's uid: random, made at the first start, and kept as long as the state directory is.
///
/// # Errors
/// [`FileError`] when it can be neither read nor made.
pub fn node_uid(state_dir: &Path) -> Result<NodeUid, FileError> {
    let path = state_dir.join(UID_FILE);
    let kept = files::read_limited(&path, MAX_UID_LEN)?;
    let kept = kept.and_then(|content| String::from_utf8(content).ok());
    if let Some(uid) = kept
        .map(|uid| uid.trim().to_owned())
        .filter(|uid| !uid.is_empty())
    {
        return Ok(NodeUid(uid));
    }
    let random = Path::new("/proc/sys/kernel/random/uuid");
    let uid = files::read_limited(random, MAX_UID_LEN)?.unwrap_or_default();
    let uid = String::from_utf8_lossy(&uid).trim().to_owned();
    files::replace(&path, format!("{uid}\n").as_bytes(), UID_MODE)?;
    Ok(NodeUid(uid))
}

/// What the registry assigns to this node, where that is the registry's matter: a Kubernetes Node's
/// uid, podCIDRs and addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assigned {
    /// The uid of this life of the node.
    pub uid: Option<NodeUid>,
    /// Its pod ranges; none until there are valid ones.
    pub pod_cidrs: BTreeSet<IpNet>,
    /// Its addresses; none until there are valid ones.
    pub addresses: Vec<IpAddr>,
}

impl Assigned {
    /// Takes in this node's entry. What it does not say, or says wrongly, holds as it was: a range
    /// is not taken from running pods by a slip. [`refused_by_peers`] tells of it.
    pub fn handle_view(&mut self, config: &Config, own_view: &NodeView) {
        if config.registry != RegistryKind::Kubernetes {
            return;
        }
        let ranges = config.settings().ranges;
        self.uid = Some(own_view.uid.clone());
        if let Ok(pod_cidrs) = parse_pod_cidrs(&own_view.pod_cidrs, &ranges) {
            self.pod_cidrs = pod_cidrs;
        }
        match parse_addresses(&own_view.addresses, &ranges) {
            Ok(addresses) if !addresses.is_empty() => self.addresses = addresses,
            _ => {}
        }
    }
}

/// What this node is now, key aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The uid of this life of the node.
    pub uid: NodeUid,
    /// Its pod ranges; none before its Node object has any.
    pub pod_cidrs: BTreeSet<IpNet>,
    /// Its addresses, preferred first.
    pub addresses: Vec<IpAddr>,
    /// The endpoints that it publishes.
    pub endpoints: Endpoints,
    /// The MTU of its underlay in bytes.
    pub underlay_mtu_bytes: u32,
}

impl Identity {
    /// Puts configuration, what was assigned and what was found together; the first that says
    /// something wins. `uid` is that of a node which nobody gives one.
    pub fn new(config: &Config, uid: &NodeUid, assigned: &Assigned, underlay: &Underlay) -> Self {
        let addresses = if !config.node_addresses.is_empty() {
            config.node_addresses.clone()
        } else if !assigned.addresses.is_empty() {
            assigned.addresses.clone()
        } else {
            // With a dead registry and routes gone astray a pod range must not become the node's.
            let outside =
                |a: &&IpAddr| !config.cluster_cidrs.iter().any(|range| range.contains(*a));
            underlay.addresses.iter().filter(outside).copied().collect()
        };
        let found = || Endpoints::from_addresses(&addresses, config.listen_port);
        let endpoints = config.endpoint.clone().unwrap_or_else(found);
        let pod_cidrs = match config.registry {
            RegistryKind::File => config.pod_cidrs.clone(),
            RegistryKind::Kubernetes => assigned.pod_cidrs.clone(),
        };
        Self {
            uid: assigned.uid.clone().unwrap_or_else(|| uid.clone()),
            pod_cidrs,
            addresses,
            endpoints,
            underlay_mtu_bytes: underlay.mtu_bytes,
        }
    }

    /// This node for planning. `own_view` is its own entry in the registry: an operator's
    /// `force-endpoint` there decides the outer family at both ends of each pair, so it counts
    /// here as it does at the peers.
    pub fn local_node(
        &self,
        config: &Config,
        public_key: PublicKey,
        data_plane: DataPlaneKind,
        own_view: Option<&NodeView>,
    ) -> LocalNode {
        let forced = own_view.and_then(|view| view.annotations.get(annotation::FORCE_ENDPOINT));
        let forced = forced.and_then(|text| text.parse::<Endpoints>().ok());
        LocalNode {
            name: config.node_name.clone(),
            uid: self.uid.clone(),
            public_key,
            pod_cidrs: self.pod_cidrs.clone(),
            addresses: self.addresses.clone(),
            endpoints: forced.unwrap_or_else(|| self.endpoints.clone()),
            underlay_mtu_bytes: self.underlay_mtu_bytes,
            data_plane,
        }
    }

    /// What is published.
    pub fn own_record(
        &self,
        config: &Config,
        public_key: PublicKey,
        data_plane: DataPlaneKind,
    ) -> OwnRecord {
        OwnRecord {
            name: config.node_name.clone(),
            uid: self.uid.clone(),
            public_key,
            endpoints: self.endpoints.clone(),
            underlay_mtu_bytes: self.underlay_mtu_bytes,
            data_plane,
            pod_cidrs: self.pod_cidrs.clone(),
            addresses: self.addresses.clone(),
        }
    }
}

/// Why the peers refuse this node, if they do: its own entry, judged as they judge it.
pub fn refused_by_peers(config: &Config, own_view: &NodeView) -> Option<String> {
    let judged = NodeRecord::parse(own_view, &config.settings().ranges);
    judged
        .err()
        .map(|reject| format!("the other nodes refuse this one: {reject}"))
}

/// Why the peers refuse this node, when another one has what it claims; with what to do about it.
pub fn clashes_with_peers(reject: &NodeReject) -> String {
    let cure = match reject {
        NodeReject::DuplicateKey { .. } => {
            "; was a disk or a machine cloned? This node stays without peers. Stop warren-tunnel \
             (with data-plane kernel: warren-agent), remove its private.key, and start it again"
        }
        NodeReject::PodCidrOverlap { .. } => "; give this node podCIDRs of its own",
        NodeReject::EndpointConflict { .. } => "; give this node an endpoint of its own",
        _ => "",
    };
    format!("the other nodes refuse this one: {reject}{cure}")
}

/// Pods that have addresses of an earlier podCIDR of this node: no other node routes to them.
pub fn stranded_pods(pod_cidrs: &BTreeSet<IpNet>, pods: &BTreeSet<IpNet>) -> Option<String> {
    let ours = |pod: &IpNet| pod_cidrs.iter().any(|cidr| cidr.contains(pod));
    let mut stranded = pods.iter().filter(|pod| !ours(pod));
    let first = stranded.next()?;
    let more = match stranded.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!(
        "pod address {}{more} is outside this node's podCIDRs, which have changed: other nodes do \
         not reach it; make these pods anew",
        first.addr()
    ))
}
