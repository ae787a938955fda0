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
mod tests {
    use super::*;
    use crate::message::{INITIATION_LEN, RESPONSE_LEN};

    const LIMIT: usize = MIN_LIMIT as usize;
    const COVERED: usize = INITIATION_LEN - MAC2_LEN;

    /// A gate, the time, and a maker of messages with a valid MAC1 that are never the same.
    struct Attack {
        gate: Gate,
        now: Instant,
        made: u32,
    }

    impl Attack {
        fn new() -> Self {
            let key = PrivateKey::from_bytes([7; 32]).unwrap();
            Self {
                gate: Gate::new(&key, 1, 1),
                now: Instant::now(),
                made: 0,
            }
        }

        fn message(&mut self, len: usize) -> Vec<u8> {
            self.made += 1;
            let mut message = vec![0; len];
            message[0] = if len == RESPONSE_LEN { 2 } else { 1 };
            message[4..8].copy_from_slice(&self.made.to_le_bytes());
            let end = len - 2 * MAC2_LEN;
            let mac = self.gate.mac1.clone().chain_update(&message[..end]);
            message[end..end + MAC2_LEN].copy_from_slice(&mac.finalize().into_bytes());
            message
        }

        fn judge(&mut self, source: IpAddr, message: &[u8]) -> (Verdict, [u8; COOKIE_REPLY_LEN]) {
            let mut cookie = [0; COOKIE_REPLY_LEN];
            let verdict = self
                .gate
                .judge(self.now, source, message, false, &mut cookie);
            (verdict, cookie)
        }

        /// Judges a new initiation without a cookie.
        fn initiate(&mut self, source: IpAddr) -> Verdict {
            let message = self.message(INITIATION_LEN);
            self.judge(source, &message).0
        }

        /// Judges many from one source.
        fn flood(&mut self, source: IpAddr, count: usize) -> Vec<Verdict> {
            (0..count).map(|_| self.initiate(source)).collect()
        }

        /// The cookie that a source is given, opened as an initiator does.
        fn cookie(&mut self, source: IpAddr) -> [u8; 16] {
            let message = self.message(INITIATION_LEN);
            let (verdict, reply) = self.judge(source, &message);
            assert_eq!(verdict, Verdict::Cookie);
            assert_eq!(reply[..4], [3, 0, 0, 0]);
            assert_eq!(reply[4..8], message[4..8], "to the sender's index");
            let mut cookie: [u8; 16] = reply[32..48].try_into().unwrap();
            let nonce = XNonce::from_slice(&reply[8..32]);
            let tag = Tag::from_slice(&reply[48..]);
            let mac1 = &message[COVERED - MAC2_LEN..COVERED];
            let cipher = &self.gate.cookie_cipher;
            cipher
                .decrypt_in_place_detached(nonce, mac1, &mut cookie, tag)
                .unwrap();
            cookie
        }

        /// Judges a new initiation that carries this cookie.
        fn prove(&mut self, source: IpAddr, cookie: &[u8; 16]) -> Verdict {
            let mut message = self.message(INITIATION_LEN);
            let mac2 = keyed(cookie).chain_update(&message[..COVERED]);
            message[COVERED..].copy_from_slice(&mac2.finalize().into_bytes());
            self.judge(source, &message).0
        }

        fn pass(&mut self, seconds: u64) {
            self.now += Duration::from_secs(seconds);
        }
    }

    fn count(verdicts: &[Verdict], verdict: Verdict) -> usize {
        verdicts.iter().filter(|found| **found == verdict).count()
    }

    fn v4(n: u32) -> IpAddr {
        IpAddr::V4((0x0a00_0000 + n).into())
    }

    const UNPROVEN: Verdict = Verdict::Admit(Class::Unproven);
    const PROVEN: Verdict = Verdict::Admit(Class::Proven);
    const SILENT: Verdict = Verdict::Refuse(DropReason::UnderLoadSilent);

