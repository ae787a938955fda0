//! From the nodes to this node's network: pure, deterministic, and independent of the order of its
//! input.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use warren_keyring::PublicKey;

use crate::conflict;
use crate::consts::{
    DEFAULT_PORT, INTERFACE, MAIN_TABLE, NODE_TABLE, RULE_PRIORITY, TUNNEL_METRIC,
    UNREACHABLE_METRIC,
};
use crate::endpoint::Endpoints;
use crate::mtu::inner_mtu;
use crate::node::{MeshRanges, NodeName, NodeRecord, NodeUid, NodeView};
use crate::reject::{NodeNotice, NodeReject};
use crate::state::{DesiredPeer, DesiredState, FilterSpec, Packets, RouteKey, RouteTarget, Rule};
use crate::status::DataPlaneKind;

/// What every node of the mesh is set up with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The ranges of the mesh.
    pub ranges: MeshRanges,
    /// Name of the tunnel's interface.
    pub interface: String,
    /// Whether what leaves the mesh from a pod gets the node's address. Default: true.
    pub masquerade: bool,
    /// Seconds between keepalives to every peer, 0 (the default) for none.
    pub persistent_keepalive: u16,
    /// The tunnel's MTU in bytes if it is not to be found out.
    pub mtu_bytes: Option<u32>,
    /// What becomes of a known node's changed key. Default: [`Pinning::Warn`].
    pub pinning: Pinning,
}

/// What becomes of a changed key of a node that is known with another one, its uid being the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pinning {
    /// It is believed, and people are told.
    #[default]
    Warn,
    /// The old key is kept until an operator trusts the new one.
    Strict,
}

/// A known node's change of key that was believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyChange {
    /// The key before.
    pub old: PublicKey,
    /// The key now.
    pub new: PublicKey,
}

impl Settings {
    /// Settings with the defaults and these pod ranges.
    pub fn new(cluster_cidrs: BTreeSet<IpNet>) -> Self {
        Self {
            ranges: MeshRanges {
                cluster_cidrs,
                reserved_cidrs: BTreeSet::new(),
                default_port: DEFAULT_PORT,
            },
            interface: INTERFACE.into(),
            masquerade: true,
            persistent_keepalive: 0,
            mtu_bytes: None,
            pinning: Pinning::Warn,
        }
    }
}

/// This node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalNode {
    /// Its name.
    pub name: NodeName,
    /// The uid of this life of it.
    pub uid: NodeUid,
    /// The key that its tunnel has.
    pub public_key: PublicKey,
    /// Its pod ranges.
    pub pod_cidrs: BTreeSet<IpNet>,
    /// Its own addresses, in order of preference.
    pub addresses: Vec<IpAddr>,
    /// The endpoints that it publishes.
    pub endpoints: Endpoints,
    /// The MTU of its underlay in bytes, where no route says otherwise.
    pub underlay_mtu_bytes: u32,
    /// Who encrypts here.
    pub data_plane: DataPlaneKind,
}

impl LocalNode {
    /// This node as the others know it.
    pub fn record(&self) -> NodeRecord {
        NodeRecord {
            name: self.name.clone(),
            uid: self.uid.clone(),
            public_key: self.public_key,
            next_public_key: None,
            pod_cidrs: self.pod_cidrs.clone(),
            addresses: self.addresses.clone(),
            endpoints: self.endpoints.clone(),
            mtu: Some(self.underlay_mtu_bytes),
            path_probes: self.data_plane.knows_path_probes(),
        }
    }
}

/// All that a plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct PlanInput<'a> {
    /// What the mesh is set up with.
    pub settings: &'a Settings,
    /// This node.
    pub local: &'a LocalNode,
    /// Every node that the registry tells of; this node's own entry is ignored.
    pub views: &'a BTreeMap<String, NodeView>,
    /// The records that were accepted last; this node's own once it was alone with its claims.
    pub incumbents: &'a BTreeMap<NodeName, NodeRecord>,
    /// The MTU of the underlay's route to an endpoint's address, in bytes.
    pub path_mtu: &'a BTreeMap<IpAddr, u32>,
}

