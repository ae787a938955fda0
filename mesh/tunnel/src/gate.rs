//! The gate that each handshake message passes before it costs a key exchange (WireGuard paper,
//! sections 5.3 and 5.4.7): MAC1, load, cookies.
//!
//! ```text
//!                               a second's limit not used up
//! handshake -- MAC1 ---------------------------------------------> admitted
//!     |  used up: under load
//!     +-- MAC2 proves the cookie of its source -- MAC1 ----------> admitted, ahead of the others
//!     +-- source with few handshakes this second -- MAC1 --------> admitted, a few
//!     +-- cookies left for the source, or for all -- MAC1 -------> one cookie
//!     +----------------------------------------------------------> silence
//! ```
//!
//! What a flood can make it do is bounded in each second: key exchanges, cookies, and, once those are
//! used up, even the check of MAC1. Two things are not bounded and cost under a microsecond: the
//! look at the source's counts, and the check of a MAC2 that is not zero. So whoever has a cookie
//! gets in whatever others send, also others who forge its address.
//!
//! What a flood forges in the name of a peer's own address is not told from the peer's own first
//! initiation. Of such an address the gate tells (`Gate::take_unheard`), and the device initiates
//! itself: only the peer can answer that.
//!
//! Sources are told apart to keep a flood from one of them, or from its IPv6 /64, from using up what
//! there is for all. The endpoints of the device's own peers are counted one by one, so that a flood
//! from forged addresses at random leaves them their share; all others share counts by a hash that
//! nobody outside can predict.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher as _};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use blake2::digest::consts::{U16, U32};
use blake2::digest::{Digest as _, Mac as _};
use blake2::{Blake2s256, Blake2sMac};
use chacha20poly1305::aead::{AeadInPlace as _, KeyInit as _};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use warren_keyring::{PrivateKey, PublicKey};
use zeroize::Zeroizing;

use crate::drops::DropReason;
use crate::message::{COOKIE_REPLY_LEN, MAC2_LEN, sender_index};

/// How long the secret lives that cookies are made of (WireGuard paper, section 5.4.7).
const SECRET_LIFE: Duration = Duration::from_secs(120);
/// How long the cookies of the secret before are taken: an initiator carries its cookie 5 s later,
/// and would have to come a third time.
const FORMER_SECRET_LIFE: Duration = Duration::from_secs(10);
/// What all limits are counted by.
const WINDOW: Duration = Duration::from_secs(1);
/// The handshakes a second that are admitted without a cookie, at least.
const MIN_LIMIT: u32 = 256;
/// And at most: a responder's share of one is 135 us of a core.
const MAX_LIMIT: u32 = 4096;
/// The cookies a second that are sent to anybody; beside data their share of time allows fewer.
const COOKIES: u32 = 65_536;
/// The cookies a second that are kept for sources that have had few, and as many again for peers.
const COOKIES_FEW: u32 = 2048;
/// What a source may have of that which is kept for sources that have had few.
const FEW: u8 = 2;
/// The counts that unknown sources share.
const BUCKETS: usize = 1 << 16;

type Mac16 = Blake2sMac<U16>;
type Secret = Zeroizing<[u8; 32]>;

/// What the gate says to a handshake message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may cost a key exchange.
    Admit(Class),
    /// The cookie in the buffer is all the answer.
    Cookie,
    /// Silence.
    Refuse(DropReason),
}

/// How soon an admitted handshake is worked off; the first goes ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// It carries the cookie of its source, or answers an initiation of ours.
    Proven,
    /// Anybody could have made it.
    Unproven,
}

/// What one source has had in one second.
#[derive(Clone, Copy, Debug, Default)]
struct Source {
    window: u32,
    handshakes: u8,
    cookies: u8,
    proven: u16,
    unheard: bool,
}

/// What is left for this second.
#[derive(Clone, Copy, Debug)]
struct Left {
    /// Handshakes without a cookie, whoever sends them.
    open: u32,
    /// Handshakes without a cookie, of sources that have sent few, and of those that are peers'.
    few: u32,
    few_known: u32,
    /// Handshakes with a cookie, and responses to our initiations.
    proven: u32,
    answers: u32,
    /// Cookies for anybody, for sources that have had few, and for those that are peers'.
    cookies: u32,
    cookies_few: u32,
    cookies_known: u32,
}

