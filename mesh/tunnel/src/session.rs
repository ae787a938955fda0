//! One peer's Noise session, and the device's own key that all sessions share.
//!
//! This file and its folder alone name boringtun. boringtun does the cryptography, the replay window, and the
//! choice of the key pair to send with; all timers are ours (`schedule.rs`), for its own:
//!
//! - read its own clock, tell no deadline, and are counted in steps of whoever runs them, so that
//!   data and its answer within one step are taken for unanswered or for never received;
//! - rekey a session that nobody uses, and one that was merely quiet for 15 s;
//! - throw all key pairs away 90 s after a handshake began that another one has overtaken;
//! - have no jitter, and stop the persistent keepalive for good once a handshake has failed.
//!
//! So boringtun's clock is advanced only where a handshake begins or is answered, which is where it
//! stamps the new key pair, and never when that could cost a pair that is still good. In between
//! its time stands still, which it does not notice. What else it lacks is added here:
//!
//! - Key pairs are refused by age and by count here, in both directions and whenever timers run.
//! - A handshake does not overwrite the key pair that traffic is on: its ring has eight places and
//!   no regard for what is in them.
//! - A pair that only the peer could have confirmed is not sent with before it is.
//! - A response is taken for the last initiation only, as the reference does: a late one would
//!   leave boringtun with a handshake that never ends.
//! - Packets wait for a handshake outside of it, under one budget for all peers (`queue.rs`).
//! - Its check of handshakes under load answers each with a cookie, counts all sources together, and
//!   reads its own clock: ours is `gate.rs`.
//! - It wipes no key. When keys are to be erased the whole `Tunn` is dropped, its memory filled
//!   with zeros, and a new one made; so is the stack after each handshake. To the new `Tunn` the
//!   peer's last initiation is shown first, so that it refuses older ones as the old `Tunn` did.
//!   Not wiped is a key pair that has left the ring's use but not its place: under unbroken
//!   traffic that is until eight handshakes later.
//! - Its wall clock, which stamps handshakes, can go back: see `clock.rs`.
//!
//! What cannot be added without taking the data path from it: its replay window is 1,024 packets
//! (the reference's is 8,128), checked before decryption inside a type that it keeps to itself.
//! Packets later than that are dropped as replays.

mod identity;

use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::{Tunn, TunnResult};
use warren_keyring::{PresharedKey, PublicKey};

pub(crate) use identity::Identity;
use identity::{Keys, make_tunn};

use crate::drops::DropReason;
use crate::key_pairs::{KeyPair, KeyRing, MessageLimits, next_index};
use crate::message::{
    DATA_OVERHEAD, INITIATION_LEN, MAC2_LEN, counter, is_initiation, sender_index,
};
use crate::outcome::{Opened, OpenedKind, Sealed, Ticked};
use crate::path_notes::PathNotes;
use crate::random::Random;
use crate::schedule::{Due, REKEY_AFTER, REKEY_AFTER_RECEIVING, Schedule};
use crate::wiped::{WipedBox, wipe_stack};

/// How long a cookie is good for.
const COOKIE_LIFE: Duration = Duration::from_secs(120);

/// Returns the room that a message needs which carries `len` bytes.
#[inline]
pub(crate) fn room_for(len: usize) -> usize {
    (len + DATA_OVERHEAD).max(INITIATION_LEN)
}

/// What a session is made of that belongs to one peer.
pub(crate) struct SessionParts<'a> {
    pub(crate) peer: PublicKey,
    pub(crate) preshared_key: Option<&'a PresharedKey>,
    /// 24 bits: they prefix every index that the peer is told to address us by.
    pub(crate) index: u32,
    /// The newest initiation that a former session with the peer has accepted.
    pub(crate) last_initiation: Option<Box<[u8]>>,
    pub(crate) limits: MessageLimits,
    pub(crate) random: Random,
}

