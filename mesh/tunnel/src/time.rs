//! The time that is handed to the engine.

use std::ops::Add;
use std::time::{Duration, Instant, SystemTime};

use crate::clock::boot_time;

/// A wall clock that is off by less since a handshake was slewed, not set: its second must not
/// change from one reading to the next.
const SLEW: Duration = Duration::from_secs(2);

/// One reading of the clocks: the steady one that timers go by, and the wall clock that `get`
/// reports handshakes in.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// The steady clock.
    pub monotonic: Instant,
    /// Time since the Unix epoch.
    pub unix: Duration,
    /// Time since the machine started, suspended time included: what tells how long ago a
    /// handshake was, whatever is done to the wall clock.
    pub boot: Duration,
}

impl Now {
    /// Reads both clocks. Only loops do that; the engine is given what they read.
    pub fn read() -> Self {
        let unix = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            monotonic: Instant::now(),
            unix,
            boot: boot_time(),
        }
    }

    /// Returns what the wall clock would have read at `then`, an earlier reading, had it always been
    /// as it is now: what it did read, unless it was set since.
    pub(crate) fn unix_at(&self, then: &Self) -> Duration {
        let age = self.boot.saturating_sub(then.boot);
        let at = self.unix.saturating_sub(age);
        if at.abs_diff(then.unix) < SLEW {
            then.unix
        } else {
            at
        }
    }
}

impl Add<Duration> for Now {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        Self {
            monotonic: self.monotonic + later,
            unix: self.unix + later,
            boot: self.boot + later,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_that_was_set_leaves_ages_as_they_are() {
        let then = Now::read();
        let later = then + Duration::from_secs(30);
        assert_eq!(later.unix_at(&then), then.unix);
        for step in [3_600, 315_360_000] {
            let step = Duration::from_secs(step);
            let forward = Now {
                unix: later.unix + step,
                ..later
            };
            assert_eq!(forward.unix_at(&then), then.unix + step);
            let back = Now {
                unix: later.unix - step,
                ..later
            };
            assert_eq!(back.unix_at(&then), then.unix - step);
        }
        let slewed = Now {
            unix: later.unix + Duration::from_millis(900),
            ..later
        };
        assert_eq!(slewed.unix_at(&then), then.unix);
        let before_the_epoch = Now {
            unix: Duration::ZERO,
            ..later
        };
        assert_eq!(before_the_epoch.unix_at(&then), Duration::ZERO);
    }
}
