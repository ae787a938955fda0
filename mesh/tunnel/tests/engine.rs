//! The device without I/O: what goes where, and what is refused why.

mod support;

use std::time::Duration;

use proptest::prelude::*;
use support::{Side, carry, connected, net, packet, pair, peer, seconds};
use warren_core::uapi::{AllowedIpUpdate, PeerUpdate, SetRequest};
use warren_keyring::{PresharedKey, PrivateKey};
use warren_tunnel::{DropReason, Engine, EngineConfig, MessageLimits, Now, Outbox};

#[test]
fn packets_pass_both_ways_in_both_families_after_one_handshake() {
    let now = Now::read();
    let (mut a, mut b) = pair(now);
    let there = packet("10.1.0.1", "10.2.0.9", 100, 7);
    let datagrams = a.tun(now, &there);
    assert_eq!(datagrams.len(), 1, "an initiation");
    assert_eq!(datagrams[0].1.len(), 148);
    carry(now, &mut [&mut a, &mut b], 0, datagrams);
    assert_eq!(b.delivered, [there]);
    for (from_a, to_b) in [("10.1.0.1", "10.2.0.9"), ("fd01::1", "fd02::9")] {
        let (there, back) = (packet(from_a, to_b, 1420, 1), packet(to_b, from_a, 77, 2));
        b.delivered.clear();
        a.delivered.clear();
        let datagrams = a.tun(now, &there);
        carry(now, &mut [&mut a, &mut b], 0, datagrams);
        let datagrams = b.tun(now, &back);
        carry(now, &mut [&mut a, &mut b], 1, datagrams);
        assert_eq!(b.delivered, [there]);
        assert_eq!(a.delivered, [back]);
    }
    assert_eq!(a.engine.counters().handshakes, 1);
    assert_eq!(b.engine.counters().handshakes, 1);
    assert_eq!(
        a.engine.counters().drops.total() + b.engine.counters().drops.total(),
        0
    );
}

#[test]
fn get_tells_handshake_time_and_counts_whole_datagrams_as_the_reference_does() {
    let now = Now::read();
    let (mut a, mut b) = pair(now);
    let datagrams = a.tun(now, &packet("10.1.0.1", "10.2.0.1", 100, 0));
    carry(now, &mut [&mut a, &mut b], 0, datagrams);
    let (a, b) = (&a.engine.get().peers[0], &b.engine.get().peers[0]);
    // Initiation 148, keepalive 32, 100 bytes padded to 112 and 32 around them; the response is 92.
    assert_eq!((a.tx_bytes, a.rx_bytes), (148 + 32 + 144, 92));
    assert_eq!((b.tx_bytes, b.rx_bytes), (a.rx_bytes, a.tx_bytes));
    assert_eq!(a.last_handshake, Some(now.unix));
    assert_eq!(b.last_handshake, Some(now.unix));
}

#[test]
fn data_is_padded_to_16_bytes_but_never_beyond_the_inner_mtu() {
    let now = Now::read();
    let (mut a, b) = connected(now);
    let mut wire_len = |len| {
        a.tun(now, &packet("10.1.0.1", "10.2.0.1", len, 0))
            .remove(0)
            .1
            .len()
            - 32
    };
    assert_eq!(wire_len(20), 32);
    assert_eq!(wire_len(32), 32);
    assert_eq!(wire_len(33), 48);
    assert_eq!(wire_len(1410), 1420, "1424 would not fit a path of 1480");
    assert_eq!(wire_len(1420), 1420);
    let query = a
        .engine
        .poll_path_query()
        .expect("the path of a new endpoint is asked for");
    assert_eq!(query.endpoint, b.address);
    a.engine.handle_path_mtu(now, query, 1500);
    let mut wire_len = |len| {
        a.tun(now, &packet("10.1.0.1", "10.2.0.1", len, 0))
            .remove(0)
            .1
            .len()
            - 32
    };
    assert_eq!(wire_len(1410), 1424);
    assert_eq!(wire_len(1430), 1440);
    assert_eq!(wire_len(1440), 1440);
}

