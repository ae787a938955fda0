//! What the reference model knows of a node's peers, once nothing moves any more.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use warren_core::consts::NODE_TABLE;
use warren_core::state::RouteTarget;
use warren_keyring::PublicKey;

use crate::agent::Agent;
use crate::machine::Machine;
use crate::oracle::Judged;

/// A node's peers, as the reference model has them.
pub(crate) struct Peers {
    /// Who has which prefix, and where it is sent to.
    pub(crate) owners: BTreeMap<IpNet, (PublicKey, SocketAddr)>,
    lengths: BTreeSet<u8>,
    /// Prefixes that the tunnel has from an earlier life, and the kernel no route for.
    unrouted: BTreeSet<IpNet>,
    /// The peers, and where they are.
    pub(crate) keys: BTreeMap<PublicKey, SocketAddr>,
    /// Whom a pod reaches by the tunnel or not at all.
    pub(crate) members: BTreeSet<IpAddr>,
}

impl Peers {
    /// What must have become of what the agent was told. Before it was told the whole view nothing
    /// is removed: what its machine had from an earlier life, and it does not know of, is held.
    pub(crate) fn of(agent: &Agent, machine: &Machine) -> Self {
        let mut owners = BTreeMap::new();
        let mut keys = BTreeMap::new();
        for (name, how) in agent.judged.iter().flat_map(|j| j.iter()) {
            let Judged::Accepted {
                endpoint,
                addresses,
                ..
            } = how
            else {
                continue;
            };
            let entry = &agent.oracle.view[name].entry;
            keys.insert(entry.key, *endpoint);
            let hosts = addresses.iter().copied().map(IpNet::from);
            for net in entry.pod_cidrs.iter().copied().chain(hosts) {
                owners.insert(net, (entry.key, *endpoint));
            }
        }
        let judged = agent.judged.as_deref();
        let mut members = judged.map_or_else(BTreeSet::new, |j| agent.oracle.members(j));
        let mut unrouted = BTreeSet::new();
        if !agent.synced {
            let routes = machine.kernel.routes.iter();
            let into_tunnel = routes.filter(|(_, to)| matches!(to, RouteTarget::Tunnel { .. }));
            let routed: BTreeSet<IpNet> = into_tunnel.map(|(key, _)| key.destination).collect();
            let held = machine.device.as_ref().map(|device| device.state().peers);
            for peer in held.into_iter().flatten() {
                let Some(endpoint) = peer.endpoint else {
                    continue;
                };
                keys.entry(peer.public_key).or_insert(endpoint);
                for net in peer.allowed_ips {
                    if let Entry::Vacant(unknown) = owners.entry(net) {
                        unknown.insert((peer.public_key, endpoint));
                        unrouted.extend((!routed.contains(&net)).then_some(net));
                    }
                }
            }
            let routes = machine.kernel.routes.iter();
            let refused = routes
                .filter(|(key, to)| key.table == NODE_TABLE && **to == RouteTarget::Unreachable);
            members.extend(refused.map(|(key, _)| key.destination.addr()));
        }
        let lengths = owners.keys().map(IpNet::prefix_len).collect();
        Self {
            owners,
            lengths,
            unrouted,
            keys,
            members,
        }
    }

    /// The owner of the longest prefix.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<(PublicKey, SocketAddr)> {
        let net = self.longest(address)?;
        self.owners.get(&net).copied()
    }

    /// The peer that a packet to this address is sent to.
    pub(crate) fn next_hop(&self, address: IpAddr) -> Option<(PublicKey, SocketAddr)> {
        let net = self.longest(address)?;
        let routed = !self.unrouted.contains(&net);
        self.owners.get(&net).copied().filter(|_| routed)
    }

    fn longest(&self, address: IpAddr) -> Option<IpNet> {
        let nets = self
            .lengths
            .iter()
            .rev()
            .filter_map(|l| IpNet::new(address, *l).ok());
        nets.map(|net| net.trunc())
            .find(|net| self.owners.contains_key(net))
    }
}
