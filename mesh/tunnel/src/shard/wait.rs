//! How the packet loop waits.

use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollEvent, EpollTimeout};

use crate::spin::Spin;

/// Waits for events until `timeout`, counted from `now`; before it sleeps it polls, as long as the
/// rule has it. A timer that falls due within a poll is at most that late.
///
/// # Errors
/// What the kernel says about epoll.
pub(super) fn wait(
    epoll: &Epoll,
    events: &mut [EpollEvent],
    timeout: EpollTimeout,
    now: Instant,
    spin: &mut Spin,
) -> nix::Result<usize> {
    if !spin.is_allowed() || timeout == EpollTimeout::ZERO {
        return epoll.wait(events, timeout);
    }
    let Some(until) = spin.until(now) else {
        let count = epoll.wait(events, timeout)?;
        if count > 0 {
            spin.note_slept(now.elapsed());
        }
        return Ok(count);
    };
    // What is there already was not waited for, and says nothing.
    let mut count = epoll.wait(events, EpollTimeout::ZERO)?;
    if count > 0 {
        return Ok(count);
    }
    while Instant::now() < until {
        std::hint::spin_loop();
        count = epoll.wait(events, EpollTimeout::ZERO)?;
        if count > 0 {
            spin.note_in_time();
            return Ok(count);
        }
    }
    spin.note_in_vain();
    epoll.wait(events, timeout)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use nix::sys::epoll::{EpollCreateFlags, EpollFlags};

    use super::*;
    use crate::spin::SpinCounters;

    const WHILE: Duration = Duration::from_micros(200);

    fn watched() -> (Epoll, UnixStream, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
        let event = EpollEvent::new(EpollFlags::EPOLLIN, 7);
        epoll.add(&near, event).unwrap();
        (epoll, near, far)
    }

    #[test]
    fn what_is_there_is_told_at_once_and_is_no_poll() {
        let (epoll, _near, mut far) = watched();
        far.write_all(b"x").unwrap();
        let mut events = [EpollEvent::empty(); 2];
        for limit in [Duration::ZERO, WHILE] {
            let mut spin = Spin::new(limit);
            for _ in 0..100 {
                let now = Instant::now();
                let count = wait(&epoll, &mut events, EpollTimeout::NONE, now, &mut spin);
                assert_eq!((count.unwrap(), events[0].data()), (1, 7));
            }
            assert_eq!(spin.counters(), SpinCounters::default());
        }
    }

    #[test]
    fn it_sleeps_after_a_poll_in_vain_and_wakes_by_what_comes_or_by_the_timeout() {
        let (epoll, _near, mut far) = watched();
        let mut spin = Spin::new(WHILE);
        while spin.until(Instant::now()).is_none() {
            spin.note_slept(Duration::ZERO);
        }
        let mut events = [EpollEvent::empty(); 2];
        let timeout = EpollTimeout::from(1u16);
        let count = wait(&epoll, &mut events, timeout, Instant::now(), &mut spin);
        assert_eq!(count, Ok(0));
        assert_eq!(spin.counters().in_vain, 1);
        assert!(spin.until(Instant::now()).is_some(), "one is not enough");
        let count = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                far.write_all(b"x").unwrap();
            });
            let now = Instant::now();
            wait(&epoll, &mut events, EpollTimeout::NONE, now, &mut spin)
        });
        assert_eq!((count, events[0].data()), (Ok(1), 7));
    }
}
