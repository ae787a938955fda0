//! The WireGuard device as a state machine: packets, datagrams, time and requests in; packets and
//! datagrams out. It has no sockets, files or clock of its own.

mod backlog;
mod config;
mod elsewhere;
mod paths;
mod report;
mod timers;
mod wheel;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use warren_core::AllowedIps;
use warren_keyring::{PrivateKey, PublicKey};

pub use config::ApplyError;
pub use paths::{PathQuery, WayOut};

use crate::clock::StampClock;
use crate::drops::{DropReason, Drops};
use crate::inner::InnerHeader;
use crate::key_pairs::MessageLimits;
use crate::message::{DATA_OVERHEAD, Message};
use crate::offload::{Offload, Segments};
use crate::outbox::Outbox;
use crate::outcome::OpenedKind;
use crate::pace::Pace;
use crate::path_notes::DropNotes;
use crate::path_probe::ProbeMessage;
use crate::peer::{Context, Peer};
use crate::queue::QueuePool;
use crate::random::Random;
use crate::session::Identity;
use crate::shards::{Place, ShardId};
use crate::source::Endpoint;
use crate::time::Now;
use crate::unreachable::Told;
use backlog::Backlog;
use elsewhere::Elsewhere;
use timers::Timers;

/// The largest inner packet: the length field of IPv4.
pub(crate) const MAX_PACKET: usize = 65_535;

/// What an engine is made of.
#[derive(Debug)]
pub struct EngineConfig {
    /// The device's key; `None` leaves it without one until it is set.
    pub private_key: Option<PrivateKey>,
    /// The seed of session indices and of the jitter of retries. Not a secret, but it must differ
    /// from that of the process before.
    pub seed: u64,
    /// The top bit of all session indices: two generations of one device can share a UDP port.
    pub generation: bool,
    /// The memory for packets that wait for handshakes, over all peers, in bytes.
    pub queue_limit_bytes: usize,
    /// The inner MTU in bytes of a peer whose path is not known yet.
    pub default_inner_mtu_bytes: usize,
    /// A time since the Unix epoch that no handshake was stamped later than; what is stamped from
    /// now on is later, also where the wall clock is behind it.
    pub newest_stamp: Duration,
    /// How many messages one key pair is good for.
    pub message_limits: MessageLimits,
    /// Which of the device's shards it is.
    pub place: Place,
}

impl EngineConfig {
    /// Makes the configuration that the daemon uses: 8 MiB of queues, an inner MTU of 1420.
    pub fn new(private_key: Option<PrivateKey>, seed: u64) -> Self {
        Self {
            private_key,
            seed,
            generation: false,
            queue_limit_bytes: 8 << 20,
            default_inner_mtu_bytes: 1420,
            newest_stamp: Duration::ZERO,
            message_limits: MessageLimits::default(),
            place: Place::ALONE,
        }
    }
}

/// What the device has counted since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets read from the TUN, each of those of a super-packet counted.
    pub tun_rx_packets: u64,
    /// Packets accepted from peers, for the TUN.
    pub tun_tx_packets: u64,
    /// Questions about the path, and answers to ours, taken from peers.
    pub path_probes: u64,
    /// Datagrams received.
    pub udp_rx_datagrams: u64,
    /// Datagrams made.
    pub udp_tx_datagrams: u64,
    /// Of those, the ones that are too large to arrive in one piece.
    pub udp_tx_fragmented: u64,
    /// Handshakes completed, in either role.
    pub handshakes: u64,
    /// How often a peer's endpoint followed its packets.
    pub roamed: u64,
    /// What was dropped, by reason.
    pub drops: Drops,
}

impl Counters {
    /// Adds what another shard of the device has counted.
    pub(crate) fn add(&mut self, other: &Self) {
        self.tun_rx_packets += other.tun_rx_packets;
        self.tun_tx_packets += other.tun_tx_packets;
        self.path_probes += other.path_probes;
        self.udp_rx_datagrams += other.udp_rx_datagrams;
        self.udp_tx_datagrams += other.udp_tx_datagrams;
        self.udp_tx_fragmented += other.udp_tx_fragmented;
        self.handshakes += other.handshakes;
        self.roamed += other.roamed;
        self.drops.add(&other.drops);
    }
}

/// A peer's place in the device. It may be used again after the peer is gone. The top bits are 0 for
/// a peer of this shard, see [`elsewhere`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PeerId(u32);

