//! When to reconcile: a state machine without a clock, which the agent's loop and the simulator
//! drive.
//!
//! ```text
//!   news of a node ---- settle ------------------------------------> due --> follow --+
//!                                                 not enough: a whole one <----------+
//!   an event of no hurry -- settle longer, once a second -------+
//!   an event ----- settle, not before the last outcome allows --+
//!   the tick ----- now -----------------------------------------+--> due --> reconcile
//!   a tunnel that came back ----- now --------------------------+              |
//!        ^ sought while there is none                                          |
//!        +---------------------------- outcome <-------------------------------+
//! ```

use std::time::{Duration, Instant};

use crate::reconcile::{Followed, Touched};
use crate::snapshot::Snapshot;

/// How often everything is looked at whatever happens: a change made by others that raises no
/// event is repaired within this time.
pub const TICK: Duration = Duration::from_secs(5);
/// How often an absent tunnel is looked for.
pub const TUNNEL_TICK: Duration = Duration::from_millis(250);
/// How long to wait after an event for others: they come in bursts.
const SETTLE: Duration = Duration::from_millis(20);
/// The least time between reconciles that events cause; our own changes raise events too.
const SPACING: Duration = Duration::from_millis(200);
/// The longest time that events wait after reconciles that left something undone.
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// How long to wait after an event that is in no hurry.
const LATE_SETTLE: Duration = Duration::from_millis(250);
/// The least time between reconciles that such events cause.
const LATE_SPACING: Duration = Duration::from_secs(1);
/// How long to wait after an event of something of ours for others.
const REPAIR_SETTLE: Duration = Duration::from_millis(5);
/// How many repairs may follow each other without a pause.
const PURSE: u32 = 8;

/// When the next reconcile is due.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    due: Option<Instant>,
    /// When the registry's news are to be followed.
    news_due: Option<Instant>,
    not_before: Option<Instant>,
    late_not_before: Option<Instant>,
    failures: u32,
    tunnel_answers: bool,
}

impl Pace {
    /// The registry told of a node: soon. Following needs no pause, unless something failed.
    pub fn handle_news(&mut self, now: Instant) {
        let at = now + SETTLE;
        let not_before = self.not_before.filter(|_| self.failures > 0);
        let at = not_before.map_or(at, |not_before| at.max(not_before));
        self.news_due = Some(self.news_due.map_or(at, |due| due.min(at)));
    }

    /// The news were followed; if that was not enough, a whole reconcile is due.
    pub fn handle_followed(&mut self, now: Instant, followed: Followed) {
        self.news_due = None;
        if followed != Followed::Enough {
            let at = self
                .not_before
                .map_or(now, |not_before| now.max(not_before));
            self.due = Some(self.due.map_or(at, |due| due.min(at)));
        }
    }

