//! One lock an attachment: ADD, DEL and the sweep of one attachment exclude each other, those of
//! different ones do not.
//!
//! All are byte ranges of one file, at an offset that the attachment's name on the node gives. The
//! kernel lets a lock go when the process ends, however it ends; so whoever gets the lock of an
//! attachment knows that no ADD is under way for it.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use warren_core::consts::VETH_PREFIX;

use super::disk::open_lock_file;

/// The locks' file. Not the store's own, for on network file systems both kinds of lock are one.
pub(super) const FILE: &str = ".attachments";

/// A lock of one attachment; it ends with the value or the process.
#[derive(Debug)]
pub struct AttachmentLock {
    _file: File,
}

impl AttachmentLock {
    /// Waits for the lock.
    pub(super) fn wait(folder: &Path, host_interface: &str) -> io::Result<Self> {
        let file = open_lock_file(&folder.join(FILE))?;
        let range = range_of(host_interface);
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLKW(&range)) {
                Ok(_) => return Ok(Self { _file: file }),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Takes the lock if nobody has it.
    pub(super) fn try_take(folder: &Path, host_interface: &str) -> io::Result<Option<Self>> {
        let file = open_lock_file(&folder.join(FILE))?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&range_of(host_interface))) {
            Ok(_) => Ok(Some(Self { _file: file })),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The byte that stands for an attachment: two of them share one only if their hashes agree in 48
/// bits, and then merely wait for each other.
fn range_of(host_interface: &str) -> libc::flock {
    let digits = host_interface.strip_prefix(VETH_PREFIX).unwrap_or_default();
    let offset = i64::from_str_radix(digits, 16).unwrap_or_default().max(0);
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: offset,
        l_len: 1,
        l_pid: 0,
    }
}