    #[test]
    fn cookies_are_bounded_in_each_second_and_one_source_leaves_others_theirs() {
        let mut attack = Attack::new();
        let total = LIMIT + COOKIES as usize + 1000;
        let verdicts = attack.flood(v4(1), total);
        assert_eq!(count(&verdicts, UNPROVEN), LIMIT);
        let cookies = COOKIES as usize + usize::from(FEW);
        assert_eq!(count(&verdicts, Verdict::Cookie), cookies);
        assert_eq!(count(&verdicts, SILENT), total - LIMIT - cookies);

        // The next source still has its few handshakes, then its few cookies, then silence.
        let verdicts = attack.flood(v4(2), 6);
        let [few, cookie] = [UNPROVEN, Verdict::Cookie].map(|verdict| [verdict; FEW as usize]);
        assert_eq!(verdicts, [few, cookie, [SILENT; 2]].concat());
        // Until what there is for sources with few is used up as well.
        let strangers: Vec<Verdict> = (3..5000).map(|n| attack.initiate(v4(n))).collect();
        assert!(count(&strangers, UNPROVEN) <= LIMIT / 8);
        assert!(count(&strangers, Verdict::Cookie) <= COOKIES_FEW as usize);
        assert_eq!(strangers.last(), Some(&SILENT));

        attack.pass(1);
        assert_eq!(attack.initiate(v4(1)), UNPROVEN, "a new second");
    }

    #[test]
    fn who_has_a_cookie_goes_ahead_whatever_is_forged_in_his_name() {
        let mut attack = Attack::new();
        let (peer, other) = (v4(1), v4(2));
        attack.flood(peer, LIMIT);
        let cookie = attack.cookie(peer);
        attack.flood(peer, COOKIES as usize + 1000);
        assert_eq!(attack.initiate(peer), SILENT);
        assert_eq!(attack.prove(peer, &cookie), PROVEN);
        assert_eq!(attack.prove(peer, &[0x55; 16]), SILENT, "made up");
        assert_ne!(attack.prove(other, &cookie), PROVEN, "of another address");
        let mut message = attack.message(INITIATION_LEN);
        message[COVERED - 1] ^= 1;
        let mac2 = keyed(&cookie).chain_update(&message[..COVERED]);
        message[COVERED..].copy_from_slice(&mac2.finalize().into_bytes());
        let bad_mac1 = Verdict::Refuse(DropReason::BadMac1);
        assert_eq!(attack.judge(peer, &message).0, bad_mac1);

        // The source that replays its cookie without end takes a quarter at most.
        let proofs: Vec<Verdict> = (0..LIMIT).map(|_| attack.prove(peer, &cookie)).collect();
        assert_eq!(count(&proofs, PROVEN), LIMIT / 4 - 1);
        assert_eq!(
            proofs.last(),
            Some(&Verdict::Refuse(DropReason::SourceFlood))
        );
        let third = v4(3);
        attack.flood(third, FEW.into());
        let cookie = attack.cookie(third);
        assert_eq!(attack.prove(third, &cookie), PROVEN);
    }

    #[test]
    fn peers_keep_their_share_in_a_flood_from_addresses_at_random_and_are_told_of() {
        let mut attack = Attack::new();
        let peer = v4(0x0012_3456);
        attack.flood(v4(1), LIMIT);
        assert!(attack.gate.asks_who_is_known());
        attack.gate.know([peer].into_iter());
        assert!(!attack.gate.asks_who_is_known(), "once a second");
        for n in 0..COOKIES + 10_000 {
            attack.initiate(v4(0x0020_0000 + n));
        }
        assert_eq!(attack.initiate(v4(0x0080_0000)), SILENT, "of a stranger");
        assert_eq!(attack.gate.take_unheard(), None);
        let [few, cookie] = [UNPROVEN, Verdict::Cookie].map(|verdict| [verdict; FEW as usize]);
        assert_eq!(attack.flood(peer, 4), [few, cookie].concat());
        assert_eq!(attack.gate.take_unheard(), Some(peer));
        attack.flood(peer, 10);
        assert_eq!(attack.gate.take_unheard(), None, "once a second");
        attack.pass(1);
        attack.flood(peer, LIMIT + 10);
        assert_eq!(attack.gate.take_unheard(), Some(peer));
    }

