//! The lab's directory, the removal of stale ones, and what is kept after a failure.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{LabError, Result};

const PREFIX: &str = "warren-lab.";
/// Holds `<pid> <start time>` of the process without which the directory is stale.
const OWNER: &str = "owner";

/// Names become hostnames, directories and parts of interface names.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let why = if name.is_empty() || name.len() > 40 {
        "it must have 1 to 40 characters"
    } else if !name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    {
        "only letters, digits, `-` and `_` are allowed"
    } else {
        return Ok(());
    };
    Err(LabError::Name {
        name: name.into(),
        why,
    })
}

/// Makes the directory of a lab owned by this process.
pub(crate) fn create(name: &str) -> Result<PathBuf> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let pid = std::process::id();
    let started = start_time(pid).unwrap_or(0);
    let dir = parent().join(format!(
        "{PREFIX}{}.{pid}.{started}.{number}.{name}",
        pid_namespace()
    ));
    for sub in ["hosts", "logs"] {
        let path = dir.join(sub);
        std::fs::create_dir_all(&path)
            .map_err(|e| LabError::io(format!("make {}", path.display()), e))?;
    }
    Ok(dir)
}

/// Makes another process the owner of a directory.
pub(crate) fn hand_over(dir: &Path, pid: i32) -> Result<()> {
    let started = start_time(pid as u32).unwrap_or(0);
    std::fs::write(dir.join(OWNER), format!("{pid} {started}"))
        .map_err(|e| LabError::io(format!("write the owner of {}", dir.display()), e))
}

/// Removes the directories of labs whose process is gone, as after SIGKILL.
pub(crate) fn remove_stale() {
    let Ok(entries) = std::fs::read_dir(parent()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|n| n.strip_prefix(PREFIX)) else {
            continue;
        };
        let mut parts = rest.split('.');
        // Another PID namespace's processes cannot be judged from here.
        if parts.next().and_then(|p| p.parse().ok()) != Some(pid_namespace()) {
            continue;
        }
        let by_name = (parts.next(), parts.next());
        let by_file = std::fs::read_to_string(entry.path().join(OWNER)).unwrap_or_default();
        let owner = by_file
            .split_once(' ')
            .map_or(by_name, |(p, s)| (Some(p), Some(s)));
        let (Some(pid), Some(started)) = owner else {
            continue;
        };
        let (Ok(pid), Ok(started)) = (pid.parse::<u32>(), started.parse::<u64>()) else {
            continue;
        };
        if start_time(pid) != Some(started) {
            crate::cgroup::remove(&name.to_string_lossy());
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// The directory for what a failure leaves: `WARREN_LAB_ARTIFACTS`, or `lab-artifacts` beside the
/// build's output.
pub(crate) fn artifacts() -> PathBuf {
    if let Some(dir) = std::env::var_os("WARREN_LAB_ARTIFACTS") {
        return PathBuf::from(dir);
    }
    let exe = std::env::current_exe().unwrap_or_default();
    let target = exe
        .ancestors()
        .find(|a| a.file_name().is_some_and(|n| n == "target"));
    target.map_or_else(
        || parent().join("warren-lab-artifacts"),
        |t| t.join("lab-artifacts"),
    )
}

/// Makes a directory of its own for what one failure leaves.
pub(crate) fn artifacts_for(name: &str) -> std::io::Result<PathBuf> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let dir = artifacts().join(format!("{name}-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// Copies the logs of a lab that ends by a panic.
pub(crate) fn keep_logs(name: &str, dir: &Path) -> Option<PathBuf> {
    let mut logs = std::fs::read_dir(dir.join("logs"))
        .ok()?
        .flatten()
        .peekable();
    logs.peek()?;
    let kept = artifacts_for(name).ok()?;
    for log in logs {
        std::fs::copy(log.path(), kept.join(log.file_name())).ok()?;
    }
    Some(kept)
}

/// The temporary directory, unless it is below `/run`, which hosts do not see.
fn parent() -> PathBuf {
    let dir = std::env::temp_dir();
    if dir.starts_with("/run") || dir.starts_with("/var/run") {
        "/var/tmp".into()
    } else {
        dir
    }
}

fn pid_namespace() -> u64 {
    std::fs::metadata("/proc/self/ns/pid").map_or(0, |m| m.ino())
}

/// A process's start in clock ticks since boot; none when it does not exist or is dead.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold spaces and brackets: fields count from the last bracket.
    let mut fields = stat.get(stat.rfind(')')? + 2..)?.split(' ');
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    // Field 22 of proc_pid_stat(5); the state is field 3.
    fields.nth(18)?.parse().ok()
}
