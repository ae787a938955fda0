//! The driven clock: each thread has its own, and it moves when it is told to.

use std::cell::Cell;
use std::time::Duration;

use libc::{c_int, clockid_t, timespec};
use warren_tunnel::clock::realtime_override;

/// A reading takes so long: no two are the same.
const READING: u64 = 100;

thread_local! {
    /// The steady clocks, in nanoseconds; 0 leaves the thread with the system's clocks.
    static STEADY: Cell<u64> = const { Cell::new(0) };
    /// How far the wall clock is ahead of them, in nanoseconds.
    static WALL_AHEAD: Cell<i128> = const { Cell::new(0) };
}

/// Starts this thread's own clock at a time since the Unix epoch.
pub fn start(unix: Duration) {
    // Steady clocks begin at an arbitrary moment, well above anything that is subtracted from them.
    STEADY.set(1_000_000_000_000_000);
    set_wall(unix);
}

/// Moves all clocks of this thread forward.
pub fn advance(by: Duration) {
    STEADY.set(STEADY.get() + by.as_nanos() as u64);
}

/// Sets the wall clock only.
pub fn set_wall(unix: Duration) {
    WALL_AHEAD.set(unix.as_nanos() as i128 - i128::from(STEADY.get()));
}

/// Returns the wall clock, as time since the Unix epoch.
pub fn wall() -> Duration {
    let nanoseconds = i128::from(STEADY.get()) + WALL_AHEAD.get();
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0))
}

unsafe extern "C" {
    fn __real_clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int;
}

/// # Safety
/// As for `clock_gettime`: `time` must be valid for a write.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    let steady = STEADY.get();
    let reading = match clock {
        libc::CLOCK_REALTIME => match realtime_override() {
            Some(unix) => Some(unix),
            None => (steady != 0).then(wall),
        },
        libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME if steady != 0 => {
            STEADY.set(steady + READING);
            Some(Duration::from_nanos(steady))
        }
        _ => None,
    };
    match reading {
        Some(reading) => {
            let reading = timespec {
                tv_sec: reading.as_secs() as libc::time_t,
                tv_nsec: reading.subsec_nanos().into(),
            };
            // SAFETY: the caller promises that `time` may be written to.
            unsafe { time.write(reading) };
            0
        }
        // SAFETY: the caller's own promise is passed on.
        None => unsafe { __real_clock_gettime(clock, time) },
    }
}
