//! One agent a run directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use thiserror::Error;

const LOCK_FILE: &str = "agent.lock";

/// Why the agent may not run here.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another agent holds the lock.
    #[error(
        "another warren-agent runs with {}; stop it, or give this one a run-dir of its own",
        path.display()
    )]
    Held {
        /// The lock's file.
        path: PathBuf,
    },
    /// The lock cannot be taken.
    #[error("lock {}: {source}", path.display())]
    Io {
        /// The lock's file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Held as long as the agent runs; the kernel lets go of it however the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of a run directory.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn take(run_dir: &Path) -> Result<Self, LockError> {
        let path = run_dir.join(LOCK_FILE);
        let opened = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(&path);
        let file = opened.map_err(|source| LockError::Io {
            path: path.clone(),
            source,
        })?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(LockError::Held { path }),
            Err(TryLockError::Error(source)) => Err(LockError::Io { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_second_agent_is_refused_until_the_first_ends_and_the_file_is_roots_alone() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path()).unwrap();
        let mode = std::fs::metadata(dir.path().join(LOCK_FILE)).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
        assert!(matches!(
            Lock::take(dir.path()),
            Err(LockError::Held { .. })
        ));
        drop(first);
        Lock::take(dir.path()).unwrap();
    }
}