#[test]
fn a_packet_to_nobody_or_to_a_peer_without_endpoint_is_dropped_with_its_reason() {
    let now = Now::read();
    let (mut a, b) = pair(now);
    assert!(
        a.tun(now, &packet("10.1.0.1", "10.3.0.1", 40, 0))
            .is_empty()
    );
    let mut udp = packet("fd01::1", "fd03::1", 60, 0);
    udp[6] = 17;
    assert!(a.tun(now, &udp).is_empty());
    assert_eq!(a.drops(DropReason::NoRoute), 2);
    // Whoever sent them is told so.
    let told: Vec<_> = a.delivered.drain(..).collect();
    assert_eq!(
        (told[0][20..22].to_vec(), told[1][40..42].to_vec()),
        (vec![3, 1], vec![1, 3])
    );
    assert_eq!(told.len(), 2);
    let mut c = Side::new("192.0.2.3:1003");
    c.set(now, vec![peer(b.key, None, &["10.2.0.0/24"])]);
    assert!(
        c.tun(now, &packet("10.1.0.1", "10.2.0.1", 40, 0))
            .is_empty()
    );
    assert_eq!(c.drops(DropReason::NoEndpoint), 1);
    assert_eq!(c.delivered[0][20..22], [3, 1]);
    assert!(a.tun(now, &[0x45; 10]).is_empty());
    assert!(a.tun(now, &[]).is_empty());
    assert_eq!(a.drops(DropReason::TunMalformed), 2);
    assert!(a.delivered.is_empty());
}

#[test]
fn a_source_that_is_not_the_peers_is_dropped() {
    let now = Now::read();
    let (mut a, mut b) = connected(now);
    for (source, destination, reason) in [
        ("10.3.0.1", "10.2.0.1", DropReason::WrongSource),
        ("10.2.0.5", "10.2.0.1", DropReason::WrongSource),
        ("fd03::1", "fd02::1", DropReason::WrongSource),
        ("127.0.0.1", "10.2.0.1", DropReason::MartianSource),
        ("::ffff:10.1.0.1", "fd02::1", DropReason::MartianSource),
    ] {
        let before = b.drops(reason);
        let len = if source.contains(':') { 60 } else { 40 };
        let datagrams = a.tun(now, &packet(source, destination, len, 0));
        assert_eq!(datagrams.len(), 1);
        carry(now, &mut [&mut a, &mut b], 0, datagrams);
        assert_eq!(b.drops(reason), before + 1, "{source}");
    }
    assert!(b.delivered.is_empty());
}

#[test]
fn a_narrower_prefix_of_another_peer_cannot_be_spoken_for() {
    let now = Now::read();
    let (mut a, mut b) = connected(now);
    let c = Side::new("192.0.2.3:1003");
    b.add(now, &c, &["10.1.0.128/25"]);
    for (source, passes) in [("10.1.0.127", true), ("10.1.0.128", false)] {
        b.delivered.clear();
        let datagrams = a.tun(now, &packet(source, "10.2.0.1", 40, 0));
        carry(now, &mut [&mut a, &mut b], 0, datagrams);
        assert_eq!(b.delivered.len() == 1, passes, "{source}");
    }
    assert_eq!(b.drops(DropReason::WrongSource), 1);
}

#[test]
fn a_prefix_moves_between_peers_under_traffic_without_a_lost_packet() {
    let now = Now::read();
    let (mut a, mut b) = connected(now);
    let mut c = Side::new("192.0.2.3:1003");
    c.add(now, &a, &["10.1.0.0/24"]);
    a.add(now, &c, &[]);
    let start = a.timers(now + seconds(1));
    carry(now, &mut [&mut a, &mut b, &mut c], 0, start);
    for round in 0..20 {
        let owner = if round % 2 == 0 { c.key } else { b.key };
        a.set(now, vec![peer(owner, None, &["10.2.0.0/24"])]);
        let datagrams = a.tun(now, &packet("10.1.0.1", "10.2.0.1", 40, round));
        carry(now, &mut [&mut a, &mut b, &mut c], 0, datagrams);
    }
    assert_eq!((b.delivered.len(), c.delivered.len()), (10, 10));
    assert_eq!(a.engine.counters().drops.total(), 0);
}

#[test]
fn peers_with_different_preshared_keys_never_connect() {
    let now = Now::read();
    let (mut a, mut b) = pair(now);
    let preshared_key = Some(PresharedKey::generate().unwrap());
    a.set(
        now,
        vec![PeerUpdate {
            preshared_key: preshared_key.clone(),
            ..PeerUpdate::new(b.key)
        }],
    );
    let datagrams = a.tun(now, &packet("10.1.0.1", "10.2.0.1", 40, 0));
    carry(now, &mut [&mut a, &mut b], 0, datagrams);
    assert!(b.delivered.is_empty());
    assert_eq!(a.drops(DropReason::HandshakeRefused), 1);
    assert_eq!(a.engine.get().peers[0].last_handshake, None);

    b.set(
        now,
        vec![PeerUpdate {
            preshared_key,
            ..PeerUpdate::new(a.key)
        }],
    );
    let later = now + seconds(6);
    let datagrams = a.tun(later, &packet("10.1.0.1", "10.2.0.1", 40, 0));
    carry(later, &mut [&mut a, &mut b], 0, datagrams);
    assert_eq!(b.delivered.len(), 2, "the one that waited, and the new one");
}

