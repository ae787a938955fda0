//! A lock on a file that holds the pid of whoever has it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Why a lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockFileError {
    /// Another process has it.
    #[error("lock {}: held by pid {pid}", path.display())]
    Held {
        /// The file.
        path: PathBuf,
        /// The process's pid as it wrote it, in its PID namespace.
        pid: String,
    },
    /// The file cannot be opened, locked or written.
    #[error("lock {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Held as long as this lives; the kernel lets go of it when the process ends in any way.
#[derive(Debug)]
pub struct LockFile {
    _file: File,
}

impl LockFile {
    /// Takes the lock of a file, which is made for root alone if it is not there.
    ///
    /// # Errors
    /// [`LockFileError`].
    pub fn take(path: &Path) -> Result<Self, LockFileError> {
        let failed = |source| LockFileError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0).map_err(failed)?;
                writeln!(file, "{}", std::process::id()).map_err(failed)?;
                Ok(Self { _file: file })
            }
            Err(TryLockError::WouldBlock) => {
                let pid = std::fs::read_to_string(path).unwrap_or_default();
                Err(LockFileError::Held {
                    path: path.to_owned(),
                    pid: pid.trim().to_owned(),
                })
            }
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}
