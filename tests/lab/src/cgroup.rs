//! Control groups of hosts, in the hierarchies of cgroup v1.
//!
//! A lab's groups are named like its directory, so that whoever removes a lab, its first process after a
//! killed test or a later test, knows them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{LabError, Result};

const ROOT: &str = "/sys/fs/cgroup";
/// How long the kernel may take to let go of the groups of killed processes.
const REMOVE_LIMIT: Duration = Duration::from_secs(5);

/// One hierarchy, as mounted on the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted; hosts are to see theirs in the same place.
    pub mount_point: PathBuf,
    /// The option of mount(8) that names it: controllers, or `none,name=NAME`.
    pub option: String,
}

/// The hierarchies of this machine; none where it has cgroup v2 alone.
pub fn hierarchies() -> Vec<Hierarchy> {
    parse(&std::fs::read_to_string("/proc/mounts").unwrap_or_default())
}

fn parse(mounts: &str) -> Vec<Hierarchy> {
    let line = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let (at, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        let is_ours = kind == "cgroup" && Path::new(at).parent() == Some(Path::new(ROOT));
        let which = |option: &&str| {
            !["rw", "ro", "nosuid", "nodev", "noexec", "relatime", "xattr"].contains(option)
        };
        let named: Vec<&str> = options.split(',').filter(which).collect();
        let anonymous = named.iter().all(|option| option.starts_with("name="));
        is_ours.then(|| Hierarchy {
            mount_point: at.into(),
            option: format!(
                "{}{}",
                if anonymous { "none," } else { "" },
                named.join(",")
            ),
        })
    };
    let mut found: Vec<Hierarchy> = Vec::new();
    for hierarchy in mounts.lines().filter_map(line) {
        // One that was mounted twice counts once.
        if !found
            .iter()
            .any(|known| known.mount_point == hierarchy.mount_point)
        {
            found.push(hierarchy);
        }
    }
    found
}

/// Makes a group of this path below the root of each hierarchy.
pub(crate) fn create(path: &Path) -> Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    for hierarchy in hierarchies() {
        let mut group = hierarchy.mount_point.clone();
        for part in path {
            let parent = group.clone();
            group.push(part);
            let fail = |e| LabError::io(format!("make {}", group.display()), e);
            match std::fs::create_dir(&group) {
                Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(fail(e)),
                _ => {}
            }
            // Without these no process may enter.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(value) = std::fs::read(parent.join(file)) {
                    std::fs::write(group.join(file), value).map_err(fail)?;
                }
            }
        }
        made.push(group);
    }
    Ok(made)
}

/// Removes the groups of a lab, whose processes are dead or about to be.
pub(crate) fn remove(name: &str) {
    let deadline = Instant::now() + REMOVE_LIMIT;
    for hierarchy in hierarchies() {
        let group = hierarchy.mount_point.join(name);
        while group.is_dir() {
            remove_below(&group);
            if Instant::now() > deadline {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn remove_below(group: &Path) {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_below(&entry.path());
        }
    }
    // One that is still in use is tried again by the caller.
    let _ = std::fs::remove_dir(group);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_read_with_the_option_that_mounts_them_again() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw,relatime,mode=755 0 0\n\
                      cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,relatime,cpu,cpuacct 0 0\n\
                      cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,xattr,name=systemd 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n\
                      cgroup /elsewhere/cpu cgroup rw,relatime,cpu 0 0\n";
        let found = parse(mounts);
        let options: Vec<_> = found.iter().map(|h| h.option.as_str()).collect();
        assert_eq!(options, ["cpu,cpuacct", "none,name=systemd"]);
        assert_eq!(found[1].mount_point, Path::new("/sys/fs/cgroup/systemd"));
    }
}
