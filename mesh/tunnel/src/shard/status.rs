//! What a shard tells of itself.

use std::fmt;
use std::time::Duration;

use warren_core::peer_path::PeerPath;
use warren_keyring::PublicKey;

use crate::engine::Counters;
use crate::offload::Offloads;
use crate::shards::ShardId;
use crate::spin::SpinCounters;
use crate::udp::UdpCounters;

/// A picture of a shard, or of all of a device's, for the status socket.
#[derive(Clone, Debug)]
pub struct ShardStatus {
    /// The device's public key.
    pub public_key: Option<PublicKey>,
    /// The UDP port.
    pub listen_port: u16,
    /// The number of peers of all shards.
    pub peers: usize,
    /// What of it is of each shard, in the order of their numbers.
    pub shards: Vec<ShardSummary>,
    /// The TUN's MTU in bytes; `None` while there is no TUN.
    pub mtu_bytes: Option<u32>,
    /// Bytes of packets that wait for handshakes.
    pub waiting_bytes: usize,
    /// What a handshake would be stamped with now, as time since the Unix epoch.
    pub newest_stamp: Duration,
    /// What the engine counted.
    pub counters: Counters,
    /// What the sockets counted.
    pub udp: UdpCounters,
    /// Packets that the TUN did not take, and failed reads of it.
    pub tun_errors: u64,
    /// The offloads in use.
    pub offloads: Offloads,
    /// How long the loop polls at most before it sleeps; zero: never.
    pub spin_limit: Duration,
    /// What that was good for.
    pub spin: SpinCounters,
    /// How often packets went through the kernel together.
    pub frames: FrameCounters,
    /// The way to each peer of which there is something to tell.
    pub peer_paths: Vec<PeerPath>,
}

impl ShardStatus {
    /// Adds what the next shard of the same device tells.
    pub(crate) fn merge(&mut self, other: Self) {
        self.shards.extend(other.shards);
        self.waiting_bytes += other.waiting_bytes;
        self.newest_stamp = self.newest_stamp.max(other.newest_stamp);
        self.counters.add(&other.counters);
        self.udp.add(&other.udp);
        self.tun_errors += other.tun_errors;
        self.offloads = self.offloads.both(other.offloads);
        self.frames.tun_rx += other.frames.tun_rx;
        self.frames.tun_tx += other.frames.tun_tx;
        self.frames.udp_rx += other.frames.udp_rx;
        self.frames.udp_tx += other.frames.udp_tx;
        self.spin.in_time += other.spin.in_time;
        self.spin.in_vain += other.spin.in_vain;
        self.peer_paths.extend(other.peer_paths);
        self.peer_paths.sort_by_key(|path| path.public_key);
    }
}

/// What one shard has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardSummary {
    /// Which one.
    pub shard: ShardId,
    /// Its own peers.
    pub peers: usize,
    /// Whether it reads a TUN queue of its own; else the first one reads for it.
    pub reads_tun: bool,
    /// Packets and super-packets that it has read from the TUN.
    pub tun_rx_frames: u64,
    /// Datagrams and trains of them that it has received.
    pub udp_rx_messages: u64,
    /// What it has handed over to other shards.
    pub handed_over: u64,
}

impl fmt::Display for ShardSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} peers={} tun_rx_frames={} udp_rx_messages={} handed_over={}",
            self.shard.number(),
            self.peers,
            self.tun_rx_frames,
            self.udp_rx_messages,
            self.handed_over
        )
    }
}

/// What the kernel moved at once: each counts once, whatever it is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameCounters {
    /// Packets and super-packets read from the TUN.
    pub tun_rx: u64,
    /// Packets and super-packets written to it.
    pub tun_tx: u64,
    /// Datagrams and trains of them received.
    pub udp_rx: u64,
    /// Datagrams and trains of them sent.
    pub udp_tx: u64,
}
