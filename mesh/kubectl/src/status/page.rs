//! The page for people.

use std::fmt::Write as _;

use warren_text::table::table;
use warren_text::text::{self, clean};

use super::pairs::{PairState, Seen};
use super::report::{NodeReport, Report, State};

/// Up to how many nodes the matrix is shown without being asked for: what fits in a terminal.
const SMALL: usize = 12;
/// How many lines of one kind are shown.
const LINES: usize = 40;
/// How many names are shown where many say the same.
const NAMES: usize = 3;
/// How much of a key is shown: enough to tell keys apart.
const KEY_SHOWN: usize = 12;

/// What to show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// More columns.
    pub wide: bool,
    /// The matrix of handshakes, however large.
    pub matrix: bool,
}

/// Writes a report as a page of plain text.
pub fn page(report: &Report, style: Style) -> String {
    let mut out = header(report);
    if report.nodes.is_empty() {
        return out;
    }
    out.push('\n');
    out.push_str(&nodes(report, style));
    let causes = report.nodes.iter().flat_map(|node| {
        let causes = node.causes.iter();
        causes.map(|cause| format!("{}: {cause}", node.node))
    });
    section(&mut out, "troubles", causes);
    let network = report.nodes.iter().filter_map(|node| {
        let condition = node.network_unavailable.as_ref()?;
        let told = condition.status != "False";
        told.then(|| {
            format!(
                "{}: {} ({})",
                node.node, condition.message, condition.reason
            )
        })
    });
    section(&mut out, "nodes without a network for pods", network);
    for (title, waiting) in [("refused nodes", false), ("nodes not ready yet", true)] {
        let refused = report.refused.iter().filter(|r| r.waiting == waiting);
        let lines = refused.map(|r| {
            let by = names(&r.refused_by);
            format!("{}, by {by}: {} ({})", r.node, r.message, r.reason)
        });
        section(&mut out, title, lines);
    }
    let differ = report.disagreements.iter().map(|d| {
        let by = names(&d.seen_by);
        format!("{}, by {by}: {}", d.node, d.message)
    });
    section(&mut out, "disagreements", differ);
    handshakes(&mut out, report, style);
    out
}

fn header(report: &Report) -> String {
    let mut out = String::new();
    let mut line = |word: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{word:<8}  {}", clean(value));
    };
    line("cluster", &report.api);
    line("state", word(report.state));
    let well = report.nodes.iter().filter(|node| node.state == State::Ok);
    line(
        "nodes",
        &format!("{}, of which {} are ok", report.nodes.len(), well.count()),
    );
    let agents = report.versions(|node| node.agent_version.as_ref());
    let tunnels = report.versions(|node| node.tunnel_version.as_ref());
    for (what, versions) in [("agents", agents), ("tunnels", tunnels)] {
        let listed: Vec<String> = versions
            .iter()
            .map(|(version, count)| format!("{count} of {version}"))
            .collect();
        let listed = match listed.as_slice() {
            [] => "none known".to_owned(),
            listed => listed.join(", "),
        };
        line(what, &listed);
    }
    out
}

fn word(state: State) -> &'static str {
    match state {
        State::Ok => "ok",
        State::Degraded => "degraded",
        State::Failed => "FAILED",
        State::Unknown => "UNKNOWN",
    }
}

fn nodes(report: &Report, style: Style) -> String {
    let mut headings = vec![
        "NODE", "STATE", "NETWORK", "KEY", "KEY AGE", "AGENT", "TUNNEL", "PEERS",
    ];
    if style.wide {
        headings.extend(["ENDPOINTS", "POD CIDRS"]);
    }
    let rows = report.nodes.iter().map(|node| row(node, style));
    table(&headings, &["KEY AGE", "PEERS"], rows)
}

