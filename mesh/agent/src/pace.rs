//! When to reconcile: a state machine without a clock, which the agent's loop and the simulator
//! drive.
//!
//! ```text
//!   an event ----- settle, not before the last outcome allows --+
//!   the tick ----- now -----------------------------------------+--> due --> reconcile
//!   a tunnel that came back ----- now --------------------------+              |
//!        ^ sought while there is none                                          |
//!        +---------------------------- outcome <-------------------------------+
//! ```

use std::time::{Duration, Instant};

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

/// When the next reconcile is due.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    due: Option<Instant>,
    not_before: Option<Instant>,
    failures: u32,
    tunnel_answers: bool,
}

impl Pace {
    /// The registry or the kernel told something: soon, but not sooner than the last outcome
    /// allows.
    pub fn handle_event(&mut self, now: Instant) {
        let at = now + SETTLE;
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

    /// When to reconcile, if anything asks for it.
    pub fn poll_due(&self) -> Option<Instant> {
        self.due
    }

    fn done(&mut self, now: Instant, complete: bool) {
        self.failures = if complete {
            0
        } else {
            self.failures.saturating_add(1)
        };
        let backoff = SPACING * 2u32.pow(self.failures.min(5));
        self.not_before = Some(now + backoff.min(MAX_BACKOFF));
        self.due = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
