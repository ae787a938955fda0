//! A node's WireGuard device: the engine that ships, or its AllowedIPs alone.
//!
//! A handshake costs 270 µs of both ends' time and a session 18 KB: the million pairs of a thousand
//! nodes would take minutes and 18 GB, and teach nothing about planning. So large worlds have the
//! table of AllowedIPs that the engine uses, and no sessions; whether a packet arrives is worked
//! out from the tables and keys of both ends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use warren_agent::dataplane::DeviceState;
use warren_clock_tests::clock;
use warren_core::AllowedIps;
use warren_core::consts::DEFAULT_PORT;
use warren_core::uapi::{AllowedIpUpdate, Peer, PeerUpdate, SetRequest};
use warren_keyring::{PrivateKey, PublicKey};
use warren_tunnel::{Engine, EngineConfig, Now};

/// A node's keys; large worlds need no private ones.
#[derive(Clone, Debug)]
pub struct Keys {
    /// The private key.
    pub private: Option<PrivateKey>,
    /// The public key.
    pub public: PublicKey,
}

/// A running device.
#[derive(Debug)]
pub enum Device {
    /// `warren-tunnel`'s engine.
    Engine(Box<Engine>),
    /// AllowedIPs and peers.
    Table(Box<Table>),
}

/// AllowedIPs and peers.
#[derive(Debug)]
pub struct Table {
    key: PublicKey,
    allowed_ips: AllowedIps<PublicKey>,
    peers: BTreeMap<PublicKey, Peer>,
}

impl Device {
    /// Starts a device without peers. No handshake is stamped earlier than `newest_stamp`.
    pub fn start(keys: &Keys, seed: u64, newest_stamp: Duration) -> Self {
        let Some(private) = &keys.private else {
            return Self::Table(Box::new(Table {
                key: keys.public,
                allowed_ips: AllowedIps::new(),
                peers: BTreeMap::new(),
            }));
        };
        let mut engine = Engine::new(EngineConfig {
            newest_stamp,
            ..EngineConfig::new(Some(private.clone()), seed)
        });
        engine.set_listen(DEFAULT_PORT, 0);
        Self::Engine(Box::new(engine))
    }

    /// Does what `set` asks.
    pub fn apply(&mut self, request: &SetRequest) {
        match self {
            // Its only error is for more peers than any scenario has.
            Self::Engine(engine) => drop(engine.apply(Now::read(), request)),
            Self::Table(table) => request.peers.iter().for_each(|peer| table.update(peer)),
        }
    }

    /// What `get` shows.
    pub fn state(&self) -> DeviceState {
        match self {
            Self::Engine(engine) => DeviceState {
                public_key: engine.public_key(),
                listen_port: DEFAULT_PORT,
                peers: engine.get().peers,
                path_mtu: BTreeMap::new(),
            },
            Self::Table(table) => DeviceState {
                public_key: Some(table.key),
                listen_port: DEFAULT_PORT,
                peers: table.get(),
                path_mtu: BTreeMap::new(),
            },
        }
    }

    /// The owners of these prefixes, or of all. Two owners of one prefix are an error.
    pub fn owners(
        &self,
        of: Option<&BTreeSet<IpNet>>,
    ) -> Result<BTreeMap<IpNet, PublicKey>, String> {
        let mut out = BTreeMap::new();
        match (self, of) {
            (Self::Table(table), Some(of)) => {
                let owner = |net: &IpNet| Some((*net, *table.allowed_ips.get(net)?));
                out.extend(of.iter().filter_map(owner));
            }
            _ => {
                for peer in self.state().peers {
                    for net in peer.allowed_ips {
                        if out.insert(net, peer.public_key).is_some() {
                            return Err(format!("{net} has two owners"));
                        }
                    }
                }
            }
        }
        Ok(out)
    }

    /// The owner of an address, and where it is sent to.
    pub fn lookup(&self, address: IpAddr) -> Option<(PublicKey, Option<SocketAddr>)> {
        match self {
            Self::Table(table) => {
                let key = *table.allowed_ips.lookup(address)?;
                Some((key, table.peers.get(&key).and_then(|p| p.endpoint)))
            }
            Self::Engine(engine) => {
                let peers = engine.get().peers;
                let best = |peer: &Peer| {
                    let nets = peer.allowed_ips.iter().filter(|net| net.contains(&address));
                    nets.map(IpNet::prefix_len).max()
                };
                let found = peers.iter().filter_map(|p| Some((best(p)?, p)));
                let (_, peer) = found.max_by_key(|(length, _)| *length)?;
                Some((peer.public_key, peer.endpoint))
            }
        }
    }

    /// How long ago the last handshake with a peer was.
    pub fn keys_age(&self, key: &PublicKey) -> Option<Duration> {
        let peers = self.state().peers;
        let peer = peers.into_iter().find(|peer| peer.public_key == *key)?;
        Some(clock::wall().saturating_sub(peer.last_handshake?))
    }

    /// Whether the key is a peer's.
    pub fn knows(&self, key: &PublicKey) -> bool {
        match self {
            Self::Table(table) => table.peers.contains_key(key),
            Self::Engine(engine) => engine.get().peers.iter().any(|p| p.public_key == *key),
        }
    }
}

impl Table {
    fn update(&mut self, update: &PeerUpdate) {
        let key = update.public_key;
        if update.remove {
            self.allowed_ips.remove_all(&key);
            self.peers.remove(&key);
            return;
        }
        if key == self.key || (update.update_only && !self.peers.contains_key(&key)) {
            return;
        }
        let peer = self.peers.entry(key).or_insert_with(|| Peer::new(key));
        if let Some(endpoint) = update.endpoint {
            peer.endpoint = Some(endpoint);
        }
        if let Some(seconds) = update.persistent_keepalive {
            peer.persistent_keepalive = seconds;
        }
        peer.path_probes = update.path_probes.unwrap_or(peer.path_probes);
        for change in &update.allowed_ips {
            match change {
                AllowedIpUpdate::Add(net) => drop(self.allowed_ips.insert(*net, key)),
                AllowedIpUpdate::Remove(net) => {
                    self.allowed_ips.remove_if_owner(net, &key);
                }
            }
        }
    }

    fn get(&self) -> Vec<Peer> {
        let mut prefixes: BTreeMap<PublicKey, Vec<IpNet>> = BTreeMap::new();
        for (net, key) in self.allowed_ips.iter() {
            prefixes.entry(*key).or_default().push(net);
        }
        let with = |peer: &Peer| Peer {
            allowed_ips: prefixes.remove(&peer.public_key).unwrap_or_default(),
            ..peer.clone()
        };
        self.peers.values().map(with).collect()
    }
}

/// What brings a device back to these peers: `tunnel.state` as a request.
pub fn restore(peers: &[Peer]) -> SetRequest {
    let update = |peer: &Peer| PeerUpdate {
        endpoint: peer.endpoint,
        persistent_keepalive: Some(peer.persistent_keepalive),
        path_probes: peer.path_probes.then_some(true),
        allowed_ips: peer
            .allowed_ips
            .iter()
            .copied()
            .map(AllowedIpUpdate::Add)
            .collect(),
        ..PeerUpdate::new(peer.public_key)
    };
    SetRequest {
        peers: peers.iter().map(update).collect(),
        ..SetRequest::default()
    }
}