/// A peer's session.
pub(crate) struct Session {
    tunn: WipedBox<Tunn>,
    keys: Arc<Keys>,
    peer: PublicKey,
    preshared_key: Option<PresharedKey>,
    limits: MessageLimits,
    ring: KeyRing,
    schedule: Schedule,
    /// The newest local index that boringtun has given.
    issued: u32,
    /// The local index of the last initiation.
    initiated: Option<u32>,
    /// The peer's initiation was answered since then.
    crossed: bool,
    /// boringtun waits for a response.
    awaits_response: bool,
    /// When boringtun was last told the time.
    advanced_at: Option<Instant>,
    cookie_at: Option<Instant>,
    last_initiation: Option<Box<[u8]>>,
    rekey_due: bool,
}

impl Session {
    /// Makes a session without keys.
    pub(crate) fn new(identity: &Identity, parts: SessionParts<'_>) -> Self {
        let keys = Arc::clone(&identity.keys);
        let preshared_key = parts.preshared_key.cloned();
        let mut session = Self {
            tunn: make_tunn(&keys, &parts.peer, preshared_key.as_ref(), parts.index),
            keys,
            peer: parts.peer,
            preshared_key,
            limits: parts.limits,
            ring: KeyRing::default(),
            schedule: Schedule::new(parts.random),
            issued: parts.index << 8,
            initiated: None,
            crossed: false,
            awaits_response: false,
            advanced_at: None,
            cookie_at: None,
            last_initiation: parts.last_initiation,
            rekey_due: false,
        };
        session.recall_initiation();
        session
    }

    /// Ends the session and gives what the next one with this peer has to know.
    pub(crate) fn into_last_initiation(self) -> Option<Box<[u8]>> {
        self.last_initiation
    }

    /// Sets the persistent keepalive; existing keys stay.
    pub(crate) fn set_keepalive(&mut self, now: Instant, interval: Option<Duration>) {
        self.schedule.set_persistent(now, interval);
    }

    /// When to call [`Session::tick`]; `None` when a peer at rest needs nothing. `waiting` tells
    /// that packets wait for a handshake.
    pub(crate) fn deadline(&self, now: Instant, waiting: bool) -> Option<Instant> {
        let own = self.schedule.deadline();
        if waiting && !self.schedule.in_attempt() && !self.sendable(now) {
            let handshake = self.schedule.next_handshake().unwrap_or(now);
            return own.into_iter().chain([handshake]).min();
        }
        own
    }

    /// What was asked of the peer and what came back.
    pub(crate) fn notes(&self) -> &PathNotes {
        self.schedule.notes()
    }

    /// Does the next thing that is due.
    pub(crate) fn tick(&mut self, now: Instant, waiting: bool, dst: &mut [u8]) -> Ticked {
        let message = match self.schedule.due(now) {
            Some(Due::Retry) => self.initiate_now(now, dst),
            Some(Due::GiveUp) => {
                self.schedule.note_given_up();
                if !self.ring.any_valid(now) {
                    self.erase();
                }
                return Ticked {
                    message: None,
                    gave_up: true,
                };
            }
            Some(Due::Erase) => {
                self.erase();
                None
            }
            Some(Due::Handshake) => self.initiate_now(now, dst),
            Some(Due::Keepalive) => {
                let sent = self.seal(now, &[], dst);
                self.schedule.note_keepalive(now);
                match sent {
                    Sealed::Data(len) => Some(len),
                    Sealed::Kept(message) => message,
                    Sealed::NotReady => None,
                }
            }
            Some(Due::PersistentKeepalive) => {
                let message = self.keepalive(now, dst);
                self.schedule.note_sent(now);
                message
            }
            None if waiting && !self.sendable(now) => self.initiate(now, dst),
            None => None,
        };
        Ticked {
            message,
            gave_up: false,
        }
    }

    /// Whether a packet can be sent now.
    #[inline]
    pub(crate) fn sendable(&self, now: Instant) -> bool {
        self.ring.current().is_some_and(|pair| {
            pair.confirmed && pair.is_valid(now) && pair.sent < self.limits.reject_after
        })
    }