fn row(node: &NodeReport, style: Style) -> Vec<String> {
    let or_dash = |text: Option<&String>| {
        text.map_or_else(|| "-".to_owned(), |text| clean(text).into_owned())
    };
    let network = match node.network_unavailable.as_ref().map(|c| c.status.as_str()) {
        Some("False") => "available",
        Some("True") => "UNAVAILABLE",
        Some(_) => "unknown",
        None => "-",
    };
    let key = node.public_key.as_ref().or(node.published_key.as_ref());
    let key = match key {
        Some(key) if !style.wide && key.chars().count() > KEY_SHOWN => {
            let shown: String = key.chars().take(KEY_SHOWN).collect();
            format!("{}…", clean(&shown))
        }
        key => or_dash(key),
    };
    let well = node.peers.iter().filter(|seen| seen.pair == PairState::Ok);
    let peers = match node.state {
        State::Unknown => "-".to_owned(),
        _ => format!("{}/{}", well.count(), node.peers.len()),
    };
    let mut cells = vec![
        clean(&node.node).into_owned(),
        word(node.state).to_owned(),
        network.to_owned(),
        key,
        node.key_age_seconds
            .map_or_else(|| "-".to_owned(), text::short_duration),
        or_dash(node.agent_version.as_ref()),
        or_dash(node.tunnel_version.as_ref()),
        peers,
    ];
    if style.wide {
        let endpoints: Vec<String> = node.endpoints.iter().copied().map(text::endpoint).collect();
        let endpoints = match &node.force_endpoint {
            Some(forced) => format!("{} (forced)", clean(forced)),
            None => endpoints.join(", "),
        };
        cells.push(endpoints);
        cells.push(clean(&node.pod_cidrs.join(", ")).into_owned());
    }
    cells
}

fn handshakes(out: &mut String, report: &Report, style: Style) {
    let troubles = report.nodes.iter().flat_map(|node| {
        node.peers.iter().filter_map(|seen| {
            let word = match seen.pair {
                PairState::Degraded => "degraded",
                PairState::OneSided => "one-sided",
                _ => return None,
            };
            let cause = seen.cause.as_deref().unwrap_or_default();
            Some(format!("{} -> {}: {word}: {cause}", node.node, seen.node))
        })
    });
    section(out, "pairs in trouble", troubles);
    if report.nodes.len() < 2 {
        return;
    }
    if report.nodes.len() > SMALL && !style.matrix {
        let pairs = report.nodes.iter().flat_map(|node| &node.peers);
        let (mut all, mut well, mut never) = (0, 0, 0);
        for seen in pairs {
            all += 1;
            well += usize::from(seen.pair == PairState::Ok);
            never += usize::from(seen.pair == PairState::Never);
        }
        let _ = writeln!(
            out,
            "\nhandshakes: {well} of {all} ends have had one, {never} not yet; --matrix shows each"
        );
        return;
    }
    out.push_str("\nhandshakes: how long ago the row's node had one with the column's\n");
    out.push_str(&matrix(report));
    out.push_str("! degraded   * one-sided   x no peer there   ? not known\n");
}

fn matrix(report: &Report) -> String {
    let names: Vec<String> = report
        .nodes
        .iter()
        .map(|node| clean(&node.node).into_owned())
        .collect();
    let mut headings = vec![""];
    headings.extend(names.iter().map(String::as_str));
    let rows = report.nodes.iter().enumerate().map(|(index, row)| {
        // Peers are in the order of the Nodes, and the node itself is not among them.
        let mut seen = row.peers.iter();
        let mut cells = vec![clean(&row.node).into_owned()];
        cells.extend((0..report.nodes.len()).map(|column| {
            if column == index {
                return ".".to_owned();
            }
            seen.next().map_or_else(|| "?".to_owned(), cell)
        }));
        cells
    });
    table(&headings, &[], rows)
}

fn cell(seen: &Seen) -> String {
    let age = seen
        .handshake_age_seconds
        .map_or_else(|| "never".to_owned(), one_unit);
    match seen.pair {
        PairState::Ok | PairState::Never => age,
        PairState::Degraded => format!("{age}!"),
        PairState::OneSided => format!("{age}*"),
        PairState::Unknown => "?".to_owned(),
        PairState::NoPeer => "x".to_owned(),
    }
}

/// Seconds in the largest unit that they fill.
fn one_unit(seconds: u64) -> String {
    let text = text::short_duration(seconds);
    match text.split_once(' ') {
        Some((first, _)) => first.to_owned(),
        None => text,
    }
}

/// A few of many names.
fn names(all: &[String]) -> String {
    let shown: Vec<&str> = all.iter().take(NAMES).map(String::as_str).collect();
    let more = all.len() - shown.len();
    match more {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn section(out: &mut String, title: &str, lines: impl Iterator<Item = String>) {
    let mut left_out = 0;
    for (index, line) in lines.enumerate() {
        if index == 0 {
            let _ = write!(out, "\n{title}\n");
        }
        if index < LINES {
            let _ = writeln!(out, "  {}", clean(&line));
        } else {
            left_out += 1;
        }
    }
    if left_out > 0 {
        let _ = writeln!(out, "  and {left_out} more; -o json has all");
    }
}
