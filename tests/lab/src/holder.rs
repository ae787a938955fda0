//! Namespace holders: the processes that keep namespaces alive.
//!
//! ```text
//! test process ── control socket, pidfd ──> lab init   PID 1 of the lab's PID namespace
//!                                             └ host init    PID 1 of a host's, nested
//!                                                 └ pod init     PID 1 of a pod's, nested
//! ```
//!
//! The lab init watches the test process by pidfd: whatever ends that process, the init ends too,
//! and the kernel then kills every process of every namespace below it.
//!
//! A holder is a copy of a possibly multi-threaded process made by a raw `clone`, so between the
//! clone and its end it may only make system calls: no allocation, no locks, no panics.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, send, setsockopt,
    socketpair, sockopt,
};

use crate::error::{LabError, Result};

/// The steps of a holder's start; the index travels from the child to the parent.
const STAGES: [&str; 14] = [
    "ready",
    "clone",
    "join the lab's mount namespace",
    "unshare",
    "make mounts private",
    "set the hostname",
    "mount tmpfs on /run",
    "make directories in /run",
    "mount proc on /proc",
    "mount sysfs on /sys",
    "open /dev/null",
    "close inherited descriptors",
    "watch signals",
    "receive the ready message",
];

const READY_TIMEOUT: Duration = Duration::from_secs(15);
/// What the lab init becomes in the end: it removes the lab's directory and the control groups of its name.
const REMOVE: &std::ffi::CStr = c"
rm -rf -- \"$0\"
for group in /sys/fs/cgroup/*/\"${0##*/}\"; do
    tries=50
    while [ -d \"$group\" ] && [ $tries -gt 0 ]; do
        find \"$group\" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.1
        tries=$((tries - 1))
    done
done";
/// Longest path the lab init accepts for the directory it removes.
const PATH_MAX: usize = 4096;

/// A running holder, addressed by pidfd so that a reused PID is never hit.
#[derive(Debug)]
pub(crate) struct Holder {
    pid: i32,
    pidfd: OwnedFd,
}

impl Holder {
    /// The holder's PID as seen by the test process.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Opens one of the holder's namespaces: `net`, `mnt`, `pid`, `uts`, `ipc`.
    pub(crate) fn namespace(&self, kind: &str) -> Result<OwnedFd> {
        let path = format!("/proc/{}/ns/{kind}", self.pid);
        std::fs::File::open(&path)
            .map(OwnedFd::from)
            .map_err(|e| LabError::io(format!("open {path}"), e))
    }

    /// Kills the holder and with it every process of its PID namespace.
    pub(crate) fn kill(&self) {
        // SAFETY: a system call on a descriptor we own; a null siginfo is allowed.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            );
        }
    }

    /// Waits for the holder's end; false when it is still there after `limit`.
    pub(crate) fn wait(&self, limit: Duration) -> bool {
        let ended = wait_pidfd(self.pidfd.as_fd(), limit);
        // The lab init is our own child and would stay a zombie; for the others this is ECHILD.
        let _ = nix::sys::wait::waitpid(
            nix::unistd::Pid::from_raw(self.pid),
            Some(nix::sys::wait::WaitPidFlag::WNOHANG),
        );
        ended
    }
}

/// Opens a pidfd of a process.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes plain integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Waits until the process behind a pidfd has ended; false after `limit`.
pub(crate) fn wait_pidfd(pidfd: BorrowedFd<'_>, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        let mut fds = [PollFd::new(pidfd, PollFlags::POLLIN)];
        match poll(
            &mut fds,
            PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX),
        ) {
            Ok(0) if left.is_zero() => return false,
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return true,
            Err(_) => return false,
        }
    }
}

/// Tries in a child whether the kernel lets this process make the namespaces.
pub(crate) fn try_unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: the child makes two system calls and ends.
    let pid = unsafe { raw_clone(0) };
    match pid {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: plain system calls.
            unsafe {
                let failed = libc::unshare(flags) != 0;
                libc::_exit(if failed { *libc::__errno_location() } else { 0 })
            }
        }
        _ => {}
    }
    match nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None)? {
        nix::sys::wait::WaitStatus::Exited(_, 0) => Ok(()),
        nix::sys::wait::WaitStatus::Exited(_, errno) => Err(io::Error::from_raw_os_error(errno)),
        other => Err(io::Error::other(format!("{other:?}"))),
    }
}