/// A plan, and what it left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// This node's network.
    pub desired: DesiredState,
    /// The nodes that are planned with.
    pub accepted: BTreeMap<NodeName, PlannedNode>,
    /// The nodes that are not, by the name in the registry.
    pub rejects: BTreeMap<String, NodeReject>,
    /// What of accepted nodes was not believed.
    pub notices: BTreeMap<NodeName, NodeNotice>,
    /// The accepted nodes that had another key in the last accepted view.
    pub key_changes: BTreeMap<NodeName, KeyChange>,
    /// Why the other nodes refuse this one: another node has what this one claims, and this one did
    /// not hold it in the last accepted view. With another node's key it has no peers at all.
    pub own_reject: Option<NodeReject>,
}

/// An accepted node, with what was chosen for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedNode {
    /// The node.
    pub record: NodeRecord,
    /// The endpoint of the chosen family.
    pub endpoint: SocketAddr,
    /// The largest inner packet to it, in bytes.
    pub mtu_bytes: u32,
    /// Its addresses that the tunnel reaches.
    pub addresses: Vec<IpAddr>,
}

/// The first usable address of a pod range: the one after the network address. `warren0` carries
/// it, and IPAM never gives it to a pod.
pub fn tunnel_address(pod_cidr: &IpNet) -> IpAddr {
    match pod_cidr {
        IpNet::V4(net) => IpAddr::V4((u32::from(net.network()).saturating_add(1)).into()),
        IpNet::V6(net) => IpAddr::V6((u128::from(net.network()).saturating_add(1)).into()),
    }
}

