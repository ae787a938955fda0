//! A path that swallows large packets without a word is found by the tunnel itself.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

mod support;

use std::time::{Duration, Instant};

use support::{Side, carry, packet, peer};
use warren_core::uapi::PeerUpdate;
use warren_tunnel::{DropReason, Now};

/// What IPv4, UDP and nothing else add to a datagram.
const HEADERS: usize = 28;
/// What IPv6 and UDP do.
const HEADERS_V6: usize = 48;

struct Pair {
    now: Now,
    a: Side,
    b: Side,
}

impl Pair {
    fn new() -> Self {
        Self::between("192.0.2.1:1", "192.0.2.2:2", Some(true))
    }

    fn between(a: &str, b: &str, path_probes: Option<bool>) -> Self {
        let now = Now::read();
        let (mut a, mut b) = (Side::new(a), Side::new(b));
        let update = |other: &Side, prefix| PeerUpdate {
            path_probes,
            ..peer(other.key, Some(other.address), &[prefix])
        };
        let (of_b, of_a) = (update(&b, "10.2.0.0/16"), update(&a, "10.1.0.0/16"));
        a.set(now, vec![of_b]);
        b.set(now, vec![of_a]);
        let hello = a.tun(now, &packet("10.1.0.1", "10.2.0.1", 100, 0));
        carry(now, &mut [&mut a, &mut b], 0, hello);
        let query = a.engine.poll_path_query().unwrap();
        a.engine.handle_path_mtu(now, query, 1500);
        Self { now, a, b }
    }

    /// Sends a large packet a second for a while, over a path that takes outer packets of at most
    /// `takes` bytes from A to B.
    fn talk(&mut self, seconds: u32, takes: usize) {
        for _ in 0..seconds {
            let large = packet("10.1.0.1", "10.2.0.1", 1400, 0);
            let mut made = self.a.tun(self.now, &large);
            made.extend(self.a.timers(self.now));
            made.retain(|(_, bytes)| bytes.len() + HEADERS <= takes);
            carry(self.now, &mut [&mut self.a, &mut self.b], 0, made);
            self.now = self.now + Duration::from_secs(1);
        }
    }

    fn limit(&self) -> Option<u32> {
        let now: Instant = self.now.monotonic;
        let paths = self.a.engine.peer_paths(now, |_, _| {});
        paths.first().and_then(|path| path.path_mtu_bytes)
    }
}

#[test]
fn a_black_hole_is_found_in_seconds_and_its_end_within_a_minute() {
    let mut pair = Pair::new();
    pair.talk(5, 1500);
    assert_eq!(pair.limit(), None);
    let before = pair.b.delivered.len();
    pair.talk(18, 1410);
    assert_eq!(pair.limit(), Some(1400));
    assert_eq!(
        pair.b.delivered.len(),
        before,
        "nothing of a probe gets out"
    );
    pair.talk(75, 1500);
    assert_eq!(pair.limit(), None);
    assert_eq!(pair.b.drops(DropReason::InnerMalformed), 0);
    let counted = [&pair.a, &pair.b].map(|side| side.engine.counters().path_probes);
    assert!(counted.iter().all(|probes| *probes > 0), "{counted:?}");
}

#[test]
fn a_pair_without_large_packets_sends_no_probe() {
    let mut pair = Pair::new();
    let query = pair.a.engine.poll_path_query();
    assert!(query.is_none());
    for _ in 0..100 {
        let small = pair
            .a
            .tun(pair.now, &packet("10.1.0.1", "10.2.0.1", 200, 0));
        assert_eq!(small.len(), 1);
    }
}

#[test]
fn a_peer_that_may_be_another_wireguard_is_sent_no_probe() {
    for path_probes in [None, Some(false)] {
        let mut pair = Pair::between("192.0.2.1:1", "192.0.2.2:2", path_probes);
        pair.talk(100, 1500);
        let probes = |side: &Side| side.engine.counters().path_probes;
        assert_eq!((probes(&pair.a), probes(&pair.b)), (0, 0));
        assert_eq!(pair.b.drops(DropReason::InnerMalformed), 0);
        let (a, b) = (pair.a.engine.get(), pair.b.engine.get());
        assert_eq!(a.peers[0].tx_bytes, b.peers[0].rx_bytes);
        assert!(!a.to_text().contains("path_probes"));
    }
}

