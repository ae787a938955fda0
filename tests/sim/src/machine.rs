//! A node's kernel, tunnel and disk, and what must hold after each single thing done to them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use ipnet::IpNet;
use warren_agent::dataplane::set_request;
use warren_agent::reconcile::Touched;
use warren_core::consts::{MAIN_TABLE, TUNNEL_METRIC, UNREACHABLE_METRIC};
use warren_core::plan::tunnel_address;
use warren_core::state::{ObservedLink, RouteKey, RouteTarget};
use warren_core::uapi::Peer;
use warren_core::{Change, ObservedState};
use warren_keyring::PublicKey;

use crate::device::{Device, Keys, restore};
use crate::entry::{Entry, Listed};
use crate::kernel::{Way, way};
use crate::mutation::Mutation;
use crate::oracle::{Local, Oracle, overlap};
use crate::shelf::{Saved, Shelf};
use crate::upkeep::{FILTER, NETWORK};

/// A node's machine.
#[derive(Debug)]
pub struct Machine {
    /// Its place in the world.
    pub number: usize,
    /// Its name.
    pub name: String,
    /// The uid of this life of it.
    pub uid: String,
    /// Its keys.
    pub keys: Keys,
    /// Its pod ranges.
    pub pod_cidrs: Vec<IpNet>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The MTU of its underlay in bytes.
    pub mtu: u32,
    /// The cluster's pod ranges.
    pub cluster: Vec<IpNet>,
    /// Its kernel.
    pub kernel: ObservedState,
    /// Its tunnel, while it runs.
    pub device: Option<Device>,
    /// Its disk.
    pub disk: Disk,
    /// Where what disks share is.
    pub shelf: Rc<Shelf>,
    /// The endpoint that its agent gave each peer last.
    pub given: BTreeMap<PublicKey, SocketAddr>,
    /// What its kernel has to tell of the changes done.
    pub touched: Touched,
    /// Its way to the registry, as the reconcile that runs has it.
    pub registry: Desk,
    /// Whether it was protected since it booted: before that it has no pods.
    pub has_pods: bool,
    /// What the reconcile that runs is held to.
    pub pass: Pass,
    /// What was done, for the story.
    pub done: Vec<String>,
    /// What must not be and was.
    pub faults: Vec<String>,
    /// The bug that is planted.
    pub mutation: Option<Mutation>,
    /// Every how many steps the ways of packets are looked at.
    pub probe_every: u64,
    /// Changes that wait, where a bug does things in a wrong order.
    pub late: Vec<Change>,
    /// How many steps there were.
    pub steps: u64,
}

/// What outlives a reboot.
#[derive(Debug, Default)]
pub struct Disk {
    /// The agent's view.
    pub view: Saved,
    /// What the reference model knew when that was saved.
    pub oracle: Oracle,
    /// Whether the view was saved since this was last cleared.
    pub saved: bool,
    /// The tunnel's peers.
    pub peers: Vec<Peer>,
    /// The tunnel's mark.
    pub newest_stamp: Duration,
    /// Whether the CNI configuration is there.
    pub cni: bool,
}

/// What a reconcile sees of the registry when it publishes.
#[derive(Debug, Default)]
pub struct Desk {
    /// Whether it can be reached.
    pub reachable: bool,
    /// This node's entry there.
    pub own: Option<Rc<Listed>>,
    /// What the reconcile wrote.
    pub written: Option<Entry>,
}

/// What a reconcile is held to.
#[derive(Debug, Default)]
pub struct Pass {
    /// Whether the whole view was told in this life of the agent.
    pub synced: bool,
    /// Whether it is a repair, which does not ask the tunnel for its peers.
    pub repair: bool,
    /// Who must own each prefix in the end, if the reference model knows.
    pub owners: Option<BTreeMap<IpNet, PublicKey>>,
    /// After how many operations the agent is killed.
    pub fuse: Option<u32>,
    /// Which operation on the kernel fails.
    pub fails: Option<u32>,
    /// Whether one did.
    pub failed: bool,
}

