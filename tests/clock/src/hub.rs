//! One device with thousands of peers, of which the test says who answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_core::uapi::{AllowedIpUpdate, PeerUpdate, SetRequest};
use warren_keyring::PrivateKey;
use warren_tunnel::{Engine, EngineConfig, Now, Outbox};

use crate::clock;

/// What a turn of the loop takes, and what each handshake message and each other one adds to that.
const TURN: Duration = Duration::from_micros(5);
const HANDSHAKE: Duration = Duration::from_micros(150);
const OTHER: Duration = Duration::from_micros(3);

/// A datagram that the device has sent.
#[derive(Clone, Debug)]
pub struct Sent {
    /// When.
    pub at: Instant,
    /// To which peer.
    pub peer: usize,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Sent {
    /// Tells whether it is an initiation.
    pub fn is_initiation(&self) -> bool {
        self.bytes[0] == 1
    }

    /// Tells whether it is a keepalive.
    pub fn is_keepalive(&self) -> bool {
        self.bytes[0] == 4 && self.bytes.len() == 32
    }
}

/// The device: its own address is 10.200.0.1, peer `n` has the `n`th 10.x.y.0/24.
pub struct Hub {
    /// The device.
    pub engine: Engine,
    /// Everything that was sent, in order.
    pub sent: Vec<Sent>,
    /// How often the loop had to run its timers.
    pub turns: u64,
    /// By how much the loop was late at most.
    pub latest: Duration,
    key: PrivateKey,
    keys: Vec<PrivateKey>,
    /// The peers that go on after they have answered.
    remotes: BTreeMap<usize, Engine>,
    out: Outbox,
}

/// What the peers do.
#[derive(Clone, Copy, Debug)]
pub struct Peers {
    /// Those from this one on answer initiations.
    pub answer_from: usize,
    /// These keep the session and can send.
    pub live: (usize, usize),
}

impl Peers {
    /// Nobody answers.
    pub const SILENT: Self = Self {
        answer_from: usize::MAX,
        live: (0, 0),
    };
    /// All answer, and then are silent.
    pub const ANSWER: Self = Self {
        answer_from: 0,
        live: (0, 0),
    };
}

impl Hub {
    /// Makes a device with so many peers, and starts the clock.
    pub fn new(peers: usize) -> Self {
        clock::start(Duration::from_secs(1_700_000_000));
        let key = PrivateKey::generate().unwrap();
        let mut hub = Self {
            engine: Engine::new(EngineConfig::new(Some(key.clone()), 1)),
            sent: Vec::new(),
            turns: 0,
            latest: Duration::ZERO,
            key,
            keys: (0..peers)
                .map(|_| PrivateKey::generate().unwrap())
                .collect(),
            remotes: BTreeMap::new(),
            out: Outbox::new(),
        };
        let updates = (0..peers).map(|n| PeerUpdate {
            endpoint: Some(endpoint(n)),
            allowed_ips: vec![AllowedIpUpdate::Add(prefix(n))],
            ..PeerUpdate::new(hub.keys[n].public_key())
        });
        let updates = updates.collect();
        hub.set(updates);
        hub
    }

    /// Changes peers.
    pub fn set(&mut self, peers: Vec<PeerUpdate>) {
        let request = SetRequest {
            peers,
            ..SetRequest::default()
        };
        self.engine.apply(Now::read(), &request).unwrap();
    }

    /// Sets the persistent keepalive of a peer.
    pub fn set_keepalive(&mut self, peer: usize, seconds: u16) {
        let update = PeerUpdate {
            persistent_keepalive: Some(seconds),
            ..PeerUpdate::new(self.keys[peer].public_key())
        };
        self.set(vec![update]);
    }

    /// Hands the device a packet for each of these peers, all read at one moment.
    pub fn send(&mut self, peers: impl IntoIterator<Item = usize>, answers: Peers) {
        let now = Now::read();
        for peer in peers {
            let packet = packet([10, 200, 0], [10, (peer >> 8) as u8, peer as u8]);
            self.engine.handle_tun_packet(now, &packet, &mut self.out);
            self.carry(answers);
        }
    }

    /// Lets a live peer send a packet; the device takes it at once.
    pub fn hear(&mut self, peer: usize, answers: Peers) {
        let packet = packet([10, (peer >> 8) as u8, peer as u8], [10, 200, 0]);
        let remote = self.remotes.get_mut(&peer).expect("a live peer");
        let mut out = Outbox::new();
        remote.handle_tun_packet(Now::read(), &packet, &mut out);
        self.take_from(peer, &out, answers);
    }

