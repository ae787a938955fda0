//! No side goes deaf, and nothing is lost that the network does not lose.
//!
//! boringtun's issue 495 tells of sessions in which nothing is heard from about 15 s after a
//! handshake, with a new handshake every 30 s. The handshakes are boringtun's own: after 15 quiet
//! seconds its timers take the next packet for unanswered at once. They never run here
//! (`timers.rs` counts the handshakes); nor can these cost a session, which boringtun could: a ring
//! of eight key pairs that is overwritten without a look at what is in use, timers that throw away
//! all pairs for a handshake long overtaken, and keys that nobody has confirmed being sent with.

#![allow(clippy::unwrap_used)] // tests

use std::collections::BTreeSet;
use std::time::Duration;

use warren_clock_tests::World;
use warren_tunnel::DropReason;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn milliseconds(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[test]
fn crossing_handshakes_lose_no_packet_whatever_overtakes_what() {
    for seed in 0..300 {
        let mut world = World::new(seed);
        for path in &mut world.paths {
            path.delay = milliseconds(1);
            path.jitter = milliseconds(seed % 40);
        }
        world.introduce(0);
        world.introduce(1);
        let mut sent = [BTreeSet::new(), BTreeSet::new()];
        // 130 s: the first crossing, and renewals that may cross.
        for step in 0..400 {
            for (from, sent) in sent.iter_mut().enumerate() {
                if world.random(3) > 0 {
                    sent.insert(world.send(from));
                }
            }
            let pause = if step % 50 == 49 {
                15_000
            } else {
                world.random(30)
            };
            world.run(milliseconds(pause));
        }
        world.run(seconds(10));
        for (from, sent) in sent.iter().enumerate() {
            let delivered = &world.sides[1 - from].delivered;
            let arrived: BTreeSet<u64> = delivered.iter().copied().collect();
            let lost: Vec<_> = sent.difference(&arrived).collect();
            assert!(lost.is_empty(), "seed {seed}: from {from} lost {lost:?}");
            assert_eq!(arrived.len(), delivered.len(), "none twice");
        }
    }
}

#[test]
fn hours_of_loss_and_reordering_leave_no_side_deaf() {
    for (seed, loss) in [(1, 10), (2, 100), (3, 300), (4, 500)] {
        let mut world = World::new(seed);
        for path in &mut world.paths {
            path.loss_per_mille = loss;
            path.jitter = milliseconds(400);
        }
        world.introduce(0);
        world.introduce(1);
        world.timers_late = milliseconds(50);
        let mut got = [0, 0];
        let mut since = [Duration::ZERO; 2];
        for second in 0..4 * 3600_u64 {
            // Both ways, then each way alone, then nobody, in turns of ten minutes.
            let active = [second / 600 % 4 < 2, second / 600 % 4 % 2 == 0];
            for from in [0, 1] {
                if active[from] {
                    for _ in 0..3 {
                        world.send(from);
                    }
                }
            }
            world.run(seconds(1));
            for to in [0, 1] {
                let delivered = world.sides[to].delivered.len();
                if delivered > got[to] || !active[1 - to] {
                    (got[to], since[to]) = (delivered, world.elapsed());
                }
                let silence = world.elapsed() - since[to];
                // A try of the handshake takes 5 s; half of all datagrams may be lost.
                let patience = if loss <= 100 {
                    seconds(25)
                } else {
                    seconds(120)
                };
                assert!(
                    silence < patience,
                    "{to} is deaf at {second} s, {loss} per mille lost"
                );
            }
        }
        for side in &world.sides {
            assert_eq!(side.drops(DropReason::DecryptFailed), 0);
        }
    }
}

#[test]
fn after_minutes_without_a_network_both_hear_each_other_within_6_seconds() {
    let mut world = World::connected(1);
    for outage in [10, 40, 85, 100, 170, 179, 200, 600, 4000] {
        for way in [[1000, 1000], [1000, 0], [0, 1000]] {
            (world.paths[0].loss_per_mille, world.paths[1].loss_per_mille) = (way[0], way[1]);
            for _ in 0..outage {
                world.send(0);
                world.send(1);
                world.run(seconds(1));
            }
            world.paths[0].loss_per_mille = 0;
            world.paths[1].loss_per_mille = 0;
            for _ in 0..6 {
                world.send(0);
                world.send(1);
                world.run(seconds(1));
            }
            let last = [world.send(0), world.send(1)];
            world.run(seconds(1));
            for from in [0, 1] {
                let arrived = world.sides[1 - from].delivered.contains(&last[from]);
                assert!(arrived, "from {from} after {outage} s, {way:?}");
            }
            world.run(seconds(30));
        }
    }
}

#[test]
fn one_side_that_starts_anew_again_and_again_is_heard_each_time() {
    let mut world = World::connected(2);
    for round in 0..50 {
        let restarted = usize::from(round % 3 == 0);
        let mark = world.sides[restarted].engine.newest_stamp();
        world.restart(restarted, mark);
        let number = world.send(restarted);
        world.run(seconds(1));
        let back = world.send(1 - restarted);
        world.run(seconds(1 + round * 3));
        assert!(
            world.sides[1 - restarted].delivered.contains(&number),
            "round {round}"
        );
        assert!(
            world.sides[restarted].delivered.contains(&back),
            "round {round}"
        );
    }
}