#[test]
fn the_endpoint_follows_authenticated_packets_only() {
    let now = Now::read();
    let (mut a, mut b) = connected(now);
    let old = a.address;
    let elsewhere = "[2001:db8::7]:7777".parse().unwrap();
    let good = a
        .tun(now, &packet("10.1.0.1", "10.2.0.1", 40, 0))
        .remove(0)
        .1;
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    b.udp(now, elsewhere, &forged);
    assert_eq!(b.engine.get().peers[0].endpoint, Some(old));
    assert_eq!(b.drops(DropReason::DecryptFailed), 1);
    b.engine.take_changed();
    b.udp(now, elsewhere, &good);
    assert_eq!(b.engine.get().peers[0].endpoint, Some(elsewhere));
    assert!(
        b.engine.take_changed(),
        "a learned endpoint is worth saving"
    );
    let back = b.tun(now, &packet("10.2.0.1", "10.1.0.1", 40, 0));
    assert_eq!(back[0].0, elsewhere);
    // A replay from the old place does not bring it back.
    b.udp(now, old, &good);
    assert_eq!(b.engine.get().peers[0].endpoint, Some(elsewhere));
    assert_eq!(b.drops(DropReason::Replayed), 1);
    assert_eq!(b.delivered.len(), 1);
}

#[test]
fn strangers_and_broken_handshakes_are_met_with_silence() {
    let now = Now::read();
    let (mut a, mut b) = pair(now);
    let mut stranger = Side::new("192.0.2.66:66");
    stranger.add(now, &b, &["10.2.0.0/24"]);
    let from = stranger.address;
    let initiation = stranger
        .tun(now, &packet("10.1.0.1", "10.2.0.1", 40, 0))
        .remove(0)
        .1;
    assert!(b.udp(now, from, &initiation).is_empty());
    assert_eq!(b.drops(DropReason::UnknownPeer), 1);

    let initiation = a
        .tun(now, &packet("10.1.0.1", "10.2.0.1", 40, 0))
        .remove(0)
        .1;
    let mut bad_mac = initiation.clone();
    bad_mac[120] ^= 1;
    assert!(b.udp(now, a.address, &bad_mac).is_empty());
    assert_eq!(b.drops(DropReason::BadMac1), 1);
    assert_eq!(b.udp(now, a.address, &initiation).len(), 1);
    let soon = now + Duration::from_millis(19);
    assert!(b.udp(soon, a.address, &initiation).is_empty());
    assert_eq!(b.drops(DropReason::HandshakeFlood), 1);
    let later = now + Duration::from_millis(20);
    assert!(b.udp(later, a.address, &initiation).is_empty());
    assert_eq!(b.drops(DropReason::HandshakeReplayed), 1);

    let mut data = vec![0; 64];
    data[0] = 4;
    assert!(b.udp(now, a.address, &data).is_empty());
    assert_eq!(b.drops(DropReason::UnknownIndex), 1);
    assert_eq!(b.engine.get().peers[0].rx_bytes, 148);
}

#[test]
fn a_flood_of_handshakes_is_answered_with_one_cookie_each_and_the_cookie_lets_in() {
    let now = Now::read();
    let (mut a, mut b) = pair(now);
    let initiation = a
        .tun(now, &packet("10.1.0.1", "10.2.0.1", 40, 0))
        .remove(0)
        .1;
    for _ in 0..2000 {
        let answers = b.udp(now, a.address, &initiation);
        assert!(answers.len() <= 1);
    }
    assert!(b.drops(DropReason::UnderLoad) > 1000);
    // A fresh initiation now gets a cookie; its retry carries it and is let in.
    let retry = a.timers(now + seconds(6)).remove(0).1;
    let answer = b.udp(now, a.address, &retry).remove(0).1;
    assert_eq!(answer.len(), 64);
    assert!(a.udp(now + seconds(6), b.address, &answer).is_empty());
    let retry = a.timers(now + seconds(12)).remove(0).1;
    // Later than the 20 ms between two initiations of one peer, and in the same second.
    let soon = now + Duration::from_millis(30);
    assert!(
        b.udp(soon, a.address, &retry).is_empty(),
        "others came before"
    );
    // One round of a few key exchanges, and the proven one comes first.
    let response = b.timers(soon);
    assert_eq!(response.len(), 1);
    assert_eq!(response[0].1.len(), 92);
    carry(now + seconds(12), &mut [&mut b, &mut a], 0, response);
    assert_eq!(b.delivered.len(), 1);
    b.settle(soon);
    assert_eq!(
        b.drops(DropReason::HandshakeFlood) + b.drops(DropReason::HandshakeReplayed),
        // 256 but for the first, and two more that a peer's address has in any case.
        257,
        "those without a cookie are done afterwards"
    );
}