    /// Encrypts a packet, already padded, into `dst` of [`room_for`] bytes.
    #[inline]
    pub(crate) fn seal(&mut self, now: Instant, packet: &[u8], dst: &mut [u8]) -> Sealed {
        if !self.sendable(now) {
            return Sealed::NotReady;
        }
        match self.tunn.encapsulate(packet, dst) {
            TunnResult::WriteToNetwork(message) if !is_initiation(message) => {
                let len = message.len();
                if let Some(pair) = self.ring.current_mut() {
                    pair.sent += 1;
                    self.rekey_due |= pair.sent > self.limits.rekey_after
                        || pair.rekey_after.is_some_and(|after| pair.age(now) >= after);
                }
                if packet.is_empty() {
                    self.schedule.note_sent(now);
                } else {
                    self.schedule.note_data_sent(now);
                }
                Sealed::Data(len)
            }
            TunnResult::WriteToNetwork(message) => {
                let (len, local) = (message.len(), sender_index(message));
                self.ring.forget_current();
                self.note_initiation(now, local);
                Sealed::Kept(Some(len))
            }
            _ => {
                self.ring.forget_current();
                Sealed::Kept(None)
            }
        }
    }

    /// Sends a keepalive, or begins a handshake where there is no key pair to send it with.
    pub(crate) fn keepalive(&mut self, now: Instant, dst: &mut [u8]) -> Option<usize> {
        match self.seal(now, &[], dst) {
            Sealed::Data(len) => Some(len),
            Sealed::NotReady => self.initiate(now, dst),
            Sealed::Kept(message) => message,
        }
    }

    /// Begins a handshake, unless one was begun in the last 5 s.
    pub(crate) fn initiate(&mut self, now: Instant, dst: &mut [u8]) -> Option<usize> {
        if self.may_initiate(now) {
            self.initiate_now(now, dst)
        } else {
            None
        }
    }

    /// Whether [`Session::initiate`] would begin a handshake.
    pub(crate) fn may_initiate(&self, now: Instant) -> bool {
        self.schedule.next_handshake().is_none_or(|at| now >= at)
    }

    /// Begins the handshake that what was just sent or received has made due.
    #[inline]
    pub(crate) fn rekey(&mut self, now: Instant, dst: &mut [u8]) -> Option<usize> {
        if std::mem::take(&mut self.rekey_due) && !self.schedule.in_attempt() {
            self.initiate(now, dst)
        } else {
            None
        }
    }

    /// Whether [`Session::rekey`] has something to do.
    #[inline]
    pub(crate) fn is_rekey_due(&self) -> bool {
        self.rekey_due
    }

    /// Forgets when the last handshake was begun: it went where the peer is not.
    pub(crate) fn endpoint_changed(&mut self) {
        self.schedule.forget_last_handshake();
    }

    /// Gives the next packet that boringtun itself has kept, encrypted.
    pub(crate) fn next_kept(&mut self, now: Instant, dst: &mut [u8]) -> Option<usize> {
        if !self.sendable(now) {
            return None;
        }
        match self.tunn.decapsulate(None, &[], dst) {
            TunnResult::WriteToNetwork(message) => {
                let len = message.len();
                if let Some(pair) = self.ring.current_mut() {
                    pair.sent += 1;
                }
                self.schedule.note_data_sent(now);
                Some(len)
            }
            _ => None,
        }
    }

    /// Tells boringtun the time before [`Session::handle_initiation`]; should it want to send an
    /// initiation at that, this is its length.
    pub(crate) fn before_initiation(&mut self, now: Instant, dst: &mut [u8]) -> Option<usize> {
        let (len, local) = self.advance(now, dst)?;
        self.note_initiation(now, local);
        Some(len)
    }

    /// Answers an initiation that the gate has admitted and that is this peer's.
    pub(crate) fn handle_initiation(
        &mut self,
        now: Instant,
        initiation: &[u8],
        dst: &mut [u8],
    ) -> Result<usize, DropReason> {
        self.spare_pair_in_use(now, dst);
        let answer = match self.tunn.decapsulate(None, initiation, dst) {
            TunnResult::WriteToNetwork(response) => Ok((response.len(), sender_index(response))),
            TunnResult::Err(WireGuardError::WrongTai64nTimestamp) => {
                Err(DropReason::HandshakeReplayed)
            }
            _ => Err(DropReason::HandshakeRefused),
        };
        wipe_stack();
        let (len, local) = answer?;
        self.issued = local;
        self.awaits_response = false;
        self.last_initiation = Some(initiation.into());
        self.strip_stale_cookie(now, &mut dst[..len]);
        self.crossed = true;
        self.note_key_pair(now, local, None);
        self.schedule.note_received(now);
        self.schedule.note_response(now);
        Ok(len)
    }

