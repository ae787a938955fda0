//! The gate under attacks, on a driven clock.

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
