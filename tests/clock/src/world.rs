//! Two engines, the network between them, and what passed on it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_core::uapi::{AllowedIpUpdate, PeerUpdate, SetRequest};
use warren_keyring::{PrivateKey, PublicKey};
use warren_tunnel::{DropReason, Engine, EngineConfig, Now, Outbox};

use crate::clock;

/// When the story begins: 2023-11-14.
const START: Duration = Duration::from_secs(1_700_000_000);

/// One end: side `n` has 10.`n`.0.0/24.
pub struct Side {
    /// The device.
    pub engine: Engine,
    /// Its key, to make it anew.
    pub private_key: PrivateKey,
    /// Where it is on the network.
    pub address: SocketAddr,
    /// The numbers of the packets that came out for its TUN, in order.
    pub delivered: Vec<u64>,
    seed: u64,
}

impl Side {
    /// Returns the public key.
    pub fn key(&self) -> PublicKey {
        self.private_key.public_key()
    }

    /// Returns how often a reason for a drop applied.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.engine.counters().drops.get(reason)
    }
}

/// One direction of the network.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// How long a datagram takes at least.
    pub delay: Duration,
    /// And how much longer at most: more than the distance of two datagrams reorders them.
    pub jitter: Duration,
    /// How many in a thousand are lost.
    pub loss_per_mille: u64,
}

impl Default for Path {
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(10),
            jitter: Duration::ZERO,
            loss_per_mille: 0,
        }
    }
}

/// A datagram that a side has sent, lost or not.
#[derive(Clone, Debug)]
pub struct Carried {
    /// When, since the beginning.
    pub at: Duration,
    /// Who sent it.
    pub from: usize,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Carried {
    /// Tells whether it is an initiation.
    pub fn is_initiation(&self) -> bool {
        self.bytes[0] == 1
    }

    /// Tells whether it is a response.
    pub fn is_response(&self) -> bool {
        self.bytes[0] == 2
    }

    /// Tells whether it is a keepalive.
    pub fn is_keepalive(&self) -> bool {
        self.bytes[0] == 4 && self.bytes.len() == 32
    }

    /// Tells whether it is data that is no keepalive.
    pub fn is_data(&self) -> bool {
        self.bytes[0] == 4 && self.bytes.len() > 32
    }
}

/// Two sides, the network, and the time.
pub struct World {
    /// Both ends.
    pub sides: [Side; 2],
    /// The directions, by who sends.
    pub paths: [Path; 2],
    /// Everything that was sent, in order.
    pub sent: Vec<Carried>,
    /// How late the loop is that runs the timers.
    pub timers_late: Duration,
    began: Instant,
    on_the_way: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    number: u64,
    random: u64,
    out: Outbox,
}

impl World {
    /// Makes two sides that do not know each other, and starts the clock.
    pub fn new(seed: u64) -> Self {
        clock::start(START);
        let side = |n: u64| {
            let private_key = PrivateKey::generate().unwrap();
            let seed = seed * 2 + n;
            Side {
                engine: Engine::new(EngineConfig::new(Some(private_key.clone()), seed)),
                private_key,
                address: format!("192.0.2.{n}:5187{n}").parse().unwrap(),
                delivered: Vec::new(),
                seed,
            }
        };
        Self {
            sides: [side(0), side(1)],
            paths: [Path::default(); 2],
            sent: Vec::new(),
            timers_late: Duration::ZERO,
            began: Instant::now(),
            on_the_way: BTreeMap::new(),
            number: 0,
            random: seed,
            out: Outbox::new(),
        }
    }

    /// Makes two sides with a session that side 1 has begun: what side 0 sent first was for nobody.
    pub fn connected(seed: u64) -> Self {
        let mut world = Self::new(seed);
        world.introduce(0);
        world.run(Duration::from_millis(100));
        world.introduce(1);
        world.run(Duration::from_secs(1));
        for side in &world.sides {
            assert_eq!(side.engine.counters().handshakes, 1, "one session");
        }
        world
    }

    /// Makes the other side a peer of side `n`.
    pub fn introduce(&mut self, n: usize) {
        let other = &self.sides[1 - n];
        let prefix = format!("10.{}.0.0/24", 1 - n).parse().unwrap();
        let update = PeerUpdate {
            endpoint: Some(other.address),
            allowed_ips: vec![AllowedIpUpdate::Add(prefix)],
            ..PeerUpdate::new(other.key())
        };
        self.update(n, update);
    }

