//! Thousands of peers on one device: their timers come in time, and those at rest cost nothing.

#![allow(clippy::unwrap_used)] // tests

use std::time::{Duration, Instant};

use warren_clock_tests::{Hub, Peers, Sent};

const MANY: usize = 5_000;
/// No rekey, keepalive or expiry comes later than this.
const LATE: Duration = Duration::from_millis(100);
/// The jitter of handshakes.
const JITTER: Duration = Duration::from_millis(333);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Checks that each comes so long after the one before, and no later than it may.
fn check_gaps(peer: usize, times: &[Instant], least: Duration, jitter: Duration) {
    for pair in times.windows(2) {
        let gap = pair[1] - pair[0];
        // The earlier one may have been the last of a round of 32, which take 150 us each.
        assert!(
            gap >= least - Duration::from_millis(6) && gap <= least + jitter + LATE,
            "{gap:?} to peer {peer}"
        );
    }
}

fn is_first_after(times: &[Instant], since: Instant, least: Duration, jitter: Duration) {
    let wait = *times.iter().find(|at| **at > since).unwrap() - since;
    assert!(wait >= least && wait <= least + jitter + LATE, "{wait:?}");
}

#[test]
fn no_timer_of_5000_peers_in_all_states_comes_late() {
    // Peers 0..1000 never answer; the others have a session. Of these, 1000..2000 are sent to and say
    // nothing, 2000..2050 send and are not answered, 2050.. have a persistent keepalive.
    let (unheard, asked, heard) = (0..1000, 1000..2000, 2000..2050);
    let mut hub = Hub::new(MANY);
    let answers = |answer_from| Peers {
        answer_from,
        live: (heard.start, heard.end),
    };
    hub.run(seconds(4), answers(unheard.end));
    let up = hub.engine.counters().handshakes;
    assert_eq!(up as usize, MANY - unheard.len(), "sessions");
    let silent = answers(usize::MAX);
    for n in heard.end..MANY {
        hub.set_keepalive(n, 25);
    }
    let mut sent_at = Vec::new();
    for n in asked.clone() {
        sent_at.push(Instant::now());
        hub.send([n], silent);
        hub.run(Duration::from_millis(2), silent);
    }
    let mut heard_at = Vec::new();
    for n in heard.clone() {
        heard_at.push(Instant::now());
        hub.hear(n, silent);
    }
    hub.run(seconds(100), silent);

    let by_peer = hub.by_peer();
    let times = |n: usize, kind: fn(&Sent) -> bool| -> Vec<Instant> {
        let sent = by_peer[n].iter().filter(|sent| kind(sent));
        sent.map(|sent| sent.at).collect()
    };
    for n in unheard {
        let initiations = times(n, Sent::is_initiation);
        assert!(
            (17..=18).contains(&initiations.len()),
            "{}",
            initiations.len()
        );
        check_gaps(n, &initiations, seconds(5), JITTER);
    }
    for (n, since) in asked.zip(sent_at) {
        let initiations = times(n, Sent::is_initiation);
        is_first_after(&initiations, since, seconds(15), JITTER);
        check_gaps(n, &initiations[1..], seconds(5), JITTER);
    }
    for (n, since) in heard.clone().zip(heard_at) {
        let keepalives = times(n, Sent::is_keepalive);
        is_first_after(&keepalives, since, seconds(10), Duration::ZERO);
    }
    for n in heard.end..MANY {
        let keepalives = times(n, Sent::is_keepalive);
        assert!(keepalives.len() >= 4, "{} keepalives", keepalives.len());
        // The first confirmed the session.
        check_gaps(n, &keepalives[1..], seconds(25), Duration::ZERO);
    }
    assert!(hub.latest < LATE, "{:?} late", hub.latest);
}

