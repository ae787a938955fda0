//! What keeps a second tunnel away from the same interface: a claim in the network namespace, and a
//! lock in the run directory.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use warren_claim::{Claim, ClaimError};

/// Why the interface could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another tunnel has it.
    #[error(
        "lock {path}: already running, another warren-tunnel has {interface} ({holder}); stop it first"
    )]
    AlreadyRunning {
        /// The lock's file of this one.
        path: PathBuf,
        /// The interface.
        interface: String,
        /// Who has it: process and lock's file.
        holder: String,
    },
    /// The interface cannot be claimed.
    #[error(transparent)]
    Claim(ClaimError),
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

/// Claims an interface of this network namespace, whatever directories another tunnel may have. A
/// thread that answers to others begins: call it after signals are blocked.
///
/// # Errors
/// [`LockError::AlreadyRunning`] when another process has it.
pub fn claim(run_dir: &Path, interface: &str) -> Result<(), LockError> {
    let path = run_dir.join(format!("{interface}.lock"));
    let words = format!("lock {}", path.display());
    match Claim::take(&warren_claim::tunnel(interface), &words) {
        Ok(claim) => {
            if let Some(squatter) = claim.squatter() {
                tracing::warn!(%squatter, "another user's process sits on this tunnel's name");
            }
            Ok(())
        }
        Err(ClaimError::Held { holder, .. }) => Err(LockError::AlreadyRunning {
            path,
            interface: interface.to_owned(),
            holder: holder.to_string(),
        }),
        Err(error) => Err(LockError::Claim(error)),
    }
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
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {
                let pid = std::process::id();
                file.set_len(0).map_err(failed)?;
                writeln!(file, "{pid}").map_err(failed)?;
                Ok(Self { _file: file })
            }
            Err(TryLockError::WouldBlock) => {
                let pid = std::fs::read_to_string(&path).unwrap_or_default();
                Err(LockError::AlreadyRunning {
                    holder: format!("pid {}, lock {}", pid.trim(), path.display()),
                    path,
                    interface: interface.to_owned(),
                })
            }
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
        let error = second.unwrap_err().to_string();
        let pid = format!("pid {}, lock {}", std::process::id(), dir.path().display());
        assert!(error.contains(&pid), "{error}");
        InterfaceLock::take(dir.path(), "warren1").unwrap();
        drop(first);
        InterfaceLock::take(dir.path(), "warren0").unwrap();
    }
}
