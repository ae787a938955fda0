//! The few file operations that the store's crash safety rests on, as a seam: tests put a disk
//! beneath it that dies between any two of them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, renameat2};

/// The largest document that is read, in bytes; ours stay far below.
const MAX_DOCUMENT: u64 = 64 << 20;

/// What the store needs of a file system.
pub trait Disk {
    /// Reads a whole file; `None` when there is none.
    ///
    /// # Errors
    /// What the system says; invalid data for what is no regular file, or too large to be ours.
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>>;

    /// Writes over a file without giving its blocks back first: where they suffice, that works on
    /// a full disk, too.
    ///
    /// # Errors
    /// What the system says; the file may then hold anything.
    fn overwrite(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;

    /// Appends line feeds until the file has so many bytes; a document stays what it is.
    ///
    /// # Errors
    /// What the system says; some may have been appended.
    fn extend(&self, path: &Path, length: usize) -> io::Result<()>;

    /// Makes `to` what `from` is, atomically, and `from` what `to` was. Where that is not possible,
    /// or there is no `to`, `from` is gone afterwards.
    ///
    /// # Errors
    /// What the system says; nothing has changed then.
    fn exchange(&self, from: &Path, to: &Path) -> io::Result<()>;
}

/// The real one.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

impl Disk for OsDisk {
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let mut options = OpenOptions::new();
        // A FIFO or a device in the document's place must not keep the call waiting.
        let options = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
        let file = match options.open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let foreign = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return foreign("it is no regular file");
        }
        if metadata.len() > MAX_DOCUMENT {
            return foreign("it is larger than any address store");
        }
        let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default());
        file.take(MAX_DOCUMENT).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn overwrite(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(path)?;
        file.write_all(bytes)?;
        file.set_len(bytes.len() as u64)
    }

    fn extend(&self, path: &Path, length: usize) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let options = options.append(true).custom_flags(OFlag::O_NOFOLLOW.bits());
        let mut file = options.open(path)?;
        let present = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        file.write_all(&vec![b'\n'; length.saturating_sub(present)])
    }

    fn exchange(&self, from: &Path, to: &Path) -> io::Result<()> {
        match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_EXCHANGE) {
            Ok(()) => Ok(()),
            // There is no `to` yet, or the file system knows no exchange.
            Err(Errno::ENOENT | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                fs::rename(from, to)
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Makes a directory that only root may enter, with its parents.
pub(super) fn make_private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}

/// Opens a file that is only locked.
pub(super) fn open_lock_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(path)
}
