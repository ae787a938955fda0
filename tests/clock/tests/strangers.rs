//! What strangers, floods and latecomers get.

#![allow(clippy::unwrap_used)] // tests

use std::net::SocketAddr;
use std::time::Duration;

use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use warren_clock_tests::{World, clock};
use warren_core::uapi::{PeerUpdate, SetRequest};
use warren_keyring::{PrivateKey, PublicKey};
use warren_tunnel::{DropReason, Now};

const INITIATION: usize = 148;
const RESPONSE: usize = 92;

fn elsewhere() -> SocketAddr {
    "203.0.113.9:9".parse().unwrap()
}

/// Gives a handshake message the MAC1 of somebody who knows the receiver's public key.
fn sign(message: &mut [u8], receiver: &PublicKey) {
    let at = message.len() - 32;
    let key = Blake2s256::new()
        .chain_update(b"mac1----")
        .chain_update(receiver.as_bytes())
        .finalize();
    let mut mac: Blake2sMac<blake2::digest::consts::U16> = KeyInit::new_from_slice(&key).unwrap();
    mac.update(&message[..at]);
    message[at..at + 16].copy_from_slice(&mac.finalize_fixed());
}

fn random_message(world: &mut World, kind: u8, len: usize) -> Vec<u8> {
    let mut message: Vec<u8> = (0..len).map(|_| world.random(256) as u8).collect();
    message[..4].copy_from_slice(&[kind, 0, 0, 0]);
    message
}

#[test]
fn without_a_valid_mac1_there_is_silence_under_load_too() {
    let mut world = World::connected(1);
    for n in 0..20_000 {
        let kind = 1 + (n % 4) as u8;
        let len = [INITIATION, RESPONSE, 64, 32 + n % 1500][n % 4];
        let message = random_message(&mut world, kind, len);
        assert!(world.inject(1, elsewhere(), &message).is_empty());
    }
    assert_eq!(world.sides[1].drops(DropReason::BadMac1), 10_000);
}

#[test]
fn with_a_valid_mac1_there_is_one_cookie_at_most_and_only_under_load() {
    let mut world = World::connected(2);
    let key = world.sides[1].key();
    let mut cookies = 0;
    for n in 0..2000 {
        let (kind, len) = [(1, INITIATION), (2, RESPONSE)][n % 2];
        let mut message = random_message(&mut world, kind, len);
        sign(&mut message, &key);
        let answers = world.inject(1, elsewhere(), &message);
        assert!(answers.len() <= 1);
        for answer in answers {
            assert_eq!((answer[0], answer.len()), (3, 64));
            cookies += 1;
        }
    }
    assert_eq!(cookies, 2000 - 256, "the limit of a device with few peers");
    world.run(Duration::from_secs(2));
    let mut message = random_message(&mut world, 1, INITIATION);
    sign(&mut message, &key);
    assert!(
        world.inject(1, elsewhere(), &message).is_empty(),
        "the load is over"
    );
}

#[test]
fn the_limit_of_handshakes_grows_with_the_number_of_peers() {
    for (peers, limit) in [(1, 256), (100, 512), (500, 2048), (3000, 4096)] {
        let mut world = World::connected(3);
        let others =
            (1..peers).map(|_| PeerUpdate::new(PrivateKey::generate().unwrap().public_key()));
        let request = SetRequest {
            peers: others.collect(),
            ..SetRequest::default()
        };
        world.sides[1].engine.apply(Now::read(), &request).unwrap();
        let mut message = random_message(&mut world, 1, INITIATION);
        sign(&mut message, &world.sides[1].key());
        for _ in 0..5000 {
            world.inject(1, elsewhere(), &message);
        }
        let cookies = world.sides[1].drops(DropReason::UnderLoad);
        let silent = world.sides[1].drops(DropReason::UnderLoadSilent);
        assert_eq!(cookies + silent, 5000 - limit, "{peers} peers");
        assert_eq!(silent, 0, "cookies are bounded far above that");
    }
}

#[test]
fn keys_of_low_order_are_met_with_silence() {
    let mut world = World::connected(4);
    let key = world.sides[1].key();
    // The orders 4, 1 and 8 (RFC 7748, section 7).
    let order_8 = [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4,
        0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49,
        0xb8, 0x00,
    ];
    let mut one = [0; 32];
    one[0] = 1;
    for low in [[0; 32], one, order_8] {
        for (kind, len, at) in [(1, INITIATION, 8), (2, RESPONSE, 12)] {
            let mut message = random_message(&mut world, kind, len);
            message[at..at + 32].copy_from_slice(&low);
            sign(&mut message, &key);
            assert!(world.inject(1, elsewhere(), &message).is_empty());
        }
    }
    assert_eq!(world.sides[1].drops(DropReason::LowOrderKey), 6);
}

#[test]
fn one_initiation_of_a_peer_is_answered_in_20_ms() {
    let mut world = World::connected(5);
    world.run(Duration::from_secs(10));
    // The peer's process is started anew ten times a moment: each begins a handshake.
    let mut answered = 0;
    for _ in 0..40 {
        let mark = world.sides[0].engine.newest_stamp();
        world.restart(0, mark);
        let before = world.sent.len();
        world.send(0);
        let initiation = world.sent[before].bytes.clone();
        let source = world.sides[0].address;
        answered += world.inject(1, source, &initiation).len();
        clock::advance(Duration::from_millis(5));
    }
    assert_eq!(answered, 10, "200 ms");
    assert_eq!(world.sides[1].drops(DropReason::HandshakeFlood), 30);
}

#[test]
fn packets_up_to_1024_late_are_taken_once_and_later_ones_not_at_all() {
    let mut world = World::connected(6);
    world.run(Duration::from_millis(100));
    let before = world.sent.len();
    let numbers: Vec<u64> = (0..2000).map(|_| world.send(0)).collect();
    let data: Vec<_> = world.sent[before..]
        .iter()
        .map(|m| m.bytes.clone())
        .collect();
    let source = world.sides[0].address;
    let mut deliver = |n: usize| {
        let before = world.sides[1].engine.counters().tun_tx_packets;
        world.inject(1, source, &data[n]);
        world.sides[1].engine.counters().tun_tx_packets - before
    };
    assert_eq!(deliver(1999), 1);
    assert_eq!(deliver(1999 - 1023), 1);
    assert_eq!(deliver(1999 - 1023), 0, "once");
    assert_eq!(deliver(1999 - 1025), 0, "too late");
    assert_eq!(deliver(1999 - 500), 1);
    assert_eq!(deliver(1999), 0, "once");
    assert_eq!(numbers.len(), data.len());
    assert_eq!(world.sides[1].drops(DropReason::Replayed), 3);
}
