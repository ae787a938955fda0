//! The protocol's timers over hours of driven time.

#![allow(clippy::unwrap_used)] // tests

use std::time::{Duration, Instant};

use warren_clock_tests::{Carried, World};
use warren_core::uapi::PeerUpdate;
use warren_tunnel::DropReason;

/// What the engine's timers come late by at most.
const TICK: Duration = Duration::from_millis(8);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn handshakes(sent: &[Carried]) -> Vec<Duration> {
    let initiations = sent.iter().filter(|message| message.is_initiation());
    initiations.map(|message| message.at).collect()
}

#[test]
fn a_session_in_use_is_renewed_every_120_seconds_by_its_initiator_and_loses_nothing() {
    let mut world = World::new(1);
    world.introduce(1);
    world.introduce(0);
    let mut sent = [Vec::new(), Vec::new()];
    for _ in 0..2 * 3600 {
        for (from, sent) in sent.iter_mut().enumerate() {
            sent.push(world.send(from));
        }
        world.run(seconds(1));
    }
    world.run(seconds(20));
    assert_eq!(world.sides[1].delivered, sent[0]);
    assert_eq!(world.sides[0].delivered, sent[1]);
    let at = handshakes(&world.sent);
    // Both have begun one, and may do so once more or twice until they do not any longer.
    let later: Vec<_> = at.iter().filter(|at| **at > seconds(600)).collect();
    assert!(
        (52..=55).contains(&later.len()),
        "{} in 110 minutes",
        later.len()
    );
    for pair in later.windows(2) {
        let apart = *pair[1] - *pair[0];
        assert!(apart >= seconds(120) && apart < seconds(122), "{apart:?}");
    }
    for side in &world.sides {
        assert_eq!(side.engine.counters().drops.total(), 0);
    }
}

#[test]
fn an_initiator_that_only_receives_renews_after_165_seconds() {
    for (wait, renewals) in [(163, 0), (166, 1)] {
        let mut world = World::connected(2);
        let began = world.elapsed();
        world.run(seconds(wait));
        world.send(0);
        let sent = world.run(seconds(1)).to_vec();
        assert!(sent.iter().all(|m| !m.is_initiation() || m.from == 1));
        assert_eq!(
            handshakes(&sent).len(),
            renewals,
            "{wait} s after {began:?}"
        );
    }
}

#[test]
fn a_session_at_rest_is_left_alone() {
    let mut world = World::connected(3);
    world.run(seconds(20));
    assert!(world.run(seconds(7200)).is_empty());
    for side in &mut world.sides {
        assert_eq!(side.engine.poll_timeout(), None);
    }
}

#[test]
fn keys_of_180_seconds_are_refused_both_ways_although_no_timer_ran() {
    let mut world = World::connected(4);
    world.send(0);
    world.run(seconds(1));
    // From here on nobody runs a timer.
    world.timers_late = seconds(100_000);
    world.send(1);
    world.run(seconds(1));
    let data = world
        .sent
        .iter()
        .rev()
        .find(|message| message.is_data())
        .unwrap();
    let (stale, to) = (data.bytes.clone(), 1 - data.from);
    let (delivered, source) = (world.sides[to].delivered.len(), world.sides[1 - to].address);
    world.run(seconds(181));
    assert!(world.inject(to, source, &stale).is_empty());
    assert_eq!(world.sides[to].drops(DropReason::SessionExpired), 1);
    for from in [0, 1] {
        let before = world.sent.len();
        let number = world.send(from);
        let sent = &world.sent[before..];
        assert!(
            sent.iter().all(|message| !message.is_data()),
            "no data with old keys"
        );
        assert_eq!(sent.len(), 1, "but a handshake");
        world.run(seconds(1));
        assert_eq!(world.sides[1 - from].delivered.last(), Some(&number));
        // So that the other side begins one, too.
        world.run(seconds(181));
    }
    assert!(world.sides[to].delivered.len() > delivered);
}

#[test]
fn a_handshake_is_retried_every_5_seconds_with_up_to_333_ms_of_jitter_for_90_seconds() {
    let mut apart = Vec::new();
    for seed in 0..20 {
        let mut world = World::new(seed);
        world.introduce(0);
        world.paths[0].loss_per_mille = 1000;
        world.send(0);
        let sent = world.run(seconds(300)).to_vec();
        let at = handshakes(&world.sent);
        assert_eq!(at.len(), world.sent.len(), "{sent:?}");
        assert!((17..=18).contains(&at.len()), "{} tries", at.len());
        assert!(*at.last().unwrap() < seconds(90));
        apart.extend(at.windows(2).map(|pair| pair[1] - pair[0]));
        assert_eq!(world.sides[0].drops(DropReason::HandshakeTimeout), 1);
    }
    let (least, most) = (*apart.iter().min().unwrap(), *apart.iter().max().unwrap());
    assert!(
        least >= seconds(5) && most <= Duration::from_millis(5_334) + TICK,
        "{least:?} {most:?}"
    );
    assert!(
        most - least > Duration::from_millis(250),
        "jitter: {least:?} {most:?}"
    );
}

#[test]
fn retries_keep_their_time_while_packets_go_on_coming() {
    let mut world = World::new(5);
    world.introduce(0);
    world.paths[0].loss_per_mille = 1000;
    for _ in 0..800 {
        world.send(0);
        world.run(Duration::from_millis(100));
    }
    let at = handshakes(&world.sent);
    for pair in at.windows(2) {
        let apart = pair[1] - pair[0];
        assert!(
            apart >= seconds(5) && apart <= Duration::from_millis(5_334) + TICK,
            "{apart:?}"
        );
    }
    assert_eq!(at.len(), 16);
}

