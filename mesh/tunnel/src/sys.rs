//! The few calls of the kernel that no crate of ours wraps.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};

/// Sets a socket option that is an `int`.
pub(crate) fn set_int_option(
    socket: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            mem::size_of_val(&value) as libc::socklen_t,
        )
    };
    check(result).map(drop)
}

/// Attaches a classic BPF program to a socket, by the option of this name.
pub(crate) fn attach_program(
    socket: &impl AsRawFd,
    name: libc::c_int,
    program: &mut [libc::sock_filter],
) -> io::Result<()> {
    let filter = libc::sock_fprog {
        len: program.len() as libc::c_ushort,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the pointer and the length describe `filter`, which describes `program`; both outlive
    // the call, and the kernel only reads them.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw const filter).cast(),
            mem::size_of_val(&filter) as libc::socklen_t,
        )
    };
    check(result).map(drop)
}

/// Reads a socket option that is an `int`.
pub(crate) fn int_option(
    socket: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = mem::size_of_val(&value) as libc::socklen_t;
    // SAFETY: the pointers describe `value` and its length, which outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    check(result).map(|_| value)
}

/// Waits until the descriptor can be written to, but no longer than the milliseconds.
pub(crate) fn wait_writable(descriptor: RawFd, milliseconds: libc::c_int) {
    let mut poll = libc::pollfd {
        fd: descriptor,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one pollfd that outlives the call. Its result does not matter: the write is tried
    // again in either case.
    unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
}

/// Turns the -1 of a system call into its error.
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
