//! Engines of several shards of one device, which hear the same requests.

#![allow(clippy::unwrap_used)] // helpers of tests

mod support;

use proptest::prelude::*;
use support::{Side, net, packet, peer};
use warren_core::uapi::{AllowedIpUpdate, PeerUpdate, SetRequest};
use warren_keyring::{PrivateKey, PublicKey};
use warren_tunnel::{DropReason, Engine, EngineConfig, Now, Outbox, Place, ShardId};

/// The engines of a device with so many shards, and its key.
fn device(shards: u8) -> (Vec<Engine>, PrivateKey) {
    let key = PrivateKey::generate().unwrap();
    let engine = |place: Place| {
        Engine::new(EngineConfig {
            place,
            ..EngineConfig::new(Some(key.clone()), 9 + u64::from(place.own().number()))
        })
    };
    (Place::all(shards).map(engine).collect(), key)
}

fn keys(count: usize) -> Vec<PublicKey> {
    let key = |_| PrivateKey::generate().unwrap().public_key();
    (0..count).map(key).collect()
}

fn set(engines: &mut [Engine], now: Now, peers: Vec<PeerUpdate>) {
    let request = SetRequest {
        peers,
        ..SetRequest::default()
    };
    for engine in engines {
        engine.apply(now, &request).unwrap();
    }
}

/// Which engine takes a packet to the address as its own; all others must name that one.
fn owner(engines: &mut [Engine], now: Now, to: &str) -> Option<u8> {
    let packet = packet("10.0.0.1", to, 100, 0);
    let mut out = Outbox::new();
    let mut here = Vec::new();
    let mut named = Vec::new();
    for (n, engine) in (0..).zip(engines) {
        let no_route = engine.counters().drops.get(DropReason::NoRoute);
        match engine.handle_tun_packet(now, &packet, &mut out) {
            Some(shard) => named.push(shard.number()),
            None if engine.counters().drops.get(DropReason::NoRoute) > no_route => {}
            None => here.push(n),
        }
    }
    assert!(here.len() <= 1, "{here:?}");
    assert!(
        named.iter().all(|shard| here == [*shard]),
        "{here:?}, but {named:?}"
    );
    here.first().copied()
}

#[test]
fn peers_spread_over_the_shards_and_each_has_a_state_in_one_alone() {
    let now = Now::read();
    let (mut engines, _) = device(4);
    let keys = keys(8);
    let peers = keys.iter().zip(1..).map(|(key, n)| {
        let endpoint = format!("192.0.2.{n}:7").parse().unwrap();
        peer(*key, Some(endpoint), &[&format!("10.{n}.0.0/16")])
    });
    set(&mut engines, now, peers.collect());
    for engine in &engines {
        assert_eq!((engine.peer_count(), engine.own_peer_count()), (8, 2));
    }
    let owners: Vec<_> = (1..=8)
        .map(|n| owner(&mut engines, now, &format!("10.{n}.1.1")).unwrap())
        .collect();
    assert_eq!(owners, [3, 2, 1, 0, 3, 2, 1, 0]);
    let mut told: Vec<_> = engines
        .iter()
        .flat_map(|engine| engine.get().peers)
        .map(|peer| peer.public_key)
        .collect();
    told.sort();
    let mut expected = keys.clone();
    expected.sort();
    assert_eq!(told, expected);
    // The first packet of each has begun a handshake, in its own shard.
    let waiting: Vec<_> = engines.iter().map(Engine::waiting_bytes).collect();
    assert_eq!(waiting, [200; 4]);
}

#[test]
fn a_frame_for_another_shard_is_left_as_it_was() {
    use warren_tunnel::offload::{Offload, PartialChecksum};
    let now = Now::read();
    let (mut engines, _) = device(2);
    let endpoint = "192.0.2.1:7".parse().unwrap();
    let new = peer(keys(1)[0], Some(endpoint), &["10.1.0.0/16"]);
    set(&mut engines, now, vec![new]);
    // Whose checksum is still to be computed: twice would be once too often.
    let offload = Offload {
        checksum: Some(PartialChecksum {
            start: 20,
            offset: 6,
        }),
        split: None,
    };
    let mut frame = packet("10.0.0.1", "10.1.0.1", 100, 3);
    let before = frame.clone();
    let mut out = Outbox::new();
    let elsewhere = engines[0].handle_tun_frame(now, &mut frame, Some(offload), &mut out);
    assert_eq!(elsewhere, ShardId::new(1));
    assert_eq!(frame, before);
    assert_eq!(
        engines[0].counters().tun_rx_packets,
        0,
        "the other one counts it"
    );
    assert!(out.is_empty());
}

