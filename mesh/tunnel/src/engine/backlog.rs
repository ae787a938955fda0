//! Handshakes that were admitted and wait for their key exchange: a few are done at a time, so that
//! a burst of them, honest or not, never holds up the data for longer than that takes.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Instant;

use super::{Engine, PeerId};
use crate::drops::DropReason;
use crate::gate::{Class, Verdict};
use crate::message::{COOKIE_REPLY_LEN, INITIATION_LEN, Message};
use crate::outbox::Outbox;
use crate::source::Endpoint;
use crate::time::Now;

/// How many key exchanges are done at once: one takes a responder 135 us.
const AT_ONCE: usize = 8;
/// From how many that wait on no more join them without a cookie while their time is limited: beside
/// data, which leaves a sixteenth of a core at best, that is a wait of 140 ms.
const LONG: usize = 64;
/// How many handshakes of each class wait: as many as may be admitted in a second.
const MAX_WAITING: usize = 4096;

#[derive(Debug)]
struct Handshake {
    source: Endpoint,
    message: [u8; INITIATION_LEN],
    len: usize,
}

impl Handshake {
    /// `None` for what is longer than any handshake message.
    fn new(source: Endpoint, bytes: &[u8]) -> Option<Self> {
        let mut message = [0; INITIATION_LEN];
        message.get_mut(..bytes.len())?.copy_from_slice(bytes);
        let len = bytes.len();
        Some(Self {
            source,
            message,
            len,
        })
    }

    fn bytes(&self) -> &[u8] {
        &self.message[..self.len]
    }
}

/// The waiting handshakes, those that prove something ahead. They have their memory from the start.
#[derive(Debug)]
pub(super) struct Backlog {
    proven: VecDeque<Handshake>,
    unproven: VecDeque<Handshake>,
    /// Since when there has always been one.
    since: Option<Instant>,
    /// The last reading of the clock, and what was done under it.
    turn: Option<Instant>,
    done: usize,
    /// Whoever runs the device decides when; see [`Engine::hold_backlog`].
    held: bool,
}

impl Backlog {
    pub(super) fn new() -> Self {
        Self {
            proven: VecDeque::with_capacity(MAX_WAITING),
            unproven: VecDeque::with_capacity(MAX_WAITING),
            since: None,
            turn: None,
            done: 0,
            held: false,
        }
    }

    /// When the next ones are due: at once, in the next round.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.since.filter(|_| !self.held)
    }

    /// Whether a handshake can be done now without waiting.
    fn is_free(&mut self, now: Instant) -> bool {
        if self.turn != Some(now) {
            self.turn = Some(now);
            self.done = 0;
        }
        self.done += 1;
        !self.held && self.since.is_none() && self.done <= AT_ONCE
    }

    /// Whether what proves nothing would wait for long, in the share of time that is left to it.
    fn is_long(&self) -> bool {
        self.held && self.unproven.len() >= LONG
    }

    fn push(
        &mut self,
        now: Instant,
        class: Class,
        source: Endpoint,
        handshake: &[u8],
    ) -> Result<(), DropReason> {
        let queue = match class {
            Class::Proven => &mut self.proven,
            Class::Unproven => &mut self.unproven,
        };
        if queue.len() >= MAX_WAITING {
            return Err(DropReason::HandshakeBacklog);
        }
        let handshake = Handshake::new(source, handshake);
        queue.push_back(handshake.ok_or(DropReason::DatagramMalformed)?);
        self.since.get_or_insert(now);
        Ok(())
    }

    fn pop(&mut self) -> Option<Handshake> {
        let next = self
            .proven
            .pop_front()
            .or_else(|| self.unproven.pop_front());
        if self.proven.is_empty() && self.unproven.is_empty() {
            // The next one has its place in memory that was used before.
            self.proven.clear();
            self.unproven.clear();
            self.since = None;
        }
        next
    }
}

impl Engine {
    /// Tells whether more handshakes have come in this second than are answered without a cookie.
    pub fn is_under_load(&self, now: Now) -> bool {
        let identity = self.identity.as_ref();
        identity.is_some_and(|identity| identity.gate.is_under_load(now.monotonic))
    }

