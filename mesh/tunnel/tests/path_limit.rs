//! A path that swallows large packets without a word is found by the tunnel itself.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

mod support;

use std::time::{Duration, Instant};

use support::{Side, carry, packet, peer};
use warren_core::uapi::PeerUpdate;
use warren_tunnel::{DropReason, Now};

/// What IPv4, UDP and nothing else add to a datagram.
const HEADERS: usize = 28;

struct Pair {
    now: Now,
    a: Side,
    b: Side,
}

impl Pair {
    fn new() -> Self {
        Self::with_probes(Some(true))
    }

    fn with_probes(path_probes: Option<bool>) -> Self {
        let now = Now::read();
        let (mut a, mut b) = (Side::new("192.0.2.1:1"), Side::new("192.0.2.2:2"));
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
        let mut pair = Pair::with_probes(path_probes);
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
