//! The state directory: its files, and the room that is left.

use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};
use serde::de::DeserializeOwned;
use serde_json::Value;
use warren_core::consts::{NODE_FILE, VIEW_FILE};
use warren_core::files::{NodeFile, SavedView};
use warren_core::uapi::Request;

use super::facts::Facts;
use super::finding::{Check, Finding};

/// The label of TAI64 (cr.yp.to/libtai/tai64.html): 1970 in TAI, as warren-tunnel writes it.
const TAI64_BASE: u64 = (1 << 62) + 37;
const TUNNEL_STATE: &str = "tunnel.state";
/// Under this a rewrite of the largest file may fail.
const FEW_BYTES: u64 = 16 << 20;
const NO_BYTES: u64 = 256 << 10;
const FEW_INODES: u64 = 256;
const NO_INODES: u64 = 8;

pub(super) fn files(facts: &Facts) -> Vec<Finding> {
    let mut check = Check::new("state");
    let dir = &facts.args.state_dir;
    let aside = |path: &Path| format!("mv {0} {0}.damaged; then restart the agent", path.display());
    let node = dir.join(NODE_FILE);
    match parse::<NodeFile>(&node) {
        Parsed::Good => {}
        Parsed::Missing => check.error(
            format!("{} does not exist", node.display()),
            "warren-agent has never set this node up, or has another state-dir; warren-cni makes no \
             pod",
            "start warren-agent, or give --state-dir as it has it",
        ),
        Parsed::Bad(cause) => check.error(cause, "warren-cni makes no pod", aside(&node)),
    }
    let view = dir.join(VIEW_FILE);
    if let Parsed::Bad(cause) = parse::<SavedView>(&view) {
        check.error(
            cause,
            "warren-agent starts without the last view: who had a key or a range first is forgotten",
            aside(&view),
        );
    }
    let uid = dir.join("node-uid");
    if std::fs::read_to_string(&uid).is_ok_and(|text| text.trim().is_empty()) {
        check.error(
            format!("{} is empty", uid.display()),
            "to the other nodes this is a new node at the agent's next start",
            "restart warren-agent, which makes a new one",
        );
    }
    let tunnel = dir.join(TUNNEL_STATE);
    if let Ok(text) = std::fs::read_to_string(&tunnel)
        && let Err(cause) = tunnel_state(&text)
    {
        check.error(
            format!("{}: {cause}", tunnel.display()),
            "warren-tunnel starts without peers until the agent gives them",
            format!(
                "mv {0} {0}.damaged; then restart warren-tunnel",
                tunnel.display()
            ),
        );
    }
    let damaged = dir.join("tunnel.state.damaged");
    if damaged.exists() {
        check.warn(
            format!("{} exists", damaged.display()),
            "warren-tunnel found its state damaged at a start and went on without it",
            format!("check the disk; then: rm {}", damaged.display()),
        );
    }
    let pools = std::fs::read_dir(dir.join("ipam"))
        .into_iter()
        .flatten()
        .flatten();
    for path in pools.map(|entry| entry.path()) {
        let is_pool = path.extension().is_some_and(|e| e == "json");
        if let (true, Parsed::Bad(cause)) = (is_pool, parse::<Value>(&path)) {
            check.error(
                cause,
                "which addresses running pods have is not known, so that none is given",
                format!(
                    "restore it, or remove this node's pods and then: rm {}",
                    path.display()
                ),
            );
        }
    }
    check.done(format!("the files in {} are whole", dir.display()))
}

pub(super) fn disk(facts: &Facts) -> Vec<Finding> {
    let mut check = Check::new("disk");
    let mut dirs: Vec<&PathBuf> = vec![&facts.args.state_dir];
    dirs.push(&facts.args.cni_conf_dir);
    dirs.push(&facts.args.directories.run_dir);
    for dir in dirs.into_iter().filter(|dir| dir.exists()) {
        let found = match statvfs(dir.as_path()) {
            Ok(found) => found,
            Err(e) => {
                check.error(
                    format!("statvfs {}: {e}", dir.display()),
                    "it cannot be used",
                    "df -h",
                );
                continue;
            }
        };
        let shown = dir.display();
        let means =
            "keys, peers and addresses of pods cannot be saved; a restart loses what changed";
        if found.flags().contains(FsFlags::ST_RDONLY) {
            check.error(
                format!("{shown} is on a read-only file system"),
                means,
                format!(
                    "dmesg | grep -i remount; mount -o remount,rw $(findmnt -nT {shown} -o TARGET)"
                ),
            );
            continue;
        }
        let bytes = found
            .blocks_available()
            .saturating_mul(found.fragment_size());
        let room = format!("{shown} has {} KiB left", bytes / 1024);
        let see = format!("df -h {shown}; du -xh {shown} | sort -h | tail");
        match bytes {
            0..NO_BYTES => check.error(room, means, see),
            NO_BYTES..FEW_BYTES => check.warn(room, "a file may soon not be saved", see),
            _ => {}
        }
        let inodes = found.files_available();
        let room = format!("{shown} has {inodes} inodes left");
        // File systems without a fixed number of inodes say 0 of 0.
        match inodes {
            0..NO_INODES if found.files() > 0 => check.error(room, means, format!("df -i {shown}")),
            NO_INODES..FEW_INODES => {
                check.warn(
                    room,
                    "a file may soon not be saved",
                    format!("df -i {shown}"),
                );
            }
            _ => {}
        }
    }
    check.done("there is room for state, sockets and the CNI configuration")
}

/// The time since the Unix epoch in seconds that no handshake was stamped later than, if it can be
/// read.
pub(super) fn stamp_mark(facts: &Facts) -> Option<u64> {
    let text = std::fs::read_to_string(facts.args.state_dir.join(TUNNEL_STATE)).ok()?;
    tunnel_state(&text).ok()
}

/// Reads what warren-tunnel saved, and returns its mark.
fn tunnel_state(text: &str) -> Result<u64, String> {
    let wrong =
        |line: &str| format!("line `{line}` is missing or wrong; written by another version?");
    let (header, request) = text.split_once("\n\n").ok_or_else(|| wrong("set"))?;
    let mut lines = header.lines();
    if lines.next() != Some("warren-tunnel-state=1") {
        return Err(wrong("warren-tunnel-state"));
    }
    let mark = lines
        .find_map(|line| line.strip_prefix("tai64n_mark="))
        .and_then(|mark| u64::from_str_radix(mark.get(..16)?, 16).ok())
        .and_then(|seconds| seconds.checked_sub(TAI64_BASE))
        .ok_or_else(|| wrong("tai64n_mark"))?;
    if !request.ends_with("\n\n") {
        return Err(wrong("(the final empty line)"));
    }
    match Request::parse(request) {
        Ok(Request::Set(_)) => Ok(mark),
        Ok(Request::Get) => Err(wrong("set")),
        Err(e) => Err(e.to_string()),
    }
}

enum Parsed {
    Good,
    Missing,
    Bad(String),
}

fn parse<T: DeserializeOwned>(path: &Path) -> Parsed {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Parsed::Missing,
        Err(e) => return Parsed::Bad(format!("read {}: {e}", path.display())),
    };
    match serde_json::from_slice::<T>(&text) {
        Ok(_) => Parsed::Good,
        Err(e) => Parsed::Bad(format!("parse {}: {e}", path.display())),
    }
}