    /// Whether a response to this index is the answer to our last initiation.
    pub(crate) fn awaits(&self, receiver: u32) -> bool {
        self.initiated == Some(receiver)
    }

    /// Takes the response to a handshake of ours; the keepalive that confirms it is the answer.
    pub(crate) fn handle_response(
        &mut self,
        now: Instant,
        response: &[u8],
        receiver: u32,
        dst: &mut [u8],
    ) -> Result<usize, DropReason> {
        if self.initiated != Some(receiver) {
            return Err(DropReason::HandshakeRefused);
        }
        if self.crossed {
            // Of two key pairs made at once, both sides shall stay with the one that they began:
            // boringtun, which sees no difference in age, goes to and fro between them.
            self.advance(now, dst);
        }
        let answer = match self.tunn.decapsulate(None, response, dst) {
            TunnResult::WriteToNetwork(keepalive) => Ok(keepalive.len()),
            _ => Err(DropReason::HandshakeRefused),
        };
        wipe_stack();
        let len = answer?;
        self.initiated = None;
        self.awaits_response = false;
        self.rekey_due = false;
        // Both sides are initiators when handshakes have crossed, and would cross again each time.
        let apart = if self.crossed {
            self.schedule.crossing_jitter()
        } else {
            Duration::ZERO
        };
        self.note_key_pair(now, receiver, Some(REKEY_AFTER + apart));
        self.ring.promote(receiver);
        self.schedule.note_key_pair(now);
        self.schedule.note_completed(now);
        self.schedule.note_received(now);
        self.schedule.note_sent(now);
        Ok(len)
    }

    /// Takes a cookie; the next try of the handshake carries it.
    pub(crate) fn handle_cookie_reply(
        &mut self,
        now: Instant,
        reply: &[u8],
    ) -> Result<(), DropReason> {
        let mut unused = [0; INITIATION_LEN];
        match self.tunn.decapsulate(None, reply, &mut unused) {
            TunnResult::Done => {
                self.cookie_at = Some(now);
                Ok(())
            }
            _ => Err(DropReason::CookieRefused),
        }
    }