#[test]
fn responses_come_back_by_indices_of_the_shard_and_sources_are_checked_against_all_peers() {
    let now = Now::read();
    let (mut engines, key) = device(4);
    let mut others = ["192.0.2.1:7", "192.0.2.2:7"].map(Side::new);
    let updates = [
        peer(others[0].key, Some(others[0].address), &["10.1.0.0/16"]),
        // Within the other one's, and in another shard.
        peer(others[1].key, Some(others[1].address), &["10.1.9.0/24"]),
    ];
    set(&mut engines, now, updates.into());
    let address = "192.0.2.100:7".parse().unwrap();
    let mut out = Outbox::new();
    for (n, shard) in [(0, 3usize), (1, 2)] {
        let (engine, other) = (&mut engines[shard], &mut others[n]);
        other.set(
            now,
            vec![peer(key.public_key(), Some(address), &["0.0.0.0/0"])],
        );
        let to = ["10.1.0.1", "10.1.9.1"][n];
        assert_eq!(
            engine.handle_tun_packet(now, &packet("10.0.0.1", to, 100, 0), &mut out),
            None
        );
        let initiations: Vec<_> = out.datagrams().map(|(_, bytes)| bytes.to_vec()).collect();
        out.clear();
        assert_eq!(initiations.len(), 1);
        let sender = u32::from_le_bytes(initiations[0][4..8].try_into().unwrap());
        assert_eq!(sender >> 27 & 0xf, shard as u32);
        for (_, response) in other.udp(now, address, &initiations[0]) {
            engine.handle_datagram(now, other.address, &response, &mut out);
        }
        let datagrams: Vec<_> = out.datagrams().map(|(_, bytes)| bytes.to_vec()).collect();
        out.clear();
        for datagram in datagrams {
            other.udp(now, address, &datagram);
        }
        assert_eq!(other.delivered.len(), 1);
    }
    // The first one speaks for its own, and not for what is the second one's.
    for (from, expected) in [("10.1.0.1", 1), ("10.1.9.1", 0)] {
        let sent = others[0].tun(now, &packet(from, "10.0.0.1", 100, 0));
        let before = engines[3].counters().clone();
        for (_, datagram) in sent {
            engines[3].handle_datagram(now, others[0].address, &datagram, &mut out);
        }
        assert_eq!(out.packets().len(), expected, "{from}");
        out.clear();
        let refused = engines[3].counters().drops.get(DropReason::WrongSource)
            - before.drops.get(DropReason::WrongSource);
        assert_eq!(refused, 1 - expected as u64);
    }
}

/// One change of the peers, by small numbers.
#[derive(Clone, Debug)]
enum Step {
    Give(usize, u8, bool),
    Take(usize, u8),
    Remove(usize),
    ReplacePeers(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..12usize, any::<u8>(), any::<bool>()).prop_map(|(peer, net, replace)| Step::Give(peer, net, replace)),
        2 => (0..12usize, any::<u8>()).prop_map(|(peer, net)| Step::Take(peer, net)),
        2 => (0..12usize).prop_map(Step::Remove),
        1 => (0..12usize).prop_map(Step::ReplacePeers),
    ]
}

fn prefix(number: u8) -> String {
    format!(
        "10.{}.0.0/{}",
        number % 4,
        [8, 14, 15, 16][usize::from(number / 4 % 4)]
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn several_shards_route_as_one_does_whatever_was_asked_of_them(
        steps in prop::collection::vec(step(), 1..40),
        shards in 2..6u8,
    ) {
        let now = Now::read();
        let (mut several, key) = device(shards);
        let mut alone = Engine::new(EngineConfig::new(Some(key), 5));
        let keys = keys(12);
        for step in steps {
            let update = |n: usize| PeerUpdate::new(keys[n]);
            let mut request = SetRequest::default();
            request.peers.push(match step {
                Step::Give(n, number, replace) => PeerUpdate {
                    replace_allowed_ips: replace,
                    allowed_ips: vec![AllowedIpUpdate::Add(net(&prefix(number)))],
                    ..update(n)
                },
                Step::Take(n, number) => PeerUpdate {
                    update_only: true,
                    allowed_ips: vec![AllowedIpUpdate::Remove(net(&prefix(number)))],
                    ..update(n)
                },
                Step::Remove(n) => PeerUpdate { remove: true, ..update(n) },
                Step::ReplacePeers(n) => {
                    request.replace_peers = true;
                    update(n)
                }
            });
            alone.apply(now, &request).unwrap();
            for engine in &mut several {
                engine.apply(now, &request).unwrap();
            }
            let mut together: Vec<_> = several.iter().flat_map(|engine| engine.get().peers).collect();
            together.sort_by_key(|peer| peer.public_key);
            prop_assert_eq!(together, alone.get().peers);
            let counts: Vec<_> = several.iter().map(Engine::own_peer_count).collect();
            prop_assert_eq!(counts.iter().sum::<usize>(), alone.peer_count());
            for second in 0..5 {
                let to = format!("10.{second}.0.1");
                let routed = owner(&mut several, now, &to).is_some();
                let before = alone.counters().drops.get(DropReason::NoRoute);
                alone.handle_tun_packet(now, &packet("10.0.0.1", &to, 100, 0), &mut Outbox::new());
                let no_route = alone.counters().drops.get(DropReason::NoRoute) > before;
                prop_assert_eq!(routed, !no_route);
            }
        }
    }
}