#[test]
fn the_permission_to_probe_is_told_taken_back_and_saved() {
    let mut pair = Pair::new();
    let allowed = |side: &Side| side.engine.get().peers[0].path_probes;
    assert!(allowed(&pair.a));
    let key = pair.b.key;
    let update = |path_probes| PeerUpdate {
        path_probes,
        ..PeerUpdate::new(key)
    };
    pair.a.set(pair.now, vec![update(None)]);
    assert!(allowed(&pair.a), "what is not named stays");
    let text = pair.a.engine.get().to_text();
    assert!(text.contains("\npath_probes=true\n"), "{}", *text);
    pair.a.set(pair.now, vec![update(Some(false))]);
    assert!(!allowed(&pair.a));
}

#[test]
fn what_does_not_arrive_in_one_piece_leaves_in_pieces_but_for_the_question_whether_it_does() {
    let mut pair = Pair::between("[2001:db8::1]:1", "[2001:db8::2]:2", Some(true));
    // The smallest MTU inside makes 1,360 bytes outside.
    let (narrow, large) = (1300, packet("10.1.0.1", "10.2.0.1", 1280, 0));
    let outer = |bytes: usize| bytes + HEADERS_V6;
    let (mut pieces, mut arrived, mut questions) = (0, 0, 0);
    for second in 0..90 {
        pair.a
            .engine
            .handle_tun_packet(pair.now, &large, &mut pair.a.out);
        pair.a.engine.handle_timers(pair.now, &mut pair.a.out);
        let ways: Vec<bool> = pair
            .a
            .out
            .outgoing()
            .map(|(way, _)| way.in_pieces)
            .collect();
        let mut made = pair.a.take();
        let mut ways = ways.into_iter();
        made.retain(|(_, bytes)| {
            let in_pieces = ways.next().unwrap();
            pieces += u32::from(in_pieces);
            if outer(bytes.len()) > narrow && !in_pieces && second > 30 {
                questions += 1;
            }
            in_pieces || outer(bytes.len()) <= narrow
        });
        let before = pair.b.delivered.len();
        carry(pair.now, &mut [&mut pair.a, &mut pair.b], 0, made);
        arrived = if pair.b.delivered.len() > before {
            arrived + 1
        } else {
            0
        };
        while let Some(query) = pair.a.engine.poll_path_query() {
            pair.a.engine.handle_path_mtu(pair.now, query, 1500);
        }
        pair.now = pair.now + Duration::from_secs(1);
    }
    assert_eq!(pair.limit(), Some(1280));
    assert!(arrived > 60, "the last {arrived} of 90 arrived");
    assert_eq!(
        pair.a.engine.counters().udp_tx_fragmented,
        u64::from(pieces)
    );
    assert!(
        questions > 0,
        "larger sizes are still asked for, in one piece"
    );
}

#[test]
fn what_the_kernel_knows_to_be_too_large_is_left_to_it_and_counted() {
    for (a, b) in [
        ("192.0.2.1:1", "192.0.2.2:2"),
        ("[2001:db8::1]:1", "[2001:db8::2]:2"),
    ] {
        let mut pair = Pair::between(a, b, Some(true));
        // Measured again after ten seconds of talk: the kernel has learned of a narrow place.
        pair.talk(11, 1500);
        let query = pair.a.engine.poll_path_query().unwrap();
        pair.a.engine.handle_path_mtu(pair.now, query, 1300);
        let before = pair.a.engine.counters().udp_tx_fragmented;
        for (size, counted) in [(1200, 0), (1280, 1)] {
            let inner = packet("10.1.0.1", "10.2.0.1", size, 0);
            pair.a
                .engine
                .handle_tun_packet(pair.now, &inner, &mut pair.a.out);
            assert!(pair.a.out.outgoing().all(|(way, _)| !way.in_pieces));
            pair.a.take();
            let now = pair.a.engine.counters().udp_tx_fragmented;
            assert_eq!(now - before, counted, "{size} to {b}");
        }
    }
}
