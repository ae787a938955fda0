//! One peer: its configuration, its session, and what it counts.

mod endpoint;
mod one_piece;
mod probes;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_keyring::{PresharedKey, PublicKey};

pub(crate) use self::one_piece::OnePiece;
use self::one_piece::outer_overhead;
use crate::drops::{DropReason, Drops};
use crate::inner::padded_len;
use crate::nesting::hops_left;
use crate::outbox::Outbox;
use crate::outcome::{Opened, Sealed};
use crate::pace::Pace;
use crate::path_notes::DropNotes;
use crate::path_probe::{BASE, PathProbe};
use crate::queue::{QueuePool, WaitingQueue};
use crate::session::{Session, room_for};
use crate::source::{Endpoint, Source};
use crate::time::Now;
use crate::unreachable::Told;

/// The shortest time between two initiations of one peer that are both answered.
const INITIATION_EVERY: Duration = Duration::from_millis(20);

/// What the device lends to a peer while it handles one input.
pub(crate) struct Context<'a> {
    pub(crate) now: Now,
    pub(crate) out: &'a mut Outbox,
    pub(crate) drops: &'a mut Drops,
    /// Datagrams that do not arrive in one piece.
    pub(crate) fragmented: &'a mut u64,
    pub(crate) pool: &'a mut QueuePool,
    /// Whether packets may begin more handshakes now.
    pub(crate) pace: &'a mut Pace,
    /// Who was told that there is no way.
    pub(crate) told: &'a mut Told,
    /// Whether the device has a private key.
    pub(crate) has_key: bool,
    pub(crate) scratch: &'a mut [u8],
}

pub(crate) struct Peer {
    pub(crate) public_key: PublicKey,
    pub(crate) preshared_key: Option<PresharedKey>,
    pub(crate) endpoint: Option<SocketAddr>,
    /// The endpoint is reached through this very device, which sends it to another peer if all is well.
    pub(crate) endpoint_within: bool,
    /// It is not well: what is sent there comes back as a packet to be sent there, larger each time. So
    /// nothing is.
    pub(crate) endpoint_loops: bool,
    /// The endpoint is reached by another tunnel of this host, which may lead back here.
    pub(crate) endpoint_in_tunnel: bool,
    /// The address of ours that its last authentic message came to.
    pub(crate) source: Option<Source>,
    /// The way back is by the link that it came by; else the kernel chooses our address.
    pub(crate) source_good: bool,
    /// Where it was before it roamed.
    endpoint_before: Option<SocketAddr>,
    /// A source that was followed through the device itself, and when that was noticed.
    not_followed: Option<(SocketAddr, Instant)>,
    pub(crate) keepalive_seconds: u16,
    /// `None` while the device has no private key, and until it is needed.
    pub(crate) session: Option<Session>,
    /// The newest initiation that the session before has accepted.
    pub(crate) last_initiation: Option<Box<[u8]>>,
    /// The 24 bits that prefix the session's indices.
    pub(crate) index: Option<u32>,
    pub(crate) waiting: WaitingQueue,
    /// The largest inner packet that leaves in one piece, in bytes; padding stops there.
    pub(crate) inner_mtu: usize,
    pub(crate) tx_bytes: u64,
    pub(crate) rx_bytes: u64,
    pub(crate) last_handshake: Option<Now>,
    /// When the device's timers call on it next.
    pub(crate) deadline: Option<Instant>,
    /// When its path was last asked for; `None` after the endpoint changed.
    pub(crate) path_asked_at: Option<Instant>,
    /// When the last initiation of the peer was answered.
    pub(crate) initiation_at: Option<Instant>,
    /// It is in the device's list of handshakes to begin.
    pub(crate) start_pending: bool,
    /// And in that of those that packets wait for.
    pub(crate) wanted: bool,
    /// Authentic packets of it that were dropped lately.
    pub(crate) dropped: Option<Box<DropNotes>>,
    /// How large packets to it may be that arrive.
    pub(crate) probe: PathProbe,
    /// Whether it may be asked: other WireGuards drop a probe as malformed, and some count it.
    pub(crate) path_probes: bool,
    /// What of that datagrams of data have to heed.
    pub(crate) one_piece: OnePiece,
}

