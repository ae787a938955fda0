//! Where things are on this machine.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::ensure;

use crate::Result;

/// The path of something that `tests/vm/prepare` makes.
pub(crate) fn prepared(name: &str) -> PathBuf {
    let cache = || {
        std::env::var_os("XDG_CACHE_HOME").map_or_else(
            || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"),
            PathBuf::from,
        )
    };
    std::env::var_os("WARREN_VM_DIR")
        .map_or_else(|| cache().join("warren/vm"), PathBuf::from)
        .join(name)
}

/// The directory of this crate.
pub(crate) fn crate_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Warren's programs of an earlier commit, which `tests/vm/earlier` names and builds.
///
/// # Errors
///
/// When they were not built.
pub fn earlier_version() -> Result<PathBuf> {
    let dir = prepared("earlier");
    ensure!(
        dir.join("warren-agent").exists(),
        "missing: {} (tests/vm/earlier)",
        dir.display()
    );
    Ok(dir)
}

/// Whether machines can be started; says so when not, and fails where a skip is not allowed.
///
/// # Panics
/// When they cannot and the environment variable `CI` is set.
pub fn require_machines() -> bool {
    let needs = [
        prepared("disk.raw"),
        prepared("kernel/vmlinuz"),
        prepared("ssh/key"),
        "/usr/bin/qemu-system-x86_64".into(),
    ];
    let missing: Vec<String> = needs
        .iter()
        .filter(|path| !path.exists())
        .map(|path| path.display().to_string())
        .collect();
    let reason = match warren_lab::skip_reason() {
        Some(reason) => reason,
        None if missing.is_empty() => return true,
        None => format!("missing: {} (tests/vm/prepare)", missing.join(", ")),
    };
    assert!(
        std::env::var_os("CI").is_none(),
        "CI may not skip: {reason}"
    );
    // Not by a print macro: the test harness swallows those of tests that pass.
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
    false
}