#[test]
fn a_peer_in_whose_name_a_flood_is_forged_is_called_back_unless_it_has_a_session() {
    let now = Now::read();
    let (mut a, mut b) = pair(now);
    let mut stranger = Side::new("192.0.2.66:66");
    stranger.add(now, &b, &["10.2.0.0/24"]);
    let forged = stranger
        .tun(now, &packet("10.1.0.1", "10.2.0.1", 40, 0))
        .remove(0)
        .1;
    // The peer was tried and given up, long ago.
    for passed in 0..200 {
        b.settle(now + seconds(passed));
    }
    let later = now + seconds(200);
    // Handshakes are begun in rounds that are 20 ms apart.
    let rest = |b: &mut Side, from: Now| -> Vec<_> {
        let rounds = (0..10).map(|n| from + Duration::from_millis(25 * n));
        rounds.flat_map(|now| b.settle(now)).collect()
    };
    let flood = |b: &mut Side, from| {
        for _ in 0..300 {
            b.udp(later, from, &forged);
        }
        rest(b, later)
    };
    let to = a.address;
    assert!(
        flood(&mut b, stranger.address).is_empty(),
        "nobody's address"
    );
    let call = flood(&mut b, a.address);
    assert_eq!(call.len(), 1, "once");
    assert_eq!((call[0].0, call[0].1.len()), (to, 148));
    assert!(flood(&mut b, a.address).is_empty(), "not again before 5 s");
    // The answer goes ahead of the flood, and the session stands.
    carry(later, &mut [&mut b, &mut a], 0, call);
    let answered = b.settle(later);
    carry(later, &mut [&mut b, &mut a], 0, answered);
    let data = b.tun(later, &packet("10.2.0.1", "10.1.0.1", 40, 0));
    carry(later, &mut [&mut b, &mut a], 0, data);
    assert_eq!(a.delivered.len(), 1);
    let later = later + seconds(10);
    for _ in 0..600 {
        b.udp(later, a.address, &forged);
    }
    let sent = b.settle(later);
    assert!(
        sent.iter().all(|(_, sent)| sent.len() != 148),
        "it has a session"
    );
}

#[test]
fn sessions_older_than_180_seconds_are_refused_in_both_directions() {
    let now = Now::read();
    let (mut a, mut b) = connected(now);
    let data = a
        .tun(now, &packet("10.1.0.1", "10.2.0.1", 40, 0))
        .remove(0)
        .1;
    b.udp(now + seconds(181), a.address, &data);
    assert_eq!(b.drops(DropReason::SessionExpired), 1);
    assert!(b.delivered.is_empty());
    let later = a.tun(now + seconds(181), &packet("10.1.0.1", "10.2.0.1", 40, 0));
    assert_eq!(later.len(), 1);
    assert_eq!(
        later[0].1.len(),
        148,
        "an initiation, and no data with the old keys"
    );
    carry(now + seconds(181), &mut [&mut a, &mut b], 0, later);
    assert_eq!(
        b.delivered.len(),
        1,
        "the packet has waited for the new session"
    );
}

#[test]
fn an_unanswered_handshake_is_retried_with_jitter_and_given_up_after_90_seconds() {
    let now = Now::read();
    let (mut a, _b) = pair(now);
    assert_eq!(a.tun(now, &packet("10.1.0.1", "10.2.0.1", 40, 0)).len(), 1);
    let (mut at, mut sent) = (now, 1);
    while a.drops(DropReason::HandshakeTimeout) == 0 {
        let due = a.engine.poll_timeout().expect("a handshake is under way");
        let step = due.saturating_duration_since(at.monotonic);
        assert!(step <= seconds(6), "{step:?}");
        at = at + step;
        sent += a.timers(at).len();
        assert!(
            at.monotonic - now.monotonic < seconds(97),
            "it must give up"
        );
    }
    assert!((15..=19).contains(&sent), "{sent} initiations in 90 s");
    assert_eq!(a.engine.waiting_bytes(), 0);
    assert_eq!(
        a.tun(at, &packet("10.1.0.1", "10.2.0.1", 40, 0)).len(),
        1,
        "and begins anew"
    );
}