/// A WireGuard device without I/O.
///
/// Feed it and send what it puts into the outbox; call [`Engine::handle_timers`] when
/// [`Engine::poll_timeout`] says so.
pub struct Engine {
    private_key: Option<PrivateKey>,
    public_key: Option<PublicKey>,
    identity: Option<Identity>,
    generation: bool,
    listen_port: u16,
    fwmark: u32,
    default_inner_mtu: usize,
    stamps: StampClock,
    message_limits: MessageLimits,
    peers: Vec<Option<Box<Peer>>>,
    /// Places that are free again.
    free: Vec<u32>,
    by_key: BTreeMap<PublicKey, PeerId>,
    by_index: HashMap<u32, PeerId>,
    allowed_ips: AllowedIps<PeerId>,
    timers: Timers,
    backlog: Backlog,
    /// The peers that a handshake is to be begun with, and those of them that packets wait for.
    starts: VecDeque<PeerId>,
    wanted: VecDeque<PeerId>,
    path_queries: VecDeque<PeerId>,
    pool: QueuePool,
    pace: Pace,
    told: Told,
    counters: Counters,
    changed: bool,
    random: Random,
    scratch: Box<[u8]>,
    elsewhere: Elsewhere,
}

impl Engine {
    /// Makes a device without peers.
    pub fn new(config: EngineConfig) -> Self {
        let stamps = StampClock::new(config.newest_stamp);
        let identity = config
            .private_key
            .as_ref()
            .map(|key| Identity::new(key, 0, stamps));
        Self {
            public_key: config.private_key.as_ref().map(PrivateKey::public_key),
            private_key: config.private_key,
            identity,
            generation: config.generation,
            listen_port: 0,
            fwmark: 0,
            default_inner_mtu: config.default_inner_mtu_bytes,
            stamps,
            message_limits: config.message_limits,
            peers: Vec::new(),
            free: Vec::new(),
            by_key: BTreeMap::new(),
            by_index: HashMap::new(),
            allowed_ips: AllowedIps::new(),
            timers: Timers::new(),
            backlog: Backlog::new(),
            starts: VecDeque::new(),
            wanted: VecDeque::new(),
            path_queries: VecDeque::new(),
            pool: QueuePool::new(config.queue_limit_bytes),
            pace: Pace::default(),
            told: Told::default(),
            counters: Counters::default(),
            changed: false,
            random: Random::new(config.seed),
            scratch: vec![0; MAX_PACKET + 16].into(),
            elsewhere: Elsewhere::new(config.place),
        }
    }

    /// Takes a packet from the TUN and sends it to the peer that has its destination. Returns the
    /// shard that is to take it instead, where that peer is another one's.
    #[inline]
    pub fn handle_tun_packet(
        &mut self,
        now: Now,
        packet: &[u8],
        out: &mut Outbox,
    ) -> Option<ShardId> {
        let header = match InnerHeader::parse(packet) {
            Some(header) if packet.len() <= MAX_PACKET => header,
            _ => return self.drop_from_tun(DropReason::TunMalformed, 1),
        };
        let Some(&id) = self.allowed_ips.lookup(header.destination) else {
            self.told.tell(now.monotonic, packet, out);
            return self.drop_from_tun(DropReason::NoRoute, 1);
        };
        if !id.is_here() {
            return Some(self.shard_of(id));
        }
        self.counters.tun_rx_packets += 1;
        self.send_to_peer(id, now, out, |peer, ctx| peer.send(ctx, packet));
        None
    }

