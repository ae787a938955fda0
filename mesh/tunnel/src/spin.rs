//! Whether the packet loop polls for a moment before it sleeps. Free of I/O.
//!
//! To wake a thread takes the kernel longer than to seal a packet. Who polls meanwhile has the next
//! packet at once, and a whole core to himself until it comes. So it is done only where packets do
//! come that close, which is learned: from polls while they are worth it, from sleeps while not.
//!
//! ```text
//!               so many short sleeps, twice as many after each failure
//!   sleeps ----------------------------------------------------------> polls, credit 4
//!      ^                                                                  |
//!      '------- credit 0: a packet in time is +1, up to 16; none is -2 ---'
//! ```
//!
//! So it goes on polling while two of three polls see a packet in time. A sleep is short up to four
//! times the limit: who sleeps at both ends of a round trip, and polls at neither, has gaps that
//! polling makes shorter. At rest there are no short sleeps, and it is not tried.

use std::time::{Duration, Instant};

/// The longest limit: what is beyond costs a core for less and less.
pub const MAX_SPIN: Duration = Duration::from_micros(200);

/// The credit of a new try, and the most there is.
const TRY: u32 = 4;
const FULL: u32 = 16;
/// What a poll in vain costs; one in time earns 1.
const IN_VAIN: u32 = 2;
/// A sleep is short up to so many times the limit.
const SHORT: u32 = 4;
/// How many short sleeps there are before the first try, and the most before any.
const FIRST_PAUSE: u32 = 8;
const LAST_PAUSE: u32 = 1024;

/// What polling was good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpinCounters {
    /// Polls during which something came.
    pub in_time: u64,
    /// Polls after which the loop slept all the same.
    pub in_vain: u64,
}

/// The rule.
#[derive(Debug)]
pub(crate) struct Spin {
    limit: Duration,
    credit: u32,
    /// Short sleeps left before the next try, and after that try if it fails.
    pause: u32,
    next_pause: u32,
    counters: SpinCounters,
}