#[test]
fn a_peer_that_stops_answering_is_asked_for_a_new_session() {
    let now = Now::read();
    let (mut a, _b) = connected(now);
    assert_eq!(a.tun(now, &packet("10.1.0.1", "10.2.0.1", 40, 0)).len(), 1);
    assert!(a.timers(now + seconds(14)).is_empty());
    let asked = a.timers(now + seconds(16));
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].1.len(), 148);
}

#[test]
fn persistent_keepalive_goes_on_after_a_failed_handshake() {
    let now = Now::read();
    let (mut a, b) = pair(now);
    let keepalive = PeerUpdate {
        persistent_keepalive: Some(25),
        ..PeerUpdate::new(b.key)
    };
    a.set(now, vec![keepalive]);
    let (mut at, mut sent) = (now, 0);
    for _ in 0..2000 {
        let Some(due) = a.engine.poll_timeout() else {
            panic!("keepalive must go on")
        };
        at = at + due.saturating_duration_since(at.monotonic);
        if at.monotonic - now.monotonic > seconds(300) {
            break;
        }
        sent += a.timers(at).len();
    }
    assert!(sent > 30, "{sent} initiations in 300 s");
}

#[test]
fn peers_at_rest_need_no_timer() {
    let now = Now::read();
    let (mut a, b) = pair(now);
    let mut c = Side::new("192.0.2.3:1003");
    c.set(now, vec![peer(b.key, None, &["10.2.0.0/24"])]);
    assert_eq!(c.engine.poll_timeout(), None);
    // Nor is there anywhere to send a keepalive to.
    let keepalive = PeerUpdate {
        persistent_keepalive: Some(1),
        ..PeerUpdate::new(b.key)
    };
    c.set(now, vec![keepalive]);
    assert_eq!(c.engine.poll_timeout(), None);
    // After a handshake that nobody answered, too.
    a.timers(now);
    let mut at = now;
    while let Some(due) = a.engine.poll_timeout() {
        at = at + due.saturating_duration_since(at.monotonic);
        a.timers(at);
        assert!(
            at.monotonic - now.monotonic < seconds(200),
            "must come to rest"
        );
    }
}

#[test]
fn a_thousand_peers_in_a_black_hole_stay_within_one_budget() {
    let now = Now::read();
    let mut config = EngineConfig::new(Some(PrivateKey::generate().unwrap()), 1);
    config.queue_limit_bytes = 1 << 20;
    let mut engine = Engine::new(config);
    let peers = (0..1000u32).map(|n| {
        let key = PrivateKey::generate().unwrap().public_key();
        let prefix = format!("10.{}.{}.0/24", n / 256, n % 256);
        peer(key, Some("192.0.2.9:9".parse().unwrap()), &[&prefix])
    });
    let request = SetRequest {
        peers: peers.collect(),
        ..SetRequest::default()
    };
    engine.apply(now, &request).unwrap();
    let mut out = Outbox::new();
    for round in 0..4 {
        for n in 0..1000 {
            let to = format!("10.{}.{}.1", n / 256, n % 256);
            engine.handle_tun_packet(now, &packet("10.9.0.1", &to, 1000, round), &mut out);
            out.clear();
        }
    }
    // A packet of 1,000 bytes takes 1,024 of the memory.
    assert_eq!(engine.waiting_bytes(), (1 << 10) * 1000);
    assert_eq!(
        engine.counters().drops.get(DropReason::QueueBudget),
        4000 - (1 << 10)
    );
    let remove = SetRequest {
        replace_peers: true,
        ..SetRequest::default()
    };
    engine.apply(now, &remove).unwrap();
    assert_eq!((engine.waiting_bytes(), engine.peer_count()), (0, 0));
    assert_eq!(engine.poll_timeout(), None);
}

