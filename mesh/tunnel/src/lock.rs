//! The lock that keeps a second tunnel away from the same interface.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why the interface could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another tunnel has it.
    #[error("lock {path}: already running, another warren-tunnel has {interface}; stop it first")]
    AlreadyRunning {
        /// The lock's file.
        path: PathBuf,
        /// The interface.
        interface: String,
    },
    /// The file system refused.
    #[error("lock {path}: {source}")]
    Io {
        /// The lock's file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Held as long as the tunnel runs; the kernel lets go of it when the process ends in any way.
#[derive(Debug)]
pub struct InterfaceLock {
    _file: File,
}

impl InterfaceLock {
    /// Takes the lock of an interface.
    ///
    /// # Errors
    /// [`LockError::AlreadyRunning`] when another process has it.
    pub fn take(run_dir: &Path, interface: &str) -> Result<Self, LockError> {
        let path = run_dir.join(format!("{interface}.lock"));
        let failed = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(run_dir)
            .map_err(failed)?;
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(LockError::AlreadyRunning {
                path,
                interface: interface.to_owned(),
            }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_tunnel_of_an_interface_is_refused_until_the_first_ends() {
        let dir = tempfile::tempdir().unwrap();
        let first = InterfaceLock::take(dir.path(), "warren0").unwrap();
        let second = InterfaceLock::take(dir.path(), "warren0");
        assert!(matches!(second, Err(LockError::AlreadyRunning { .. })));
        InterfaceLock::take(dir.path(), "warren1").unwrap();
        drop(first);
        InterfaceLock::take(dir.path(), "warren0").unwrap();
    }
}
