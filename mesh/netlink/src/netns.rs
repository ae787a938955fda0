//! Network namespaces: naming one, and running code inside it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, setns};

/// A network namespace, held open by a file descriptor: it lives at least as long as this value.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

impl Netns {
    /// Opens the namespace that is bound to `path`, as a container runtime names it.
    ///
    /// # Errors
    /// The path's: not found when the namespace is gone already.
    pub fn from_path(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::open(path)?,
        })
    }

    /// Opens the calling thread's namespace.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> io::Result<Self> {
        Self::from_path(Path::new("/proc/thread-self/ns/net"))
    }

    /// Opens the namespace of process `pid`.
    ///
    /// # Errors
    /// Not found when the process has ended, permission denied when it is someone else's.
    pub fn of_pid(pid: u32) -> io::Result<Self> {
        Self::from_path(Path::new(&format!("/proc/{pid}/ns/net")))
    }

    /// Returns the descriptor that holds the namespace.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Runs `f` on a thread of its own inside the namespace and returns what it returned.
    ///
    /// The calling thread waits and stays where it is. A panic of `f` goes on in the caller.
    ///
    /// # Errors
    /// When no thread can be started; invalid input when the path was not a network namespace's;
    /// permission denied without CAP_SYS_ADMIN.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        let enter_and_run = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            Ok(f())
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new()
                .name("netns".into())
                .spawn_scoped(scope, enter_and_run)?;
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}
