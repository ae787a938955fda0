//! One peer's Noise session, and the check of handshakes that all peers share.
//!
//! The only file that names boringtun. What boringtun 0.7.1 lacks is added here:
//!
//! - It reads its own clock and says no deadline: [`Session::deadline`] says when to run it, and
//!   [`Session::needs_tick`] that its picture of the time is too old to be used as it is.
//! - Sessions are refused by age here too, in both directions, should its timers come late.
//! - Retries, their jitter, giving up, persistent keepalive, and noticing that a peer has stopped
//!   answering are ours: it stops its keepalive for good once a handshake has failed, and counts
//!   the age of a session that never was.
//! - A session that only the peer could have confirmed is not sent with before it is: boringtun
//!   does that once eight handshakes have gone round its ring.
//! - Packets wait for a handshake outside of it, under one budget for all peers (`queue.rs`).
//!
//! ```text
//! key pair:   0 s ------ 120 s ------------- 180 s ---------------- 540 s
//!             use        initiator rekeys    refused in and out     erased
//! handshake:  sent -- 5 s + 0..333 ms -- sent -- ... -- 90 s given up
//! ```

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519;
use warren_keyring::{PresharedKey, PrivateKey, PublicKey};

use crate::drops::DropReason;
use crate::message::{
    COOKIE_REPLY_LEN, DATA_OVERHEAD, INITIATION_LEN, ephemeral_key, is_initiation, sender_index,
};
use crate::outcome::{Admission, Opened, OpenedKind, Sealed, Ticked};
use crate::random::Random;

/// Reject-After-Time (WireGuard paper, section 6.1).
pub(crate) const REJECT_AFTER: Duration = Duration::from_secs(180);
/// Rekey-Attempt-Time.
pub(crate) const ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// Rekey-Timeout.
pub(crate) const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// Keepalive-Timeout and Rekey-Timeout: after so long without an answer the peer is asked anew.
const UNANSWERED: Duration = Duration::from_secs(15);
/// The jitter of every retry, in milliseconds.
const JITTER_MS: u64 = 333;
/// How old boringtun's reading of its clock may be when it is used.
const TICK: Duration = Duration::from_millis(250);
/// How long after its last packet a session is ticked closely: past any passive keepalive.
const BUSY: Duration = Duration::from_secs(17);
/// How often a quiet session is ticked, until its keys are erased.
const QUIET_TICK: Duration = Duration::from_secs(10);
/// The key pairs that boringtun keeps; a pair's place is its local index modulo this.
const KEY_PAIRS: usize = 8;
/// The handshakes a second that are answered without a cookie, at least.
const MIN_HANDSHAKE_LIMIT: u64 = 256;
/// And at most: a responder's share of one is 135 us of a core.
const MAX_HANDSHAKE_LIMIT: u64 = 4096;

/// Returns the room that a message needs which carries `len` bytes.
#[inline]
pub(crate) fn room_for(len: usize) -> usize {
    (len + DATA_OVERHEAD).max(INITIATION_LEN)
}

/// The device's own key, and the gate that each handshake passes before it costs a key exchange.
pub(crate) struct Identity {
    private: x25519::StaticSecret,
    public: x25519::PublicKey,
    gate: RateLimiter,
    limit: u64,
    /// For the peers' own second check, which must not count against the gate.
    open_gate: Arc<RateLimiter>,
}

impl Identity {
    pub(crate) fn new(private_key: &PrivateKey, peers: usize) -> Self {
        let private = private_key.to_x25519();
        let public = private_key.public_key().to_x25519();
        let limit = handshake_limit(peers);
        Self {
            gate: RateLimiter::new(&public, limit),
            limit,
            open_gate: Arc::new(RateLimiter::new(&public, u64::MAX)),
            private,
            public,
        }
    }

    /// Adapts the limit of handshakes to the number of peers: after a cold start all of them come
    /// at once. A new limit makes a new gate, which does not know the cookies of the old one.
    pub(crate) fn scale(&mut self, peers: usize) {
        let limit = handshake_limit(peers);
        if limit != self.limit {
            self.gate = RateLimiter::new(&self.public, limit);
            self.limit = limit;
        }
    }