/// The gate of one device.
pub(crate) struct Gate {
    mac1: Mac16,
    cookie_cipher: XChaCha20Poly1305,
    /// What secrets and nonces are derived from.
    root: Secret,
    derived: u64,
    secret: Secret,
    secret_since: Option<Instant>,
    former_secret: Option<Secret>,
    /// The keys of MAC2 of the last source that was asked for, for a flood is mostly from one.
    mac2: Option<(IpAddr, [Option<Mac16>; 2])>,
    limit: u32,
    window: u32,
    window_since: Option<Instant>,
    left: Left,
    known: HashMap<IpAddr, Source>,
    known_in: u32,
    unknown: Vec<Source>,
    hash_key: u64,
    unheard: Option<IpAddr>,
    congested: bool,
}

impl Gate {
    /// Makes the gate of a device; `uniqueness` is another number in each process.
    pub(crate) fn new(private_key: &PrivateKey, uniqueness: u128, peers: usize) -> Self {
        let public_key = private_key.public_key();
        let root = derive(
            private_key.as_bytes(),
            b"warren cookie root",
            &uniqueness.to_le_bytes(),
        );
        let mut gate = Self {
            mac1: keyed(&labelled(b"mac1----", &public_key)),
            cookie_cipher: XChaCha20Poly1305::new(&labelled(b"cookie--", &public_key).into()),
            root,
            derived: 0,
            secret: Zeroizing::new([0; 32]),
            secret_since: None,
            former_secret: None,
            mac2: None,
            limit: 0,
            window: 0,
            window_since: None,
            left: Left::of(0),
            known: HashMap::new(),
            known_in: 0,
            unknown: vec![Source::default(); BUCKETS],
            hash_key: 0,
            unheard: None,
            congested: false,
        };
        gate.hash_key = u64::from_le_bytes(
            *gate
                .next_derived(b"warren source hash")
                .first_chunk()
                .unwrap_or(&[0; 8]),
        );
        gate.scale(peers);
        gate
    }

    /// Adapts the limit of handshakes to the number of peers: after a cold start all of them come
    /// at once.
    pub(crate) fn scale(&mut self, peers: usize) {
        let peers = u32::try_from(peers).unwrap_or(u32::MAX);
        let scaled = peers
            .checked_next_power_of_two()
            .unwrap_or(u32::MAX)
            .saturating_mul(4);
        let limit = scaled.clamp(MIN_LIMIT, MAX_LIMIT);
        if limit != self.limit {
            self.limit = limit;
            self.left = Left::of(limit);
        }
    }

    /// Tells whether this second's limit is used up.
    pub(crate) fn is_under_load(&self, now: Instant) -> bool {
        let passed = |since| now.saturating_duration_since(since);
        (self.left.open == 0 || self.congested)
            && self
                .window_since
                .is_some_and(|since| passed(since) < WINDOW)
    }

    /// Tells whether [`Gate::know`] is due: under load, once a second.
    pub(crate) fn asks_who_is_known(&self) -> bool {
        (self.left.open == 0 || self.congested) && self.known_in != self.window
    }

    /// Takes the addresses of the device's peers, which have counts of their own from now on.
    pub(crate) fn know(&mut self, addresses: impl Iterator<Item = IpAddr>) {
        self.known_in = self.window;
        self.known.clear();
        self.known
            .extend(addresses.map(|address| (address, Source::default())));
    }

    /// Takes whether many that were admitted still wait for their key exchange: one more without a
    /// cookie would wait for longer than its sender does, and is better off with a cookie.
    pub(crate) fn note_congested(&mut self, congested: bool) {
        self.congested = congested;
    }

    /// Tells of a peer's address, once in a second of load, in whose name more comes than is admitted.
    pub(crate) fn take_unheard(&mut self) -> Option<IpAddr> {
        self.unheard.take()
    }

