//! What a shard tells of itself.

use std::time::Duration;

use warren_core::peer_path::PeerPath;
use warren_keyring::PublicKey;

use crate::engine::Counters;
use crate::offload::Offloads;
use crate::spin::SpinCounters;
use crate::udp::UdpCounters;

/// A picture of the shard, for the status socket.
#[derive(Clone, Debug)]
pub struct ShardStatus {
    /// The device's public key.
    pub public_key: Option<PublicKey>,
    /// The UDP port.
    pub listen_port: u16,
    /// The number of peers.
    pub peers: usize,
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
