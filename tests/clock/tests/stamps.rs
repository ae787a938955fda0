//! Handshakes are stamped ever later, whatever the wall clock does (TAI64N).

#![allow(clippy::unwrap_used)] // tests

use std::time::Duration;

use warren_clock_tests::{World, clock};
use warren_core::uapi::PeerUpdate;
use warren_keyring::PresharedKey;
use warren_tunnel::DropReason;

const HOUR: u64 = 3600;
const YEARS: u64 = 10 * 365 * 24 * HOUR;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Side 1 has taken an initiation of side 0, and knows its stamp.
fn connected_by_side_0(seed: u64) -> World {
    let mut world = World::connected(seed);
    world.run(seconds(200));
    world.send(0);
    world.run(seconds(1));
    assert_eq!(
        world
            .sent
            .iter()
            .rev()
            .find(|m| m.is_response())
            .unwrap()
            .from,
        1
    );
    world
}

fn assert_traffic_within_10_seconds(world: &mut World, what: &str) {
    // What the other side has sent before it heard of a restart is lost with the old keys.
    for _ in 0..8 {
        world.send(0);
        world.send(1);
        world.run(seconds(1));
    }
    let numbers = [world.send(0), world.send(1)];
    world.run(seconds(1));
    for from in [0, 1] {
        let arrived = world.sides[1 - from].delivered.contains(&numbers[from]);
        assert!(arrived, "from {from}: {what}");
    }
    for side in &world.sides {
        assert_eq!(side.drops(DropReason::HandshakeReplayed), 0, "{what}");
    }
}

#[test]
fn a_clock_set_forward_and_back_over_a_restart_or_not_cuts_nobody_off() {
    for restart in [false, true] {
        for jump in [HOUR, YEARS] {
            let mut world = connected_by_side_0(1);
            let real = clock::wall();
            for wall in [real + seconds(jump), real, real - seconds(jump), real] {
                clock::set_wall(wall);
                if restart {
                    let mark = world.sides[0].engine.newest_stamp();
                    world.restart(0, mark);
                }
                assert_traffic_within_10_seconds(&mut world, &format!("{wall:?} {restart}"));
                // New keys are needed, and the newest process makes them.
                world.run(seconds(200));
                assert_traffic_within_10_seconds(&mut world, &format!("{wall:?} {restart} later"));
                world.run(seconds(200));
            }
        }
    }
}

#[test]
fn a_session_made_anew_after_the_clock_went_back_goes_on_with_later_stamps() {
    let mut world = connected_by_side_0(2);
    for n in 0..5 {
        clock::set_wall(clock::wall() - seconds(HOUR));
        let preshared_key = Some(PresharedKey::generate().unwrap());
        for side in [0, 1] {
            let key = world.sides[1 - side].key();
            let preshared_key = preshared_key.clone();
            world.update(
                side,
                PeerUpdate {
                    preshared_key,
                    ..PeerUpdate::new(key)
                },
            );
        }
        assert_traffic_within_10_seconds(&mut world, &format!("round {n}"));
    }
}

#[test]
fn without_the_mark_a_clock_that_went_back_is_refused() {
    // That the tests above can fail.
    let mut world = connected_by_side_0(3);
    clock::set_wall(clock::wall() - seconds(HOUR));
    world.restart(0, Duration::ZERO);
    world.run(seconds(1));
    assert!(world.sides[1].drops(DropReason::HandshakeReplayed) > 0);
}

#[test]
fn the_stamp_on_disk_is_good_for_a_process_that_ends_in_any_way() {
    let mut world = connected_by_side_0(4);
    let mark = world.sides[0].engine.newest_stamp() + seconds(HOUR);
    // Killed after 59 minutes of handshakes that moved no mark, with the clock now an hour back.
    for _ in 0..59 {
        world.send(0);
        world.run(seconds(60));
    }
    clock::set_wall(clock::wall() - seconds(2 * HOUR));
    world.restart(0, mark);
    assert_traffic_within_10_seconds(&mut world, "after the kill");
}
