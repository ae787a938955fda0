//! Files: only those that Warren's programs make, by their names.

use std::fs;
use std::io;
use std::path::Path;

use warren_core::consts;
use warren_core::files::{NodeFile, is_state};

use super::{Report, shown};
use crate::args::UninstallArgs;
use crate::install_cni::PARTIAL;

/// Removes the configuration that makes the runtime call the plugin, and the plugin if that is told.
pub(super) fn remove_cni(report: &mut Report, args: &UninstallArgs) {
    let conflist = args.cni_conf_dir.join(&args.cni_conf_name);
    remove_file(report, &conflist);
    if let Some(dir) = &args.cni_bin_dir {
        remove_file(report, &dir.join(consts::CNI_PLUGIN));
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
                remove_file(report, &entry.path());
            }
        }
    }
}

/// Removes this node's own record from the file registry.
pub(super) fn remove_record(
    report: &mut Report,
    dir: &Path,
    args: &UninstallArgs,
    node: Option<&NodeFile>,
) {
    let uid = fs::read_to_string(args.state_dir.join("node-uid"));
    let (Some(node), Ok(uid)) = (node, uid) else {
        return;
    };
    let path = dir.join(format!("{}.json", node.name));
    let Ok(text) = fs::read(&path) else { return };
    let record: Option<serde_json::Value> = serde_json::from_slice(&text).ok();
    if record.is_some_and(|record| record["uid"] == uid.trim()) {
        remove_file(report, &path);
    } else {
        report
            .kept
            .push(format!("{}: it is not this node's", shown(&path)));
    }
}

/// Removes the sockets and locks.
pub(super) fn remove_sockets(report: &mut Report, args: &UninstallArgs, interface: &str) {
    let uapi = &args.directories.uapi_dir;
    remove_file(report, &uapi.join(format!("{interface}.sock")));
    remove_empty(report, uapi);
    let run = &args.directories.run_dir;
    for name in [
        consts::AGENT_SOCKET,
        consts::TUNNEL_SOCKET,
        "agent.lock",
        &format!("{interface}.lock"),
    ] {
        remove_file(report, &run.join(name));
    }
    remove_tree(report, &run.join(consts::HOSTS_DIR));
    remove_empty(report, run);
}

/// Removes the state, the private key with it.
pub(super) fn remove_state(report: &mut Report, args: &UninstallArgs) {
    let dir = &args.state_dir;
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return,
        Err(e) => return report.fail(format!("list {}: {e}", shown(dir))),
    };
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    for name in names {
        let path = dir.join(&name);
        let text = name.to_string_lossy();
        if !is_state(&text) {
            report
                .kept
                .push(format!("{}: Warren did not make it", shown(&path)));
        } else if text == "ipam" || text == consts::TRUSTED_DIR {
            remove_tree(report, &path);
        } else {
            remove_file(report, &path);
        }
    }
    remove_empty(report, dir);
}

/// Removes a directory of Warren's own with what is in it, or what is in its place.
fn remove_tree(report: &mut Report, path: &Path) {
    if path.is_dir() && !path.is_symlink() {
        report.step(shown(path), || fs::remove_dir_all(path));
    } else {
        remove_file(report, path);
    }
}

fn remove_file(report: &mut Report, path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(_) => report.step(shown(path), || fs::remove_file(path)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => report.fail(format!("look at {}: {e}", shown(path))),
    }
}

/// Removes a directory that holds nothing any more; one that holds something is others' too.
fn remove_empty(report: &mut Report, dir: &Path) {
    if report.dry_run {
        return;
    }
    match fs::remove_dir(dir) {
        Ok(()) => report.done.push(shown(dir)),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::DirectoryNotEmpty
                    | io::ErrorKind::ResourceBusy
            ) => {}
        Err(e) => report.fail(format!("remove {}: {e}", shown(dir))),
    }
}