/// An address as a prefix of full length.
pub fn host_prefix(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

/// Plans this node's network.
pub fn plan(input: &PlanInput<'_>) -> Plan {
    let PlanInput {
        settings, local, ..
    } = *input;
    let mut out = Plan::default();
    let mut records = BTreeMap::new();
    for (name, view) in input.views {
        if name == local.name.as_str() {
            continue;
        }
        match NodeRecord::parse(view, &settings.ranges) {
            Ok(mut record) => {
                if settings.pinning == Pinning::Strict {
                    hold_key(&mut record, input.incumbents, &mut out.notices);
                }
                records.insert(record.name.clone(), record);
            }
            Err(reject) => drop(out.rejects.insert(name.clone(), reject)),
        }
    }
    // An incumbent whose record is refused for the moment keeps its claims while this life of it is
    // in the registry: a slip in an annotation must not open its ranges to others.
    let mut claimants = records.clone();
    for (name, incumbent) in input.incumbents.iter().filter(|(n, _)| **n != local.name) {
        let present = input
            .views
            .get(name.as_str())
            .is_some_and(|v| v.uid == incumbent.uid);
        if present && !records.contains_key(name) {
            claimants.insert(name.clone(), incumbent.clone());
        }
    }
    let verdict = conflict::resolve(local, &claimants, input.incumbents);
    out.own_reject = conflict::own_reject(local, &claimants, input.incumbents);
    // INVARIANT: a node with another node's key stays silent. Each handshake of it would turn that
    // node's peers to it: to WireGuard the two are one.
    let silent = matches!(out.own_reject, Some(NodeReject::DuplicateKey { .. }));
    let mut held = BTreeSet::new();
    for (name, record) in records {
        if let Some(reject) = verdict.rejects.get(&name) {
            out.rejects.insert(name.as_str().into(), reject.clone());
            continue;
        }
        let Some((endpoint, mtu_bytes)) = way_to(settings, local, input.path_mtu, &record) else {
            let reject = NodeReject::NoCommonFamily {
                ours: local.endpoints.to_string(),
                theirs: record.endpoints.to_string(),
            };
            out.rejects.insert(name.as_str().into(), reject);
            continue;
        };
        let denied = |a: &IpAddr| verdict.denied_addresses.contains(&(name.clone(), *a));
        let addresses = record
            .addresses
            .iter()
            .copied()
            .filter(|a| !denied(a))
            .collect();
        if silent {
            held.extend(record.addresses);
            continue;
        }
        if let Some(notice) = verdict.notices.get(&name) {
            let notices = out.notices.entry(name.clone());
            notices.or_insert_with(|| notice.clone());
        }
        if let Some(old) = other_key(&record, input.incumbents) {
            let new = record.public_key;
            out.key_changes.insert(name.clone(), KeyChange { old, new });
        }
        out.accepted.insert(
            name,
            PlannedNode {
                record,
                endpoint,
                mtu_bytes,
                addresses,
            },
        );
    }
    out.notices
        .retain(|name, _| out.accepted.contains_key(name));
    out.desired = desired(settings, local, &out.accepted);
    held.extend(refused_incumbents(
        &claimants,
        input.incumbents,
        &out.accepted,
    ));
    let own = &local.addresses;
    for address in held.into_iter().filter(|a| !own.contains(a)) {
        refuse_address(&mut out.desired, local, address);
    }
    out
}

/// The endpoint that this node sends to, and the largest inner packet in bytes; `None` without a
/// family that both have.
pub(crate) fn way_to(
    settings: &Settings,
    local: &LocalNode,
    path_mtu: &BTreeMap<IpAddr, u32>,
    record: &NodeRecord,
) -> Option<(SocketAddr, u32)> {
    let self_first = local.name < record.name;
    let endpoint = local.endpoints.towards(&record.endpoints, self_first)?;
    let ours = path_mtu.get(&endpoint.ip()).copied();
    let ours = ours.unwrap_or(local.underlay_mtu_bytes);
    let underlay = record.mtu.map_or(ours, |theirs| ours.min(theirs));
    let mtu_bytes = inner_mtu(underlay, endpoint.ip()).min(settings.mtu_bytes.unwrap_or(u32::MAX));
    Some((endpoint, mtu_bytes))
}

/// The key that a node was accepted with last in this life of it, if it now has another one.
pub(crate) fn other_key(
    record: &NodeRecord,
    incumbents: &BTreeMap<NodeName, NodeRecord>,
) -> Option<PublicKey> {
    let before = incumbents.get(&record.name)?;
    let changed = before.uid == record.uid && before.public_key != record.public_key;
    changed.then_some(before.public_key)
}

/// Keeps the key that a known node was accepted with last.
fn hold_key(
    record: &mut NodeRecord,
    incumbents: &BTreeMap<NodeName, NodeRecord>,
    notices: &mut BTreeMap<NodeName, NodeNotice>,
) {
    if let Some(held) = other_key(record, incumbents) {
        let published = std::mem::replace(&mut record.public_key, held);
        let node = record.name.clone();
        let notice = NodeNotice::KeyHeld {
            node: node.clone(),
            held,
            published,
        };
        notices.insert(node, notice);
    }
}

/// The addresses of incumbents that are not planned with for the moment. Only what is outside the
/// mesh is reached in clear, and they are in it.
fn refused_incumbents<'a>(
    claimants: &'a BTreeMap<NodeName, NodeRecord>,
    incumbents: &'a BTreeMap<NodeName, NodeRecord>,
    accepted: &'a BTreeMap<NodeName, PlannedNode>,
) -> impl Iterator<Item = IpAddr> + 'a {
    let refused = incumbents.iter().filter(|(name, incumbent)| {
        let lives = claimants
            .get(*name)
            .is_some_and(|claimant| claimant.uid == incumbent.uid);
        lives && !accepted.contains_key(*name)
    });
    // Without its key it is not known by anything, and forgotten.
    let known = refused.filter(|(_, incumbent)| {
        let has_key = |node: &PlannedNode| {
            let key = incumbent.public_key;
            node.record.public_key == key || node.record.next_public_key == Some(key)
        };
        !accepted.values().any(has_key)
    });
    known.flat_map(|(_, incumbent)| incumbent.addresses.iter().copied())
}

/// Lets no pod reach a node's address save by a route into the tunnel.
fn refuse_address(out: &mut DesiredState, local: &LocalNode, address: IpAddr) {
    let net = host_prefix(address);
    out.filter.peer_addresses.insert(net);
    // Without pods of that family there is nothing to refuse, and perhaps no such routes.
    let of_family = |cidr: &IpNet| cidr.addr().is_ipv6() == address.is_ipv6();
    if local.pod_cidrs.iter().any(of_family) {
        let key = RouteKey {
            table: NODE_TABLE,
            destination: net,
            metric: UNREACHABLE_METRIC,
        };
        out.routes.insert(key, RouteTarget::Unreachable);
    }
}

