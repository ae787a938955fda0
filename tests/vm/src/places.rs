//! Where things are on this machine.

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
pub(crate) fn earlier_version() -> Result<PathBuf> {
    let dir = prepared("earlier");
    ensure!(
        dir.join("warren-agent").exists(),
        "missing: {} (tests/vm/earlier)",
        dir.display()
    );
    Ok(dir)
}

/// Why machines cannot be started here, if they cannot.
pub fn skip_reason() -> Option<String> {
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
    let no_lab = warren_lab::enter_user_namespace_if_needed().err();
    no_lab.map(|e| e.to_string()).or_else(|| {
        (!missing.is_empty()).then(|| format!("missing: {} (tests/vm/prepare)", missing.join(", ")))
    })
}