    /// Lets everything happen that is due in the time given, and what that takes.
    pub fn run(&mut self, time: Duration, answers: Peers) {
        let end = Instant::now() + time;
        while let Some(due) = self.engine.poll_timeout().filter(|due| *due <= end) {
            clock::advance(due.saturating_duration_since(Instant::now()));
            let now = Now::read();
            let late = now.monotonic.saturating_duration_since(due);
            self.latest = self.latest.max(late);
            self.turns += 1;
            self.engine.handle_timers(now, &mut self.out);
            clock::advance(TURN);
            self.carry(answers);
        }
        clock::advance(end.saturating_duration_since(Instant::now()));
    }

    /// Sorts what was sent by peers.
    pub fn by_peer(&self) -> Vec<Vec<&Sent>> {
        let mut by_peer = vec![Vec::new(); self.keys.len()];
        for sent in &self.sent {
            by_peer[sent.peer].push(sent);
        }
        by_peer
    }

    /// Takes what the device has put out, and hands it to those that answer.
    fn carry(&mut self, answers: Peers) {
        let datagrams: Vec<_> = self
            .out
            .datagrams()
            .map(|(to, bytes)| (number(to), bytes.to_vec()))
            .collect();
        self.out.clear();
        for (peer, bytes) in datagrams {
            let is_handshake = bytes[0] != 4;
            clock::advance(if is_handshake { HANDSHAKE } else { OTHER });
            let sent = Sent {
                at: Instant::now(),
                peer,
                bytes,
            };
            if peer >= answers.answer_from {
                self.deliver(&sent, answers);
            }
            self.sent.push(sent);
        }
    }

    fn deliver(&mut self, sent: &Sent, answers: Peers) {
        let peer = sent.peer;
        if sent.is_initiation() && !self.remotes.contains_key(&peer) {
            let remote = self.remote(peer);
            self.remotes.insert(peer, remote);
        }
        let Some(remote) = self.remotes.get_mut(&peer) else {
            return;
        };
        let mut out = Outbox::new();
        remote.handle_datagram(Now::read(), hub_address(), &sent.bytes, &mut out);
        if !(answers.live.0..answers.live.1).contains(&peer) {
            self.remotes.remove(&peer);
        }
        self.take_from(peer, &out, answers);
    }

    /// Takes what a peer has sent.
    fn take_from(&mut self, peer: usize, out: &Outbox, answers: Peers) {
        for (_, bytes) in out.datagrams() {
            self.engine
                .handle_datagram(Now::read(), endpoint(peer), bytes, &mut self.out);
        }
        self.carry(answers);
    }

    fn remote(&self, peer: usize) -> Engine {
        let seed = 2 + peer as u64;
        let mut remote = Engine::new(EngineConfig::new(Some(self.keys[peer].clone()), seed));
        let update = PeerUpdate {
            endpoint: Some(hub_address()),
            allowed_ips: vec![AllowedIpUpdate::Add("10.200.0.0/24".parse().unwrap())],
            ..PeerUpdate::new(self.key.public_key())
        };
        let request = SetRequest {
            peers: vec![update],
            ..SetRequest::default()
        };
        remote.apply(Now::read(), &request).unwrap();
        remote
    }
}

fn hub_address() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 51871))
}

fn endpoint(peer: usize) -> SocketAddr {
    SocketAddr::from(([198, 18, (peer >> 8) as u8, peer as u8], 51871))
}

fn number(endpoint: SocketAddr) -> usize {
    match endpoint {
        SocketAddr::V4(v4) => (v4.ip().to_bits() & 0xffff) as usize,
        SocketAddr::V6(_) => panic!("no peer of ours: {endpoint}"),
    }
}

fn prefix(peer: usize) -> ipnet::IpNet {
    format!("10.{}.{}.0/24", peer >> 8, peer & 0xff)
        .parse()
        .unwrap()
}

fn packet(source: [u8; 3], destination: [u8; 3]) -> [u8; 28] {
    let mut packet = [0; 28];
    packet[0] = 0x45;
    packet[3] = 28;
    packet[12..15].copy_from_slice(&source);
    packet[15] = 1;
    packet[16..19].copy_from_slice(&destination);
    packet[19] = 1;
    packet
}