#[test]
fn data_that_is_not_answered_is_acknowledged_by_a_keepalive_after_10_seconds() {
    let mut world = World::connected(6);
    world.run(seconds(30));
    world.send(0);
    let sent = world.run(seconds(60)).to_vec();
    let began = sent.first().unwrap().at;
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert!(sent[0].is_keepalive() && sent[0].from == 1);
    let delay = world.paths[0].delay;
    let wait = began - (world.elapsed() - seconds(60)) - delay;
    assert!(
        wait >= seconds(10) && wait < Duration::from_millis(10_020),
        "{wait:?}"
    );
    // Both in one moment, in either order: who has sent nothing since owes an answer.
    for from in [0, 1] {
        world.send(1 - from);
        world.run(world.paths[0].delay);
        world.send(from);
        let sent = world.run(seconds(60)).to_vec();
        assert_eq!(
            sent.iter().filter(|m| m.is_keepalive()).count(),
            1,
            "{sent:?}"
        );
        assert!(sent.iter().all(|message| !message.is_initiation()));
    }
}

#[test]
fn one_way_traffic_is_kept_alive_and_needs_no_handshake_but_the_renewals() {
    let mut world = World::connected(7);
    let began = world.elapsed();
    for _ in 0..60 {
        world.send(0);
        world.run(seconds(20));
    }
    let renewals = handshakes(&world.sent)
        .iter()
        .filter(|at| **at > began)
        .count();
    assert!((7..=10).contains(&renewals), "{renewals} in 1,200 s");
    assert_eq!(world.sides[1].delivered.len(), 60);
}

#[test]
fn data_without_any_answer_begins_a_handshake_after_15_seconds() {
    let mut world = World::connected(8);
    world.run(seconds(60));
    world.paths[1].loss_per_mille = 1000;
    let began = world.elapsed();
    world.send(0);
    world.run(seconds(18));
    let at: Vec<_> = handshakes(&world.sent)
        .into_iter()
        .filter(|at| *at > began)
        .collect();
    assert_eq!(at.len(), 1);
    let wait = at[0] - began;
    assert!(
        wait >= seconds(15) && wait < Duration::from_millis(15_350),
        "{wait:?}"
    );
}

#[test]
fn a_persistent_keepalive_is_sent_after_each_interval_without_other_messages() {
    let mut world = World::connected(9);
    world.run(seconds(60));
    let key = world.sides[1].key();
    world.update(
        0,
        PeerUpdate {
            persistent_keepalive: Some(25),
            ..PeerUpdate::new(key)
        },
    );
    world.run(seconds(1));
    let began = world.elapsed();
    let sent = world.run(seconds(100)).to_vec();
    let at: Vec<_> = sent
        .iter()
        .filter(|m| m.is_keepalive())
        .map(|m| m.at)
        .collect();
    assert_eq!(at.len(), 4, "{sent:?}");
    for pair in at.windows(2) {
        let apart = pair[1] - pair[0];
        assert!(
            apart >= seconds(25) && apart < Duration::from_millis(25_020),
            "{apart:?}"
        );
    }
    // They keep a session up for hours, renewed every two minutes.
    world.run(seconds(3600));
    let renewals = handshakes(&world.sent)
        .iter()
        .filter(|at| **at > began)
        .count();
    assert!((18..=31).contains(&renewals), "{renewals} in an hour");
    // And go on asking where nobody answers; an hour later the peer is back at once.
    world.paths[0].loss_per_mille = 1000;
    let before = world.sent.len();
    world.run(seconds(3600));
    assert!(handshakes(&world.sent[before..]).len() > 300);
    world.paths[0].loss_per_mille = 0;
    let number = world.send(0);
    world.run(seconds(6));
    assert!(world.sides[1].delivered.contains(&number));
}

#[test]
fn last_handshake_follows_the_wall_clock() {
    let mut world = World::connected(10);
    let at = world.sides[0].engine.get().peers[0].last_handshake.unwrap();
    assert!(at <= warren_clock_tests::clock::wall() && at > Duration::from_secs(1_699_999_999));
    let moved = Duration::from_secs(1_600_000_000);
    warren_clock_tests::clock::set_wall(moved);
    world.run(seconds(200));
    world.send(0);
    world.run(seconds(1));
    let at = world.sides[0].engine.get().peers[0].last_handshake.unwrap();
    assert!(at >= moved && at < moved + seconds(202), "{at:?}");
}

#[test]
fn the_loop_is_not_woken_for_nothing() {
    let mut world = World::connected(11);
    for side in [0, 1] {
        let key = world.sides[1 - side].key();
        let update = PeerUpdate {
            persistent_keepalive: Some(25),
            ..PeerUpdate::new(key)
        };
        world.update(side, update);
    }
    // Ten minutes with data every 20 s, ten with nobody there, each counted in wake-ups.
    for (loss, most) in [(0, 200), (1000, 400)] {
        world.paths[0].loss_per_mille = loss;
        world.paths[1].loss_per_mille = loss;
        let mut woken = 0;
        for _ in 0..30 {
            world.send(0);
            let end = world.elapsed() + seconds(20);
            while let Some(at) = world.sides[0].engine.poll_timeout() {
                let wait = at.saturating_duration_since(Instant::now());
                if world.elapsed() + wait >= end {
                    break;
                }
                world.run(wait + Duration::from_nanos(500));
                woken += 1;
            }
            world.run(end.saturating_sub(world.elapsed()));
        }
        assert!(woken < most, "{woken} with {loss} per mille lost");
    }
}