    /// Judges an initiation or a response, as its length tells; writes the cookie if that is the
    /// answer. `awaited` tells that it is addressed to the index of an initiation of ours.
    pub(crate) fn judge(
        &mut self,
        now: Instant,
        source: IpAddr,
        handshake: &[u8],
        awaited: bool,
        cookie: &mut [u8; COOKIE_REPLY_LEN],
    ) -> Verdict {
        self.turn(now);
        let Some((covered, mac2)) = handshake.split_last_chunk::<MAC2_LEN>() else {
            return Verdict::Refuse(DropReason::DatagramMalformed);
        };
        let Some((body, mac1)) = covered.split_last_chunk::<MAC2_LEN>() else {
            return Verdict::Refuse(DropReason::DatagramMalformed);
        };
        let authentic = |gate: &Self| {
            let mac = gate.mac1.clone().chain_update(body);
            mac.verify_slice(mac1).is_ok()
        };
        const BAD_MAC1: Verdict = Verdict::Refuse(DropReason::BadMac1);
        if awaited && self.left.answers > 0 {
            if !authentic(self) {
                return BAD_MAC1;
            }
            self.left.answers -= 1;
            return Verdict::Admit(Class::Proven);
        }
        if self.left.open > 0 && !self.congested {
            if !authentic(self) {
                return BAD_MAC1;
            }
            self.left.open -= 1;
            let (counts, _) = self.source(source);
            counts.handshakes = counts.handshakes.saturating_add(1);
            return Verdict::Admit(Class::Unproven);
        }
        // All zero is what an initiator without a cookie sends.
        if *mac2 != [0; MAC2_LEN] && self.proves_cookie(source, covered, mac2) {
            if !authentic(self) {
                return BAD_MAC1;
            }
            return self.judge_proven(source);
        }
        let (counts, known) = self.source(source);
        let counts = *counts;
        let few = !self.congested && counts.handshakes < FEW && self.left.few(known) > 0;
        let with_cookie =
            (counts.cookies < FEW && self.left.cookies_few(known) > 0) || self.left.cookies > 0;
        if !few && !with_cookie {
            return Verdict::Refuse(DropReason::UnderLoadSilent);
        }
        if !authentic(self) {
            return BAD_MAC1;
        }
        if few {
            self.source(source).0.handshakes += 1;
            *self.left.few_mut(known) -= 1;
            return Verdict::Admit(Class::Unproven);
        }
        if known && !counts.unheard {
            self.source(source).0.unheard = true;
            self.unheard = Some(source);
        }
        if counts.cookies < FEW && self.left.cookies_few(known) > 0 {
            self.source(source).0.cookies += 1;
            *self.left.cookies_few_mut(known) -= 1;
        } else {
            self.left.cookies -= 1;
        }
        self.write_cookie(source, handshake, mac1, cookie);
        Verdict::Cookie
    }

    /// One source with a cookie must not use up what there is for all of them.
    fn judge_proven(&mut self, source: IpAddr) -> Verdict {
        let share = u16::try_from(self.limit / 4).unwrap_or(u16::MAX);
        let left = self.left.proven;
        let (counts, _) = self.source(source);
        if left == 0 || counts.proven >= share {
            return Verdict::Refuse(DropReason::SourceFlood);
        }
        counts.proven += 1;
        self.left.proven -= 1;
        Verdict::Admit(Class::Proven)
    }

    /// Begins a new second, and a new secret, where it is time for it.
    fn turn(&mut self, now: Instant) {
        let is_over = |since: Option<Instant>, life| {
            since.is_none_or(|since| now.saturating_duration_since(since) >= life)
        };
        if !is_over(self.window_since, WINDOW) {
            return;
        }
        self.window_since = Some(now);
        self.window = self.window.wrapping_add(1);
        self.left = Left::of(self.limit);
        if is_over(self.secret_since, SECRET_LIFE) {
            let next = self.next_derived(b"warren cookie secret");
            let former = std::mem::replace(&mut self.secret, next);
            // One that was due long ago has made no cookie lately.
            let in_use = !is_over(self.secret_since, SECRET_LIFE + WINDOW);
            self.former_secret = in_use.then_some(former);
            self.secret_since = Some(now);
            self.mac2 = None;
        } else if self.former_secret.is_some() && is_over(self.secret_since, FORMER_SECRET_LIFE) {
            self.former_secret = None;
            self.mac2 = None;
        }
    }

    /// The counts of a source, and whether it is a peer's endpoint.
    fn source(&mut self, source: IpAddr) -> (&mut Source, bool) {
        let window = self.window;
        let (counts, known) = match self.known.get_mut(&source) {
            Some(counts) => (counts, true),
            None => {
                let mut hasher = DefaultHasher::new();
                hasher.write_u64(self.hash_key);
                match source {
                    IpAddr::V4(address) => hasher.write_u32(address.to_bits()),
                    // Who has one address of a /64 has all of them.
                    IpAddr::V6(address) => hasher.write_u64((address.to_bits() >> 64) as u64),
                }
                let bucket = hasher.finish() as usize % BUCKETS;
                (&mut self.unknown[bucket], false)
            }
        };
        if counts.window != window {
            *counts = Source {
                window,
                ..Source::default()
            };
        }
        (counts, known)
    }