    /// The registry or the kernel told something: soon, but not sooner than the last outcome
    /// allows.
    pub fn handle_event(&mut self, now: Instant) {
        let at = now + SETTLE;
        let at = self.not_before.map_or(at, |not_before| at.max(not_before));
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Something changed that may concern this node, such as one of a routing daemon's thousand
    /// routes.
    pub fn handle_late_event(&mut self, now: Instant) {
        let at = now + LATE_SETTLE;
        let at = self.late_not_before.map_or(at, |earliest| at.max(earliest));
        let at = self.not_before.map_or(at, |not_before| at.max(not_before));
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// [`TICK`] has passed: now.
    pub fn handle_tick(&mut self, now: Instant) {
        self.due = Some(now);
    }

    /// The tunnel that was sought answers: now. Whether it works is for the reconcile to say.
    pub fn handle_tunnel(&mut self, now: Instant) {
        self.due = Some(now);
        self.tunnel_answers = true;
    }

    /// A reconcile ended like this.
    pub fn handle_outcome(&mut self, now: Instant, snapshot: &Snapshot) {
        self.tunnel_answers = snapshot.device.is_some();
        self.done(now, snapshot.settled);
    }

    /// Whether the tunnel is to be looked for every [`TUNNEL_TICK`].
    pub fn seeks_tunnel(&self) -> bool {
        !self.tunnel_answers
    }

    /// When to reconcile or to follow, if anything asks for it.
    pub fn poll_due(&self) -> Option<Instant> {
        self.due.into_iter().chain(self.news_due).min()
    }

    /// Whether a whole reconcile is due; else what is due is to follow the news.
    pub fn is_whole_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    fn done(&mut self, now: Instant, complete: bool) {
        self.failures = if complete {
            0
        } else {
            self.failures.saturating_add(1)
        };
        let backoff = SPACING * 2u32.pow(self.failures.min(5));
        self.not_before = Some(now + backoff.min(MAX_BACKOFF));
        self.late_not_before = Some(now + LATE_SPACING);
        self.due = None;
        self.news_due = None;
    }
}

/// When the next repair of what others touched is due: at once, until it happens again and again.
///
/// ```text
/// a purse of 8, one more every 200 ms: the ninth of a burst waits, and so does each one after
/// ```
#[derive(Clone, Debug, Default)]
pub struct RepairPace {
    touched: Touched,
    due: Option<Instant>,
    spent: u32,
    /// Since when the purse fills.
    since: Option<Instant>,
}

impl RepairPace {
    /// Something of ours may have been touched.
    pub fn handle_touched(&mut self, now: Instant, touched: Touched) {
        self.touched.merge(touched);
        self.refill(now);
        // What opens the node is put back without waiting for what else may come.
        let settle = if touched.filter {
            Duration::ZERO
        } else {
            REPAIR_SETTLE
        };
        let earliest = now + settle;
        let at = match self.since {
            Some(since) if self.spent >= PURSE => earliest.max(since + SPACING),
            _ => earliest,
        };
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// When to repair, if anything asks for it.
    pub fn poll_due(&self) -> Option<Instant> {
        self.due
    }

    /// What to look at: a repair of it begins.
    pub fn start(&mut self, now: Instant) -> Touched {
        self.refill(now);
        self.since.get_or_insert(now);
        self.spent += 1;
        self.due = None;
        std::mem::take(&mut self.touched)
    }

    fn refill(&mut self, now: Instant) {
        while let Some(since) = self.since
            && since + SPACING <= now
        {
            self.spent = self.spent.saturating_sub(1);
            self.since = (self.spent > 0).then_some(since + SPACING);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_repair_comes_at_once_and_a_flood_of_them_five_times_a_second() {
        let network = Touched {
            network: true,
            ..Touched::default()
        };
        let mut repairs = RepairPace::default();
        let mut now = Instant::now();
        repairs.handle_touched(now, network);
        assert_eq!(repairs.poll_due(), Some(now + REPAIR_SETTLE));
        assert_eq!(repairs.start(now + REPAIR_SETTLE), network);
        // Somebody flaps a route every 10 ms for ten seconds.
        let mut done = 0;
        for _ in 0..1000 {
            repairs.handle_touched(now, network);
            now += Duration::from_millis(10);
            if repairs.poll_due().is_some_and(|due| due <= now) {
                repairs.start(now);
                done += 1;
            }
        }
        assert!((50..=60).contains(&done), "{done}");
        // Quiet for a while, and the next one comes at once again.
        now += Duration::from_secs(2);
        repairs.start(now);
        let filter = Touched {
            filter: true,
            ..Touched::default()
        };
        repairs.handle_touched(now, filter);
        assert_eq!(repairs.poll_due(), Some(now));
    }

    #[test]
    fn a_busy_routing_daemon_causes_one_reconcile_a_second() {
        let mut pace = Pace::default();
        let (mut now, mut done) = (Instant::now(), 0);
        for _ in 0..1000 {
            pace.handle_late_event(now);
            now += Duration::from_millis(10);
            if pace.poll_due().is_some_and(|due| due <= now) {
                pace.done(now, true);
                done += 1;
            }
        }
        assert!((9..=11).contains(&done), "{done}");
    }

    #[test]
    fn events_wait_longer_the_longer_nothing_can_be_done() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..8 {
            pace.done(now, false);
            pace.handle_event(now);
            let due = pace.poll_due().unwrap_or(now);
            waits.push((due - now).as_millis());
            now = due;
        }
        assert_eq!(waits[0], 400);
        assert!(waits.windows(2).all(|pair| pair[0] <= pair[1]), "{waits:?}");
        assert_eq!(waits.last(), Some(&5000));
    }

    #[test]
    fn the_clock_does_not_wait_for_a_backoff() {
        let mut pace = Pace::default();
        let now = Instant::now();
        pace.done(now, false);
        pace.handle_tick(now);
        assert_eq!(pace.poll_due(), Some(now));
    }

    #[test]
    fn news_do_not_wait_for_the_reconcile_before_and_one_that_is_not_enough_does() {
        let mut pace = Pace::default();
        let now = Instant::now();
        pace.done(now, true);
        pace.handle_news(now);
        pace.handle_news(now + Duration::from_millis(5));
        assert_eq!(pace.poll_due(), Some(now + SETTLE));
        assert!(!pace.is_whole_due(now + SETTLE));
        pace.handle_followed(now + SETTLE, Followed::Enough);
        assert_eq!(pace.poll_due(), None);
        pace.handle_news(now + SETTLE);
        let later = now + SETTLE * 2;
        pace.handle_followed(later, Followed::Not);
        assert_eq!(pace.poll_due(), Some(now + SPACING));
        assert!(!pace.is_whole_due(later) && pace.is_whole_due(now + SPACING));
        // The tick's own does the news too.
        pace.handle_news(later);
        pace.done(later, true);
        assert_eq!(pace.poll_due(), None);
        // While something fails, nothing is tried faster than the backoff lets it.
        pace.done(later, false);
        pace.handle_news(later);
        assert_eq!(pace.poll_due(), Some(later + SPACING * 2));
    }

    #[test]
    fn a_burst_of_events_is_one_reconcile() {
        let mut pace = Pace::default();
        let first = Instant::now();
        for n in 0..100 {
            pace.handle_event(first + Duration::from_micros(n));
        }
        assert_eq!(pace.poll_due(), Some(first + SETTLE));
        pace.done(first + SETTLE, true);
        assert_eq!(pace.poll_due(), None);
    }
}
