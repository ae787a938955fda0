//! The share of the loop's time that handshakes have under load.
//!
//! At rest a handshake wakes the loop like any packet. Under load the sockets of handshakes are
//! looked at by the clock instead, every 5 ms, so that a flood neither wakes the loop for each
//! datagram nor takes more than its share beside data; what is too much stays in their buffers, and
//! there it costs the kernel's way only.
//!
//! ```text
//!            a second's limit is used up
//!   at rest ----------------------------> polled --.
//!      ^                                    |  ^   | still under load
//!      '------------------------------------'  '---'
//!              a second without load
//! ```
//!
//! The share is of the thread's own CPU time: on a machine that is busy otherwise, wall-clock time
//! would say nothing about what is left for data.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// How often the sockets of handshakes are looked at under load.
const POLL_EVERY: Duration = Duration::from_millis(5);
/// How long after the last load that goes on.
const POLLED_FOR: Duration = Duration::from_secs(1);
/// Handshakes, their key exchanges included, have one part in so many of the thread's time,
const PARTS: u32 = 16;
/// this for each look besides,
const LEAST: Duration = Duration::from_micros(10);
/// and this where no data was moved since the last look. Nothing more is saved up either.
const BESIDE_NO_DATA: Duration = Duration::from_millis(3);
/// How often the sources are dealt out to the sockets anew: more often than initiators try.
const RESHUFFLE_EVERY: Duration = Duration::from_secs(1);

/// What handshakes may take now.
#[derive(Debug)]
pub(crate) struct Share {
    /// The CPU time that the thread has used.
    cpu: fn() -> Duration,
    polled_until: Option<Instant>,
    next_look: Option<Instant>,
    reshuffled_at: Option<Instant>,
    data_moved: bool,
    /// The thread's CPU time when the last look ended, and when this one began.
    ended: Duration,
    began: Duration,
    /// What a look may take; what it took beyond that, as it is not cut off in the middle of a key
    /// exchange, is taken from the next.
    allowed: Duration,
    debt: Duration,
}

impl Share {
    pub(crate) fn new() -> Self {
        Self::by(thread_cpu_time)
    }

    fn by(cpu: fn() -> Duration) -> Self {
        Self {
            cpu,
            polled_until: None,
            next_look: None,
            reshuffled_at: None,
            data_moved: false,
            ended: Duration::ZERO,
            began: Duration::ZERO,
            allowed: Duration::ZERO,
            debt: Duration::ZERO,
        }
    }

    /// Notes that data was moved, in either direction.
    #[inline]
    pub(crate) fn note_data(&mut self) {
        self.data_moved = true;
    }

    /// Notes that there are other peers: their first handshakes shall not be taken for strangers'.
    pub(crate) fn note_peers_changed(&mut self) {
        self.reshuffled_at = None;
    }

    /// Whether the sockets are looked at by the clock.
    pub(crate) fn is_polled(&self) -> bool {
        self.polled_until.is_some()
    }

    /// When to look next; `None` at rest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.next_look
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.next_look.is_some_and(|at| at <= now)
    }

    /// Begins a look.
    pub(crate) fn begin(&mut self) {
        self.began = (self.cpu)();
        if self.is_polled() && std::mem::take(&mut self.data_moved) {
            let others = self.began.saturating_sub(self.ended);
            let saved = self.allowed + others / PARTS + LEAST;
            self.allowed = saved.min(BESIDE_NO_DATA).saturating_sub(self.debt);
            self.debt = self.debt.saturating_sub(saved);
        } else {
            self.allowed = BESIDE_NO_DATA;
            self.debt = Duration::ZERO;
        }
    }

    /// Whether this look has taken what it may.
    pub(crate) fn is_used_up(&self) -> bool {
        (self.cpu)().saturating_sub(self.began) >= self.allowed
    }

    /// Ends a look; tells whether the sources are to be dealt out anew.
    pub(crate) fn end(&mut self, now: Instant, under_load: bool) -> bool {
        if under_load {
            self.polled_until = Some(now + POLLED_FOR);
        } else if self.polled_until.is_some_and(|until| until <= now) {
            self.polled_until = None;
        }
        self.next_look = self.polled_until.map(|_| now + POLL_EVERY);
        self.ended = (self.cpu)();
        let taken = self.ended.saturating_sub(self.began);
        self.debt += taken.saturating_sub(self.allowed);
        self.allowed = self.allowed.saturating_sub(taken);
        let reshuffle = self.is_polled()
            && self
                .reshuffled_at
                .is_none_or(|at| now.saturating_duration_since(at) >= RESHUFFLE_EVERY);
        if reshuffle {
            self.reshuffled_at = Some(now);
        }
        reshuffle
    }
}

/// A kernel without that clock does not exist; were it so, nothing would ever be used up, and only
/// the number of sockets and their buffers would bound a look.
fn thread_cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static CPU: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }

    fn work(time: Duration) {
        CPU.set(CPU.get() + time);
    }

    /// Looks until the share is used up, at 1 us a datagram, and tells how many that were.
    fn look(share: &mut Share) -> u32 {
        share.begin();
        let mut taken = 0;
        while !share.is_used_up() && taken < 100_000 {
            work(Duration::from_micros(1));
            taken += 1;
        }
        taken
    }

    #[test]
    fn under_load_handshakes_have_a_sixteenth_of_the_time_beside_data_and_more_beside_none() {
        let start = Instant::now();
        let mut share = Share::by(|| CPU.get());
        assert_eq!(share.deadline(), None, "at rest");
        look(&mut share);
        assert!(share.end(start, true), "dealt out anew at the first load");
        assert!(share.is_polled());
        assert_eq!(share.deadline(), Some(start + POLL_EVERY));
        assert!(!share.is_due(start) && share.is_due(start + POLL_EVERY));

        // What is left of the look at rest is gone first.
        share.note_data();
        assert_eq!(look(&mut share), 10);
        share.end(start, true);
        share.note_data();
        work(Duration::from_micros(1600));
        assert_eq!(look(&mut share), 110);
        // A key exchange that the share has no more time for is paid by the looks after it.
        work(Duration::from_micros(50));
        assert!(!share.end(start + POLL_EVERY, true), "not each time");
        for expected in [0, 0, 0, 0, 0, 10] {
            share.note_data();
            assert_eq!(look(&mut share), expected);
            share.end(start + POLL_EVERY, true);
        }
        work(Duration::from_micros(10));
        assert_eq!(look(&mut share), 3000, "nobody else wants the time");
    }

    #[test]
    fn new_peers_are_dealt_to_their_sockets_by_the_next_look() {
        let start = Instant::now();
        let mut share = Share::by(|| CPU.get());
        share.note_peers_changed();
        assert!(!share.end(start, false), "nothing is dealt out at rest");
        assert!(share.end(start, true));
        assert!(!share.end(start + POLL_EVERY, true));
        share.note_peers_changed();
        assert!(share.end(start + 2 * POLL_EVERY, true));
        assert!(!share.end(start + 3 * POLL_EVERY, true));
    }

    #[test]
    fn a_second_without_load_ends_the_polling() {
        let start = Instant::now();
        let mut share = Share::by(|| CPU.get());
        share.end(start, true);
        share.end(start + Duration::from_millis(999), false);
        assert!(share.is_polled());
        share.end(start + Duration::from_secs(1), false);
        assert!(!share.is_polled());
        assert_eq!(share.deadline(), None);
    }
}