impl Spin {
    /// Polls for up to `limit` at a time; zero is never.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit,
            credit: 0,
            pause: FIRST_PAUSE,
            next_pause: FIRST_PAUSE,
            counters: SpinCounters::default(),
        }
    }

    /// How long it polls at most.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// What it was good for.
    pub(crate) fn counters(&self) -> SpinCounters {
        self.counters
    }

    /// Whether it may ever poll.
    #[inline]
    pub(crate) fn is_allowed(&self) -> bool {
        !self.limit.is_zero()
    }

    /// Until when to poll before the sleep that would begin now; `None` is not at all.
    #[inline]
    pub(crate) fn until(&self, now: Instant) -> Option<Instant> {
        (self.credit > 0).then(|| now + self.limit)
    }

    /// Notes that something came while it polled.
    #[inline]
    pub(crate) fn note_in_time(&mut self) {
        self.counters.in_time += 1;
        self.credit = (self.credit + 1).min(FULL);
        if self.credit == FULL {
            self.next_pause = FIRST_PAUSE;
        }
    }

    /// Notes that nothing came until the limit.
    pub(crate) fn note_in_vain(&mut self) {
        self.counters.in_vain += 1;
        self.credit = self.credit.saturating_sub(IN_VAIN);
        if self.credit == 0 {
            self.pause = self.next_pause;
            self.next_pause = (self.next_pause * 2).min(LAST_PAUSE);
        }
    }

    /// Notes that something came while it slept without having polled, so long after it began to.
    #[inline]
    pub(crate) fn note_slept(&mut self, gap: Duration) {
        if gap <= self.limit * SHORT {
            self.pause = self.pause.saturating_sub(1);
            if self.pause == 0 {
                self.credit = TRY;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: Duration = Duration::from_micros(60);

    fn us(microseconds: u64) -> Duration {
        Duration::from_micros(microseconds)
    }

    /// Lets packets come with these gaps between them; tells how long was polled in all.
    fn run(spin: &mut Spin, gaps: impl IntoIterator<Item = Duration>) -> Duration {
        let mut now = Instant::now();
        let mut polled = Duration::ZERO;
        for gap in gaps {
            match spin.until(now) {
                Some(until) if now + gap <= until => {
                    spin.note_in_time();
                    polled += gap;
                }
                Some(until) => {
                    spin.note_in_vain();
                    polled += until - now;
                }
                None => spin.note_slept(gap),
            }
            now += gap;
        }
        polled
    }

    fn every(gap: u64, times: usize) -> impl Iterator<Item = Duration> {
        std::iter::repeat_n(us(gap), times)
    }

    #[test]
    fn without_a_limit_it_never_polls() {
        let mut spin = Spin::new(Duration::ZERO);
        assert!(!spin.is_allowed());
        assert_eq!(run(&mut spin, every(1, 10_000)), Duration::ZERO);
        assert_eq!(spin.counters(), SpinCounters::default());
    }

    #[test]
    fn close_packets_are_polled_for_and_nearly_all_are_met() {
        let mut spin = Spin::new(LIMIT);
        run(&mut spin, every(30, 1000));
        let SpinCounters { in_time, in_vain } = spin.counters();
        assert_eq!((in_time, in_vain), (1000 - u64::from(FIRST_PAUSE), 0));
    }

    #[test]
    fn at_rest_it_is_not_even_tried() {
        let mut spin = Spin::new(LIMIT);
        assert_eq!(run(&mut spin, every(1_000_000, 10_000)), Duration::ZERO);
    }

    #[test]
    fn when_packets_cease_it_ends_after_a_few_polls() {
        let mut spin = Spin::new(LIMIT);
        run(&mut spin, every(30, 1000));
        let most = LIMIT * (FULL / IN_VAIN);
        assert_eq!(run(&mut spin, every(1_000_000, 1000)), most);
        assert!(spin.until(Instant::now()).is_none());
    }

    #[test]
    fn a_stream_of_gaps_a_little_too_long_costs_a_thousandth_of_its_time() {
        let mut spin = Spin::new(LIMIT);
        // The tries become rarer.
        run(&mut spin, every(100, 5_000));
        let polled = run(&mut spin, every(100, 100_000));
        assert!(polled > Duration::ZERO, "it must notice when that changes");
        assert!(polled < us(100 * 100_000) / 700, "{polled:?}");
        let before = spin.counters().in_time;
        run(&mut spin, every(30, LAST_PAUSE as usize + 100));
        assert!(spin.counters().in_time > before, "and it does");
    }

    #[test]
    fn two_of_three_in_time_are_enough_and_one_of_two_is_not() {
        let mixed = |far_one_in: usize| {
            (0..30_000).map(move |n| us(if n % far_one_in == 0 { 500 } else { 30 }))
        };
        let mut spin = Spin::new(LIMIT);
        run(&mut spin, mixed(4));
        let SpinCounters { in_time, in_vain } = spin.counters();
        assert!(in_time > 20_000 && in_vain > 6_000, "{in_time} {in_vain}");
        let mut spin = Spin::new(LIMIT);
        run(&mut spin, mixed(2));
        let SpinCounters { in_time, in_vain } = spin.counters();
        assert!(in_time + in_vain < 1_000, "{in_time} {in_vain}");
    }

    proptest! {
        /// Of whatever gaps: two polls in vain are paid by three in time, but for two of each try,
        /// and a try has to be waited for.
        #[test]
        fn polls_in_vain_are_bounded(gaps in prop::collection::vec(1u64..300, 0..1000)) {
            let mut spin = Spin::new(LIMIT);
            let count = gaps.len() as u64;
            run(&mut spin, gaps.into_iter().map(us));
            let SpinCounters { in_time, in_vain } = spin.counters();
            let tries = count / u64::from(FIRST_PAUSE);
            prop_assert!(in_vain * u64::from(IN_VAIN) <= in_time + tries * u64::from(TRY + 1));
        }
    }
}