#[test]
fn what_has_waited_leaves_in_portions_that_fit_and_nothing_passes_it() {
    for meanwhile in [false, true] {
        let now = Now::read();
        let (mut a, mut b) = pair(now);
        let mut sent = Vec::new();
        for n in 0..=255 {
            sent.extend(a.tun(now, &packet("10.1.0.1", "10.2.0.1", 1400, n)));
        }
        assert_eq!(sent.len(), 1, "an initiation");
        let response = b.udp(now, a.address, &sent[0].1);
        let first = a.udp(now, b.address, &response[0].1);
        let bytes: usize = first.iter().map(|(_, datagram)| datagram.len()).sum();
        assert!(bytes < 200_000, "{bytes} bytes at once");
        assert!(first.len() > 100);
        carry(now, &mut [&mut a, &mut b], 0, first);
        if meanwhile {
            let second = a.tun(now, &packet("10.1.0.1", "10.2.0.1", 100, 9));
            carry(now, &mut [&mut a, &mut b], 0, second);
        }
        // The timers see to the rest, soon.
        let soon = now + Duration::from_millis(20);
        let rest = a.settle(soon);
        carry(soon, &mut [&mut a, &mut b], 0, rest);
        assert_eq!(a.engine.waiting_bytes(), 0);
        let fills = b.delivered.iter().map(|packet| packet[30]);
        let expected: Vec<u8> = (0..=255).chain(meanwhile.then_some(9)).collect();
        assert_eq!(fills.collect::<Vec<_>>(), expected);
        assert_eq!(a.engine.counters().drops.total(), 0);
    }
}

#[test]
fn handshakes_to_all_peers_are_begun_at_once_but_paced() {
    let now = Now::read();
    let mut engine = Engine::new(EngineConfig::new(Some(PrivateKey::generate().unwrap()), 1));
    let peers = (0..100).map(|_| {
        peer(
            PrivateKey::generate().unwrap().public_key(),
            Some("192.0.2.9:9".parse().unwrap()),
            &[],
        )
    });
    let request = SetRequest {
        peers: peers.collect(),
        ..SetRequest::default()
    };
    engine.apply(now, &request).unwrap();
    engine.start_handshakes(now);
    assert_eq!(
        engine.poll_timeout(),
        Some(now.monotonic),
        "nobody has to send first"
    );
    let (mut out, mut at, mut begun) = (Outbox::new(), now, 0);
    while begun < 100 {
        engine.handle_timers(at, &mut out);
        let initiations = out.datagrams().len();
        assert!(
            (1..=32).contains(&initiations),
            "{initiations} in one round"
        );
        begun += initiations;
        out.clear();
        assert!(at.monotonic - now.monotonic < seconds(1));
        let due = engine.poll_timeout().unwrap();
        at = at + due.saturating_duration_since(at.monotonic);
    }
}

#[test]
fn set_follows_the_reference() {
    let now = Now::read();
    let (mut a, b) = pair(now);
    // The device's own key is passed over.
    a.set(now, vec![peer(a.key, None, &["10.7.0.0/24"])]);
    assert_eq!(a.engine.peer_count(), 1);
    // update_only makes no peer, remove of nobody is no error.
    let nobody = PrivateKey::generate().unwrap().public_key();
    a.set(
        now,
        vec![PeerUpdate {
            update_only: true,
            ..PeerUpdate::new(nobody)
        }],
    );
    a.set(
        now,
        vec![PeerUpdate {
            remove: true,
            ..PeerUpdate::new(nobody)
        }],
    );
    assert_eq!(a.engine.peer_count(), 1);
    // Single prefixes are added and removed, and only the owner's are removed.
    a.set(now, vec![peer(nobody, None, &["10.3.0.0/24"])]);
    let remove = |prefix| vec![AllowedIpUpdate::Remove(net(prefix))];
    a.set(
        now,
        vec![PeerUpdate {
            allowed_ips: remove("10.3.0.0/24"),
            ..PeerUpdate::new(b.key)
        }],
    );
    let prefixes = |side: &Side, key| {
        let device = side.engine.get();
        device
            .peers
            .into_iter()
            .find(|peer| peer.public_key == key)
            .unwrap()
            .allowed_ips
    };
    assert_eq!(prefixes(&a, nobody), [net("10.3.0.0/24")]);
    a.set(
        now,
        vec![PeerUpdate {
            allowed_ips: remove("fd02::/64"),
            ..PeerUpdate::new(b.key)
        }],
    );
    assert_eq!(prefixes(&a, b.key), [net("10.2.0.0/24")]);
    // replace_allowed_ips, replace_peers.
    let replace = PeerUpdate {
        replace_allowed_ips: true,
        ..peer(b.key, None, &["10.3.0.0/24"])
    };
    a.set(now, vec![replace]);
    assert_eq!(prefixes(&a, b.key), [net("10.3.0.0/24")]);
    assert_eq!(prefixes(&a, nobody), []);
    let request = SetRequest {
        replace_peers: true,
        peers: vec![PeerUpdate::new(nobody)],
        ..SetRequest::default()
    };
    a.engine.apply(now, &request).unwrap();
    assert_eq!(a.engine.get().peers.len(), 1);
    assert_eq!(a.engine.get().peers[0].public_key, nobody);
}