impl Peer {
    pub(crate) fn new(public_key: PublicKey, inner_mtu: usize) -> Self {
        Self {
            public_key,
            preshared_key: None,
            endpoint: None,
            endpoint_within: false,
            endpoint_loops: false,
            endpoint_in_tunnel: false,
            source: None,
            source_good: false,
            endpoint_before: None,
            not_followed: None,
            keepalive_seconds: 0,
            session: None,
            last_initiation: None,
            index: None,
            waiting: WaitingQueue::new(),
            inner_mtu,
            tx_bytes: 0,
            rx_bytes: 0,
            last_handshake: None,
            deadline: None,
            path_asked_at: None,
            initiation_at: None,
            start_pending: false,
            wanted: false,
            dropped: None,
            probe: PathProbe::default(),
            path_probes: false,
            one_piece: OnePiece::UNKNOWN,
        }
    }

    /// Where to send to, and from where.
    #[inline]
    fn way(&self) -> Option<Endpoint> {
        Some(Endpoint {
            address: self.endpoint?,
            source: self.source.filter(|_| self.source_good),
        })
    }

    pub(crate) fn keepalive(&self) -> Option<Duration> {
        (self.keepalive_seconds > 0).then(|| Duration::from_secs(self.keepalive_seconds.into()))
    }