    #[test]
    fn a_cookie_is_good_until_its_secret_changes_after_120_s_and_10_s_longer() {
        let mut attack = Attack::new();
        let peer = v4(1);
        attack.flood(v4(2), LIMIT + COOKIES as usize);
        attack.flood(peer, FEW.into());
        let cookie = attack.cookie(peer);
        let mut passed = 0;
        for (at, good) in [(119, true), (120, true), (129, true), (130, false)] {
            // The secret changes with a handshake, and one that was idle for long has no former one.
            for _ in passed..at {
                attack.pass(1);
                attack.initiate(v4(2));
            }
            passed = at;
            attack.flood(v4(2), LIMIT + COOKIES as usize);
            let proven = attack.prove(peer, &cookie) == PROVEN;
            assert_eq!(proven, good, "after {at} s");
        }
        attack.flood(peer, FEW.into());
        let cookie = attack.cookie(peer);
        attack.pass(200);
        attack.flood(v4(2), LIMIT);
        assert_ne!(attack.prove(peer, &cookie), PROVEN, "after 200 s of rest");
    }

    #[test]
    fn all_addresses_of_an_ipv6_network_of_64_bits_are_one_source_but_prove_one_by_one() {
        let mut attack = Attack::new();
        attack.flood(v4(1), LIMIT + COOKIES as usize + 10);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let verdicts: Vec<Verdict> = (0..8u128)
            .map(|n| attack.initiate(IpAddr::V6(((0x2001_0db8 << 96) + n).into())))
            .collect();
        let [few, cookie] = [UNPROVEN, Verdict::Cookie].map(|verdict| [verdict; FEW as usize]);
        assert_eq!(verdicts, [&few[..], &cookie, &[SILENT; 4]].concat());
        let (first, second) = (address("2001:db8:0:1::1"), address("2001:db8:0:1::2"));
        assert_eq!(attack.flood(first, FEW.into()), few, "of the next network");
        let cookie = attack.cookie(first);
        assert_ne!(attack.prove(second, &cookie), PROVEN);
        assert_eq!(attack.prove(first, &cookie), PROVEN);
    }

    #[test]
    fn while_many_wait_for_their_key_exchange_a_cookie_is_the_answer() {
        let mut attack = Attack::new();
        assert_eq!(attack.initiate(v4(1)), UNPROVEN);
        attack.gate.note_congested(true);
        assert!(attack.gate.is_under_load(attack.now));
        assert_eq!(attack.initiate(v4(1)), Verdict::Cookie);
        let cookie = attack.cookie(v4(2));
        assert_eq!(attack.prove(v4(2), &cookie), PROVEN);
        attack.gate.note_congested(false);
        assert_eq!(attack.initiate(v4(1)), UNPROVEN);
    }

    #[test]
    fn awaited_responses_go_ahead_and_others_are_as_good_as_initiations() {
        let mut attack = Attack::new();
        let source = v4(1);
        attack.flood(source, LIMIT + COOKIES as usize + 10);
        let response = attack.message(RESPONSE_LEN);
        assert_eq!(attack.judge(source, &response).0, SILENT);
        let answer = |attack: &mut Attack, response: &[u8]| {
            let mut cookie = [0; COOKIE_REPLY_LEN];
            let now = attack.now;
            attack.gate.judge(now, source, response, true, &mut cookie)
        };
        assert_eq!(answer(&mut attack, &response), PROVEN);
        let mut forged = response.clone();
        forged[20] ^= 1;
        let bad_mac1 = Verdict::Refuse(DropReason::BadMac1);
        assert_eq!(answer(&mut attack, &forged), bad_mac1);
        for _ in 1..LIMIT {
            assert_eq!(answer(&mut attack, &response), PROVEN);
        }
        assert_ne!(answer(&mut attack, &response), PROVEN, "bounded too");
    }
}
