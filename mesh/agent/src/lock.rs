//! One agent a network namespace, and one a run directory.

use std::path::{Path, PathBuf};

use thiserror::Error;
use warren_claim::{Claim, ClaimError, LockFile, LockFileError};

const LOCK_FILE: &str = "agent.lock";

/// Why the agent may not run here.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another agent holds the lock.
    #[error(
        "another warren-agent runs with {} (pid {pid}); stop it first, or, if it is another \
         machine's, give this one a run-dir of its own",
        path.display()
    )]
    Held {
        /// The lock's file.
        path: PathBuf,
        /// What it says of its process.
        pid: String,
    },
    /// Another agent runs in this network namespace, with whatever directories.
    #[error(
        "another warren-agent runs on this node ({holder}); stop it first: two would undo each \
         other's work, also with a run-dir or an interface of their own"
    )]
    Claimed {
        /// Its process and its lock's file.
        holder: String,
    },
    /// The claim cannot be taken.
    #[error(transparent)]
    Claim(ClaimError),
    /// The lock cannot be taken.
    #[error(transparent)]
    File(LockFileError),
}

/// Held as long as the agent runs; the kernel lets go of it however the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: LockFile,
}

impl Lock {
    /// Takes the claim of this network namespace and the lock of a run directory. A thread that answers
    /// to others begins.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn take(run_dir: &Path) -> Result<Self, LockError> {
        let path = run_dir.join(LOCK_FILE);
        let words = format!("lock {}", path.display());
        match Claim::take(warren_claim::AGENT, &words) {
            Ok(claim) => {
                if let Some(squatter) = claim.squatter() {
                    tracing::warn!(%squatter, "another user's process sits on the agent's name");
                }
            }
            Err(ClaimError::Held { holder, .. }) => {
                let holder = holder.to_string();
                return Err(LockError::Claimed { holder });
            }
            Err(error) => return Err(LockError::Claim(error)),
        }
        Self::take_file(&path)
    }

    fn take_file(path: &Path) -> Result<Self, LockError> {
        match LockFile::take(path) {
            Ok(file) => Ok(Self { _file: file }),
            Err(LockFileError::Held { path, pid }) => Err(LockError::Held { path, pid }),
            Err(error) => Err(LockError::File(error)),
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
        let first = Lock::take_file(&dir.path().join(LOCK_FILE)).unwrap();
        let mode = std::fs::metadata(dir.path().join(LOCK_FILE)).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
        let second = Lock::take_file(&dir.path().join(LOCK_FILE));
        let error = second.unwrap_err().to_string();
        assert!(
            error.contains(&format!("pid {}", std::process::id())),
            "{error}"
        );
        drop(first);
        Lock::take_file(&dir.path().join(LOCK_FILE)).unwrap();
    }
}