    /// Checks an initiation or a response: MAC1, load, the order of its ephemeral key.
    pub(crate) fn admit(
        &self,
        source: IpAddr,
        handshake: &[u8],
        cookie: &mut [u8; COOKIE_REPLY_LEN],
    ) -> Admission {
        // Does nothing before a second has gone by; an idle device needs no timer for it.
        self.gate.reset_count();
        let packet = match self.gate.verify_packet(Some(source), handshake, cookie) {
            Ok(packet) => packet,
            Err(TunnResult::WriteToNetwork(_)) => return Admission::Cookie,
            Err(TunnResult::Err(WireGuardError::InvalidMac)) => {
                return Admission::Refused(DropReason::BadMac1);
            }
            Err(_) => return Admission::Refused(DropReason::DatagramMalformed),
        };
        match ephemeral_key(handshake).map(PublicKey::from_bytes) {
            Some(Ok(_)) => {}
            _ => return Admission::Refused(DropReason::LowOrderKey),
        }
        let Packet::HandshakeInit(initiation) = packet else {
            return Admission::Response;
        };
        match parse_handshake_anon(&self.private, &self.public, &initiation) {
            Ok(half) => match PublicKey::from_bytes(half.peer_static_public) {
                Ok(key) => Admission::Initiation(key),
                Err(_) => Admission::Refused(DropReason::LowOrderKey),
            },
            Err(_) => Admission::Refused(DropReason::UnknownPeer),
        }
    }
}

fn handshake_limit(peers: usize) -> u64 {
    let scaled = (peers as u64).next_power_of_two().saturating_mul(4);
    scaled.clamp(MIN_HANDSHAKE_LIMIT, MAX_HANDSHAKE_LIMIT)
}

/// A pair of symmetric keys that boringtun holds, mirrored here by its indices and age.
#[derive(Clone, Copy, Debug)]
struct KeyPair {
    local: u32,
    since: Instant,
    /// The peer has shown that it has the keys too; an initiator knows that from the response.
    confirmed: bool,
}

/// A handshake of ours that nobody has answered yet.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    started: Instant,
    retry_at: Instant,
}

/// A peer's session.
pub(crate) struct Session {
    tunn: Box<Tunn>,
    key_pairs: [Option<KeyPair>; KEY_PAIRS],
    current: u32,
    attempt: Option<Attempt>,
    initiated_at: Option<Instant>,
    ticked_at: Option<Instant>,
    /// Nothing is left that could run out.
    expired: bool,
    keepalive: Option<Duration>,
    busy_until: Option<Instant>,
    /// The last authenticated message, sent or received.
    traversed_at: Option<Instant>,
    unanswered_since: Option<Instant>,
    random: Random,
}

impl Session {
    /// Makes a session without keys. `index` has 24 bits; it prefixes every index that the peer is
    /// told to address us by.
    pub(crate) fn new(
        identity: &Identity,
        peer: PublicKey,
        preshared_key: Option<&PresharedKey>,
        index: u32,
        random: Random,
    ) -> Self {
        let tunn = Tunn::new(
            identity.private.clone(),
            peer.to_x25519(),
            preshared_key.map(|key| *key.as_bytes()),
            None,
            index,
            Some(Arc::clone(&identity.open_gate)),
        );
        Self {
            tunn: Box::new(tunn),
            key_pairs: [None; KEY_PAIRS],
            current: 0,
            attempt: None,
            initiated_at: None,
            ticked_at: None,
            expired: true,
            keepalive: None,
            busy_until: None,
            traversed_at: None,
            unanswered_since: None,
            random,
        }
    }

    /// Sets the persistent keepalive; existing keys stay.
    pub(crate) fn set_keepalive(&mut self, interval: Option<Duration>) {
        self.keepalive = interval;
    }

    /// Whether boringtun has to be told the time before anything else is asked of it.
    #[inline]
    pub(crate) fn needs_tick(&self, now: Instant) -> bool {
        self.ticked_at
            .is_none_or(|at| now.saturating_duration_since(at) >= TICK)
    }

    /// When to call [`Session::tick`]; `None` when a peer at rest needs nothing.
    pub(crate) fn deadline(&self, now: Instant, waiting: bool) -> Option<Instant> {
        if let Some(attempt) = self.attempt {
            return Some(attempt.retry_at);
        }
        let keepalive = self
            .keepalive
            .map(|interval| self.traversed_at.unwrap_or(now) + interval);
        let own = if waiting || self.busy_until.is_some_and(|until| now < until) {
            Some(now + TICK)
        } else {
            (!self.expired).then_some(now + QUIET_TICK)
        };
        own.into_iter().chain(keepalive).min()
    }