fn desired(
    settings: &Settings,
    local: &LocalNode,
    accepted: &BTreeMap<NodeName, PlannedNode>,
) -> DesiredState {
    let tunnel: BTreeSet<IpAddr> = local.pod_cidrs.iter().map(tunnel_address).collect();
    let largest = accepted.values().map(|n| n.mtu_bytes).max();
    let mut out = DesiredState {
        filter: filter(settings, local, source(local, false), source(local, true)),
        mtu_bytes: tunnel_mtu(settings, local, largest),
        addresses: tunnel.iter().copied().map(host_prefix).collect(),
        ..DesiredState::default()
    };
    for range in &settings.ranges.cluster_cidrs {
        let key = RouteKey {
            table: MAIN_TABLE,
            destination: *range,
            metric: UNREACHABLE_METRIC,
        };
        out.routes.insert(key, RouteTarget::Unreachable);
    }
    // Both before the main table: another program's route there for a part of a peer's range must
    // not lead traffic astray.
    let own = local.pod_cidrs.iter().copied().map(Packets::From);
    let pods = settings.ranges.cluster_cidrs.iter().copied();
    out.rules = own
        .chain(pods.map(Packets::To))
        .map(|packets| Rule {
            priority: RULE_PRIORITY,
            packets,
            table: NODE_TABLE,
        })
        .collect();
    for node in accepted.values() {
        add_node(&mut out, node, settings, local);
    }
    out
}

/// The MTU in bytes of the tunnel's interface; `largest` is that of all peers.
pub(crate) fn tunnel_mtu(settings: &Settings, local: &LocalNode, largest: Option<u32>) -> u32 {
    let unknown = || inner_mtu(local.underlay_mtu_bytes.max(1), IpAddr::V6([0; 16].into()));
    let largest = largest.unwrap_or_else(unknown);
    settings.mtu_bytes.unwrap_or(largest)
}

/// The source of the node's own packets into the tunnel, of a family.
fn source(local: &LocalNode, ipv6: bool) -> Option<IpAddr> {
    let addresses = local.pod_cidrs.iter().map(tunnel_address);
    addresses.filter(|a| a.is_ipv6() == ipv6).min()
}

/// Adds what a node is given: its peer, its routes, and its addresses in the filter.
pub(crate) fn add_node(
    out: &mut DesiredState,
    node: &PlannedNode,
    settings: &Settings,
    local: &LocalNode,
) {
    let src = |ipv6| source(local, ipv6);
    let target = |net: &IpNet| RouteTarget::Tunnel {
        src: src(net.addr().is_ipv6()),
        mtu_bytes: Some(node.mtu_bytes),
    };
    let mut allowed_ips = node.record.pod_cidrs.clone();
    for cidr in &node.record.pod_cidrs {
        // In both tables: each holds when the other, or the rules, are flushed.
        for table in [MAIN_TABLE, NODE_TABLE] {
            let key = RouteKey {
                table,
                destination: *cidr,
                metric: TUNNEL_METRIC,
            };
            out.routes.insert(key, target(cidr));
        }
    }
    for address in &node.addresses {
        let net = host_prefix(*address);
        allowed_ips.insert(net);
        out.filter.peer_addresses.insert(net);
        // Without a source of that family no pod could use the route.
        if src(address.is_ipv6()).is_some() {
            let key = RouteKey {
                table: NODE_TABLE,
                destination: net,
                metric: TUNNEL_METRIC,
            };
            out.routes.insert(key, target(&net));
            let key = RouteKey {
                table: NODE_TABLE,
                destination: net,
                metric: UNREACHABLE_METRIC,
            };
            out.routes.insert(key, RouteTarget::Unreachable);
        }
    }
    let peer = DesiredPeer {
        endpoint: node.endpoint,
        allowed_ips,
        persistent_keepalive: settings.persistent_keepalive,
        path_probes: local.data_plane.knows_path_probes() && node.record.path_probes,
    };
    out.peers.insert(node.record.public_key, peer);
}

fn filter(
    settings: &Settings,
    local: &LocalNode,
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
) -> FilterSpec {
    let mut own_allowed_ips = local.pod_cidrs.clone();
    own_allowed_ips.extend(local.addresses.iter().copied().map(host_prefix));
    FilterSpec {
        interface: settings.interface.clone(),
        pod_ranges: settings.ranges.cluster_cidrs.clone(),
        own_allowed_ips,
        own_pod_cidrs: local.pod_cidrs.clone(),
        peer_addresses: BTreeSet::new(),
        tunnel_v4: v4.and_then(|a| if let IpAddr::V4(a) = a { Some(a) } else { None }),
        tunnel_v6: v6.and_then(|a| if let IpAddr::V6(a) = a { Some(a) } else { None }),
        masquerade: settings.masquerade,
    }
}