    /// Decrypts a data message into `dst` of at least its length.
    #[inline]
    pub(crate) fn open(
        &mut self,
        now: Instant,
        data: &[u8],
        receiver: u32,
        dst: &mut [u8],
    ) -> Result<Opened, DropReason> {
        let pair = self.ring.get(receiver).ok_or(DropReason::NoSession)?;
        if !pair.is_valid(now) || counter(data) >= self.limits.reject_after {
            return Err(DropReason::SessionExpired);
        }
        let ending = pair.is_initiator() && pair.age(now) >= REKEY_AFTER_RECEIVING;
        let kind = match self.tunn.decapsulate(None, data, dst) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                OpenedKind::Packet(packet.len())
            }
            TunnResult::Done => OpenedKind::Keepalive,
            // The outside was checked before: this is about the inside, after authentication.
            TunnResult::Err(WireGuardError::InvalidPacket) => OpenedKind::Malformed,
            TunnResult::Err(WireGuardError::InvalidAeadTag) => {
                return Err(DropReason::DecryptFailed);
            }
            TunnResult::Err(WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter) => {
                return Err(DropReason::Replayed);
            }
            _ => return Err(DropReason::NoSession),
        };
        let completed = self.ring.heard(receiver);
        if completed {
            self.schedule.note_completed(now);
        }
        // Of an older pair's stragglers nothing follows.
        self.rekey_due |= ending
            && self
                .ring
                .current()
                .is_some_and(|pair| pair.local == receiver);
        self.schedule.note_received(now);
        if kind != OpenedKind::Keepalive {
            self.schedule.note_data_received(now);
        }
        Ok(Opened { kind, completed })
    }

    /// Tells boringtun the time, which it stamps the next key pair with, unless that would cost a
    /// pair that is still good. It may want to send an initiation at that: its length and index.
    fn advance(&mut self, now: Instant, dst: &mut [u8]) -> Option<(usize, u32)> {
        let harmful =
            (self.awaits_response && self.ring.any_valid(now)) || self.ring.would_lose_valid(now);
        if harmful {
            return None;
        }
        self.advanced_at = Some(now);
        match self.tunn.update_timers(dst) {
            TunnResult::WriteToNetwork(message) if is_initiation(message) => {
                Some((message.len(), sender_index(message)))
            }
            TunnResult::WriteToNetwork(_) => {
                // A keepalive that our schedule does not ask for. Its number is used up.
                if let Some(pair) = self.ring.current_mut() {
                    pair.sent += 1;
                }
                None
            }
            TunnResult::Err(_) => {
                // By its own clock all keys are too old, and the handshake is.
                self.ring.clear();
                self.awaits_response = false;
                self.initiated = None;
                None
            }
            _ => None,
        }
    }

    fn initiate_now(&mut self, now: Instant, dst: &mut [u8]) -> Option<usize> {
        if let Some((len, local)) = self.advance(now, dst) {
            self.strip_stale_cookie(now, &mut dst[..len]);
            self.note_initiation(now, local);
            return Some(len);
        }
        self.spare_pair_in_use(now, dst);
        let made = match self.tunn.format_handshake_initiation(dst, true) {
            TunnResult::WriteToNetwork(message) => Some((message.len(), sender_index(message))),
            _ => None,
        };
        wipe_stack();
        let (len, local) = made?;
        self.strip_stale_cookie(now, &mut dst[..len]);
        self.note_initiation(now, local);
        Some(len)
    }

    /// Skips the next local index where its place in boringtun's ring is taken by a pair that
    /// traffic is on: an initiation that nobody sees uses it up.
    fn spare_pair_in_use(&mut self, now: Instant, dst: &mut [u8]) {
        if self.ring.is_in_use(next_index(self.issued), now)
            && let TunnResult::WriteToNetwork(message) =
                self.tunn.format_handshake_initiation(dst, true)
        {
            self.issued = sender_index(message);
            self.awaits_response = true;
        }
    }

    fn note_initiation(&mut self, now: Instant, local: u32) {
        self.issued = local;
        self.initiated = Some(local);
        self.crossed = false;
        self.awaits_response = true;
        self.rekey_due = false;
        self.schedule.note_initiation(now);
    }

    fn note_key_pair(&mut self, now: Instant, local: u32, rekey_after: Option<Duration>) {
        self.ring.insert(KeyPair {
            local,
            since: now,
            stamped_at: self.advanced_at.unwrap_or(now),
            rekey_after,
            confirmed: rekey_after.is_some(),
            // The keepalive that confirms it.
            sent: u64::from(rekey_after.is_some()),
        });
    }

    /// A cookie is good for 120 s. Without it the message is as it would be without load: MAC2 is
    /// zero, and nothing else covers it.
    fn strip_stale_cookie(&self, now: Instant, handshake: &mut [u8]) {
        let stale = self
            .cookie_at
            .is_some_and(|at| now.saturating_duration_since(at) >= COOKIE_LIFE);
        if stale {
            let mac2 = handshake.len() - MAC2_LEN;
            handshake[mac2..].fill(0);
        }
    }

    /// Erases every key of every session: those in use, those that were, and those of handshakes.
    fn erase(&mut self) {
        self.tunn = make_tunn(
            &self.keys,
            &self.peer,
            self.preshared_key.as_ref(),
            self.issued >> 8,
        );
        wipe_stack();
        self.ring.clear();
        self.issued &= !0xff;
        self.initiated = None;
        self.awaits_response = false;
        self.advanced_at = None;
        self.cookie_at = None;
        self.rekey_due = false;
        self.schedule.note_erased();
        self.recall_initiation();
    }

    /// Shows a new `Tunn` the newest initiation that was accepted before, or a recording of it, or
    /// of an older one, would be accepted again and draw the endpoint to whoever sent it. The key
    /// pair that comes of it is nobody's: the response is not sent.
    fn recall_initiation(&mut self) {
        let Some(initiation) = &self.last_initiation else {
            return;
        };
        let mut response = [0; INITIATION_LEN];
        if let TunnResult::WriteToNetwork(response) =
            self.tunn.decapsulate(None, initiation, &mut response)
        {
            self.issued = sender_index(response);
        }
        wipe_stack();
    }
}
