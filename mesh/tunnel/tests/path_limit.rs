//! A path that swallows large packets without a word is found by the tunnel itself.
#![allow(clippy::unwrap_used)] // in a test, a failed unwrap is the report

mod support;

use std::time::{Duration, Instant};

use support::{Side, carry, packet};
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
        let now = Now::read();
        let (mut a, mut b) = (Side::new("192.0.2.1:1"), Side::new("192.0.2.2:2"));
        a.add(now, &b, &["10.2.0.0/16"]);
        b.add(now, &a, &["10.1.0.0/16"]);
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
