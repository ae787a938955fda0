//! What this node's network should be ([`DesiredState`]), what it is ([`ObservedState`]), and the
//! single steps between the two ([`Change`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use warren_keyring::PublicKey;

/// What a route is found by in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// The routing table.
    pub table: u32,
    /// The destination prefix.
    pub destination: IpNet,
    /// The metric: several routes of one prefix differ by it, the lowest wins.
    pub metric: u32,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteTarget {
    /// Into the tunnel's interface.
    Tunnel {
        /// The source that the kernel gives to the node's own packets.
        src: Option<IpAddr>,
        /// The largest inner packet in bytes.
        mtu_bytes: Option<u32>,
    },
    /// Nowhere: the sender is told so.
    Unreachable,
    /// Anything that Warren would not have made, under its protocol number: only ever observed.
    Foreign,
}

/// A policy routing rule: the packets that it selects look up `table`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// The rule's priority; lower is asked first.
    pub priority: u32,
    /// The packets that it is for.
    pub packets: Packets,
    /// The table that it looks up.
    pub table: u32,
}

/// What a policy rule selects packets by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Packets {
    /// Their source lies in the prefix.
    From(IpNet),
    /// Their destination lies in the prefix.
    To(IpNet),
}

impl Packets {
    /// The prefix.
    pub fn prefix(&self) -> IpNet {
        match *self {
            Self::From(net) | Self::To(net) => net,
        }
    }
}

/// What the nftables table must enforce; how it says so is the agent's matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterSpec {
    /// The tunnel's interface.
    pub interface: String,
    /// The cluster's pod ranges: packets with these addresses pass only the tunnel and the pods' veths.
    pub pod_ranges: BTreeSet<IpNet>,
    /// This node's own AllowedIPs as its peers have them: the sources that may leave by the tunnel.
    pub own_allowed_ips: BTreeSet<IpNet>,
    /// This node's pod ranges.
    pub own_pod_cidrs: BTreeSet<IpNet>,
    /// The peers' node addresses: what pods send there passes only the tunnel.
    pub peer_addresses: BTreeSet<IpNet>,
    /// The source given to other IPv4 packets that leave by the tunnel.
    pub tunnel_v4: Option<Ipv4Addr>,
    /// The source given to other IPv6 packets that leave by the tunnel.
    pub tunnel_v6: Option<Ipv6Addr>,
    /// Whether what leaves the mesh from a pod gets the node's address.
    pub masquerade: bool,
}

impl FilterSpec {
    /// Changes single addresses among [`FilterSpec::peer_addresses`].
    pub fn change_peer_addresses(&mut self, add: &BTreeSet<IpNet>, remove: &BTreeSet<IpNet>) {
        for net in remove {
            self.peer_addresses.remove(net);
        }
        self.peer_addresses.extend(add);
    }
}

/// A WireGuard peer as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredPeer {
    /// Where to send to, until the peer is heard from elsewhere.
    pub endpoint: SocketAddr,
    /// The prefixes routed to it and accepted from it.
    pub allowed_ips: BTreeSet<IpNet>,
    /// Seconds between keepalives, 0 for none.
    pub persistent_keepalive: u16,
    /// Whether it may be asked how large packets to it may be.
    pub path_probes: bool,
}

/// A WireGuard peer as the tunnel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedPeer {
    /// Where the tunnel sends to now; it follows the peer (roaming).
    pub endpoint: Option<SocketAddr>,
    /// The published endpoint that was last given to the tunnel, if known.
    ///
    /// INVARIANT: an endpoint is given again only when the published one differs from this one.
    /// Comparing with `endpoint` would undo roaming at every reconcile.
    pub applied_endpoint: Option<SocketAddr>,
    /// The prefixes that it has.
    pub allowed_ips: BTreeSet<IpNet>,
    /// Seconds between keepalives, 0 for none.
    pub persistent_keepalive: u16,
    /// Whether it may be asked how large packets to it may be.
    pub path_probes: bool,
}

/// This node's network as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredState {
    /// The filter and source NAT.
    pub filter: FilterSpec,
    /// The MTU of the tunnel's interface in bytes, at least 1280.
    pub mtu_bytes: u32,
    /// The addresses of the tunnel's interface.
    pub addresses: BTreeSet<IpNet>,
    /// The policy rules.
    pub rules: BTreeSet<Rule>,
    /// The routes.
    pub routes: BTreeMap<RouteKey, RouteTarget>,
    /// The peers.
    pub peers: BTreeMap<PublicKey, DesiredPeer>,
}

/// The tunnel's interface as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedLink {
    /// Its MTU in bytes.
    pub mtu_bytes: u32,
    /// Whether it is administratively up.
    pub up: bool,
}

/// This node's network as it is, read back from the kernel and the tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedState {
    /// The filter; `None` when it is absent or was changed by someone.
    pub filter: Option<FilterSpec>,
    /// The tunnel's interface; `None` when there is none, and then nothing can be put on it.
    pub link: Option<ObservedLink>,
    /// The addresses of the tunnel's interface, link-local ones left out.
    pub addresses: BTreeSet<IpNet>,
    /// The rules of Warren's priority.
    pub rules: BTreeSet<Rule>,
    /// The routes of Warren's protocol number.
    pub routes: BTreeMap<RouteKey, RouteTarget>,
    /// The tunnel's peers; `None` when the tunnel does not answer.
    pub peers: Option<BTreeMap<PublicKey, ObservedPeer>>,
}

