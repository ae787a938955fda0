//! The one error of this crate.

use std::{fmt, io};

/// Says which operation failed, on what, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetlinkError {
    /// No netlink socket could be made.
    #[error("{operation}: {source}{}", hint(.source.raw_os_error().unwrap_or(0)))]
    Socket {
        /// What was being done.
        operation: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error(
        "{operation} {subject}: {}{}{}",
        io::Error::from_raw_os_error(*.errno), Detail(.detail.as_deref()), hint(*.errno)
    )]
    Kernel {
        /// What was asked of the kernel, such as "add route".
        operation: &'static str,
        /// What it was asked for, such as the route.
        subject: String,
        /// The kernel's error number (errno(3)), positive.
        errno: i32,
        /// The kernel's own words (extended acknowledgement), where it has any.
        detail: Option<String>,
    },
    /// The connection's task is gone: its runtime was shut down, or its socket failed.
    #[error("{operation} {subject}: the netlink connection is closed; open a new one")]
    Closed {
        /// What was asked of the kernel.
        operation: &'static str,
        /// What it was asked for.
        subject: String,
    },
    /// The configuration changed during each of several attempts to dump it.
    #[error("{operation}: the kernel's tables kept changing while they were read; try again")]
    Interrupted {
        /// What was asked of the kernel.
        operation: &'static str,
    },
    /// The kernel answered, but not in a form that can be understood.
    #[error("{operation} {subject}: the kernel's answer cannot be understood: {reason}")]
    Answer {
        /// What was asked of the kernel.
        operation: &'static str,
        /// What it was asked for.
        subject: String,
        /// What is wrong with the answer.
        reason: &'static str,
    },
    /// The request makes no sense; the kernel was not asked.
    #[error("{operation} {subject}: {reason}")]
    Invalid {
        /// What was asked for.
        operation: &'static str,
        /// Of what.
        subject: String,
        /// Why it cannot be done.
        reason: &'static str,
    },
}

impl NetlinkError {
    /// Returns the kernel's error number (errno(3)), if the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { errno, .. } => Some(*errno),
            Self::Socket { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// Tells whether what was to be added is there already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// Tells whether what was to be changed or removed does not exist.
    pub fn is_not_found(&self) -> bool {
        const ABSENT: [i32; 4] = [libc::ENODEV, libc::ESRCH, libc::ENOENT, libc::EADDRNOTAVAIL];
        self.errno().is_some_and(|errno| ABSENT.contains(&errno))
    }
}

struct Detail<'a>(Option<&'a str>);

impl fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(text) => write!(f, ": {text}"),
            None => Ok(()),
        }
    }
}

/// The likely fix, for the errors that have one.
fn hint(errno: i32) -> &'static str {
    match errno {
        libc::EPERM | libc::EACCES => {
            " (CAP_NET_ADMIN in this network namespace is needed: run as root)"
        }
        libc::EMFILE => " (raise the limit of open files)",
        libc::EOPNOTSUPP | libc::EAFNOSUPPORT => {
            " (this kernel lacks the feature: load its module or enable the address family)"
        }
        _ => "",
    }
}
