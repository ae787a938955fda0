//! A lab host as a machine that runs a container runtime and a kubelet.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use warren_lab::{Host, Proc, hierarchies};

/// Where programs of the system are, and those of Kubernetes that need them look.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Enters the host's groups, then its namespaces with a control group namespace whose root the groups are.
const SET_UP: &str = r#"
while read -r group _; do echo 0 >"$group/cgroup.procs"; done <<END
$HIERARCHIES
END
exec unshare --cgroup nsenter --target "$1" --mount --uts --ipc --net --pid -- sh -ec "$2" machine "$3"
"#;

/// Runs on a host before a daemon: enters the host's groups, as they are mounted there.
const JOIN: &str = r#"#!/bin/sh
for group in /sys/fs/cgroup/*/cgroup.procs; do echo 0 >"$group"; done
exec unshare --cgroup "#;

/// Makes a host that has just been made or rebooted ready for [`spawn`].
///
/// # Errors
/// Those of the lab; what a step of the set-up says.
pub(crate) fn set_up(host: &Host) -> Result<()> {
    let mut lines = String::new();
    for (group, hierarchy) in host.cgroups()?.iter().zip(hierarchies()) {
        let (group, at) = (group.display(), hierarchy.mount_point.display());
        writeln!(lines, "{group} {at} {}", hierarchy.option)?;
    }
    let output = Command::new("sh")
        .args(["-ec", SET_UP, "set-up"])
        .arg(host.init_pid()?.to_string())
        .arg(include_str!("machine.sh"))
        .arg(host.dir())
        .env("HIERARCHIES", lines.trim_end())
        .env("PATH", PATH)
        .output()
        .context("set up a machine")?;
    ensure!(
        output.status.success(),
        "set up {}: {}",
        host.name(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Starts a daemon in the host's control groups; its log is named after it.
///
/// # Errors
/// Those of the lab and of the file.
pub(crate) fn spawn(host: &Host, program: &Path, arguments: &[String]) -> Result<Proc> {
    let daemons = host.dir().join("daemons");
    fs::create_dir_all(&daemons)?;
    let start = daemons.join(program.file_name().unwrap_or_default());
    fs::write(&start, format!("{JOIN}{} \"$@\"\n", program.display()))
        .with_context(|| format!("write {}", start.display()))?;
    fs::set_permissions(&start, fs::Permissions::from_mode(0o755))?;
    let mut command = Command::new(&start);
    command.args(arguments).env("PATH", PATH);
    Ok(host.spawn(&mut command)?)
}