    /// Changes the other side as a peer of side `n`.
    pub fn update(&mut self, n: usize, update: PeerUpdate) {
        let request = SetRequest {
            peers: vec![update],
            ..SetRequest::default()
        };
        self.sides[n].engine.apply(Now::read(), &request).unwrap();
    }

    /// Ends side `n` and starts it anew, with the mark that it left on disk.
    pub fn restart(&mut self, n: usize, newest_stamp: Duration) {
        let side = &mut self.sides[n];
        side.seed += 1000;
        side.engine = Engine::new(EngineConfig {
            newest_stamp,
            ..EngineConfig::new(Some(side.private_key.clone()), side.seed)
        });
        self.introduce(n);
    }

    /// Returns the time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Hands side `from` a packet for the other; returns the packet's number.
    pub fn send(&mut self, from: usize) -> u64 {
        self.number += 1;
        let number = self.number;
        let mut packet = [0; 28];
        packet[0] = 0x45;
        packet[3] = 28;
        packet[12..16].copy_from_slice(&[10, from as u8, 0, 1]);
        packet[16..20].copy_from_slice(&[10, 1 - from as u8, 0, 1]);
        packet[20..].copy_from_slice(&number.to_be_bytes());
        let now = Now::read();
        self.sides[from]
            .engine
            .handle_tun_packet(now, &packet, &mut self.out);
        self.carry(from);
        number
    }

    /// Hands side `to` a datagram as if it came from `source`; returns the answers, unsent.
    pub fn inject(&mut self, to: usize, source: SocketAddr, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.sides[to]
            .engine
            .handle_datagram(Now::read(), source, bytes, &mut self.out);
        let answers = self.out.datagrams().map(|(_, bytes)| bytes.to_vec());
        let answers = answers.collect();
        self.out.clear();
        answers
    }

    /// Lets everything happen that is due in the time given, and returns what was sent in it.
    pub fn run(&mut self, time: Duration) -> &[Carried] {
        let first = self.sent.len();
        let end = Instant::now() + time;
        loop {
            let now = Instant::now();
            let arrival = self.on_the_way.keys().next().map(|(at, _)| *at);
            let timers = [0, 1].map(|n| {
                let due = self.sides[n].engine.poll_timeout();
                due.map(|at| at + self.timers_late)
            });
            let next = arrival
                .into_iter()
                .chain(timers.into_iter().flatten())
                .min();
            let Some(next) = next.filter(|next| *next <= end) else {
                clock::advance(end.saturating_duration_since(now));
                return &self.sent[first..];
            };
            clock::advance(next.saturating_duration_since(now));
            let now = Now::read();
            while let Some(entry) = self.on_the_way.first_entry()
                && entry.key().0 <= now.monotonic
            {
                let (to, bytes) = entry.remove();
                let source = self.sides[1 - to].address;
                let side = &mut self.sides[to];
                side.engine
                    .handle_datagram(now, source, &bytes, &mut self.out);
                self.carry(to);
            }
            for (n, due) in timers.into_iter().enumerate() {
                if due.is_some_and(|at| at <= now.monotonic) {
                    self.sides[n].engine.handle_timers(now, &mut self.out);
                    self.carry(n);
                }
            }
        }
    }

    /// Returns a number below `bound`, the same in each run of a seed.
    pub fn random(&mut self, bound: u64) -> u64 {
        // SplitMix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// Takes what side `from` has put out: its datagrams to the network, its packets to its TUN.
    fn carry(&mut self, from: usize) {
        for packet in self.out.packets() {
            let number = packet[20..28].try_into().unwrap();
            self.sides[from].delivered.push(u64::from_be_bytes(number));
        }
        let datagrams: Vec<Vec<u8>> = self
            .out
            .datagrams()
            .map(|(_, bytes)| bytes.to_vec())
            .collect();
        self.out.clear();
        for bytes in datagrams {
            self.sent.push(Carried {
                at: self.elapsed(),
                from,
                bytes: bytes.clone(),
            });
            let path = self.paths[from];
            let lost = self.random(1000) < path.loss_per_mille;
            let jitter = path.jitter.mul_f64(self.random(1001) as f64 / 1000.0);
            if !lost {
                self.number += 1;
                let key = (Instant::now() + path.delay + jitter, self.number);
                self.on_the_way.insert(key, (1 - from, bytes));
            }
        }
    }
}
