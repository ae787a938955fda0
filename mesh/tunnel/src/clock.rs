//! The time that handshakes are stamped with (TAI64N), which must never go back.
//!
//! A peer refuses an initiation that is not stamped later than the last one it took. A wall clock
//! that went back, over a restart or under a running device whose keys change, would therefore cut
//! the device off until it has caught up. So stamps do not follow the wall clock: they begin at it
//! or at the mark that the last process left on disk, whichever is later, and from there on go with
//! the steady clock.
//!
//! boringtun reads the wall clock by itself where a session is made. [`realtime_override`] is what
//! it shall read then; the program's `clock_gettime` asks for it. Nothing else sees that time: it
//! holds for one call, on one thread.

use std::cell::Cell;
use std::time::{Duration, SystemTime};

thread_local! {
    static REALTIME: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// How far the mark on disk is ahead of the stamps, and so how long it is good for: whatever ends
/// the process, it has stamped nothing later.
pub(crate) const RESERVE: Duration = Duration::from_secs(3600);
/// As much at an orderly end, after which nothing is stamped but what is under way.
pub(crate) const LAST_RESERVE: Duration = Duration::from_secs(10);

/// Returns what this thread shall read from `CLOCK_REALTIME`, time since the Unix epoch; `None`
/// almost always: the clock itself.
#[inline]
pub fn realtime_override() -> Option<Duration> {
    REALTIME.get()
}

/// Tells whether this program's `clock_gettime` asks for [`realtime_override`].
pub fn is_overridable() -> bool {
    let time = Duration::from_secs(1);
    with_realtime(time, unix_time) == time
}

/// Runs `work` while the wall clock reads `time`.
pub(crate) fn with_realtime<R>(time: Duration, work: impl FnOnce() -> R) -> R {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            REALTIME.set(None);
        }
    }
    REALTIME.set(Some(time));
    let _reset = Reset;
    work()
}

/// The clock of stamps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StampClock {
    start: Duration,
    /// The steady clock at `start`. It counts suspended time, as the one in boringtun does.
    boot_at_start: Duration,
}

impl StampClock {
    /// Starts at the wall clock, or at `mark` when that is later.
    pub(crate) fn new(mark: Duration) -> Self {
        Self {
            start: unix_time().max(mark),
            boot_at_start: boot_time(),
        }
    }

    /// Returns the present stamp, as time since the Unix epoch.
    pub(crate) fn now(&self) -> Duration {
        self.start + boot_time().saturating_sub(self.boot_at_start)
    }
}

fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

pub(crate) fn boot_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a timespec to write to. It cannot fail: the clock exists since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_begin_at_the_later_of_clock_and_mark_and_go_on_from_there() {
        let ahead = unix_time() + Duration::from_secs(315_360_000);
        let clock = StampClock::new(ahead);
        let first = clock.now();
        assert!(first >= ahead && first < ahead + Duration::from_secs(5));
        assert!(clock.now() > first);
        let clock = StampClock::new(Duration::from_secs(9));
        assert!(clock.now() >= unix_time() - Duration::from_secs(5));
    }

    #[test]
    fn the_override_ends_with_the_work_even_when_that_panics() {
        let time = Duration::from_secs(7);
        assert_eq!(with_realtime(time, realtime_override), Some(time));
        assert_eq!(realtime_override(), None);
        let panicked = std::panic::catch_unwind(|| with_realtime(time, || panic!("on purpose")));
        assert!(panicked.is_err());
        assert_eq!(realtime_override(), None);
    }
}
