//! What keeps a second tunnel away from the same interface: a claim in the network namespace, and a
//! lock in the run directory.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use warren_claim::{Claim, ClaimError, LockFile, LockFileError};

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
    /// The run directory cannot be made.
    #[error("make {path}: {source}")]
    RunDir {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The lock cannot be taken.
    #[error(transparent)]
    File(LockFileError),
}

/// Held as long as the tunnel runs; the kernel lets go of it when the process ends in any way.
#[derive(Debug)]
pub struct InterfaceLock {
    _file: LockFile,
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
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(run_dir)
            .map_err(|source| LockError::RunDir {
                path: run_dir.to_owned(),
                source,
            })?;
        match LockFile::take(&path) {
            Ok(file) => Ok(Self { _file: file }),
            Err(LockFileError::Held { path, pid }) => Err(LockError::AlreadyRunning {
                holder: format!("pid {pid}, lock {}", path.display()),
                path,
                interface: interface.to_owned(),
            }),
            Err(error) => Err(LockError::File(error)),
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