    /// Takes a super-packet from the TUN, or a packet whose checksum is not computed yet, and sends
    /// the packets that it is made of; `offload` is `None` where nobody knows what those are. Returns
    /// what [`Engine::handle_tun_packet`] does.
    #[inline]
    pub fn handle_tun_frame(
        &mut self,
        now: Now,
        frame: &mut [u8],
        offload: Option<Offload>,
        out: &mut Outbox,
    ) -> Option<ShardId> {
        if offload == Some(Offload::default()) {
            return self.handle_tun_packet(now, frame, out);
        }
        let header = InnerHeader::parse(frame).filter(|_| frame.len() <= MAX_PACKET);
        let owner = header.and_then(|header| self.allowed_ips.lookup(header.destination).copied());
        // Before anything in the frame is changed: the other shard does that.
        if let Some(id) = owner
            && !id.is_here()
        {
            return Some(self.shard_of(id));
        }
        let segments = offload.and_then(|offload| Segments::new(frame, offload));
        let (Some(_), Some(mut segments)) = (header, segments) else {
            return self.drop_from_tun(DropReason::TunMalformed, 1);
        };
        let packets = segments.count() as u64;
        let Some(id) = owner else {
            self.told.tell(now.monotonic, frame, out);
            return self.drop_from_tun(DropReason::NoRoute, packets);
        };
        self.counters.tun_rx_packets += packets;
        self.send_to_peer(id, now, out, |peer, ctx| {
            let mut wanted = false;
            while let Some(packet) = segments.next_segment() {
                wanted |= peer.send(ctx, packet);
            }
            wanted
        });
        None
    }

    #[cold]
    fn drop_from_tun(&mut self, reason: DropReason, packets: u64) -> Option<ShardId> {
        self.counters.tun_rx_packets += packets;
        self.counters.drops.count_many(reason, packets);
        None
    }

    /// Takes a datagram from the network. What it carries goes to the TUN only if it authenticates
    /// and its source belongs to the very peer that sent it.
    #[inline]
    pub fn handle_datagram(
        &mut self,
        now: Now,
        source: impl Into<Endpoint>,
        datagram: &[u8],
        out: &mut Outbox,
    ) {
        let source = source.into();
        self.counters.udp_rx_datagrams += 1;
        let result = match Message::parse(datagram) {
            Some(Message::Data { receiver }) => {
                self.handle_data(now, source, datagram, receiver, out)
            }
            Some(Message::Initiation | Message::Response { .. }) => {
                self.handle_handshake(now, source, datagram, out)
            }
            Some(Message::CookieReply { receiver }) => {
                self.handle_cookie_reply(now, datagram, receiver, out)
            }
            None => Err(DropReason::DatagramMalformed),
        };
        if let Err(reason) = result {
            self.counters.drops.count(reason);
        }
    }

    /// Returns what was counted since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Returns the device's public key, if it has a key.
    pub fn public_key(&self) -> Option<PublicKey> {
        self.public_key
    }

    /// Returns the number of peers, those of other shards included.
    pub fn peer_count(&self) -> usize {
        self.by_key.len()
    }