/// The lab init with the socket that controls it.
#[derive(Debug)]
pub(crate) struct LabInit {
    pub(crate) holder: Holder,
    control: OwnedFd,
}

impl LabInit {
    /// Starts the init of a lab in new PID and mount namespaces.
    pub(crate) fn start(name: &str) -> Result<Self> {
        let fail = |stage, source| LabError::Namespaces {
            name: name.into(),
            stage,
            source,
        };
        let (ours, theirs) = ready_socket().map_err(|e| fail("make a socket pair", e))?;
        let this = pidfd_open(std::process::id() as i32)
            .map_err(|e| fail("open a pidfd of this process", e))?;
        let mut keep = [theirs.as_raw_fd(), this.as_raw_fd()];
        keep.sort_unstable();
        let (socket, parent) = (theirs.as_raw_fd(), this.as_raw_fd());
        // SAFETY: the child only makes system calls and never returns from `lab_init`.
        let pid = unsafe { raw_clone(libc::CLONE_NEWPID | libc::CLONE_NEWNS) };
        match pid {
            0 => lab_init(socket, parent, keep),
            -1 => return Err(fail(STAGES[1], io::Error::last_os_error())),
            _ => {}
        }
        drop(theirs);
        let result = receive_ready(&ours);
        if result.is_err() {
            let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
        }
        let pid = result.map_err(|(stage, source)| fail(stage, source))?;
        let pidfd = pidfd_open(pid).map_err(|e| fail("open a pidfd", e))?;
        Ok(Self {
            holder: Holder { pid, pidfd },
            control: ours,
        })
    }

    /// Tells the init which directory to remove if the test process dies.
    pub(crate) fn set_directory(&self, dir: &std::path::Path) -> Result<()> {
        use std::os::unix::ffi::OsStrExt;
        let mut message = vec![b'D'];
        message.extend_from_slice(dir.as_os_str().as_bytes());
        self.tell(&message)
    }

    /// Tells the init to outlive the test process.
    pub(crate) fn detach(&self) -> Result<()> {
        self.tell(b"K")
    }

    fn tell(&self, message: &[u8]) -> Result<()> {
        send(self.control.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL)
            .map(drop)
            .map_err(|e| LabError::io("write to the lab's init", e))
    }
}

/// What a host's or pod's holder has to set up.
pub(crate) struct HolderPlan<'a> {
    /// Name for error messages.
    pub(crate) name: &'a str,
    /// Hostname inside.
    pub(crate) hostname: &'a str,
    /// PID namespace whose member the holder becomes; its own is nested below.
    pub(crate) pid_ns: BorrowedFd<'a>,
    /// Mount namespace it starts from; its own is a private copy.
    pub(crate) mnt_ns: BorrowedFd<'a>,
}

impl HolderPlan<'_> {
    /// Starts the holder.
    pub(crate) fn start(&self) -> Result<Holder> {
        let fail = |stage, source| LabError::Namespaces {
            name: self.name.into(),
            stage,
            source,
        };
        let hostname = CString::new(self.hostname).map_err(|_| LabError::Name {
            name: self.hostname.into(),
            why: "it holds a NUL",
        })?;
        let (ours, theirs) = ready_socket().map_err(|e| fail("make a socket pair", e))?;
        // `setns` to a PID namespace changes the calling thread for good, hence the thread.
        let pid = std::thread::scope(|scope| {
            scope
                .spawn(|| self.clone_inside(&hostname, theirs.as_raw_fd()))
                .join()
        });
        let middle = match pid {
            Ok(Ok(pid)) => pid,
            Ok(Err(e)) => return Err(fail("clone into the PID namespace", e)),
            Err(_) => return Err(fail(STAGES[1], io::Error::other("the thread panicked"))),
        };
        drop(theirs);
        let ready = receive_ready(&ours);
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(middle), None);
        let pid = ready.map_err(|(stage, source)| fail(stage, source))?;
        let pidfd = pidfd_open(pid).map_err(|e| fail("open a pidfd", e))?;
        Ok(Holder { pid, pidfd })
    }

    /// A process may only make a PID namespace below its own, so the holder is cloned twice: first
    /// into the outer namespace, then from there with `CLONE_NEWPID`. The one in the middle ends,
    /// and the outer namespace's init, which ignores SIGCHLD, becomes the holder's parent.
    fn clone_inside(&self, hostname: &CString, socket: RawFd) -> io::Result<i32> {
        nix::sched::setns(self.pid_ns, nix::sched::CloneFlags::CLONE_NEWPID)?;
        let mount_ns = self.mnt_ns.as_raw_fd();
        // SAFETY: both children only make system calls and end by `_exit` or never.
        unsafe {
            match raw_clone(0) {
                -1 => Err(io::Error::last_os_error()),
                0 => {
                    match raw_clone(libc::CLONE_NEWPID) {
                        0 => space_init(hostname, mount_ns, socket),
                        -1 => report(socket, 1),
                        _ => {}
                    }
                    libc::_exit(0)
                }
                pid => Ok(pid),
            }
        }
    }
}

