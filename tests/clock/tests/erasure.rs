//! Keys are gone from memory 540 s after the last handshake: looked for in all of it.
//!
//! The keys are not known to the test, and need not be: every place in memory is tried as a key on
//! a message that was captured on the wire.

#![allow(clippy::unwrap_used)] // tests

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use warren_clock_tests::World;

const KEY: usize = 32;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn no_key_is_left_in_memory_540_seconds_after_the_last_handshake() {
    let mut world = World::connected(1);
    let mut captured = Vec::new();
    for _ in 0..4 {
        for from in [0, 1] {
            world.send(from);
            world.run(seconds(1));
        }
        for from in [0, 1] {
            let data = world
                .sent
                .iter()
                .rev()
                .find(|m| m.is_data() && m.from == from);
            captured.push(data.unwrap().bytes.clone());
        }
        // Keys of more than one handshake.
        world.run(seconds(125));
    }
    let newest = captured.len() - 2;
    assert!(
        keys_in_memory(&captured[newest..]),
        "keys in use are found, or the search is no good"
    );
    let last = world
        .sent
        .iter()
        .rev()
        .find(|m| m.is_response())
        .unwrap()
        .at;
    world.run((last + seconds(539)).saturating_sub(world.elapsed()));
    assert!(keys_in_memory(&captured[newest..]));
    world.run(seconds(3));
    for (n, message) in captured.iter().enumerate() {
        let found = keys_in_memory(std::slice::from_ref(message));
        assert!(!found, "the key of message {n} is still there");
    }
    // An initiation of before is refused still, and moves nobody.
    let old = world
        .sent
        .iter()
        .rev()
        .find(|m| m.is_initiation())
        .unwrap()
        .clone();
    let elsewhere = "203.0.113.9:9".parse().unwrap();
    assert!(world.inject(1 - old.from, elsewhere, &old.bytes).is_empty());
    let endpoint = world.sides[1 - old.from].engine.get().peers[0].endpoint;
    assert_eq!(endpoint, Some(world.sides[old.from].address));
    let number = world.send(0);
    world.run(seconds(1));
    assert!(
        world.sides[1].delivered.contains(&number),
        "and a new session is made at need"
    );
}

/// Tells whether memory holds a key that opens one of the messages. A child looks, at its copy of
/// the memory: what it finds does not stay here.
fn keys_in_memory(messages: &[Vec<u8>]) -> bool {
    // SAFETY: the child does no more than read its memory, and ends.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let found = std::panic::catch_unwind(|| search(messages)).unwrap_or(true);
            // SAFETY: ends the child without the parent's cleaning up.
            unsafe { libc::_exit(i32::from(found)) }
        }
        ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
            WaitStatus::Exited(_, code) => code != 0,
            other => panic!("the search ended with {other:?}"),
        },
    }
}

fn search(messages: &[Vec<u8>]) -> bool {
    let memory = File::open("/proc/self/mem").unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut searched = 0;
    for line in maps.lines().filter(|line| line.contains(" rw-p ")) {
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let parse = |address| u64::from_str_radix(address, 16).unwrap();
        let (start, end) = (parse(start), parse(end));
        let mut area = vec![0; (end - start) as usize];
        // Some kernel areas cannot be read.
        if memory.read_exact_at(&mut area, start).is_err() {
            continue;
        }
        searched += area.len();
        for at in (0..area.len().saturating_sub(KEY)).step_by(4) {
            let candidate = &area[at..at + KEY];
            // No random key has so many zeros.
            if candidate.iter().filter(|byte| **byte == 0).count() < 6
                && messages.iter().any(|message| opens(candidate, message))
            {
                return true;
            }
        }
    }
    assert!(searched > 1 << 20, "only {searched} bytes");
    false
}

fn opens(key: &[u8], message: &[u8]) -> bool {
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).unwrap());
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&message[8..16]);
    let mut sealed = message[16..].to_vec();
    let nonce = Nonce::assume_unique_for_key(nonce);
    key.open_in_place(nonce, Aad::empty(), &mut sealed).is_ok()
}