#[test]
fn a_new_private_key_ends_sessions_and_removes_the_peer_that_it_is() {
    let now = Now::read();
    let (mut a, mut b) = connected(now);
    let new = PrivateKey::generate().unwrap();
    a.set(now, vec![PeerUpdate::new(new.public_key())]);
    let request = SetRequest {
        private_key: Some(Some(new.clone())),
        ..SetRequest::default()
    };
    a.engine.apply(now, &request).unwrap();
    assert_eq!(a.engine.public_key(), Some(new.public_key()));
    assert_eq!(a.engine.peer_count(), 1);
    let stale = b
        .tun(now, &packet("10.2.0.1", "10.1.0.1", 40, 0))
        .remove(0)
        .1;
    a.udp(now, b.address, &stale);
    assert!(a.delivered.is_empty());
    let none = SetRequest {
        private_key: Some(None),
        ..SetRequest::default()
    };
    a.engine.apply(now, &none).unwrap();
    assert_eq!(a.engine.public_key(), None);
    assert!(
        a.tun(now, &packet("10.1.0.1", "10.2.0.1", 40, 0))
            .is_empty()
    );
    assert_eq!(a.drops(DropReason::NoPrivateKey), 1);
}

#[test]
fn both_generations_of_a_device_use_different_indices() {
    let now = Now::read();
    for generation in [false, true] {
        let key = PrivateKey::generate().unwrap();
        let config = EngineConfig {
            generation,
            ..EngineConfig::new(Some(key), 7)
        };
        let mut engine = Engine::new(config);
        let other = PrivateKey::generate().unwrap().public_key();
        let update = peer(
            other,
            Some("192.0.2.9:9".parse().unwrap()),
            &["10.2.0.0/24"],
        );
        let request = SetRequest {
            peers: vec![update],
            ..SetRequest::default()
        };
        engine.apply(now, &request).unwrap();
        let mut out = Outbox::new();
        engine.handle_tun_packet(now, &packet("10.1.0.1", "10.2.0.1", 40, 0), &mut out);
        let (_, initiation) = out.datagrams().next().unwrap();
        assert_eq!(
            initiation[7] >> 7,
            u8::from(generation),
            "the top bit of the sender's index"
        );
    }
}

#[test]
fn simultaneous_handshakes_end_in_a_working_session() {
    let now = Now::read();
    let (mut a, mut b) = pair(now);
    let from_a = a.tun(now, &packet("10.1.0.1", "10.2.0.1", 40, 1));
    let from_b = b.tun(now, &packet("10.2.0.1", "10.1.0.1", 40, 2));
    let to_a: Vec<_> = from_a
        .iter()
        .flat_map(|(_, bytes)| b.udp(now, a.address, bytes))
        .collect();
    let to_b: Vec<_> = from_b
        .iter()
        .flat_map(|(_, bytes)| a.udp(now, b.address, bytes))
        .collect();
    carry(now, &mut [&mut a, &mut b], 0, to_b);
    carry(now, &mut [&mut a, &mut b], 1, to_a);
    assert_eq!((a.delivered.len(), b.delivered.len()), (1, 1));
    for n in 0..10 {
        let there = a.tun(now, &packet("10.1.0.1", "10.2.0.1", 40, n));
        carry(now, &mut [&mut a, &mut b], 0, there);
        let back = b.tun(now, &packet("10.2.0.1", "10.1.0.1", 40, n));
        carry(now, &mut [&mut a, &mut b], 1, back);
    }
    assert_eq!((a.delivered.len(), b.delivered.len()), (11, 11));
}

#[test]
fn handshakes_that_nobody_completes_do_not_cost_the_session_that_works() {
    let now = Now::read();
    let (mut a, mut b) = connected(now);
    // Initiations whose responses are lost, until they have gone round boringtun's ring.
    let (mut answered, mut at) = (0, now);
    let _ = a.tun(now, &packet("10.1.0.1", "10.2.0.1", 40, 0));
    while answered < 12 {
        at = at + seconds(1);
        for (_, datagram) in a.timers(at) {
            let answers = b.udp(at, a.address, &datagram);
            answered += answers
                .iter()
                .filter(|(_, answer)| answer.len() == 92)
                .count();
            let back = b.tun(at, &packet("10.2.0.1", "10.1.0.1", 40, 0));
            assert!(
                back.iter().all(|(_, data)| data.len() == 80),
                "data, with keys that a has"
            );
            carry(at, &mut [&mut a, &mut b], 1, back);
            let there = a.tun(at, &packet("10.1.0.1", "10.2.0.1", 40, 0));
            carry(at, &mut [&mut a, &mut b], 0, there);
        }
        assert!(
            at.monotonic - now.monotonic < seconds(175),
            "{answered} answered"
        );
    }
    assert_eq!((a.delivered.len(), b.delivered.len()), (answered, answered));
}