/// Both ends of the ready socket; ours receives the sender's PID in our own numbering.
fn ready_socket() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    setsockopt(&ours, sockopt::PassCred, &true)?;
    let limit = nix::sys::time::TimeVal::new(READY_TIMEOUT.as_secs() as i64, 0);
    setsockopt(&ours, sockopt::ReceiveTimeout, &limit)?;
    Ok((ours, theirs))
}

fn receive_ready(socket: &OwnedFd) -> std::result::Result<i32, (&'static str, io::Error)> {
    let last = STAGES[STAGES.len() - 1];
    let mut data = [0_u8; 8];
    let mut control = nix::cmsg_space!(libc::ucred);
    let mut iov = [io::IoSliceMut::new(&mut data)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut iov,
        Some(&mut control),
        MsgFlags::empty(),
    )
    .map_err(|e| (last, e.into()))?;
    let pid = message
        .cmsgs()
        .ok()
        .into_iter()
        .flatten()
        .find_map(|c| match c {
            ControlMessageOwned::ScmCredentials(cred) => Some(cred.pid()),
            _ => None,
        });
    let bytes = message.bytes;
    if bytes != data.len() {
        return Err((
            last,
            io::Error::new(io::ErrorKind::UnexpectedEof, "the holder ended"),
        ));
    }
    let [a, b, c, d, e, f, g, h] = data;
    let stage = u32::from_ne_bytes([a, b, c, d]) as usize;
    let errno = i32::from_ne_bytes([e, f, g, h]);
    match (stage, pid) {
        (0, Some(pid)) => Ok(pid),
        _ => Err((
            STAGES.get(stage).unwrap_or(&last),
            io::Error::from_raw_os_error(errno),
        )),
    }
}

/// Clones the calling process without running libc's fork handlers.
///
/// # Safety
///
/// The child may only make system calls until `_exit` or `exec`.
unsafe fn raw_clone(flags: libc::c_int) -> i32 {
    // SAFETY: with a null stack and no CLONE_VM this is fork(2).
    unsafe {
        libc::syscall(
            libc::SYS_clone,
            (flags | libc::SIGCHLD) as libc::c_ulong,
            0,
            0,
            0,
            0,
        ) as i32
    }
}

// ---- from here on: code that runs in the child, system calls only ----

/// Sends the stage reached with errno (stage 0: ready).
unsafe fn report(socket: RawFd, stage: u32) {
    // SAFETY: `message` outlives the call; errno is thread-local and valid in the child.
    unsafe {
        let errno = if stage == 0 {
            0
        } else {
            *libc::__errno_location()
        };
        let message = [stage.to_ne_bytes(), errno.to_ne_bytes()];
        libc::send(socket, message.as_ptr().cast(), 8, libc::MSG_NOSIGNAL);
    }
}

/// Ends the child with a report unless the call succeeded.
unsafe fn ensure(socket: RawFd, stage: u32, ok: bool) {
    if !ok {
        // SAFETY: plain system calls.
        unsafe {
            report(socket, stage);
            libc::_exit(1);
        }
    }
}

/// Detaches from the terminal and every inherited descriptor but those in `keep` (ascending).
unsafe fn settle(socket: RawFd, name: &std::ffi::CStr, keep: &[RawFd]) {
    // SAFETY: plain system calls on static strings and local values.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, name.as_ptr());
        libc::setsid();
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        ensure(
            socket,
            12,
            libc::sigprocmask(libc::SIG_SETMASK, &all, std::ptr::null_mut()) == 0,
        );
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        ensure(socket, 10, null >= 0);
        for stdio in 0..3 {
            libc::dup2(null, stdio);
        }
        let mut from = 3;
        for fd in keep.iter().copied().chain([RawFd::MAX]) {
            if fd > from {
                let last = if fd == RawFd::MAX {
                    libc::c_uint::MAX
                } else {
                    (fd - 1) as libc::c_uint
                };
                let done = libc::syscall(libc::SYS_close_range, from as libc::c_uint, last, 0);
                ensure(socket, 11, done == 0);
            }
            from = from.max(fd.saturating_add(1));
        }
    }
}