    /// Runs all timers. `waiting` tells that packets wait for a handshake.
    pub(crate) fn tick(&mut self, now: Instant, waiting: bool, dst: &mut [u8]) -> Ticked {
        let message = self.tick_boringtun(now, dst);
        if message.is_some() {
            return Ticked {
                message,
                gave_up: false,
            };
        }
        if let Some(attempt) = self.attempt {
            if now.saturating_duration_since(attempt.started) >= ATTEMPT_TIME {
                self.attempt = None;
                self.expired = !self.has_keys(now);
                return Ticked {
                    message: None,
                    gave_up: true,
                };
            }
            if now >= attempt.retry_at {
                return Ticked {
                    message: self.initiate_now(now, dst),
                    gave_up: false,
                };
            }
            return Ticked::default();
        }
        let unanswered = self
            .unanswered_since
            .is_some_and(|since| now.saturating_duration_since(since) >= UNANSWERED);
        let message = if unanswered || (waiting && !self.sendable(now)) {
            self.initiate(now, dst)
        } else if self.keepalive_due(now) {
            self.keepalive(now, dst)
        } else {
            None
        };
        Ticked {
            message,
            gave_up: false,
        }
    }

    /// Whether a packet can be sent now.
    #[inline]
    pub(crate) fn sendable(&self, now: Instant) -> bool {
        self.key_pairs[slot(self.current)].is_some_and(|pair| {
            pair.confirmed && now.saturating_duration_since(pair.since) < REJECT_AFTER
        })
    }

