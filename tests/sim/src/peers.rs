//! What the reference model knows of a node's peers, once nothing moves any more.

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
    /// What the kernel has a route into the tunnel for.
    routed: BTreeSet<IpNet>,
    lengths: BTreeSet<u8>,
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
        let mut routed: BTreeSet<IpNet> = owners.keys().copied().collect();
        if !agent.synced {
            let routes = machine.kernel.routes.iter();
            let into_tunnel = routes.filter(|(_, to)| matches!(to, RouteTarget::Tunnel { .. }));
            routed.extend(into_tunnel.map(|(key, _)| key.destination));
            let held = machine.device.as_ref().map(|device| device.state().peers);
            for peer in held.into_iter().flatten() {
                let Some(endpoint) = peer.endpoint else {
                    continue;
                };
                keys.entry(peer.public_key).or_insert(endpoint);
                for net in peer.allowed_ips {
                    owners.entry(net).or_insert((peer.public_key, endpoint));
                }
            }
            let routes = machine.kernel.routes.iter();
            let refused = routes
                .filter(|(key, to)| key.table == NODE_TABLE && **to == RouteTarget::Unreachable);
            members.extend(refused.map(|(key, _)| key.destination.addr()));
        }
        let prefixes = owners.keys().chain(&routed);
        let lengths = prefixes.map(IpNet::prefix_len).collect();
        Self {
            owners,
            routed,
            lengths,
            keys,
            members,
        }
    }

    /// The owner of the longest prefix.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<(PublicKey, SocketAddr)> {
        let mut nets = self.around(address);
        nets.find_map(|net| self.owners.get(&net).copied())
    }

    /// Whether the kernel sends to this address by the tunnel, whoever is there.
    pub(crate) fn is_routed(&self, address: IpAddr) -> bool {
        self.around(address).any(|net| self.routed.contains(&net))
    }

    /// The prefixes that an address is in, of the lengths that there are, the longest first.
    fn around(&self, address: IpAddr) -> impl Iterator<Item = IpNet> {
        let lengths = self.lengths.iter().rev();
        let nets = lengths.filter_map(move |length| IpNet::new(address, *length).ok());
        nets.map(|net| net.trunc())
    }
}
