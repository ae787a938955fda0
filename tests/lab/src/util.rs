//! Waiting, and finding built programs.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::error::{LabError, Result};

/// Pause between two looks at a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// How many times longer everything may take: `WARREN_LAB_PATIENCE`, for emulated machines.
const PATIENCE: &str = "WARREN_LAB_PATIENCE";

/// A limit as long as this machine is slow: all limits of the lab's are stretched by it.
pub fn patience(limit: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| {
        let told = std::env::var(PATIENCE).ok();
        told.and_then(|told| told.parse().ok()).unwrap_or(1)
    });
    limit * *factor
}

/// Waits until `condition` holds and tells how long that took.
///
/// # Errors
///
/// [`LabError::Timeout`] naming `what`.
pub fn poll_until(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> bool,
) -> Result<Duration> {
    let start = Instant::now();
    poll_for(limit, what, || condition().then_some(())).map(|()| start.elapsed())
}

/// Waits until `attempt` gives a value.
///
/// # Errors
///
/// [`LabError::Timeout`] naming `what`.
pub fn poll_for<T>(
    limit: Duration,
    what: &str,
    mut attempt: impl FnMut() -> Option<T>,
) -> Result<T> {
    let limit = patience(limit);
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = attempt() {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            return Err(LabError::Timeout {
                what: what.into(),
                limit,
                detail: String::new(),
            });
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Finds a program of this workspace: in `WARREN_BIN_DIR`, or in the target directory and profile
/// the running test was built with.
///
/// # Errors
///
/// [`LabError::Program`] with the path looked at.
pub fn bin(name: &str) -> Result<PathBuf> {
    let dir = match std::env::var_os("WARREN_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let exe = std::env::current_exe().map_err(|e| LabError::io("find this program", e))?;
            let mut dir = exe.parent().unwrap_or(&exe);
            // Tests run from `deps`, examples from `examples`, below the programs' directory.
            if dir.ends_with("deps") || dir.ends_with("examples") {
                dir = dir.parent().unwrap_or(dir);
            }
            dir.to_owned()
        }
    };
    let path = dir.join(name);
    if path.is_file() {
        Ok(path)
    } else {
        Err(LabError::Program {
            name: name.into(),
            path,
        })
    }
}