/// What of a peer changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerDelta {
    /// The new endpoint, when the published one changed.
    pub endpoint: Option<SocketAddr>,
    /// The new keepalive in seconds.
    pub persistent_keepalive: Option<u16>,
    /// Whether it may now be asked how large packets to it may be.
    pub path_probes: Option<bool>,
    /// Prefixes that it gains; one that another peer holds moves without a gap.
    pub add_allowed_ips: BTreeSet<IpNet>,
    /// Prefixes that nobody shall have any more.
    pub remove_allowed_ips: BTreeSet<IpNet>,
}

impl PeerDelta {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One step from the observed to the desired state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Replaces the whole filter in one transaction.
    SetFilter {
        /// What was there, if it was as Warren made it.
        old: Option<FilterSpec>,
        /// What shall be there.
        new: FilterSpec,
    },
    /// Changes single addresses among the filter's peer addresses.
    SetPeerAddresses {
        /// What is added.
        add: BTreeSet<IpNet>,
        /// What goes.
        remove: BTreeSet<IpNet>,
    },
    /// Brings the tunnel's interface up with an MTU.
    SetLink {
        /// How it was.
        old: ObservedLink,
        /// How it shall be.
        new: ObservedLink,
    },
    /// Puts an address on the tunnel's interface.
    AddAddress(IpNet),
    /// Takes an address off the tunnel's interface.
    RemoveAddress(IpNet),
    /// Adds a route, or replaces the one with the same key.
    SetRoute {
        /// The route's key.
        key: RouteKey,
        /// Where it led.
        old: Option<RouteTarget>,
        /// Where it shall lead.
        new: RouteTarget,
    },
    /// Removes a route.
    RemoveRoute {
        /// The route's key.
        key: RouteKey,
        /// Where it led.
        old: RouteTarget,
    },
    /// Adds a policy rule.
    AddRule(Rule),
    /// Removes a policy rule.
    RemoveRule(Rule),
    /// Adds a peer.
    AddPeer {
        /// The peer's key.
        public_key: PublicKey,
        /// How it shall be.
        new: DesiredPeer,
    },
    /// Changes a peer, field by field.
    UpdatePeer {
        /// The peer's key.
        public_key: PublicKey,
        /// How it was.
        old: ObservedPeer,
        /// What changes.
        delta: PeerDelta,
    },
    /// Removes a peer.
    RemovePeer {
        /// The peer's key.
        public_key: PublicKey,
        /// How it was.
        old: ObservedPeer,
    },
}

impl ObservedState {
    /// Does to this picture what carrying out `change` does to the node. The model that properties
    /// and the simulator use; the real node is read back instead.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::SetFilter { new, .. } => self.filter = Some(new.clone()),
            Change::SetPeerAddresses { add, remove } => {
                if let Some(filter) = &mut self.filter {
                    filter.change_peer_addresses(add, remove);
                }
            }
            Change::SetLink { new, .. } => self.link = Some(new.clone()),
            Change::AddAddress(net) => drop(self.addresses.insert(*net)),
            Change::RemoveAddress(net) => drop(self.addresses.remove(net)),
            Change::SetRoute { key, new, .. } => drop(self.routes.insert(key.clone(), new.clone())),
            Change::RemoveRoute { key, .. } => drop(self.routes.remove(key)),
            Change::AddRule(rule) => drop(self.rules.insert(rule.clone())),
            Change::RemoveRule(rule) => drop(self.rules.remove(rule)),
            Change::AddPeer { public_key, new } => {
                self.take_prefixes(&new.allowed_ips);
                let peer = ObservedPeer {
                    endpoint: Some(new.endpoint),
                    applied_endpoint: Some(new.endpoint),
                    allowed_ips: new.allowed_ips.clone(),
                    persistent_keepalive: new.persistent_keepalive,
                    path_probes: new.path_probes,
                };
                self.peers.get_or_insert_default().insert(*public_key, peer);
            }
            Change::UpdatePeer {
                public_key, delta, ..
            } => self.update_peer(public_key, delta),
            Change::RemovePeer { public_key, .. } => {
                drop(self.peers.get_or_insert_default().remove(public_key));
            }
        }
    }

    fn update_peer(&mut self, public_key: &PublicKey, delta: &PeerDelta) {
        self.take_prefixes(&delta.add_allowed_ips);
        let Some(peer) = self.peers.get_or_insert_default().get_mut(public_key) else {
            return;
        };
        if let Some(endpoint) = delta.endpoint {
            peer.endpoint = Some(endpoint);
            peer.applied_endpoint = Some(endpoint);
        }
        if let Some(seconds) = delta.persistent_keepalive {
            peer.persistent_keepalive = seconds;
        }
        peer.path_probes = delta.path_probes.unwrap_or(peer.path_probes);
        peer.allowed_ips
            .extend(delta.add_allowed_ips.iter().copied());
        peer.allowed_ips
            .retain(|net| !delta.remove_allowed_ips.contains(net));
    }

    /// A prefix has one owner: whoever is given it takes it from the one who had it.
    fn take_prefixes(&mut self, prefixes: &BTreeSet<IpNet>) {
        for peer in self.peers.get_or_insert_default().values_mut() {
            peer.allowed_ips.retain(|net| !prefixes.contains(net));
        }
    }
}