fn lab_init(socket: RawFd, parent: RawFd, keep: [RawFd; 2]) -> ! {
    // SAFETY: plain system calls on static strings and local values; never returns.
    unsafe {
        settle(socket, c"lab-init", &keep);
        let private = libc::MS_REC | libc::MS_PRIVATE;
        let null = std::ptr::null();
        ensure(
            socket,
            4,
            libc::mount(null, c"/".as_ptr(), null, private, null.cast()) == 0,
        );
        let mut term: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut term);
        libc::sigaddset(&mut term, libc::SIGTERM);
        libc::sigaddset(&mut term, libc::SIGINT);
        let signals = libc::signalfd(-1, &term, libc::SFD_CLOEXEC);
        ensure(socket, 12, signals >= 0);
        report(socket, 0);

        let mut path = [0_u8; PATH_MAX];
        let mut has_path = false;
        let mut fds = [parent, signals, socket].map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        loop {
            if libc::poll(fds.as_mut_ptr(), 3, -1) < 0 {
                continue;
            }
            if fds[2].revents != 0 {
                let mut message = [0_u8; PATH_MAX];
                let got = libc::recv(socket, message.as_mut_ptr().cast(), PATH_MAX - 1, 0);
                match (got, message[0]) {
                    (..=0, _) => fds[2].fd = -1,
                    (_, b'K') => fds[0].fd = -1,
                    (_, b'D') => {
                        let mut at = 1;
                        while at < PATH_MAX {
                            path[at - 1] = message[at];
                            at += 1;
                        }
                        has_path = true;
                    }
                    _ => {}
                }
                continue;
            }
            if fds[0].revents != 0 || fds[1].revents != 0 {
                break;
            }
        }
        // Everything must be dead before the directory goes, or a log writer would refill it.
        libc::kill(-1, libc::SIGKILL);
        for _ in 0..500 {
            if libc::kill(-1, 0) != 0 {
                break;
            }
            libc::poll(std::ptr::null_mut(), 0, 2);
        }
        if has_path {
            let argv = [
                c"sh".as_ptr(),
                c"-c".as_ptr(),
                REMOVE.as_ptr(),
                path.as_ptr().cast(),
                std::ptr::null(),
            ];
            libc::execv(c"/bin/sh".as_ptr(), argv.as_ptr());
        }
        libc::_exit(0)
    }
}

fn space_init(hostname: &CString, mount_ns: RawFd, socket: RawFd) -> ! {
    // SAFETY: plain system calls on static strings and values that live as long as this process;
    // never returns.
    unsafe {
        let null = std::ptr::null();
        ensure(socket, 2, libc::setns(mount_ns, libc::CLONE_NEWNS) == 0);
        let spaces =
            libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
        ensure(socket, 3, libc::unshare(spaces) == 0);
        settle(socket, c"lab-host", &[socket]);
        let private = libc::MS_REC | libc::MS_PRIVATE;
        ensure(
            socket,
            4,
            libc::mount(null, c"/".as_ptr(), null, private, null.cast()) == 0,
        );
        let name = hostname.as_bytes();
        ensure(
            socket,
            5,
            libc::sethostname(name.as_ptr().cast(), name.len()) == 0,
        );
        let run = c"/run".as_ptr();
        let options = c"mode=755".as_ptr().cast();
        let tmpfs = c"tmpfs".as_ptr();
        let careful = libc::MS_NOSUID | libc::MS_NODEV;
        ensure(
            socket,
            6,
            libc::mount(tmpfs, run, tmpfs, careful, options) == 0,
        );
        for dir in [c"/run/netns", c"/run/lock"] {
            ensure(socket, 7, libc::mkdir(dir.as_ptr(), 0o755) == 0);
        }
        let sealed = careful | libc::MS_NOEXEC;
        let proc = c"proc".as_ptr();
        ensure(
            socket,
            8,
            libc::mount(proc, c"/proc".as_ptr(), proc, sealed, null.cast()) == 0,
        );
        let sysfs = c"sysfs".as_ptr();
        ensure(
            socket,
            9,
            libc::mount(sysfs, c"/sys".as_ptr(), sysfs, sealed, null.cast()) == 0,
        );
        report(socket, 0);
        libc::close(socket);
        loop {
            libc::pause();
        }
    }
}