#[test]
fn a_responder_does_not_send_with_keys_that_nobody_has_confirmed() {
    let now = Now::read();
    let (mut a, mut b) = pair(now);
    let initiation = a
        .tun(now, &packet("10.1.0.1", "10.2.0.1", 40, 0))
        .remove(0)
        .1;
    let response = b.udp(now, a.address, &initiation);
    assert_eq!(response.len(), 1);
    let sent = b.tun(now, &packet("10.2.0.1", "10.1.0.1", 40, 0));
    assert!(
        sent.is_empty(),
        "it waits for the initiator's first message"
    );
    carry(now, &mut [&mut a, &mut b], 1, response);
    assert_eq!((a.delivered.len(), b.delivered.len()), (1, 1));
}

#[test]
fn a_key_pair_is_renewed_and_then_refused_by_the_number_of_its_messages() {
    let now = Now::read();
    let limits = MessageLimits {
        rekey_after: 5,
        reject_after: 8,
    };
    let (mut a, mut b) = (
        Side::with_limits("192.0.2.1:1001", limits),
        Side::with_limits("192.0.2.2:1002", limits),
    );
    a.add(now, &b, &["10.2.0.0/24"]);
    b.add(now, &a, &["10.1.0.0/24"]);
    let first = a.tun(now, &packet("10.1.0.1", "10.2.0.1", 40, 0));
    carry(now, &mut [&mut a, &mut b], 0, first);
    // The keepalive and the first packet have the numbers 0 and 1. Nothing of this arrives.
    let later = now + seconds(6);
    let mut sent = Vec::new();
    for _ in 0..10 {
        sent.extend(a.tun(later, &packet("10.1.0.1", "10.2.0.1", 40, 0)));
    }
    let count = |len| {
        sent.iter()
            .filter(|(_, datagram)| datagram.len() == len)
            .count()
    };
    assert_eq!(count(148), 1, "a handshake, begun by the sixth message");
    assert_eq!(sent[4].1.len(), 148);
    assert_eq!(count(80), 6, "numbers 2 to 7, and none from 8 on");
    assert_eq!(sent.len(), 7);
    // The peer counts too: b would take number 7, but with a limit of 7 it does not.
    let mut strict = limits;
    strict.reject_after = 7;
    let mut c = Side::with_limits("192.0.2.3:1003", strict);
    let mut a = Side::with_limits("192.0.2.1:1001", limits);
    a.add(now, &c, &["10.2.0.0/24"]);
    c.add(now, &a, &["10.1.0.0/24"]);
    let first = a.tun(now, &packet("10.1.0.1", "10.2.0.1", 40, 0));
    carry(now, &mut [&mut a, &mut c], 0, first);
    let mut data = Vec::new();
    for _ in 0..6 {
        let made = a.tun(now, &packet("10.1.0.1", "10.2.0.1", 40, 0));
        data.extend(
            made.into_iter()
                .filter(|(_, datagram)| datagram.len() == 80),
        );
    }
    carry(now, &mut [&mut a, &mut c], 0, data);
    assert_eq!(c.delivered.len(), 6, "numbers 1 to 6");
    assert_eq!(c.drops(DropReason::SessionExpired), 1);
}

proptest! {
    #[test]
    fn no_datagram_and_no_packet_can_make_the_engine_panic(
        kind in 0u8..6,
        index in any::<bool>(),
        mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
        cut in 0usize..200,
        flip in any::<(usize, u8)>(),
    ) {
        let now = Now::read();
        let (mut a, mut b) = connected(now);
        if bytes.len() >= 8 {
            bytes[..4].copy_from_slice(&u32::from(kind).to_le_bytes());
            if index {
                let real = a.tun(now, &packet("10.1.0.1", "10.2.0.1", 40, 0)).remove(0).1;
                bytes[4..8].copy_from_slice(&real[4..8]);
            }
        }
        let from = a.address;
        b.udp(now, from, &bytes);
        a.tun(now, &bytes);
        let mut real = a.tun(now, &packet("10.1.0.1", "10.2.0.1", 100, 0)).remove(0).1;
        let at = flip.0 % real.len();
        real[at] ^= flip.1;
        real.truncate(real.len() - cut.min(real.len()));
        b.udp(now, from, &real);
        let untouched = flip.1 == 0 && cut == 0;
        prop_assert_eq!(b.delivered.len(), usize::from(untouched));
    }
}
