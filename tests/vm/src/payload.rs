//! What machines are given beside their disk: programs and scripts, as a tar archive that they have as a second disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use warren_lab::{Host, bin};

use crate::Result;
use crate::places::crate_dir;

/// The programs that make a node, and those of the tests.
const PROGRAMS: [&str; 6] = [
    "warren-tunnel",
    "warren-agent",
    "warren-cni",
    "warren",
    "lab-tool",
    "warren-churn",
];
const PACK_LIMIT: Duration = Duration::from_secs(120);

/// Where the archive is unpacked in a machine.
pub(crate) const GUEST_DIR: &str = "/opt/warren";

/// Where the programs of a machine come from.
#[derive(Debug, Clone, Default)]
pub struct Payload {
    /// A directory with Warren's programs of another version; the others are those built with the tests.
    pub other_version: Option<PathBuf>,
}

impl Payload {
    /// Writes the archive.
    pub(crate) fn pack(&self, host: &Host, archive: &Path) -> Result {
        let dir = host.dir().join("payload");
        std::fs::create_dir_all(dir.join("programs"))?;
        for name in PROGRAMS {
            let other = self.other_version.as_ref().map(|dir| dir.join(name));
            let program = match other.filter(|path| path.exists()) {
                Some(path) => path,
                None => bin(name)?,
            };
            // Debug information is most of a program.
            let mut strip = Command::new("strip");
            strip
                .arg("-o")
                .arg(dir.join("programs").join(name))
                .arg(program);
            let output = host.output(&mut strip, PACK_LIMIT)?;
            host.check(&strip, output)?;
        }
        let mut tar = Command::new("tar");
        tar.arg("--owner=0")
            .arg("--group=0")
            .arg("-cf")
            .arg(archive);
        tar.arg("-C").arg(&dir).arg("programs");
        tar.arg("-C").arg(crate_dir()).args(["provision", "guest"]);
        let output = host.output(&mut tar, PACK_LIMIT)?;
        host.check(&tar, output)?;
        std::fs::remove_dir_all(&dir)?;
        Ok(())
    }
}