    /// Takes a handshake message: answers it, puts it aside, or drops it.
    pub(super) fn handle_handshake(
        &mut self,
        now: Now,
        source: Endpoint,
        handshake: &[u8],
        out: &mut Outbox,
    ) -> Result<(), DropReason> {
        let awaited = match Message::parse(handshake) {
            Some(Message::Response { receiver }) => self.awaits_response(receiver),
            _ => false,
        };
        let identity = self.identity.as_mut().ok_or(DropReason::NoPrivateKey)?;
        identity.gate.note_congested(self.backlog.is_long());
        let mut cookie = [0; COOKIE_REPLY_LEN];
        let verdict = identity.judge(
            now.monotonic,
            source.address.ip(),
            handshake,
            awaited,
            &mut cookie,
        );
        let unheard = identity.gate.take_unheard();
        if identity.gate.asks_who_is_known() {
            let peers = self.peers.iter().flatten();
            let addresses = peers.filter_map(|peer| Some(peer.endpoint?.ip()));
            let elsewhere = self.elsewhere.addresses();
            identity.gate.know(addresses.chain(elsewhere));
        }
        if let Some(address) = unheard {
            self.call_back(now, address);
            self.call_back_elsewhere(address, out);
        }
        match verdict {
            Verdict::Admit(class) => self.handle_admitted(now, class, source, handshake, out),
            Verdict::Cookie => {
                let room = out.datagrams.room(cookie.len());
                room.ok_or(DropReason::OutboxFull)?.copy_from_slice(&cookie);
                out.datagrams.commit(cookie.len(), source.into());
                self.counters.udp_tx_datagrams += 1;
                Err(DropReason::UnderLoad)
            }
            Verdict::Refuse(reason) => Err(reason),
        }
    }

    /// Does the key exchange of a handshake that may cost one, or puts it aside.
    pub(super) fn handle_admitted(
        &mut self,
        now: Now,
        class: Class,
        source: Endpoint,
        handshake: &[u8],
        out: &mut Outbox,
    ) -> Result<(), DropReason> {
        match self.backlog.is_free(now.monotonic) {
            true => self.complete_handshake(now, source, handshake, out),
            false => self.backlog.push(now.monotonic, class, source, handshake),
        }
    }

    /// Begins a handshake with the peers at an address whose own initiations are not told from
    /// forged ones: to ours only they have the answer.
    pub(super) fn call_back(&mut self, now: Now, address: IpAddr) {
        let cut_off = |id: &PeerId| {
            let peer = self.peers.get(id.slot()).and_then(Option::as_ref);
            peer.is_some_and(|peer| {
                let session = peer.session.as_ref();
                peer.endpoint.is_some_and(|at| at.ip() == address)
                    && !session.is_some_and(|session| session.sendable(now.monotonic))
            })
        };
        let ids: Vec<PeerId> = self.by_key.values().copied().filter(cut_off).collect();
        for id in ids {
            self.enqueue_start(id, now.monotonic);
        }
    }

    /// Holds all key exchanges of handshakes that come in back, until [`Engine::handle_backlog`] is
    /// called for each, or lets the timers do them again.
    pub fn hold_backlog(&mut self, held: bool) {
        self.backlog.held = held;
    }

    /// Does the next of the key exchanges that wait; tells whether there was one, and room for what
    /// comes of it.
    pub fn handle_backlog(&mut self, now: Now, out: &mut Outbox) -> bool {
        if out.is_full() {
            return false;
        }
        let Some(handshake) = self.backlog.pop() else {
            return false;
        };
        let Handshake { source, .. } = handshake;
        if let Err(reason) = self.complete_handshake(now, source, handshake.bytes(), out) {
            self.counters.drops.count(reason);
        }
        true
    }

    /// Does the next few, unless they are held back.
    pub(super) fn handle_due_backlog(&mut self, now: Now, out: &mut Outbox) {
        let mut left = AT_ONCE;
        while left > 0 && !self.backlog.held && self.handle_backlog(now, out) {
            left -= 1;
        }
    }

    /// Does the key exchange of an admitted handshake.
    fn complete_handshake(
        &mut self,
        now: Now,
        source: Endpoint,
        handshake: &[u8],
        out: &mut Outbox,
    ) -> Result<(), DropReason> {
        let roamed = match Message::parse(handshake) {
            Some(Message::Initiation) => {
                let identity = self.identity.as_ref().ok_or(DropReason::NoPrivateKey)?;
                let key = identity.initiator(handshake)?;
                let id = *self.by_key.get(&key).ok_or(DropReason::UnknownPeer)?;
                if !id.is_here() {
                    self.hand_over(id, source, handshake, out);
                    return Ok(());
                }
                self.with_peer(id, now, out, |peer, ctx| {
                    peer.handle_initiation(ctx, source, handshake)
                })?
            }
            Some(Message::Response { receiver }) => {
                let id = self.peer_by_index(receiver)?;
                let roamed = self.with_peer(id, now, out, |peer, ctx| {
                    peer.handle_response(ctx, source, handshake, receiver)
                })?;
                self.counters.handshakes += 1;
                roamed
            }
            _ => return Err(DropReason::DatagramMalformed),
        };
        self.note_roamed(roamed);
        Ok(())
    }

    /// Whether a response to this index would be the answer to an initiation of ours.
    fn awaits_response(&self, receiver: u32) -> bool {
        self.peer_by_index(receiver).is_ok_and(|id| {
            let peer = self.peers.get(id.slot()).and_then(Option::as_ref);
            let session = peer.and_then(|peer| peer.session.as_ref());
            session.is_some_and(|session| session.awaits(receiver))
        })
    }
}