#[test]
fn peers_at_rest_need_no_timer_but_the_one_that_erases_their_keys() {
    let mut hub = Hub::new(MANY);
    hub.run(seconds(10), Peers::ANSWER);
    assert_eq!(hub.engine.counters().handshakes as usize, MANY);
    let began = hub.sent.last().unwrap().at;
    let (turns, sent) = (hub.turns, hub.sent.len());
    hub.run(seconds(500), Peers::ANSWER);
    assert_eq!((hub.turns, hub.sent.len()), (turns, sent), "at rest");
    // Keys of the last session are erased 540 s after it began, and no later than they may.
    let left = (began + seconds(540) + LATE).saturating_duration_since(Instant::now());
    hub.run(left, Peers::ANSWER);
    assert_eq!(hub.engine.poll_timeout(), None, "all is erased");
    let erasing = hub.turns - turns;
    assert!(erasing as usize <= MANY, "{erasing} turns");
    assert!(hub.latest < LATE, "{:?} late", hub.latest);
    let turns = hub.turns;
    hub.run(seconds(86_400), Peers::ANSWER);
    assert_eq!((hub.turns, hub.sent.len()), (turns, sent), "for a day");
}

#[test]
fn peers_that_never_answer_are_left_alone_after_90_seconds() {
    let peers = 1000;
    let mut hub = Hub::new(peers);
    hub.run(seconds(110), Peers::SILENT);
    let tries = hub.sent.len();
    assert!((17 * peers..=18 * peers).contains(&tries), "{tries}");
    assert!(hub.latest < LATE, "{:?} late", hub.latest);
    assert_eq!(hub.engine.poll_timeout(), None);
    // A round for each 32 at the start, then a turn a try at most, and one that gives it up.
    let most = peers / 32 + 1 + tries + peers;
    assert!(hub.turns as usize <= most, "{} turns", hub.turns);
}

#[test]
fn persistent_keepalives_cost_what_they_send() {
    let mut hub = Hub::new(MANY);
    hub.run(seconds(5), Peers::ANSWER);
    for n in 0..MANY {
        hub.set_keepalive(n, 25);
        hub.run(Duration::from_millis(5), Peers::ANSWER);
    }
    assert_eq!(hub.engine.counters().handshakes as usize, MANY);
    let (turns, sent) = (hub.turns, hub.sent.len());
    hub.run(seconds(50), Peers::ANSWER);
    let sent = &hub.sent[sent..];
    assert!(sent.iter().all(Sent::is_keepalive));
    // 200 a second; each comes some milliseconds after 25 s, so that a few of the second are not in yet.
    let count = sent.len();
    assert!((2 * MANY - 100..=2 * MANY).contains(&count), "{count}");
    let turns = hub.turns - turns;
    assert!(turns <= 50 * 125, "{turns} turns: one a tick at most");
    assert!(hub.latest < LATE, "{:?} late", hub.latest);
}

#[test]
fn of_a_cold_start_the_peers_that_packets_wait_for_are_first() {
    let peers = 1000;
    let mut hub = Hub::new(peers);
    let began = Instant::now();
    let wanted: Vec<usize> = (0..peers).filter(|n| n % 10 == 7).collect();
    hub.send(wanted.iter().copied(), Peers::ANSWER);
    let at_once = hub.sent.iter().filter(|sent| sent.is_initiation());
    assert!(at_once.count() <= 8, "of a hundred; the data has its turn");
    // Before the first of them misses an answer to its packet.
    hub.run(seconds(10), Peers::ANSWER);
    let initiations = hub.sent.iter().filter(|sent| sent.is_initiation());
    let order: Vec<usize> = initiations.map(|sent| sent.peer).collect();
    let mut first = order[..wanted.len()].to_vec();
    first.sort_unstable();
    assert_eq!(first, wanted);
    assert_eq!(order.len(), peers, "one each");
    assert_eq!(hub.engine.counters().handshakes as usize, peers);
    assert_eq!(hub.engine.waiting_bytes(), 0);
    let last = hub.sent.iter().rfind(|sent| sent.is_initiation()).unwrap();
    assert!(last.at - began < seconds(3), "{:?}", last.at - began);
}
