//! The program's `clock_gettime`.
//!
//! The linker (`--wrap`, see build.rs) sends every call of it here: those of the standard library
//! and of boringtun. All of them go on to the C library's own, which asks no kernel, but for the
//! wall clock while a session is made.

use libc::{c_int, clockid_t, timespec};
use warren_tunnel::clock::realtime_override;

unsafe extern "C" {
    fn __real_clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int;
}

/// # Safety
/// As for `clock_gettime`: `time` must be valid for a write.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    if clock == libc::CLOCK_REALTIME
        && let Some(unix) = realtime_override()
    {
        let unix = timespec {
            tv_sec: unix.as_secs() as libc::time_t,
            tv_nsec: unix.subsec_nanos().into(),
        };
        // SAFETY: the caller promises that `time` may be written to.
        unsafe { time.write(unix) };
        return 0;
    }
    // SAFETY: the caller's own promise is passed on.
    unsafe { __real_clock_gettime(clock, time) }
}