    /// Goes through the addresses of the peers that have an endpoint, those of other shards included.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.own_addresses().chain(self.elsewhere.addresses())
    }

    /// Returns the bytes of packets that wait for handshakes now.
    pub fn waiting_bytes(&self) -> usize {
        self.pool.used_bytes()
    }

    /// Returns the time since the Unix epoch that a handshake would be stamped with now. It goes
    /// with the steady clock, whatever the wall clock does.
    pub fn newest_stamp(&self) -> Duration {
        self.stamps.now()
    }

    /// Tells whether something worth saving has changed since the last call: what was set, or an
    /// endpoint that was learned.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    #[inline]
    fn handle_data(
        &mut self,
        now: Now,
        source: Endpoint,
        data: &[u8],
        receiver: u32,
        out: &mut Outbox,
    ) -> Result<(), DropReason> {
        let id = self.peer_by_index(receiver)?;
        let (opened, roamed) = self.with_peer(id, now, out, |peer, ctx| {
            peer.open(ctx, source, data, receiver)
        })?;
        self.note_roamed(roamed);
        self.counters.handshakes += u64::from(opened.completed);
        let len = match opened.kind {
            OpenedKind::Keepalive => return Ok(()),
            OpenedKind::Malformed => {
                let inside = &out.packets.last_room()[..data.len() - DATA_OVERHEAD];
                match ProbeMessage::parse(inside) {
                    Some(probe) => {
                        self.counters.path_probes += 1;
                        self.with_peer(id, now, out, |peer, ctx| peer.handle_probe(ctx, probe));
                        return Ok(());
                    }
                    None => Err(DropReason::InnerMalformed),
                }
            }
            OpenedKind::Packet(len) => self.accept_inner(id, &out.packets.last_room()[..len]),
        };
        match len {
            Ok(len) => {
                out.packets.commit(len, ());
                self.counters.tun_tx_packets += 1;
                Ok(())
            }
            Err(reason) => {
                if let Some(Some(peer)) = self.peers.get_mut(id.slot()) {
                    DropNotes::note(&mut peer.dropped, now.monotonic, reason);
                }
                Err(reason)
            }
        }
    }

    /// Checks an authentic packet of a peer and returns its length without padding.
    #[inline]
    fn accept_inner(&self, id: PeerId, packet: &[u8]) -> Result<usize, DropReason> {
        let header = InnerHeader::parse(packet).ok_or(DropReason::InnerMalformed)?;
        if header.has_martian_source() {
            return Err(DropReason::MartianSource);
        }
        // INVARIANT: the owner of the longest match, not any peer that has a match: a narrower
        // prefix of another peer must not be spoken for.
        if self.allowed_ips.lookup(header.source) != Some(&id) {
            return Err(DropReason::WrongSource);
        }
        Ok(header.len)
    }

    fn handle_cookie_reply(
        &mut self,
        now: Now,
        reply: &[u8],
        receiver: u32,
        out: &mut Outbox,
    ) -> Result<(), DropReason> {
        let id = self.peer_by_index(receiver)?;
        self.with_peer(id, now, out, |peer, ctx| {
            let session = peer.session.as_mut().ok_or(DropReason::NoPrivateKey)?;
            session.handle_cookie_reply(ctx.now.monotonic, reply)
        })
    }

    fn note_roamed(&mut self, roamed: bool) {
        if roamed {
            self.counters.roamed += 1;
            self.changed = true;
        }
    }

    #[inline]
    fn peer_by_index(&self, receiver: u32) -> Result<PeerId, DropReason> {
        self.by_index
            .get(&(receiver >> 8))
            .copied()
            .ok_or(DropReason::UnknownIndex)
    }

    /// Hands packets over to a peer, which tells whether a handshake is to be begun in its turn. So is
    /// its session made, which costs a key exchange too.
    #[inline]
    fn send_to_peer(
        &mut self,
        id: PeerId,
        now: Now,
        out: &mut Outbox,
        send: impl FnOnce(&mut Peer, &mut Context<'_>) -> bool,
    ) {
        let wanted = match self.has_session(id) || self.pace.allows(now.monotonic) {
            true => self.with_peer(id, now, out, send),
            false => self.lend_to_peer(id, now, out, send),
        };
        if wanted {
            self.enqueue_wanted(id, now.monotonic);
        }
    }

    #[inline]
    fn has_session(&self, id: PeerId) -> bool {
        let peer = self.peers[id.slot()].as_ref();
        peer.is_some_and(|peer| peer.session.is_some())
    }

    /// Lets a peer do something, with a session if the device has a key.
    #[inline]
    fn with_peer<R>(
        &mut self,
        id: PeerId,
        now: Now,
        out: &mut Outbox,
        work: impl FnOnce(&mut Peer, &mut Context<'_>) -> R,
    ) -> R {
        if !self.has_session(id) {
            self.make_session(now.monotonic, id);
        }
        self.lend_to_peer(id, now, out, work)
    }

    /// Lends the peer what it needs, and looks after its timers afterwards.
    ///
    /// INVARIANT: an id of this shard that is in `by_key`, `by_index` or `allowed_ips` has a peer; a
    /// peer leaves all three before it leaves `peers`.
    #[inline]
    fn lend_to_peer<R>(
        &mut self,
        id: PeerId,
        now: Now,
        out: &mut Outbox,
        work: impl FnOnce(&mut Peer, &mut Context<'_>) -> R,
    ) -> R {
        let made_before = out.datagrams().len();
        let Some(Some(peer)) = self.peers.get_mut(id.slot()) else {
            unreachable!("peer {id:?} is looked up but gone");
        };
        let mut ctx = Context {
            now,
            out,
            drops: &mut self.counters.drops,
            fragmented: &mut self.counters.udp_tx_fragmented,
            pool: &mut self.pool,
            pace: &mut self.pace,
            told: &mut self.told,
            has_key: self.identity.is_some(),
            scratch: &mut self.scratch,
        };
        let result = work(peer, &mut ctx);
        self.timers.schedule(id, peer, now.monotonic);
        if peer.path_query_due(now.monotonic) {
            peer.path_asked_at = Some(now.monotonic);
            self.path_queries.push_back(id);
        }
        self.counters.udp_tx_datagrams += (out.datagrams().len() - made_before) as u64;
        result
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("public_key", &self.public_key)
            .field("peers", &self.by_key.len())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}
