//! What machines are given beside their disk: programs and scripts, as a tar archive that they have as a second disk.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use warren_lab::{Host, bin};

use crate::Result;
use crate::places::{crate_dir, earlier_version};

/// The programs that make a node.
const PROGRAMS: [&str; 4] = ["warren-tunnel", "warren-agent", "warren-cni", "warren"];
/// Those of the tests.
const TOOLS: [&str; 2] = ["lab-tool", "warren-churn"];
const PACK_LIMIT: Duration = Duration::from_secs(120);

/// Where the archive is unpacked in a machine.
pub(crate) const GUEST_DIR: &str = "/opt/warren";

/// Which of Warren's programs a machine is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Those in `WARREN_VM_PROGRAMS`, else those that were built with the tests.
    Current,
    /// Those of an earlier commit, which `tests/vm/earlier` names and builds.
    Earlier,
}

impl Version {
    /// The directory of its programs in a machine.
    pub(crate) fn guest_dir(self) -> String {
        let name = match self {
            Self::Current => "programs",
            Self::Earlier => "earlier",
        };
        format!("{GUEST_DIR}/{name}")
    }
}

/// Writes the archive, with the earlier version where it is asked for.
pub(crate) fn pack(host: &Host, archive: &Path, earlier: bool) -> Result {
    let dir = host.dir().join("payload");
    for name in PROGRAMS {
        let program = match std::env::var_os("WARREN_VM_PROGRAMS") {
            Some(programs) => Path::new(&programs).join(name),
            None => bin(name)?,
        };
        strip(host, &program, &dir.join("programs").join(name))?;
        if earlier {
            let program = earlier_version()?.join(name);
            strip(host, &program, &dir.join("earlier").join(name))?;
        }
    }
    for name in TOOLS {
        strip(host, &bin(name)?, &dir.join("tools").join(name))?;
    }
    let mut tar = Command::new("tar");
    tar.args(["--owner=0", "--group=0", "-cf"]).arg(archive);
    tar.arg("-C").arg(&dir).arg(".");
    tar.arg("-C").arg(crate_dir()).args(["provision", "guest"]);
    let output = host.output(&mut tar, PACK_LIMIT)?;
    host.check(&tar, output)?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

/// Copies a program without what is for debuggers: that is most of it where it was built to be tested.
fn strip(host: &Host, from: &Path, to: &Path) -> Result {
    if let Some(dir) = to.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(to).arg(from);
    let output = host.output(&mut strip, PACK_LIMIT)?;
    host.check(&strip, output)?;
    Ok(())
}