impl Machine {
    /// Counts an operation; tells whether the agent is killed before it.
    pub fn burns(&mut self) -> bool {
        match &mut self.pass.fuse {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    /// Whether this operation on the kernel fails.
    pub fn fails(&mut self) -> bool {
        match &mut self.pass.fails {
            Some(0) => {
                self.pass.fails = None;
                self.pass.failed = true;
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    /// Does a change to the kernel, and looks at what came of it.
    pub fn apply_host(&mut self, change: &Change) {
        match (self.mutation, change) {
            (
                Some(Mutation::PeerGoesBeforeRoute),
                Change::RemoveRoute {
                    old: RouteTarget::Tunnel { .. },
                    ..
                },
            ) => {
                return self.late.push(change.clone());
            }
            (Some(Mutation::ReplacesProtection), Change::SetFilter { .. })
                if self.kernel.filter.is_some() =>
            {
                self.kernel.filter = None;
                for net in self.cluster.clone() {
                    self.kernel.routes.remove(&unreachable(net));
                }
                self.check_ways(None);
                for net in self.cluster.clone() {
                    self.kernel
                        .routes
                        .insert(unreachable(net), RouteTarget::Unreachable);
                }
            }
            _ => {}
        }
        self.kernel.apply(change);
        self.done.push(brief(change));
        self.touched.merge(match change {
            Change::SetFilter { .. } | Change::SetPeerAddresses { .. } => FILTER,
            _ => NETWORK,
        });
        self.check_host(change);
    }

    fn check_host(&mut self, change: &Change) {
        let removes = match change {
            // What would lead this node's pods' packets elsewhere is nobody else's.
            Change::RemoveRoute { key, old } => {
                let mut own = self.pod_cidrs.iter();
                let astray = own.any(|net| overlap(net, &key.destination));
                *old == RouteTarget::Unreachable || !astray
            }
            Change::RemoveRule(_) | Change::RemoveAddress(_) => true,
            _ => false,
        };
        if removes && !self.pass.synced {
            self.fault(format!("before the first full view: {change:?}"));
        }
        let mut at = None;
        match change {
            Change::RemoveRoute { key, old } => {
                at = Some(key.destination);
                if *old == RouteTarget::Unreachable && self.cluster.contains(&key.destination) {
                    self.fault(format!("unprotected: {change:?}"));
                }
            }
            Change::SetRoute { key, new, .. } => {
                at = Some(key.destination);
                let into_tunnel = matches!(new, RouteTarget::Tunnel { .. });
                let asked = into_tunnel && !self.pass.repair;
                if let (true, MAIN_TABLE, Some(device)) = (asked, key.table, &self.device) {
                    let of = BTreeSet::from([key.destination]);
                    if device
                        .owners(Some(&of))
                        .is_ok_and(|o| !o.contains_key(&key.destination))
                    {
                        self.fault(format!("a route before its peer: {}", key.destination));
                    }
                }
            }
            _ => {}
        }
        let guarded = |net: &IpNet| {
            self.kernel.routes.get(&unreachable(*net)) == Some(&RouteTarget::Unreachable)
        };
        self.has_pods |= self.kernel.filter.is_some() && self.cluster.iter().all(guarded);
        self.check_ways(at);
    }

    /// Does changes of peers in one transaction, and looks at what came of it.
    pub fn apply_peers(&mut self, changes: &[Change]) {
        let mut changes = changes.to_vec();
        match self.mutation {
            Some(Mutation::ForgetsV6) => {
                for change in &mut changes {
                    if let Change::AddPeer { new, .. } = change {
                        new.allowed_ips.retain(|net| net.addr().is_ipv4());
                    }
                }
            }
            Some(Mutation::KeepsStalePrefixes) => {
                for change in &mut changes {
                    if let Change::UpdatePeer { delta, .. } = change {
                        delta.remove_allowed_ips.clear();
                    }
                }
            }
            Some(Mutation::RouteBeforePeer) => self.routes_first(&changes),
            Some(Mutation::MovesWithAGap) => self.release_first(&changes),
            _ => {}
        }
        self.apply_batch(&changes);
        for late in std::mem::take(&mut self.late) {
            self.kernel.apply(&late);
        }
    }

    fn apply_batch(&mut self, changes: &[Change]) {
        let request = set_request(changes);
        let Some(device) = &mut self.device else {
            return self.fault("peers are set on a tunnel that does not answer".into());
        };
        let touched = touched(changes);
        let before = device.owners(Some(&touched));
        device.apply(&request);
        let after = device.owners(Some(&touched));
        let (before, after) = match (before, after) {
            (Ok(before), Ok(after)) => (before, after),
            (Err(fault), _) | (_, Err(fault)) => return self.fault(fault),
        };
        self.check_owners(&before, &after);
        for change in changes {
            self.done.push(brief(change));
            self.check_peer(change);
        }
    }

    fn check_owners(
        &mut self,
        before: &BTreeMap<IpNet, PublicKey>,
        after: &BTreeMap<IpNet, PublicKey>,
    ) {
        let synced = self.pass.synced;
        for (net, old) in before {
            let wanted = self.pass.owners.as_ref().map(|owners| owners.get(net));
            match (after.get(net), wanted) {
                (None, _) if !synced => {
                    self.fault(format!(
                        "before the first full view: {net} was taken from {old}"
                    ));
                }
                (None, Some(Some(_))) => self.fault(format!("{net} has no owner while it moves")),
                (Some(new), Some(wanted)) if new != old && wanted != Some(new) => {
                    self.fault(format!(
                        "{net} went from {old} to {new}, who must not have it"
                    ));
                }
                _ => {}
            }
        }
    }

    fn check_peer(&mut self, change: &Change) {
        let (key, endpoint) = match change {
            Change::AddPeer { public_key, new } => (public_key, Some(new.endpoint)),
            Change::UpdatePeer {
                public_key, delta, ..
            } => (public_key, delta.endpoint),
            Change::RemovePeer { public_key, old } => {
                if !self.pass.synced {
                    self.fault(format!(
                        "before the first full view: {public_key} was removed"
                    ));
                }
                self.given.remove(public_key);
                self.check_no_route(&old.allowed_ips);
                return;
            }
            _ => return,
        };
        if let Change::UpdatePeer { delta, .. } = change {
            self.check_no_route(&delta.remove_allowed_ips);
        }
        if let Some(endpoint) = endpoint
            && self.given.insert(*key, endpoint) == Some(endpoint)
            && matches!(change, Change::UpdatePeer { .. })
        {
            self.fault(format!("endpoint {endpoint} of {key} was given again"));
        }
    }

    /// Prefixes that nobody has any more must have no route into the tunnel.
    fn check_no_route(&mut self, gone: &BTreeSet<IpNet>) {
        let Some(device) = self.device.as_ref().filter(|_| !self.pass.failed) else {
            return;
        };
        let owned = device.owners(Some(gone)).unwrap_or_default();
        for net in gone.iter().filter(|net| !owned.contains_key(net)) {
            let key = RouteKey {
                table: MAIN_TABLE,
                destination: *net,
                metric: TUNNEL_METRIC,
            };
            if self.kernel.routes.contains_key(&key) {
                self.fault(format!("the peer of {net} went before its route"));
                return;
            }
        }
    }

    /// No packet of a pod to a pod may leave in clear, whatever was done last.
    pub fn check_ways(&mut self, at: Option<IpNet>) {
        self.steps += 1;
        if !self.has_pods || !self.steps.is_multiple_of(self.probe_every) {
            return;
        }
        let ends: Vec<IpAddr> = self.pod_cidrs.iter().map(|net| inside(net, 9)).collect();
        let mut to: Vec<IpAddr> = at.iter().map(|net| inside(net, 5)).collect();
        to.extend(self.cluster.iter().map(|net| inside(net, 0x7701)));
        let in_cluster = |a: &IpAddr| self.cluster.iter().any(|net| net.contains(a));
        for to in to.into_iter().filter(in_cluster).collect::<Vec<_>>() {
            for from in ends.iter().filter(|a| a.is_ipv6() == to.is_ipv6()) {
                let way = way(&self.kernel, &self.pod_cidrs, &self.cluster, (*from, to));
                if way == Way::Clear {
                    return self.fault(format!("{from} to {to} leaves in clear"));
                }
            }
        }
    }

    /// A bug's doing: routes into the tunnel for peers that are not there yet.
    fn routes_first(&mut self, changes: &[Change]) {
        for change in changes {
            let Change::AddPeer { new, .. } = change else {
                continue;
            };
            let pods = |net: &&IpNet| self.cluster.iter().any(|range| range.contains(*net));
            for net in new.allowed_ips.iter().filter(pods).collect::<Vec<_>>() {
                let new = RouteTarget::Tunnel {
                    src: None,
                    mtu_bytes: None,
                };
                let key = RouteKey {
                    table: MAIN_TABLE,
                    destination: *net,
                    metric: TUNNEL_METRIC,
                };
                self.check_host(&Change::SetRoute {
                    key,
                    old: None,
                    new,
                });
            }
        }
    }

    /// A bug's doing: prefixes are taken from their old peers in a transaction of their own.
    fn release_first(&mut self, changes: &[Change]) {
        let touched = touched(changes);
        let owners = self.device.as_ref().map(|d| d.owners(Some(&touched)));
        let Some(Ok(owners)) = owners else { return };
        let mut first = Vec::new();
        for (net, public_key) in owners.iter().filter(|(net, _)| touched.contains(net)) {
            let mut delta = warren_core::state::PeerDelta::default();
            delta.remove_allowed_ips.insert(*net);
            let old = warren_core::state::ObservedPeer {
                endpoint: None,
                applied_endpoint: None,
                allowed_ips: BTreeSet::new(),
                persistent_keepalive: 0,
                path_probes: true,
            };
            first.push(Change::UpdatePeer {
                public_key: *public_key,
                old,
                delta,
            });
        }
        self.apply_batch(&first);
    }

    /// A bug's doing: peers that are not planned with are stale at once.
    pub fn remove_unplanned(&mut self) {
        let Some(owners) = self.pass.owners.as_ref().filter(|_| !self.pass.synced) else {
            return;
        };
        let planned: BTreeSet<PublicKey> = owners.values().copied().collect();
        let peers = self
            .device
            .as_ref()
            .map(|d| d.state().peers)
            .unwrap_or_default();
        let stale = peers.iter().filter(|p| !planned.contains(&p.public_key));
        let remove = |peer: &Peer| Change::RemovePeer {
            public_key: peer.public_key,
            old: warren_core::state::ObservedPeer {
                endpoint: peer.endpoint,
                applied_endpoint: None,
                allowed_ips: BTreeSet::new(),
                persistent_keepalive: 0,
                path_probes: true,
            },
        };
        let changes: Vec<Change> = stale.map(remove).collect();
        if !changes.is_empty() {
            self.apply_batch(&changes);
        }
    }

    /// Starts the tunnel with the peers of its last state.
    pub fn start_tunnel(&mut self, seed: u64) {
        let mut device = Device::start(&self.keys, seed, self.disk.newest_stamp);
        device.apply(&restore(&self.disk.peers));
        let kept: BTreeSet<PublicKey> = self.disk.peers.iter().map(|p| p.public_key).collect();
        self.given.retain(|key, _| kept.contains(key));
        self.device = Some(device);
        self.kernel.link.get_or_insert(ObservedLink {
            mtu_bytes: 1500,
            up: false,
        });
    }

    /// Kills the tunnel; its state is on disk.
    pub fn kill_tunnel(&mut self) {
        if let Some(device) = self.device.take() {
            self.disk.peers = device.state().peers;
            if let Device::Engine(engine) = &device {
                self.disk.newest_stamp = engine.newest_stamp() + Duration::from_secs(1);
            }
        }
    }

    /// Takes the interface away, and what hangs on it.
    pub fn delete_link(&mut self) {
        self.kernel.link = None;
        self.kernel.addresses.clear();
        let into = |target: &RouteTarget| matches!(target, RouteTarget::Tunnel { .. });
        self.kernel.routes.retain(|_, target| !into(target));
    }

    /// This node as the reference model knows it; `key` is the one that its agent has learned.
    pub fn local(&self, key: PublicKey, synced: bool) -> Local {
        Local {
            name: self.name.clone(),
            uid: self.uid.clone(),
            synced,
            key,
            pod_cidrs: self.pod_cidrs.clone(),
            addresses: self.addresses.clone(),
            endpoints: self.sockets(),
            mtu: self.mtu,
        }
    }

    /// Where its tunnel listens.
    pub fn sockets(&self) -> Vec<SocketAddr> {
        let mut out: Vec<SocketAddr> = Vec::new();
        for address in &self.addresses {
            if out.iter().all(|e| e.is_ipv6() != address.is_ipv6()) {
                out.push(SocketAddr::new(*address, warren_core::consts::DEFAULT_PORT));
            }
        }
        out
    }

    /// The addresses that its tunnel's interface must have.
    pub fn tunnel_addresses(&self) -> BTreeSet<IpNet> {
        let address = |net: &IpNet| IpNet::from(tunnel_address(net));
        self.pod_cidrs.iter().map(address).collect()
    }

    /// Takes note of what must not be.
    pub fn fault(&mut self, fault: String) {
        self.faults.push(format!("{}: {fault}", self.name));
    }
}

/// The n-th address of a prefix.
pub fn inside(net: &IpNet, n: u16) -> IpAddr {
    match net {
        IpNet::V4(v4) if v4.prefix_len() == 32 => v4.addr().into(),
        IpNet::V6(v6) if v6.prefix_len() == 128 => v6.addr().into(),
        IpNet::V4(v4) => IpAddr::V4((u32::from(v4.network()) + u32::from(n)).into()),
        IpNet::V6(v6) => IpAddr::V6((u128::from(v6.network()) + u128::from(n)).into()),
    }
}

fn unreachable(destination: IpNet) -> RouteKey {
    RouteKey {
        table: MAIN_TABLE,
        destination,
        metric: UNREACHABLE_METRIC,
    }
}

fn touched(changes: &[Change]) -> BTreeSet<IpNet> {
    let mut out = BTreeSet::new();
    for change in changes {
        match change {
            Change::AddPeer { new, .. } => out.extend(&new.allowed_ips),
            Change::UpdatePeer { delta, .. } => {
                out.extend(&delta.add_allowed_ips);
                out.extend(&delta.remove_allowed_ips);
            }
            Change::RemovePeer { old, .. } => out.extend(&old.allowed_ips),
            _ => {}
        }
    }
    out
}

fn brief(change: &Change) -> String {
    match change {
        Change::SetFilter { .. } => "filter".into(),
        Change::SetPeerAddresses { add, remove } => format!("filter +{add:?} -{remove:?}"),
        Change::SetLink { new, .. } => format!("link mtu {}", new.mtu_bytes),
        Change::AddAddress(net) => format!("+address {net}"),
        Change::RemoveAddress(net) => format!("-address {net}"),
        Change::SetRoute { key, new, .. } => {
            let to = matches!(new, RouteTarget::Tunnel { .. });
            format!("+route {} {} {to}", key.destination, key.table)
        }
        Change::RemoveRoute { key, .. } => format!("-route {} {}", key.destination, key.table),
        Change::AddRule(rule) => format!("+rule {:?}", rule.packets),
        Change::RemoveRule(rule) => format!("-rule {:?}", rule.packets),
        Change::AddPeer { public_key, new } => {
            format!("+peer {public_key} {} {:?}", new.endpoint, new.allowed_ips)
        }
        Change::UpdatePeer {
            public_key, delta, ..
        } => format!(
            "peer {public_key} {:?} +{:?} -{:?}",
            delta.endpoint, delta.add_allowed_ips, delta.remove_allowed_ips
        ),
        Change::RemovePeer { public_key, .. } => format!("-peer {public_key}"),
    }
}
