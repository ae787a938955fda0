//! Do the daemons answer, what do they say, and do the programs fit together?

use std::collections::BTreeMap;
use std::time::Duration;

use super::facts::Facts;
use super::finding::{Check, Finding};
use super::program;

const VERSION_LIMIT: Duration = Duration::from_secs(5);

pub(super) fn agent(facts: &Facts) -> Vec<Finding> {
    let mut check = Check::new("agent");
    let status = match &facts.agent {
        Ok(status) => status,
        Err(e) => {
            check.error(
                format!("warren-agent does not answer: {e}"),
                "peers, routes and filters stay as they are: no new node is learned, and no damage \
                 is repaired",
                "start warren-agent, or read its log, then: warren status",
            );
            return check.done("");
        }
    };
    for problem in &status.problems {
        check.error(
            format!("warren-agent says: {problem}"),
            "the agent could not do this; it tries again by itself",
            "warren status; docs/troubleshooting.md has the messages",
        );
    }
    if !status.registry.ok && !status.problems.contains(&status.registry.detail) {
        check.error(
            format!(
                "the registry does not tell of nodes: {}",
                status.registry.detail
            ),
            "the last view holds; changes of other nodes are not seen",
            "ls -l the registry's directory on this node; is its file system mounted?",
        );
    }
    for refused in status.rejected.iter().filter(|refused| !refused.waiting) {
        check.warn(
            format!("node {} is refused: {}", refused.node, refused.message),
            "its pods are not reached from this node",
            format!(
                "correct it on that node, then here: warren status ({})",
                refused.reason
            ),
        );
    }
    check.done(format!("answers, and knows {} peers", status.peers.len()))
}

pub(super) fn tunnel(facts: &Facts) -> Vec<Finding> {
    let mut check = Check::new("tunnel");
    let start = "start warren-tunnel, or read its log, then: warren show";
    match &facts.device {
        Ok(device) if device.private_key.is_none() && !facts.is_kernel => check.error(
            "the tunnel has no private key",
            "it can have no session; pods of other nodes are not reached",
            start,
        ),
        Ok(_) => {}
        Err(e) => check.error(
            format!("warren-tunnel does not answer: {e}"),
            "pods of other nodes are not reached; nothing leaves in clear",
            start,
        ),
    }
    if let (Ok(_), Err(e), false) = (&facts.device, &facts.tunnel, facts.is_kernel) {
        check.warn(
            format!("the tunnel's own socket does not answer: {e}"),
            "its counters and its version are not known",
            "give --run-dir as warren-tunnel has it",
        );
    }
    let who = match facts.is_kernel {
        true => "the kernel's WireGuard answers",
        false => "answers",
    };
    check.done(format!("{who}, on UDP port {}", facts.port()))
}

pub(super) fn versions(facts: &Facts) -> Vec<Finding> {
    let mut check = Check::new("versions");
    let ours = env!("CARGO_PKG_VERSION");
    let mut found = BTreeMap::from([("warren", ours.to_owned())]);
    if let Ok(status) = &facts.agent {
        found.insert("warren-agent", status.version.clone());
    }
    if let Some(version) = facts.tunnel.as_ref().ok().and_then(|t| t.get("version")) {
        found.insert("warren-tunnel", version.clone());
    }
    let plugin = facts.args.cni_bin_dir.join("warren-cni");
    if let Ok(ended) = program::run(&plugin, &["--version"], "", VERSION_LIMIT)
        && let Some(version) = ended.stdout.trim().strip_prefix("warren-cni ")
    {
        found.insert("warren-cni", version.to_owned());
    }
    let list: Vec<String> = found.iter().map(|(k, v)| format!("{k} {v}")).collect();
    let list = list.join(", ");
    if found.values().any(|version| version != ours) {
        check.warn(
            format!("the programs are of different versions: {list}"),
            "during an upgrade this is normal; for long it is tested by nobody",
            "install the same version of all programs, then restart warren-agent",
        );
    }
    check.done(list)
}
