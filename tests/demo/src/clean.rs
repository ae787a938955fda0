//! Whether the demo left anything behind on the machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// What a program could leave behind: network interfaces, mounts, running programs of Warren.
#[derive(Debug)]
pub(crate) struct Machine {
    interfaces: BTreeSet<String>,
    mounts: BTreeSet<String>,
    programs: BTreeSet<String>,
}

impl Machine {
    /// Looks at the machine as it is now.
    pub(crate) fn look() -> Result<Self> {
        let names = |dir: &str| -> Result<BTreeSet<String>> {
            let entries = std::fs::read_dir(dir).with_context(|| format!("list {dir}"))?;
            Ok(entries
                .flatten()
                .map(|e| e.file_name().to_string_lossy().into_owned())
                .collect())
        };
        let mounts = std::fs::read_to_string("/proc/self/mounts").context("read the mounts")?;
        let ours = |pid: &String| {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            // The kernel cuts names at 15 bytes; this program is warren-demo itself.
            ["warren-tunnel", "warren-agent", "lab-tool"].contains(&comm.trim())
        };
        Ok(Self {
            interfaces: names("/sys/class/net")?,
            mounts: mounts.lines().map(str::to_owned).collect(),
            programs: names("/proc")?.into_iter().filter(ours).collect(),
        })
    }

    /// Fails when there is more now than at `self`, or when the demo's directory is still there.
    pub(crate) fn check_nothing_left(&self, directory: &Path) -> Result<()> {
        let now = Self::look()?;
        let more = |a: &BTreeSet<String>, b: &BTreeSet<String>| -> Vec<String> {
            b.difference(a).cloned().collect()
        };
        let left: Vec<String> = [
            more(&self.interfaces, &now.interfaces),
            more(&self.mounts, &now.mounts),
            more(&self.programs, &now.programs),
        ]
        .concat();
        ensure!(left.is_empty(), "left behind on the machine: {left:?}");
        let directory: PathBuf = directory.into();
        ensure!(!directory.exists(), "left behind: {}", directory.display());
        Ok(())
    }
}