    /// When the timers are to call on it, as far as is known now; `None` for a peer at rest.
    #[inline]
    pub(crate) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        // Nothing can be sent where it is not known to be.
        let (Some(session), Some(_)) = (&self.session, self.endpoint) else {
            return None;
        };
        let waiting = !self.waiting.is_empty();
        // What the outbox had no room for.
        let rest = waiting && !self.endpoint_loops && session.sendable(now);
        // The handshake of one that is in a list is begun from there.
        let due = session.deadline(now, waiting && !self.start_pending);
        let others = self.probe.deadline().into_iter();
        due.into_iter()
            .chain(others)
            .chain(rest.then_some(now))
            .min()
    }

    /// Sends an inner packet, or keeps it until there is a session. Tells, once, that the device is
    /// to begin a handshake soon.
    #[inline]
    pub(crate) fn send(&mut self, ctx: &mut Context<'_>, packet: &[u8]) -> bool {
        let way = self.way();
        if !ctx.has_key {
            ctx.drops.count(DropReason::NoPrivateKey);
            return false;
        }
        let Some(endpoint) = way else {
            ctx.drops.count(DropReason::NoEndpoint);
            ctx.told.tell(ctx.now.monotonic, packet, ctx.out);
            return false;
        };
        if self.endpoint_loops {
            ctx.drops.count(DropReason::EndpointLoop);
            return false;
        }
        let hops = hops_around(self.endpoint_in_tunnel, packet);
        if hops == Some(0) {
            ctx.drops.count(DropReason::EndpointLoop);
            return false;
        }
        // What has waited goes first.
        let waits = !self.waiting.is_empty() && {
            self.send_waiting(ctx);
            !self.waiting.is_empty()
        };
        let Some(session) = &mut self.session else {
            self.waiting.push(packet, ctx.pool, ctx.drops);
            return self.want_start();
        };
        let padded = padded_len(packet.len(), self.inner_mtu);
        let packet_padded = if padded == packet.len() {
            packet
        } else {
            ctx.scratch[..packet.len()].copy_from_slice(packet);
            ctx.scratch[packet.len()..padded].fill(0);
            &ctx.scratch[..padded]
        };
        let Some(room) = ctx.out.datagrams.room(room_for(padded)) else {
            ctx.drops.count(DropReason::OutboxFull);
            return false;
        };
        let sealed = match waits {
            true => Sealed::NotReady,
            false => session.seal(ctx.now.monotonic, packet_padded, room),
        };
        let mut wanted = false;
        let message = match sealed {
            Sealed::Data(len) => Some(len),
            Sealed::Kept(message) => message,
            Sealed::NotReady => {
                self.waiting.push(packet, ctx.pool, ctx.drops);
                let now = ctx.now.monotonic;
                if session.sendable(now) {
                    None
                } else if ctx.pace.allows(now) {
                    let initiation = session.initiate(now, room);
                    initiation.inspect(|_| ctx.pace.note_begun())
                } else {
                    wanted = session.may_initiate(now);
                    None
                }
            }
        };
        if let Some(len) = message {
            self.one_piece.commit(ctx, len, endpoint, hops);
            self.tx_bytes += len as u64;
        }
        if self.path_probes
            && padded + outer_overhead(endpoint.address) > BASE as usize
            && self.probe.is_due(ctx.now.monotonic)
        {
            self.probe.begin(ctx.now.monotonic);
            self.send_probes(ctx);
        }
        self.rekey_if_due(ctx);
        wanted && self.want_start()
    }

    /// Wants to be begun with before those that nobody waits for; tells whether that is new.
    #[cold]
    fn want_start(&mut self) -> bool {
        self.start_pending = true;
        !std::mem::replace(&mut self.wanted, true)
    }

    /// Sends what has waited for a session, as much as the outbox takes.
    pub(crate) fn send_waiting(&mut self, ctx: &mut Context<'_>) {
        let Some(endpoint) = self.way().filter(|_| !self.endpoint_loops) else {
            return;
        };
        let Some(session) = &mut self.session else {
            return;
        };
        let now = ctx.now.monotonic;
        let (one_piece, in_tunnel) = (self.one_piece, self.endpoint_in_tunnel);
        while !ctx.out.is_full()
            && let Some(room) = ctx.out.datagrams.room(room_for(65_535))
            && let Some(len) = session.next_kept(now, room)
        {
            one_piece.commit(ctx, len, endpoint, None);
            self.tx_bytes += len as u64;
        }
        while session.sendable(now) && !ctx.out.is_full() {
            let Some(len) = self.waiting.peek(ctx.pool, ctx.scratch) else {
                return;
            };
            let hops = hops_around(in_tunnel, &ctx.scratch[..len]);
            if hops == Some(0) {
                self.waiting.pop(ctx.pool);
                ctx.drops.count(DropReason::EndpointLoop);
                continue;
            }
            let padded = padded_len(len, self.inner_mtu);
            ctx.scratch[len..padded].fill(0);
            let Some(room) = ctx.out.datagrams.room(room_for(padded)) else {
                return;
            };
            let sealed = session.seal(now, &ctx.scratch[..padded], room);
            if sealed == Sealed::NotReady {
                return;
            }
            self.waiting.pop(ctx.pool);
            let Sealed::Data(len) = sealed else { return };
            one_piece.commit(ctx, len, endpoint, hops);
            self.tx_bytes += len as u64;
        }
    }

    /// Begins a handshake, or keeps an existing session's path open.
    pub(crate) fn start(&mut self, ctx: &mut Context<'_>) {
        self.emit(ctx, |session, now, dst| {
            if session.sendable(now) {
                session.keepalive(now, dst)
            } else {
                session.initiate(now, dst)
            }
        });
    }

    pub(crate) fn tick(&mut self, ctx: &mut Context<'_>) {
        let now = ctx.now.monotonic;
        let changed = self.probe.handle_timeout(now);
        self.note_path_limit(now, changed);
        self.send_probes(ctx);
        self.send_waiting(ctx);
        let waiting = !self.waiting.is_empty();
        let mut gave_up = false;
        self.emit(ctx, |session, now, dst| {
            let ticked = session.tick(now, waiting, dst);
            gave_up = ticked.gave_up;
            ticked.message
        });
        if gave_up {
            tracing::debug!(peer = %self.public_key, "handshake given up after 90 s");
            self.waiting
                .clear(DropReason::HandshakeTimeout, ctx.pool, ctx.drops);
        }
    }

    /// Answers an admitted initiation of this peer.
    pub(crate) fn handle_initiation(
        &mut self,
        ctx: &mut Context<'_>,
        source: Endpoint,
        initiation: &[u8],
    ) -> Result<bool, DropReason> {
        let now = ctx.now.monotonic;
        let flood = self
            .initiation_at
            .is_some_and(|at| now.saturating_duration_since(at) < INITIATION_EVERY);
        if flood {
            return Err(DropReason::HandshakeFlood);
        }
        self.emit(ctx, Session::before_initiation);
        let session = self.session.as_mut().ok_or(DropReason::NoPrivateKey)?;
        let room = ctx.out.datagrams.room(room_for(0));
        let room = room.ok_or(DropReason::OutboxFull)?;
        let len = session.handle_initiation(now, initiation, room)?;
        self.initiation_at = Some(now);
        ctx.out.datagrams.commit(len, source.into());
        self.tx_bytes += len as u64;
        Ok(self.received(now, source, initiation.len()))
    }

    /// Takes a response to our handshake, confirms it, and sends what has waited.
    pub(crate) fn handle_response(
        &mut self,
        ctx: &mut Context<'_>,
        source: Endpoint,
        response: &[u8],
        receiver: u32,
    ) -> Result<bool, DropReason> {
        let session = self.session.as_mut().ok_or(DropReason::NoPrivateKey)?;
        let room = ctx.out.datagrams.room(room_for(0));
        let room = room.ok_or(DropReason::OutboxFull)?;
        let len = session.handle_response(ctx.now.monotonic, response, receiver, room)?;
        ctx.out.datagrams.commit(len, source.into());
        self.tx_bytes += len as u64;
        let roamed = self.received(ctx.now.monotonic, source, response.len());
        self.completed(ctx);
        Ok(roamed)
    }

    /// Decrypts a data message into the outbox's room for a packet; nothing is committed there.
    #[inline]
    pub(crate) fn open(
        &mut self,
        ctx: &mut Context<'_>,
        source: Endpoint,
        data: &[u8],
        receiver: u32,
    ) -> Result<(Opened, bool), DropReason> {
        let session = self.session.as_mut().ok_or(DropReason::NoPrivateKey)?;
        let room = ctx.out.packets.room(data.len());
        let room = room.ok_or(DropReason::OutboxFull)?;
        let opened = session.open(ctx.now.monotonic, data, receiver, room)?;
        let roamed = self.received(ctx.now.monotonic, source, data.len());
        if opened.completed {
            self.completed(ctx);
        }
        self.rekey_if_due(ctx);
        Ok((opened, roamed))
    }

    #[inline]
    fn rekey_if_due(&mut self, ctx: &mut Context<'_>) {
        if self.session.as_ref().is_some_and(Session::is_rekey_due) {
            self.emit(ctx, Session::rekey);
        }
    }

    fn completed(&mut self, ctx: &mut Context<'_>) {
        self.last_handshake = Some(ctx.now);
        tracing::debug!(peer = %self.public_key, "handshake complete");
        self.send_waiting(ctx);
    }

    fn emit(
        &mut self,
        ctx: &mut Context<'_>,
        make: impl FnOnce(&mut Session, Instant, &mut [u8]) -> Option<usize>,
    ) {
        let way = self.way();
        let (Some(endpoint), Some(session)) = (way, &mut self.session) else {
            return;
        };
        // Without room the timers try again.
        if let Some(room) = ctx.out.datagrams.room(room_for(0))
            && let Some(len) = make(session, ctx.now.monotonic, room)
        {
            if self.endpoint_loops {
                return ctx.drops.count(DropReason::EndpointLoop);
            }
            ctx.out.datagrams.commit(len, endpoint.into());
            self.tx_bytes += len as u64;
        }
    }
}

/// The hops that the datagram around a packet may have, as of [`hops_left`]; asked only in another tunnel.
#[inline]
fn hops_around(in_tunnel: bool, packet: &[u8]) -> Option<u8> {
    in_tunnel.then(|| hops_left(packet)).flatten()
}