    /// Encrypts a packet, already padded, into `dst` of [`room_for`] bytes.
    #[inline]
    pub(crate) fn seal(&mut self, now: Instant, packet: &[u8], dst: &mut [u8]) -> Sealed {
        if !self.sendable(now) {
            self.busy_until = Some(now + BUSY);
            return Sealed::NotReady;
        }
        match self.tunn.encapsulate(packet, dst) {
            TunnResult::WriteToNetwork(message) if !is_initiation(message) => {
                let len = message.len();
                self.busy_until = Some(now + BUSY);
                self.traversed_at = Some(now);
                if !packet.is_empty() {
                    self.unanswered_since.get_or_insert(now);
                }
                Sealed::Data(len)
            }
            TunnResult::WriteToNetwork(message) => {
                let len = message.len();
                self.key_pairs[slot(self.current)] = None;
                self.note_initiation(now);
                Sealed::Kept(Some(len))
            }
            _ => {
                self.key_pairs[slot(self.current)] = None;
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
        let recent = self
            .initiated_at
            .is_some_and(|at| now.saturating_duration_since(at) < REKEY_TIMEOUT);
        if recent {
            None
        } else {
            self.initiate_now(now, dst)
        }
    }

    /// Forgets when the last handshake was begun: it went where the peer is not.
    pub(crate) fn endpoint_changed(&mut self) {
        self.initiated_at = None;
    }

    /// Gives the next packet that boringtun itself has kept, encrypted.
    pub(crate) fn next_kept(&mut self, now: Instant, dst: &mut [u8]) -> Option<usize> {
        if !self.sendable(now) {
            return None;
        }
        match self.tunn.decapsulate(None, &[], dst) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            _ => None,
        }
    }

    /// Answers an initiation that the gate has admitted and that is this peer's.
    pub(crate) fn handle_initiation(
        &mut self,
        now: Instant,
        initiation: &[u8],
        dst: &mut [u8],
    ) -> Result<usize, DropReason> {
        match self.tunn.decapsulate(None, initiation, dst) {
            TunnResult::WriteToNetwork(response) => {
                let (len, local) = (response.len(), sender_index(response));
                self.note_key_pair(now, local, false);
                self.note_received(now);
                Ok(len)
            }
            TunnResult::Err(WireGuardError::WrongTai64nTimestamp) => {
                Err(DropReason::HandshakeReplayed)
            }
            _ => Err(DropReason::HandshakeRefused),
        }
    }

    /// Takes the response to a handshake of ours; the keepalive that confirms it is the answer.
    pub(crate) fn handle_response(
        &mut self,
        now: Instant,
        response: &[u8],
        receiver: u32,
        dst: &mut [u8],
    ) -> Result<usize, DropReason> {
        match self.tunn.decapsulate(None, response, dst) {
            TunnResult::WriteToNetwork(keepalive) => {
                let len = keepalive.len();
                self.note_key_pair(now, receiver, true);
                self.note_received(now);
                self.use_key_pair(receiver);
                Ok(len)
            }
            _ => Err(DropReason::HandshakeRefused),
        }
    }

    /// Takes a cookie; the next try of the handshake carries it.
    pub(crate) fn handle_cookie_reply(&mut self, reply: &[u8]) -> Result<(), DropReason> {
        let mut unused = [0; INITIATION_LEN];
        match self.tunn.decapsulate(None, reply, &mut unused) {
            TunnResult::Done => Ok(()),
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
        let pair = self.key_pairs[slot(receiver)]
            .filter(|pair| pair.local == receiver)
            .ok_or(DropReason::NoSession)?;
        if now.saturating_duration_since(pair.since) >= REJECT_AFTER {
            return Err(DropReason::SessionExpired);
        }
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
        self.note_received(now);
        self.busy_until = Some(now + BUSY);
        if let Some(pair) = &mut self.key_pairs[slot(receiver)] {
            pair.confirmed = true;
        }
        if self.current != receiver {
            self.use_key_pair(receiver);
        }
        Ok(Opened {
            kind,
            completed: !pair.confirmed,
        })
    }

    fn tick_boringtun(&mut self, now: Instant, dst: &mut [u8]) -> Option<usize> {
        self.ticked_at = Some(now);
        match self.tunn.update_timers(dst) {
            TunnResult::WriteToNetwork(message) => {
                let len = message.len();
                if is_initiation(message) {
                    self.note_initiation(now);
                } else {
                    self.traversed_at = Some(now);
                }
                Some(len)
            }
            TunnResult::Err(_) => {
                // Its keys are gone. It also says so of a handshake that it counts from its own
                // birth: ours goes on until its time is up.
                self.key_pairs = [None; KEY_PAIRS];
                self.unanswered_since = None;
                match self.attempt {
                    Some(attempt)
                        if now.saturating_duration_since(attempt.started) < ATTEMPT_TIME =>
                    {
                        (now >= attempt.retry_at)
                            .then(|| self.initiate_now(now, dst))
                            .flatten()
                    }
                    _ => {
                        self.expired = self.attempt.is_none();
                        None
                    }
                }
            }
            _ => None,
        }
    }

    fn initiate_now(&mut self, now: Instant, dst: &mut [u8]) -> Option<usize> {
        match self.tunn.format_handshake_initiation(dst, true) {
            TunnResult::WriteToNetwork(message) => {
                let len = message.len();
                self.note_initiation(now);
                Some(len)
            }
            _ => None,
        }
    }

    fn note_initiation(&mut self, now: Instant) {
        let jitter = Duration::from_millis(self.random.below(JITTER_MS + 1));
        let started = self.attempt.map_or(now, |attempt| attempt.started);
        self.attempt = Some(Attempt {
            started,
            retry_at: now + REKEY_TIMEOUT + jitter,
        });
        self.initiated_at = Some(now);
        self.traversed_at = Some(now);
        self.unanswered_since = None;
        self.expired = false;
    }

    fn note_key_pair(&mut self, now: Instant, local: u32, confirmed: bool) {
        // boringtun stamps a key pair with the time of its last tick.
        let since = self.ticked_at.unwrap_or(now);
        self.key_pairs[slot(local)] = Some(KeyPair {
            local,
            since,
            confirmed,
        });
        self.attempt = None;
        self.expired = false;
        self.busy_until = Some(now + BUSY);
    }

    fn note_received(&mut self, now: Instant) {
        self.traversed_at = Some(now);
        self.unanswered_since = None;
    }

    /// Follows boringtun: the newer key pair is sent with.
    fn use_key_pair(&mut self, local: u32) {
        let (new, old) = (
            self.key_pairs[slot(local)],
            self.key_pairs[slot(self.current)],
        );
        if old.is_none_or(|old| new.is_some_and(|new| new.since >= old.since)) {
            self.current = local;
        }
    }

    fn keepalive_due(&self, now: Instant) -> bool {
        self.keepalive.is_some_and(|interval| {
            self.traversed_at
                .is_none_or(|at| now.saturating_duration_since(at) >= interval)
        })
    }

    fn has_keys(&self, now: Instant) -> bool {
        self.key_pairs
            .iter()
            .flatten()
            .any(|pair| now.saturating_duration_since(pair.since) < REJECT_AFTER)
    }
}

#[inline]
fn slot(local: u32) -> usize {
    local as usize % KEY_PAIRS
}
