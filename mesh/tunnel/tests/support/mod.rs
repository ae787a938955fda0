//! Engines wired back to back in memory.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // each test binary uses a part of it

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use warren_core::uapi::{AllowedIpUpdate, PeerUpdate, SetRequest};
use warren_keyring::{PrivateKey, PublicKey};
use warren_tunnel::{DropReason, Engine, EngineConfig, MessageLimits, Now, Outbox};

/// An engine, its address on the network, and what came out for its TUN.
pub struct Side {
    pub engine: Engine,
    pub key: PublicKey,
    pub address: SocketAddr,
    pub out: Outbox,
    pub delivered: Vec<Vec<u8>>,
}

impl Side {
    pub fn new(address: &str) -> Self {
        Self::with_key(address, PrivateKey::generate().unwrap(), |_| {})
    }

    pub fn with_limits(address: &str, limits: MessageLimits) -> Self {
        Self::with_key(address, PrivateKey::generate().unwrap(), |config| {
            config.message_limits = limits;
        })
    }

    pub fn with_key(
        address: &str,
        private_key: PrivateKey,
        configure: impl FnOnce(&mut EngineConfig),
    ) -> Self {
        let address: SocketAddr = address.parse().unwrap();
        let key = private_key.public_key();
        let mut config = EngineConfig::new(Some(private_key), address.port().into());
        configure(&mut config);
        Self {
            key,
            engine: Engine::new(config),
            address,
            out: Outbox::new(),
            delivered: Vec::new(),
        }
    }

    pub fn set(&mut self, now: Now, updates: Vec<PeerUpdate>) {
        let request = SetRequest {
            peers: updates,
            ..SetRequest::default()
        };
        self.engine.apply(now, &request).unwrap();
    }

    /// Makes `other` a peer with these prefixes.
    pub fn add(&mut self, now: Now, other: &Side, prefixes: &[&str]) {
        self.set(now, vec![peer(other.key, Some(other.address), prefixes)]);
    }

    pub fn drops(&self, reason: DropReason) -> u64 {
        self.engine.counters().drops.get(reason)
    }

    /// Hands a packet to the engine and returns the datagrams that this made.
    pub fn tun(&mut self, now: Now, packet: &[u8]) -> Vec<(SocketAddr, Vec<u8>)> {
        self.engine.handle_tun_packet(now, packet, &mut self.out);
        self.take()
    }

    pub fn udp(
        &mut self,
        now: Now,
        source: SocketAddr,
        datagram: &[u8],
    ) -> Vec<(SocketAddr, Vec<u8>)> {
        self.engine
            .handle_datagram(now, source, datagram, &mut self.out);
        self.take()
    }

    pub fn timers(&mut self, now: Now) -> Vec<(SocketAddr, Vec<u8>)> {
        self.engine.handle_timers(now, &mut self.out);
        self.take()
    }

    /// Does all that is due now, in as many rounds as it takes.
    pub fn settle(&mut self, now: Now) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut sent = Vec::new();
        while self
            .engine
            .poll_timeout()
            .is_some_and(|at| at <= now.monotonic)
        {
            sent.extend(self.timers(now));
        }
        sent
    }

    pub fn take(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        self.delivered
            .extend(self.out.packets().map(<[u8]>::to_vec));
        let datagrams = self
            .out
            .datagrams()
            .map(|(to, bytes)| (to, bytes.to_vec()))
            .collect();
        self.out.clear();
        datagrams
    }
}

pub fn peer(key: PublicKey, endpoint: Option<SocketAddr>, prefixes: &[&str]) -> PeerUpdate {
    PeerUpdate {
        endpoint,
        allowed_ips: prefixes
            .iter()
            .map(|p| AllowedIpUpdate::Add(net(p)))
            .collect(),
        ..PeerUpdate::new(key)
    }
}

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// Carries datagrams to and fro until nobody has anything to say. What is for nobody is lost.
pub fn carry(
    now: Now,
    sides: &mut [&mut Side],
    from: usize,
    datagrams: Vec<(SocketAddr, Vec<u8>)>,
) {
    let mut on_the_way: Vec<(SocketAddr, SocketAddr, Vec<u8>)> = datagrams
        .into_iter()
        .map(|(to, bytes)| (sides[from].address, to, bytes))
        .collect();
    for _ in 0..10_000 {
        if on_the_way.is_empty() {
            return;
        }
        let (source, to, bytes) = on_the_way.remove(0);
        if let Some(side) = sides.iter_mut().find(|side| side.address == to) {
            let answers = side.udp(now, source, &bytes);
            let address = side.address;
            on_the_way.extend(answers.into_iter().map(|(to, bytes)| (address, to, bytes)));
        }
    }
    panic!("the sides never fall silent");
}

/// An inner packet of either family, `len` bytes in all, filled with a byte.
pub fn packet(source: &str, destination: &str, len: usize, fill: u8) -> Vec<u8> {
    let (source, destination): (IpAddr, IpAddr) =
        (source.parse().unwrap(), destination.parse().unwrap());
    let mut packet = vec![fill; len];
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet[..20].fill(0);
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            packet[12..16].copy_from_slice(&source.octets());
            packet[16..20].copy_from_slice(&destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet[..40].fill(0);
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&(len as u16 - 40).to_be_bytes());
            packet[8..24].copy_from_slice(&source.octets());
            packet[24..40].copy_from_slice(&destination.octets());
        }
        _ => panic!("both of one family"),
    }
    packet
}

/// Two sides that know each other: a has 10.1.0.0/24 and fd01::/64, b has 10.2.0.0/24 and fd02::/64.
pub fn pair(now: Now) -> (Side, Side) {
    let (mut a, mut b) = (Side::new("192.0.2.1:1001"), Side::new("192.0.2.2:1002"));
    a.add(now, &b, &["10.2.0.0/24", "fd02::/64"]);
    b.add(now, &a, &["10.1.0.0/24", "fd01::/64"]);
    (a, b)
}

/// As [`pair`], with a session that both have confirmed, and nothing pending.
pub fn connected(now: Now) -> (Side, Side) {
    let (mut a, mut b) = pair(now);
    let first = a.tun(now, &packet("10.1.0.1", "10.2.0.1", 40, 0));
    carry(now, &mut [&mut a, &mut b], 0, first);
    assert_eq!(b.delivered.len(), 1, "the handshake did not complete");
    b.delivered.clear();
    // The handshakes that new peers are begun with.
    let (later_a, later_b) = (a.timers(now), b.timers(now));
    carry(now, &mut [&mut a, &mut b], 0, later_a);
    carry(now, &mut [&mut a, &mut b], 1, later_b);
    (a, b)
}

pub fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
