//! The page of `warren status`.

use std::fmt::{Display, Write as _};

use warren_core::status::{
    AgentStatus, DataPlaneKind, Health, NodeState, PeerState, PeerStatus, RejectStatus,
};
use warren_text::table::table;

use crate::text::{self, Style, clean};

/// Whether nothing needs a person's attention on this node: it is protected, the tunnel and the
/// registry answer, all nodes are known, nothing failed, and traffic suffers with no peer. A
/// refused or idle peer is no trouble of this node.
pub fn is_well(status: &AgentStatus) -> bool {
    status.judge() == NodeState::Ok
}

/// Writes a status as a page of plain text.
pub fn page(status: &AgentStatus) -> String {
    let mut out = header(status);
    out.push('\n');
    out.push_str(&peers(&status.peers));
    let degraded = status.peers.iter().filter_map(|peer| {
        let cause = peer.degraded.as_ref()?;
        Some(format!(
            "{}: {} ({})",
            peer.node, cause.message, cause.reason
        ))
    });
    section(&mut out, "degraded peers", degraded);
    let (waiting, refused): (Vec<_>, Vec<_>) =
        status.rejected.iter().partition(|reject| reject.waiting);
    rejects(&mut out, "refused nodes", &refused);
    rejects(&mut out, "nodes not ready yet", &waiting);
    let notices = status
        .peers
        .iter()
        .filter_map(|peer| Some((peer.node.as_str(), peer.notice.as_deref()?)));
    section(
        &mut out,
        "notices",
        notices.map(|(node, notice)| format!("{node}: {notice}")),
    );
    out
}

fn header(status: &AgentStatus) -> String {
    let mut out = String::new();
    let mut line = |word: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{word:<10}  {}", clean(value));
    };
    line("node", &status.node);
    line("state", &state(status));
    let key = status.public_key.map(|key| key.to_base64());
    line("key", key.as_deref().unwrap_or("not known yet"));
    if let Some(age) = status.key_age_seconds {
        line("key age", &text::short_duration(age));
    }
    let endpoints = status.endpoints.iter().copied().map(text::endpoint);
    line("endpoints", &list(endpoints));
    line("podCIDRs", &list(&status.pod_cidrs));
    match status.data_plane {
        DataPlaneKind::Userspace => line("interface", &status.interface),
        DataPlaneKind::Kernel => {
            let interface = format!("{}, the kernel's WireGuard", status.interface);
            line("interface", &interface);
        }
    }
    line(
        "protected",
        if status.protected {
            "yes"
        } else {
            "NO: pods' packets could leave in clear; no new pod is let in until it is repaired"
        },
    );
    line("tunnel", &health(&status.tunnel));
    let mut registry = health(&status.registry);
    if !status.synced {
        registry.push_str(" (not all nodes are known yet)");
    }
    line("registry", &registry);
    let drops = status.filter_drops.iter().filter(|(_, count)| **count != 0);
    let drops = list(drops.map(|(rule, count)| format!("{rule} {count}")));
    if !drops.is_empty() {
        line("dropped", &format!("{drops} (packets, by rule)"));
    }
    let tunnel = match (&status.tunnel_version, status.data_plane) {
        (_, DataPlaneKind::Kernel) => "the kernel's",
        (Some(version), _) => version.as_str(),
        (None, _) => "not known",
    };
    line(
        "versions",
        &format!("agent {}, tunnel {tunnel}", status.version),
    );
    let mut word = "problems";
    for problem in &status.problems {
        line(word, problem);
        word = "";
    }
    if status.problems.is_empty() {
        line(word, "none");
    }
    out
}

/// The state in a word, and the first cause of it where it is a bad one.
fn state(status: &AgentStatus) -> String {
    let word = match status.judge() {
        NodeState::Ok => return "ok".to_owned(),
        NodeState::Degraded => "degraded",
        NodeState::Failed => "FAILED",
    };
    let causes = status.causes();
    let first = causes.first().map_or("", String::as_str);
    match causes.len() {
        0 | 1 => format!("{word}: {first}"),
        count => format!("{word}: {first} (and {} more)", count - 1),
    }
}

fn health(health: &Health) -> String {
    let word = if health.ok { "ok" } else { "FAILED" };
    if health.detail.is_empty() {
        word.to_owned()
    } else {
        format!("{word}: {}", health.detail)
    }
}

fn peers(peers: &[PeerStatus]) -> String {
    if peers.is_empty() {
        return "no other node is known\n".to_owned();
    }
    let mut peers: Vec<&PeerStatus> = peers.iter().collect();
    peers.sort_by(|a, b| a.node.cmp(&b.node));
    let rows = peers.iter().map(|peer| row(peer));
    let mut out = table(&HEADINGS, &NUMBERS, rows);
    if peers.iter().any(|peer| peer.endpoint.is_none()) {
        out.push_str("(endpoints in parentheses are published, but the tunnel has none yet)\n");
    }
    out
}

const HEADINGS: [&str; 8] = [
    "NODE",
    "STATE",
    "HANDSHAKE",
    "ENDPOINT",
    "SENT",
    "RECEIVED",
    "POD CIDRS",
    "MTU",
];
const NUMBERS: [&str; 3] = ["SENT", "RECEIVED", "MTU"];

fn row(peer: &PeerStatus) -> [String; HEADINGS.len()] {
    let handshake = match (peer.handshake_age_seconds, peer.state) {
        (Some(age), _) => format!("{} ago", text::short_duration(age)),
        (None, PeerState::Unknown) => "unknown".to_owned(),
        (None, _) => "never".to_owned(),
    };
    let endpoint = match peer.endpoint {
        Some(endpoint) => text::endpoint(endpoint),
        None => format!("({})", text::endpoint(peer.published_endpoint)),
    };
    [
        clean(&peer.node).into_owned(),
        peer.state.as_str().to_owned(),
        handshake,
        endpoint,
        text::bytes(peer.tx_bytes, Style::PLAIN),
        text::bytes(peer.rx_bytes, Style::PLAIN),
        list(&peer.pod_cidrs),
        peer.mtu_bytes.to_string(),
    ]
}

fn rejects(out: &mut String, title: &str, rejects: &[&RejectStatus]) {
    let lines = rejects
        .iter()
        .map(|reject| format!("{}: {} ({})", reject.node, reject.message, reject.reason));
    section(out, title, lines);
}

fn section(out: &mut String, title: &str, lines: impl Iterator<Item = String>) {
    for (index, line) in lines.enumerate() {
        if index == 0 {
            let _ = write!(out, "\n{title}\n");
        }
        let _ = writeln!(out, "  {}", clean(&line));
    }
}

fn list(items: impl IntoIterator<Item = impl Display>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(", ")
}
