//! A key's directory whose mode lets others look in: what makes directories for containers does so.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::unistd::geteuid;

/// Closes a directory of this user to others, when they could look in but not write, and nothing is
/// in it but what `is_own` says of the name: nobody else uses it, or can have put anything there. Any
/// other directory is left as it is, for whoever reads the key to judge. One that does not exist is
/// nothing to do. Returns the mode that it had, if it was closed.
///
/// # Errors
/// The system's answer.
pub fn close_to_others(dir: &Path, is_own: impl Fn(&str) -> bool) -> io::Result<Option<u32>> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_DIRECTORY.bits())
        .open(dir);
    let opened: File = match opened {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let found = opened.metadata()?;
    let mode = found.mode() & 0o7777;
    let is_mine = found.uid() == geteuid().as_raw();
    if !is_mine || mode & 0o022 != 0 || mode & 0o077 == 0 {
        return Ok(None);
    }
    for entry in dir.read_dir()? {
        if !is_own(&entry?.file_name().to_string_lossy()) {
            return Ok(None);
        }
    }
    opened.set_permissions(Permissions::from_mode(mode & 0o7700))?;
    Ok(Some(mode))
}