    fn proves_cookie(&mut self, source: IpAddr, covered: &[u8], mac2: &[u8; MAC2_LEN]) -> bool {
        if self.mac2.as_ref().is_none_or(|(last, _)| *last != source) {
            let key = |secret: &Secret| keyed(&cookie_of(secret, source));
            let keys = [
                Some(key(&self.secret)),
                self.former_secret.as_ref().map(key),
            ];
            self.mac2 = Some((source, keys));
        }
        let keys = self.mac2.iter().flat_map(|(_, keys)| keys).flatten();
        keys.cloned()
            .any(|mac: Mac16| mac.chain_update(covered).verify_slice(mac2).is_ok())
    }

    fn write_cookie(
        &mut self,
        source: IpAddr,
        handshake: &[u8],
        mac1: &[u8],
        reply: &mut [u8; COOKIE_REPLY_LEN],
    ) {
        let nonce = self.next_derived(b"warren cookie nonce");
        let mut sealed = cookie_of(&self.secret, source);
        let nonce = &nonce[..24];
        let tag = self
            .cookie_cipher
            .encrypt_in_place_detached(XNonce::from_slice(nonce), mac1, &mut sealed)
            // The cipher refuses only what is gigabytes long.
            .unwrap_or_else(|_| Tag::default());
        reply[..4].copy_from_slice(&3u32.to_le_bytes());
        reply[4..8].copy_from_slice(&sender_index(handshake).to_le_bytes());
        reply[8..32].copy_from_slice(nonce);
        reply[32..48].copy_from_slice(&sealed);
        reply[48..].copy_from_slice(&tag);
    }

    fn next_derived(&mut self, label: &[u8]) -> Secret {
        self.derived += 1;
        derive(&self.root, label, &self.derived.to_le_bytes())
    }
}

impl Left {
    fn of(limit: u32) -> Self {
        Self {
            open: limit,
            few: limit / 8,
            few_known: limit / 4,
            proven: limit,
            answers: limit,
            cookies: COOKIES,
            cookies_few: COOKIES_FEW,
            cookies_known: COOKIES_FEW,
        }
    }

    fn few(&self, known: bool) -> u32 {
        if known { self.few_known } else { self.few }
    }

    fn few_mut(&mut self, known: bool) -> &mut u32 {
        if known {
            &mut self.few_known
        } else {
            &mut self.few
        }
    }

    fn cookies_few(&self, known: bool) -> u32 {
        if known {
            self.cookies_known
        } else {
            self.cookies_few
        }
    }

    fn cookies_few_mut(&mut self, known: bool) -> &mut u32 {
        if known {
            &mut self.cookies_known
        } else {
            &mut self.cookies_few
        }
    }
}

fn labelled(label: &[u8; 8], key: &PublicKey) -> [u8; 32] {
    let hash = Blake2s256::new()
        .chain_update(label)
        .chain_update(key.as_bytes());
    hash.finalize().into()
}

/// A MAC of 16 bytes with a key of at most 32, which is all that is asked for here.
fn keyed(key: &[u8]) -> Mac16 {
    <Mac16 as blake2::digest::KeyInit>::new_from_slice(key)
        .unwrap_or_else(|_| unreachable!("a key of {} bytes", key.len()))
}

fn cookie_of(secret: &Secret, source: IpAddr) -> [u8; 16] {
    let mac = keyed(secret.as_slice());
    let mac = match source {
        IpAddr::V4(address) => mac.chain_update(address.octets()),
        IpAddr::V6(address) => mac.chain_update(address.octets()),
    };
    mac.finalize().into_bytes().into()
}

/// A number that only the holder of the key can know.
fn derive(key: &[u8; 32], label: &[u8], number: &[u8]) -> Secret {
    let mac = <Blake2sMac<U32> as blake2::digest::KeyInit>::new(key.into());
    let mac = mac.chain_update(label).chain_update(number);
    Zeroizing::new(mac.finalize().into_bytes().into())
}

#[cfg(test)]
mod tests;
